"""Draws trajectories of whole episodes, and takes meta-iterations."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tf_agents.agents.tf_agent import LossInfo
from tf_agents.environments import py_environment
from tf_agents.metrics import py_metrics
from tf_agents.policies import py_tf_eager_policy, tf_policy
from tf_agents.specs import tensor_spec
from tf_agents.trajectories import StepType, TimeStep, Trajectory
from tf_agents.trajectories.trajectory import from_transition

from keras_maml import validation
from keras_maml.rl.environments.family_environment import as_tasks
from keras_maml.rl.meta_policy_gradient import MetaPolicyGradientAgent
from keras_maml.rl.policy import seed_words


class Sampler:
    """Draws whole episodes of all tasks at once.

    Each environment takes ``steps`` steps. An episode begins only if a whole horizon fits into what
    is left of them, and runs to its end; afterwards the environment rests. So no episode is cut
    off, no step is thrown away, and whether an episode counts does not depend on how it goes: as
    the number of the last episode is a stopping time, sums over all of them are unbiased (Wald's
    equation). With ``steps`` equal to the horizon every environment has exactly one episode, as the
    reported returns count them; a multiple of it fills the batch better where episodes are short.

    Letting environments begin episodes until the batch is full, and dropping those that do not end
    in time, as the authors' code does, counts short episodes more often than long ones: of an ant
    with a random policy, that learns from falls.

    Args:
        environment: A batched environment with ``set_tasks`` and ``seed``, made by
            `keras_maml.rl.environments.from_gymnasium`, `from_tf_agents` or `TaskPyEnvironment`, or
            one of the user's own. If it has an attribute ``restarts``, that is set to False where
            no episode may begin; otherwise the sampler leaves out what begins too late.
        policy: Acts in it, such as a `keras_maml.rl.policy.TaskPolicy`, whose tasks divide the
            number of environments. Environments receive its actions as NumPy arrays.
        steps: Steps of every environment: at least its horizon. By default that
            (``environment.horizon``). Of an environment without a horizon only first episodes
            count, which must be over by then.
        observers: Called with the trajectory of every step, such as TF-Agents' metrics. One at rest
            is between two episodes to them, a boundary.

    Attributes:
        episode_length: TF-Agents' metric: mean length of the last episodes, one per environment.

    Raises:
        TypeError: The environment is not such a one.
        ValueError: A setting is out of range.

    Source: Wald 1944, "On cumulative sums of random variables".
    """

    def __init__(
        self,
        environment: py_environment.PyEnvironment,
        policy: tf_policy.TFPolicy,
        *,
        steps: int | None = None,
        observers: Sequence[Any] = (),
    ) -> None:
        _check_environment(environment)
        horizon, tasks = getattr(environment, "horizon", None), getattr(policy, "tasks", 1)
        steps = horizon if steps is None else steps
        validation.check_count("steps", steps, minimum=1)
        if steps < (horizon or 1):
            raise ValueError(
                f"steps must be at least {horizon}, the horizon of the environment, so that an "
                f"episode ends within them, got {steps}."
            )
        if environment.batch_size % tasks:
            raise ValueError(
                f"{environment.batch_size} environments cannot be divided among the {tasks} tasks "
                "of the policy. Use a multiple."
            )
        self.environment = environment
        self.policy = policy
        self.steps = steps
        self.episode_length = py_metrics.AverageEpisodeLengthMetric(
            buffer_size=environment.batch_size, batch_size=environment.batch_size
        )
        self._observers = [self.episode_length, *observers]
        self._last_start = steps - (horizon or steps)
        self._policy = py_tf_eager_policy.PyTFEagerPolicy(
            policy, use_tf_function=True, batch_time_steps=False
        )

    def set_tasks(self, tasks: np.ndarray) -> None:
        """Gives the environments their tasks.

        Args:
            tasks: ``[tasks, ...]``; divides the number of environments. Those of a task stand
                side by side.
        """
        tasks = as_tasks(tasks)
        rollouts, rest = divmod(self.environment.batch_size, max(1, len(tasks)))
        if rest or not len(tasks):
            raise ValueError(
                f"{self.environment.batch_size} environments cannot be divided among "
                f"{len(tasks)} tasks. Use a multiple."
            )
        self.environment.set_tasks(np.repeat(tasks, rollouts, axis=0))

    def draw(self, *seed: int) -> Trajectory:
        """Draws from fresh episodes.

        Args:
            *seed: Integers from 0, such as a seed, an iteration and a stage: the same ones give
                the same trajectories.

        Returns:
            A trajectory of tensors ``[environments, steps, ...]``, all of whose episodes are whole.
            At rest both step types are those of a boundary, LAST and FIRST, and rewards are 0.

        Raises:
            ValueError: An episode goes on after the last step: the environment has no horizon, or
                does not keep to it.
        """
        first = getattr(self.policy, "shard", (0, 1))[0] * self.environment.batch_size
        self.environment.seed(int(seed_words(seed)[0]) + first)
        self.policy.seed_actions(*seed)
        self.episode_length.reset()
        time_step, recorded = self.environment.reset(), []
        state = self._policy.get_initial_state(self.environment.batch_size)
        rests = np.zeros(self.environment.batch_size, bool)
        while len(recorded) < self.steps and not rests.all():
            number = len(recorded)
            if number + 1 > self._last_start:
                if hasattr(self.environment, "restarts"):
                    self.environment.restarts = False
                rests |= time_step.step_type == StepType.LAST
            action = self._policy.action(time_step, state)
            action = action._replace(
                action=tf.nest.map_structure(np.asarray, action.action),
                info=tf.nest.map_structure(np.asarray, action.info),
            )
            state = action.state
            following = self.environment.step(action.action)
            step = _at_rest(from_transition(time_step, action, following), rests)
            for observer in self._observers:
                observer(step)
            recorded.append(step)
            time_step = following
        unfinished = ~(rests | (time_step.step_type == StepType.LAST))
        if unfinished.any():
            raise ValueError(
                f"The episode of environment {int(unfinished.argmax())} is not over after "
                f"{self.steps} steps, so that its return is not known. Pass steps= that are at "
                "least the most steps of an episode, or limit them with a TimeLimit, a wrapper of "
                "gymnasium and of TF-Agents."
            )
        recorded += [_at_rest(recorded[-1], rests)] * (self.steps - len(recorded))
        return tf.nest.map_structure(
            lambda *arrays: tf.convert_to_tensor(np.stack(arrays, axis=1)), *recorded
        )


def _at_rest(step: Trajectory, rests: np.ndarray) -> Trajectory:
    """Makes a step a boundary, without reward, where environments rest."""
    if not rests.any():
        return step
    return step.replace(
        step_type=np.where(rests, np.int32(StepType.LAST), step.step_type),
        next_step_type=np.where(rests, np.int32(StepType.FIRST), step.next_step_type),
        reward=np.where(rests, np.float32(0), step.reward),
    )


def _check_environment(environment: Any) -> None:
    """Raises TypeError unless an environment is a batch that can be given tasks and seeds."""
    makers = (
        "keras_maml.rl.environments.from_gymnasium(make, tasks=..., set_task=..., count=...) makes "
        "a batch of gymnasium environments with tasks, and from_tf_agents of TF-Agents' own "
        "(suite_gym, batched ones)"
    )
    if not isinstance(environment, py_environment.PyEnvironment):
        raise TypeError(
            "The environment must be a batched PyEnvironment of TF-Agents, got "
            f"{type(environment).__name__}. {makers}."
        )
    if not environment.batched or not hasattr(environment, "set_tasks"):
        what = "is a single environment" if not environment.batched else "has no set_tasks"
        raise TypeError(
            f"{type(environment).__name__} {what}, but every environment of a batch needs a task. "
            f"{makers}."
        )


def meta_iteration(
    agent: MetaPolicyGradientAgent, sampler: Sampler, tasks: np.ndarray, *seed: int
) -> tuple[LossInfo, list[np.ndarray]]:
    """Takes one meta-iteration: draw, adapt, draw again, train (Finn et al. 2017, algorithm 3).

    Args:
        agent: The agent.
        sampler: Draws with the agent's collect policy.
        tasks: ``[agent.tasks, ...]``; of several workers, those of this one.
        *seed: Integers from 0, such as a seed and the number of the iteration: weights, tasks and
            these determine everything.

    Returns:
        What `train` returned, and the returns ``[tasks]`` before adaptation and after every inner
        step, those of all workers in their order.

    Raises:
        ValueError: The tasks cannot be divided, or the sampler draws with another policy.
        FloatingPointError: An observation, a reward or the fast weights of a task are not finite.
            The agent's weights and counters have not changed; on all workers.
    """
    begin_adaptation(agent, sampler, tasks)
    experience, failure = [], None
    try:
        for stage in range(agent.inner_steps + 1):
            experience.append(sampler.draw(*seed, stage))
            if stage < agent.inner_steps:
                agent.adapt(experience[-1])
        agent.check_experience(experience[-1])
    except FloatingPointError as error:
        if agent.workers is None:
            raise
        failure = error
    if agent.workers is not None:  # all of them train, or none does
        agent.workers.all_fine(failure)
    returns = [episode_returns(trajectory, agent.tasks) for trajectory in experience]
    if agent.workers is not None:
        by_task = agent.workers.gather(tf.constant(np.stack(returns, 1)))
        returns = [*by_task.numpy().T]
    return agent.train(tuple(experience)), returns


def begin_adaptation(agent: MetaPolicyGradientAgent, sampler: Sampler, tasks: np.ndarray) -> None:
    """Gives the environments their tasks and the collect policy the initial weights.

    Args:
        agent: The agent.
        sampler: Draws with the agent's collect policy.
        tasks: ``[agent.tasks, ...]``.

    Raises:
        ValueError: The tasks cannot be divided, or the sampler draws with another policy.
    """
    if sampler.policy is not agent.collect_policy:
        raise ValueError(
            "The sampler must draw with the agent's own collect policy: make it with "
            "Sampler(environment, agent.collect_policy, ...)."
        )
    agent.check_tasks(tasks)
    sampler.set_tasks(tasks)
    agent.reset_adaptation()


def episode_returns(trajectory: Trajectory, tasks: int) -> np.ndarray:
    """Returns the mean undiscounted return of each task.

    Only the first episode of each environment counts: of those that follow one that ended early,
    the short ones would be seen more often.

    Args:
        trajectory: ``[environments, steps, ...]``, from `Sampler.draw`.
        tasks: How many tasks.

    Returns:
        float64 ``[tasks]``.
    """
    ends = np.asarray(trajectory.is_last()) | np.asarray(
        trajectory.next_step_type == int(StepType.LAST)
    )
    first = np.cumsum(ends, axis=1) - ends == 0
    rewards = np.where(first, np.asarray(trajectory.reward, "float64"), 0.0)
    return rewards.sum(axis=1).reshape(tasks, -1).mean(axis=1)


def tensor_specs(environment: py_environment.PyEnvironment) -> tuple[TimeStep, Any]:
    """Returns the specs of an environment's time steps and actions that agents and policies take.

    Args:
        environment: Any of TF-Agents.
    """
    specs = environment.time_step_spec(), environment.action_spec()
    return tuple(tensor_spec.from_spec(spec) for spec in specs)
