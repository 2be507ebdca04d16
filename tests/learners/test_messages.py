"""Mistakes are refused before any work, with a message that says what to do."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo

from keras_maml import MAML, episodes, networks, update_rules
from keras_maml.learners import checks

X, Y = np.ones((2, 5, 3), "float32"), np.ones((2, 5, 1), "float32")


def make_learner(**options):
    learner = MAML(zoo.CASES["dense"].build(), 0.1)
    learner.compile("sgd", "mean_squared_error", **options)
    return learner


@pytest.mark.parametrize(
    ("episode", "message"),
    [
        ((X, Y), "must be .*x_support, y_support.*Map your dataset to that nesting"),
        (((X, Y),), "must be .*x_support, y_support"),
        (((X, Y), (X, Y), (X, Y)), "must be .*x_support, y_support"),
        (((X,), (X, Y)), r"support set must be \(x_support, y_support\).* got 1 entries"),
        (((X, Y, Y, Y), (X, Y)), "support set .* got 4 entries"),
        (((X, Y), (X, Y, Y, Y)), "query set .* got 4 entries"),
        (((X[0, 0], Y[0, 0]), (X, Y)), r"needs a task axis and an example axis.*batch\("),
        (((X, Y), (X[:1], Y[:1])), r"same number of tasks .* got \[1, 2\]"),
        (((X, Y[:, :4]), (X, Y)), r"inputs and targets of the support set .* got \[4, 5\]"),
        (((X[:0], Y[:0]), (X[:0], Y[:0])), r"at least one task, got .*float32\(0, 5, 3\)"),
        (((X[:, :0], Y[:, :0]), (X, Y)), r"support set of a task needs at least one example"),
        (((X, Y), (X[:, :0], Y[:, :0])), r"query set of a task needs at least one example"),
        (((X, Y), (X[..., :2], Y)), "x_support and x_query must have examples of the same shape"),
        (((X, Y), (X.astype("int32"), Y)), "x_support and x_query .* same shape and dtype"),
        ((({"a": X}, Y), (X, Y)), "x_support and x_query must be nested alike"),
        (
            ((X, Y), (X, np.full_like(Y, np.nan))),
            "y of the query set holds 10 .* not finite",
        ),
        (((X, np.full_like(Y, np.inf)), (X, Y)), "y of the support set .* task 0"),
    ],
)
def test_malformed_episodes(episode, message):
    learner = make_learner()
    before = learner.get_weights()
    if len(episode) == 2 and all(isinstance(half, tuple) for half in episode):
        with pytest.raises(ValueError, match=message):
            learner.meta_gradients(*episode)
    with pytest.raises(ValueError, match=message):
        learner.fit(tf.data.Dataset.from_tensors(episode), verbose=0)
    for ours, theirs in zip(before, learner.get_weights(), strict=True):
        assert np.array_equal(ours, theirs)


def test_an_empty_set_of_a_dataset_that_leaves_sizes_open():
    half = (tf.TensorSpec((None, None, 3)), tf.TensorSpec((None, None, 1)))
    dataset = tf.data.Dataset.from_generator(
        lambda: iter([((X[:, :0], Y[:, :0]), (X, Y))]), output_signature=(half, half)
    )
    with pytest.raises(ValueError, match="support set of a task needs at least one example"):
        make_learner().fit(dataset, verbose=0)


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range(label):
    learner = MAML(networks.fully_connected_classifier(3, (3,), (4,)), 0.1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile("sgd", loss)
    y = np.array([[0, 1, 2, 0, 1], [0, 1, 2, 0, label]])
    with pytest.raises(ValueError, match=r"must be in 0..2, since the model has 3 .* in task 1"):
        learner.fit(((X, y), (X, y)), verbose=0)


@pytest.mark.parametrize(
    "use",
    [
        lambda learner: learner.fit(((X, Y), (X, Y))),
        lambda learner: learner.evaluate(((X, Y), (X, Y))),
        lambda learner: learner.predict(((X, Y), (X, Y))),
        lambda learner: learner.train_on_batch(((X, Y), (X, Y))),
        lambda learner: learner.test_on_batch(((X, Y), (X, Y))),
        lambda learner: learner.predict_on_batch(((X, Y), (X, Y))),
        lambda learner: learner.adapt(X[0], Y[0]),
        lambda learner: learner.meta_gradients((X, Y), (X, Y)),
        lambda learner: learner.trajectories((X, Y), (X, Y), steps=1),
    ],
)
def test_a_learner_must_be_compiled(use):
    with pytest.raises(ValueError, match=r"call `compile\(\)` before"):
        use(MAML(zoo.CASES["dense"].build()))


def test_targets_belong_into_the_episodes():
    with pytest.raises(ValueError, match="fit takes episodes alone, .* the targets are in them"):
        make_learner().fit((X, Y), Y)


def test_one_batch_is_no_dataset():
    data = tf.data.Dataset.from_tensors(((X, Y), (X, Y)))
    with pytest.raises(TypeError, match="takes one meta-batch of arrays, .* or call fit, evaluate"):
        make_learner().train_on_batch(data)


@pytest.mark.parametrize("use", ["fit", "train_on_batch"])
def test_a_model_with_nothing_to_train_is_measured_and_not_trained(use):
    rule = update_rules.GradientDescent(0.1, clip_norm=1.0)
    learner = MAML(zoo.CASES["dense"].build(), update_rule=rule)
    learner.model.trainable = False
    learner.compile("sgd", "mean_squared_error", jit_compile=False)
    with pytest.raises(ValueError, match=f"{use} needs weights to train, .* Set trainable=True"):
        getattr(learner, use)(((X, Y), (X, Y)))
    after, before = learner.test_on_batch(((X, Y), (X, Y)))
    assert after == before == pytest.approx(np.mean((learner.model(X[0]) - Y[0]) ** 2), rel=1e-5)


def test_something_else_than_episodes():
    with pytest.raises(TypeError, match="fit takes a tf.data.Dataset, .*, got int"):
        make_learner().fit(3)


def test_an_empty_dataset():
    data = tf.data.Dataset.from_tensors(((X, Y), (X, Y))).take(0)
    with pytest.raises(ValueError, match="fit got a dataset without a single episode"):
        make_learner().fit(data)


def test_an_endless_dataset_needs_a_number_of_steps():
    learner = make_learner()
    endless = tf.data.Dataset.from_tensors(((X, Y), (X, Y))).repeat()
    for use, argument in (
        (learner.fit, "steps_per_epoch"),
        (learner.evaluate, "steps"),
        (learner.predict, "steps"),
    ):
        with pytest.raises(ValueError, match=f"would never finish. Pass {argument},"):
            use(endless)
        with pytest.raises(ValueError, match="would never finish"):
            use(endless, **{argument: 0})  # which Keras takes for no number
    with pytest.raises(ValueError, match="validation_data got an endless .* validation_steps"):
        learner.fit(endless, steps_per_epoch=1, validation_data=endless)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"inner_learning_rate": -0.1},
            ValueError,
            "inner_learning_rate must .* got -0.1",
        ),
        ({"inner_learning_rate": float("nan")}, ValueError, "finite number .* got nan"),
        ({"inner_steps": 1.5}, ValueError, "inner_steps must be an integer .* got 1.5"),
        ({"evaluation_steps": -1}, ValueError, "evaluation_steps must be .* got -1"),
        ({"batch_normalization": "group"}, ValueError, "batch_normalization .* got 'group'"),
        ({"task_map": "parallel"}, ValueError, "task_map must be one of .* got 'parallel'"),
        ({"model": 3}, TypeError, "model must be a keras.Model, got int"),
    ],
)
def test_wrong_settings(settings, error, message):
    with pytest.raises(error, match=message):
        MAML(**({"model": zoo.CASES["dense"].build()} | settings))


def dataset_with_nan_at(step, steps=12):
    """Meta-batches of which number ``step`` (from 1) holds a NaN."""
    x = np.random.default_rng(0).normal(size=(steps, *X.shape)).astype("float32")
    y = np.sum(x, axis=-1, keepdims=True)
    y[step - 1, 1, 0] = np.nan
    return tf.data.Dataset.from_tensor_slices(((x, y), (x, y)))


@pytest.mark.parametrize("steps_per_execution", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_training_stops_at_the_first_loss_that_is_not_finite(steps_per_execution):
    options = {"steps_per_execution": steps_per_execution}
    good, learner = make_learner(**options), make_learner(**options)
    learner.set_weights(good.get_weights())
    good.fit(dataset_with_nan_at(6).take(5), verbose=0)
    callbacks = keras.callbacks.CallbackList(add_history=True, model=learner)
    with pytest.raises(FloatingPointError, match="at training step 6; .* weights of step 5"):
        learner.fit(dataset_with_nan_at(6), verbose=0, callbacks=callbacks)
    for ours, theirs in zip(learner.get_weights(), good.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_terminate_on_nan_ends_training_without_an_error():
    history = make_learner().fit(
        dataset_with_nan_at(3), callbacks=[keras.callbacks.TerminateOnNaN()], verbose=0
    )
    assert np.isnan(history.history["loss"][0])


def test_a_model_that_cannot_be_copied_says_why():
    class Opaque(keras.Model):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def call(self, x):
            return self.layer(x)

    learner = MAML(Opaque(keras.layers.Dense(1)), 0.1)
    learner.compile("sgd", "mean_squared_error")
    adapted = learner.adapt(X[0], Y[0])
    assert adapted.predict(X[0], verbose=0).shape == np.shape(Y[0])  # needs no copy
    with pytest.raises(ValueError, match="(?s)Opaque cannot be copied: .* Give it a get_config"):
        adapted(X[0])


def test_more_ways_than_classes_and_too_few_images():
    sizes = {"ways": 3, "shots": 1, "queries": 1, "meta_batch_size": 2}
    with pytest.raises(ValueError, match="ways"):
        episodes.from_arrays(np.zeros((4, 2)), [0, 0, 1, 1], **sizes)
    with pytest.raises(ValueError, match="shots"):
        episodes.from_arrays(np.zeros((5, 2)), [0, 0, 1, 1, 2], **sizes)


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict", "meta_gradients"])
def test_a_strategy_with_several_replicas_is_refused(method, monkeypatch):
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    with strategy.scope():
        learner = make_learner(run_eagerly=True)
    monkeypatch.setattr(type(strategy), "num_replicas_in_sync", property(lambda self: 2))
    with pytest.raises(NotImplementedError, match=f"OneDeviceStrategy of 2.*call {method} outside"):
        getattr(learner, method)((X, Y), (X, Y))
    learner = make_learner(run_eagerly=True)
    with strategy.scope(), pytest.raises(NotImplementedError, match="call compile outside"):
        learner.compile("sgd", "mean_squared_error")


def test_a_byte_may_be_any_of_256_tokens():
    x, y = np.array([[[0], [255]]], "uint8"), np.ones((1, 2, 1), "float32")
    data = tf.data.Dataset.from_tensors(((x, y), (x, y)))
    assert len([*checks.checked(data, None, {None: 256})]) == 1
    with (
        pytest.raises(ValueError, match=r"integers in 0\.\.254.*, got 0\.\.255"),
        checks.input_errors(),
    ):
        [*checks.checked(data, None, {None: 255})]
