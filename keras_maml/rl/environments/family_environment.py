"""A batched TF-Agents environment whose tasks come from a family of the user's own."""

import abc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tf_agents.environments import py_environment

from keras_maml.rl.environments import tasks as task_families

DrawTasks = Callable[[np.random.Generator, int], Any]


class FamilyEnvironment(py_environment.PyEnvironment, abc.ABC):
    """A batch of environments with a task each: what `keras_maml.rl.sampling.Sampler` needs.

    Args:
        family: Of the tasks.
        count: Number of environments.

    Attributes:
        horizon: The most steps that an episode has.
        tasks: The tasks, ``[count, ...]``.
    """

    horizon: int

    def __init__(self, family: task_families.TaskFamily, count: int) -> None:
        super().__init__()
        self._family = family
        self._count = count
        self._next_seed: int | None = None
        self.tasks = self.sample_tasks(count, seed=0)

    @property
    def batched(self) -> bool:
        """Yes."""
        return True

    @property
    def batch_size(self) -> int:
        """Number of environments."""
        return self._count

    def sample_tasks(self, n: int, seed: int | Sequence[int]) -> np.ndarray:
        """Draws tasks as a pure function of the arguments.

        Args:
            n: How many.
            seed: An integer, or several, such as ``(seed, iteration)``; for new tasks one that
                training has not had, see `keras_maml.rl.environments.tasks.sample`.

        Returns:
            ``[n, ...]``; of dtype object where a task is not made of numbers.
        """
        return task_families.sample(self._family, n, seed)

    def set_tasks(self, tasks: Any) -> None:
        """Sets the tasks, from the next reset on.

        Args:
            tasks: One for each environment, ``[count, ...]``.

        Raises:
            ValueError: There are not as many, or one is not in the family.
        """
        if hasattr(self._family, "contains"):
            tasks = task_families.checked(self._family, tasks, self._count)
        tasks = as_tasks(tasks)
        if len(tasks) != self._count:
            raise ValueError(
                f"There must be a task for each of {self._count} environments, got {len(tasks)}. "
                "Repeat each task for all of its rollouts, e.g. with "
                "np.repeat(tasks, rollouts, axis=0)."
            )
        self._apply(_copied(tasks))  # an environment may change what it has got in place
        self.tasks = tasks

    def seed(self, seed: int) -> None:
        """Makes the next reset one with a seed: environment ``i`` gets ``seed + i``."""
        self._next_seed = int(seed)

    @abc.abstractmethod
    def _apply(self, tasks: np.ndarray) -> None:
        """Gives every environment its task."""


def _copied(tasks: np.ndarray) -> np.ndarray:
    """Returns tasks with arrays of their own, those within arrays of objects as well."""
    copy = tasks.copy()
    if copy.dtype == object:
        for place in np.ndindex(copy.shape):
            if isinstance(copy[place], np.ndarray):
                copy[place] = copy[place].copy()
    return copy


def as_family(tasks: task_families.TaskFamily | DrawTasks) -> task_families.TaskFamily:
    """Returns a family of tasks.

    Args:
        tasks: A family such as `keras_maml.rl.environments.tasks.Uniform`, or a function of a
            generator and ``n`` that draws ``n`` tasks: an array ``[n, ...]``, or any list.

    Raises:
        ValueError: It is neither.
    """
    if hasattr(tasks, "draw"):
        return tasks
    if callable(tasks):
        return _Drawn(tasks)
    raise ValueError(
        "tasks must be a family such as Uniform(0.5, 2.0), or a function of a generator and n that "
        f"draws n tasks, got {tasks!r}."
    )


def as_tasks(tasks: Any) -> np.ndarray:
    """Returns tasks as an array with one leading axis.

    Args:
        tasks: An array ``[n, ...]``, or a list. One of anything but numbers becomes ``[n]`` of
            dtype object.

    Example:
        >>> as_tasks([0.5, 2.0])
        array([0.5, 2. ])
        >>> as_tasks([("door", 1), ("window", 2)]).shape
        (2,)
    """
    if isinstance(tasks, np.ndarray):
        return tasks
    tasks = list(tasks)
    try:
        array = np.asarray(tasks)
    except ValueError:  # lists of several lengths
        array = np.empty(0, object)
    if array.dtype.kind in "biuf":
        return array
    array = np.empty(len(tasks), object)
    array[:] = tasks
    return array


def check_clocks(clocks: np.ndarray, horizon: int, ended: np.ndarray) -> None:
    """Raises ValueError where an episode goes on after the horizon.

    Args:
        clocks: int64 ``[count]``, steps of the present episodes.
        horizon: The most there may be.
        ended: bool ``[count]``, whether they are over.
    """
    late = (clocks >= horizon) & ~ended
    if late.any():
        raise ValueError(
            f"The episode of environment {int(late.argmax())} goes on after {horizon} steps, the "
            "horizon. Pass a horizon= that is at least the most steps of an episode, or limit them "
            "with a TimeLimit, a wrapper of gymnasium and of TF-Agents."
        )


class _Drawn:
    """The family of what a function draws; anything may be set."""

    def __init__(self, draw: DrawTasks) -> None:
        self._draw = draw

    def draw(self, generator: np.random.Generator, n: int) -> np.ndarray:
        """Draws ``n`` tasks."""
        tasks = as_tasks(self._draw(generator, n))
        if tasks.ndim == 0 or len(tasks) != n:
            raise ValueError(
                f"The function that draws tasks must return n of them, {n}, with one leading "
                f"axis, got shape {tasks.shape}."
            )
        return tasks
