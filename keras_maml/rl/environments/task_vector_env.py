"""Many environments, stepped in one call."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector.utils import batch_space

from keras_maml.rl.environments.task_batch import Settings, Steps, TaskBatch
from keras_maml.rl.environments.task_env import RENDER_MODES
from keras_maml.validation import check_choice

NEXT_STEP = gymnasium.vector.AutoresetMode.NEXT_STEP


class TaskVectorEnv(gymnasium.vector.VectorEnv):
    """A problem as a gymnasium vector environment, every environment with a task of its own.

    ``gymnasium.make_vec("keras_maml/AntVelocity-v0", num_envs=800)`` makes one. Environment ``i``
    gives what a single one gives, bit for bit: after ``reset(seed=s)`` what a single one gives
    after ``reset(seed=s + i)``. The step after the end of an episode starts the next one: it
    ignores the action and has reward 0.

    Args:
        name: The problem.
        num_envs: Number of environments.
        tasks: One for each, ``[num_envs, ...]``; None: every reset draws one.
        render_mode: ``"rgb_array"`` or None.
        **settings: The other fields of `Settings`.

    Raises:
        ValueError: An argument is none of what `Settings` allows, or a task is not of the problem.

    Example:
        >>> env = TaskVectorEnv("HalfCheetahVelocity-v0", num_envs=6)
        >>> env.set_tasks(np.repeat(env.sample_tasks(2, seed=0), 3, axis=0))
        >>> observations, _ = env.reset(seed=0)
        >>> observations, rewards, *_ = env.step(np.zeros((6, 6), np.float32))
        >>> observations.shape, rewards.shape
        ((6, 20), (6,))
    """

    metadata = {
        "render_modes": list(RENDER_MODES),
        "render_fps": 100,
        "autoreset_mode": NEXT_STEP,
    }

    def __init__(
        self,
        name: str,
        num_envs: int = 1,
        *,
        tasks: Any = None,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        check_choice("render_mode", render_mode, (None, *RENDER_MODES))
        self._batch = TaskBatch(Settings(name, **settings), num_envs, tasks)
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.metadata = self.metadata | {"render_fps": self._batch.frames_per_second}
        self.single_action_space = self._batch.action_space()
        self.single_observation_space = self._batch.observation_space()
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        self._ended: np.ndarray | None = None

    @property
    def tasks(self) -> np.ndarray:
        """The tasks, float64 ``[num_envs, ...]``."""
        return self._batch.tasks

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

    def set_tasks(self, tasks: Any) -> None:
        """Sets the tasks, from the next step or reset on.

        Args:
            tasks: One for each environment, ``[num_envs, ...]``; None: every reset draws one.

        Raises:
            ValueError: They are not tasks of the problem.
        """
        self._batch.set_tasks(tasks)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts episodes.

        Args:
            seed: ``s`` gives environment ``i`` the seed ``s + i``; or one for each; None: the
                generators go on.
            options: ``reset_mask``, bool ``[num_envs]``, says which environments; all by default.

        Raises:
            ValueError: There is not a seed, or a truth value, for each environment.
        """
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        if np.shape(mask) != (self.num_envs,) or np.asarray(mask).dtype != bool:
            raise ValueError(
                f"reset_mask must be bool [{self.num_envs}], got {np.asarray(mask).dtype} "
                f"{list(np.shape(mask))}."
            )
        seeds = self._seeds(seed)
        ids = np.flatnonzero(mask).astype(np.int32)
        for index in ids:
            if seeds[index] is not None:
                self._generators[index], _ = seeding.np_random(seeds[index])
        for index, generator in enumerate(self._generators):
            if generator is None:  # also of those that the next step will start
                self._generators[index], _ = seeding.np_random(seeds[index])
        if self._ended is None:
            self._ended = ~mask
        self._ended[ids] = False
        self._reset(ids)
        return self._batch.observe(), {}

    def advance(self, actions: Any, restarts: bool = True) -> tuple[np.ndarray, Steps, np.ndarray]:
        """Takes a step, without what `step` adds for gymnasium.

        Args:
            actions: ``[num_envs, action_size]``.
            restarts: Whether environments whose episode is over start anew. If not, they rest: they
                stay as they are, with reward 0.

        Returns:
            Observations, float64 ``[num_envs, observation_size]``; what the step gave; and which
            environments it started anew, or left at rest, instead, bool ``[num_envs]``.

        Raises:
            gymnasium.error.ResetNeeded: No episode has been started.
            ValueError: The actions have another shape.
            FloatingPointError: An action or an observation is not finite.
        """
        if self._ended is None:
            raise gymnasium.error.ResetNeeded("Call reset() before step().")
        started = self._ended
        if started.any():
            if restarts:
                self._reset(np.flatnonzero(started).astype(np.int32))
            steps = self._batch.step(actions, np.flatnonzero(~started).astype(np.int32))
            for array in (steps.rewards, steps.terminated, steps.truncated, *steps.parts.values()):
                array[started] = 0
        else:
            steps = self._batch.step(actions)
        self._ended = steps.terminated | steps.truncated
        if not restarts:
            self._ended |= started
        return self._batch.observe(), steps, started

    def step(
        self, actions: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Takes a step; the parts of the rewards are in the last value, as gymnasium keeps them.

        Raises:
            gymnasium.error.ResetNeeded: No episode has been started.
            ValueError: The actions have another shape.
            FloatingPointError: An action or an observation is not finite.
        """
        observations, steps, started = self.advance(actions)
        infos = steps.parts | {f"_{name}": ~started for name in steps.parts}
        return observations, steps.rewards, steps.terminated, steps.truncated, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Returns a picture of each, uint8 ``[height, width, 3]``; None without ``render_mode``.

        Raises:
            RuntimeError: There is no OpenGL to draw with.
        """
        if self.render_mode is None:
            return None
        return tuple(self._batch.render(index) for index in range(self.num_envs))

    def close_extras(self, **_: Any) -> None:
        """Releases what drawing needs."""
        self._batch.close()

    def _reset(self, ids: np.ndarray) -> None:
        self._batch.reset(ids, [self._generators[index] for index in ids])

    def _seeds(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + index for index in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"There must be {self.num_envs} seeds, got {len(seed)}.")
        return seed
