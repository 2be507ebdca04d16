"""Layers that are not adapted compute once per task what they computed in every step before."""

import keras
import numpy as np
import pytest
import zoo

from keras_maml import ANIL, MAML
from keras_maml.algorithm import objective

STEPS = 4


@keras.saving.register_keras_serializable("tests")
class Counting(keras.layers.Layer):
    """Counts how often it is traced."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.scale = self.add_weight(shape=(), initializer="ones")
        self.traced = []

    def call(self, x):
        self.traced.append(x.shape)
        return x * self.scale


def learner_of(case, **settings):
    learner = MAML(case.build(), **{"inner_learning_rate": 0.3, "inner_steps": 2} | settings)
    learner.compile("sgd", case.loss, jit_compile=False)
    return learner


INDUCTIVE = {"batch_normalization": "inductive"}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {}) for name in ("regularized", "dropout")),
        *(
            pytest.param(name, {}, marks=pytest.mark.slow)
            for name in ("nested", "paper", "attention")
        ),
        ("nested", {"rematerialize": True}),
        zoo.slow_if(True, "nested", {"first_order": True}),
        zoo.slow_if(True, "nested", INDUCTIVE),
        zoo.slow_if(True, "normalization", INDUCTIVE),
    ],
)
def test_remembering_changes_no_number(name, settings, monkeypatch):
    results = []
    for remembers in (True, False):
        if not remembers:
            monkeypatch.setattr(objective, "Memo", lambda adapted: None)
        keras.utils.set_random_seed(1)
        case = zoo.CASES[name]
        learner = learner_of(case, adapted_layers="head", task_map="sequential", **settings)
        support, query = zoo.episodes(case)
        if settings == INDUCTIVE:  # the same tensors under two ways of normalising
            query = support
        loss, gradients = learner.meta_gradients(support, query)
        measured = learner.evaluate((support, query), verbose=0)
        results.append([np.ravel(value) for value in (loss, *gradients, measured)])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-14)


def weights_read_elsewhere(how):
    """A model that reads its head's weights outside of the head, in an operation or a layer."""
    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(4, "tanh")(inputs)
    head = keras.layers.Dense(1, use_bias=False, name="head")
    ours = head(hidden)
    if how == "an argument":
        return keras.Model(inputs, ours + keras.ops.matmul(hidden, head.kernel))
    return keras.Model(inputs, ours + keras.layers.Lambda(lambda x: x @ head.kernel)(hidden))


@pytest.mark.parametrize("how", ["an argument", "a closure"])
def test_what_reads_weights_of_another_layer_is_computed_anew(how, monkeypatch):
    losses, rng = [], np.random.default_rng(0)
    episode = rng.normal(size=(1, 5, 3)), rng.normal(size=(1, 5, 1))
    for remembers in (True, False):
        if not remembers:
            monkeypatch.setattr(objective, "Memo", lambda adapted: None)
        keras.utils.set_random_seed(0)
        model = weights_read_elsewhere(how)
        learner = MAML(model, 0.2, adapted_layers=["head"], inner_steps=3, task_map="sequential")
        learner.compile("sgd", "mse", jit_compile=False)
        losses.append(learner.evaluate((episode, episode), verbose=0))
    np.testing.assert_allclose(*losses, rtol=1e-6)


def counting_model():
    counting = Counting()
    stack = [keras.layers.Dense(4, "tanh"), counting, keras.layers.Dense(1)]
    return keras.Sequential([keras.Input((3,)), *stack]), counting


@pytest.mark.parametrize("how", ["body is meta-trained", "body is frozen", "all is adapted"])
def test_a_body_is_called_once_per_set(how):
    model, counting = counting_model()
    settings = {"inner_steps": STEPS, "task_map": "sequential"}
    if how == "body is frozen":
        for layer in model.layers[:-1]:
            layer.trainable = False
    learner = (ANIL if how == "body is meta-trained" else MAML)(model, **settings)
    learner.compile("sgd", "mse", jit_compile=False)
    batch = zoo.episodes(zoo.CASES["dense"])
    learner.build_on(batch)
    counting.traced.clear()
    learner.meta_gradients(*batch)
    sets = [shape[0] for shape in counting.traced]
    assert sets == ([6] * STEPS + [5] if how == "all is adapted" else [6, 5])


@pytest.mark.parametrize("what", ["adapt", "trajectories"])
def test_a_loop_over_steps_uses_what_was_computed_before_it(what):
    model, counting = counting_model()
    learner = ANIL(model, inner_steps=STEPS, task_map="sequential")
    learner.compile("sgd", "mse", jit_compile=False)
    batch = (x, y), _ = zoo.episodes(zoo.CASES["dense"])
    learner.build_on(batch)
    counting.traced.clear()
    if what == "adapt":  # checks the shape; then the statistics of the support set are a head's
        learner.adapt(x[0], y[0])
        predicting = [None]
        assert [shape[0] for shape in counting.traced] == [6, None, *predicting]
    else:
        learner.trajectories(*batch, steps=STEPS)
        assert [shape[0] for shape in counting.traced] == [5, 6]
