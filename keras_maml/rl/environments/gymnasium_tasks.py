"""Any gymnasium environment as a batch of tasks times rollouts."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from tf_agents.trajectories import time_step as ts

from keras_maml.rl.environments.family_environment import (
    DrawTasks,
    FamilyEnvironment,
    as_family,
    check_clocks,
)
from keras_maml.rl.environments.spaces import from_space, spec_of, to_space
from keras_maml.rl.environments.task_setting import (
    Arguments,
    Attributes,
    Maker,
    Options,
    SetTask,
    WithTask,
    check_kept,
)
from keras_maml.rl.environments.tasks import TaskFamily, sample
from keras_maml.validation import check_count

NEXT_STEP = gymnasium.vector.AutoresetMode.NEXT_STEP
OF_COPIES = gymnasium.vector.SyncVectorEnv, gymnasium.vector.AsyncVectorEnv


def from_gymnasium(
    make: str | Callable[..., gymnasium.Env] | gymnasium.vector.VectorEnv,
    *,
    tasks: TaskFamily | DrawTasks,
    set_task: SetTask | Attributes | Arguments | Options,
    count: int | None = None,
    horizon: int | None = None,
    processes: bool = False,
) -> "GymnasiumTasks":
    """Makes a batch of environments, each with a task of its own, for `Sampler` and the agent.

    Spaces of observations and actions may be Box, Discrete, MultiDiscrete, MultiBinary, and Dict
    and Tuple of them. Actions are clipped to the bounds of a Box (which must be what the
    environment expects: `gymnasium.wrappers.RescaleAction` scales -1 .. 1 to them). An episode that
    is truncated ends with discount 1, one that terminates with discount 0; the step after begins
    the next one.

    Args:
        make: A registered name; a function that returns one environment, with any wrappers; or a
            vector environment, which belongs to the result from now on.
        tasks: A family such as `keras_maml.rl.environments.tasks.Uniform`, or a function of a
            generator and ``n`` that draws ``n`` tasks.
        set_task: How an environment gets a task. `Attributes` of the unwrapped environment,
            `Arguments` of ``make``, `Options` of every reset, or a function of the unwrapped
            environment and a task. With a vector environment: `Attributes` (by its ``set_attr``),
            `Options` (the entries of all environments at once, which it must keep for the episodes
            that it begins itself), or a function of the vector environment and all tasks
            ``[count, ...]``. A reset must leave `Attributes` as they are, and what a function has
            set: a goal that every reset draws anew would silently undo it, where `Attributes`
            raise.
        count: Number of environments: tasks times rollouts of each. A vector environment has its
            own.
        horizon: The most steps of an episode. By default what the environment's own time limit
            says; of a vector environment it says what it is and cuts nothing.
        processes: Whether each environment runs in a process of its own (`AsyncVectorEnv`): for few
            and slow ones. ``make`` and ``set_task`` are then pickled.

    Returns:
        The batch; after construction its tasks are ``sample_tasks(count, seed=0)``.

    Raises:
        TypeError: ``make`` is or returns something else.
        ValueError: An argument does not fit, or there is no horizon; from a reset: the
            environment has changed an attribute that is the task.
        AttributeError: The environment has no attribute that a task could set.

    Example:
        >>> from keras_maml.rl.environments import Attributes, Uniform
        >>> environment = from_gymnasium(
        ...     "Pendulum-v1", tasks=Uniform(4.0, 16.0), set_task=Attributes("g"), count=6
        ... )
        >>> environment.set_tasks(np.repeat(environment.sample_tasks(2, seed=1), 3))
        >>> environment.reset().observation.shape, environment.horizon
        ((6, 3), 200)
    """
    if isinstance(make, gymnasium.Env) or not (
        isinstance(make, str | gymnasium.vector.VectorEnv) or callable(make)
    ):
        raise TypeError(
            "make must be a registered name, a function that returns an environment (many are "
            "needed: pass lambda: MyEnvironment()), or a gymnasium.vector.VectorEnv, got "
            f"{type(make).__name__}."
        )
    if not callable(set_task) and not isinstance(set_task, Arguments | Options):
        raise ValueError(
            "set_task must be Attributes('name'), Arguments('name'), Options('name'), or a "
            f"function of an environment and a task, got {set_task!r}."
        )
    if horizon is not None:
        check_count("horizon", horizon, minimum=1)
    family = as_family(tasks)
    if isinstance(make, gymnasium.vector.VectorEnv):
        _check_vector(make, set_task, count)
        return GymnasiumTasks(make, family, set_task, horizon)
    check_count("count", count, minimum=1)
    maker = Maker(make, horizon)
    first = sample(family, count, 0)
    makers = [lambda task=task: WithTask(maker, set_task, task) for task in first]
    kind = gymnasium.vector.AsyncVectorEnv if processes else gymnasium.vector.SyncVectorEnv
    try:
        vector = kind(makers, autoreset_mode=NEXT_STEP)
    except (AssertionError, RuntimeError) as error:
        if not isinstance(set_task, Arguments):
            raise
        raise ValueError(
            f"The environments of {count} tasks do not fit together: {error} All tasks must share "
            "the spaces of observations and actions."
        ) from error
    return GymnasiumTasks(vector, family, None, horizon or vector.get_attr("time_limit")[0])


class GymnasiumTasks(FamilyEnvironment):
    """A gymnasium vector environment as a batched TF-Agents environment; see `from_gymnasium`.

    Args:
        vector: The vector environment.
        family: Of the tasks.
        set_task: See `from_gymnasium`; None: the environments are `WithTask`.
        horizon: The most steps of an episode.

    Raises:
        ValueError: There is no horizon, or a space of another kind.
    """

    def __init__(
        self,
        vector: gymnasium.vector.VectorEnv,
        family: TaskFamily,
        set_task: SetTask | Attributes | Options | None,
        horizon: int | None,
    ) -> None:
        super().__init__(family, vector.num_envs)
        if horizon is None:
            raise ValueError(
                "The environment names no time limit, so from_gymnasium needs one: pass horizon=, "
                "the most steps of an episode."
            )
        self.horizon = horizon
        self._vector, self._set_task = vector, set_task
        self._observation_spec = spec_of(vector.single_observation_space, "observation")
        self._action_spec = spec_of(vector.single_action_space, "action")
        self._restarts = True
        self._ended = np.zeros(self.batch_size, bool)
        self._clocks = np.zeros(self.batch_size, np.int64)
        self.set_tasks(self.tasks)

    @property
    def restarts(self) -> bool:
        """Whether an environment whose episode is over begins another in the step after.

        If not, it rests: its steps have reward 0 and cost nothing. A vector environment of the
        user's own always begins another.
        """
        return self._restarts

    @restarts.setter
    def restarts(self, restarts: bool) -> None:
        own = self._set_task is None
        if own and restarts != self._restarts:
            self._vector.set_attr("restarts", restarts)
            self._restarts = restarts

    def observation_spec(self) -> Any:
        """Returns the spec of one environment's observations."""
        return self._observation_spec

    def action_spec(self) -> Any:
        """Returns the spec of one environment's actions."""
        return self._action_spec

    def render(self, mode: str = "rgb_array") -> np.ndarray:
        """Returns a picture of each, uint8 ``[batch_size, height, width, 3]``.

        Raises:
            ValueError: The mode is not ``"rgb_array"``, or not that of the environments.
        """
        pictures = self._vector.render() if self._vector.render_mode == mode else None
        if mode != "rgb_array" or pictures is None:
            raise ValueError(
                "Only rgb_array can be drawn, by environments made with render_mode='rgb_array'; "
                f"got {mode!r} and render_mode={self._vector.render_mode!r}."
            )
        return np.stack(pictures)

    def close(self) -> None:
        """Closes the environments, and ends their processes."""
        self._vector.close()

    def _apply(self, tasks: np.ndarray) -> None:
        if self._set_task is None:
            self._vector.set_attr("task", list(tasks))
        elif isinstance(self._set_task, Attributes):
            base = self._vector.unwrapped  # wrappers of vectors hand neither call on
            for name, values in self._columns(tasks).items():
                base.get_attr(name)  # raises if there is none: set_attr would make one
                base.set_attr(name, values)
        elif not isinstance(self._set_task, Options):
            self._set_task(self._vector, tasks)

    def _reset(self) -> ts.TimeStep:
        self.restarts = True
        options = None
        if isinstance(self._set_task, Options):
            columns = self._columns(self.tasks)
            options = {name: np.asarray(values) for name, values in columns.items()}
        observations, _ = self._vector.reset(seed=self._next_seed, options=options)
        if isinstance(self._set_task, Attributes):
            for name, values in self._columns(self.tasks).items():
                for value, found in zip(values, self._vector.unwrapped.get_attr(name), strict=True):
                    check_kept(name, value, found)
        self._next_seed = None
        self._ended[:], self._clocks[:] = False, 0
        return ts.restart(self._seen(observations), batch_size=self.batch_size)

    def _step(self, action: Any) -> ts.TimeStep:
        actions = to_space(self._vector.single_action_space, action)
        observations, rewards, terminated, truncated, _ = self._vector.step(actions)
        before, self._ended = self._ended, np.asarray(terminated) | np.asarray(truncated)
        self._clocks = np.where(before, 0, self._clocks + 1)
        check_clocks(self._clocks, self.horizon, self._ended)
        step_type = np.full(self.batch_size, ts.StepType.MID, np.int32)
        step_type[before] = ts.StepType.FIRST
        step_type[self._ended] = ts.StepType.LAST
        if not self._restarts:
            step_type[before] = ts.StepType.LAST
            self._ended |= before
        return ts.TimeStep(
            step_type=step_type,
            reward=np.asarray(rewards, np.float32),
            discount=np.where(terminated, np.float32(0), np.float32(1)),
            observation=self._seen(observations),
        )

    def _columns(self, tasks: np.ndarray) -> dict[str, list]:
        """What tasks say, by name; the vector environment is the user's."""
        rows = [self._set_task.values(task) for task in tasks]
        return {name: [row[name] for row in rows] for name in self._set_task.names}

    def _seen(self, observations: Any) -> Any:
        return from_space(self._vector.single_observation_space, observations)


def _check_vector(vector: gymnasium.vector.VectorEnv, set_task: Any, count: int | None) -> None:
    if count not in (None, vector.num_envs):
        raise ValueError(
            f"The vector environment has {vector.num_envs} environments, but count is {count}. "
            "Leave count out."
        )
    if isinstance(set_task, Arguments):
        raise ValueError(
            "Arguments need a function that makes one environment: pass that as make, with count=."
        )
    base = vector.unwrapped
    if isinstance(set_task, Options) and isinstance(base, OF_COPIES):
        raise ValueError(
            f"{type(base).__name__} hands the same options to all its environments, and none to "
            "the episodes that it begins itself. Pass the function that makes one environment as "
            "make, with count= (and processes=True): each has its own then."
        )
    if isinstance(set_task, Attributes) and not hasattr(base, "set_attr"):
        raise ValueError(
            f"{type(base).__name__} cannot set attributes of its environments: it has no set_attr. "
            "Pass as set_task a function of it and all tasks."
        )
    # SyncVectorEnv writes its mode into a dictionary that all environments of a class share.
    mode = getattr(base, "autoreset_mode", vector.metadata.get("autoreset_mode"))
    if mode is not NEXT_STEP:
        raise ValueError(
            "The vector environment must begin the next episode in the step after the end of one "
            f"(autoreset_mode=gymnasium.vector.AutoresetMode.NEXT_STEP), got {mode}."
        )
