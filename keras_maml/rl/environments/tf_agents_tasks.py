"""TF-Agents' own environments as a batch of tasks times rollouts."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from tf_agents.environments import (
    batched_py_environment,
    parallel_py_environment,
    py_environment,
    wrappers,
)
from tf_agents.specs import array_spec
from tf_agents.trajectories import time_step as ts

from keras_maml.rl.environments.family_environment import (
    DrawTasks,
    FamilyEnvironment,
    as_family,
    check_clocks,
)
from keras_maml.rl.environments.spaces import check_choices, check_finite
from keras_maml.rl.environments.tasks import TaskFamily
from keras_maml.validation import check_count


def from_tf_agents(
    make: Callable[[], py_environment.PyEnvironment] | py_environment.PyEnvironment,
    *,
    tasks: TaskFamily | DrawTasks,
    set_task: Callable[[Any, Any], None],
    horizon: int,
    count: int | None = None,
) -> "TFAgentsTasks":
    """Makes a batch of TF-Agents' environments, each with a task of its own.

    Args:
        make: A function that returns one environment, such as ``lambda:
            suite_gym.load("CartPole-v1")``; or a batched environment (`BatchedPyEnvironment`,
            `ParallelPyEnvironment`, one of the user's own), which belongs to the result from now
            on.
        tasks: A family such as `keras_maml.rl.environments.tasks.Uniform`, or a function of a
            generator and ``n`` that draws ``n`` tasks.
        set_task: A function of one environment, as ``make`` returns it, and its task
            (``env.gym.unwrapped`` is the environment that `suite_gym` has loaded); with a batched
            environment, of that and all tasks ``[count, ...]``.
        horizon: The most steps of an episode, which is truncated there; of a batched environment
            it says what it is and cuts nothing.
        count: Number of environments: tasks times rollouts of each. A batched one has its own.

    Returns:
        The batch; after construction its tasks are ``sample_tasks(count, seed=0)``.

    Raises:
        TypeError: ``make`` is or returns something else.
        ValueError: An argument does not fit, or the environments take no seed.

    Example:
        >>> from tf_agents.environments import random_py_environment
        >>> from tf_agents.specs import array_spec
        >>> from keras_maml.rl.environments import Uniform
        >>> class Environment(random_py_environment.RandomPyEnvironment):
        ...     def seed(self, seed):
        ...         self._rng = np.random.RandomState(seed)
        >>> one = array_spec.BoundedArraySpec((1,), np.float32, -1, 1)
        >>> environment = from_tf_agents(
        ...     lambda: Environment(one, one),
        ...     tasks=Uniform(0.0, 1.0),
        ...     set_task=lambda environment, task: setattr(environment, "goal", task),
        ...     horizon=10,
        ...     count=4,
        ... )
        >>> environment.reset().observation.shape
        (4, 1)
    """
    if not callable(set_task):
        raise ValueError(
            f"set_task must be a function of an environment and a task, got {set_task!r}."
        )
    check_count("horizon", horizon, minimum=1)
    family = as_family(tasks)
    if isinstance(make, py_environment.PyEnvironment):
        if not make.batched:
            raise TypeError(
                f"{type(make).__name__} is one environment, and many are needed: pass a function "
                "that makes one, such as lambda: suite_gym.load(name), with count=."
            )
        if count not in (None, make.batch_size):
            raise ValueError(
                f"The batched environment has {make.batch_size} environments, but count is "
                f"{count}. Leave count out."
            )
        return TFAgentsTasks(make, family, set_task, horizon)
    if not callable(make):
        raise TypeError(
            "make must be a function that returns a PyEnvironment of TF-Agents, or a batched one, "
            f"got {type(make).__name__}. For gymnasium's environments there is from_gymnasium."
        )
    check_count("count", count, minimum=1)
    environments = [make() for _ in range(count)]
    if not isinstance(environments[0], py_environment.PyEnvironment) or environments[0].batched:
        raise TypeError(
            "make must return one PyEnvironment of TF-Agents, not a batch, got "
            f"{type(environments[0]).__name__}. Pass a batched environment itself, and for "
            "gymnasium's environments use from_gymnasium."
        )

    def set_each(batched: Any, tasks: np.ndarray) -> None:
        del batched
        for environment, task in zip(environments, tasks, strict=True):
            set_task(environment, task)

    # Threads would gain nothing: steps of Python hold the interpreter's lock.
    limited = [wrappers.TimeLimit(environment, horizon) for environment in environments]
    batched = batched_py_environment.BatchedPyEnvironment(limited, multithreading=False)
    return TFAgentsTasks(batched, family, set_each, horizon)


class TFAgentsTasks(FamilyEnvironment):
    """A batched TF-Agents environment with tasks; see `from_tf_agents`.

    Real actions are clipped to the bounds of their spec; integers are counted from 0, whatever the
    environment counts from.

    Args:
        environment: The batched environment.
        family: Of the tasks.
        set_tasks: A function of it and all tasks.
        horizon: The most steps of an episode.

    Raises:
        ValueError: The environment takes no seed.
    """

    def __init__(
        self,
        environment: py_environment.PyEnvironment,
        family: TaskFamily,
        set_tasks: Callable[[Any, np.ndarray], None],
        horizon: int,
    ) -> None:
        super().__init__(family, environment.batch_size)
        self.horizon = horizon
        self._environment, self._set_all = environment, set_tasks
        self._taken_spec = environment.action_spec()
        self._action_spec = tf.nest.map_structure(_from_zero, self._taken_spec)
        self._clocks = np.zeros(self.batch_size, np.int64)
        self._seeded(0)
        self.set_tasks(self.tasks)

    def observation_spec(self) -> Any:
        """Returns the spec of one environment's observations."""
        return self._environment.observation_spec()

    def action_spec(self) -> Any:
        """Returns the spec of one environment's actions."""
        return self._action_spec

    def render(self, mode: str = "rgb_array") -> np.ndarray:
        """Returns a picture of each, uint8 ``[batch_size, height, width, 3]``."""
        return np.asarray(self._environment.render(mode))

    def close(self) -> None:
        """Closes the environments."""
        self._environment.close()

    def _apply(self, tasks: np.ndarray) -> None:
        self._set_all(self._environment, tasks)

    def _reset(self) -> ts.TimeStep:
        if self._next_seed is not None:
            self._seeded(self._next_seed)
        self._next_seed = None
        self._clocks[:] = 0
        return _seen(self._environment.reset())

    def _step(self, action: Any) -> ts.TimeStep:
        taken = tf.nest.map_structure(_taken, self._taken_spec, action)
        time_step = _seen(self._environment.step(taken))
        self._clocks = np.where(time_step.is_first(), 0, self._clocks + 1)
        check_clocks(self._clocks, self.horizon, time_step.is_last())
        return time_step

    def _seeded(self, seed: int) -> None:
        try:
            if isinstance(self._environment, batched_py_environment.BatchedPyEnvironment):
                for index, environment in enumerate(self._environment.envs):
                    environment.seed(seed + index)
            elif isinstance(self._environment, parallel_py_environment.ParallelPyEnvironment):
                self._environment.seed([seed + index for index in range(self.batch_size)])
            else:
                self._environment.seed(seed)
        except NotImplementedError as error:
            raise ValueError(
                f"{type(self._environment).__name__} takes no seed, so that nothing drawn with it "
                "could be drawn again. Give the environment a method seed(seed)."
            ) from error


def _from_zero(spec: array_spec.ArraySpec) -> array_spec.ArraySpec:
    """The spec of what a policy chooses, for the spec of an environment's actions."""
    if not isinstance(spec, array_spec.BoundedArraySpec) or _is_real(spec):
        return spec
    most = np.asarray(spec.maximum) - spec.minimum
    return array_spec.BoundedArraySpec(spec.shape, spec.dtype, 0, most, spec.name)


def _taken(spec: array_spec.ArraySpec, action: Any) -> np.ndarray:
    """Actions ``[environments, ...]`` of a policy, as an environment takes them."""
    action = np.asarray(action)
    check_finite("action", action)
    if isinstance(spec, array_spec.BoundedArraySpec):
        if _is_real(spec):
            action = np.clip(action, spec.minimum, spec.maximum)
        else:
            check_choices(action, _from_zero(spec).maximum)
            action = action + spec.minimum
    return action.astype(spec.dtype)


def _seen(time_step: ts.TimeStep) -> ts.TimeStep:
    """A time step of an environment, as agents take it: numbers are float32."""
    for observation in tf.nest.flatten(time_step.observation):
        check_finite("observation", np.asarray(observation))
    return time_step._replace(
        reward=np.asarray(time_step.reward, np.float32),
        discount=np.asarray(time_step.discount, np.float32),
    )


def _is_real(spec: array_spec.ArraySpec) -> bool:
    return np.issubdtype(spec.dtype, np.floating)
