"""From trajectories to what a policy gradient needs: advantages of the transitions of each task.

Arrays of a trajectory are ``[environments, steps, ...]``, TF-Agents' convention; the environments
of a task stand side by side. An environment whose episode ends early begins another one; the step
in between (a boundary) is no transition, and the transitions of an episode that the batch cuts off
have no return. Both get the weight 0.
"""

from typing import Any, NamedTuple

import tensorflow as tf
from tf_agents.trajectories import StepType, Trajectory
from tf_agents.utils import value_ops

from keras_maml.rl.baseline import Baseline, find_baseline


class Transitions(NamedTuple):
    """The transitions of every task.

    Attributes:
        observations: ``[tasks, transitions, ...]``, or a nest of such.
        actions: ``[tasks, transitions, ...]``, or a nest of such.
        advantages: float32 ``[tasks, transitions]``.
        weights: float32 ``[tasks, transitions]``: 1, or 0 for what is not to be counted.
        times: int32 ``[tasks, transitions]``: the number of the step in its episode, from 0.
        performance: float32 ``[tasks]``: the mean return of an episode, divided by its mean length
            and the deviation that advantages are divided by; so its gradient is what the mean of
            score times advantage estimates.
    """

    observations: Any
    actions: Any
    advantages: tf.Tensor
    weights: tf.Tensor
    times: Any = ()
    performance: Any = ()


def episode_times(step_types: tf.Tensor) -> tf.Tensor:
    """Numbers the steps of each episode.

    Args:
        step_types: int32 ``[environments, steps]``.

    Returns:
        int32 ``[environments, steps]``: 0 at the first step of an episode and at the first of the
        batch.

    Example:
        >>> episode_times(tf.constant([[0, 1, 1, 2, 0, 1]])).numpy().tolist()
        [[0, 1, 2, 3, 0, 1]]
    """
    steps = tf.range(step_types.shape[1])[None]
    starts = tf.where(step_types == int(StepType.FIRST), steps, 0)
    return steps - _running_maximum(starts)


def complete(trajectory: Trajectory) -> tf.Tensor:
    """Says which steps are transitions of an episode that ends within the batch.

    Args:
        trajectory: ``[environments, steps, ...]``.

    Returns:
        bool ``[environments, steps]``.
    """
    ends = tf.cast(trajectory.next_step_type == int(StepType.LAST), tf.int32)
    ended_later = tf.cumsum(ends, axis=1, reverse=True) > 0
    return ended_later & (trajectory.step_type != int(StepType.LAST))


def discounted_returns(trajectory: Trajectory, discount: float) -> tf.Tensor:
    """Returns the discounted sum of the rewards from each step to the end of its episode.

    An episode that reaches the horizon ends there like any other: nothing is estimated beyond it.

    Args:
        trajectory: ``[environments, steps, ...]``.
        discount: Per step.

    Returns:
        float32 ``[environments, steps]``; meaningless where `complete` is false.
    """
    return value_ops.discounted_return(
        trajectory.reward, _continuation(trajectory, discount), time_major=False
    )


def transitions(
    trajectory: Trajectory,
    *,
    tasks: int,
    discount: float,
    gae_lambda: float,
    baseline: str | Baseline | None = "linear",
) -> Transitions:
    """Estimates advantages over a baseline that is fitted to each task.

    Generalized advantage estimation; within each task the advantages are shifted and scaled to
    mean 0 and standard deviation 1.

    Args:
        trajectory: ``[environments, steps, ...]``, the environments of a task side by side.
        tasks: How many tasks; divides the number of environments.
        discount: Per step.
        gae_lambda: 1 for the discounted return minus the baseline.
        baseline: ``"linear"``, ``"time"``, None or a function, see `keras_maml.rl.baseline`.

    Returns:
        The transitions of every task, ``environments / tasks * steps`` each.

    Raises:
        ValueError: The baseline is none, or does not bear the observations.

    Source: Schulman et al. 2016 (arXiv 1506.02438); Finn et al. 2017, appendix A.2.
    """
    environments, steps = trajectory.reward.shape
    by_task = lambda x: tf.reshape(x, [tasks, environments // tasks * steps, *x.shape[2:]])  # noqa: E731
    weights = by_task(tf.cast(complete(trajectory), tf.float32))
    returns = discounted_returns(trajectory, discount)
    observations = tf.nest.map_structure(by_task, trajectory.observation)
    times = by_task(episode_times(trajectory.step_type))
    values = find_baseline(baseline)(observations, times, by_task(returns), weights)
    if values.shape != weights.shape:
        raise ValueError(
            "A baseline must return a value of each transition of each task, of shape "
            f"{tuple(weights.shape)}, got {tuple(values.shape)}."
        )
    advantages = value_ops.generalized_advantage_estimation(
        tf.cast(tf.reshape(values, [environments, steps]), tf.float32),
        tf.zeros([environments]),
        _continuation(trajectory, discount),
        trajectory.reward,
        td_lambda=gae_lambda,
        time_major=False,
    )
    advantages = by_task(advantages)
    _, deviation = _mean_and_deviation(advantages, weights)
    firsts = weights * tf.cast(times == 0, weights.dtype)
    return Transitions(
        observations,
        tf.nest.map_structure(by_task, trajectory.action),
        standardize(advantages, weights),
        weights,
        times,
        tf.math.divide_no_nan(
            tf.reduce_sum(by_task(returns) * firsts, axis=-1),
            tf.reduce_sum(weights, axis=-1) * deviation[:, 0],
        ),
    )


def standardize(values: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Shifts and scales the values of each task to mean 0 and standard deviation 1.

    Args:
        values: ``[tasks, transitions]``.
        weights: ``[tasks, transitions]``; what has the weight 0 comes out as 0.

    Returns:
        ``[tasks, transitions]``.

    Example:
        >>> standardize(tf.constant([[1.0, 3.0, 9.0]]), tf.constant([[1.0, 1.0, 0.0]])).numpy()
        array([[-1.,  1.,  0.]], dtype=float32)
    """
    mean, deviation = _mean_and_deviation(values, weights)
    return (values - mean) * weights / (deviation + 1e-8)


def _mean_and_deviation(values: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns ``[tasks, 1]`` each."""
    mean = weighted_mean(values, weights, keepdims=True)
    return mean, tf.sqrt(weighted_mean((values - mean) ** 2, weights, keepdims=True))


def sums_since_start(values: tf.Tensor, times: tf.Tensor) -> tf.Tensor:
    """Adds up the values of each episode, from its start to each step.

    Args:
        values: ``[transitions]``.
        times: int32 ``[transitions]``, the number of the step in its episode, from 0.

    Returns:
        ``[transitions]``.

    Example:
        >>> sums_since_start(tf.constant([1.0, 2.0, 4.0, 8.0]), tf.constant([0, 1, 0, 1])).numpy()
        array([ 1.,  3.,  4., 12.], dtype=float32)
    """
    shift, size = 1, values.shape[0]
    while shift < size:  # each sum is of the last 2, 4, 8, ... steps, as far as there are so many
        before = tf.pad(values[:-shift], [[shift, 0]])
        values += tf.where(times >= shift, before, tf.zeros_like(before))
        shift *= 2
    return values


def weighted_mean(values: tf.Tensor, weights: tf.Tensor, keepdims: bool = False) -> tf.Tensor:
    """Returns the mean over the last axis with weights, 0 if all are 0."""
    total = tf.reduce_sum(values * weights, axis=-1, keepdims=keepdims)
    return tf.math.divide_no_nan(total, tf.reduce_sum(weights, axis=-1, keepdims=keepdims))


def _continuation(trajectory: Trajectory, discount: float) -> tf.Tensor:
    """The discount, 0 at the end of an episode and in the step between two of them."""
    goes_on = (trajectory.next_step_type != int(StepType.LAST)) & (
        trajectory.step_type != int(StepType.LAST)
    )
    return discount * tf.cast(goes_on, tf.float32)


def _running_maximum(values: tf.Tensor) -> tf.Tensor:
    """Running maximum along the second axis, by doubling."""
    shift, size = 1, values.shape[1]
    while shift < size:
        values = tf.maximum(values, tf.pad(values, [[0, 0], [shift, 0]])[:, :size])
        shift *= 2
    return values
