"""Inside the learner a model computes what it computes alone, and stays as it was."""

import keras
import numpy as np
import pytest
from keras import layers
from zoo import slow

from keras_maml import MAML


def sequence(*stack, shape, dtype="float32"):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *stack, layers.Dense(1)])


def make_learner(model, **settings):
    learner = MAML(model, 0.1, **settings)
    learner.compile("sgd", "mse", jit_compile=False)
    return learner


def episode(shape, draw):
    x_support, x_query = draw(size=(2, 5, *shape)), draw(size=(2, 4, *shape))
    return (x_support, np.ones((2, 5, 1))), (x_query, np.ones((2, 4, 1)))


def masked(recurrent):
    return sequence(
        layers.Embedding(3, 4, mask_zero=True),
        recurrent,
        layers.GlobalAveragePooling1D(),
        shape=(6,),
        dtype="int32",
    )


@pytest.mark.parametrize(
    "recurrent",
    [
        lambda: layers.LSTM(3, return_sequences=True),
        lambda: layers.GRU(3, return_sequences=True, go_backwards=True),
        lambda: layers.Bidirectional(layers.GRU(3, return_sequences=True)),
    ],
)
@pytest.mark.parametrize("task_map", [slow("vectorized"), "sequential"])
def test_masks_mean_what_they_mean_in_keras(recurrent, task_map):
    model = masked(recurrent())
    draw = np.random.default_rng(0).integers
    support, query = episode((6,), lambda size: draw(3, size=size).astype("int32"))
    learner = make_learner(model, evaluation_steps=0, task_map=task_map)
    predictions = learner.predict((support, query), verbose=0)
    for task in range(2):
        expected = model.predict(query[0][task], verbose=0)
        np.testing.assert_allclose(predictions[task], expected, atol=1e-6)


def test_an_adapted_model_keeps_the_statistics_of_a_normalization_layer():
    random = np.random.default_rng(0)
    normalization = layers.Normalization()
    normalization.adapt(random.normal(5, 3, size=(50, 3)))
    learner = make_learner(sequence(normalization, shape=(3,)), evaluation_steps=2)
    support, query = episode((3,), lambda size: random.normal(5, 3, size=size).astype("float32"))
    predictions = learner.predict((support, query), verbose=0)
    adapted = learner.adapt(support[0][0], support[1][0])
    np.testing.assert_allclose(
        adapted.predict(query[0][0], verbose=0), predictions[0], rtol=1e-4, atol=1e-5
    )


class Counter(layers.Layer):
    """Counts its calls."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.calls.assign_add(1.0)
        return x


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        # These two draw random numbers even when they are called for prediction.
        (lambda: layers.LSTM(2, dropout=0.5, seed=1), (4, 3)),
        (lambda: layers.RandomFlip(seed=1), (4, 4, 1)),
        (lambda: layers.BatchNormalization(), (3,)),
    ],
)
def test_only_training_advances_the_state_of_layers(layer, shape):
    model = sequence(layer(), layers.Flatten(), shape=shape)
    learner = make_learner(model, task_map="sequential")
    draw = np.random.default_rng(0).normal
    support, query = episode(shape, lambda size: draw(size=size).astype("float32"))
    before = [variable.numpy() for variable in model.variables]
    first, _ = learner.meta_gradients(support, query)
    learner.evaluate((support, query), verbose=0)
    learner.adapt(support[0][0], support[1][0])
    for ours, variable in zip(before, model.variables, strict=True):
        assert np.array_equal(ours, variable.numpy())
    assert float(first) == float(learner.meta_gradients(support, query)[0])


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Counter, r"Layer 'counter' assigns the variable .* in its call\. Tasks are adapted side"),
        (lambda: layers.SpectralNormalization(layers.Dense(2)), "'dense.*' assigns .*/kernel"),
        (lambda: layers.Lambda(lambda x: x + keras.random.normal((3,))), "global random generator"),
    ],
)
def test_a_layer_that_assigns_what_tasks_cannot_share_is_refused_by_name(layer, message):
    learner = make_learner(sequence(layer(), layers.Flatten(), shape=(3,)), task_map="sequential")
    draw = np.random.default_rng(0).normal
    data = episode((3,), lambda size: draw(size=size).astype("float32"))
    before = learner.get_weights()
    with pytest.raises(NotImplementedError, match=message):
        learner.fit(data, verbose=0)
    for ours, theirs in zip(learner.get_weights(), before, strict=True):
        assert np.array_equal(ours, theirs)


def bias(y, predictions):
    return keras.ops.mean(predictions - y, axis=-1)


def test_a_metric_may_wrap_a_function_under_the_same_name():
    learner = MAML(sequence(shape=(3,)), 0.1)
    wrapped = keras.metrics.MeanMetricWrapper(bias, name="bias")
    learner.compile("sgd", "mse", metrics=[wrapped], jit_compile=False)
    draw = np.random.default_rng(0).normal
    support, query = episode((3,), lambda size: draw(size=size).astype("float32"))
    results = learner.evaluate((support, query), verbose=0, return_dict=True)
    before = learner.model.predict(query[0].reshape(-1, 3), verbose=0) - 1
    after = learner.predict((support, query), verbose=0) - 1
    assert results["bias_before"] == pytest.approx(np.mean(before), rel=1e-5)
    assert results["bias"] == pytest.approx(np.mean(after), rel=1e-5)


def test_an_ignored_label_may_be_out_of_range():
    learner = MAML(keras.Sequential([keras.Input((3,)), layers.Dense(2)]), 0.1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    learner.compile("sgd", loss, jit_compile=False)
    x = np.random.default_rng(0).normal(size=(1, 4, 3)).astype("float32")
    ignored, kept = np.array([[0, 1, 1, -1]]), np.array([[0, 1, 1, 0]])
    changed = x.copy()
    changed[0, 3] += 1  # the example whose label is ignored
    losses = [
        float(learner.meta_gradients((x, kept), (query, ignored))[0]) for query in (x, changed)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_only_predict_does_without_query_targets():
    learner = make_learner(sequence(shape=(3,)))
    x, y = np.ones((2, 5, 3), "float32"), np.ones((2, 5, 1), "float32")
    assert learner.predict(((x, y), (x,)), verbose=0).shape == (2, 5, 1)
    for use in (learner.fit, learner.evaluate):
        with pytest.raises(ValueError, match="needs the targets of the query set"):
            use(((x, y), (x,)))


def test_a_rate_must_be_a_number():
    with pytest.raises(ValueError, match="inner_learning_rate .* got '0.1'"):
        MAML(sequence(shape=(3,)), "0.1")
