"""Convolution and pooling equal TensorFlow's own, in value and in every derivative."""

import dataclasses
import functools
import logging
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_maml import MAML
from keras_maml.execution import convolution
from keras_maml.execution.forms import differentiable_forms, first_call
from keras_maml.execution.linear import matrix_product
from keras_maml.execution.placement import PROCESSOR, using


def normal(*shape, seed=0, dtype="float64"):
    return tf.constant(np.random.default_rng([seed, *shape]).normal(size=shape), dtype)


def theirs(x, w, strides, padding, dilation):
    form = {1: "NWC", 2: "NHWC", 3: "NDHWC"}[len(strides)]
    return tf.nn.convolution(x, w, strides, padding.upper(), form, dilation)


def natively(x, w, strides, padding, dilation):
    assert set(strides) == {1}
    return convolution.natively(x, w, padding, dilation)


def by_convolutions_only(*arguments):
    with using(dataclasses.replace(PROCESSOR, max_terms=0)):
        return natively(*arguments)


def by_sums(*arguments):
    with using(dataclasses.replace(PROCESSOR, max_terms=10**9)):
        return natively(*arguments)


def by_turned_products(*arguments):
    return convolution.by_patches(*arguments, product=matrix_product)


BY_PATCHES = [convolution.by_patches, by_turned_products]
FORMS = [*BY_PATCHES, by_convolutions_only, by_sums]


def orders(function, *inputs):
    """The value, the first gradients, and the gradients of a function of these."""
    with tf.GradientTape(watch_accessed_variables=False) as outer:
        outer.watch(inputs)
        with tf.GradientTape(watch_accessed_variables=False) as inner:
            inner.watch(inputs)
            y = function(*inputs)
            loss = tf.reduce_sum(tf.sin(y))
        first = inner.gradient(loss, inputs)
        mixed = tf.add_n([tf.reduce_sum(tf.sin(gradient)) for gradient in first])
    return [y, *first, *outer.gradient(mixed, inputs)]


def assert_same(found, expected):
    for ours, reference in zip(found, expected, strict=True):
        assert np.abs(reference).max() > 1e-3
        np.testing.assert_allclose(ours, reference, rtol=1e-10, atol=1e-11)


# --- all forms of a convolution -------------------------------------------------------------

UNSTRIDED = [
    ((6, 5), (1, 1), 1),
    ((6, 5), (2, 2), 1),
    ((6, 6), (3, 3), 1),
    ((5, 7), (3, 3), 1),
    ((5, 6), (2, 3), 1),
    ((6, 7), (5, 5), 1),
    ((5, 6), (2, 2), 2),
    ((6, 7), (3, 3), 2),
    ((6, 7), (2, 3), 2),
    ((9, 10), (5, 5), 2),
]
STRIDED = [
    ((6, 5), (1, 1), 2),
    ((6, 5), (2, 2), 2),
    ((6, 7), (3, 3), 2),
    ((7, 8), (3, 3), 3),
    ((7, 6), (2, 3), 3),
    ((8, 7), (5, 5), 2),
]
OTHER_RANKS = [
    ((7,), (3,), 1, 1),
    ((8,), (2,), 1, 3),
    ((8,), (4,), 2, 1),
    ((3, 4, 5), (2, 3, 2), 1, 1),
    ((3, 4, 5), (1, 2, 3), 2, 1),
    ((5, 4, 5), (2, 2, 2), 1, 2),
]


def check_convolution(forms, sizes, window, stride, dilation):
    x, w = normal(2, *sizes, 3), normal(*window, 3, 2, seed=1) / 3
    for padding in ("same", "valid"):
        settings = ((stride,) * len(window), padding, (dilation,) * len(window))
        expected = orders(lambda x, w, s=settings: theirs(x, w, *s), x, w)
        for form in forms:
            assert_same(orders(lambda x, w, f=form, s=settings: f(x, w, *s), x, w), expected)


# Cases share a test where they can: the fixture that every test has takes longer than a case.
@pytest.mark.parametrize(("sizes", "window", "dilation"), UNSTRIDED)
def test_all_forms_equal_tensorflow_up_to_second_derivatives(sizes, window, dilation):
    check_convolution(FORMS, sizes, window, 1, dilation)


@pytest.mark.parametrize(("sizes", "window", "stride"), STRIDED)
def test_strided_patches_equal_tensorflow(sizes, window, stride):
    check_convolution(BY_PATCHES, sizes, window, stride, 1)


@pytest.mark.parametrize(("sizes", "window", "stride", "dilation"), OTHER_RANKS)
def test_patches_in_one_and_three_dimensions_equal_tensorflow(sizes, window, stride, dilation):
    check_convolution(BY_PATCHES, sizes, window, stride, dilation)


@pytest.mark.parametrize("form", FORMS)
def test_third_derivatives_equal_finite_differences(form):
    x, w = normal(2, 5, 4, 2), normal(3, 2, 2, 2, seed=1) / 3
    ways = (normal(*x.shape, seed=2), normal(*w.shape, seed=3))

    @tf.function
    def second(t):
        convolve = lambda x, w: form(x, w, (1, 1), "same", (1, 1))  # noqa: E731
        _, _, _, to_x, to_w = orders(convolve, x + t * ways[0], w + t * ways[1])
        return tf.reduce_sum(tf.cos(to_x)) + tf.reduce_sum(tf.cos(to_w))

    at = tf.constant(0.0, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(at)
        value = second(at)
    exact = float(tape.gradient(value, at))
    h = 1e-4
    near, far = (float(second(at + n * h) - second(at - n * h)) for n in (1, 2))
    assert abs(exact) > 1
    assert exact == pytest.approx((8 * near - far) / (12 * h), rel=1e-7)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("form", FORMS)
def test_shorter_floats_agree_with_double_precision_to_their_rounding(form, dtype):
    x, w = normal(2, 4, 5, 3, dtype=dtype), normal(3, 3, 3, 2, seed=1, dtype=dtype)
    dy = normal(2, 4, 5, 2, seed=2, dtype=dtype)

    def compute(convolve, x, w, dy):
        with tf.GradientTape() as tape:
            tape.watch([x, w])
            y = convolve(x, w, (1, 1), "same", (1, 1))
        assert y.dtype == x.dtype
        return [y, *tape.gradient(y, [x, w], dy)]

    exact = compute(theirs, *(tf.cast(t, "float64") for t in (x, w, dy)))
    sizes = compute(theirs, *(tf.cast(abs(t), "float64") for t in (x, w, dy)))
    summands = (3 * 3 * 3, 3 * 3 * 2, 2 * 4 * 5)  # of y, dx, dw
    unit = {"bfloat16": 2.0**-8, "float32": 2.0**-24}[dtype]  # half an epsilon
    for found, true, size, n in zip(compute(form, x, w, dy), exact, sizes, summands, strict=True):
        assert found.dtype == dtype
        # Higham, Accuracy and Stability, section 3.1: any order of n products and their sum.
        bound = n * unit / (1 - n * unit) * size
        assert np.all(abs(tf.cast(found, "float64") - true) <= bound)


def test_an_unknown_spatial_size_is_refused():
    @tf.function(input_signature=[tf.TensorSpec([1, None, 4, 1])])
    def convolve(x):
        return convolution.by_patches(x, tf.ones([2, 2, 1, 1]), (1, 1), "same")

    with pytest.raises(NotImplementedError, match="spatial size of the input is unknown"):
        convolve.get_concrete_function()


# --- layers ----------------------------------------------------------------------------------


def layer_orders(layer, route, x, turn=None):
    """`orders` of a layer's outputs with respect to its inputs and weights."""
    model = keras.Sequential([keras.Input(x.shape[1:]), layer])
    weights = [normal(*v.shape, seed=i) / 2 for i, v in enumerate(layer.trainable_variables)]

    def apply(x, *weights):
        mapping = list(zip(layer.trainable_variables, weights, strict=True))
        with differentiable_forms(model, route=route), keras.StatelessScope(mapping):
            y = model(x)
        return y if turn is None else tf.transpose(y, turn)

    return orders(apply, x, *weights)


def convolution_2d(data_format="channels_last", **settings):
    return layers.Conv2D(4, (3, 2), activation="tanh", data_format=data_format, **settings)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: convolution_2d(groups=2, padding="same"), (2, 5, 6, 4)),
        (lambda: convolution_2d(groups=2, strides=2), (2, 5, 6, 4)),
        (lambda: convolution_2d(dilation_rate=2, use_bias=False), (2, 6, 5, 3)),
        (lambda: layers.Conv1D(3, 3, padding="causal", activation="tanh"), (2, 6, 2)),
        (lambda: layers.Conv1D(3, 2, padding="causal", dilation_rate=2), (2, 6, 2)),
        (lambda: layers.Conv1D(3, 3, padding="causal", strides=2), (2, 7, 2)),
    ],
    ids=["grouped", "grouped strided", "dilated", "causal", "causal dilated", "causal strided"],
)
@pytest.mark.usefixtures("float64")
def test_layers_compute_on_every_route_what_keras_does(make, shape):
    x = normal(*shape)
    expected = layer_orders(make(), "plain", x)
    for route in ("vectorized", "compiled"):
        assert_same(layer_orders(make(), route, x), expected)


@pytest.mark.parametrize(
    "settings", [{"padding": "same"}, {"strides": 2}, {"groups": 2}], ids=lambda s: next(iter(s))
)
@pytest.mark.usefixtures("float64")
def test_channels_may_come_first(settings):
    x = normal(2, 5, 6, 4)
    expected = layer_orders(convolution_2d(**settings), "plain", x)
    x = tf.transpose(x, [0, 3, 1, 2])
    for route in ("vectorized", "compiled"):
        layer = convolution_2d("channels_first", **settings)
        found = layer_orders(layer, route, x, turn=[0, 2, 3, 1])
        for i in (1, 1 + len(expected) // 2):  # the gradients by the inputs
            assert found[i].shape == x.shape
            found[i] = tf.transpose(found[i], [0, 2, 3, 1])
        assert_same(found, expected)


# --- pooling ---------------------------------------------------------------------------------

POOLS = [
    ((6, 6), (2, 2), (2, 2)),
    ((7, 5), (2, 2), (2, 2)),  # a remainder
    ((7, 8), (3, 2), (3, 2)),
    ((7, 6), (3, 3), (2, 2)),  # overlapping
    ((6, 7), (3, 2), (1, 1)),
    ((7, 7), (2, 2), (3, 3)),  # with gaps
    ((7,), (2,), (2,)),
    ((8,), (3,), (2,)),
    ((4, 5, 5), (2, 2, 2), (2, 2, 2)),
    ((4, 3, 5), (2, 1, 3), (1, 2, 2)),
]


def distinct(*shape):
    """Multiples of 1/64, no two the same: no maximum changes hands nearby, and sums are exact."""
    order = np.random.default_rng(0).permutation(int(np.prod(shape)))
    return tf.constant((order - order.size // 2).reshape(shape) / 64, "float64")


@pytest.mark.parametrize(("sizes", "window", "strides"), POOLS)
def test_pools_equal_tensorflow_in_value_and_gradient(sizes, window, strides):
    # TensorFlow pools three dimensions in single precision only.
    dtype, tolerance = ("float32", 1e-6) if len(sizes) == 3 else ("float64", 1e-13)
    x = tf.cast(distinct(2, *sizes, 3), dtype)

    def value_and_gradient(pool, padding):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = pool(x, window, strides, padding)
            loss = tf.reduce_sum(tf.sin(y))
        return y, tape.gradient(loss, x)

    # TensorFlow's gradient in three dimensions needs to be told the format.
    settings = {"data_format": "NDHWC"} if len(sizes) == 3 else {}
    for padding in ("same", "valid"):
        for ours, reference in (
            (convolution.max_pool, tf.nn.max_pool),
            (convolution.average_pool, tf.nn.avg_pool),
        ):
            expected = value_and_gradient(functools.partial(reference, **settings), padding.upper())
            for found, theirs in zip(value_and_gradient(ours, padding), expected, strict=True):
                np.testing.assert_allclose(found, theirs, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("pool", [convolution.max_pool, convolution.average_pool])
@pytest.mark.parametrize(
    ("sizes", "window", "strides", "padding"),
    [(*POOLS[1], "valid"), (*POOLS[3], "same"), (*POOLS[7], "same"), (*POOLS[8], "valid")],
    ids=["disjoint", "overlapping", "1-D", "3-D"],
)
def test_second_derivatives_of_pools_equal_finite_differences(
    pool, sizes, window, strides, padding
):
    x = distinct(2, *sizes, 2)
    away = normal(*x.shape)

    @tf.function(autograph=False)
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.sin(pool(x, window, strides, padding)))
        return tape.gradient(loss, x)

    with tf.GradientTape() as tape:
        tape.watch(x)
        slope = tf.reduce_sum(gradient(x) * away)
    h = 1e-4
    near, far = (gradient(x + n * h * away) - gradient(x - n * h * away) for n in (1, 2))
    expected = (8 * near - far) / (12 * h)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(tape.gradient(slope, x), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("size", "window", "strides", "padding", "rows"),
    [
        (5, 2, 2, "valid", [0, 2]),
        (5, 2, 2, "same", [0, 2, 4]),
        (5, 3, 2, "valid", [0, 2]),
        (5, 3, 2, "same", [0, 1, 3]),  # one row of padding comes before the first
        (4, 3, 1, "same", [0, 0, 1, 2]),
    ],
)
def test_the_gradient_of_a_tie_goes_to_the_first_entry(size, window, strides, padding, rows):
    x = tf.zeros([1, size, size, 1], "float64")
    dy = normal(1, len(rows), len(rows), 1)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = convolution.max_pool(x, (window,) * 2, (strides,) * 2, padding)
    expected = np.zeros([size, size])
    np.add.at(expected, np.ix_(rows, rows), dy[0, ..., 0].numpy())
    found = tape.gradient(y, x, dy)
    np.testing.assert_allclose(found[0, ..., 0], expected, rtol=1e-14)
    assert float(tf.reduce_sum(found)) == pytest.approx(float(tf.reduce_sum(dy)))


# --- patches that are too large --------------------------------------------------------------

LARGE = (4, 96, 96, 8)  # in float64, with a 3x3 window
BYTES = 4 * 96 * 96 * 8 * 9 * 8


@pytest.mark.parametrize(
    ("rank", "strides"), [(1, (1,)), (1, (2,)), (2, (2, 2)), (2, (1, 2)), (3, (1, 1, 1))]
)
def test_patches_are_measured_by_calling_the_model(rank, strides):
    convolution_layer = [layers.Conv1D, layers.Conv2D, layers.Conv3D][rank - 1]
    stack = [convolution_layer(2, 3, strides, "same"), convolution_layer(5, 1), layers.Flatten()]
    model = keras.Sequential(stack)  # not built yet
    predictions, size = first_call(model, tf.ones([2, *[4] * rank, 3]))
    positions = math.prod(4 // stride for stride in strides)
    assert size == positions * 3**rank * 3 * 4  # bytes of one example, of the larger convolution
    assert predictions.shape == (2, 5 * positions)
    assert first_call(keras.Sequential([layers.Dense(1)]), tf.ones([2, 3]))[1] == 0


@functools.cache
def large_meta_gradient(mode):
    keras.utils.set_random_seed(1234)
    stack = [
        keras.Input(LARGE[1:]),
        layers.Conv2D(2, 3, padding="same", activation="tanh"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(1),
    ]
    learner = MAML(keras.Sequential(stack), 0.1, task_map=mode)
    learner.compile("sgd", "mse", jit_compile=False)
    x, y = normal(2, *LARGE), normal(2, LARGE[0], 1)
    loss, gradients = learner.meta_gradients((x, y), (x[:, :1], y[:, :1]))
    return learner, float(loss), gradients


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("mode", ["auto", "vectorized"])
def test_a_model_with_large_patches_has_the_same_meta_gradient(mode, caplog, monkeypatch):
    assert PROCESSOR.task_patches < BYTES
    routes = []
    by_patches = convolution.by_patches

    def spy(*args, **kwargs):
        routes.append("patches")
        return by_patches(*args, **kwargs)

    _, loss, expected = large_meta_gradient("sequential")
    monkeypatch.setattr(convolution, "by_patches", spy)
    with caplog.at_level(logging.WARNING):
        learner, found_loss, found = large_meta_gradient(mode)
    assert bool(routes) == (mode == "vectorized")  # and "auto" does not even begin
    assert learner.tasks.run_at_once(LARGE[0]) == (mode == "vectorized")
    assert not [record for record in caplog.records if record.name == "keras_maml"]
    assert found_loss == pytest.approx(loss, rel=1e-12)
    for ours, reference in zip(found, expected, strict=True):
        assert np.any(reference != 0)
        np.testing.assert_allclose(ours, reference, rtol=1e-9, atol=1e-13)


# --- compiled --------------------------------------------------------------------------------


def test_compiled_by_xla_all_forms_are_the_same():
    x, w = normal(2, 5, 6, 3), normal(3, 2, 3, 2, seed=1)
    settings = ((1, 1), "same", (2, 1))

    @tf.function(jit_compile=True, autograph=False)
    def compute(x, w):
        return [orders(lambda x, w, form=form: form(x, w, *settings), x, w) for form in FORMS]

    expected = orders(lambda x, w: convolution.by_patches(x, w, *settings), x, w)
    for found in compute(x, w):
        assert_same(found, expected)
