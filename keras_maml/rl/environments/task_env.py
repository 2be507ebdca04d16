"""A single environment."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from keras_maml.rl.environments.task_batch import Settings, TaskBatch
from keras_maml.validation import check_choice

RENDER_MODES = ("rgb_array",)
EVERY = np.zeros(1, np.int32)  # the only environment


class TaskEnv(gymnasium.Env):
    """A problem as a gymnasium environment that can be set to a task.

    ``gymnasium.make("keras_maml/AntVelocity-v0", physics="gymnasium")`` makes one. Actions are
    float32 in [-1, 1], those outside are clipped; observations are float64.

    Args:
        name: The problem.
        task: The task; None: every reset draws one.
        render_mode: ``"rgb_array"`` or None.
        **settings: The other fields of `Settings`.

    Raises:
        ValueError: An argument is none of what `Settings` allows, or the task is not of the
            problem.

    Source: Finn et al. 2017, section 5.3 and appendix A.2.

    Example:
        >>> env = TaskEnv("Navigation2D-v0", task=[0.3, -0.2])
        >>> observation, _ = env.reset(seed=0)
        >>> observation, reward, terminated, truncated, _ = env.step(np.array([1.0, 0.5]))
        >>> observation
        array([0.1 , 0.05])
        >>> round(reward, 4), round(-np.hypot(0.1 - 0.3, 0.05 + 0.2).item(), 4)
        (-0.3202, -0.3202)
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 100}

    def __init__(
        self, name: str, *, task: Any = None, render_mode: str | None = None, **settings: Any
    ) -> None:
        check_choice("render_mode", render_mode, (None, *RENDER_MODES))
        tasks = None if task is None else np.asarray(task)[None]
        self._batch = TaskBatch(Settings(name, **settings), 1, tasks)
        self.render_mode = render_mode
        self.metadata = self.metadata | {"render_fps": self._batch.frames_per_second}
        self.action_space = self._batch.action_space()
        self.observation_space = self._batch.observation_space()

    @property
    def task(self) -> np.ndarray:
        """The task."""
        return self._batch.tasks[0]

    @property
    def horizon(self) -> int:
        """Steps in an episode."""
        return self._batch.horizon

    def sample_tasks(self, n: int, seed: int | Sequence[int]) -> np.ndarray:
        """Draws tasks as a pure function of the arguments.

        Args:
            n: How many.
            seed: An integer, or several, such as ``(seed, iteration)``.

        Returns:
            float64 ``[n]``, or ``[n, 2]`` for the goals of navigation.
        """
        return self._batch.sample_tasks(n, seed)

    def set_task(self, task: Any) -> None:
        """Sets the task, from the next step or reset on.

        Args:
            task: A number, or ``[2]`` for a goal of navigation; None: every reset draws one.

        Raises:
            ValueError: It is not a task of the problem.
        """
        self._batch.set_tasks(None if task is None else np.asarray(task)[None])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode."""
        super().reset(seed=seed)
        self._batch.reset(EVERY, [self.np_random])
        return self._batch.observe()[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Takes a step; the parts of the reward are in the last value.

        Raises:
            ValueError: The action has another shape.
            FloatingPointError: The action or the observation is not finite.
        """
        steps = self._batch.step(np.asarray(action)[None])
        return (
            self._batch.observe()[0],
            float(steps.rewards[0]),
            bool(steps.terminated[0]),
            bool(steps.truncated[0]),
            {name: float(part[0]) for name, part in steps.parts.items()},
        )

    def render(self) -> np.ndarray | None:
        """Returns a picture, uint8 ``[height, width, 3]``; None without ``render_mode``.

        Raises:
            RuntimeError: There is no OpenGL to draw with.
        """
        return None if self.render_mode is None else self._batch.render(0)

    def close(self) -> None:
        """Releases what drawing needs."""
        self._batch.close()
