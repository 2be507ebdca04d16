"""Batch normalisation: whose statistics are used, and that nobody shares them by accident."""

import functools
import warnings

import keras
import numpy as np
import pytest
from keras import layers
from zoo import CASES, episodes

from keras_maml import MAML

CASE = CASES["nested"]


def make_learner(mode, case=CASE, **settings):
    learner = MAML(case.build(), 0.2, batch_normalization=mode, **settings)
    learner.compile("sgd", case.loss, jit_compile=False)
    return learner


@functools.cache
def trained_once(mode):
    """A learner whose programs several tests share; they do not depend on its weights."""
    return make_learner(mode, evaluation_steps=2)


def tiny_learner(mode):
    """Batch normalisation alone, then the identity: predictions can be worked out by hand."""
    stack = [layers.BatchNormalization(epsilon=0.1), layers.Dense(2, kernel_initializer="identity")]
    model = keras.Sequential([keras.Input((2,)), *stack])
    learner = MAML(model, 0.1, 0, batch_normalization=mode)
    learner.compile("sgd", "mean_squared_error", jit_compile=False)
    return learner


def data(seed=0):
    random = np.random.default_rng(seed)
    (xs, ys), (xq, yq) = (
        tuple(random.normal(2, 3, size=(2, n, 2)).astype("float32") for _ in "xy") for n in (5, 4)
    )
    return (xs, ys), (xq, yq)


@pytest.mark.parametrize("mode", ["transductive", "inductive"])
def test_a_query_is_normalised_by_the_batch_the_mode_says(mode):
    (xs, ys), (xq, yq) = data()
    predictions = tiny_learner(mode).predict(((xs, ys), (xq, yq)), verbose=0)
    source = xq if mode == "transductive" else xs
    mean, variance = source.mean(1, keepdims=True), source.var(1, keepdims=True)
    np.testing.assert_allclose(predictions, (xq - mean) / np.sqrt(variance + 0.1), atol=1e-5)


@pytest.mark.parametrize("mode", ["transductive", "inductive"])
def test_only_transductive_predictions_depend_on_the_other_queries(mode):
    (xs, ys), (xq, yq) = data()
    learner = tiny_learner(mode)
    changed = xq.copy()
    changed[:, 1:] += 1
    first, second = (learner.predict(((xs, ys), (x, yq)), verbose=0)[:, 0] for x in (xq, changed))
    assert np.array_equal(first, second) == (mode == "inductive")


@pytest.mark.parametrize("mode", ["transductive", "inductive"])
def test_tasks_never_share_statistics(mode):
    learner = trained_once(mode)
    one, other = episodes(CASE, seed=0), episodes(CASE, seed=1)
    mixed = keras.tree.map_structure(lambda a, b: np.concatenate([a[:1], b[1:]]), one, other)
    np.testing.assert_allclose(
        learner.predict(one, verbose=0)[0], learner.predict(mixed, verbose=0)[0], atol=1e-6
    )


@pytest.mark.parametrize(
    "mode", ["transductive", pytest.param("inductive", marks=pytest.mark.slow)]
)
def test_the_same_choice_holds_everywhere(mode):
    learner = trained_once(mode)
    (support, query) = episodes(CASE, tasks=2)
    moving = [v.numpy() for v in learner.non_trainable_variables]
    learner.fit((support, query), verbose=0)
    evaluated = learner.evaluate((support, query), verbose=0, return_dict=True)["loss"]
    predictions = learner.predict((support, query), verbose=0)
    for before, variable in zip(moving, learner.non_trainable_variables, strict=True):
        assert np.array_equal(before, variable)
    losses = []
    for i in range(2):
        adapted = learner.adapt(support[0][i], support[1][i], batch_normalization=mode)
        np.testing.assert_allclose(adapted.predict(query[0][i], verbose=0), predictions[i], 1e-4)
        losses.append(adapted.evaluate(query[0][i], query[1][i], verbose=0))
    assert evaluated == pytest.approx(np.mean(losses), rel=1e-4)


def test_the_flag_changes_the_meta_gradient():
    learners = [make_learner(mode) for mode in ("transductive", "inductive")]
    for learner in learners:
        learner.compile("sgd", CASE.loss, run_eagerly=True)
    learners[1].set_weights(learners[0].get_weights())
    gradients = [learner.meta_gradients(*episodes(CASE))[1][0] for learner in learners]
    assert not np.allclose(gradients[0], gradients[1], rtol=1e-2)


def test_a_frozen_layer_uses_what_it_has_stored():
    case = CASES["frozen"]
    learner = make_learner("transductive", case, evaluation_steps=0)
    frozen = learner.model.layers[1]
    frozen.moving_mean.assign([1.0, -2.0, 0.5, 3.0])
    support, query = episodes(case)
    expected = learner.model.predict(query[0][0], verbose=0)
    np.testing.assert_allclose(learner.predict((support, query), verbose=0)[0], expected, 1e-5)


def test_one_picture_alone_is_predicted_as_among_others():
    learner = trained_once("transductive")
    (support, query) = episodes(CASE)
    adapted = learner.adapt(support[0][0], support[1][0])
    together = adapted.predict(query[0][0], verbose=0)
    alone = [adapted.predict(query[0][0][i : i + 1], verbose=0)[0] for i in range(len(together))]
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(adapted(query[0][0]), together, rtol=1e-5, atol=1e-6)
    inductive = trained_once("inductive")
    inductive.set_weights(learner.get_weights())
    expected = inductive.predict((support, query), verbose=0)[0]
    np.testing.assert_allclose(together, expected, rtol=1e-4, atol=1e-5)


def test_a_transductive_prediction_does_not_depend_on_how_it_is_cut_and_warns_once_of_one():
    learner = trained_once("transductive")
    (support, query) = episodes(CASE)
    adapted = learner.adapt(support[0][0], support[1][0], batch_normalization="transductive")
    whole = adapted.predict(query[0][0], verbose=0)
    for verbose in (0, 1):  # with a program that is shared, and with Keras's own
        cut = adapted.predict(query[0][0], batch_size=2, verbose=verbose)
        np.testing.assert_allclose(cut, whole, rtol=1e-5, atol=1e-6)
    again = learner.adapt(support[0][0], support[1][0], batch_normalization="transductive")
    for predict in (adapted, functools.partial(again.predict, verbose=0)):
        with pytest.warns(UserWarning, match="One example alone is normalised by its own"):
            predict(query[0][0][:1])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            predict(query[0][0][:1])


def test_support_sets_of_many_sizes_share_a_program():
    learner = trained_once("inductive")
    (support, query) = episodes(CASE)
    learner.adapt(support[0][0], support[1][0])
    programs = len(learner._compiled_functions)
    for count in (1, 2, 3):
        for steps in (0, 1, 3):
            learner.adapt(support[0][0][:count], support[1][0][:count], steps=steps)
    assert len(learner._compiled_functions) == programs
