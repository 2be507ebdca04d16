"""Each update rule takes the steps that its equation says, and has finite derivatives."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_maml import update_rules
from keras_maml.algorithm.meta_gradients import Implicit, get

pytestmark = pytest.mark.usefixtures("float64")

SHAPES = [(2, 3, 2, 4), (3, 2), (4,), ()]


def random_tensors(seed=0):
    random = np.random.default_rng(seed)
    return [tf.constant(random.normal(size=shape)) for shape in SHAPES]


def run(rule, steps=3):
    """The weights after steps whose gradients are the weights themselves and some noise."""
    rule.build_for(SHAPES)
    weights = random_tensors()
    slots = rule.begin(weights)
    for step in range(steps):
        gradients = [w + n for w, n in zip(weights, random_tensors(step + 1), strict=True)]
        weights, slots = rule.step(weights, gradients, slots, step)
    return weights


def run_optimizer(optimizer, steps=3):
    variables = [keras.Variable(w) for w in random_tensors()]
    for step in range(steps):
        noise = random_tensors(step + 1)
        optimizer.apply([v + n for v, n in zip(variables, noise, strict=True)], variables)
    return variables


# Keras keeps rates and decays in single precision: powers of two are the same in both. It adds
# epsilon before it corrects the bias, Adam's algorithm 1 after: a tiny one is the same in both.
@pytest.mark.parametrize(
    ("rule", "optimizer"),
    [
        (
            lambda: update_rules.Adam(0.125, 0.5, 0.75, epsilon=1e-30),
            lambda: keras.optimizers.Adam(0.125, 0.5, 0.75, epsilon=1e-30),
        ),
        (lambda: update_rules.Momentum(0.125, 0.75), lambda: keras.optimizers.SGD(0.125, 0.75)),
        (
            lambda: update_rules.GradientDescent(0.125, clip_norm=0.5),
            lambda: keras.optimizers.SGD(0.125, global_clipnorm=0.5),
        ),
        (
            lambda: update_rules.Momentum(0.125, 0.75, clip_value=0.25),
            lambda: keras.optimizers.SGD(0.125, 0.75, clipvalue=0.25),
        ),
    ],
)
def test_a_rule_takes_the_steps_of_the_optimizer_of_its_name(rule, optimizer):
    for ours, theirs in zip(run(rule()), run_optimizer(optimizer()), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_adam_adds_epsilon_to_the_corrected_root():
    """Algorithm 1 of the paper, with an epsilon that counts."""
    weights, means, squares = [w.numpy() for w in random_tensors()], [0.0] * 4, [0.0] * 4
    for step in range(3):
        for i, noise in enumerate(random_tensors(step + 1)):
            gradient = weights[i] + noise.numpy()
            means[i] = 0.9 * means[i] + 0.1 * gradient
            squares[i] = 0.999 * squares[i] + 0.001 * gradient**2
            root = np.sqrt(squares[i] / (1 - 0.999 ** (step + 1)))
            weights[i] = weights[i] - 0.1 * means[i] / (1 - 0.9 ** (step + 1)) / (root + 0.3)
    for ours, theirs in zip(run(update_rules.Adam(0.1, epsilon=0.3)), weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_meta_curvature_is_a_product_along_every_axis():
    rule = update_rules.MetaCurvature(0.3)
    rule.build_for(SHAPES)
    for plain, begun in zip(run(update_rules.GradientDescent(0.3)), run(rule), strict=True):
        np.testing.assert_allclose(begun, plain, rtol=1e-12)  # identities at first
    random = np.random.default_rng(1)
    for variable in rule.trainable_variables:
        variable.assign(random.normal(size=variable.shape))
    f, i, o, dense_i, dense_o, vector, scalar = (v.numpy() for v in rule.trainable_variables)
    weights, gradients = random_tensors(), [g.numpy() for g in random_tensors(1)]
    kernel = np.einsum("pq,qio,ij,ok->pjk", f, gradients[0].reshape(6, 2, 4), i.T, o)
    expected = [
        kernel.reshape(2, 3, 2, 4),
        dense_i @ gradients[1] @ dense_o,
        vector * gradients[2],
        scalar * gradients[3],
    ]
    moved, _ = rule.step(weights, [tf.constant(g) for g in gradients], (), 0)
    for after, before, change in zip(moved, weights, expected, strict=True):
        np.testing.assert_allclose(after, before - 0.3 * change, rtol=1e-10)


@pytest.mark.parametrize(
    "rule",
    [
        update_rules.Adam(0.1, epsilon=1e-3),
        update_rules.Adam(0.1, beta_1=0.0, epsilon=1e-3),
        update_rules.GradientDescent(0.1, clip_norm=1.0),
        update_rules.GradientDescent(0.1, clip_value=1.0),
        update_rules.Momentum(0.1),
    ],
)
@pytest.mark.parametrize("value", [0.0, 0.3, -4.0])
def test_the_derivative_of_a_step_is_finite_and_right_at_zero_too(rule, value):
    def moved(gradient):
        weights = [tf.zeros_like(gradient)]
        weights, slots = rule.step(weights, [gradient], rule.begin(weights), 0)
        return rule.step(weights, [0.5 * gradient], slots, 1)[0][0]

    gradient = tf.constant([value], "float64")
    with tf.GradientTape() as tape:
        tape.watch(gradient)
        result = moved(gradient)
    slope = tape.gradient(result, gradient)
    width = 1e-7
    expected = (moved(gradient + width) - moved(gradient - width)) / (2 * width)
    np.testing.assert_allclose(slope, expected, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize(
    "rule",
    [
        update_rules.GradientDescent(0.3, clip_norm=2.0),
        update_rules.Momentum(0.3, 0.5, clip_value=1.0),
        update_rules.Adam(0.3, 0.1, 0.2, 0.3),
        update_rules.MetaSGD(0.3),
        update_rules.PerLayerPerStep(0.3, steps=2),
        update_rules.MetaCurvature(0.3),
    ],
)
def test_a_rule_comes_back_from_its_config(rule):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(rule))
    for ours, theirs in zip(run(again), run(rule), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: update_rules.Momentum(0.1, momentum=1.0), "momentum must be a number of at least"),
        (lambda: update_rules.Adam(beta_2=-0.1), "beta_2 must be a number of at least 0"),
        (lambda: update_rules.Adam(epsilon=0.0), "epsilon must be a finite number above 0"),
        (lambda: update_rules.GradientDescent(0.1, clip_norm=0.0), "clip_norm must be a finite"),
        (lambda: update_rules.GradientDescent(0.1, 1.0, 1.0), "either clip_norm or clip_value"),
        (lambda: update_rules.MetaSGD(-1.0), "learning_rate must be a finite number of at least"),
        (lambda: Implicit(regularization=0.0), "regularization must be a finite number above"),
        (lambda: get("second"), "meta_gradient must be one of"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
