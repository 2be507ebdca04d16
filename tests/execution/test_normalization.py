"""Standardisation equals the plain formula in value and in every derivative."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_maml.execution.forms import differentiable_forms
from keras_maml.execution.normalization import moments, standardize

EPSILON = 0.1


def normal(*shape, seed=0, dtype="float64"):
    return tf.constant(np.random.default_rng([seed, *shape]).normal(size=shape), dtype)


def plain(x, axes, epsilon):
    """What `standardize` says it computes, left to automatic differentiation."""
    mean = tf.reduce_mean(x, axes, keepdims=True)
    variance = tf.reduce_mean((x - mean) ** 2, axes, keepdims=True)
    rate = 1 / tf.sqrt(variance + epsilon)
    return (x - mean) * rate, rate


def plain_moments(x, axes):
    mean = tf.reduce_mean(x, axes, keepdims=True)
    variance = tf.reduce_mean((x - mean) ** 2, axes, keepdims=True)
    return tf.squeeze(mean, axes), tf.squeeze(variance, axes)


def both(outputs):
    """A function of the two outputs that is linear in neither."""
    one, other = outputs
    weights = tf.reshape(tf.range(1.0, tf.size(one, tf.int64) + 1), tf.shape(one))
    weights = tf.cast(tf.cos(weights), one.dtype)
    return tf.reduce_sum(weights * tf.sin(one)) + tf.reduce_sum(other**3)


def first_only(outputs):
    return both((outputs[0], tf.zeros_like(outputs[1])))


def second_only(outputs):
    return both((tf.zeros_like(outputs[0]), outputs[1]))


def orders(function, x, ways=None):
    """A scalar function and its derivatives up to the third, along fixed directions but one."""
    ways = ways or [normal(*x.shape, seed=seed) for seed in (8, 9)]
    with tf.GradientTape() as third:
        third.watch(x)
        with tf.GradientTape() as second:
            second.watch(x)
            with tf.GradientTape() as first:
                first.watch(x)
                value = function(x)
            one = first.gradient(value, x)
            slope = tf.reduce_sum(ways[0] * one)
        two = second.gradient(slope, x)
        slope = tf.reduce_sum(ways[1] * two)
    return [value, one, two, third.gradient(slope, x)]


def assert_close(found, expected):
    for ours, reference in zip(found, expected, strict=True):
        scale = np.abs(reference).max()
        assert scale > 1e-3
        np.testing.assert_allclose(ours, reference, rtol=1e-10, atol=1e-10 * scale)


LAYOUTS = [
    ((6, 3), [0]),
    ((3, 4, 5, 2), [0, 1, 2]),
    ((3, 4, 5, 2), [2, 0, 1]),
    ((3, 4, 5, 2), [-4, -3, -2]),
    ((3, 2, 4, 5), [0, 2, 3]),  # channels first
    ((4, 2, 5), [0, 2]),
    ((4, 5), [1]),
    ((11, 2), [0]),
]


@pytest.mark.parametrize(("shape", "axes"), LAYOUTS)
def test_standardisation_equals_the_plain_formula_up_to_third_derivatives(shape, axes):
    x = normal(*shape) + 1
    for ours, reference in zip(standardize(x, axes, EPSILON), plain(x, axes, EPSILON), strict=True):
        assert ours.shape == reference.shape
        np.testing.assert_allclose(ours, reference, rtol=1e-10, atol=1e-10)
    for read in (both, first_only, second_only):
        found = orders(lambda x, read=read: read(standardize(x, axes, EPSILON)), x)
        assert_close(found, orders(lambda x, read=read: read(plain(x, axes, EPSILON)), x))


@pytest.mark.parametrize(("shape", "axes"), LAYOUTS)
def test_moments_equal_the_plain_formula_up_to_third_derivatives(shape, axes):
    x = normal(*shape) + 1
    for ours, reference in zip(moments(x, axes), plain_moments(x, axes), strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-12)
    for ours, reference in zip(moments(x, axes), tf.nn.moments(x, axes), strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-12)
    kept = [n if i not in [a % len(shape) for a in axes] else 1 for i, n in enumerate(shape)]
    assert all(moment.shape == kept for moment in moments(x, axes, keepdims=True))

    def read(pair):
        mean, variance = pair
        return tf.reduce_sum(tf.sin(mean) + variance**3 * tf.cos(mean))

    found = orders(lambda x: read(moments(x, axes)), x)
    assert_close(found, orders(lambda x: read(plain_moments(x, axes)), x))


@pytest.mark.parametrize(("shape", "axes"), [((3, 2, 3, 2), [0, 1, 2]), ((3, 2, 4), [0, 2])])
def test_derivatives_of_standardisation_equal_finite_differences(shape, axes):
    x, away = normal(*shape), normal(*shape, seed=1)
    compute = tf.function(
        lambda x: orders(lambda x: both(standardize(x, axes, EPSILON)), x), autograph=False
    )
    _, one, two, three = compute(x)
    h = 1e-4
    steps = {n: compute(x + n * h * away) for n in (-2, -1, 1, 2)}

    def difference(read):
        values = {n: float(read(results)) for n, results in steps.items()}
        return (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * h)

    for gradient, read in (
        (one, lambda results: results[0]),
        (two, lambda results: tf.reduce_sum(normal(*shape, seed=8) * results[1])),
        (three, lambda results: tf.reduce_sum(normal(*shape, seed=9) * results[2])),
    ):
        exact = float(tf.reduce_sum(gradient * away))
        assert abs(exact) > 1e-2
        assert difference(read) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize(
    ("known", "axes"),
    [
        ((None, None, None, 2), [0, 1, 2]),
        ((None, 2, None, None), [0, 2, 3]),
        ((None, 4, 5, 2), [0]),
    ],
)
def test_leading_dimensions_may_be_unknown(known, axes):
    x = normal(3, *(n or size for n, size in zip(known[1:], (4, 5, 2), strict=True)))
    ways = [normal(*x.shape, seed=seed) for seed in (8, 9)]
    compute = tf.function(
        lambda x: orders(lambda x: both(standardize(x, axes, EPSILON)), x, ways),
        input_signature=[tf.TensorSpec(known, tf.float64)],
        autograph=False,
    )
    found = compute(x)
    assert_close(found, orders(lambda x: both(plain(x, axes, EPSILON)), x))


def test_compiled_standardisation_is_the_same():
    x = normal(3, 4, 5, 2)
    compute = tf.function(
        lambda x: orders(lambda x: both(standardize(x, [0, 1, 2], EPSILON)), x),
        jit_compile=True,
        autograph=False,
    )
    assert_close(compute(x), orders(lambda x: both(plain(x, [0, 1, 2], EPSILON)), x))


def test_a_constant_batch_stays_finite():
    x = tf.ones([4, 3], "float64")
    results = orders(lambda x: both(standardize(x, [0], EPSILON)), x)
    assert all(np.all(np.isfinite(result)) for result in results)


# --- the layer -------------------------------------------------------------------------------


def batch_normalization(axis, dtype, **settings):
    layer = keras.layers.BatchNormalization(axis, epsilon=0.01, dtype=dtype, **settings)
    model = keras.Sequential([keras.Input((4, 5, 3), dtype=layer.compute_dtype), layer])
    for i, variable in enumerate(layer.trainable_variables):
        variable.assign(normal(*variable.shape, seed=i) + 1)
    return layer, model


def call(model, x, training=True):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = model(x, training=training)
        loss = tf.reduce_sum(tf.sin(tf.cast(y, "float64")))
    return y, *tape.gradient(loss, [x, *model.trainable_variables])


@pytest.mark.parametrize("route", ["vectorized", "compiled", "plain"])
@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "float64"])
@pytest.mark.parametrize("axis", [1, -1])
def test_batch_normalisation_equals_keras_in_training(axis, dtype, route):
    layer, model = batch_normalization(axis, dtype, momentum=0.0)
    x = normal(6, 4, 5, 3, dtype=layer.compute_dtype) * 2 + 1
    expected = call(model, x)
    statistics = [variable.numpy() for variable in layer.non_trainable_variables]
    layer.moving_mean.assign(tf.zeros_like(layer.moving_mean))
    layer.moving_variance.assign(tf.ones_like(layer.moving_variance))
    with differentiable_forms(model, route=route):
        found = call(model, x)
    assert found[0].dtype == layer.compute_dtype
    # The sums run in single precision at least; a float16 result is rounded once more.
    epsilon = np.finfo(layer.compute_dtype).eps
    for ours, reference in zip(found, expected, strict=True):
        tolerance = 8 * max(epsilon, np.finfo(reference.dtype.as_numpy_dtype).eps)
        scale = np.abs(reference).max()
        assert scale > 0.1
        np.testing.assert_allclose(ours, reference, rtol=tolerance, atol=tolerance * scale)
    for variable, reference in zip(layer.non_trainable_variables, statistics, strict=True):
        np.testing.assert_allclose(variable, reference, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
@pytest.mark.parametrize("axis", [1, -1])
def test_the_moving_statistics_become_those_of_the_batch(axis, dtype):
    layer, model = batch_normalization(axis, dtype)
    x = normal(6, 4, 5, 3, dtype=layer.compute_dtype) * 2 + 1
    axes = tuple(i for i in range(4) if i != axis % 4)
    with differentiable_forms(model, route="plain", write_statistics=False):
        model(x)
    assert np.all(layer.moving_mean == 0) and np.all(layer.moving_variance == 1)
    with differentiable_forms(model, route="plain"):
        model(x)
    exact = x.numpy().astype("float64")
    np.testing.assert_allclose(layer.moving_mean, exact.mean(axes), rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, exact.var(axes), rtol=1e-5)
    assert layer.momentum == 0.99


@pytest.mark.parametrize("route", ["vectorized", "compiled"])
@pytest.mark.parametrize(("kind", "sizes"), [("Conv2D", (2, 3)), ("Dense", (2,))])
def test_a_bias_before_it_is_in_the_statistics_and_has_no_gradient(kind, sizes, route, float64):
    # In double precision: Keras's own gradient in single is off by up to 1e-4 of its largest value.
    biased = getattr(keras.layers, kind)(*sizes)
    layer = keras.layers.BatchNormalization(momentum=0.0)
    model = keras.Sequential([keras.Input((4, 5, 3)), biased, layer])
    biased.bias.assign([3.0, -2.0])
    x = normal(6, 4, 5, 3)
    expected = call(model, x)
    statistics = [variable.numpy() for variable in layer.non_trainable_variables]
    layer.moving_mean.assign(tf.zeros_like(layer.moving_mean))

    @tf.function(autograph=False)
    def lent():
        with differentiable_forms(model, route=route):
            return call(model, x)

    found = lent()
    assert found[3] is None  # not even the rounding errors that automatic differentiation leaves
    for ours, reference in zip(found, expected, strict=True):
        if ours is not None:
            np.testing.assert_allclose(ours, reference, rtol=1e-10, atol=1e-12)
    for variable, reference in zip(layer.non_trainable_variables, statistics, strict=True):
        np.testing.assert_allclose(variable, reference, rtol=1e-12)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize(("scale", "centre"), [(True, False), (False, True), (False, False)])
def test_scale_and_centre_may_be_left_out(axis, scale, centre):
    layer, model = batch_normalization(axis, "float64", scale=scale, center=centre)
    x = normal(6, 4, 5, 3)
    expected = call(model, x)
    with differentiable_forms(model, route="vectorized"):
        found = call(model, x)
    assert len(found) == 2 + scale + centre
    for ours, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-6, atol=1e-6)


def test_stored_statistics_are_used_as_keras_uses_them_in_inference():
    layer, model = batch_normalization(-1, "float64")
    layer.moving_mean.assign([1.0, -2.0, 0.5])
    layer.moving_variance.assign([4.0, 0.25, 1.0])
    x = normal(6, 4, 5, 3)
    with differentiable_forms(model, route="vectorized", batch_statistics="stored"):
        found = call(model, x)
    for ours, reference in zip(found, call(model, x, training=False), strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-12)


def test_moments_take_one_axis_as_a_number():
    x = tf.constant([[1.0, 3.0], [2.0, 6.0]])
    for found, expected in zip(moments(x, 1), tf.nn.moments(x, 1), strict=True):
        np.testing.assert_allclose(found, expected)


def test_moments_of_half_precision_do_not_overflow():
    mean, variance = moments(tf.fill([300, 300], tf.constant(300.0, tf.float16)), [0, 1])
    assert (mean.dtype, float(mean), float(variance)) == (tf.float16, 300.0, 0.0)
