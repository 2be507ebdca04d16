"""Draws trajectories with TF-Agents' driver, and takes meta-iterations."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tf_agents.agents.tf_agent import LossInfo
from tf_agents.drivers import py_driver
from tf_agents.environments import py_environment
from tf_agents.metrics import py_metrics
from tf_agents.policies import py_tf_eager_policy, tf_policy
from tf_agents.specs import tensor_spec
from tf_agents.trajectories import StepType, TimeStep, Trajectory

from keras_maml import validation
from keras_maml.rl.meta_policy_gradient import MetaPolicyGradientAgent
from keras_maml.rl.policy import seed_words


class Sampler:
    """Draws trajectories of all tasks at once.

    Args:
        environment: A batched environment with ``set_tasks`` and ``seed``, such as
            `keras_maml.rl.environments.TaskPyEnvironment`.
        policy: Acts in it, such as a `keras_maml.rl.policy.TaskPolicy`, whose tasks divide the
            number of environments.
        steps: Steps of every environment: at least its horizon (``environment.horizon`` where
            there is one), so that an episode ends.
        observers: More observers of the driver, such as TF-Agents' metrics.

    Attributes:
        episode_length: TF-Agents' metric: mean length of the last episodes, one per environment.

    Raises:
        ValueError: A setting is out of range.
    """

    def __init__(
        self,
        environment: py_environment.PyEnvironment,
        policy: tf_policy.TFPolicy,
        *,
        steps: int,
        observers: Sequence[Any] = (),
    ) -> None:
        validation.check_count("steps", steps, minimum=1)
        horizon, tasks = getattr(environment, "horizon", 1), getattr(policy, "tasks", 1)
        if steps < horizon:
            raise ValueError(
                f"steps must be at least {horizon}, the horizon of the environment: of shorter "
                f"trajectories only episodes that end early would count, got {steps}."
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
        self._recorded: list[Trajectory] = []
        self._driver = py_driver.PyDriver(
            environment,
            py_tf_eager_policy.PyTFEagerPolicy(
                policy, use_tf_function=True, batch_time_steps=False
            ),
            [self._recorded.append, self.episode_length, *observers],
            max_steps=steps * environment.batch_size,
        )

    def set_tasks(self, tasks: np.ndarray) -> None:
        """Gives the environments their tasks.

        Args:
            tasks: ``[tasks, ...]``; divides the number of environments. Those of a task stand
                side by side.
        """
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
            A trajectory of tensors ``[environments, steps, ...]``. Environments whose episodes
            end early begin another one.
        """
        self.environment.seed(int(seed_words(seed)[0]))
        self.policy.seed_actions(*seed)
        self._recorded.clear()
        self.episode_length.reset()
        self._driver.run(self.environment.reset())
        return tf.nest.map_structure(
            lambda *steps: tf.stack(steps[: self.steps], axis=1), *self._recorded
        )


def meta_iteration(
    agent: MetaPolicyGradientAgent, sampler: Sampler, tasks: np.ndarray, *seed: int
) -> tuple[LossInfo, list[np.ndarray]]:
    """Takes one meta-iteration: draw, adapt, draw again, train (Finn et al. 2017, algorithm 3).

    Args:
        agent: The agent.
        sampler: Draws with the agent's collect policy.
        tasks: ``[agent.tasks, ...]``.
        *seed: Integers from 0, such as a seed and the number of the iteration: weights, tasks and
            these determine everything.

    Returns:
        What `train` returned, and the returns ``[tasks]`` before adaptation and after every inner
        step.

    Raises:
        ValueError: The tasks cannot be divided, or the sampler draws with another policy.
        FloatingPointError: An observation, a reward or the fast weights of a task are not finite.
            The agent's weights and counters have not changed.
    """
    begin_adaptation(agent, sampler, tasks)
    experience = []
    for stage in range(agent.inner_steps + 1):
        experience.append(sampler.draw(*seed, stage))
        if stage < agent.inner_steps:
            agent.adapt(experience[-1])
    returns = [episode_returns(trajectory, agent.tasks) for trajectory in experience]
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
