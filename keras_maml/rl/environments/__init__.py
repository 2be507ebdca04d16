"""The environments of the paper, and batches of them and of any others.

Importing this package registers six with gymnasium: ``keras_maml/Navigation2D-v0``,
``keras_maml/HalfCheetahVelocity-v0``, ``keras_maml/HalfCheetahDirection-v0``,
``keras_maml/AntVelocity-v0``, ``keras_maml/AntDirection-v0`` and ``keras_maml/AntPosition-v0``.
Robots need MuJoCo, which is imported when the first of them is made. `from_gymnasium` and
`from_tf_agents` make families of tasks of environments of one's own.
"""

import gymnasium

from keras_maml.rl.environments.gymnasium_tasks import from_gymnasium
from keras_maml.rl.environments.problems import NAMESPACE, PROBLEMS
from keras_maml.rl.environments.task_env import TaskEnv
from keras_maml.rl.environments.task_py_environment import TaskPyEnvironment
from keras_maml.rl.environments.task_setting import Arguments, Attributes, Options
from keras_maml.rl.environments.task_vector_env import TaskVectorEnv
from keras_maml.rl.environments.tasks import Directions, Uniform
from keras_maml.rl.environments.tf_agents_tasks import from_tf_agents

ENVIRONMENTS = tuple(f"{NAMESPACE}/{name}" for name in PROBLEMS)
"""The registered names."""

__all__ = [
    "ENVIRONMENTS",
    "Arguments",
    "Attributes",
    "Directions",
    "Options",
    "TaskEnv",
    "TaskPyEnvironment",
    "TaskVectorEnv",
    "Uniform",
    "from_gymnasium",
    "from_tf_agents",
]

for _name in ENVIRONMENTS:
    gymnasium.register(
        _name,
        entry_point="keras_maml.rl.environments.task_env:TaskEnv",
        vector_entry_point="keras_maml.rl.environments.task_vector_env:TaskVectorEnv",
        kwargs={"name": _name},
    )
