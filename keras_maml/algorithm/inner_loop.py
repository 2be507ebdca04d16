"""The inner loop: pure functions from parameters and a support loss to fast weights.

Nothing here knows of Keras models, of episodes or of batches of tasks. A task is anything with an
inner loss; an update rule turns its gradient into the next fast weights. Training, evaluation,
adaptation, exported signatures and reinforcement learning all take their steps here.

Source: Finn, Abbeel, Levine, Model-Agnostic Meta-Learning, ICML 2017, algorithm 1.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from keras_maml.execution.functional import Tensors
from keras_maml.execution.task_map import loop


class Parameters(NamedTuple):
    """All weights that a meta-step begins with; those of `trained` get a meta-gradient.

    Attributes:
        initial: The weights that the inner loop adapts.
        shared: Trained by the outer step, not moved by the inner one.
        rule: The update rule's own: rates, preconditioners.
        frozen: Constants, of layers that are not trainable.
    """

    initial: Tensors
    shared: Tensors = []  # noqa: RUF012 - never changed
    rule: Tensors = []  # noqa: RUF012
    frozen: Tensors = []  # noqa: RUF012

    @property
    def trained(self) -> Tensors:
        """What the outer step trains, in one list."""
        return [*self.initial, *self.shared, *self.rule]

    def with_trained(self, trained: Tensors) -> "Parameters":
        """Returns the same with other values of `trained`."""
        first, second = len(self.initial), len(self.initial) + len(self.shared)
        return Parameters(trained[:first], trained[first:second], trained[second:], self.frozen)

    def paired(self, values: "Parameters", fast: Tensors) -> list[tuple[Any, tf.Tensor]]:
        """Pairs the model's variables, which this holds, with values; the rule's are left out.

        Args:
            values: The values of all of them.
            fast: Those of the weights that the inner loop adapts.
        """
        return [
            *zip(self.initial, fast, strict=True),
            *zip(self.shared, values.shared, strict=True),
            *zip(self.frozen, values.frozen, strict=True),
        ]


class Carry(NamedTuple):
    """What an inner step hands to the next.

    Attributes:
        fast: The fast weights.
        slots: What a stateful update rule keeps, such as momentum: a nest of tensors.
        state: What a task keeps, such as random seeds.
    """

    fast: Tensors
    slots: Any = ()
    state: Any = ()


class Task(Protocol):
    """One task: a loss to adapt to, and what the adapted weights are measured by."""

    def inner_loss(
        self, parameters: Parameters, carry: Carry, step: int | tf.Tensor
    ) -> tuple[tf.Tensor, Any]:
        """Returns the scalar loss of the fast weights on the support set, and the next state."""

    def outcome(self, parameters: Parameters, carry: Carry) -> Any:
        """Returns what the fast weights make of the query set, a nest with a scalar ``loss``."""


class Rule(Protocol):
    """What an inner loop needs of an update rule; see `keras_maml.update_rules.UpdateRule`."""

    def first_slots(self, parameters: Parameters) -> Any:
        """Returns the slots before the first step."""

    def apply_step(
        self, parameters: Parameters, carry: Carry, gradients: Tensors, step: int | tf.Tensor
    ) -> tuple[Tensors, Any]:
        """Returns the next fast weights and slots."""


@dataclasses.dataclass(frozen=True)
class InnerLoop:
    """Adaptation to one task by a few differentiable steps.

    Attributes:
        rule: The update rule.
        steps: How many steps; 0 leaves the weights as they are. A tensor makes them a loop.
        first_order: Stops the inner gradients, so that an outer tape sees a step as a shift by a
            constant (paper, section 5.2).

    Example:
        >>> import keras_maml
        >>> class Square:
        ...     def inner_loss(self, parameters, carry, step):
        ...         return carry.fast[0] ** 2, carry.state
        >>> inner = InnerLoop(keras_maml.update_rules.GradientDescent(0.25), steps=2)
        >>> float(inner.adapt(Square(), Parameters([tf.constant(1.0)])).fast[0])
        0.25
    """

    rule: Rule
    steps: int | tf.Tensor
    first_order: bool = False

    def begin(self, parameters: Parameters, state: Any = ()) -> Carry:
        """Returns what the first step begins with."""
        return Carry(parameters.initial, self.rule.first_slots(parameters), state)

    def step(
        self, task: Task, parameters: Parameters, carry: Carry, step: int | tf.Tensor
    ) -> Carry:
        """Takes one step.

        Args:
            task: The task.
            parameters: The parameters that the loop began with.
            carry: What the step before handed on.
            step: The number of the step, counted from 0.
        """

        def loss(fast: Tensors) -> tuple[tf.Tensor, Any]:
            return task.inner_loss(parameters, carry._replace(fast=fast), step)

        _, state, gradients = loss_gradients(loss, carry.fast, getattr(task, "loss_scale", None))
        if self.first_order:
            gradients = [tf.stop_gradient(gradient) for gradient in gradients]
        fast, slots = self.rule.apply_step(parameters, carry, gradients, step)
        return Carry(fast, slots, state)

    def adapt(self, task: Task, parameters: Parameters, state: Any = ()) -> Carry:
        """Takes all steps.

        Args:
            task: The task.
            parameters: The parameters to begin with.
            state: The task's first state.

        Returns:
            The fast weights and what came with them.
        """
        carry = self.begin(parameters, state)
        if not tf.is_tensor(self.steps):
            for step in range(self.steps):
                carry = self.step(task, parameters, carry, step)
            return carry
        _before_loop(task, parameters, carry)
        _, carry = tf.while_loop(
            lambda step, _: step < self.steps,
            lambda step, carry: (step + 1, self.step(task, parameters, carry, step)),
            (tf.constant(0), carry),
        )
        return carry

    def adapt_and_measure(
        self, task: Task, parameters: Parameters, state: Any, step_weights: tf.Tensor | None
    ) -> tuple[Carry, Any]:
        """Takes all steps and measures the task, after the last of them or after all.

        Args:
            task: The task.
            parameters: The parameters to begin with.
            state: The task's first state.
            step_weights: The weight of the loss after each step, ``[steps]``; None where only the
                last step counts.

        Returns:
            What the last step hands on, and the outcome after it, with the weighted sum of the
            losses as its loss.
        """
        if step_weights is None or not self.steps:
            carry = self.adapt(task, parameters, state)
            return carry, task.outcome(parameters, carry)
        carry, losses = self.begin(parameters, state), []
        for step in range(self.steps):
            carry = self.step(task, parameters, carry, step)
            outcome = task.outcome(parameters, carry)
            losses.append(outcome.loss * tf.cast(step_weights[step], outcome.loss.dtype))
        return carry, outcome._replace(loss=tf.add_n(losses))

    def trajectory(
        self,
        task: Task,
        parameters: Parameters,
        state: Any,
        *,
        unrolled: bool,
        measure: Callable[[Parameters, Carry], Any] | None = None,
    ) -> Any:
        """Measures a task before adaptation and after every step.

        Args:
            task: The task.
            parameters: The parameters to begin with.
            state: The task's first state.
            unrolled: Whether each step is traced by itself. A loop compiles quickly, but XLA does
                not compile what vectorising over tasks makes of one.
            measure: Returns a nest of tensors; by default the task's ``outcome``.

        Returns:
            The outcomes, every tensor with a leading axis of ``steps + 1``.
        """
        measure = measure or task.outcome

        def turn(step: int | tf.Tensor, carry: Carry) -> tuple[Carry, Any]:
            carry = self.step(task, parameters, carry, step)
            return carry, measure(parameters, carry)

        carry = self.begin(parameters, state)
        first = measure(parameters, carry)
        if unrolled:
            outcomes = [first]
            for step in range(self.steps):
                carry, outcome = turn(step, carry)
                outcomes.append(outcome)
            return tf.nest.map_structure(lambda *values: tf.stack(values), *outcomes)
        _before_loop(task, parameters, carry)
        others = loop(turn, carry, first, self.steps)
        return tf.nest.map_structure(lambda a, b: tf.concat([a[None], b], 0), first, others)


def _before_loop(task: Task, parameters: Parameters, carry: Carry) -> None:
    if hasattr(task, "before_loop"):
        task.before_loop(parameters, carry)


def loss_gradients(
    loss_function: Callable[[Tensors], tuple[tf.Tensor, Any]],
    weights: Tensors,
    scale: float | tf.Tensor | Callable[[tf.Tensor], tf.Tensor] | None = None,
) -> tuple[tf.Tensor, Any, Tensors]:
    """Differentiates a loss with respect to a list of weights.

    Args:
        loss_function: Maps weights to ``(scalar loss, anything else)``.
        weights: Tensors of any shape and floating dtype.
        scale: What the loss is multiplied by, and the gradients are divided by again, so that
            numbers in between are not too small for half precision, or a function of the loss that
            returns it; None for nothing.

    Returns:
        The loss, what came with it, and the gradients: dense tensors, zero for a weight that
        the loss does not touch.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(weights)
        loss, auxiliary = loss_function(weights)
        scale = scale(loss) if callable(scale) else scale
        target = loss if scale is None else loss * tf.cast(scale, loss.dtype)
    gradients = tape.gradient(target, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
    for gradient, weight in zip(gradients, weights, strict=True):
        gradient.set_shape(weight.shape)  # which a loop over steps asks for, and some lose
    return loss, auxiliary, unscaled(gradients, scale)


def unscaled(gradients: Tensors, scale: float | tf.Tensor | None) -> Tensors:
    """Divides gradients by what their loss was multiplied by."""
    if scale is None:
        return gradients
    return [gradient / tf.cast(scale, gradient.dtype) for gradient in gradients]
