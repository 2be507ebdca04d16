"""Linear operators and their transposes belong together, to any order of derivative."""

import numpy as np
import pytest
import tensorflow as tf

from keras_maml.execution.linear import (
    add_bias,
    before_bias,
    bilinear,
    linear_pair,
    matrix_product,
    pack_gradient,
    sum_positions,
    sum_tasks,
    unpack_gradient,
)


def normal(*shape, seed=0):
    return tf.constant(np.random.default_rng([seed, *shape]).normal(size=shape))


def dot(x, y):
    return float(tf.reduce_sum(x * y))


def crop(x):
    return x[1:-1, ::2]


def uncrop(y):
    rows = tf.stack([y, tf.zeros_like(y)], 2)
    return tf.pad(tf.reshape(rows, [y.shape[0], -1])[:, : 2 * y.shape[1] - 1], [(1, 1), (0, 0)])


def gradient(function, x, dy):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
    return tape.gradient(y, x, dy)


def assert_transposes(function, x, y):
    """<A x, y> = <x, A' y>, with the gradient as A'; and A' has A as its own."""
    assert dot(function(x), y) == pytest.approx(dot(x, gradient(function, x, y)), rel=1e-12)
    back = lambda y: gradient(function, x, y)  # noqa: E731
    assert dot(back(y), x) == pytest.approx(dot(y, gradient(back, y, x)), rel=1e-12)
    np.testing.assert_allclose(gradient(back, y, x), function(x), rtol=1e-12)


def test_both_of_a_pair_have_each_other_as_gradient():
    forward, back = linear_pair(crop, uncrop)
    x, y = normal(5, 7), normal(3, 4, seed=1)
    np.testing.assert_array_equal(forward(x), crop(x))
    np.testing.assert_array_equal(back(y), uncrop(y))
    assert_transposes(forward, x, y)
    assert_transposes(back, y, x)


def test_derivatives_call_the_pair_and_do_not_take_it_apart():
    calls = []
    forward, _ = linear_pair(
        lambda x: calls.append("forward") or 3 * x, lambda y: calls.append("transpose") or 3 * y
    )
    x = tf.constant(2.0)
    with tf.GradientTape() as third, tf.GradientTape() as second:
        third.watch(x)
        second.watch(x)
        with tf.GradientTape() as first:
            first.watch(x)
            cube = forward(x) ** 3
        to_x = first.gradient(cube, x)
        to_to_x = second.gradient(to_x, x)
    assert float(to_x) == 27 * 3 * 2**2
    assert float(to_to_x) == 27 * 6 * 2
    assert float(third.gradient(to_to_x, x)) == 27 * 6
    assert calls[:2] == ["forward", "transpose"]
    assert calls.count("forward") >= 2  # the transpose of the transpose


def test_a_bilinear_operator_is_differentiated_by_its_three_maps_alone():
    calls = []

    def named(name, function):
        return lambda *factors: calls.append(name) or function(*factors)

    product = bilinear(
        named("outputs", tf.matmul),
        named("to_left", lambda dy, w: tf.matmul(dy, w, transpose_b=True)),
        named("to_right", lambda x, dy: tf.matmul(x, dy, transpose_a=True)),
    )
    x, w = normal(5, 4), normal(4, 3, seed=1)
    expected = gradients_of_gradients(tf.matmul, x, w)
    for found, reference in zip(gradients_of_gradients(product, x, w), expected, strict=True):
        np.testing.assert_allclose(found, reference, rtol=1e-9, atol=1e-12)
    assert set(calls) == {"outputs", "to_left", "to_right"}


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 3, 2, 4), (4, 18)),
        ((3, 2, 3), (3, 6)),
        ((3, 2, 4), (3, 2, 4)),  # whose gradient does not come transposed
        ((18, 4), (18, 4)),
        ((4,), (4,)),
    ],
)
def test_gradients_of_kernels_are_packed_and_unpacked(shape, expected):
    kernel = normal(*shape)
    matrix = pack_gradient(kernel)
    assert matrix.shape == expected
    np.testing.assert_array_equal(unpack_gradient(matrix, kernel.shape), kernel)
    if matrix.shape != shape:
        np.testing.assert_array_equal(matrix[1], tf.reshape(kernel[..., 1], [-1]))


@pytest.mark.parametrize("columns", [1, 3, 7, 16])  # up to twice the outputs, and more
@pytest.mark.parametrize("compiled", [False, True])
def test_a_matrix_product_has_the_derivatives_of_matmul(columns, compiled):
    x, w = normal(5, columns), normal(columns, 3, seed=1)
    compute = tf.function(gradients_of_gradients, jit_compile=compiled, autograph=False)
    expected = gradients_of_gradients(tf.matmul, x, w)
    for found, reference in zip(compute(matrix_product, x, w), expected, strict=True):
        np.testing.assert_allclose(found, reference, rtol=1e-9, atol=1e-12)


def test_a_product_of_unknown_size_has_its_gradients():
    x, w = normal(5, 8), normal(8, 2, seed=1)

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float64)] * 2)
    def gradients(x, w):
        return gradients_of_gradients(matrix_product, x, w)

    expected = gradients_of_gradients(tf.matmul, x, w)
    for found, reference in zip(gradients(x, w), expected, strict=True):
        np.testing.assert_allclose(found, reference, rtol=1e-12)


def test_the_gradient_of_a_small_matrix_keeps_what_is_not_finite():
    x = tf.constant([[1.0] * 8, [2.0] * 8])
    with tf.GradientTape() as tape:
        w = tf.zeros([8, 3])
        tape.watch(w)
        y = matrix_product(x, w)
    dy = tf.constant([[np.nan, np.inf, 1.0], [1.0, 1.0, 1.0]])
    np.testing.assert_array_equal(tape.gradient(y, w, dy), [[np.nan, np.inf, 3.0]] * 8)


def test_xla_leaves_the_wide_factor_of_a_gradient_on_the_right():
    @tf.function(jit_compile=True, autograph=False)
    def kernel_gradient(x, w, dy):
        with tf.GradientTape() as tape:
            tape.watch(w)
            y = matrix_product(x, w)
        return w - 0.1 * tape.gradient(y, w, dy)

    arguments = tf.ones([20, 36]), tf.ones([36, 4]), tf.ones([20, 4])
    program = kernel_gradient.experimental_get_compiler_ir(*arguments)(stage="optimized_hlo")
    (product,) = [line for line in program.splitlines() if " dot(" in line]
    assert "f32[4,36]" in product.split(" dot(")[0]


# One for each number of parts, one that none divides, one of a single position, and none at all.
SIZES = [(8, 3), (5, 5), (2, 3, 3), (7, 7), (3, 3, 1, 1), (2, 11), (11, 13), (1, 1), ()]


@pytest.mark.parametrize("sizes", SIZES)
def test_sums_over_positions(sizes):
    x = normal(*sizes, 3)
    expected = x.numpy().reshape(-1, 3).sum(0)
    np.testing.assert_allclose(sum_positions(x), expected, rtol=1e-12, atol=1e-13)
    assert_transposes(sum_positions, x, normal(3, seed=1))


def test_a_sum_over_no_positions_is_zero():
    assert sum_positions(tf.zeros([0, 4, 2])).numpy().tolist() == [0, 0]


@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 3), (3,), (2, 2, 3, 3)])
def test_a_bias_is_added_everywhere_and_its_gradient_is_the_sum(shape):
    x, bias, y = normal(*shape), normal(3, seed=1), normal(*shape, seed=2)
    np.testing.assert_array_equal(add_bias(x, bias), x + bias)
    assert_transposes(lambda bias: add_bias(tf.zeros_like(x), bias), bias, y)
    np.testing.assert_array_equal(gradient(lambda x: add_bias(x, bias), x, y), y)


@pytest.mark.parametrize("add", [add_bias, tf.add, tf.nn.bias_add])
def test_what_a_bias_was_added_to_is_found_in_the_graph(add):
    x, bias = normal(2, 5, 3), normal(3, seed=1)
    find = tf.function(lambda x, bias: before_bias(add(tf.exp(x), bias)), autograph=False)
    before, found = find(x, bias)
    np.testing.assert_array_equal(before, tf.exp(x))
    np.testing.assert_array_equal(found, bias)


@pytest.mark.parametrize(
    "add",
    [
        lambda x, bias: x + tf.exp(x),
        lambda x, bias: x + bias[None, None],
        lambda x, bias: x + tf.broadcast_to(x[:1], x.shape),
        lambda x, bias: x[:1] + tf.broadcast_to(bias, x.shape),
        lambda x, bias: 2 * add_bias(x, bias),
        lambda x, bias: tf.nn.bias_add(x, x[0, :, 0], "NC.."),
    ],
)
def test_what_is_no_sum_with_a_bias_is_left_as_it_is(add):
    def check(x, bias):
        y = add(x, bias)
        found, none = before_bias(y)
        assert found is y and none is None
        return y

    x, bias = normal(2, 5, 3), normal(3, seed=1)
    tf.function(check, autograph=False)(x, bias)
    assert before_bias(add_bias(x, bias))[1] is None  # eagerly


def powers(x, bias):
    """A function of both operators of which no derivative up to the third vanishes."""
    return tf.reduce_sum(tf.sin(sum_positions(tf.exp(add_bias(x, bias) / 4))))


def plain_powers(x, bias):
    return tf.reduce_sum(
        tf.sin(tf.reduce_sum(tf.exp((x + bias) / 4), list(range(len(x.shape) - 1))))
    )


def gradients_of_gradients(function, x, bias):
    with tf.GradientTape() as third:
        third.watch([x, bias])
        with tf.GradientTape() as second:
            second.watch([x, bias])
            with tf.GradientTape() as first:
                first.watch([x, bias])
                value = function(x, bias)
            one = first.gradient(value, [x, bias])
            mixed = tf.add_n([tf.reduce_sum(tf.sin(3 * g)) for g in one])
        two = second.gradient(mixed, [x, bias])
        mixed = tf.add_n([tf.reduce_sum(tf.sin(3 * g)) for g in two])
    return [value, *one, *two, *third.gradient(mixed, [x, bias])]


@pytest.mark.parametrize("sizes", [(4, 3), (5, 7), (1, 13)])
def test_gradients_of_gradients_equal_those_of_the_plain_formula(sizes):
    x, bias = normal(*sizes, 2), normal(2, seed=1)
    found = gradients_of_gradients(powers, x, bias)
    expected = gradients_of_gradients(plain_powers, x, bias)
    for ours, reference in zip(found, expected, strict=True):
        assert np.all(abs(reference) > 1e-6)
        np.testing.assert_allclose(ours, reference, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("known", [(None, None, 2), (None, 3, 2), (4, None, 2), (None, None, None)])
def test_leading_dimensions_may_be_unknown(known):
    signature = [tf.TensorSpec(known, tf.float64), tf.TensorSpec([2], tf.float64)]
    compute = tf.function(
        lambda x, bias: gradients_of_gradients(powers, x, bias),
        input_signature=signature,
        autograph=False,
    )
    x, bias = normal(4, 3, 2), normal(2, seed=1)
    expected = gradients_of_gradients(plain_powers, x, bias)
    for ours, reference in zip(compute(x, bias), expected, strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-10, atol=1e-13)


def test_operators_vectorise_with_a_bias_for_each_task():
    x, bias = normal(3, 4, 5, 2), normal(3, 2, seed=1)

    @tf.function(autograph=False)
    def mapped(x, bias):
        return tf.vectorized_map(
            lambda task: gradients_of_gradients(powers, *task),
            (x, bias),
            fallback_to_while_loop=False,
        )

    results = mapped(x, bias)
    for i in range(3):
        expected = gradients_of_gradients(plain_powers, x[i], bias[i])
        for ours, reference in zip(results, expected, strict=True):
            np.testing.assert_allclose(ours[i], reference, rtol=1e-10, atol=1e-13)


def products(x, y):
    return tf.matmul(x, y, transpose_a=True)


TERMS = {
    "one": lambda x, y: products(x, y),
    "several": lambda x, y: products(x, y) + tf.add_n([products(y, x), products(x, x)]),
    "identity": lambda x, y: tf.identity(tf.identity_n([y, products(x, y)])[1]),
    "reshaped": lambda x, y: tf.reshape(products(x, y), [3, 2, 2, 4]),
}


@pytest.mark.parametrize("name", TERMS)
def test_a_sum_of_products_over_tasks_is_one_product(name):
    x, y = normal(3, 5, 4), normal(3, 5, 4, seed=1)
    terms = TERMS[name](x, y)
    function = tf.function(lambda x, y: sum_tasks(TERMS[name](x, y)), autograph=False)
    np.testing.assert_allclose(function(x, y), tf.reduce_sum(terms, 0), rtol=1e-12)
    operations = function.get_concrete_function(x, y).graph.get_operations()
    assert "MatMul" in {op.type for op in operations}
    assert not [op for op in operations if op.type == "Sum"]  # nothing per task is added up


OTHERS = {
    "needed elsewhere": lambda x, y: tf.identity_n([p := products(x, y), 2.0 * p])[0],
    "a product with a vector": lambda x, y: products(x, y[..., :1]),
    "the other way round": lambda x, y: tf.matmul(x, y, transpose_b=True),
    "a product of another sum": lambda x, y: 2.0 * (products(x, y) + products(y, x)),
    "one factor for all tasks": lambda x, y: products(x, y[:1]),
    "a term for all tasks": lambda x, y: products(x, y) + tf.ones([4, 4], x.dtype),
    "tasks made by reshaping": lambda x, y: tf.reshape(products(x, y), [6, 2, 4]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_such_sum_is_added_up(name):
    x, y = normal(3, 5, 4), normal(3, 5, 4, seed=1)
    function = tf.function(lambda x, y: sum_tasks(OTHERS[name](x, y)), autograph=False)
    np.testing.assert_allclose(function(x, y), tf.reduce_sum(OTHERS[name](x, y), 0), rtol=1e-12)
    np.testing.assert_allclose(function(x, y), sum_tasks(OTHERS[name](x, y)), rtol=1e-12)


def test_tasks_of_an_unknown_number_are_added_up():
    x = normal(3, 5, 4)
    unknown = tf.TensorSpec([None, 5, 4], x.dtype)
    function = tf.function(lambda x: sum_tasks(products(x, x)), [unknown], autograph=False)
    np.testing.assert_allclose(function(x), tf.reduce_sum(products(x, x), 0), rtol=1e-12)
