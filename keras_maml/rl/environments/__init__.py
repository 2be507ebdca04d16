"""The environments of the paper, and batches of them.

Importing this package registers them with gymnasium: ``keras_maml/Navigation2D-v0``,
``keras_maml/HalfCheetahVelocity-v0``, ``keras_maml/HalfCheetahDirection-v0``,
``keras_maml/AntVelocity-v0`` and ``keras_maml/AntDirection-v0``.
"""

import gymnasium

from keras_maml.rl.environments.problems import NAMESPACE, PROBLEMS
from keras_maml.rl.environments.task_env import TaskEnv
from keras_maml.rl.environments.task_py_environment import TaskPyEnvironment
from keras_maml.rl.environments.task_vector_env import TaskVectorEnv

ENVIRONMENTS = tuple(f"{NAMESPACE}/{name}" for name in PROBLEMS)
"""The registered names."""

__all__ = ["ENVIRONMENTS", "TaskEnv", "TaskPyEnvironment", "TaskVectorEnv"]

for _name in ENVIRONMENTS:
    gymnasium.register(
        _name,
        entry_point="keras_maml.rl.environments.task_env:TaskEnv",
        vector_entry_point="keras_maml.rl.environments.task_vector_env:TaskVectorEnv",
        kwargs={"name": _name},
    )
