"""Recurrences and their derivatives of any order equal those of the unrolled form."""

import numpy as np
import pytest
import tensorflow as tf

from keras_maml.execution.recurrence import recurrence, unrolled


def normal(*shapes, seed=0):
    random = np.random.default_rng(seed)
    return [tf.constant(random.normal(size=shape)) for shape in shapes]


def gates(carry, product, inputs, constants):
    """An LSTM's time step, with a constant that is added to the gates."""
    i, f, new, o = tf.split(product + inputs[0] + constants[0], 4, -1)
    c = tf.sigmoid(f) * carry[1] + tf.sigmoid(i) * tf.tanh(new)
    return [tf.sigmoid(o) * tf.tanh(c), c]


def without_matrix(carry, product, inputs, constants):
    assert product is None
    return [tf.tanh(tf.matmul(carry[0], constants[1]) + inputs[0]) * constants[0]]


LSTM = gates, normal((2, 3), (2, 3), (4, 2, 12), (12,), (3, 12)), (2, 1, 1)
PLAIN = without_matrix, normal((2, 3), (4, 2, 3), (3,), (3, 3)), (1, 1, 2)


def loss(run, case, values):
    step, _, (carries, inputs, constants) = case
    parts = values[:carries], values[carries : carries + inputs]
    constants, matrix = np.split(np.arange(len(values))[carries + inputs :], [constants])
    matrix = values[matrix[0]] if len(matrix) else None
    last, all_of_them = run(step, *parts, [values[i] for i in constants], matrix)
    return tf.reduce_sum(last[-1]) ** 2 + tf.reduce_sum(tf.sin(3 * all_of_them[0]))


def derivative(run, case, order):
    """The derivative along a direction, as often as the order says."""
    directions = normal(*(v.shape for v in case[1]), seed=1)

    def of(function):
        def along(values):
            with tf.GradientTape() as tape:
                tape.watch(values)
                result = function(values)
            gradients = tape.gradient(result, values)
            return tf.add_n(
                [tf.reduce_sum(g * d) for g, d in zip(gradients, directions, strict=True)]
            )

        return along

    function = lambda values: loss(run, case, values)  # noqa: E731
    for _ in range(order):
        function = of(function)
    return function


@pytest.mark.parametrize(
    ("case", "order"),
    [(LSTM, 0), (LSTM, 1), (LSTM, 2), (LSTM, 3), (PLAIN, 2)],
    ids=["lstm_0", "lstm_1", "lstm_2", "lstm_3", "without_matrix_2"],
)
def test_derivatives_equal_the_unrolled_ones(case, order):
    expected = derivative(unrolled, case, order)(case[1])
    looped = derivative(recurrence, case, order)
    traced = tf.function(lambda *values: looped(list(values)), autograph=False)
    if order < 3:
        np.testing.assert_allclose(looped(case[1]), expected, rtol=1e-10)
    np.testing.assert_allclose(traced(*case[1]), expected, rtol=1e-10)


@pytest.mark.parametrize("jit_compile", [pytest.param(False, marks=pytest.mark.slow), True])
def test_second_derivatives_for_many_tasks_at_once(jit_compile):
    looped = derivative(recurrence, LSTM, 2)
    tasks = [tf.stack([value, 2 * value, value]) for value in LSTM[1][1:]]

    # The first of the carry is the same for all tasks, and differs after a turn.
    def one(values):
        return looped([LSTM[1][0], *values])

    @tf.function(autograph=False, jit_compile=jit_compile)
    def all_of_them(*tasks):
        return tf.vectorized_map(one, list(tasks), fallback_to_while_loop=False)

    expected = [derivative(unrolled, LSTM, 2)([LSTM[1][0], *(t[i] for t in tasks)]) for i in (0, 1)]
    found = all_of_them(*tasks).numpy()
    np.testing.assert_allclose(found, [*expected, expected[0]], rtol=1e-9)


def test_the_gradient_equals_finite_differences():
    exact = derivative(recurrence, LSTM, 2)(LSTM[1])
    directions = normal(*(v.shape for v in LSTM[1]), seed=1)
    first = derivative(recurrence, LSTM, 1)
    ahead, behind = (
        first([v + sign * 1e-5 * d for v, d in zip(LSTM[1], directions, strict=True)])
        for sign in (1, -1)
    )
    np.testing.assert_allclose((ahead - behind) / 2e-5, exact, rtol=1e-7)


def test_a_loop_is_one_however_many_time_steps_there_are():
    def operations(time):
        values = [*LSTM[1][:2], *normal((time, 2, 12)), *LSTM[1][3:]]

        def gradient(*values):
            with tf.GradientTape() as tape:
                tape.watch(values)
                result = loss(recurrence, LSTM, values)
            return tape.gradient(result, values)

        function = tf.function(gradient, autograph=False)
        return len(function.get_concrete_function(*values).graph.get_operations())

    # Sums may be cut into another number of parts; unrolled, every step would add operations.
    assert operations(80) < operations(5) + 20


def test_inputs_and_constants_of_any_type():
    def step(carry, product, inputs, constants):
        return [
            tf.where(inputs[1], carry[0] + inputs[0], carry[0]) * tf.cast(constants[0], "float64")
        ]

    inputs = [tf.constant([[1.0], [2.0], [4.0]], "float64"), tf.constant([[True], [False], [True]])]
    with tf.GradientTape() as tape:
        tape.watch(inputs[0])
        (last,), _ = recurrence(step, [tf.zeros([1], "float64")], inputs, [tf.constant(2)])
    assert last.numpy().tolist() == [8 + 8]
    assert tape.gradient(last, inputs[0]).numpy().tolist() == [[8], [0], [2]]


def test_ordinary_vectorised_loops_stay_as_they_were():
    def count(n):
        return tf.while_loop(lambda i, x: i < n, lambda i, x: (i + 1, 2 * x), (0, tf.constant(1)))[
            1
        ]

    assert tf.vectorized_map(count, tf.constant([1, 3])).numpy().tolist() == [2, 8]
