"""A learner that is saved and loaded goes on as if nothing had happened."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo

from keras_maml import MAML
from keras_maml.learners.adapted import TransductiveModel


def make_learner(name):
    case = zoo.CASES[name]
    learner = MAML(
        case.build(), 0.05, 2, 3, first_order=True, batch_normalization="inductive", name="mine"
    )
    learner.compile(keras.optimizers.Adam(0.01), case.loss, jit_compile=False)
    return learner


LATE = map(zoo.slow, ("dense", "subclassed", "paper", "dictionary_inputs"))


@pytest.mark.parametrize("name", ["dropout", *LATE])
def test_training_continues_bit_for_bit(name, tmp_path):
    learner, data = make_learner(name), zoo.episodes(zoo.CASES[name])
    learner.fit(data, epochs=2, verbose=0)
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    settings, others = learner.get_config(), loaded.get_config()
    del settings["model"], others["model"]
    assert settings == others and loaded.inner_steps == 2 and loaded.first_order
    assert not loaded.jit_compile
    assert np.array_equal(learner.predict(data, verbose=0), loaded.predict(data, verbose=0))
    for either in (learner, loaded):
        either.fit(data, epochs=2, verbose=0)
    ours = [*learner.variables, *learner.optimizer.variables]
    theirs = [*loaded.variables, *loaded.optimizer.variables]
    for a, b in zip(ours, theirs, strict=True):
        assert np.array_equal(a.numpy(), b.numpy())


def test_low_rank_factors_are_saved_and_go_on_learning(tmp_path):
    """Keras alone loads both as zeros, whose gradient is zero."""
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            keras.layers.Embedding(7, 3),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ]
    )
    for layer in (model.layers[0], model.layers[2]):
        layer.enable_lora(2)
    learner = MAML(model, 0.1)
    learner.compile(keras.optimizers.Adam(0.05), "mse", jit_compile=False)
    data = zoo.episodes(zoo.CASES["embedding"])
    learner.fit(data, epochs=3, verbose=0)
    learner.save(tmp_path / "learner.keras")
    learner.save_weights(tmp_path / "learner.weights.h5")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    kernel, a, b = (loaded.model.layers[2].weights[i] for i in (0, 2, 3))
    assert not kernel.trainable and np.any(a) and np.any(b)
    for ours, theirs in zip(learner.variables, loaded.variables, strict=True):
        assert np.array_equal(ours, theirs)
    for either in (learner, loaded):
        either.fit(data, verbose=0)
    for ours, theirs in zip(learner.variables, loaded.variables, strict=True):
        assert np.array_equal(ours, theirs)
    loaded.load_weights(tmp_path / "learner.weights.h5")
    before = loaded.evaluate(data, verbose=0)
    assert before != learner.evaluate(data, verbose=0)
    learner.load_weights(tmp_path / "learner.weights.h5")
    assert learner.evaluate(data, verbose=0) == before


def test_weights_alone_are_saved_and_loaded(tmp_path):
    data = zoo.episodes(zoo.CASES["dense"])
    learner = make_learner("dense")
    learner.fit(data, verbose=0)
    learner.save_weights(tmp_path / "learner.weights.h5")
    other = make_learner("dense")
    other.build_on(data)
    other.load_weights(tmp_path / "learner.weights.h5")
    assert np.array_equal(learner.predict(data, verbose=0), other.predict(data, verbose=0))


def test_a_transductive_adapted_model_is_saved_with_its_way_of_normalising(tmp_path):
    case = zoo.CASES["paper"]
    learner = MAML(case.build(), 0.1)
    learner.compile("sgd", case.loss, jit_compile=False)
    (x, y), (x_query, _) = zoo.episodes(case)
    adapted = learner.adapt(x[0], y[0], batch_normalization="transductive")
    adapted.save(tmp_path / "adapted.keras")
    loaded = keras.models.load_model(tmp_path / "adapted.keras")
    expected = adapted.predict(x_query[0], verbose=0)
    assert np.array_equal(loaded.predict(x_query[0], verbose=0), expected)
    assert not np.allclose(loaded.predict(x_query[0][:2], verbose=0), expected[:2])
    loaded.export(tmp_path / "1", verbose=False)
    served = tf.saved_model.load(tmp_path / "1")
    np.testing.assert_allclose(served.serve(x_query[0]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["adapted.keras", "adapted.weights.h5"])
def test_a_file_that_stands_is_kept_when_writing_fails(name, tmp_path, monkeypatch):
    adapted = TransductiveModel(zoo.CASES["dense"].build())
    save = adapted.save_weights if name.endswith(".h5") else adapted.save
    save(tmp_path / name)
    content = (tmp_path / name).read_bytes()

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        save(tmp_path / name)
    assert (tmp_path / name).read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_summary_names_the_wrapped_model():
    learner = make_learner("dense")
    lines = []
    learner.summary(print_fn=lambda line, **_: lines.append(line))
    assert "mine" in "".join(lines) and "sequential" in "".join(lines)
