"""Families of tasks: what is drawn, and what may be set.

A batch of tasks is a float64 array with one leading axis, ``[n, *shape]``.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from keras_maml.validation import check_count


class TaskFamily(Protocol):
    """A distribution of tasks."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one task."""

    def draw(self, generator: np.random.Generator, n: int) -> np.ndarray:
        """Draws ``n`` tasks, float64 ``[n, *shape]``; the first of more are the same."""

    def contains(self, tasks: np.ndarray) -> np.ndarray:
        """Says which of ``tasks`` belong to the family, bool ``[n, *shape]``."""


class Uniform:
    """Tasks whose numbers are uniform between two bounds: goals and velocities.

    Args:
        low: The lower bound.
        high: The upper bound.
        shape: The shape of a task; a number by default.

    Example:
        >>> Uniform(0.0, 2.0)
        numbers in [0.0, 2.0]
        >>> Uniform(-0.5, 0.5, (2,)).draw(np.random.default_rng(0), 3).shape
        (3, 2)
    """

    def __init__(self, low: float, high: float, shape: tuple[int, ...] = ()) -> None:
        self.shape = shape
        self._bounds = low, high

    def __repr__(self) -> str:
        numbers = f"{self.shape[0]} numbers" if self.shape else "numbers"
        return f"{numbers} in {list(self._bounds)}"

    def draw(self, generator: np.random.Generator, n: int) -> np.ndarray:
        """Draws ``n`` tasks."""
        return generator.uniform(*self._bounds, (n, *self.shape))

    def contains(self, tasks: np.ndarray) -> np.ndarray:
        """Says which numbers lie within the bounds."""
        return (tasks >= self._bounds[0]) & (tasks <= self._bounds[1])


class Directions:
    """Forwards, +1, or backwards, -1, with equal probability."""

    shape: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return "-1 or 1"

    def draw(self, generator: np.random.Generator, n: int) -> np.ndarray:
        """Draws ``n`` tasks."""
        return np.where(generator.random(n) < 0.5, -1.0, 1.0)

    def contains(self, tasks: np.ndarray) -> np.ndarray:
        """Says which numbers are directions."""
        return np.abs(tasks) == 1.0


def sample(family: TaskFamily, n: int, seed: int | Sequence[int]) -> np.ndarray:
    """Draws tasks as a pure function of the arguments.

    Args:
        family: What to draw from.
        n: How many.
        seed: An integer, or several, such as ``(seed, iteration)``, with which `rl.train`
            draws; none negative. One alone counts as ``(seed, 0)``: new tasks for a test are those
            of an iteration that has not been, ``(seed, iterations)``.

    Returns:
        float64 ``[n, *shape]``; with the same seed, the first of a larger ``n`` are the same.

    Raises:
        ValueError: ``n`` is not positive, or ``seed`` is not made of such integers.

    Example:
        >>> sample(Directions(), 5, seed=1)
        array([ 1.,  1., -1.,  1., -1.])
    """
    check_count("n", n, minimum=1)
    for part in seed if isinstance(seed, Sequence) else (seed,):
        check_count("seed", part)
    return family.draw(np.random.default_rng(seed), n)


def checked(family: TaskFamily, tasks: np.ndarray, n: int) -> np.ndarray:
    """Returns tasks as float64 ``[n, *shape]``, or raises.

    Args:
        family: Where they must belong.
        tasks: One for each of ``n`` environments.
        n: How many there must be.

    Raises:
        ValueError: The shape is another, or a task is not in the family (NaN is not).

    Example:
        >>> checked(Uniform(0.0, 2.0), [0.5, 2.5], 2)
        Traceback (most recent call last):
        ...
        ValueError: A task must be numbers in [0.0, 2.0], got 2.5 for environment 1...
    """
    try:
        array = np.array(tasks, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Tasks must be numbers ({family!r}), got {tasks!r}.") from error
    if array.shape != (n, *family.shape):
        raise ValueError(
            f"Tasks must have shape {(n, *family.shape)}, one task for each of {n} environments, "
            f"got shape {array.shape}. Repeat each task for all of its rollouts, e.g. with "
            "np.repeat(tasks, rollouts, axis=0)."
        )
    wrong = ~family.contains(array)
    if wrong.any():
        first = int(np.argwhere(wrong)[0][0])
        raise ValueError(
            f"A task must be {family!r}, got {array[first].tolist()} for environment {first}. "
            "sample_tasks(n, seed) draws such tasks."
        )
    return array
