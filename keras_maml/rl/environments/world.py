"""What the environments have in common: several copies of a world that move together."""

import abc
from collections.abc import Sequence

import numpy as np


class World(abc.ABC):
    """``count`` copies of a world: they know neither episodes nor tasks of their own.

    Everything is a function over the leading axis of the copies, so that a single environment,
    which is one copy, and a batch compute the same.

    Attributes:
        count: Number of copies.
        observation_size: Length of an observation.
        action_size: Length of an action.
        frames_per_second: Steps in a second of the world's own time.
    """

    count: int
    observation_size: int
    action_size: int
    frames_per_second: int

    @abc.abstractmethod
    def reset(self, ids: np.ndarray, generators: Sequence[np.random.Generator]) -> None:
        """Puts copies into initial states.

        Args:
            ids: int32 ``[k]``, which copies.
            generators: ``k``, one for each.
        """

    @abc.abstractmethod
    def step(self, actions: np.ndarray, ids: np.ndarray | None = None) -> None:
        """Moves copies by one step.

        Args:
            actions: float64 ``[count, action_size]`` in [-1, 1].
            ids: int32 ``[k]``, which copies; None for all.
        """

    @abc.abstractmethod
    def observe(self) -> np.ndarray:
        """Returns observations, a new float64 array ``[count, observation_size]``."""

    @abc.abstractmethod
    def rewards(
        self, actions: np.ndarray, tasks: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Returns the rewards of the last step and what they are the sum of.

        Args:
            actions: Those of the last step.
            tasks: float64 ``[count, ...]``.

        Returns:
            float64 ``[count]``, and parts of the same shape by name.
        """

    @abc.abstractmethod
    def terminated(self, tasks: np.ndarray) -> np.ndarray:
        """Says which copies are in a terminal state, bool ``[count]``."""

    @abc.abstractmethod
    def render(self, index: int, task: np.ndarray, width: int, height: int) -> np.ndarray:
        """Returns a picture of one copy, uint8 ``[height, width, 3]``.

        Raises:
            RuntimeError: There is no OpenGL to draw with.
        """

    def trouble(self) -> str:
        """Returns what the physics engine said of the last step, if anything."""
        return ""

    def close(self) -> None:  # noqa: B027 (most have nothing to release)
        """Releases what drawing needs."""
