"""Any Keras model, loss and metric."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from keras import layers

from keras_maml import MAML

# Without XLA, which costs seconds a model here; test_meta_gradients shows that it changes nothing.
FAST = {"jit_compile": False}


# Trained in other tests, too.
LATE = (*zoo.SLOW, "paper", "lstm", "normalization", "attention", "dropout", "nested", "dense")
LATE += ("shared_weights", "frozen")


@pytest.mark.parametrize("name", zoo.cases(late=LATE))
def test_every_kind_of_model_learns(name):
    case = zoo.CASES[name]
    learner = MAML(case.build(), 0.05)
    learner.compile(keras.optimizers.Adam(0.03), case.loss, **FAST)
    data = tf.data.Dataset.from_tensors(zoo.episodes(case)).repeat()
    losses = learner.fit(data, epochs=4, steps_per_epoch=10, verbose=0).history["loss"]
    # The same few tasks again and again: the loss can but fall.
    assert losses[-1] < 0.9 * losses[0]


def regression(outputs=1, tasks=2, seed=0):
    random = np.random.default_rng(seed)
    draw = lambda n, d: random.normal(size=(tasks, n, d)).astype("float32")  # noqa: E731
    return (draw(5, 3), draw(5, outputs)), (draw(4, 3), draw(4, outputs))


def dense(outputs=1, **options):
    return keras.Sequential([keras.Input((3,)), layers.Dense(outputs, **options)])


def huber(y, predictions):
    return keras.losses.huber(y, predictions)


@pytest.mark.parametrize("loss", ["huber", keras.losses.Huber(), huber])
def test_a_loss_may_be_a_name_an_object_or_a_function(loss):
    learner = MAML(dense(kernel_initializer="ones"), 0.1)
    learner.compile("sgd", loss, **FAST)
    value, _ = learner.meta_gradients(*regression())
    reference = MAML(dense(kernel_initializer="ones"), 0.1)
    reference.compile("sgd", keras.losses.Huber(), **FAST)
    assert float(value) == pytest.approx(float(reference.meta_gradients(*regression())[0]))


def largest_error(y, predictions):
    return keras.ops.max(keras.ops.abs(y - predictions), axis=-1)


def test_metrics_may_be_names_objects_functions_or_keep_state():
    learner = MAML(dense(activation="sigmoid"), 0.5, 1, 2)
    metrics = ["accuracy", keras.metrics.AUC(name="auc"), largest_error]
    learner.compile("sgd", "binary_crossentropy", metrics=metrics, weighted_metrics=[], **FAST)
    (xs, ys), (xq, yq) = regression()
    data = ((xs, (ys > 0).astype("float32")), (xq, (yq > 0).astype("float32")))
    found = learner.evaluate(data, verbose=0, return_dict=True)
    names = ["loss", "accuracy", "auc", "largest_error"]
    assert set(found) == {*names, *(f"{name}_before" for name in names)}
    for suffix, steps in (("", 2), ("_before", 0)):
        predictions = np.concatenate(
            [
                learner.adapt(
                    *keras.tree.map_structure(lambda t, i=i: t[i], data[0]), steps=steps
                ).predict(xq[i], verbose=0)
                for i in range(2)
            ]
        )
        y = data[1][1].reshape(-1, 1)
        accuracy = np.mean((predictions > 0.5) == y)
        assert found[f"accuracy{suffix}"] == pytest.approx(accuracy)
        auc = keras.metrics.AUC()
        auc.update_state(y, predictions)
        assert found[f"auc{suffix}"] == pytest.approx(float(auc.result()), rel=1e-5)
        error = np.mean(np.abs(y - predictions))
        assert found[f"largest_error{suffix}"] == pytest.approx(error, rel=1e-4)


def two_heads():
    inputs = keras.Input((3,))
    hidden = layers.Dense(4, "tanh")(inputs)
    return keras.Model(
        inputs, {"a": layers.Dense(1, name="a")(hidden), "b": layers.Dense(1, name="b")(hidden)}
    )


def test_several_outputs_with_losses_and_weights_of_their_own():
    learner = MAML(two_heads(), 0.1, 0)
    learner.compile(
        keras.optimizers.SGD(0.0),
        {"a": "mse", "b": "mae"},
        loss_weights={"a": 2.0, "b": 0.5},
        metrics={"a": ["mae"]},
        **FAST,
    )
    (xs, ys), (xq, yq) = regression(2)
    split = lambda y: {"a": y[..., :1], "b": y[..., 1:]}  # noqa: E731
    episodes = ((xs, split(ys)), (xq, split(yq)))
    for found in (
        {k: v[0] for k, v in learner.fit(episodes, verbose=0).history.items()},
        learner.evaluate(episodes, verbose=0, return_dict=True),
    ):
        outputs = learner.model.predict(xq.reshape(-1, 3), verbose=0)
        error = {k: outputs[k] - split(yq)[k].reshape(-1, 1) for k in outputs}
        a, b = np.mean(error["a"] ** 2), np.mean(np.abs(error["b"]))
        assert found["loss"] == pytest.approx(2 * a + 0.5 * b, rel=1e-5)
        assert found["a_loss"] == pytest.approx(a, rel=1e-5)
        assert found["b_loss"] == pytest.approx(b, rel=1e-5)
        assert found["a_mae"] == pytest.approx(np.mean(np.abs(error["a"])), rel=1e-5)
    assert learner.predict(episodes, verbose=0)["a"].shape == (2, 4, 1)


def test_sample_weights_take_examples_out():
    learner = MAML(dense(), 0.1, 2)
    learner.compile("sgd", "mse", **FAST)
    (xs, ys), (xq, yq) = regression()
    keep = np.zeros((2, 5), "float32")
    keep[:, :2] = 2.5  # 5 / 2: Keras divides the weighted sum by the number of examples
    weighted, _ = learner.meta_gradients((xs, ys, keep), (xq, yq))
    cut, _ = learner.meta_gradients((xs[:, :2], ys[:, :2]), (xq, yq))
    assert float(weighted) == pytest.approx(float(cut), rel=1e-5)


def test_regularisation_and_added_losses_count_once():
    class AddsLoss(layers.Layer):
        def call(self, x):
            self.add_loss(0.25 * keras.ops.mean(x))
            return x

    regularizer = keras.regularizers.L2(0.5)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            AddsLoss(),
            layers.Dense(1, kernel_regularizer=regularizer, activity_regularizer="l1"),
        ]
    )
    learner = MAML(model, 0.1, 0)
    learner.compile("sgd", "mse", **FAST)
    support, (xq, yq) = regression()
    for _ in range(2):  # a second trace must not count anything again
        learner.compile("sgd", "mse", **FAST)
        loss, _ = learner.meta_gradients(support, (xq, yq))
    kernel, bias = learner.get_weights()
    outputs = xq @ kernel + bias
    per_task = (
        np.mean((outputs - yq) ** 2, axis=(1, 2))
        + 0.5 * np.sum(kernel**2)
        + 0.25 * np.mean(xq, axis=(1, 2))
        + 0.01 * np.sum(np.abs(outputs), axis=(1, 2)) / 4  # Keras: per example
    )
    assert float(loss) == pytest.approx(np.mean(per_task), rel=1e-5)


def test_weights_that_no_loss_touches_get_a_zero_gradient():
    case = zoo.CASES["subclassed"]
    learner = MAML(case.build(), 0.1, 2)
    learner.compile("sgd", case.loss, **FAST)
    _, gradients = learner.meta_gradients(*zoo.episodes(case))
    unused = [
        np.abs(g).max() == 0
        for g, v in zip(gradients, learner.trainable_variables, strict=True)
        if any(v is w for w in learner.model.unused.weights)
    ]
    assert unused == [True, True]
    assert sum(np.abs(g).max() > 0 for g in gradients) == len(gradients) - 2


def test_frozen_layers_stay_fixed_in_both_loops():
    case = zoo.CASES["frozen"]
    learner = MAML(case.build(), 0.5, 2)
    learner.compile("sgd", case.loss, **FAST)
    support, query = zoo.episodes(case)
    frozen = [v.numpy() for v in learner.model.non_trainable_variables]
    learner.fit((support, query), epochs=2, verbose=0)
    adapted = learner.adapt(support[0][0], support[1][0])
    for model in (learner.model, adapted):
        for before, variable in zip(frozen, model.non_trainable_variables, strict=True):
            assert np.array_equal(before, variable)
    assert not np.array_equal(adapted.trainable_variables[0], learner.trainable_variables[0])
    assert [layer.trainable for layer in adapted.layers] == [False, False, True]


def dropped(seed, steps=1, tasks=3):
    """Which inputs dropout kept, for each of a few calls of fit."""
    seen = []

    class Watch(layers.Layer):
        def call(self, x):
            return x

    model = keras.Sequential(
        [keras.Input((40,)), layers.Dropout(0.5, seed=seed), Watch(), layers.Dense(1)]
    )
    model.layers[-1].kernel.assign(2.0 ** np.arange(40)[:, None] % 1009)
    learner = MAML(model, 0.0, 1)
    learner.compile(keras.optimizers.SGD(0.0), "mae", **FAST)
    ones = np.ones((tasks, 1, 40), "float32")
    episode = ((ones, ones[..., :1] * 0), (ones, ones[..., :1] * 0))
    for _ in range(steps):
        seen.append(learner.fit(episode, verbose=0).history["loss"][0])
    return learner, episode, seen


def test_dropout_differs_by_step_and_repeats_with_its_seed():
    _, _, first = dropped(seed=1, steps=4)
    _, _, again = dropped(seed=1, steps=4)
    _, _, other = dropped(seed=2, steps=4)
    assert first == again and len(set(first)) == 4
    assert not set(first) & set(other)


def test_dropout_differs_by_task():
    losses = [dropped(seed=1, tasks=tasks)[2][0] for tasks in (1, 2, 3)]
    assert len(set(losses)) == 3  # the mean over tasks would not change if they dropped alike


def test_dropout_is_off_in_evaluation_and_adaptation():
    learner, episode, _ = dropped(seed=1)
    expected = learner.model.predict(episode[1][0][0], verbose=0)
    for task in learner.predict(episode, verbose=0):
        np.testing.assert_allclose(task, expected, rtol=1e-6)
    assert learner.evaluate(episode, verbose=0)[0] == pytest.approx(float(expected[0, 0]), 1e-5)


class Moments(layers.Layer):
    """Normalises as many custom layers do."""

    def call(self, x):
        mean, variance = keras.ops.moments(x, axes=[-1], keepdims=True)
        return (x - mean) / keras.ops.sqrt(variance + 0.1)


class NoTrainingArgument(keras.Model):
    """Its call knows nothing of phases; the dropout inside does."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dropout, self.head = layers.Dropout(0.5, seed=1), layers.Dense(1)

    def call(self, x):
        return self.head(self.dropout(x))


def sequence(*stack, shape, dtype="float32"):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *stack, layers.Dense(1)])


ODD = {
    "custom moments": (lambda: sequence(layers.Dense(4), Moments(), shape=(3,)), (3,), "float32"),
    "no training argument": (NoTrainingArgument, (3,), "float32"),
    "time distributed": (
        lambda: sequence(
            layers.TimeDistributed(layers.Dense(3, "tanh")), layers.Flatten(), shape=(4, 2)
        ),
        (4, 2),
        "float32",
    ),
    "bytes rescaled": (
        lambda: sequence(
            layers.Rescaling(1 / 255),
            layers.Conv2D(2, 2),
            layers.Flatten(),
            shape=(4, 4, 1),
            dtype="uint8",
        ),
        (4, 4, 1),
        "uint8",
    ),
    "masked sequence": (
        lambda: sequence(
            layers.Embedding(5, 3, mask_zero=True), layers.LSTM(3), shape=(2,), dtype="int32"
        ),
        (2,),
        "int32",
    ),
    "noise": (
        lambda: sequence(layers.Dense(3), layers.GaussianNoise(0.1, seed=1), shape=(3,)),
        (3,),
        "float32",
    ),
    "spatial dropout": (
        lambda: sequence(layers.SpatialDropout1D(0.3, seed=1), layers.Flatten(), shape=(4, 2)),
        (4, 2),
        "float32",
    ),
}


@pytest.mark.parametrize("name", [zoo.slow(n) if n == "masked sequence" else n for n in ODD])
def test_unusual_models_learn(name):
    build, shape, dtype = ODD[name]
    random = np.random.default_rng(0)
    draw = lambda: random.integers(0, 5, size=(2, 4, *shape)).astype(dtype)  # noqa: E731
    x_support, x_query = draw(), draw()
    y = np.full((2, 4, 1), 3.0, "float32")
    learner = MAML(build(), 0.01)
    learner.compile(keras.optimizers.Adam(0.05), "mse", **FAST)
    data = tf.data.Dataset.from_tensors(((x_support, y), (x_query, y))).repeat()
    losses = learner.fit(data, epochs=4, steps_per_epoch=10, verbose=0).history["loss"]
    assert losses[-1] < 0.9 * losses[0]


def test_mixed_precision_learns():
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(8, "relu", dtype="mixed_bfloat16"), layers.Dense(1)]
    )
    learner = MAML(model, 0.05)
    learner.compile(keras.optimizers.Adam(0.05), "mse", **FAST)
    data = tf.data.Dataset.from_tensors(regression()).repeat()
    losses = learner.fit(data, epochs=3, steps_per_epoch=20, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]
    assert {v.dtype for v in learner.trainable_variables} == {"float32"}
