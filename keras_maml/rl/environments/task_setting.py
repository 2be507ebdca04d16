"""How an environment gets its task: through attributes, arguments, options, or a function."""

import dataclasses
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

SetTask = Callable[[Any, Any], None]


class _Named:
    """Names of what a task is; several names take one entry of the task each."""

    def __init__(self, *names: str) -> None:
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(
                f"{type(self).__name__} needs the names of what a task sets, got {names!r}."
            )
        self.names = names

    def values(self, task: Any) -> dict[str, Any]:
        """Returns what a task says by name.

        Raises:
            ValueError: The task has not as many entries as there are names.

        Example:
            >>> Attributes("length", "masscart").values(np.array([0.5, 2.0]))
            {'length': 0.5, 'masscart': 2.0}
        """
        entries = [task] if len(self.names) == 1 else list(np.atleast_1d(np.asarray(task)))
        if len(entries) != len(self.names):
            raise ValueError(
                f"A task must have one entry for each of {', '.join(self.names)}, got {task!r}."
            )
        pairs = zip(self.names, map(_plain, entries), strict=True)
        return dict(pairs)


class Attributes(_Named):
    """A task is attributes of the unwrapped environment, such as ``Attributes("g")``.

    Args:
        *names: One: it becomes the task. Several: a task has an entry for each.
    """

    def __call__(self, environment: gymnasium.Env, task: Any) -> None:
        """Sets the attributes.

        Raises:
            AttributeError: The environment has no such attribute.
        """
        for name, value in self.values(task).items():
            if not hasattr(environment, name):
                there = sorted(key for key in vars(environment) if not key.startswith("_"))
                raise AttributeError(
                    f"{type(environment).__name__} has no attribute {name!r} that a task could "
                    f"set; it has {', '.join(there)}."
                )
            setattr(environment, name, value)


class Arguments(_Named):
    """A task is arguments of the constructor: another task makes another environment.

    Args:
        *names: One: it becomes the task. Several: a task has an entry for each.
    """


class Options(_Named):
    """A task is entries of ``options`` at every reset.

    Args:
        *names: One: it becomes the task. Several: a task has an entry for each.
    """


@dataclasses.dataclass(frozen=True)
class Maker:
    """Makes environments of one kind.

    Attributes:
        make: A registered name, or a function that returns an environment.
        horizon: Steps after which an episode is cut; None: what the environment itself says.
    """

    make: str | Callable[..., gymnasium.Env]
    horizon: int | None

    def __call__(self, **arguments: Any) -> gymnasium.Env:
        """Returns an environment.

        Raises:
            TypeError: The function returns something else.
        """
        if isinstance(self.make, str):
            return gymnasium.make(
                self.make,
                max_episode_steps=self.horizon,
                disable_env_checker=True,
                **arguments,
            )
        environment = self.make(**arguments)
        if not isinstance(environment, gymnasium.Env):
            raise TypeError(
                "make must return a gymnasium.Env, one environment, got "
                f"{type(environment).__name__}. Pass a vector environment itself, not a function "
                "that makes it."
            )
        if self.horizon is None:
            return environment
        return gymnasium.wrappers.TimeLimit(environment, self.horizon)


class WithTask(gymnasium.Wrapper):
    """An environment that can be set to a task, and can rest when its episode is over.

    It is the outermost wrapper, so that the ``set_attr`` of gymnasium's vector environments, in
    this process or in others, finds ``task`` and ``restarts`` here.

    Args:
        maker: Makes the environment.
        set_task: `Attributes`, `Arguments`, `Options`, or a function of the unwrapped environment
            and a task.
        task: The first task.

    Attributes:
        restarts: Whether a reset begins an episode. If not, the environment rests: reset and step
            do nothing and give the last observation, reward 0 and no end.
    """

    def __init__(self, maker: Maker, set_task: SetTask | _Named, task: Any) -> None:
        named = isinstance(set_task, Arguments)
        super().__init__(maker(**(set_task.values(task) if named else {})))
        self._maker, self._set_task, self._task = maker, set_task, task
        self._spaces = self.env.observation_space, self.env.action_space
        self._rests, self._last = False, None
        self.restarts = True
        if not named:
            self.task = task

    @property
    def task(self) -> Any:
        """The task; a new one counts from now on, or from the next reset if it is `Options`."""
        return self._task

    @task.setter
    def task(self, task: Any) -> None:
        self._task = task
        if isinstance(self._set_task, Arguments):
            self._make_again()
        elif isinstance(self._set_task, Options):
            self._set_task.values(task)  # wrong tasks raise here, not at the next reset
        else:
            self._set_task(self.env.unwrapped, task)

    @property
    def time_limit(self) -> int | None:
        """The most steps of an episode, as the environment's own specification says."""
        return self._maker.horizon or getattr(self.env.spec, "max_episode_steps", None)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begins an episode, or a rest.

        Raises:
            ValueError: The environment has changed an attribute that is the task.
        """
        self._rests = not self.restarts
        if self._rests:
            return self._last, {}
        if isinstance(self._set_task, Options):
            options = (options or {}) | self._set_task.values(self._task)
        self._last, info = self.env.reset(seed=seed, options=options)
        if isinstance(self._set_task, Attributes):
            for name, value in self._set_task.values(self._task).items():
                check_kept(name, value, getattr(self.env.unwrapped, name))
        return self._last, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Takes a step, or rests."""
        if self._rests:
            return self._last, 0.0, False, False, {}
        self._last, *rest = self.env.step(action)
        return self._last, *rest

    def _make_again(self) -> None:
        old, self.env = self.env, self._maker(**self._set_task.values(self._task))
        # The new one goes on with the old one's random numbers, unless the next reset has a seed.
        self.env.unwrapped.np_random = old.unwrapped.np_random
        old.close()
        if (self.env.observation_space, self.env.action_space) != self._spaces:
            raise ValueError(
                f"The task {self._task!r} changes the spaces of the environment from "
                f"{self._spaces} to {(self.env.observation_space, self.env.action_space)}. All "
                "tasks must share them."
            )


def check_kept(name: str, value: Any, found: Any) -> None:
    """Raises ValueError unless an attribute is still as a task has set it."""
    if not _same(found, value):
        raise ValueError(
            f"After a reset {name!r} of the environment is {found!r}, where the task had set it to "
            f"{value!r}: it is no attribute that makes a task. Pass Options or Arguments, or let "
            "reset and step keep it."
        )


def _same(a: Any, b: Any) -> bool:
    """Returns whether attributes are equal: numbers, NaN among them, arrays, or anything else."""
    if a is b:
        return True
    if all(isinstance(array, np.ndarray) and array.dtype == object for array in (a, b)):
        return a.shape == b.shape and all(map(_same, a.flat, b.flat))
    try:
        return np.array_equal(a, b) or np.array_equal(a, b, equal_nan=True)
    except TypeError:  # NumPy has no NaN of such
        return False


def _plain(value: Any) -> Any:
    """Python's own number of a NumPy scalar, a copy of an array; anything else as it is."""
    if not isinstance(value, np.generic | np.ndarray):
        return value
    return value.copy() if value.ndim else value.item()
