"""What `adapt` returns is a model from the start, and makes it when it is needed."""

import copy
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo

from keras_maml import MAML
from keras_maml.learners import adaptation
from keras_maml.learners.deferred import deferred

(SUPPORT, QUERY) = zoo.episodes(zoo.CASES["dense"])
X, Y, XQ = SUPPORT[0][0], SUPPORT[1][0], QUERY[0][0]


@pytest.fixture(name="learner")
def make_learner():
    learner = MAML(zoo.CASES["dense"].build(), 0.1)
    learner.compile("sgd", zoo.CASES["dense"].loss, jit_compile=False)
    return learner


@pytest.fixture(name="copies")
def count_copies(monkeypatch):
    copies, make = [], adaptation.copy_with_values

    def counted(*arguments):
        copies.append(make(*arguments))
        return copies[-1]

    monkeypatch.setattr(adaptation, "copy_with_values", counted)
    return copies


def test_predicting_needs_no_copy_and_a_copy_predicts_the_same(learner, copies):
    adapted = learner.adapt(X, Y)
    assert isinstance(adapted, type(learner.model))
    before = adapted.predict(XQ, verbose=0)
    assert not copies
    np.testing.assert_allclose(adapted(XQ), before, rtol=1e-6)
    assert len(copies) == 1
    np.testing.assert_allclose(adapted.predict(XQ, verbose=0), before, rtol=1e-6)
    assert type(adapted) is type(learner.model)
    assert len(copies) == 1


def test_predicting_from_a_list_of_inputs_needs_no_copy_and_other_kinds_of_numbers_do(copies):
    inputs = [keras.Input(X.shape[1:]) for _ in range(2)]
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Add()(inputs)))
    learner = MAML(model, 0.1)
    learner.compile("sgd", "mse", jit_compile=False)
    adapted = learner.adapt([X, X], Y)
    expected = adapted.predict([XQ, XQ], verbose=0)
    assert not copies
    doubles = [tf.cast(XQ, "float64")] * 2
    np.testing.assert_allclose(adapted.predict(doubles, verbose=0), expected, rtol=1e-6)
    assert len(copies) == 1


def test_it_keeps_the_weights_it_was_adapted_with(learner):
    early, late = learner.adapt(X, Y), learner.adapt(X, Y)
    expected = early.get_weights()
    learner.fit((SUPPORT, QUERY), verbose=0)
    for weights, same in zip(late.get_weights(), expected, strict=True):
        assert np.array_equal(weights, same)


@pytest.mark.parametrize(
    "use",
    [
        lambda adapted: adapted.evaluate(XQ, np.asarray(QUERY[1][0]), verbose=0),
        lambda adapted: adapted.fit(X, Y, verbose=0),
        lambda adapted: adapted.predict(XQ, verbose=1),
        lambda adapted: adapted.summary(print_fn=lambda *_, **__: None),
        lambda adapted: setattr(adapted, "trainable", False),
        lambda adapted: keras.Sequential([keras.Input(XQ.shape[1:]), adapted]),
        lambda adapted: keras.models.clone_model(adapted),
        lambda adapted: copy.deepcopy(adapted),
        lambda adapted: vars(adapted)["built"],
    ],
)
def test_whatever_is_done_with_it_first_is_done_with_a_model(learner, copies, use):
    adapted = learner.adapt(X, Y)
    use(adapted)
    assert len(copies) == 1
    assert adapted.compiled


def test_what_is_frozen_later_stays_as_it_was():
    stack = [keras.layers.BatchNormalization(), keras.layers.Dense(1)]
    learner = MAML(keras.Sequential([keras.Input(X.shape[1:]), *stack]), 0.1)
    learner.compile("sgd", "mse", jit_compile=False)
    models = [learner.adapt(X, Y, batch_normalization="transductive") for _ in range(2)]
    expected = models[0].predict(XQ, verbose=0)
    stack[0].trainable = False
    learner.adapt(X, Y, batch_normalization="transductive")
    twice = np.concatenate([XQ, XQ])  # which has the same statistics
    np.testing.assert_allclose(models[0].predict(twice, verbose=0)[: len(XQ)], expected, 1e-5)
    np.testing.assert_allclose(models[1](XQ), expected, 1e-5)


@pytest.mark.parametrize("normalization", ["inductive", "transductive"])
def test_it_refuses_the_inputs_that_a_model_refuses(normalization):
    stack = [keras.layers.Embedding(5, 2), keras.layers.BatchNormalization(), keras.layers.Dense(1)]
    learner = MAML(keras.Sequential([keras.Input((), dtype="int32"), *stack]), 0.1)
    learner.compile("sgd", "mse", jit_compile=False)
    adapted = learner.adapt([0, 1, 4], [1.0, 2.0, 3.0], batch_normalization=normalization)
    for predict in (lambda x: adapted.predict(x, verbose=0), lambda x: adapted(x)):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"7 is not in \[0, 5\)"):
            predict(np.array([0, 7]))


def test_training_it_changes_its_predictions(learner):
    adapted = learner.adapt(X, Y)
    before = adapted.predict(XQ, verbose=0)
    adapted.set_weights([np.zeros_like(weight) for weight in adapted.get_weights()])
    assert np.any(before)
    assert not np.any(adapted.predict(XQ, verbose=0))


def test_changing_it_changes_its_predictions(learner):
    adapted = learner.adapt(X, Y)
    adapted.predict(XQ, verbose=0)
    adapted.layers[-1].activation = keras.activations.softplus
    np.testing.assert_allclose(adapted.predict(XQ, verbose=0), adapted(XQ), rtol=1e-6)


def test_it_predicts_as_its_class_does():
    class Doubling(keras.Model):
        def predict_step(self, data):
            return 2 * super().predict_step(data)

    inputs = keras.Input(X.shape[1:])
    learner = MAML(Doubling(inputs, keras.layers.Dense(1)(inputs)), 0.1)
    learner.compile("sgd", "mse", jit_compile=False)
    adapted = learner.adapt(X, Y)
    np.testing.assert_allclose(adapted.predict(XQ, verbose=0), 2 * adapted(XQ), rtol=1e-6)


def test_many_threads_that_use_it_first_get_one_model(learner, copies):
    adapted, results = learner.adapt(X, Y), []
    start = threading.Barrier(8)

    def use():
        start.wait()
        results.append(adapted(XQ).numpy())

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(copies) == 1
    assert len(results) == 8
    for result in results:
        np.testing.assert_allclose(result, results[0], rtol=1e-6)


def test_a_failure_is_told_to_everybody_who_asks():
    def fail():
        raise ValueError("no")

    nothing = deferred(keras.Model, fail, {"predict": lambda self, text: len(text)})
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            nothing.summary()
    assert nothing.predict("four") == 4
