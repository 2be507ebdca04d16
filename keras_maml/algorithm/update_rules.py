"""Update rules: how one inner step turns gradients into new fast weights.

A rule is a Keras layer, so that whatever it learns (rates, preconditioners) is built, trained by
the outer optimizer, saved and restored with the learner. A rule of one's own defines `step`, and
`build` if it learns anything::

    @keras.saving.register_keras_serializable("my")
    class ScaledDescent(keras_maml.update_rules.UpdateRule):
        def build(self, shapes):
            self.scales = [self.add_weight(shape=(), initializer="ones") for _ in shapes]

        def step(self, weights, gradients, slots, step):
            pairs = zip(weights, gradients, self.scales, strict=True)
            return [w - 0.1 * s * g for w, g, s in pairs], slots
"""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_maml.algorithm.inner_loop import Carry, Parameters
from keras_maml.execution.functional import Tensors


class UpdateRule(keras.layers.Layer):
    """The base of update rules.

    Inside `begin` and `step`, the rule's variables have the values of the meta-step at hand, so
    that the meta-gradient reaches them: use them as they are, and never assign them.
    """

    def build(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Makes the rule's variables; by default it has none.

        Args:
            shapes: The shapes of the weights that the inner loop adapts, in their order.
        """

    def begin(self, weights: Tensors) -> Any:
        """Returns the slots before the first step: a nest of tensors, by default an empty one.

        Args:
            weights: The weights before the first step.
        """
        return ()

    def step(
        self, weights: Tensors, gradients: Tensors, slots: Any, step: int | tf.Tensor
    ) -> tuple[Tensors, Any]:
        """Takes one inner step; it must be differentiable.

        Args:
            weights: The fast weights before the step.
            gradients: The gradients of the loss on the support set, shaped and typed as they.
            slots: What `begin` or the step before returned.
            step: The number of the step, counted from 0: an integer, or a scalar tensor where
                steps are a loop.

        Returns:
            The fast weights after the step, and slots of the same structure, shapes and dtypes.
        """
        raise NotImplementedError(f"{type(self).__name__} must define step.")

    def build_for(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Builds the rule if it is not built.

        Args:
            shapes: See `build`.

        Raises:
            ValueError: What the rule has learned is for weights of other shapes.
        """
        if not self.built:
            self.build(shapes)
        learned_for = self.__dict__.setdefault("_learned_for", shapes)
        if self.trainable_variables and learned_for != shapes:
            raise ValueError(
                f"{type(self).__name__} has learned for {len(learned_for)} adapted weights, "
                f"{learned_for}, and is to adapt {len(shapes)}, {shapes}. After layers were frozen "
                "or adapted_layers changed, give the learner a new update rule."
            )

    def first_slots(self, parameters: Parameters) -> Any:
        """Calls `begin` with the rule's variables as ``parameters`` has them."""
        with self._values_of(parameters):
            return self.begin(parameters.initial)

    def apply_step(
        self, parameters: Parameters, carry: Carry, gradients: Tensors, step: int | tf.Tensor
    ) -> tuple[Tensors, Any]:
        """Calls `step` with the rule's variables as ``parameters`` has them."""
        with self._values_of(parameters):
            return self.step(carry.fast, gradients, carry.slots, step)

    def _values_of(self, parameters: Parameters) -> keras.StatelessScope:
        return keras.StatelessScope(
            state_mapping=zip(self.trainable_variables, parameters.rule, strict=True)
        )


@keras.saving.register_keras_serializable("keras_maml")
class GradientDescent(UpdateRule):
    """Plain gradient descent with a fixed rate (Finn et al. 2017, equation 1).

    Losses are means over examples. A code base whose inner loss sums over the N ways of a
    K-shot episode (as the authors' does: it divides the sum by K alone) reaches the same step
    with a rate N times smaller.

    Args:
        learning_rate: The inner learning rate alpha, 0 leaves the weights as they are; or a
            `keras.optimizers.schedules.LearningRateSchedule` over the inner steps.
        **kwargs: Of `keras.layers.Layer`.

    Raises:
        ValueError: The rate is negative or not finite.

    Example:
        >>> rule = GradientDescent(0.5)
        >>> weights, _ = rule.step([tf.constant(1.0)], [tf.constant(4.0)], (), step=0)
        >>> [float(w) for w in weights]
        [-1.0]
    """

    def __init__(self, learning_rate: Any = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._learning_rate = checked_rate(learning_rate)
        self.built = True  # it has no variables

    @property
    def learning_rate(self) -> Any:
        """The rate; a rule's settings do not change, give the learner another rule instead."""
        return self._learning_rate

    def step(
        self, weights: Tensors, gradients: Tensors, slots: Any, step: int | tf.Tensor
    ) -> tuple[Tensors, Any]:
        """Returns each weight minus the rate times its gradient."""
        rate = self.learning_rate
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            rate = rate(step)
        pairs = zip(weights, gradients, strict=True)
        return [w - _typed(rate, w.dtype) * g for w, g in pairs], slots

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        rate = self.learning_rate
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            rate = keras.optimizers.schedules.serialize(rate)
        return {**super().get_config(), "learning_rate": rate}


@keras.saving.register_keras_serializable("keras_maml")
class PerLayerPerStep(UpdateRule):
    """A learned rate for every weight tensor and inner step (MAML++'s LSLR).

        theta_j <- theta_j - alpha_{j,i} grad_j L_support(theta),  weight tensor j, step i.

    Args:
        learning_rate: All rates at first.
        steps: How many steps have rates of their own; later ones take the last one's.
        **kwargs: Of `keras.layers.Layer`.

    Raises:
        ValueError: The rate is negative or not finite, or there are no steps.

    Source: Antoniou, Edwards, Storkey, How to train your MAML, ICLR 2019, section 4.

    Example:
        >>> rule = PerLayerPerStep(0.5, steps=2)
        >>> rule.build([()])
        >>> weights, _ = rule.step([tf.constant(1.0)], [tf.constant(4.0)], (), step=7)
        >>> [float(w) for w in weights]
        [-1.0]
    """

    def __init__(self, learning_rate: float = 0.01, steps: int = 5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._learning_rate = checked_rate(learning_rate)
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps must be an integer of at least 1, got {steps!r}.")
        self._steps = steps

    def build(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Makes a vector of rates per weight tensor."""
        self.rates = [
            self.add_weight(
                shape=(self._steps,),
                initializer=keras.initializers.Constant(self._learning_rate),
                name=f"rates_{number}",
            )
            for number in range(len(shapes))
        ]

    def step(
        self, weights: Tensors, gradients: Tensors, slots: Any, step: int | tf.Tensor
    ) -> tuple[Tensors, Any]:
        """Returns each weight minus its rate at this step times its gradient."""
        step = tf.minimum(step, self._steps - 1)
        triples = zip(weights, gradients, self.rates, strict=True)
        return [
            w - tf.cast(tf.gather(tf.convert_to_tensor(rates), step), w.dtype) * g
            for w, g, rates in triples
        ], slots

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        settings = {"learning_rate": self._learning_rate, "steps": self._steps}
        return {**super().get_config(), **settings}


def _typed(rate: float | tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns a rate of a dtype; a number directly, without the rounding of another one."""
    return tf.cast(rate, dtype) if tf.is_tensor(rate) else tf.constant(rate, dtype)


def checked_rate(rate: Any, name: str = "inner_learning_rate") -> Any:
    """Returns a rate, or raises ValueError unless it is a number of at least 0 or a schedule."""
    if isinstance(rate, dict):  # a schedule's config
        rate = keras.optimizers.schedules.deserialize(rate)
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return rate
    number = isinstance(rate, numbers.Real) and not isinstance(rate, bool)
    if not (number and math.isfinite(rate) and rate >= 0):
        raise ValueError(
            f"{name} must be a finite number of at least 0, or a Keras learning rate schedule "
            f"over inner steps, got {rate!r}."
        )
    return rate
