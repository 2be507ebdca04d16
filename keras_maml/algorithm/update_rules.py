"""Update rules: how one inner step turns gradients into new fast weights.

An update rule is a callable ``rule(weights, gradients, step) -> fast weights`` over lists of
tensors. It must be differentiable, since the meta-gradient passes through it.
"""

import dataclasses
import math
import numbers

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class GradientDescent:
    """Plain gradient descent with one fixed rate (Finn et al. 2017, equation 1).

    Losses are means over examples. A code base whose inner loss sums over the N ways of a
    K-shot episode (as the authors' does: it divides the sum by K alone) reaches the same step
    with a rate N times smaller.

    Attributes:
        learning_rate: The inner learning rate alpha; 0 leaves the weights as they are.

    Example:
        >>> rule = GradientDescent(0.5)
        >>> [float(w) for w in rule([tf.constant(1.0)], [tf.constant(4.0)], step=0)]
        [-1.0]
    """

    learning_rate: float

    def __post_init__(self) -> None:
        rate = self.learning_rate
        if not (isinstance(rate, numbers.Real) and math.isfinite(rate) and rate >= 0):
            raise ValueError(
                f"inner_learning_rate must be a finite number of at least 0, got {rate!r}."
            )

    def __call__(
        self, weights: list[tf.Tensor], gradients: list[tf.Tensor], step: int | tf.Tensor
    ) -> list[tf.Tensor]:
        """Returns the fast weights after inner step number ``step`` (counted from 0)."""
        del step
        return [
            weight - tf.constant(self.learning_rate, weight.dtype) * gradient
            for weight, gradient in zip(weights, gradients, strict=True)
        ]
