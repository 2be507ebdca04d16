"""Meta-gradient and Fisher matrix equal finite differences of a policy written in NumPy."""

import dataclasses
import functools
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from keras import layers
from zoo import slow

from keras_maml.algorithm.update_rules import GradientDescent, MetaSGD
from keras_maml.rl.advantages import Transitions
from keras_maml.rl.meta_objective import MetaObjective
from keras_maml.rl.policy import categorical, gaussian_policy
from keras_maml.rl.policy_gradient import PolicyObjective
from keras_maml.rl.proximal import clipped_surrogate_loss
from keras_maml.rl.trust_region import kl_hessian_product

pytestmark = pytest.mark.usefixtures("float64")

RATE, TASKS, TRANSITIONS = 0.1, 2, 12
SHAPES = [(2, 3), (3,), (3, 2), (2,), (2,)]  # two kernels with biases, logarithms of deviations
SIZES = [int(np.prod(shape)) for shape in SHAPES]


def arrays(theta):
    parts = np.split(theta, np.cumsum(SIZES)[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, SHAPES, strict=True)]


def tensors(nest):
    return tf.nest.map_structure(tf.constant, nest)


def flat(parts):
    return np.concatenate([np.ravel(p) for p in parts])


def make_stages(count, seed=0):
    random = np.random.default_rng(seed)
    weights = (random.uniform(size=(count, TASKS, TRANSITIONS)) < 0.8).astype(float)
    return [
        Transitions(
            observations=random.normal(size=(TASKS, TRANSITIONS, 2)),
            actions=random.normal(0, 0.7, size=(TASKS, TRANSITIONS, 2)),
            advantages=random.normal(size=(TASKS, TRANSITIONS)),
            weights=weights[i],
        )
        for i in range(count)
    ]


THETA = np.random.default_rng(5).normal(0, 0.3, sum(SIZES))
THETA[-2:] = [0.1, 0.3]


@functools.cache
def _compiled(method, steps, inner_loss="log_likelihood", **settings):
    model = gaussian_policy(2, 2, (3,), activation="tanh")
    policy = PolicyObjective(model, GradientDescent(RATE), inner_loss=inner_loss)

    @tf.function(autograph=False)
    def function(stages, weights, *arguments):
        objective = MetaObjective(policy, stages, **settings)
        # The actions of all stages were drawn with these weights and what they adapted to.
        objective = dataclasses.replace(objective, old=objective.outputs(tensors(arrays(THETA))))
        return getattr(objective, method)(weights, *arguments)

    return function


def run(method, case, theta, *vectors, stages=None):
    """Calls a method of `MetaObjective`; weights and vectors are flat."""
    stages = stages or make_stages(case["steps"] + 1)
    result = _compiled(method, **case)(
        tensors(stages), *[tensors(arrays(v)) for v in (theta, *vectors)]
    )
    if method == "kl_hessian":
        return flat(result)
    first, second = result
    return (float(first), flat(second) if method == "loss_and_gradient" else float(second))


# The same in NumPy.


def policy(theta, observations):
    """Means, logarithms of deviations, and what the gradient needs."""
    kernel, bias, last_kernel, last_bias, log_std = arrays(theta)
    hidden = np.tanh(observations @ kernel + bias)
    return hidden @ last_kernel + last_bias, log_std, hidden, last_kernel


def log_likelihood(theta, stage):
    mean, log_std, *_ = policy(theta, stage.observations)
    z = (stage.actions - mean) / np.exp(log_std)
    return np.sum(-0.5 * z**2 - log_std - 0.5 * np.log(2 * np.pi), axis=1)


def divergence(old, new, stage):
    (old_mean, old_log_std, *_), (mean, log_std, *_) = [
        policy(theta, stage.observations) for theta in (old, new)
    ]
    squares = np.exp(2 * old_log_std) + (old_mean - mean) ** 2
    kl = np.sum(log_std - old_log_std + 0.5 * squares / np.exp(2 * log_std) - 0.5, axis=1)
    return np.average(kl, weights=stage.weights)


def inner_gradient(theta, stage, factors):
    """Of minus the mean of log-likelihood times factors."""
    mean, log_std, hidden, last_kernel = policy(theta, stage.observations)
    shares = -(factors * stage.weights / stage.weights.sum())[:, None]
    z = (stage.actions - mean) / np.exp(log_std)
    at_mean = shares * z / np.exp(log_std)
    at_hidden = at_mean @ last_kernel.T * (1 - hidden**2)
    return flat(
        [
            stage.observations.T @ at_hidden,
            at_hidden.sum(0),
            hidden.T @ at_mean,
            at_mean.sum(0),
            np.sum(shares * (z**2 - 1), 0),
        ]
    )


def adapt(theta, stages, *, rates=RATE, likelihood_ratio=False, first_order=False):
    """The weights at every stage; where a gradient stops, `THETA` takes the place of theta."""
    path, anchors = [theta], [THETA]
    for stage in stages[:-1]:
        gradients = []
        for here in (path[-1], anchors[-1]):
            factors = stage.advantages
            if likelihood_ratio:
                old = log_likelihood(anchors[-1], stage)
                factors = factors * np.exp(log_likelihood(here, stage) - old)
            gradients.append(inner_gradient(here, stage, factors))
        anchors.append(anchors[-1] - rates * gradients[1])
        path.append(path[-1] - rates * gradients[1 if first_order else 0])
    return path


def of_task(stages, task):
    return [Transitions(*[x[task] for x in stage[:4]]) for stage in stages]


def reference(theta, stages, *, inner_kl_penalty=0.0, clip=None, **settings):
    """The meta-loss and the mean divergence."""
    losses, divergences = [], []
    for task in range(TASKS):
        own = of_task(stages, task)
        new, old = adapt(theta, own, **settings), adapt(THETA, own, **settings)
        ratio = np.exp(log_likelihood(new[-1], own[-1]) - log_likelihood(old[-1], own[-1]))
        gain = ratio * own[-1].advantages
        if clip:
            gain = np.minimum(gain, np.clip(ratio, 1 - clip, 1 + clip) * own[-1].advantages)
        kls = [divergence(*pair) for pair in zip(old, new, own, strict=True)]
        losses.append(-np.average(gain, weights=own[-1].weights) + inner_kl_penalty * sum(kls[:-1]))
        divergences.append(kls[-1])
    return np.mean(losses), np.mean(divergences)


def derivative(function, theta, width=1e-3):
    """By central differences of fourth order, one column per weight."""

    def along(unit):
        near, far = (
            function(theta + w * unit) - function(theta - w * unit) for w in (width, 2 * width)
        )
        return (8 * near - far) / (12 * width)

    return np.stack([along(unit) for unit in np.eye(len(theta))], axis=-1)


CASES = {
    "no step": {"steps": 0},
    "one step": {"steps": 1},
    "two steps": {"steps": 2},
    "first order": {"steps": 2, "first_order": True},
    "ProMP": {"steps": 2, "inner_loss": "likelihood_ratio", "inner_kl_penalty": 0.7},
    "penalty": {"steps": 2, "inner_kl_penalty": 0.7},
}


def in_numpy(case):
    """The reference with the settings of a case."""
    settings = {
        "likelihood_ratio": case.get("inner_loss") == "likelihood_ratio",
        "first_order": case.get("first_order", False),
        "inner_kl_penalty": case.get("inner_kl_penalty", 0.0),
    }
    return functools.partial(reference, stages=make_stages(case["steps"] + 1), **settings)


@pytest.mark.parametrize("name", ["no step", slow("one step"), "two steps", "first order", "ProMP"])
def test_the_meta_gradient_equals_finite_differences(name):
    case, expected = CASES[name], in_numpy(CASES[name])
    loss, gradient = run("loss_and_gradient", case, THETA)
    np.testing.assert_allclose(loss, expected(THETA)[0], rtol=1e-10)
    differences = derivative(lambda x: expected(x)[0], THETA)
    np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["one step", slow("penalty"), "ProMP"])
def test_the_meta_gradient_of_weights_that_drew_nothing(name):
    """Where no divergence is zero, and so has a gradient."""
    case, expected = CASES[name], in_numpy(CASES[name])
    theta = THETA + np.random.default_rng(6).normal(0, 0.1, THETA.shape)
    _, gradient = run("loss_and_gradient", case, theta)
    differences = derivative(lambda x: expected(x)[0], theta)
    np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-8)
    loss, kl = run("loss_and_kl", case, theta)
    np.testing.assert_allclose((loss, kl), expected(theta), rtol=1e-9)
    assert kl > 0.01


@pytest.mark.parametrize("inner_loss", ["log_likelihood", slow("likelihood_ratio"), slow("dice")])
def test_the_loss_changes_as_its_gradient_says(inner_loss):
    """At other weights than those that drew, where a line search and later epochs evaluate it."""
    case = {"steps": 2, "inner_loss": inner_loss}
    times = np.tile(np.arange(TRANSITIONS, dtype=np.int32) % 4, (TASKS, 1))
    stages = [stage._replace(times=times) for stage in make_stages(3)]
    random = np.random.default_rng(6)
    theta, direction = THETA + random.normal(0, 0.1, THETA.shape), random.normal(size=THETA.shape)
    _, gradient = run("loss_and_gradient", case, theta, stages=stages)
    slope = derivative(
        lambda x: run("loss_and_kl", case, theta + x[0] * direction, stages=stages)[0], np.zeros(1)
    )
    np.testing.assert_allclose(slope, gradient @ direction, rtol=1e-6)


def test_kinds_of_meta_gradient_differ():
    """Each passes its own finite differences; none would pass another's."""
    kinds = [CASES["two steps"], CASES["first order"], CASES["ProMP"]]
    gradients = [run("loss_and_gradient", kind, THETA)[1] for kind in kinds]
    for one, other in itertools.combinations(gradients, 2):
        assert np.abs(one - other).max() > 0.01 * np.abs(one).max()


def test_the_first_order_gradient_is_that_at_the_adapted_weights():
    gradients = []
    for task in range(TASKS):
        own = of_task(make_stages(3), task)
        fast = adapt(THETA, own)[-1]

        def loss(theta, own=own, fast=fast):
            gain = log_likelihood(theta, own[-1]) - log_likelihood(fast, own[-1])
            return -np.average(np.exp(gain) * own[-1].advantages, weights=own[-1].weights)

        gradients.append(derivative(loss, fast))
    _, gradient = run("loss_and_gradient", CASES["first order"], THETA)
    np.testing.assert_allclose(gradient, np.mean(gradients, 0), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("changed", range(3))
def test_every_stage_counts(changed):
    stages = make_stages(3)
    stages[changed] = make_stages(3, seed=1)[changed]
    before, after = [
        run("loss_and_gradient", CASES["two steps"], THETA + 0.1, stages=s)[0]
        for s in (make_stages(3), stages)
    ]
    assert abs(before - after) > 1e-3


def test_the_clipped_loss_is_that_of_proximal_policy_optimisation():
    random = np.random.default_rng(0)
    ratio, advantages = np.exp(random.normal(0, 0.5, 50)), random.normal(size=50)
    weights = (random.uniform(size=50) < 0.7).astype(float)
    assert ratio.min() < 0.8 and ratio.max() > 1.2
    # Gains beyond the clip count no further; losses count in full.
    limited = np.where(advantages > 0, np.minimum(ratio, 1.2), np.maximum(ratio, 0.8))
    expected = -np.average(limited * advantages, weights=weights)
    stage = Transitions(None, None, tf.constant(advantages), tf.constant(weights))
    found = clipped_surrogate_loss(tf.constant(ratio), stage, clip=0.2)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def fisher_matrix(adapted, theta, stage):
    """The full Fisher matrix of the weights that ``adapted(theta)`` gives."""
    # With respect to means and logarithms of deviations the Fisher matrix is diagonal.
    shares = (stage.weights / stage.weights.sum())[:, None]
    metric = shares / np.exp(2 * adapted(theta)[-2:])
    jacobian = derivative(lambda x: policy(adapted(x), stage.observations)[0], theta)
    log_std_jacobian = derivative(adapted, theta)[-2:]
    of_means = np.einsum("tai,ta,taj->ij", jacobian, metric, jacobian)
    return of_means + 2 * log_std_jacobian.T @ log_std_jacobian


@pytest.mark.parametrize("name", ["one step", slow("first order")])
def test_products_with_the_hessian_equal_the_full_fisher_matrix(name):
    case = CASES[name]
    found = np.stack([run("kl_hessian", case, THETA, unit) for unit in np.eye(len(THETA))])
    fishers = []
    for task in range(TASKS):
        own = of_task(make_stages(case["steps"] + 1), task)

        def adapted(theta, own=own):
            return adapt(theta, own, first_order=case.get("first_order", False))[-1]

        fishers.append(fisher_matrix(adapted, THETA, own[-1]))
    np.testing.assert_allclose(found, np.mean(fishers, 0), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("inner_loss", [slow("log_likelihood"), "dice"])
def test_products_may_take_every_third_transition(inner_loss):
    stages = make_stages(2)
    every_third = np.arange(TRANSITIONS) % 3 == 0
    masked = [stage._replace(weights=stage.weights * every_third) for stage in stages]
    if inner_loss == "dice":
        times = np.tile(np.arange(TRANSITIONS), (TASKS, 1)).astype(np.int32)
        stages = [stage._replace(times=times) for stage in stages]
        masked = [stages[0], masked[1]._replace(times=times)]
    model = gaussian_policy(2, 2, (3,), activation="tanh")
    objective = PolicyObjective(model, GradientDescent(0.1), inner_loss=inner_loss)

    def product(stages, **how):
        meta = MetaObjective(objective, tensors(stages))
        weights = tensors(arrays(THETA))
        meta = dataclasses.replace(meta, old=meta.outputs(weights))
        return flat(meta.kl_hessian(weights, tensors(arrays(np.ones(sum(SIZES)))), **how))

    np.testing.assert_allclose(product(stages, stride=3), product(masked), rtol=1e-9)
    assert not np.allclose(product(stages, stride=3), product(stages), rtol=0.01)


def test_with_learned_rates_the_products_are_exact_for_weights_and_rates():
    count = len(THETA)
    rates = RATE * np.random.default_rng(8).uniform(0.5, 1.5, count)
    both = np.concatenate([THETA, rates])
    objective = PolicyObjective(gaussian_policy(2, 2, (3,), activation="tanh"), MetaSGD(RATE))
    meta = MetaObjective(objective, tensors(make_stages(2)))
    assert [tuple(v.shape) for v in objective.variables().trained] == SHAPES * 2

    def of_both(vector):
        return [*tensors(arrays(vector[:count])), *tensors(arrays(vector[count:]))]

    @functools.partial(tf.function, autograph=False)
    def product(weights, vector):
        return dataclasses.replace(meta, old=meta.outputs(weights)).kl_hessian(weights, vector)

    found = [flat(product(of_both(both), of_both(unit))) for unit in np.eye(2 * count)]
    fishers = []
    for task in range(TASKS):
        own = of_task(make_stages(2), task)

        def adapted(both, own=own):
            return adapt(both[:count], own, rates=both[count:])[-1]

        fishers.append(fisher_matrix(adapted, both, own[-1]))
    np.testing.assert_allclose(found, np.mean(fishers, 0), rtol=1e-6, atol=1e-8)


def layers_of(name):
    """An input shape, and layers that are lent another form to be differentiated."""
    return {
        "strides": ((5, 4, 3), [layers.Conv2D(2, 3, 2, "same", activation="tanh")]),
        "pooling": (
            (5, 4, 3),
            [layers.Conv2D(2, 2, padding="same", activation="tanh"), layers.MaxPooling2D(2)],
        ),
        "depthwise": (
            (5, 4, 3),
            [layers.DepthwiseConv2D(2, padding="same"), layers.AveragePooling2D(2, padding="same")],
        ),
        "recurrence": ((4, 2), [layers.GRU(3)]),
    }[name]


@pytest.mark.parametrize("name", ["strides", "pooling", slow("depthwise"), slow("recurrence")])
@pytest.mark.parametrize("compiled", [False, slow(True)])
def test_products_go_through_layers_of_another_form(name, compiled):
    """v'Hv is that of the outputs' change along v, by finite differences."""
    random = np.random.default_rng(0)
    shape, middle = layers_of(name)
    model = keras.Sequential([keras.Input(shape), *middle, layers.Flatten(), layers.Dense(3)])
    stages = [
        Transitions(
            observations=random.normal(size=(1, 6, *shape)),
            actions=random.integers(0, 3, size=(1, 6)),
            advantages=random.normal(size=(1, 6)),
            weights=np.ones((1, 6)),
        )
        for _ in range(2)
    ]
    weights, vector = (
        [tf.constant(random.normal(size=v.shape)) for v in model.trainable_variables]
        for _ in range(2)
    )
    objective = PolicyObjective(
        model, GradientDescent(0.5), categorical, route="compiled" if compiled else "plain"
    )
    meta = MetaObjective(objective, tensors(stages), old=())

    @functools.partial(tf.function, autograph=False, jit_compile=compiled)
    def product(weights, vector):
        return meta.kl_hessian(weights, vector)

    @functools.partial(tf.function, autograph=False)
    def logits(weights):
        return meta.outputs(weights)[-1][0]

    def along(width):
        return logits([w + width * v for w, v in zip(weights, vector, strict=True)]).numpy()

    change = (along(1e-6) - along(-1e-6)) / 2e-6
    p = tf.nn.softmax(logits(weights)).numpy()
    expected = (p * change**2).sum() - ((p * change).sum(axis=1) ** 2).sum()
    found = flat(product(weights, vector)) @ flat(vector)
    np.testing.assert_allclose(found, expected / 6, rtol=1e-6)
    assert found > 1e-5


@pytest.mark.parametrize("name", ["one step", "first order"])
def test_the_hessian_is_the_curvature_of_the_divergence(name):
    expected, width = in_numpy(CASES[name]), 1e-3
    for seed in range(3):
        v = np.random.default_rng(seed).normal(0, 0.3, size=THETA.shape)
        there_and_back = [expected(THETA + s * width * v)[1] for s in (1, -1)]
        curvature = v @ run("kl_hessian", CASES[name], THETA, v)
        np.testing.assert_allclose(sum(there_and_back) / width**2, curvature, rtol=1e-4)


def test_products_with_the_hessian_of_discrete_actions():
    """The Fisher matrix of logits is diag(p) - p p'."""
    random = np.random.default_rng(0)
    matrix, start, vector = random.normal(size=(4, 3)), random.normal(size=3), random.normal(size=3)
    (found,) = kl_hessian_product(
        lambda weights: tf.linalg.matvec(matrix, weights[0]),
        lambda old, new: tfp.distributions.kl_divergence(categorical(old), categorical(new)),
        [tf.constant(start)],
        [tf.constant(vector)],
    )
    p = np.exp(matrix @ start) / np.exp(matrix @ start).sum()
    expected = matrix.T @ (np.diag(p) - np.outer(p, p)) @ matrix @ vector
    np.testing.assert_allclose(found, expected, rtol=1e-9)
