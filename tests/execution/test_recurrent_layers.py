"""Recurrent layers compute what Keras's compute, and their meta-gradients are exact."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from keras import layers

from keras_maml import MAML
from keras_maml.execution import recurrent_layers
from keras_maml.execution.recurrent_layers import recur


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@keras.saving.register_keras_serializable("tests")
class Leaky(layers.Layer):
    """A cell of one's own, whose output is not its state, and with a layer inside."""

    state_size, output_size = 3, 2

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1] + 3, 3), initializer="glorot_uniform")
        self.head = layers.Dense(2)
        self.head.build((None, 3))

    def call(self, inputs, states):
        joined = keras.ops.concatenate([inputs, states[0]], -1)
        state = 0.5 * states[0] + keras.ops.tanh(keras.ops.matmul(joined, self.kernel))
        return self.head(state), [state]


class Noisy(Leaky):
    """A cell that draws random numbers in every time step."""

    def build(self, shape):
        super().build(shape)
        self.drop = layers.Dropout(0.5, seed=1)

    def call(self, inputs, states, training=False):
        output, states = super().call(inputs, states)
        return self.drop(output, training=training), states


KINDS = {
    "lstm": lambda **s: layers.LSTM(3, **s),
    "lstm_of_gates": lambda **s: layers.LSTM(3, implementation=1, recurrent_activation="tanh", **s),
    "gru": lambda **s: layers.GRU(3, bias_initializer="normal", **s),
    "gru_reset_before": lambda **s: layers.GRU(3, reset_after=False, **s),
    "gru_without_bias": lambda **s: layers.GRU(3, use_bias=False, **s),
    "simple": lambda **s: layers.SimpleRNN(3, **s),
    "own_cell": lambda **s: layers.RNN(Leaky(), **s),
    "stacked": lambda **s: layers.RNN([layers.LSTMCell(3), Leaky(), layers.GRUCell(2)], **s),
}


def built(layer, shape=(4, 5, 2)):
    layer(np.zeros(shape))
    layer.set_weights([normal(*w.shape, seed=i) for i, w in enumerate(layer.get_weights())])
    return layer


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("go_backwards", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_keras_does(kind, go_backwards, masked):
    settings = {"go_backwards": go_backwards, "return_sequences": True, "return_state": True}
    layer = built(KINDS[kind](**settings))
    x = tf.constant(normal(4, 5, 2))
    mask = tf.constant(normal(4, 5) > -0.5) if masked else None
    expected = layer(x, mask=mask)
    found = recur(layer, x, mask=mask)
    tf.nest.assert_same_structure(tf.nest.flatten(expected), tf.nest.flatten(found))
    for a, b in zip(tf.nest.flatten(expected), tf.nest.flatten(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_initial_states_and_the_last_output_alone():
    layer = built(layers.LSTM(3, zero_output_for_mask=True))
    x, states = tf.constant(normal(4, 5, 2)), [tf.constant(normal(4, 3)), tf.constant(normal(4, 3))]
    mask = tf.constant([[True] * 5, [True, False] * 2 + [True], [False] * 5, [True] * 4 + [False]])
    for settings in ({}, {"mask": mask}):
        expected = layer(x, initial_state=states, **settings)
        np.testing.assert_allclose(recur(layer, x, states, **settings), expected, rtol=1e-9)


@pytest.mark.usefixtures("float64")
def test_dropout_draws_one_mask_for_all_time_steps():
    layer = built(layers.SimpleRNN(400, activation=None, dropout=0.25, return_sequences=True))
    layer.cell.kernel.assign(np.ones((2, 400)))
    layer.cell.recurrent_kernel.assign(np.zeros((400, 400)))
    layer.cell.bias.assign(np.zeros(400))
    x = tf.ones([300, 5, 2], tf.float64)
    outputs = recur(layer, x, training=True).numpy()
    assert (outputs == outputs[:, :1, :1]).all()
    kept = outputs[:, 0, 0] * 0.75
    assert set(np.round(kept, 6)) == {0.0, 1.0, 2.0}
    assert kept.mean() == pytest.approx(1.5, abs=0.15)
    assert (recur(layer, x, training=False).numpy() == 2).all()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("make", [layers.LSTM, layers.GRU, layers.SimpleRNN])
def test_recurrent_dropout_of_everything_forgets(make):
    layer = built(make(3, recurrent_dropout=1 - 1e-12, activation="tanh"))
    inputs = tf.constant(normal(4, 5, 2))
    with_dropout = recur(layer, inputs, training=True)
    layer.cell.recurrent_kernel.assign(tf.zeros_like(layer.cell.recurrent_kernel))
    np.testing.assert_allclose(with_dropout, recur(layer, inputs), rtol=1e-9)


# Of each way through the code one; the others are slow to trace.
FAST = ("own_cell", "noisy")
SLOW = {"dropout", "bidirectional", "masked", *KINDS} - {*FAST}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", [*FAST, *map(zoo.slow, sorted(SLOW))])
def test_the_meta_gradient_is_the_unrolled_one(kind, monkeypatch):
    recurrent = {
        **KINDS,
        "dropout": lambda: layers.GRU(3, dropout=0.3, recurrent_dropout=0.3, seed=1),
        "noisy": lambda: layers.RNN(Noisy()),
        "bidirectional": lambda: layers.Bidirectional(layers.LSTM(2)),
        "masked": lambda: layers.LSTM(3),
    }[kind]
    stack = [layers.Masking(0.0)] if kind == "masked" else []

    def build():
        return keras.Sequential([keras.Input((3, 2)), *stack, recurrent(), layers.Dense(1)])

    data = zoo.episodes(zoo.Case(build, (3, 2)), tasks=2)
    if kind == "masked":
        counts = tf.cast(tf.range(3)[:, None] < 2, "float64")
        (x, y), (x_query, y_query) = data
        data = (x * counts, y), (x_query * counts, y_query)
    results = []
    looped = "sequential" if kind == "noisy" else "vectorized"
    for steps, task_map, options in (
        (100, "sequential", {"run_eagerly": True}),  # cheaper than to trace what is unrolled
        (0, looped, {"jit_compile": False}),
    ):
        monkeypatch.setattr(recurrent_layers, "MIN_LOOP_STEPS", steps)
        keras.utils.set_random_seed(0)
        learner = MAML(build(), 0.3, task_map=task_map)
        learner.compile("sgd", "mean_squared_error", **options)
        results.append(learner.meta_gradients(*data))
    tf.nest.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12), *results
    )


@pytest.mark.slow
def test_a_long_sequence_compiles():
    stack = [layers.LSTM(3), layers.Dense(1)]
    learner = MAML(keras.Sequential([keras.Input((70, 2)), *stack]), 0.1, task_map="vectorized")
    learner.compile("sgd", "mean_squared_error", jit_compile=True)
    (x, y), query = zoo.episodes(zoo.Case(None, (70, 2)), tasks=2)
    compiled = float(learner.meta_gradients((x, y), query)[0])
    learner.compile("sgd", "mean_squared_error", run_eagerly=True)
    assert float(learner.meta_gradients((x, y), query)[0]) == pytest.approx(compiled, rel=1e-4)
