"""What XLA refuses runs without it, once more; errors of users are raised as they are."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo

from keras_maml import MAML
from keras_maml.learners.without_xla import without_xla_where_it_fails


class Learner:
    """Calls a step as a learner does, and says how often."""

    tasks, jit_compile, steps = None, True, 0

    def __init__(self, step):
        self.step = step

    def forget_programs(self, tasks):
        self.forgotten = True

    @without_xla_where_it_fails
    def call(self, x):
        self.steps += 1
        return tf.function(self.step, jit_compile=self.jit_compile, autograph=False)(x)


def scan(x):
    """Products of running sums."""
    return keras.ops.scan(lambda sums, row: (sums + row, sums * row), tf.zeros_like(x[0]), x)[1]


def loop(x):
    return keras.ops.fori_loop(0, 3, lambda i, y: y * x, x)


def gradient_of(function):
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return tape.gradient(y, x)

    return gradient


def values_as_shape(x):
    return tf.zeros([tf.cast(2 * tf.random.stateless_uniform([], [1, 2]), tf.int32) + 1]) + x[0, 0]


@pytest.mark.parametrize(
    ("step", "refused"),
    [
        (lambda x: tf.math.special.bessel_j0(x), "BesselJ0 of .*bessel_j0"),
        (gradient_of(scan), "an operation of .*accumulator"),
        (gradient_of(loop), "an operation of .*accumulator"),
        (values_as_shape, "Fill of zeros"),
    ],
)
def test_what_xla_refuses_runs_without_it(step, refused, caplog):
    x = tf.constant([[0.5, 2.0], [1.5, -1.0], [3.0, 0.25]])
    learner = Learner(step)
    np.testing.assert_allclose(learner.call(x), step(x), rtol=1e-6)
    assert learner.steps == 2 and not learner.jit_compile
    (said,) = caplog.messages
    assert re.match(f"XLA cannot compile {refused}.*; the learner goes on", said)


def test_steps_that_were_taken_are_not_taken_again():
    def step(x):
        learner.optimizer.iterations.assign_add(1)
        return tf.function(tf.math.special.bessel_j0, jit_compile=True)(x)

    learner = Learner(step)
    learner.optimizer = keras.optimizers.SGD()
    call = without_xla_where_it_fails(lambda learner, x: learner.step(x))
    with pytest.raises(ValueError, match="BesselJ0 .* came after 1 step.* jit_compile=False"):
        call(learner, tf.ones([2]))
    assert int(learner.optimizer.iterations) == 1 and learner.jit_compile


@pytest.mark.parametrize("kind", [tf.errors.InvalidArgumentError, tf.errors.UnimplementedError])
def test_an_error_of_the_user_is_raised_as_it_is(kind, caplog):
    def step(x):
        raise kind(None, None, "mine: unsupported operations, not compilable by XLA")

    learner = Learner(step)
    with pytest.raises(kind, match="mine"):
        learner.call(tf.ones([2]))
    assert learner.steps == 1 and learner.jit_compile and not caplog.messages


class Scan(keras.layers.Layer):
    """Scans the second axis; unrolled, if asked."""

    def __init__(self, unroll):
        super().__init__()
        self.unroll = unroll

    def call(self, x):
        rows = keras.ops.transpose(x)
        if not self.unroll:
            return keras.ops.transpose(scan(rows))
        sums, outputs = 0.0 * rows[0], []
        for i in range(rows.shape[0]):
            outputs.append(sums * rows[i])
            sums += rows[i]
        return keras.ops.stack(outputs, -1)


class Refused(keras.layers.Layer):
    """Is what XLA lacks an operation for, as soon as it is told."""

    refused = False

    def call(self, x):
        return x + 0 * tf.math.special.bessel_j0(tf.stop_gradient(x)) if self.refused else x


def test_steps_before_a_refusal_are_not_repeated(caplog):
    case = zoo.CASES["dense"]
    refused, seen = Refused(), []
    learner = MAML(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1), refused]), 0.1)
    learner.compile("sgd", "mse")

    def refuse(epoch, logs=None):
        seen.append(epoch)
        if epoch == 1:
            refused.refused, learner.inner_steps = True, 2

    callback = keras.callbacks.LambdaCallback(on_epoch_begin=refuse)
    once = iter([zoo.episodes(case, seed=seed) for seed in range(3)])
    spec = keras.tree.map_structure(tf.TensorSpec.from_tensor, zoo.episodes(case))
    data = tf.data.Dataset.from_generator(lambda: once, output_signature=spec)
    data = data.take(1)  # an epoch
    history = learner.fit(data, epochs=3, callbacks=[callback], verbose=0)
    assert seen == history.epoch == [0, 1, 2]
    assert int(learner.optimizer.iterations) == 3 and not learner.jit_compile
    assert len(caplog.messages) == 1 and next(once, None) is None


def test_what_is_adapted_after_xla_has_refused_is_compiled_without_it():
    learner = MAML(zoo.CASES["dense"].build(), 0.1)
    learner.compile("sgd", zoo.CASES["dense"].loss)
    assert learner.jit_compile
    learner.jit_compile = False  # as it is after a fallback
    (support, _) = zoo.episodes(zoo.CASES["dense"])
    assert not learner.adapt(support[0][0], support[1][0]).jit_compile


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_a_layer_that_scans_has_the_meta_gradient_of_one_that_does_not():
    results = []
    for unroll in (False, True):
        keras.utils.set_random_seed(0)
        stack = [keras.layers.Dense(4), Scan(unroll), keras.layers.Dense(1)]
        learner = MAML(keras.Sequential([keras.Input((3,)), *stack]), 0.1)
        learner.compile("sgd", "mean_squared_error")
        results.append(learner.meta_gradients(*zoo.episodes(zoo.CASES["dense"])))
        assert learner.jit_compile == unroll
    tf.nest.map_structure(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8), *results)
