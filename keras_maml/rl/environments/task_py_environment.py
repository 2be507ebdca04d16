"""Many environments as one batched environment of TF-Agents."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from tf_agents.environments import py_environment
from tf_agents.specs import array_spec
from tf_agents.trajectories import time_step as ts

from keras_maml.rl.environments.task_vector_env import TaskVectorEnv


class TaskPyEnvironment(py_environment.PyEnvironment):
    """A `TaskVectorEnv` as a batched TF-Agents environment.

    Observations are float32. An episode that reaches the horizon ends with discount 1, one that
    ends in a terminal state with discount 0. The step after that starts the next episode.

    Args:
        environments: The environments; they belong to this object from now on.

    Attributes:
        restarts: Whether an environment whose episode is over begins another in the step after. If
            not, it rests: its steps have reward 0 and are not computed. A reset sets it.

    Raises:
        TypeError: They are others than those of this package.

    Example:
        >>> env = TaskPyEnvironment(TaskVectorEnv("Navigation2D-v0", 3, horizon=1))
        >>> env.set_tasks(np.repeat(env.sample_tasks(1, seed=0), 3, axis=0))
        >>> env.reset().observation
        array([[0., 0.],
               [0., 0.],
               [0., 0.]], dtype=float32)
        >>> env.step(np.zeros((3, 2), np.float32)).is_last()
        array([ True,  True,  True])
    """

    def __init__(self, environments: TaskVectorEnv) -> None:
        super().__init__()
        if not isinstance(environments, TaskVectorEnv):
            raise TypeError(
                "TaskPyEnvironment takes a TaskVectorEnv, the environments of the paper, got "
                f"{type(environments).__name__}. For an environment of your own use "
                "keras_maml.rl.environments.from_gymnasium(make, tasks=..., set_task=..., "
                "count=...), or from_tf_agents for one of TF-Agents."
            )
        self._environments = environments
        self.restarts = True
        self._seed: int | None = None
        observations = environments.single_observation_space
        actions = environments.single_action_space
        self._observation_spec = array_spec.ArraySpec(observations.shape, np.float32, "observation")
        self._action_spec = array_spec.BoundedArraySpec(
            actions.shape, np.float32, -1.0, 1.0, "action"
        )

    @property
    def batched(self) -> bool:
        """Yes."""
        return True

    @property
    def batch_size(self) -> int:
        """Number of environments."""
        return self._environments.num_envs

    @property
    def horizon(self) -> int:
        """Steps in an episode."""
        return self._environments.horizon

    @property
    def tasks(self) -> np.ndarray:
        """The tasks, float64 ``[batch_size, ...]``."""
        return self._environments.tasks

    def sample_tasks(self, n: int, seed: int | Sequence[int]) -> np.ndarray:
        """Draws tasks, see `TaskVectorEnv.sample_tasks`."""
        return self._environments.sample_tasks(n, seed)

    def set_tasks(self, tasks: Any) -> None:
        """Sets the tasks, see `TaskVectorEnv.set_tasks`."""
        self._environments.set_tasks(tasks)

    def observation_spec(self) -> array_spec.ArraySpec:
        """Returns the spec of one environment's observations."""
        return self._observation_spec

    def action_spec(self) -> array_spec.BoundedArraySpec:
        """Returns the spec of one environment's actions."""
        return self._action_spec

    def seed(self, seed: int) -> None:
        """Makes the next reset one with a seed, see `TaskVectorEnv.reset`."""
        self._seed = seed

    def render(self, mode: str = "rgb_array") -> np.ndarray | None:
        """Returns a picture of each, uint8 ``[batch_size, height, width, 3]``.

        Raises:
            ValueError: The mode is not ``"rgb_array"``, or not that of the environments.
        """
        pictures = self._environments.render()
        if mode != "rgb_array" or pictures is None:
            raise ValueError(
                "Only rgb_array can be drawn, by environments made with render_mode='rgb_array'; "
                f"got {mode!r} and render_mode={self._environments.render_mode!r}."
            )
        return np.stack(pictures)

    def close(self) -> None:
        """Releases what drawing needs."""
        self._environments.close()

    def _reset(self) -> ts.TimeStep:
        observations, _ = self._environments.reset(seed=self._seed)
        self._seed = None
        self.restarts = True
        return ts.restart(observations.astype(np.float32), batch_size=self.batch_size)

    def _step(self, action: np.ndarray) -> ts.TimeStep:
        observations, steps, started = self._environments.advance(action, self.restarts)
        step_type = np.full(self.batch_size, ts.StepType.MID)
        step_type[started] = ts.StepType.FIRST if self.restarts else ts.StepType.LAST
        step_type[steps.terminated | steps.truncated] = ts.StepType.LAST
        return ts.TimeStep(
            step_type=step_type,
            reward=steps.rewards.astype(np.float32),
            discount=np.where(steps.terminated, np.float32(0), np.float32(1)),
            observation=observations.astype(np.float32),
        )
