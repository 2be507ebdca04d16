"""Resizing is TensorFlow's, linear, and exact to any order of derivative."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_maml.execution.resizing import resize, resize_layer, upsample

METHODS = ["nearest", "bilinear", "bicubic", "area", "lanczos3", "lanczos5", "gaussian"]


def normal(*shape, seed=0, dtype="float32"):
    return tf.constant(np.random.default_rng(seed).normal(size=shape), dtype)


def gradient(function, x, upstream):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
    return tape.gradient(y, x, upstream)


@pytest.mark.parametrize("size", [(7, 4), (3, 11)])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_it_is_what_tensorflow_computes(method, antialias, size):
    x = normal(2, 5, 6, 3)
    expected = tf.image.resize(x, size, method, antialias=antialias)
    np.testing.assert_allclose(resize(x, size, method, antialias), expected, atol=2e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_is_the_transpose_and_its_gradient_the_operator(method):
    x, y = normal(2, 5, 6, 3, dtype="float64"), normal(2, 8, 3, 3, seed=1, dtype="float64")

    def function(x):
        return resize(x, (8, 3), method)

    back = lambda y: gradient(function, x, y)  # noqa: E731
    inner = tf.reduce_sum(function(x) * y)
    np.testing.assert_allclose(tf.reduce_sum(x * back(y)), inner, rtol=1e-12)
    np.testing.assert_allclose(gradient(back, y, x), function(x), rtol=1e-12)
    assert gradient(lambda x: gradient(back, y, x), x, y).shape == x.shape  # third order


def test_an_unknown_size_is_refused():
    function = tf.function(lambda x: resize(x, (4, 4)))
    with pytest.raises(NotImplementedError, match="height or width"):
        function.get_concrete_function(tf.TensorSpec([1, None, 3, 1]))


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_layers_compute_what_they_did(data_format):
    x = normal(2, 5, 6, 4)
    for interpolation in ("nearest", "bilinear", "bicubic"):
        settings = {"interpolation": interpolation, "data_format": data_format}
        layer = layers.UpSampling2D((2, 3), **settings)
        np.testing.assert_allclose(upsample(layer, x), layer(x), atol=2e-6)
        for size in ((3, 9), (8, 4)):
            for more in ({}, {"antialias": True}, {"crop_to_aspect_ratio": True}):
                layer = layers.Resizing(*size, **settings, **more)
                np.testing.assert_allclose(resize_layer(layer, x), layer(x), atol=2e-6)


def test_integers_are_resized_by_keras():
    layer = layers.Resizing(3, 3, dtype="uint8")
    x = tf.cast(255 * tf.random.uniform([2, 5, 5, 1], seed=1), "uint8")
    np.testing.assert_array_equal(resize_layer(layer, x), layer(x))


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_second_derivatives_of_many_tasks_compile(method):
    x, upstream = normal(3, 2, 4, 4, 1), normal(2, 8, 8, 1, seed=2)

    def one(x):
        function = lambda x: tf.tanh(resize(x, (8, 8), method))  # noqa: E731
        return gradient(lambda x: gradient(function, x, upstream) ** 2, x, tf.ones_like(x))

    @tf.function(jit_compile=True, autograph=False)
    def all_of_them(x):
        return tf.vectorized_map(one, x, fallback_to_while_loop=False)

    np.testing.assert_allclose(all_of_them(x), tf.stack([one(t) for t in x]), rtol=1e-4, atol=1e-4)
    assert keras.config.floatx() == "float32"
