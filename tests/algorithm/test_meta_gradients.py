"""The meta-gradient is right: closed form, finite differences, equality of routes."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from finite_differences import assert_equals_finite_differences, flat

from keras_maml import MAML

pytestmark = pytest.mark.usefixtures("float64")

VECTORIZED = {"task_map": "vectorized", "jit_compile": False}
# One inner step of these takes as long to trace as two of the others.
LARGE = (*zoo.SLOW, "paper", "normalization", "lstm", "attention")
SEQUENTIAL = {"task_map": "sequential", "jit_compile": False}


def make_learner(case, *, jit_compile=True, run_eagerly=False, **settings):
    learner = MAML(case.build(), **{"inner_learning_rate": 0.3, "inner_steps": 2} | settings)
    learner.compile("sgd", case.loss, jit_compile=jit_compile, run_eagerly=run_eagerly)
    return learner


@functools.cache
def _routed(name, route):
    keras.utils.set_random_seed(1234)
    case = zoo.CASES[name]
    steps = 1 if name in LARGE else 2
    learner = make_learner(case, inner_steps=steps, **dict(route))
    loss, gradients = learner.meta_gradients(*zoo.episodes(case))
    return learner, float(loss), [gradient.numpy() for gradient in gradients]


def routed(name, **route):
    """A learner with the same weights for every route, its loss and its meta-gradient."""
    return _routed(name, tuple(route.items()))


# --- against other mathematics ---------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.cases(late=(*zoo.SLOW, "tuple_inputs")))
def test_second_order_gradient_equals_finite_differences(name):
    learner, _, gradients = routed(name, **SEQUENTIAL)
    assert_equals_finite_differences(learner, gradients, zoo.episodes(zoo.CASES[name]))


@pytest.mark.parametrize("name", ["normalization", "nested"])
def test_inductive_gradient_equals_finite_differences(name):
    case = zoo.CASES[name]
    learner = make_learner(case, **SEQUENTIAL, inner_steps=1, batch_normalization="inductive")
    episodes = zoo.episodes(case)
    _, gradients = learner.meta_gradients(*episodes)
    assert_equals_finite_differences(learner, [g.numpy() for g in gradients], episodes)
    _, _, transductive = routed(name, **SEQUENTIAL)
    assert np.abs(flat(gradients) - flat(transductive)).max() > 1e-3


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("first_order", [False, True])
def test_linear_regression_equals_the_closed_form(steps, first_order):
    case = zoo.Case(
        lambda: keras.Sequential(
            [keras.Input((2,)), keras.layers.Dense(1, bias_initializer="normal")]
        ),
        (2,),
    )
    rate = 0.1
    learner = make_learner(
        case, inner_learning_rate=rate, inner_steps=steps, first_order=first_order
    )
    episodes = zoo.episodes(case, tasks=4)
    initial = flat(learner.model.get_weights())

    def quadratic(x, y):
        # mean (A theta - y)^2 has gradient H theta - b.
        a = np.concatenate([x, np.ones_like(x[:, :1])], axis=1)
        return 2 * a.T @ a / len(a), 2 * a.T @ y[:, 0] / len(a), np.mean(y**2)

    losses, gradients = [], []
    for task in range(4):
        support, query = keras.tree.map_structure(lambda t, i=task: t[i].numpy(), episodes)
        hessian, b, _ = quadratic(*support)
        theta, jacobian = initial, np.eye(3)
        for _ in range(steps):
            theta = theta - rate * (hessian @ theta - b)
            jacobian = (np.eye(3) - rate * hessian) @ jacobian
        hessian, b, constant = quadratic(*query)
        losses.append(theta @ hessian @ theta / 2 - b @ theta + constant)
        gradient = hessian @ theta - b
        gradients.append(gradient if first_order else jacobian.T @ gradient)

    loss, computed = learner.meta_gradients(*episodes)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-12)
    np.testing.assert_allclose(flat(computed), np.mean(gradients, axis=0), rtol=1e-10)


def ordinary_gradient(model, task_query):
    """The gradient of the loss of a plain Keras model."""
    x, y = task_query
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(keras.losses.mean_squared_error(y, model(x)))
        loss += tf.add_n(model.losses) if model.losses else 0.0
    return tape.gradient(loss, [v.value for v in model.trainable_variables])


@pytest.mark.parametrize("name", ["dense", "regularized", "frozen"])
def test_first_order_is_the_ordinary_gradient_at_the_adapted_weights(name):
    case = zoo.CASES[name]
    learner = make_learner(case, **VECTORIZED, first_order=True, inner_steps=3)
    support, query = zoo.episodes(case)
    expected = []
    for task in range(3):
        adapted = learner.adapt(*(part[task] for part in support))
        expected.append(flat(ordinary_gradient(adapted, [part[task] for part in query])))
    _, gradients = learner.meta_gradients(support, query)
    np.testing.assert_allclose(flat(gradients), np.mean(expected, axis=0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("first_order", [False, True])
def test_without_an_inner_rate_it_is_the_ordinary_gradient(first_order):
    case = zoo.CASES["dense"]
    learner = make_learner(case, **VECTORIZED, inner_learning_rate=0.0, first_order=first_order)
    support, query = zoo.episodes(case)
    _, gradients = learner.meta_gradients(support, query)
    # The mean over tasks of equal size is the mean over all examples.
    merged = [tf.reshape(part, [-1, part.shape[-1]]) for part in query]
    expected = flat(ordinary_gradient(learner.model, merged))
    np.testing.assert_allclose(flat(gradients), expected, rtol=1e-10, atol=1e-14)


def test_first_and_second_order_differ():
    case = zoo.CASES["dense"]
    _, _, exact = routed("dense", **SEQUENTIAL)
    keras.utils.set_random_seed(1234)
    _, approximate = make_learner(case, first_order=True).meta_gradients(*zoo.episodes(case))
    assert np.linalg.norm(flat(exact) - flat(approximate)) > 0.05 * np.linalg.norm(flat(exact))


# --- equality of routes ----------------------------------------------------------------------


def assert_same(computed, expected):
    (_, loss, gradients), (_, expected_loss, expected_gradients) = computed, expected
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-11)
    scale = np.abs(flat(expected_gradients)).max()
    np.testing.assert_allclose(
        flat(gradients), flat(expected_gradients), rtol=1e-9, atol=1e-11 * scale
    )


# The forms of single layers are tested in execution/; here of each kind of state one model.
ONCE_MORE = (
    *zoo.SLOW,
    "lstm",
    "convolution",
    "normalization",
    "nested",
    "subclassed",
    "shared_weights",
)
ONCE_MORE += ("dictionary_inputs", "tuple_inputs", "frozen", "embedding", "paper")


@pytest.mark.parametrize("name", zoo.cases(late=ONCE_MORE, of=lambda case: case.vectorizes))
def test_vectorized_equals_sequential(name):
    assert_same(routed(name, **VECTORIZED), routed(name, **SEQUENTIAL))


@pytest.mark.parametrize("name", ["dense", zoo.slow("convolution"), zoo.slow("lstm"), "dropout"])
def test_compiled_equals_uncompiled_equals_eager(name):
    expected = routed(name, **VECTORIZED)
    assert_same(routed(name, task_map="vectorized", jit_compile=True), expected)
    assert_same(routed(name, run_eagerly=True), expected)


def test_variables_that_no_loss_touches_have_zero_gradient():
    learner, _, gradients = routed("subclassed", **SEQUENTIAL)
    unused = {id(v) for v in learner.model.unused.trainable_variables}
    zero = [not g.any() for g in gradients]
    assert zero == [id(v) in unused for v in learner.trainable_variables]
