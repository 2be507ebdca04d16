"""What is changed on a learner is in force from the next step on, or raises."""

import keras
import numpy as np
import pytest

from keras_maml import MAML, callbacks, layers, meta_gradients, update_rules

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(4, 6, 3)).astype("float32")
EPISODES = ((X, X.sum(-1, keepdims=True)), (-X, -X.sum(-1, keepdims=True)))


@pytest.fixture
def learner():
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)]
    )
    learner = MAML(model, 0.1, inner_steps=2)
    learner.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=False)
    return learner


def losses(learner):
    return learner.evaluate(EPISODES, verbose=0, return_dict=True)


def test_another_rate_counts_at_the_next_step(learner):
    before = losses(learner)
    assert before["loss"] != before["loss_before"]
    learner.inner_learning_rate = 0.0
    after = losses(learner)
    assert after["loss"] == pytest.approx(after["loss_before"])
    assert learner.get_config()["inner_learning_rate"] == 0.0
    _, gradients = learner.meta_gradients(*EPISODES)
    learner.first_order = True  # without inner steps that makes no difference
    for ours, theirs in zip(learner.meta_gradients(*EPISODES)[1], gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("evaluation_steps", 0),
        ("update_rule", update_rules.GradientDescent(0.0)),
        ("adapted_layers", "head"),
    ],
)
def test_evaluation_follows_a_changed_setting(learner, name, value):
    before = losses(learner)
    setattr(learner, name, value)
    after = losses(learner)
    assert after["loss"] != pytest.approx(before["loss"], rel=1e-4)
    assert after["loss_before"] == pytest.approx(before["loss_before"])


def test_a_saved_learner_does_what_the_changed_one_does(learner, tmp_path):
    losses(learner)
    learner.update_rule = update_rules.PerLayerPerStep(0.2, steps=2)
    learner.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=False)  # which trains it
    learner.evaluation_steps = 3
    learner.task_map = "sequential"
    learner.meta_gradient = "first_order"
    expected = losses(learner)
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    assert losses(loaded) == pytest.approx(expected)
    assert loaded.update_rule.get_config() == learner.update_rule.get_config()
    assert (loaded.first_order, loaded.task_map) == (True, "sequential")


def test_a_layer_frozen_after_the_first_use_stays_as_it_is(learner):
    first, last = learner.model.layers
    learner.fit(EPISODES, verbose=0)
    learner.adapt(*(half[0] for half in EPISODES[0]))
    before = [first.get_weights(), last.get_weights()]
    first.trainable = False
    learner.fit(EPISODES, verbose=0)
    for ours, theirs in zip(first.get_weights(), before[0], strict=True):
        assert np.array_equal(ours, theirs)
    assert not np.array_equal(last.get_weights()[0], before[1][0])
    adapted = learner.adapt(*(half[0] for half in EPISODES[0]))
    assert np.array_equal(adapted.layers[0].get_weights()[0], first.get_weights()[0])
    assert not np.array_equal(adapted.layers[1].get_weights()[0], last.get_weights()[0])


def test_layers_without_weights_to_train_are_frozen_at_the_next_step():
    normalization = keras.layers.BatchNormalization(center=False, scale=False)
    stack = [keras.Input((3,)), normalization, keras.layers.Dense(1)]
    learner = MAML(keras.Sequential(stack), 0.0)
    learner.compile("sgd", "mse", jit_compile=False)
    y = X.sum(-1, keepdims=True)
    kernel, bias = (weight.numpy() for weight in learner.trainable_variables)

    def loss_of(inputs):
        return np.mean((inputs @ kernel + bias - y) ** 2)

    def standardized(task):
        return (task - task.mean(0)) / np.sqrt(task.var(0) + normalization.epsilon)

    of_batch = loss_of(np.stack([standardized(task) for task in X]))
    of_stored = loss_of(X / np.sqrt(1 + normalization.epsilon))  # mean 0 and variance 1 at first
    for trainable, expected in ((True, of_batch), (False, of_stored), (True, of_batch)):
        normalization.trainable = trainable
        results = learner.evaluate(((X, y), (X, y)), verbose=0, return_dict=True)
        assert results["loss"] == pytest.approx(expected, rel=1e-4)


def test_task_parameters_that_are_frozen_stay_as_they_are_at_the_next_step():
    context = layers.ContextParameters(2)
    learner = MAML(keras.Sequential([keras.Input((3,)), context, keras.layers.Dense(1)]), 0.1)
    learner.compile("sgd", "mse", jit_compile=False)
    adapted = learner.adapt(*(half[0] for half in EPISODES[0]))
    assert np.any(adapted.layers[0].context)
    context.trainable = False
    adapted = learner.adapt(*(half[0] for half in EPISODES[0]))
    assert not np.any(adapted.layers[0].context)


def test_a_setting_changed_while_training_counts_from_the_next_step_on(learner):
    class Halve(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.inner_learning_rate = 0.0

    history = learner.fit(EPISODES, epochs=2, verbose=0, callbacks=[Halve()]).history
    first, second = zip(history["loss"], history["loss_before"], strict=True)
    assert first[0] != pytest.approx(first[1], rel=1e-3)
    assert second[0] == pytest.approx(second[1])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("inner_steps", -1, "inner_steps must be an integer of at least 0, got -1"),
        ("first_order", "no", r"first_order must be one of \(False, True\), got 'no'"),
        ("rematerialize", 1, "rematerialize must be one of"),
        ("measure_before", "yes", "measure_before must be one of"),
        ("task_chunk", 0, "task_chunk must be an integer of at least 1"),
        ("batch_normalization", "batch", "batch_normalization must be one of"),
        ("inner_learning_rate", "fast", "inner_learning_rate must be a finite number"),
    ],
)
def test_a_wrong_value_changes_nothing(learner, name, value, message):
    config = learner.get_config()
    with pytest.raises(ValueError, match=message):
        setattr(learner, name, value)
    assert learner.get_config() == config


def test_numbers_of_numpy_are_numbers(learner):
    learner.inner_steps = np.int64(1)
    assert type(learner.inner_steps) is int
    support, query = ([half[0] for half in pair] for pair in EPISODES)
    ours, theirs = (learner.adapt(*support, steps=steps) for steps in (3, np.int64(3)))
    assert np.array_equal(ours.predict(query[0]), theirs.predict(query[0]))


def test_parts_cannot_change_unseen(learner):
    names = [learner.model.layers[0].name]
    learner.adapted_layers = names
    adapted = len(learner.partition().initial)
    names.append(learner.model.layers[1].name)
    assert len(learner.partition().initial) == adapted == 2
    learner.meta_gradient = meta_gradients.Implicit(2.0)
    with pytest.raises(AttributeError, match="give the learner another Implicit"):
        learner.meta_gradient.regularization = 100.0


class Doubled(meta_gradients.Exact):
    """A meta-gradient of a user's own."""

    def of_task(self, *args):
        outcome, gradients, after = super().of_task(*args)
        return outcome, [2 * gradient for gradient in gradients], after


@pytest.mark.parametrize(
    "meta_gradient", ["implicit", "reptile", Doubled()], ids=["implicit", "reptile", "own"]
)
def test_shorthands_do_not_put_another_algorithm_in_the_place_of_one(learner, meta_gradient):
    learner.meta_gradient = meta_gradient
    before = learner.meta_gradient
    annealing = callbacks.DerivativeOrderAnnealing(1)
    annealing.set_model(learner)
    for what, change in (
        ("first_order", lambda: setattr(learner, "first_order", True)),
        ("rematerialize", lambda: setattr(learner, "rematerialize", True)),
        ("DerivativeOrderAnnealing", annealing.on_train_begin),
    ):
        message = f"{what} is for .*the learner's is {type(before).__name__}: leave it out, or set"
        with pytest.raises(ValueError, match=message):
            change()
        assert learner.meta_gradient is before
    learner.meta_gradient = "first_order"  # as it says
    learner.rematerialize = True
    assert learner.first_order and learner.rematerialize
    learner.first_order = False
    assert type(learner.meta_gradient) is meta_gradients.Exact and learner.rematerialize


def test_another_rate_leaves_the_rest_of_a_rule_and_other_rules_as_they_are(learner):
    learner.update_rule = update_rules.GradientDescent(0.1, clip_norm=0.01)
    learner.inner_learning_rate = 0.5
    assert learner.update_rule.get_config()["clip_norm"] == 0.01
    x, y = EPISODES[0][0][0], EPISODES[0][1][0]
    adapted = learner.adapt(x, y, steps=1)
    pairs = zip(adapted.get_weights(), learner.model.get_weights(), strict=True)
    moved = np.sqrt(sum(np.sum((after - before) ** 2) for after, before in pairs))
    assert moved == pytest.approx(0.5 * 0.01, rel=1e-4)  # the gradient is longer than that
    learner.update_rule = rule = update_rules.Adam(0.1)
    with pytest.raises(ValueError, match="update rule is Adam: set update_rule, such as to Adam"):
        learner.inner_learning_rate = 0.2
    assert learner.update_rule is rule


def test_the_settings_of_a_rule_do_not_change_behind_the_learner(learner):
    with pytest.raises(AttributeError):
        learner.update_rule.learning_rate = 0.5
