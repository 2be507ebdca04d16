"""Copies of a problem, each with a task and a clock: what every kind of environment is made of."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from keras_maml.rl.environments import tasks as task_families
from keras_maml.rl.environments.problems import NAMESPACE, find_problem
from keras_maml.rl.environments.robots import Physics
from keras_maml.validation import check_count


@dataclasses.dataclass(frozen=True)
class Settings:
    """What an environment is.

    Attributes:
        name: The problem, with or without namespace.
        physics: ``"paper"``: the authors' dynamics, rewards, observations, resets and horizons;
            ``"gymnasium"``: those of HalfCheetah-v5 and Ant-v5, with the reward for moving forward
            replaced by that of the task.
        horizon: Steps in an episode; None: 100 for navigation, 200 for the robots with the paper's
            physics, 1000 with gymnasium's.
        oracle: Whether an observation ends with the task (the paper's oracle baseline).
        threads: Threads that step robots; None: one for each processor.
        width: Of pictures, in pixels.
        height: Of pictures, in pixels.
    """

    name: str
    physics: Physics = "paper"
    horizon: int | None = None
    oracle: bool = False
    threads: int | None = None
    width: int = 480
    height: int = 480


@dataclasses.dataclass(frozen=True)
class Steps:
    """What a step of ``n`` environments gives.

    Attributes:
        rewards: float64 ``[n]``.
        terminated: bool ``[n]``.
        truncated: bool ``[n]``.
        parts: What the rewards are the sum of, float64 ``[n]`` by name.
    """

    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    parts: dict[str, np.ndarray]


class TaskBatch:
    """Environments of one kind.

    Args:
        settings: The kind.
        count: How many.
        tasks: One for each, ``[count, ...]``. None: an environment draws another one whenever it
            is reset, with its own generator.

    Raises:
        ValueError: An argument is none of what `Settings` allows, or a task is not of the problem.
    """

    def __init__(self, settings: Settings, count: int, tasks: Any = None) -> None:
        self._problem = find_problem(settings.name, settings.physics)
        check_count("The number of environments", count, minimum=1)
        for name in ("horizon", "threads", "width", "height"):
            if getattr(settings, name) is not None:
                check_count(name, getattr(settings, name), minimum=1)
        self.settings = settings
        self.count = count
        self.horizon = settings.horizon or self._problem.horizon(settings.physics)
        self._fixed = tasks is not None
        self.tasks = np.zeros((count, *self._problem.tasks.shape))
        if self._fixed:
            self.set_tasks(tasks)
        self._world = self._problem.make_world(count, settings.physics, settings.threads)
        self._clocks = np.zeros(count, np.int64)

    @property
    def frames_per_second(self) -> int:
        """Steps in a second of the world's own time."""
        return self._world.frames_per_second

    def action_space(self) -> gymnasium.spaces.Box:
        """Returns the space of one environment's actions."""
        return gymnasium.spaces.Box(-1.0, 1.0, (self._world.action_size,), np.float32)

    def observation_space(self) -> gymnasium.spaces.Box:
        """Returns the space of one environment's observations."""
        size = self._world.observation_size
        if self.settings.oracle:
            size += int(np.prod(self._problem.tasks.shape, dtype=int))
        return gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float64)

    def sample_tasks(self, n: int, seed: int | Sequence[int]) -> np.ndarray:
        """Draws tasks, see `keras_maml.rl.environments.tasks.sample`."""
        return task_families.sample(self._problem.tasks, n, seed)

    def set_tasks(self, tasks: Any) -> None:
        """Sets the tasks, from the next step or reset on.

        Args:
            tasks: One for each environment, ``[count, ...]``; None: every reset draws one.

        Raises:
            ValueError: They are not of the problem.
        """
        self._fixed = tasks is not None
        if self._fixed:
            self.tasks = task_families.checked(self._problem.tasks, tasks, self.count)

    def reset(self, ids: np.ndarray, generators: Sequence[np.random.Generator]) -> None:
        """Starts new episodes.

        Args:
            ids: int32 ``[k]``, of which environments.
            generators: ``k``, one for each.
        """
        if not self._fixed:
            self.tasks = self.tasks.copy()  # whoever has the old ones keeps them
            for index, generator in zip(ids, generators, strict=True):
                self.tasks[index] = self._problem.tasks.draw(generator, 1)[0]
        self._clocks[ids] = 0
        self._world.reset(ids, generators)

    def step(self, actions: Any, ids: np.ndarray | None = None) -> Steps:
        """Steps environments.

        Args:
            actions: ``[count, action_size]``; what is outside [-1, 1] is clipped.
            ids: int32 ``[k]``, which environments; None for all. What the result says of the
                others means nothing.

        Raises:
            ValueError: The actions have another shape.
            FloatingPointError: They are not finite.
        """
        actions = np.asarray(actions, np.float64)
        if actions.shape != (self.count, self._world.action_size):
            raise ValueError(
                f"{self._name} needs actions of shape {(self.count, self._world.action_size)}, "
                f"[environments, action], got {actions.shape}."
            )
        if not np.isfinite(actions).all():
            index = int(np.argwhere(~np.isfinite(actions))[0][0])
            raise FloatingPointError(
                f"The action of environment {index} of {self._name} is not finite, "
                f"{actions[index].tolist()} in step {self._clocks[index]}, with task "
                f"{self.tasks[index].tolist()}. The policy has become NaN or infinite; look at "
                "its last update."
            )
        actions = np.clip(actions, -1.0, 1.0)
        self._world.step(actions, ids)
        self._clocks[slice(None) if ids is None else ids] += 1
        rewards, parts = self._world.rewards(actions, self.tasks)
        truncated = self._clocks >= self.horizon
        return Steps(rewards, self._world.terminated(self.tasks), truncated, parts)

    def observe(self) -> np.ndarray:
        """Returns observations, a new float64 array ``[count, ...]``.

        Raises:
            FloatingPointError: One is not finite.
        """
        observations = self._world.observe()
        if not np.isfinite(observations).all():
            index = int(np.argwhere(~np.isfinite(observations))[0][0])
            said = self._world.trouble()
            raise FloatingPointError(
                f"The observation of environment {index} of {self._name} is not finite after step "
                f"{self._clocks[index]} of its episode, with task {self.tasks[index].tolist()}: "
                "the physics has become unstable. Reset the environment to go on."
                + (f" MuJoCo says: {said}" if said else "")
            )
        if self.settings.oracle:
            tasks = self.tasks.reshape(self.count, -1)
            observations = np.concatenate([observations, tasks], axis=1)
        return observations

    def render(self, index: int) -> np.ndarray:
        """Returns a picture of one environment, uint8 ``[height, width, 3]``."""
        size = self.settings.width, self.settings.height
        return self._world.render(index, self.tasks[index], *size)

    def close(self) -> None:
        """Releases what drawing needs."""
        self._world.close()

    @property
    def _name(self) -> str:
        return f"{NAMESPACE}/{self.settings.name.removeprefix(f'{NAMESPACE}/')}"
