"""What is changed on a learner is in force from the next step on, or raises."""

import keras
import numpy as np
import pytest

from keras_maml import MAML, update_rules

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


def test_the_settings_of_a_rule_do_not_change_behind_the_learner(learner):
    with pytest.raises(AttributeError):
        learner.update_rule.learning_rate = 0.5
