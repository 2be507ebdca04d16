"""Distributions over actions: a policy's own, or a nest of them for a nest of actions.

A distribution function maps a model's outputs to a distribution of TensorFlow Probability; for an
environment whose actions are a dictionary, to a dictionary of them, with the same keys. The
functions below treat both alike: the parts of a nest are independent of each other.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

DistributionFunction = Callable[[Any], Any]

QUADRATURE = 32  # nodes
IMPOSSIBLE = -1e9  # a logit: finite, because the divergence of two infinite ones is not a number


def diagonal_gaussian(outputs: dict[str, tf.Tensor]) -> tfp.distributions.Distribution:
    """Returns the distribution of real actions that a `gaussian_policy` describes.

    Args:
        outputs: ``mean`` and ``log_std``, ``[..., action_size]`` each.
    """
    return tfp.distributions.MultivariateNormalDiag(outputs["mean"], tf.exp(outputs["log_std"]))


def squashed_gaussian(low: Any = -1.0, high: Any = 1.0) -> DistributionFunction:
    """Returns a distribution function for real actions that never leave their bounds.

    A Gaussian action, squashed by tanh to the bounds; entries are independent.

    Args:
        low: The lower bound, a number or ``[action_size]``.
        high: The upper bound, likewise.

    Returns:
        A function of ``mean`` and ``log_std``, ``[..., action_size]`` each and before squashing,
        such as a `gaussian_policy` gives.

    Raises:
        ValueError: The bounds are not finite, or not in order.

    Source: Haarnoja et al. 2018 (arXiv 1801.01290), appendix C.

    Example:
        >>> steer = squashed_gaussian(-2.0, 2.0)
        >>> outputs = {"mean": tf.constant([[0.0, 100.0]]), "log_std": tf.zeros([1, 2])}
        >>> steer(outputs).mode().numpy().tolist()
        [[0.0, 2.0]]
    """
    low, high = np.asarray(low, float), np.asarray(high, float)
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise ValueError(f"The bounds must be finite, low below high, got {low} and {high}.")
    return lambda outputs: SquashedGaussian(
        outputs["mean"],
        tf.exp(outputs["log_std"]),
        *(tf.constant(bound, outputs["mean"].dtype) for bound in (low, high)),
    )


class SquashedGaussian(tfp.distributions.AutoCompositeTensorDistribution):
    """A Gaussian with a diagonal covariance, squashed by tanh; see `squashed_gaussian`.

    Its mode is taken to be the squashed mean. Entropy and deviation, which have no closed form, are
    quadratures over each entry.

    Args:
        loc: Floating ``[..., size]``: the mean before squashing.
        scale: ``[..., size]``, positive: the deviation before squashing.
        low: The lower bounds.
        high: The upper bounds.
        name: Of the distribution.
    """

    def __init__(
        self,
        loc: tf.Tensor,
        scale: tf.Tensor,
        low: tf.Tensor,
        high: tf.Tensor,
        name: str = "SquashedGaussian",
    ) -> None:
        parameters = dict(locals())
        self.loc, self.scale, self.low, self.high = loc, scale, low, high
        super().__init__(
            dtype=loc.dtype,
            reparameterization_type=tfp.distributions.FULLY_REPARAMETERIZED,
            validate_args=False,
            allow_nan_stats=True,
            parameters=parameters,
            name=name,
        )

    @property
    def gaussian(self) -> tfp.distributions.Distribution:
        """What is squashed."""
        return tfp.distributions.MultivariateNormalDiag(self.loc, self.scale)

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: Any = None) -> dict:
        bound = tfp.util.ParameterProperties(event_ndims=None)
        entry = tfp.util.ParameterProperties(event_ndims=1)
        return {"loc": entry, "scale": entry, "low": bound, "high": bound}

    def _event_shape(self) -> tf.TensorShape:
        return self.loc.shape[-1:]

    def _event_shape_tensor(self, **parameters: Any) -> tf.Tensor:
        return tf.shape(self.loc)[-1:]

    def _batch_shape(self) -> tf.TensorShape:
        return self.loc.shape[:-1]

    def _batch_shape_tensor(self, **parameters: Any) -> tf.Tensor:
        return tf.shape(self.loc)[:-1]

    def _sample_n(self, n: Any, seed: Any = None) -> tf.Tensor:
        return self._squash(self.gaussian.sample(n, seed))

    def _log_prob(self, actions: tf.Tensor) -> tf.Tensor:
        share = 2.0 * (actions - self.low) / (self.high - self.low) - 1.0
        # What has been rounded to a bound comes from somewhere near.
        least = 0.5 * np.finfo(self.dtype.as_numpy_dtype).eps
        before = tf.atanh(tf.clip_by_value(share, -1.0 + least, 1.0 - least))
        squeezed = tf.reduce_sum(self._log_slope(before), axis=-1)
        return self.gaussian.log_prob(before) - squeezed

    def _mode(self) -> tf.Tensor:
        return self._squash(self.loc)

    def _stddev(self) -> tf.Tensor:
        mean = self._expectation(self._squash)
        return tf.sqrt(self._expectation(lambda u: (self._squash(u) - mean) ** 2))

    def _entropy(self) -> tf.Tensor:
        squeezed = tf.reduce_sum(self._expectation(self._log_slope), axis=-1)
        return self.gaussian.entropy() + squeezed

    def _squash(self, before: tf.Tensor) -> tf.Tensor:
        return self.low + 0.5 * (self.high - self.low) * (tf.tanh(before) + 1.0)

    def _log_slope(self, before: tf.Tensor) -> tf.Tensor:
        """The logarithm of the derivative of squashing; of 1 - tanh^2 without cancellation."""
        tanh = 2.0 * (math.log(2.0) - before - tf.nn.softplus(-2.0 * before))
        return tanh + tf.math.log(0.5 * (self.high - self.low))

    def _expectation(self, function: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        nodes, weights = np.polynomial.hermite_e.hermegauss(QUADRATURE)
        weights = weights / weights.sum()
        return tf.add_n(
            [w * function(self.loc + x * self.scale) for x, w in zip(nodes, weights, strict=True)]
        )


@tfp.distributions.RegisterKL(SquashedGaussian, SquashedGaussian)
def _squashed_divergence(
    old: SquashedGaussian, new: SquashedGaussian, name: str | None = None
) -> tf.Tensor:
    """That before squashing, which loses nothing; the bounds are the same."""
    return old.gaussian.kl_divergence(new.gaussian, name=name or "kl")


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


def check_actions(distribution: Any, action_spec: Any) -> None:
    """Raises ValueError unless a distribution makes actions of a spec, and can be learned.

    Args:
        distribution: One with a batch axis of length 1, or a nest of such.
        action_spec: Of one environment, with bounds where actions are integers.

    Example:
        >>> from tf_agents.specs import BoundedTensorSpec
        >>> check_actions(categorical(tf.zeros([1, 3])), BoundedTensorSpec([], tf.int64, 0, 1))
        Traceback (most recent call last):
        ...
        ValueError: The environment has 2 choices of an action, but model and distribution 3...
    """
    drawn = sample(distribution)
    made = tf.nest.map_structure(lambda action: tuple(action.shape[1:]), drawn)
    taken = tf.nest.map_structure(lambda spec: tuple(spec.shape), action_spec)
    if made != taken:
        raise ValueError(
            f"The environment takes actions of shape {taken}, but model and distribution make "
            f"actions of shape {made}. Give the model other outputs, or pass another distribution: "
            "categorical, multi_categorical and diagonal_gaussian, or parts for a dictionary."
        )
    for one, spec in zip(_flat(distribution), tf.nest.flatten(action_spec), strict=True):
        _check_bounds(one, spec)
        if one.dtype.is_floating != spec.dtype.is_floating:
            raise ValueError(
                f"The environment takes actions of dtype {spec.dtype.name}, but model and "
                f"distribution make actions of dtype {one.dtype.name}. Pass another distribution: "
                "categorical or multi_categorical for integers, diagonal_gaussian for real ones."
            )
        made, taken = _choices(one), _choices_of_spec(spec)
        if made is not None and taken is not None and not np.array_equal(made, taken):
            raise ValueError(
                f"The environment has {taken.tolist()} choices of an action, but model and "
                f"distribution {made.tolist()}. Give the model a logit for each choice."
            )
    for one, action in zip(_flat(distribution), tf.nest.flatten(drawn), strict=True):
        _check_learnable(one, action)


def _check_learnable(distribution: tfp.distributions.Distribution, action: tf.Tensor) -> None:
    """Raises ValueError unless a distribution has what agents need, one number for each action."""
    kind = type(distribution).__name__
    needed = {
        "log_prob": lambda: distribution.log_prob(action),
        "kl_divergence": lambda: distribution.kl_divergence(distribution),
        "entropy": distribution.entropy,
    }
    for name, compute in needed.items():
        shape = tuple(_computed(kind, name, compute).shape)
        if shape != (1,):
            raise ValueError(
                f"An action of shape {tuple(action.shape[1:])} is to have one {name}, but that of "
                f"a batch of one has the shape {shape} with {kind}, which takes entries for "
                "actions of their own. Make one distribution of them: "
                "tfp.distributions.Independent(distribution, reinterpreted_batch_ndims="
                f"{max(1, len(shape) - 1)})."
            )
    if distribution.dtype.is_floating:
        _computed(kind, "stddev", distribution.stddev)


def _computed(kind: str, name: str, compute: Callable[[], tf.Tensor]) -> tf.Tensor:
    try:
        return compute()
    except NotImplementedError as error:
        raise ValueError(
            f"Agents need log_prob, kl_divergence and entropy of a distribution, and stddev of "
            f"real actions, but {kind} has no {name}: {error} Pass another distribution, such as "
            "diagonal_gaussian or squashed_gaussian, or a subclass that has it "
            "(tfp.distributions.RegisterKL for kl_divergence)."
        ) from error


def _check_bounds(distribution: tfp.distributions.Distribution, spec: Any) -> None:
    """Raises ValueError unless integers are counted from 0, and squashed actions reach as far."""
    if not hasattr(spec, "maximum"):
        return
    if not spec.dtype.is_floating:
        if np.any(np.asarray(spec.minimum) != 0):
            raise ValueError(
                f"The environment counts its actions from {np.asarray(spec.minimum).tolist()}, a "
                "policy from 0. from_tf_agents adds what is between, and from_gymnasium where the "
                "space is a Discrete or MultiDiscrete with start=: instead of a Box of integers "
                "give it one of these."
            )
    elif isinstance(distribution, SquashedGaussian):
        for name, bound in (("minimum", distribution.low), ("maximum", distribution.high)):
            taken = np.broadcast_to(getattr(spec, name), tuple(spec.shape))
            made = np.broadcast_to(bound, taken.shape)
            if not np.allclose(made, taken) and np.isfinite(taken).all():
                raise ValueError(
                    f"The environment's actions have the {name} {taken.tolist()}, but those of "
                    f"squashed_gaussian {made.tolist()}. Pass squashed_gaussian(low, high) with "
                    "the bounds of the environment."
                )


def _choices(distribution: tfp.distributions.Distribution) -> np.ndarray | None:
    """How many actions a distribution of integers has, for each entry; None: it is another one."""
    if isinstance(distribution, tfp.distributions.Independent):
        distribution = distribution.distribution
    if not isinstance(distribution, tfp.distributions.Categorical):
        return None
    logits = np.asarray(distribution.logits_parameter())[0]
    return (logits > IMPOSSIBLE / 2).sum(axis=-1)


def _choices_of_spec(spec: Any) -> np.ndarray | None:
    if not hasattr(spec, "maximum") or spec.dtype.is_floating:
        return None
    return np.broadcast_to(np.asarray(spec.maximum) + 1, tuple(spec.shape))


def as_spec(actions: Any, action_spec: Any) -> Any:
    """Returns actions of a policy in the dtypes of a spec: integers of any width, say."""
    return tf.nest.map_structure(
        lambda action, spec: tf.cast(action, spec.dtype), actions, action_spec
    )


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
    return tf.add_n([one.log_prob(tf.cast(action, one.dtype)) for one, action in pairs])


def kl_divergence(old: Any, new: Any) -> tf.Tensor:
    """Returns the KL divergence from old distributions to new ones, ``[...]``."""
    pairs = zip(_flat(old), _flat(new), strict=True)
    return tf.add_n([one.kl_divergence(other) for one, other in pairs])


def entropy(distribution: Any) -> tf.Tensor:
    """Returns the entropy of the actions in nats, ``[...]``: a differential one of real actions."""
    return tf.add_n([one.entropy() for one in _flat(distribution)])


def _flat(distribution: Any) -> list[tfp.distributions.Distribution]:
    return tf.nest.flatten(distribution)
