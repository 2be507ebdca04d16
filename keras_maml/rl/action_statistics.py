"""What to watch of a policy's actions while it learns: whether it still explores."""

from typing import Any, NamedTuple

import tensorflow as tf

from keras_maml.rl import distributions
from keras_maml.rl.advantages import Transitions, weighted_mean


class ActionStatistics(NamedTuple):
    """Means over transitions; all ``[tasks]``, or scalars of one task.

    Attributes:
        deviation: Standard deviation of an entry of a real action under the policy, the mean over
            entries; NaN where no action is real.
        entropy: Of the distribution of an action, in nats; differential where it is real.
    """

    deviation: tf.Tensor
    entropy: tf.Tensor


def action_statistics(distribution: Any, weights: tf.Tensor) -> ActionStatistics:
    """Returns statistics of a policy over transitions.

    Args:
        distribution: Over the actions of each transition, with the batch shape ``[..., n]``; or a
            nest of them.
        weights: Floating ``[..., n]``, such as `Transitions.weights`: 0 leaves a transition out.

    Example:
        >>> outputs = {"mean": tf.zeros([1, 2]), "log_std": tf.math.log([[0.5, 1.5]])}
        >>> found = action_statistics(distributions.diagonal_gaussian(outputs), tf.ones([1]))
        >>> round(float(found.deviation), 3), round(float(found.entropy), 3)
        (1.0, 2.55)
    """
    deviations = [
        tf.reshape(one.stddev(), [*weights.shape, -1])
        for one in tf.nest.flatten(distribution)
        if one.dtype.is_floating
    ]
    entropy = weighted_mean(distributions.entropy(distribution), weights)
    if not deviations:
        return ActionStatistics(tf.fill(entropy.shape, float("nan")), entropy)
    deviation = tf.reduce_mean(tf.concat(deviations, axis=-1), axis=-1)
    return ActionStatistics(weighted_mean(deviation, weights), entropy)


def clipped_share(transitions: Transitions, low: Any, high: Any) -> tf.Tensor:
    """Returns which share of the entries of real actions lies outside of their bounds.

    An environment clips them, so that the policy cannot feel what it does there.

    Args:
        transitions: Those of tasks, with actions ``[tasks, n, ...]``.
        low: The lower bound, a number or ``[...]``.
        high: The upper bound, likewise.

    Returns:
        ``[tasks]``.

    Example:
        >>> stage = Transitions((), tf.constant([[[2.0], [0.5]]]), (), tf.ones([1, 2]))
        >>> clipped_share(stage, -1.0, 1.0).numpy()
        array([0.5], dtype=float32)
    """
    actions, weights = transitions.actions, transitions.weights
    outside = tf.cast((actions < low) | (actions > high), weights.dtype)
    outside = tf.reduce_mean(tf.reshape(outside, [*weights.shape, -1]), axis=-1)
    return weighted_mean(outside, weights)
