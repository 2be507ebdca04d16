"""Update rules that learn how to adapt: rates per step, per parameter, a preconditioner."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_maml import validation
from keras_maml.algorithm.update_rule import UpdateRule, checked_number, typed
from keras_maml.execution.functional import Tensors


class _LearnedRule(UpdateRule):
    """The base of rules that begin as gradient descent with one rate."""

    def __init__(self, learning_rate: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._learning_rate = checked_number(learning_rate)

    def rates(self, shape: tuple[int, ...], number: int) -> keras.Variable:
        """Makes a tensor of rates, all the same at first."""

        def constant(shape: tuple[int, ...], dtype: str) -> tf.Tensor:
            # Keras's initializer of this name rounds to single precision.
            return tf.fill(shape, tf.constant(self._learning_rate, dtype))

        return self.add_weight(shape=shape, initializer=constant, name=f"rates_{number}")

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "learning_rate": self._learning_rate}


@keras.saving.register_keras_serializable("keras_maml")
class PerLayerPerStep(_LearnedRule):
    """A learned rate for every weight tensor and inner step (MAML++'s LSLR).

        theta_j <- theta_j - alpha_{j,i} grad_j L_support(theta),  weight tensor j, step i.

    Args:
        learning_rate: All rates at first.
        steps: How many steps have rates of their own; later ones take the last one's.
        **kwargs: Of `keras.layers.Layer`.

    Raises:
        ValueError: The rate is negative or not finite, or there are no steps.

    Source: Antoniou, Edwards, Storkey, How to train your MAML, ICLR 2019. (The
    authors' code has a row of rates more than steps, which is never used.)

    Example:
        >>> rule = PerLayerPerStep(0.5, steps=2)
        >>> rule.build([()])
        >>> weights, _ = rule.step([tf.constant(1.0)], [tf.constant(4.0)], (), step=7)
        >>> [float(w) for w in weights]
        [-1.0]
    """

    def __init__(self, learning_rate: float = 0.1, steps: int = 5, **kwargs: Any) -> None:
        super().__init__(learning_rate, **kwargs)
        validation.check_count("steps", steps, minimum=1)
        self._steps = int(steps)

    def build(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Makes a vector of rates per weight tensor."""
        self.of_tensor = [self.rates((self._steps,), number) for number in range(len(shapes))]

    def step(
        self, weights: Tensors, gradients: Tensors, slots: Any, step: int | tf.Tensor
    ) -> tuple[Tensors, Any]:
        """Returns each weight minus its rate at this step times its gradient."""
        step = tf.minimum(step, self._steps - 1)
        triples = zip(weights, gradients, self.of_tensor, strict=True)
        return [
            w - tf.cast(tf.gather(tf.convert_to_tensor(rates), step), w.dtype) * g
            for w, g, rates in triples
        ], slots

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "steps": self._steps}


@keras.saving.register_keras_serializable("keras_maml")
class MetaSGD(_LearnedRule):
    """A learned rate for every parameter (Meta-SGD).

        theta <- theta - alpha * grad L_support(theta),  alpha shaped like theta.

    A rate may become negative: the direction is learned, too.

    Args:
        learning_rate: All rates at first.
        **kwargs: Of `keras.layers.Layer`.

    Raises:
        ValueError: The rate is negative or not finite.

    Source: Li, Zhou, Chen, Li, Meta-SGD: Learning to Learn Quickly for Few-Shot Learning, 2017.

    Example:
        >>> rule = MetaSGD(0.5)
        >>> rule.build([(2,)])
        >>> rule.trainable_variables[0].assign([0.5, 0.25])
        <...>
        >>> weights, _ = rule.step([tf.constant([1.0, 1.0])], [tf.constant([4.0, 4.0])], (), step=0)
        >>> weights[0].numpy().tolist()
        [-1.0, 0.0]
    """

    def build(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Makes a tensor of rates per weight tensor, shaped like it."""
        self.of_parameter = [self.rates(shape, number) for number, shape in enumerate(shapes)]

    def step(
        self, weights: Tensors, gradients: Tensors, slots: Any, step: int | tf.Tensor
    ) -> tuple[Tensors, Any]:
        """Returns each weight minus its rates times its gradient."""
        triples = zip(weights, gradients, self.of_parameter, strict=True)
        return [w - tf.cast(rates, w.dtype) * g for w, g, rates in triples], slots


@keras.saving.register_keras_serializable("keras_maml")
class MetaCurvature(_LearnedRule):
    """A learned transform of the inner gradient, a Kronecker product per tensor.

        theta <- theta - alpha M(G),    M(G) = G x_1 M_f x_2 M_i x_3 M_o,

    where the gradient G of a kernel is seen as ``[positions, inputs, outputs]`` (a dense kernel
    has one position) and ``G x_n M`` multiplies along axis n; the three matrices are learned, and
    begin as identities. A vector, such as a bias, has a learned factor for each entry.

    The matrices of a kernel have inputs^2 + outputs^2 + positions^2 entries: for a dense layer
    on thousands of features, adapt other layers or use `MetaSGD`.

    Args:
        learning_rate: alpha, which is not learned.
        **kwargs: Of `keras.layers.Layer`.

    Raises:
        ValueError: The rate is negative or not finite.

    Source: Park, Oliva, Meta-Curvature, NeurIPS 2019.

    Example:
        >>> rule = MetaCurvature(0.5)
        >>> rule.build([(3, 3, 2, 4), (4,)])
        >>> [tuple(variable.shape) for variable in rule.trainable_variables]
        [(9, 9), (2, 2), (4, 4), (4,)]
    """

    def build(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Makes the matrices of every kernel, and the factors of every vector."""
        self.transforms = [
            [
                self.add_weight(shape=shape, initializer=start, name=f"{name}_{number}")
                for name, shape, start in _transforms(of_weight)
            ]
            for number, of_weight in enumerate(shapes)
        ]

    def step(
        self, weights: Tensors, gradients: Tensors, slots: Any, step: int | tf.Tensor
    ) -> tuple[Tensors, Any]:
        """Returns each weight minus the rate times its transformed gradient."""
        triples = zip(weights, gradients, self.transforms, strict=True)
        rate = self._learning_rate
        return [w - typed(rate, w.dtype) * _transformed(g, m) for w, g, m in triples], slots


def _transforms(shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...], Any]]:
    """Returns name, shape and initializer of what transforms a weight's gradient."""
    if len(shape) < 2:
        return [("factors", shape, "ones")]
    sizes = {"positions": math.prod(shape[:-2]), "inputs": shape[-2], "outputs": shape[-1]}
    if sizes["positions"] == 1:
        del sizes["positions"]
    return [(name, (size, size), keras.initializers.Identity()) for name, size in sizes.items()]


def _transformed(gradient: tf.Tensor, transforms: list[keras.Variable]) -> tf.Tensor:
    """Applies a weight's transforms to its gradient."""
    *positions, last = [tf.cast(transform, gradient.dtype) for transform in transforms]
    if not positions:
        return last * gradient
    *positions, inputs = positions
    shape = gradient.shape
    product = tf.reshape(gradient, [-1, *shape[-2:]])
    product = tf.matmul(inputs, tf.matmul(product, last))
    if positions:
        flat = tf.reshape(product, [product.shape[0], -1])
        product = tf.matmul(positions[0], flat)
    return tf.reshape(product, shape)
