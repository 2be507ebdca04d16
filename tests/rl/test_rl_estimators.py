"""Meta-gradients equal those of a problem so small that every trajectory can be counted.

A walk of two steps: the first action leads to one of two places, and the second one ends there.
Trajectories stand in a batch once each, and count by their probability: what is estimated from
them is then its expectation.
"""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_maml.algorithm.update_rules import GradientDescent
from keras_maml.rl import categorical
from keras_maml.rl.advantages import Transitions
from keras_maml.rl.meta_objective import MetaObjective, credits_of
from keras_maml.rl.policy_gradient import INNER_LOSSES, PolicyObjective

pytestmark = pytest.mark.usefixtures("float64")

RATE, STEPS = 0.8, 2
# From the start (place 0) action 0 leads to place 1 and action 1 to place 2.
ACTIONS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
PLACES = np.stack([np.zeros(4, int), 1 + ACTIONS[:, 0]], axis=1)
REWARDS = np.array([[0.5, -1.0], [2.0, -0.4], [-1.5, 3.0]])[PLACES, ACTIONS]
TO_GO = np.cumsum(REWARDS[:, ::-1], axis=1)[:, ::-1]
# Probabilities of trajectories 1/6, 1/6, 1/6 and 1/2.
THETA = np.log([[1 / 3, 2 / 3], [1 / 2, 1 / 2], [1 / 4, 3 / 4]])


def action_probabilities(theta):
    """float64 ``[4, 2]``, of the actions of each trajectory."""
    odds = np.exp(theta)
    return (odds / odds.sum(axis=1, keepdims=True))[PLACES, ACTIONS]


def probabilities(theta):
    return action_probabilities(theta).prod(axis=1)


def value(theta):
    """The expected return of a step."""
    return (probabilities(theta) * TO_GO[:, 0]).sum() / STEPS


def derivative(function, theta, width=2e-3):
    """By central differences of fourth order, for a function of ``[3, 2]``."""
    units = np.eye(theta.size).reshape(-1, *theta.shape)

    def along(unit):
        near, far = (
            function(theta + w * unit) - function(theta - w * unit) for w in (width, 2 * width)
        )
        return (8 * near - far) / (12 * width)

    return np.stack([along(unit) for unit in units], axis=-1)


gradient_of_value = functools.partial(derivative, value)


def curvature(inner_loss):
    """The expectation of the second derivative of an inner loss, negative: what it takes for J''.

    The actions were drawn with `THETA`, whatever the weights in the loss.
    """
    drawn, old = probabilities(THETA), action_probabilities(THETA)

    def gain(theta):
        new = action_probabilities(theta)
        counted = {
            "log_likelihood": np.log(new),
            "likelihood_ratio": new / old,
            "dice": np.cumprod(new / old, axis=1) - np.insert(new / old, 0, 1, axis=1)[:, :-1],
        }[inner_loss]
        return (drawn[:, None] * counted * TO_GO).sum() / STEPS

    return derivative(functools.partial(derivative, gain), THETA)


def stage(theta, which=slice(None)):
    """Trajectories as transitions; they count by their probability, or one alone counts fully."""
    weights = probabilities(theta)[which] if isinstance(which, slice) else [1.0]
    which = which if isinstance(which, slice) else [which]
    flat = [np.reshape(values[which], -1) for values in (PLACES, ACTIONS, TO_GO)]
    return Transitions(
        observations=np.eye(3)[flat[0]],
        actions=flat[1],
        advantages=flat[2],
        weights=np.repeat(weights, STEPS),
        times=np.tile(np.arange(STEPS, dtype="int32"), len(weights)),
        performance=value(theta),
    )


def meta_gradient(stages_of_tasks, inner_loss="log_likelihood", exploration=False):
    """Of the meta-loss, negative; ``[6]``."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, use_bias=False)])
    objective = PolicyObjective(model, GradientDescent(RATE), categorical, inner_loss=inner_loss)
    batches = [
        Transitions(*(tf.constant(np.stack(values)) for values in zip(*tasks, strict=True)))
        for tasks in zip(*stages_of_tasks, strict=True)
    ]
    credits = batches[-1].performance if exploration else ()

    weights = [tf.constant(THETA)]
    old = MetaObjective(objective, batches).outputs(weights)
    objective = MetaObjective(objective, batches, old, credits=credits)
    return -np.ravel(objective.loss_and_gradient(weights)[1][0])


def adapted(theta, which=None):
    """The weights after an inner step: of all trajectories, or of one."""
    if which is None:
        return theta + RATE * gradient_of_value(theta).reshape(theta.shape)

    def gain(theta):
        return (np.log(action_probabilities(theta)[which]) * TO_GO[which]).sum() / STEPS

    return theta + RATE * derivative(gain, theta).reshape(theta.shape)


@pytest.mark.parametrize("inner_loss", INNER_LOSSES)
def test_the_expectation_of_an_inner_loss(inner_loss):
    """With all rollouts there are: only the second derivative is another one."""
    found = meta_gradient([[stage(THETA), stage(adapted(THETA))]], inner_loss)
    after = gradient_of_value(adapted(THETA))
    expected = after + RATE * curvature(inner_loss).T @ after
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_only_dice_has_no_bias():
    exact = derivative(lambda theta: value(adapted(theta)), THETA)
    found = {
        name: meta_gradient([[stage(THETA), stage(adapted(THETA))]], name) for name in INNER_LOSSES
    }
    np.testing.assert_allclose(found["dice"], exact, rtol=1e-5, atol=1e-8)
    bias = {name: np.linalg.norm(found[name] - exact) for name in INNER_LOSSES}
    assert min(bias["likelihood_ratio"], bias["log_likelihood"]) > 0.02 * np.linalg.norm(exact)


@pytest.mark.parametrize("exploration", [True, False])
def test_credit_for_rollouts_before_adaptation_makes_the_expectation_exact(exploration):
    """Each task adapts to one trajectory, and there are as many as their probabilities say."""
    tasks = [0, 1, 2, 3, 3, 3]
    stages = [[stage(THETA, task), stage(adapted(THETA, task))] for task in tasks]
    found = meta_gradient(stages, exploration=exploration)

    def expectation(theta):
        after = [value(adapted(theta, which)) for which in range(4)]
        return probabilities(theta) @ after

    exact = derivative(expectation, THETA)
    close = np.allclose(found, exact, rtol=1e-5, atol=1e-8)
    assert close == exploration
    if not exploration:
        assert np.linalg.norm(found - exact) > 0.1 * np.linalg.norm(exact)


def test_comparing_with_other_tasks_makes_no_bias():
    """Of credits times scores, over all pairs of independent tasks."""
    performance, scores = np.array([1.0, 5.0]), np.array([-3.0, 1.0])  # the score's mean is 0
    chances = np.array([0.25, 0.75])
    total = 0.0
    for one in range(2):
        for other in range(2):
            credits = credits_of(tf.constant(performance[[one, other]])).numpy()
            total += chances[one] * chances[other] * (credits @ scores[[one, other]]) / 2
    np.testing.assert_allclose(total, (chances * performance * scores).sum(), rtol=1e-12)
