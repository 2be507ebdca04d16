"""What an update rule is: a Keras layer that takes inner steps, and may learn how."""

import contextlib
import math
import numbers
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_maml.algorithm.inner_loop import Carry, Parameters
from keras_maml.execution.functional import Tensors, WeightScope
from keras_maml.execution.tracing import transparent


class UpdateRule(keras.layers.Layer):
    """The base of update rules.

    Inside `begin` and `step`, the rule's variables have the values of the meta-step at hand, so
    that the meta-gradient reaches them: use them as they are, and never assign them. A function
    with a gradient of its own must take them as arguments.
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

    @contextlib.contextmanager
    def _values_of(self, parameters: Parameters) -> Iterator[None]:
        values = zip(self.trainable_variables, parameters.rule, strict=True)
        with transparent(), WeightScope(state_mapping=values):
            yield


def typed(rate: float | tf.Tensor, dtype: tf.DType) -> tf.Tensor:
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


def checked_number(rate: Any, name: str = "learning_rate") -> float:
    """Returns a rate to begin with, or raises ValueError unless it is a number of at least 0."""
    if isinstance(checked_rate(rate, name), keras.optimizers.schedules.LearningRateSchedule):
        raise ValueError(f"{name} must be a number where rates are learned, got {rate!r}.")
    return rate
