"""Derivatives that TensorFlow lacks are right, or refused by name."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.compiler.tf2xla.ops import gen_xla_ops

from keras_maml import MAML
from keras_maml.execution.derivatives import MissingDerivative, naming_layers


def normal(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=shape))


BOXES = tf.constant([[0.1, 0.2, 0.7, 0.9], [0.0, 0.0, 1.0, 0.6]])
SMOOTH = {
    "softsign": lambda x: tf.nn.softsign(x),
    "bicubic": lambda x: tf.image.resize(x, (7, 3), "bicubic"),
    "nearest": lambda x: tf.image.resize(x, (7, 3), "nearest"),
    "lanczos3": lambda x: tf.image.resize(x, (7, 3), "lanczos3", antialias=True),
    "area": lambda x: tf.image.resize(x, (7, 3), "area"),
    "crop_and_resize": lambda x: tf.image.crop_and_resize(x, BOXES, [0, 1], (3, 3)),
    "local_response_normalization": lambda x: tf.nn.local_response_normalization(
        x, depth_radius=1, bias=2.0, alpha=0.7, beta=0.6
    ),
}


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("name", SMOOTH)
def test_second_derivatives_equal_finite_differences(name, traced):
    x, direction = normal(2, 4, 5, 3), normal(2, 4, 5, 3, seed=1)
    # Some of these operations compute in float32 whatever they are given.
    single = "float64" if name == "softsign" else "float32"

    def first(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.cast(SMOOTH[name](tf.cast(tf.tanh(x), single)), "float64")
            loss = tf.reduce_sum(y**3)
        return tape.gradient(loss, x)

    def second(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            along = tf.reduce_sum(first(x) * direction)
        return tape.gradient(along, x)

    function = tf.function(second) if traced else second
    width = 1e-6 if single == "float64" else 2e-3
    differences = (first(x + width * direction) - first(x - width * direction)) / (2 * width)
    scale = float(tf.reduce_max(abs(differences)))
    tolerance = 1e-6 if single == "float64" else 5e-3
    np.testing.assert_allclose(function(x), differences, atol=tolerance * scale)


def learner_of(function, **settings):
    @keras.saving.register_keras_serializable("tests")
    class Apply(layers.Layer):
        def call(self, x):
            return function(x)

    stack = [layers.Dense(3, "tanh"), Apply(name="strange"), layers.Flatten(), layers.Dense(1)]
    model = keras.Sequential([keras.Input((4, 4, 3)), *stack])
    learner = MAML(model, 0.1, **settings)
    learner.compile("sgd", "mean_squared_error", jit_compile=False)
    return learner


def episode():
    x, y = np.ones((2, 3, 4, 4, 3), "float32"), np.ones((2, 3, 1), "float32")
    return (x, y), (x, y)


FAKE = {
    "ResizeBilinearGrad": lambda x: tf.image.resize(x, (7, 3), "bilinear"),
    "FakeQuantWithMinMaxArgsGradient": lambda x: tf.quantization.fake_quant_with_min_max_args(x),
    "Dilation2DBackpropInput": lambda x: tf.nn.dilation2d(
        x, tf.ones([2, 2, 3]), [1] * 4, "SAME", "NHWC", [1] * 4
    ),
}


@pytest.mark.parametrize("task_map", ["auto", "sequential"])
@pytest.mark.parametrize("operation", FAKE)
def test_a_missing_second_derivative_names_the_layer_and_the_remedy(operation, task_map):
    learner = learner_of(FAKE[operation], task_map=task_map)
    names = [layer.name for layer in learner.model.layers]
    with (
        naming_layers(names),
        pytest.raises(MissingDerivative, match=f"{operation}.*'strange'.*first_order=True"),
    ):
        learner.meta_gradients(*episode())
    learner = learner_of(FAKE[operation], task_map=task_map, first_order=True)
    with naming_layers(names):
        loss, _ = learner.meta_gradients(*episode())
    assert np.isfinite(loss)


def test_a_missing_first_derivative_names_the_layer():
    learner = learner_of(lambda x: tf.image.adjust_hue(x, 0.1), first_order=True)
    with naming_layers(["strange"]), pytest.raises(MissingDerivative, match="AdjustHue.*'strange'"):
        learner.meta_gradients(*episode())


def test_what_has_a_derivative_nobody_asks_for_is_not_refused():
    learner = learner_of(lambda x: x + tf.stop_gradient(FAKE["Dilation2DBackpropInput"](x)))
    with naming_layers(["strange"]):
        assert np.isfinite(learner.meta_gradients(*episode())[0])


def test_other_programs_see_what_they_saw():
    x = tf.ones([3])
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.quantization.fake_quant_with_min_max_args(x)
        first = tape.gradient(y, x)
    assert first.numpy().tolist() == [1, 1, 1]
    assert outer.gradient(first, x) is None


def test_slices_are_differentiated_twice_in_xla():
    """There the gradient of a slice is a write, of which TensorFlow has no derivative."""

    @tf.function(jit_compile=True)
    def derivatives(x, update):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                cubes = tf.slice(x, [1], [2]) ** 3
            first = inner.gradient(cubes, x)
        with tf.GradientTape() as tape:
            tape.watch([x, update])
            written = gen_xla_ops.xla_dynamic_update_slice(x, update, [2])
        factors = tf.range(1.0, 5.0)
        return outer.gradient(first, x), *tape.gradient(written, [x, update], factors)

    second, whole, part = derivatives(tf.constant([1.0, 2.0, 3.0, 4.0]), tf.constant([5.0]))
    np.testing.assert_allclose(second, [0, 12, 18, 0])  # 6 x
    np.testing.assert_allclose(whole, [1, 2, 0, 4])
    np.testing.assert_allclose(part, [3])
