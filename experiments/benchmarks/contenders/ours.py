"""keras_maml as it comes: `MAML.meta_gradients` and `MAML.trajectories`."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from experiments.benchmarks.work import Work
from keras_maml import MAML, networks


def build_network(work: Work, seed: int = 0) -> keras.Model:
    """Returns the line's network."""
    shape, filters = work.network.image_shape, work.network.filters
    if work.network.kind == "sinusoid":
        units = (filters,) * work.network.layers
        return networks.sinusoid_regressor(*shape, units=units, seed=seed)
    if work.network.kind == "omniglot":
        return networks.omniglot_classifier(work.ways, filters, seed=seed)
    return networks.mini_imagenet_classifier(work.ways, filters, shape, seed=seed)


def build_learner(work: Work, weights: list[np.ndarray], **options: Any) -> MAML:
    """Returns the compiled learner of a line.

    Args:
        work: The line.
        weights: The initial trainable weights.
        **options: More arguments of `MAML`.
    """
    model = build_network(work)
    for variable, weight in zip(model.trainable_variables, weights, strict=True):
        variable.assign(weight)
    first_order = work.order == "first"
    learner = MAML(model, work.rate, work.steps, first_order=first_order, **options)
    if work.network.kind == "sinusoid":
        loss = keras.losses.MeanSquaredError()
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile(loss=loss)
    return learner


def prepare(
    work: Work, weights: list, episodes: tuple, **options: Any
) -> tuple[Callable[[], Any], Callable]:
    """See `experiments.benchmarks.contenders`; ``options`` are more arguments of `MAML`."""
    keras.config.set_floatx(weights[0].dtype.name)
    learner = build_learner(work, weights, **options)
    first = [tf.constant(array[0]) for array in episodes]
    support, query = tuple(first[:2]), tuple(first[2:])
    one = tuple(tuple(array[:1] for array in part) for part in (support, query))
    learner.build_on(one)  # of all tasks it would hold a copy
    if work.evaluation:
        return lambda: [learner.trajectories(support, query, steps=work.steps)["loss"]], to_numpy
    if work.batches == 1:
        return lambda: meta_step(learner, support, query), to_numpy

    data = [tf.constant(array) for array in episodes]
    # The checks need values, and there are none while a loop is traced.
    vars(learner)["_check_arrays"] = lambda support, query, _: (support, query)

    def add(index: tf.Tensor, total: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        x_support, y_support, x_query, y_query = [array[index] for array in data]
        values = meta_step(learner, (x_support, y_support), (x_query, y_query))
        return index + 1, [t + v for t, v in zip(total, values, strict=True)]

    @tf.function(jit_compile=True, autograph=False)
    def many() -> list[tf.Tensor]:
        zeros = [tf.zeros(shape, weights[0].dtype) for shape in ((), *(w.shape for w in weights))]
        _, total = tf.while_loop(lambda index, _: index < work.batches, add, (0, zeros))
        return [value / work.batches for value in total]

    return many, to_numpy


def meta_step(learner: MAML, support: Any, query: Any) -> list[tf.Tensor]:
    """Returns the loss and the meta-gradient in one list."""
    loss, gradients = learner.meta_gradients(support, query)
    return [loss, *gradients]


def to_numpy(output: Any) -> list[np.ndarray]:
    """Converts the loss and gradients, or the losses of an evaluation, to NumPy."""
    return [value.numpy() for value in output]
