"""Conjugate gradient, line search and step equal their closed forms."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_maml.rl import Proximal, TrustRegion
from keras_maml.rl.trust_region import conjugate_gradient, line_search


def positive_definite(size, seed=0):
    root = np.random.default_rng(seed).normal(size=(size, size))
    return root @ root.T + 0.1 * np.eye(size)


def split(vector):
    vector = tf.convert_to_tensor(vector)
    return [tf.reshape(vector[:4], [2, 2]), vector[4:]]


def joined(parts):
    return tf.concat([tf.reshape(part, [-1, 1]) for part in parts], 0)[:, 0]


def product_with(matrix):
    """Products with vectors that are cut into a 2 x 2 matrix and the rest."""
    return lambda parts: split(tf.linalg.matvec(matrix, joined(parts)))


def test_conjugate_gradient_equals_a_direct_solve():
    matrix, b = positive_definite(7), np.random.default_rng(1).normal(size=7)
    found, product = conjugate_gradient(
        product_with(matrix), split(b), iterations=20, residual_tolerance=1e-24
    )
    assert [part.shape.as_list() for part in found] == [[2, 2], [3]]
    np.testing.assert_allclose(joined(found), np.linalg.solve(matrix, b), rtol=1e-8)
    np.testing.assert_allclose(joined(product), b, rtol=1e-8)


def test_conjugate_gradient_is_exact_after_as_many_iterations_as_there_are_eigenvalues():
    basis, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(7, 7)))
    matrix = basis @ np.diag([1.0, 1, 1, 5, 5, 20, 20]) @ basis.T
    b = np.random.default_rng(1).normal(size=7)
    errors = []
    for iterations in (2, 3):
        found, product = conjugate_gradient(product_with(matrix), split(b), iterations=iterations)
        np.testing.assert_allclose(joined(product), matrix @ joined(found).numpy(), rtol=1e-10)
        errors.append(np.abs(joined(found) - np.linalg.solve(matrix, b)).max())
    assert errors[0] > 1e-3 and errors[1] < 1e-9


@pytest.mark.parametrize("tolerance", [1e-2, 1e-8])
def test_conjugate_gradient_stops_at_the_tolerance(tolerance):
    matrix, b = positive_definite(7), np.random.default_rng(1).normal(size=7)

    def solve(**limits):
        return joined(conjugate_gradient(product_with(matrix), split(b), **limits)[0]).numpy()

    one_by_one = [solve(iterations=i, residual_tolerance=0.0) for i in range(12)]
    residuals = [np.sum((matrix @ x - b) ** 2) for x in one_by_one]
    first = next(i for i, residual in enumerate(residuals) if residual < tolerance)
    assert 0 < first < 11
    found = solve(iterations=50, residual_tolerance=tolerance)
    np.testing.assert_allclose(found, one_by_one[first], rtol=1e-9)


def test_conjugate_gradient_of_nothing_is_nothing():
    for found in conjugate_gradient(product_with(np.eye(7)), split(np.zeros(7)), iterations=5):
        np.testing.assert_array_equal(joined(found), np.zeros(7))


def search(loss_and_kl, *, change=4.0, max_kl=100.0, tries=15, min_gain=0.0):
    weights = [tf.constant(0.0, tf.float64)]
    return line_search(
        weights,
        loss_and_kl(weights)[0],
        [tf.constant(change, tf.float64)],
        loss_and_kl,
        max_kl=max_kl,
        ratio=0.5,
        tries=tries,
        min_gain=min_gain,
    )


def parabola(weights):
    """A loss with its minimum in 1, and the square of the distance from 0 as the divergence."""
    return (weights[0] - 1.0) ** 2, weights[0] ** 2


@pytest.mark.parametrize(
    ("limits", "weight", "backtracks"),
    [
        ({}, 1.0, 2),  # 4 is worse than 0, and 2 is no better
        ({"change": 1.5}, 1.5, 0),
        ({"max_kl": 1.0}, 1.0, 2),  # at its limit, not beyond
        ({"max_kl": 0.99}, 0.5, 3),
        ({"max_kl": 0.05, "tries": 6}, 0.125, 5),
        ({"change": 1.5, "min_gain": 0.7}, 1.5, 0),  # which gains 0.75
        ({"change": 1.5, "min_gain": 0.8}, 0.75, 1),
    ],
)
def test_the_line_search_takes_the_longest_good_step(limits, weight, backtracks):
    step = search(parabola, **limits)
    assert step.accepted
    assert step.weights[0] == weight
    assert step.backtracks == backtracks
    assert (step.loss, step.kl) == parabola([weight])


@pytest.mark.parametrize(
    "loss_and_kl",
    [
        lambda weights: (weights[0] ** 2, weights[0] * 0),
        lambda weights: (-weights[0], weights[0] * 0 + 101),
        lambda weights: (weights[0] * 0, weights[0] * 0),
        lambda weights: (tf.where(weights[0] > 0, np.nan, 1.0), weights[0] * 0),
        lambda weights: (-weights[0], tf.where(weights[0] > 0, np.nan, weights[0])),
        lambda weights: (weights[0] * np.nan, weights[0] * 0),
    ],
    ids=["worse", "too far", "no better", "NaN loss", "NaN divergence", "NaN from the start"],
)
def test_a_line_search_that_finds_nothing_changes_nothing(loss_and_kl):
    step = search(loss_and_kl, tries=7)
    assert not step.accepted
    assert step.weights[0] == 0
    assert step.kl == 0
    assert step.backtracks == 7
    np.testing.assert_array_equal(step.loss, loss_and_kl([tf.constant(0.0, tf.float64)])[0])


def test_only_a_part_of_a_step_that_is_finite_is_taken():
    step = search(lambda weights: (tf.where(weights[0] > 1, np.nan, -weights[0]), weights[0]))
    assert step.accepted and step.weights[0] == 1


@pytest.mark.parametrize(("factor", "backtracks"), [(0.9, 0), (1.5, 1), (6.0, 5)])
def test_the_step_is_the_natural_gradient_as_long_as_the_limit_allows(factor, backtracks):
    """A linear loss, and a divergence that is `factor` times what its Hessian says."""
    fisher, gradient = positive_definite(7), np.random.default_rng(1).normal(size=7)
    damping, max_kl = 0.3, 0.02
    start = np.random.default_rng(2).normal(size=7)

    def loss_and_kl(weights):
        change = joined(weights) - start
        kl = 0.5 * factor * tf.tensordot(change, tf.linalg.matvec(damped, change), 1)
        return tf.tensordot(gradient, joined(weights), 1), kl

    damped = fisher + damping * np.eye(7)
    region = TrustRegion(max_kl, damping, iterations=20, residual_tolerance=1e-24)
    step = region.step(
        split(start),
        loss_and_kl(split(start))[0],
        split(gradient),
        product_with(fisher),
        loss_and_kl,
    )
    direction = np.linalg.solve(damped, gradient)
    longest = np.sqrt(2 * max_kl / (direction @ gradient)) * direction
    expected = start - 0.8**backtracks * longest
    assert step.accepted and step.backtracks == backtracks and step.kl <= max_kl
    np.testing.assert_allclose(joined(step.weights), expected, rtol=1e-8)
    np.testing.assert_allclose(step.loss, gradient @ expected, rtol=1e-8)


def test_the_limit_may_follow_a_schedule_and_a_gain_be_demanded():
    """A loss that gains half of what its gradient says, and half of the limit at each step."""
    region = TrustRegion(keras.optimizers.schedules.ExponentialDecay(0.08, 1, 0.5), damping=0.0)
    start, gradient = np.zeros(7), np.ones(7)

    def loss_and_kl(weights):
        squares = tf.tensordot(joined(weights), joined(weights), 1)
        return 0.5 * tf.reduce_sum(joined(weights)), 0.49 * squares

    def step(region, number):
        arguments = split(start), tf.constant(0.0, tf.float64), split(gradient)
        return region.step(*arguments, product_with(np.eye(7)), loss_and_kl, number)

    for number, limit in enumerate([0.08, 0.04, 0.02]):
        np.testing.assert_allclose(step(region, number).kl, 0.98 * limit, rtol=1e-5)
    assert step(dataclasses.replace(region, min_gain_ratio=0.49), 0).accepted
    assert not step(dataclasses.replace(region, min_gain_ratio=0.51), 0).accepted


@pytest.mark.parametrize("wrong", ["gradient", "hessian"])
def test_a_step_with_nan_changes_nothing(wrong):
    start, bad = np.arange(7.0), np.full(7, np.nan)
    step = TrustRegion().step(
        split(start),
        tf.constant(-start.sum()),
        split(bad if wrong == "gradient" else np.ones(7)),
        product_with(np.diag(bad if wrong == "hessian" else np.ones(7))),
        lambda weights: (-tf.reduce_sum(joined(weights)), tf.constant(0.0, tf.float64)),
    )
    assert not step.accepted
    np.testing.assert_array_equal(joined(step.weights), start)


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [
        (TrustRegion, "max_kl", 0.0),
        (TrustRegion, "max_kl", np.nan),
        (TrustRegion, "max_kl", np.inf),
        (TrustRegion, "max_kl", "a"),
        (TrustRegion, "iterations", 1.5),
        (Proximal, "epochs", 1.5),
        (Proximal, "learning_rate", np.inf),
        (TrustRegion, "damping", -1e-5),
        (TrustRegion, "residual_tolerance", -1.0),
        (TrustRegion, "backtrack_ratio", 1.0),
        (TrustRegion, "momentum", 1.0),
        (TrustRegion, "min_gain_ratio", 1.0),
        (TrustRegion, "iterations", 0),
        (TrustRegion, "max_backtracks", 0),
        (Proximal, "clip", 0.0),
        (Proximal, "clip", 1.0),
        (Proximal, "learning_rate", 0.0),
        (Proximal, "learning_rate", np.nan),
        (Proximal, "epochs", 0),
        (Proximal, "inner_kl_penalty", -1.0),
    ],
)
def test_settings_out_of_range_are_refused(kind, setting, value):
    with pytest.raises(ValueError, match=f"{setting}.*{value!r}"):
        kind(**{setting: value})
