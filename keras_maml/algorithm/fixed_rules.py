"""Update rules that learn nothing: gradient descent, momentum, Adam."""

from typing import Any

import keras
import tensorflow as tf

from keras_maml import validation
from keras_maml.algorithm.update_rule import UpdateRule, checked_rate, typed
from keras_maml.execution.functional import Tensors


class _FixedRule(UpdateRule):
    """The base of rules with a rate and without variables: the rate, clipping, the config."""

    def __init__(
        self,
        learning_rate: Any = 0.1,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._learning_rate = checked_rate(learning_rate)
        for name, bound in (("clip_norm", clip_norm), ("clip_value", clip_value)):
            if bound is not None:
                validation.check_positive(name, bound)
        if clip_norm is not None and clip_value is not None:
            raise ValueError("Give either clip_norm or clip_value, not both.")
        self._clip_norm, self._clip_value = clip_norm, clip_value
        self.built = True  # it has no variables

    @property
    def learning_rate(self) -> Any:
        """The rate; a rule's settings do not change, give the learner another rule instead."""
        return self._learning_rate

    def rate_at(self, step: int | tf.Tensor) -> Any:
        """Returns the rate of a step, a number or a scalar tensor."""
        rate = self.learning_rate
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            return rate(step)
        return rate

    def clipped(self, gradients: Tensors) -> Tensors:
        """Returns the gradients of one task, clipped as the settings say; differentiable."""
        if self._clip_value is not None:
            bound = self._clip_value
            return [tf.minimum(tf.maximum(g, -bound), bound) for g in gradients]
        if self._clip_norm is not None and gradients:
            dtype = gradients[0].dtype
            squares = tf.add_n([tf.reduce_sum(tf.cast(g, dtype) ** 2) for g in gradients])
            # Of the root where it is more than the bound only: its derivative at 0 is infinite.
            bound = typed(self._clip_norm, dtype)
            norm = tf.sqrt(tf.maximum(squares, bound**2))
            return [g * tf.cast(bound / norm, g.dtype) for g in gradients]
        return gradients

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        rate = self.learning_rate
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            rate = keras.optimizers.schedules.serialize(rate)
        return {
            **super().get_config(),
            "learning_rate": rate,
            "clip_norm": self._clip_norm,
            "clip_value": self._clip_value,
        }


@keras.saving.register_keras_serializable("keras_maml")
class GradientDescent(_FixedRule):
    """Plain gradient descent with a fixed rate.

        theta <- theta - alpha grad L_support(theta)

    Losses are means over examples. A code base whose inner loss sums over the N ways of a
    K-shot episode (as the authors' does: it divides the sum by K alone) reaches the same step
    with a rate N times smaller.

    Args:
        learning_rate: The inner learning rate alpha, 0 leaves the weights as they are; or a
            `keras.optimizers.schedules.LearningRateSchedule` over the inner steps.
        clip_norm: The norm that the inner gradient of a task is scaled down to where it is larger:
            the norm of all weights' gradients together. None for no bound.
        clip_value: The bound that every entry of an inner gradient is clipped to, a constant for
            the meta-gradient. None for no bound.
        **kwargs: Of `keras.layers.Layer`.

    Raises:
        ValueError: The rate is negative or not finite, a bound is not above 0, or there are two.

    Source: Finn, Abbeel, Levine, Model-Agnostic Meta-Learning, ICML 2017, equation 1.

    Example:
        >>> rule = GradientDescent(0.5)
        >>> weights, _ = rule.step([tf.constant(1.0)], [tf.constant(4.0)], (), step=0)
        >>> [float(w) for w in weights]
        [-1.0]
    """

    def step(
        self, weights: Tensors, gradients: Tensors, slots: Any, step: int | tf.Tensor
    ) -> tuple[Tensors, Any]:
        """Returns each weight minus the rate times its gradient."""
        rate = self.rate_at(step)
        pairs = zip(weights, self.clipped(gradients), strict=True)
        return [w - typed(rate, w.dtype) * g for w, g in pairs], slots


@keras.saving.register_keras_serializable("keras_maml")
class Momentum(_FixedRule):
    """Gradient descent with momentum, which every task begins at 0.

        m <- beta m + grad L_support(theta)
        theta <- theta - alpha m

    Args:
        learning_rate: As of `GradientDescent`.
        momentum: beta, at least 0 and below 1.
        clip_norm: As of `GradientDescent`.
        clip_value: As of `GradientDescent`.
        **kwargs: Of `keras.layers.Layer`.

    Raises:
        ValueError: As of `GradientDescent`, or the momentum is out of range.

    Source: Polyak, Some methods of speeding up the convergence of iteration methods, 1964.

    Example:
        >>> rule, weights = Momentum(0.5, momentum=0.5), [tf.constant(1.0)]
        >>> slots = rule.begin(weights)
        >>> for step in range(2):
        ...     weights, slots = rule.step(weights, [tf.constant(2.0)], slots, step)
        >>> [float(w) for w in weights]
        [-1.5]
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        momentum: float = 0.9,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, clip_norm, clip_value, **kwargs)
        self._momentum = _fraction("momentum", momentum)

    def begin(self, weights: Tensors) -> Tensors:
        """Returns zeros, shaped as the weights."""
        return [tf.zeros_like(w) for w in weights]

    def step(
        self, weights: Tensors, gradients: Tensors, slots: Any, step: int | tf.Tensor
    ) -> tuple[Tensors, Any]:
        """Returns each weight minus the rate times its momentum, and the momenta."""
        rate = self.rate_at(step)
        pairs = zip(slots, self.clipped(gradients), strict=True)
        slots = [typed(self._momentum, g.dtype) * m + g for m, g in pairs]
        pairs = zip(weights, slots, strict=True)
        return [w - typed(rate, w.dtype) * m for w, m in pairs], slots

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "momentum": self._momentum}


@keras.saving.register_keras_serializable("keras_maml")
class Adam(_FixedRule):
    """Adam, whose moments every task begins at 0.

    Step i, counted from 1:

        m <- beta_1 m + (1 - beta_1) g,      v <- beta_2 v + (1 - beta_2) g^2
        theta <- theta - alpha (m / (1 - beta_1^i)) / (sqrt(v / (1 - beta_2^i)) + epsilon)

    Where v is 0, the derivative of the root counts as 0, which makes that of the whole step right:
    a weight that no example has touched has the slope alpha / epsilon, large but finite. A larger
    epsilon keeps the exact meta-gradient calm.

    Reptile's code uses it with ``beta_1=0``, and hands the second moments on from task to task.

    Args:
        learning_rate: As of `GradientDescent`.
        beta_1: The decay of the first moment, at least 0 and below 1.
        beta_2: The decay of the second moment, likewise.
        epsilon: A number above 0.
        clip_norm: As of `GradientDescent`.
        clip_value: As of `GradientDescent`.
        **kwargs: Of `keras.layers.Layer`.

    Raises:
        ValueError: As of `GradientDescent`, or a setting is out of range.

    Source: Kingma, Ba, Adam, ICLR 2015, algorithm 1.

    Example:
        >>> rule, weights = Adam(0.5, epsilon=1e-7), [tf.constant(1.0)]
        >>> weights, _ = rule.step(weights, [tf.constant(4.0)], rule.begin(weights), step=0)
        >>> [round(float(w), 3) for w in weights]
        [0.5]
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, clip_norm, clip_value, **kwargs)
        self._beta_1, self._beta_2 = _fraction("beta_1", beta_1), _fraction("beta_2", beta_2)
        validation.check_positive("epsilon", epsilon)
        self._epsilon = epsilon

    def begin(self, weights: Tensors) -> dict[str, Tensors]:
        """Returns zeros for both moments, shaped as the weights."""
        return {name: [tf.zeros_like(w) for w in weights] for name in ("mean", "square")}

    def step(
        self, weights: Tensors, gradients: Tensors, slots: Any, step: int | tf.Tensor
    ) -> tuple[Tensors, Any]:
        """Returns the weights after a step of Adam, and the moments."""
        rate = self.rate_at(step)
        moved, means, squares = [], [], []
        parts = zip(weights, self.clipped(gradients), slots["mean"], slots["square"], strict=True)
        for w, g, mean, square in parts:
            beta_1, beta_2 = typed(self._beta_1, w.dtype), typed(self._beta_2, w.dtype)
            count = tf.cast(step, w.dtype) + 1
            mean = beta_1 * mean + (1 - beta_1) * g
            square = beta_2 * square + (1 - beta_2) * g**2
            scale = _root(square / (1 - beta_2**count)) + typed(self._epsilon, w.dtype)
            moved.append(w - typed(rate, w.dtype) * (mean / (1 - beta_1**count)) / scale)
            means.append(mean)
            squares.append(square)
        return moved, {"mean": means, "square": squares}

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        settings = {"beta_1": self._beta_1, "beta_2": self._beta_2, "epsilon": self._epsilon}
        return {**super().get_config(), **settings}


def _root(x: tf.Tensor) -> tf.Tensor:
    """Returns the square root; its derivative at 0 is 0."""
    positive = x > 0
    return tf.where(positive, tf.sqrt(tf.where(positive, x, tf.ones_like(x))), tf.zeros_like(x))


def _fraction(name: str, value: Any) -> float:
    allowed = "a number of at least 0 and below 1"
    validation.check_number(name, value, lambda number: 0 <= number < 1, allowed)
    return value
