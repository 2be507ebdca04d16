"""The networks and the losses of one task in JAX, as functions of a list of weights."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.benchmarks.work import Work

Arrays = list[jax.Array]


def forward(work: Work, weights: Arrays, x: jax.Array) -> jax.Array:
    """Returns logits ``[examples, ways]``, or predictions ``[examples, 1]``, of a network."""
    *hidden, kernel, bias = weights
    if work.network.kind == "sinusoid":
        for i in range(0, len(hidden), 2):
            x = jax.nn.relu(x @ hidden[i] + hidden[i + 1])
        return x @ kernel + bias
    for i in range(0, len(hidden), 3):
        x = _block(work, hidden[i : i + 3], x)
    x = x.mean((1, 2)) if work.network.kind == "omniglot" else x.reshape(len(x), -1)
    return x @ kernel + bias


def _block(work: Work, weights: Arrays, x: jax.Array) -> jax.Array:
    kernel, bias, offset = weights
    strides = (2, 2) if work.network.kind == "omniglot" else (1, 1)
    layout = ("NHWC", "HWIO", "NHWC")
    x = lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=layout) + bias
    mean = x.mean((0, 1, 2))
    variance = jnp.square(x - mean).mean((0, 1, 2))
    x = jax.nn.relu((x - mean) * lax.rsqrt(variance + 1e-3) + offset)
    if work.network.kind == "omniglot":
        return x
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def loss(work: Work, weights: Arrays, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the mean loss over examples."""
    predictions = forward(work, weights, x)
    if work.network.kind == "sinusoid":
        return jnp.square(predictions - y).mean()
    log_probabilities = jax.nn.log_softmax(predictions)
    return -jnp.take_along_axis(log_probabilities, y[:, None], axis=1).mean()


def task_functions(work: Work) -> tuple[Callable, Callable]:
    """Returns the meta-gradient and the trajectory of one task.

    Returns:
        ``meta_gradient(weights, x_support, y_support, x_query, y_query)``, which gives the query
        loss and its gradients in one list, and ``trajectory`` of the same arguments, which gives
        the query losses ``[steps + 1]``.
    """

    def inner_step(weights: Arrays, x: jax.Array, y: jax.Array) -> Arrays:
        gradients = jax.grad(lambda weights: loss(work, weights, x, y))(weights)
        if work.order == "first":
            gradients = lax.stop_gradient(gradients)
        return [w - work.rate * g for w, g in zip(weights, gradients, strict=True)]

    def adapted_loss(weights, x_support, y_support, x_query, y_query) -> jax.Array:
        for _ in range(work.steps):
            weights = inner_step(weights, x_support, y_support)
        return loss(work, weights, x_query, y_query)

    def meta_gradient(weights, *task) -> Arrays:
        value, gradients = jax.value_and_grad(adapted_loss)(weights, *task)
        return [value, *gradients]

    def trajectory(weights, x_support, y_support, x_query, y_query) -> jax.Array:
        losses = [loss(work, weights, x_query, y_query)]
        for _ in range(work.steps):
            weights = inner_step(weights, x_support, y_support)
            losses.append(loss(work, weights, x_query, y_query))
        return jnp.stack(losses)

    return meta_gradient, trajectory


def to_keras(output: Arrays) -> list[np.ndarray]:
    """Converts the loss and gradients, or the losses of an evaluation, to NumPy."""
    return [np.asarray(value) for value in output]
