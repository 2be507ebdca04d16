"""Weights of classes and examples count in both loops as they would by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_maml import MAML

pytestmark = pytest.mark.usefixtures("float64")

TASKS, RATE = 2, 0.3
CLASS_WEIGHT = {0: 0.5, 2: 3.0}  # the others count 1


def make_half(seed):
    random = np.random.default_rng(seed)
    x = random.normal(size=(TASKS, 5, 2))
    return x, random.integers(0, 3, (TASKS, 5)), random.uniform(0.2, 2, (TASKS, 5))


SUPPORT, QUERY = make_half(0), make_half(1)
EPISODES = SUPPORT[:2], QUERY[:2]
SAMPLE_WEIGHT = SUPPORT[2], QUERY[2]


def of_classes(y):
    return np.array([0.5, 1.0, 3.0])[y]


def make_learner():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    learner = MAML(model, RATE)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile(keras.optimizers.SGD(0.125), loss, jit_compile=False)
    return learner


def by_hand(variables, weights):
    """Fast weights of every task, the loss and the meta-gradient, with a weight per example."""

    def loss_of(kernel, bias, x, y, weight):
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, x @ kernel + bias)
        return tf.reduce_sum(weight * losses) / len(y)

    fast = []
    with tf.GradientTape() as outer:
        outer.watch(variables)
        total = 0.0
        for task in range(TASKS):
            with tf.GradientTape() as inner:
                inner.watch(variables)
                arrays = SUPPORT[0][task], SUPPORT[1][task], weights[0][task]
                loss = loss_of(*variables, *arrays)
            slopes = inner.gradient(loss, variables)
            fast.append([v - RATE * g for v, g in zip(variables, slopes, strict=True)])
            total += loss_of(*fast[-1], QUERY[0][task], QUERY[1][task], weights[1][task]) / TASKS
    return fast, float(total), outer.gradient(total, variables)


@pytest.mark.parametrize("kind", ["classes", "examples", "both"])
def test_weights_count_as_by_hand(kind):
    weights, given, of_support = [np.ones((TASKS, 5))] * 2, {}, {}
    if kind != "examples":
        weights = [w * of_classes(y) for w, (_, y) in zip(weights, EPISODES, strict=True)]
        given["class_weight"] = of_support["class_weight"] = CLASS_WEIGHT
    if kind != "classes":
        weights = [w * own for w, own in zip(weights, SAMPLE_WEIGHT, strict=True)]
        given["sample_weight"] = SAMPLE_WEIGHT
        of_support["sample_weight"] = SUPPORT[2][0]
    learner = make_learner()
    variables = [v.value + 0.0 for v in learner.trainable_variables]
    fast, loss, gradients = by_hand(variables, weights)
    results = learner.evaluate(EPISODES, verbose=0, return_dict=True, **given)
    assert results["loss"] == pytest.approx(loss, rel=1e-6)  # metrics are of single precision
    adapted = learner.adapt(SUPPORT[0][0], SUPPORT[1][0], **of_support)
    for ours, theirs in zip(adapted.get_weights(), fast[0], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)
    learner.fit(EPISODES, verbose=0, **given)
    triples = zip(learner.trainable_variables, variables, gradients, strict=True)
    for after, before, gradient in triples:
        np.testing.assert_allclose(after, before - 0.125 * gradient, rtol=1e-10)


def test_weights_that_do_not_fit_a_support_set_are_refused():
    learner = make_learner()
    x, y = SUPPORT[0][0], SUPPORT[1][0]
    with pytest.raises(
        ValueError, match=r"support set must have the same number of examples .* got \[4, 5\]"
    ):
        learner.adapt(x, y, sample_weight=np.ones(4))
    with pytest.raises(ValueError, match="class_weight must map classes from 0"):
        learner.adapt(x, y, class_weight={-1: 2.0})
