"""Distributions over actions: a policy's own, or a nest of them for a nest of actions.

A distribution function maps a model's outputs to a distribution of TensorFlow Probability; for an
environment whose actions are a dictionary, to a dictionary of them, with the same keys. The
functions below treat both alike: the parts of a nest are independent of each other.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

DistributionFunction = Callable[[Any], Any]

IMPOSSIBLE = -1e9  # a logit: finite, because the divergence of two infinite ones is not a number


def diagonal_gaussian(outputs: dict[str, tf.Tensor]) -> tfp.distributions.Distribution:
    """Returns the distribution of real actions that a `gaussian_policy` describes.

    Args:
        outputs: ``mean`` and ``log_std``, ``[..., action_size]`` each.
    """
    return tfp.distributions.MultivariateNormalDiag(outputs["mean"], tf.exp(outputs["log_std"]))


def categorical(outputs: tf.Tensor) -> tfp.distributions.Distribution:
    """Returns the distribution of discrete actions that a model of logits describes.

    Args:
        outputs: Logits ``[..., actions]``.
    """
    return tfp.distributions.Categorical(logits=outputs, dtype=tf.int64)


def multi_categorical(sizes: Sequence[int]) -> DistributionFunction:
    """Returns a distribution function for several discrete actions at once (MultiDiscrete).

    Args:
        sizes: How many choices each action has.

    Returns:
        A function of logits ``[..., sum(sizes)]``, those of the first action first, to a
        distribution over int64 ``[..., len(sizes)]``.

    Raises:
        ValueError: A size is not positive; from the function: there are not as many logits.

    Example:
        >>> choose = multi_categorical([3, 2])
        >>> choose(tf.constant([[0.0, 9.0, 0.0, 9.0, 0.0]])).mode().numpy().tolist()
        [[1, 0]]
    """
    sizes = [int(size) for size in sizes]
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sizes must be positive integers, one for each action, got {sizes}.")

    def distribution(outputs: tf.Tensor) -> tfp.distributions.Distribution:
        if outputs.shape[-1] != sum(sizes):
            raise ValueError(
                f"Actions of {sizes} choices need {sum(sizes)} logits, got {outputs.shape[-1]}. "
                "Give the model as many outputs."
            )
        pads = [[0, 0]] * (len(outputs.shape) - 1)
        logits = [
            tf.pad(part, [*pads, [0, max(sizes) - size]], constant_values=IMPOSSIBLE)
            for part, size in zip(tf.split(outputs, sizes, axis=-1), sizes, strict=True)
        ]
        return tfp.distributions.Independent(categorical(tf.stack(logits, axis=-2)), 1)

    return distribution


def parts(functions: dict[str, DistributionFunction]) -> DistributionFunction:
    """Returns a distribution function for actions that are a dictionary.

    Args:
        functions: By the keys of the actions, which are those of the model's outputs, too.

    Raises:
        ValueError: From the function: the model's outputs have other keys.

    Example:
        >>> both = parts({"gear": categorical, "steer": diagonal_gaussian})
        >>> steer = {"mean": tf.zeros([1, 2]), "log_std": tf.zeros([1, 2])}
        >>> mode(both({"gear": tf.constant([[0.0, 1.0]]), "steer": steer}))["gear"].numpy().tolist()
        [1]
    """

    def distribution(outputs: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(outputs, dict) or set(outputs) != set(functions):
            keys = sorted(outputs) if isinstance(outputs, dict) else type(outputs).__name__
            raise ValueError(
                f"The model's outputs must be a dictionary with the keys {sorted(functions)}, one "
                f"for each part of an action, got {keys}."
            )
        return {key: function(outputs[key]) for key, function in functions.items()}

    return distribution


def sample(distribution: Any, seed: Any = None) -> Any:
    """Draws actions.

    Args:
        distribution: One, or a nest of them.
        seed: int32 ``[2]``; None: another one each time.
    """
    flat = _flat(distribution)
    if seed is None or len(flat) == 1:
        seeds = [seed] * len(flat)
    else:
        seeds = [tf.random.experimental.stateless_fold_in(seed, i) for i in range(len(flat))]
    drawn = [one.sample(seed=number) for one, number in zip(flat, seeds, strict=True)]
    return tf.nest.pack_sequence_as(distribution, drawn)


def mode(distribution: Any) -> Any:
    """Returns the most probable actions."""
    return tf.nest.map_structure(lambda one: one.mode(), distribution)


def log_prob(distribution: Any, actions: Any) -> tf.Tensor:
    """Returns the logarithm of the probability (density) of actions, ``[...]``."""
    tf.nest.assert_same_structure(distribution, actions)
    pairs = zip(_flat(distribution), tf.nest.flatten(actions), strict=True)
    return tf.add_n([one.log_prob(action) for one, action in pairs])


def kl_divergence(old: Any, new: Any) -> tf.Tensor:
    """Returns the KL divergence from old distributions to new ones, ``[...]``."""
    pairs = zip(_flat(old), _flat(new), strict=True)
    return tf.add_n([one.kl_divergence(other) for one, other in pairs])


def entropy(distribution: Any) -> tf.Tensor:
    """Returns the entropy of the actions in nats, ``[...]``: a differential one of real actions."""
    return tf.add_n([one.entropy() for one in _flat(distribution)])


def _flat(distribution: Any) -> list[tfp.distributions.Distribution]:
    return tf.nest.flatten(distribution)
