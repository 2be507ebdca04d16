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


def make_learner(positions=(), loss=None):
    model = keras.Sequential([keras.Input((*positions, 2)), keras.layers.Dense(3)])
    learner = MAML(model, RATE)
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile(keras.optimizers.SGD(0.125), loss, jit_compile=False)
    return learner


def by_hand(variables, weights, episodes=EPISODES):
    """Fast weights of every task, the loss and the meta-gradient, with a weight per label."""
    support, query = episodes

    def loss_of(kernel, bias, x, y, weight):
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, x @ kernel + bias)
        return tf.reduce_sum(weight * losses) / np.size(y)

    fast = []
    with tf.GradientTape() as outer:
        outer.watch(variables)
        total = 0.0
        for task in range(TASKS):
            with tf.GradientTape() as inner:
                inner.watch(variables)
                arrays = support[0][task], support[1][task], weights[0][task]
                loss = loss_of(*variables, *arrays)
            slopes = inner.gradient(loss, variables)
            fast.append([v - RATE * g for v, g in zip(variables, slopes, strict=True)])
            total += loss_of(*fast[-1], query[0][task], query[1][task], weights[1][task]) / TASKS
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


# As many steps of time as examples, which are not the one-hot targets of as many classes; pixels.
@pytest.mark.parametrize(
    ("positions", "targets"),
    [
        ((5,), "labels"),
        ((2, 4), "labels"),
        ((2, 4), "last_axis"),
        ((5,), "one_hot"),
        ((2, 4), "one_hot_values"),  # with a loss that does not say what targets are
    ],
)
def test_targets_by_position_are_weighted_by_position(positions, targets):
    random = np.random.default_rng(2)
    size = (TASKS, 5, *positions)
    halves = [(random.normal(size=(*size, 2)), random.integers(0, 3, size)) for _ in range(2)]
    weights = [of_classes(y) for _, y in halves]
    own = [random.uniform(0.2, 2, size[:2]) for _ in range(2)]  # of examples, beside those
    given = {"class_weight": CLASS_WEIGHT, "sample_weight": own}
    loss, as_given = None, [y for _, y in halves]
    if targets.startswith("one_hot"):
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        if targets == "one_hot_values":
            loss = lambda y, logits: keras.losses.categorical_crossentropy(y, logits, True)  # noqa: E731
        as_given = [np.eye(3)[y] for y in as_given]
    elif targets == "last_axis":
        as_given = [y[..., None] for y in as_given]
    data = tuple((x, y) for (x, _), y in zip(halves, as_given, strict=True))
    learner = make_learner(positions, loss)
    variables = [v.value + 0.0 for v in learner.trainable_variables]
    axes = (..., *[None] * len(positions))
    expected = [w * one[axes] for w, one in zip(weights, own, strict=True)]
    fast, total, _ = by_hand(variables, expected, halves)
    results = learner.evaluate(data, verbose=0, return_dict=True, **given)
    assert results["loss"] == pytest.approx(total, rel=1e-6)
    x, y = data[0]
    of_support = {"class_weight": CLASS_WEIGHT, "sample_weight": own[0][1]}
    adapted = learner.adapt(x[1], y[1], **of_support)
    for ours, theirs in zip(adapted.get_weights(), fast[1], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)


def test_labels_that_are_left_out_have_no_class_to_weight():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    (x, y), query = EPISODES
    y = np.where(y == 1, -1, y)
    weighted = (x, y, np.where(y < 0, 1.0, of_classes(y))), (*query, of_classes(query[1]))
    expected = make_learner(loss=loss)
    learner = make_learner(loss=loss)
    learner.set_weights(expected.get_weights())
    found = learner.evaluate(((x, y), query), class_weight=CLASS_WEIGHT, verbose=0)
    assert found == pytest.approx(expected.evaluate(weighted, verbose=0))


@pytest.mark.parametrize("dataset", [False, True])
def test_class_weights_of_targets_that_may_be_either_are_refused_before_any_work(dataset):
    x = np.random.default_rng(3).normal(size=(TASKS, 5, 4, 2))
    y = (x[..., 0] > 0).astype("float64")  # one of two classes at each of four positions
    model = keras.Sequential([keras.Input((4, 2)), keras.layers.Dense(1)])
    learner = MAML(model, RATE)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    learner.compile("sgd", loss, jit_compile=False)
    data = (x, y), (x, y)
    given = tf.data.Dataset.from_tensors(data) if dataset else data
    message = r"targets of shape \(.*, 5, 4\) that are not one-hot .* numpy.expand_dims\(y, -1\)"
    with pytest.raises(ValueError, match=message):
        learner.fit(given, class_weight={1: 3.0}, verbose=0)
    assert int(learner.optimizer.iterations) == 0
    with pytest.raises(ValueError, match=message):
        learner.adapt(x[0], y[0], class_weight={1: 3.0})
    data = tuple((x, y[..., None]) for x, y in data)  # as it says
    by_class = learner.evaluate(data, class_weight={1: 3.0}, verbose=0)
    data = tuple((x, y, 1 + 2 * y[..., 0]) for x, y in data)
    assert by_class == pytest.approx(learner.evaluate(data, verbose=0))


def test_weights_that_do_not_fit_a_support_set_are_refused():
    learner = make_learner()
    x, y = SUPPORT[0][0], SUPPORT[1][0]
    with pytest.raises(
        ValueError, match=r"support set must have the same number of examples .* got \[4, 5\]"
    ):
        learner.adapt(x, y, sample_weight=np.ones(4))
    with pytest.raises(ValueError, match="class_weight must map classes from 0"):
        learner.adapt(x, y, class_weight={-1: 2.0})
