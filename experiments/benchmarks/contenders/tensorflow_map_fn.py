"""TensorFlow: `tf.map_fn` over tasks in a `tf.function` without XLA, as the original authors did.

They differentiate the mean of the losses that `tf.map_fn` returns, and let it run all tasks of
the meta-batch in parallel. `tf.nn.moments` stops a gradient that second order needs, so mean and
variance are written out. In float64 this is also the reference for the other contenders' errors.

Source: https://github.com/cbfinn/maml, maml.py.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from experiments.benchmarks.work import Work

Tensors = list[tf.Tensor]


def forward(work: Work, weights: Tensors, x: tf.Tensor) -> tf.Tensor:
    """Returns logits ``[examples, ways]``, or predictions ``[examples, 1]``, of a network."""
    *hidden, kernel, bias = weights
    if work.network.kind == "sinusoid":
        for i in range(0, len(hidden), 2):
            x = tf.nn.relu(x @ hidden[i] + hidden[i + 1])
        return x @ kernel + bias
    for i in range(0, len(hidden), 3):
        x = _block(work, hidden[i : i + 3], x)
    if work.network.kind == "omniglot":
        return tf.reduce_mean(x, (1, 2)) @ kernel + bias
    return tf.reshape(x, [x.shape[0], -1]) @ kernel + bias


def _block(work: Work, weights: Tensors, x: tf.Tensor) -> tf.Tensor:
    kernel, bias, offset = weights
    stride = 2 if work.network.kind == "omniglot" else 1
    x = tf.nn.conv2d(x, kernel, stride, "SAME") + bias
    mean = tf.reduce_mean(x, (0, 1, 2))
    variance = tf.reduce_mean(tf.square(x - mean), (0, 1, 2))
    x = tf.nn.relu((x - mean) * tf.math.rsqrt(variance + 1e-3) + offset)
    return x if work.network.kind == "omniglot" else tf.nn.max_pool2d(x, 2, 2, "VALID")


def loss(work: Work, weights: Tensors, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Returns the mean loss over examples."""
    predictions = forward(work, weights, x)
    if work.network.kind == "sinusoid":
        return tf.reduce_mean(tf.square(predictions - y))
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, predictions))


def prepare(work: Work, weights: list, episodes: tuple) -> tuple[Callable[[], Any], Callable]:
    """See `experiments.benchmarks.contenders`; the dtype is that of the arrays."""
    weights = [tf.constant(weight) for weight in weights]
    data = tuple(tf.constant(array) for array in episodes)

    def inner_step(weights: Tensors, x: tf.Tensor, y: tf.Tensor) -> Tensors:
        with tf.GradientTape() as tape:
            tape.watch(weights)
            value = loss(work, weights, x, y)
        gradients = tape.gradient(value, weights)
        if work.order == "first":
            gradients = [tf.stop_gradient(gradient) for gradient in gradients]
        return [w - work.rate * g for w, g in zip(weights, gradients, strict=True)]

    def query_losses(weights: Tensors, task: tuple) -> tf.Tensor:
        x_support, y_support, x_query, y_query = task
        losses = []
        for step in range(work.steps + 1):
            if work.evaluation or step == work.steps:
                losses.append(loss(work, weights, x_query, y_query))
            if step < work.steps:
                weights = inner_step(weights, x_support, y_support)
        return tf.stack(losses)

    def meta_step(weights: Tensors, batch: tuple) -> Tensors:
        with tf.GradientTape() as tape:
            tape.watch(weights)
            losses = tf.map_fn(
                lambda task: query_losses(weights, task),
                batch,
                parallel_iterations=work.tasks,
                fn_output_signature=weights[0].dtype,
            )
            if work.evaluation:
                return [losses]
            value = tf.reduce_mean(losses)
        return [value, *tape.gradient(value, weights)]

    @tf.function(autograph=False)
    def compute(weights: Tensors, data: tuple) -> Tensors:
        if work.batches == 1:
            return meta_step(weights, tuple(array[0] for array in data))
        signature = [weights[0].dtype] * (len(weights) + 1)
        results = tf.map_fn(
            lambda batch: meta_step(weights, batch),
            data,
            parallel_iterations=1,
            fn_output_signature=signature,
        )
        return [tf.reduce_mean(result, 0) for result in results]

    return lambda: compute(weights, data), to_keras


def to_keras(output: Tensors) -> list[np.ndarray]:
    """Converts the loss and gradients, or the losses of an evaluation, to NumPy."""
    return [value.numpy() for value in output]
