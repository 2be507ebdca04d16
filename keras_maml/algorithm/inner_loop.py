"""The inner loop: pure functions from weights and a support loss to fast weights.

Nothing here knows of Keras, of tasks or of batches: a loss function takes the weights (a list
of tensors) and a state (whatever the model carries from one forward pass to the next, such as
batch statistics and random seeds) and returns the loss and the next state.

Source: Finn, Abbeel, Levine, Model-Agnostic Meta-Learning, ICML 2017, algorithm 1.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

Weights = list[tf.Tensor]
State = Any
LossFunction = Callable[[Weights, State], tuple[tf.Tensor, State]]
UpdateRule = Callable[[Weights, Weights, int | tf.Tensor], Weights]


def loss_gradients(
    loss_function: Callable[[Weights], tuple[tf.Tensor, Any]], weights: Weights
) -> tuple[tf.Tensor, Any, Weights]:
    """Differentiates a loss with respect to a list of weights.

    Args:
        loss_function: Maps weights to ``(scalar loss, anything else)``.
        weights: Tensors of any shape and floating dtype.

    Returns:
        The loss, what came with it, and the gradients: dense tensors, zero for a weight that
        the loss does not touch.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(weights)
        loss, auxiliary = loss_function(weights)
    gradients = tape.gradient(loss, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return loss, auxiliary, [tf.convert_to_tensor(gradient) for gradient in gradients]


def inner_step(
    loss_function: LossFunction,
    weights: Weights,
    state: State,
    *,
    step: int | tf.Tensor,
    update_rule: UpdateRule,
    first_order: bool = False,
) -> tuple[Weights, State]:
    """Takes one inner step.

    Args:
        loss_function: The loss on the support set.
        weights: The weights before the step.
        state: The state before the step.
        step: The number of the step, counted from 0.
        update_rule: Maps ``(weights, gradients, step)`` to new weights.
        first_order: Stops the inner gradient, so that an outer tape sees the step as a shift
            by a constant (paper, section 5.2).

    Returns:
        The fast weights and the state after the step.
    """
    _, state, gradients = loss_gradients(lambda values: loss_function(values, state), weights)
    if first_order:
        gradients = [tf.stop_gradient(gradient) for gradient in gradients]
    return update_rule(weights, gradients, step), state


def adapt(
    loss_function: LossFunction,
    weights: Weights,
    state: State = None,
    *,
    steps: int,
    update_rule: UpdateRule,
    first_order: bool = False,
) -> tuple[Weights, State]:
    """Adapts weights to one task by a few differentiable inner steps.

    Args:
        loss_function: The loss on the support set.
        weights: The initial weights.
        state: The initial state.
        steps: How many inner steps to take; 0 returns the weights as they are.
        update_rule: Maps ``(weights, gradients, step)`` to new weights.
        first_order: See `inner_step`.

    Returns:
        The fast weights and the last state.

    Example:
        >>> from keras_maml.algorithm.update_rules import GradientDescent
        >>> square = lambda weights, state: (weights[0] ** 2, state)
        >>> fast, _ = adapt(square, [tf.constant(1.0)], steps=2, update_rule=GradientDescent(0.25))
        >>> float(fast[0])
        0.25
    """
    for step in range(steps):
        weights, state = inner_step(
            loss_function,
            weights,
            state,
            step=step,
            update_rule=update_rule,
            first_order=first_order,
        )
    return weights, state
