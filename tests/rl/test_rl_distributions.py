"""Distributions of nested actions are products of their parts; statistics are closed forms."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from tf_agents.specs import BoundedTensorSpec
from tf_agents.trajectories import time_step as ts

from keras_maml.rl import (
    TaskPolicy,
    action_statistics,
    categorical,
    clipped_share,
    diagonal_gaussian,
    distributions,
    gaussian_policy,
    multi_categorical,
    parts,
    squashed_gaussian,
)
from keras_maml.rl.advantages import Transitions

BOTH = parts({"gear": multi_categorical([3, 2]), "steer": diagonal_gaussian})


def outputs(seed, points=4):
    random = np.random.default_rng(seed)

    def draw(size):
        return tf.constant(random.normal(size=(points, size)), tf.float32)

    return {"gear": draw(5), "steer": {"mean": draw(2), "log_std": draw(2)}}


def softmax(logits):
    exponentials = np.exp(np.asarray(logits, float))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def test_several_choices_are_independent_categoricals():
    logits = outputs(0)["gear"].numpy()
    first, second = softmax(logits[:, :3]), softmax(logits[:, 3:])
    distribution = multi_categorical([3, 2])(tf.constant(logits))
    total = 0.0
    for a in range(3):
        for b in range(2):
            found = np.exp(distribution.log_prob(tf.fill([4, 2], 0) + [a, b]))
            np.testing.assert_allclose(found, first[:, a] * second[:, b], rtol=1e-5)
            total += found
    np.testing.assert_allclose(total, 1.0, rtol=1e-5)
    actions = distribution.sample(500, seed=[0, 1]).numpy()
    assert actions.dtype == np.int64
    np.testing.assert_array_equal(actions.max(axis=(0, 1)), [2, 1])  # never what is padded


def test_divergence_and_entropy_of_choices_are_closed_forms_with_finite_gradients():
    old, new = outputs(0)["gear"], tf.Variable(outputs(1)["gear"])
    make = multi_categorical([3, 2])
    with tf.GradientTape() as tape:
        divergence = distributions.kl_divergence(make(old), make(new))
    expected, entropy = 0.0, 0.0
    for columns in (slice(0, 3), slice(3, 5)):
        p, q = softmax(old[:, columns]), softmax(new[:, columns])
        expected += (p * np.log(p / q)).sum(axis=1)
        entropy -= (p * np.log(p)).sum(axis=1)
    np.testing.assert_allclose(divergence, expected, rtol=1e-4)
    np.testing.assert_allclose(distributions.entropy(make(old)), entropy, rtol=1e-5)
    gradient = tape.gradient(divergence, new).numpy()
    shift = np.concatenate([softmax(x) for x in (new[:, :3], new[:, 3:])], axis=1)
    shift -= np.concatenate([softmax(x) for x in (old[:, :3], old[:, 3:])], axis=1)
    np.testing.assert_allclose(gradient, shift, atol=1e-5)


def test_a_dictionary_of_actions_is_a_product():
    old, new = BOTH(outputs(0)), BOTH(outputs(1))
    actions = distributions.sample(old, seed=tf.constant([0, 1]))
    assert actions["gear"].shape == (4, 2) and actions["steer"].shape == (4, 2)
    for function, arguments in (
        (lambda d, a: d.log_prob(a), (old, actions)),
        (lambda d, e: d.kl_divergence(e), (old, new)),
    ):
        joint = distributions.log_prob if arguments[1] is actions else distributions.kl_divergence
        expected = sum(function(arguments[0][key], arguments[1][key]) for key in old)
        np.testing.assert_allclose(joint(*arguments), expected, rtol=1e-6)
    np.testing.assert_array_equal(
        distributions.mode(old)["steer"], outputs(0)["steer"]["mean"].numpy()
    )
    with pytest.raises(ValueError, match="structure"):
        distributions.log_prob(old, actions["gear"])


def test_parts_of_a_draw_do_not_share_random_numbers():
    outputs = {key: {"mean": tf.zeros([1, 3]), "log_std": tf.zeros([1, 3])} for key in "ab"}
    two = parts({"a": diagonal_gaussian, "b": diagonal_gaussian})(outputs)
    drawn = distributions.sample(two, seed=tf.constant([3, 4]))
    assert not np.isclose(drawn["a"], drawn["b"]).any()
    again = distributions.sample(two, seed=tf.constant([3, 4]))
    np.testing.assert_array_equal(drawn["b"], again["b"])


def test_wrong_outputs_are_refused():
    with pytest.raises(ValueError, match=r"\[3, 2\] choices need 5 logits, got 4"):
        multi_categorical([3, 2])(tf.zeros([1, 4]))
    with pytest.raises(ValueError, match=r"positive integers.*got \[3, 0\]"):
        multi_categorical([3, 0])
    with pytest.raises(ValueError, match=r"keys \['gear', 'steer'\].*got \['gear'\]"):
        BOTH({"gear": tf.zeros([1, 5])})


def test_a_policy_acts_with_a_dictionary():
    inputs = keras.Input((3,))
    dense = keras.layers.Dense
    steer = {"mean": dense(2)(inputs), "log_std": dense(2)(inputs)}
    model = keras.Model(inputs, {"gear": dense(5)(inputs), "steer": steer})
    specs = {
        "gear": BoundedTensorSpec([2], tf.int64, 0, [2, 1]),
        "steer": BoundedTensorSpec([2], tf.float32, -1, 1),
    }
    time_steps = ts.time_step_spec(tf.TensorSpec([3], tf.float32))
    time_step = ts.restart(tf.ones([4, 3]), batch_size=4)
    policy = TaskPolicy(time_steps, specs, model, tasks=2, distribution=BOTH)
    actions = []
    for seed in (1, 1, 2):
        policy.seed_actions(seed)
        actions.append(tf.nest.map_structure(np.asarray, policy.action(time_step).action))
    np.testing.assert_array_equal(actions[0]["steer"], actions[1]["steer"])
    assert not np.isclose(actions[0]["steer"], actions[2]["steer"]).any()
    greedy = TaskPolicy(time_steps, specs, model, tasks=2, distribution=BOTH, greedy=True)
    mean = model(tf.ones([4, 3]))["steer"]["mean"]
    np.testing.assert_allclose(greedy.action(time_step).action["steer"], mean, rtol=1e-5)


def test_statistics_are_means_over_what_counts():
    log_std = np.log(np.arange(1.0, 13.0).reshape(2, 3, 2)).astype(np.float32)
    weights = tf.constant([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    gaussian = diagonal_gaussian({"mean": tf.zeros([2, 3, 2]), "log_std": tf.constant(log_std)})
    found = action_statistics(gaussian, weights)
    np.testing.assert_allclose(found.deviation, [2.5, 10.5], rtol=1e-6)
    # 1/2 log(2 pi e s^2) of each entry.
    entropies = (0.5 * np.log(2 * np.pi * np.e) + log_std).sum(axis=-1)
    expected = [entropies[0, :2].mean(), entropies[1, 1:].mean()]
    np.testing.assert_allclose(found.entropy, expected, rtol=1e-6)
    choices = categorical(tf.zeros([2, 3, 4]))
    both = action_statistics({"a": gaussian, "b": choices}, weights)
    np.testing.assert_allclose(both.deviation, [2.5, 10.5], rtol=1e-6)
    np.testing.assert_allclose(both.entropy, np.add(expected, np.log(4)), rtol=1e-6)
    alone = action_statistics(choices, weights)
    assert np.isnan(alone.deviation).all() and alone.deviation.shape == (2,)


def test_share_of_clipped_actions_is_that_of_a_gaussian_outside_its_bounds():
    normal = tfp.distributions.Normal(0.0, 2.0)
    actions = normal.sample([1, 4000, 3], seed=[0, 0])
    stage = Transitions((), actions, (), tf.ones([1, 4000]))
    expected = 2 * normal.cdf(-1.0)
    assert abs(clipped_share(stage, -1.0, 1.0)[0] - expected) < 4 * 0.5 / np.sqrt(12000)
    half = stage._replace(weights=tf.cast(tf.abs(actions[..., 0]) < 1, tf.float32))
    assert clipped_share(half, -1.0, 1.0)[0] < 0.75 * expected


LOW, HIGH = np.array([-1.0, 0.0]), np.array([3.0, 0.5])


def squashed(dtype="float64"):
    means, deviations = [[0.3, -0.8], [1.5, 0.0]], [[0.4, 1.2], [0.7, 0.3]]
    outputs = {
        "mean": tf.constant(means, dtype),
        "log_std": tf.math.log(tf.constant(deviations, dtype)),
    }
    return squashed_gaussian(LOW, HIGH)(outputs), outputs


def test_a_squashed_gaussian_is_a_distribution_within_its_bounds():
    """Its density adds up to 1, and on the same grid to its moments and entropy."""
    distribution, _ = squashed()
    before = np.linspace(-8, 8, 601)[:, None]  # so that the grid is fine near the bounds
    grid = (LOW + (HIGH - LOW) * (np.tanh(before) + 1) / 2).T
    slopes = (HIGH - LOW) / 2 * (1 - np.tanh(before) ** 2) * (16 / 600)
    cells = np.outer(*slopes.T)
    points = np.stack(np.meshgrid(*grid, indexing="ij"), axis=-1)
    log_density = distribution.log_prob(points[:, :, None]).numpy()
    mass = np.exp(log_density) * cells[..., None]
    np.testing.assert_allclose(mass.sum((0, 1)), 1, rtol=1e-5)
    entropy = -(mass * log_density).sum((0, 1))
    np.testing.assert_allclose(distribution.entropy(), entropy, atol=1e-3)
    mean = np.einsum("xyb,xya->ba", mass, points)
    square = np.einsum("xyb,xya->ba", mass, points**2)
    np.testing.assert_allclose(distribution.stddev(), np.sqrt(square - mean**2), rtol=1e-3)
    drawn = distribution.sample(2000, seed=[1, 2]).numpy()
    assert (drawn > LOW).all() and (drawn < HIGH).all()
    np.testing.assert_allclose(drawn.mean(0), mean, atol=5 * 2.0 / np.sqrt(2000))


def test_squashing_loses_no_divergence():
    one, outputs = squashed()
    other = squashed_gaussian(LOW, HIGH)(
        {"mean": outputs["mean"] + 0.5, "log_std": outputs["log_std"] - 0.2}
    )
    plain = [tfp.distributions.MultivariateNormalDiag(d.loc, d.scale) for d in (one, other)]
    expected = tfp.distributions.kl_divergence(*plain)
    np.testing.assert_allclose(distributions.kl_divergence(one, other), expected, rtol=1e-12)


def test_an_action_that_was_rounded_to_its_bound_has_a_finite_likelihood():
    distribution = squashed_gaussian()({"mean": tf.fill([1, 1], 30.0), "log_std": tf.zeros([1, 1])})
    drawn = distribution.sample(seed=[0, 0])
    assert drawn.numpy() == 1.0 == distribution.mode().numpy()
    assert np.isfinite(distribution.log_prob(drawn).numpy()).all()


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (-np.inf, 1.0), ([0, 0], [1, -1])])
def test_bounds_that_are_none_are_refused(low, high):
    with pytest.raises(ValueError, match="The bounds must be finite, low below high"):
        squashed_gaussian(low, high)


@pytest.mark.slow  # an agent
def test_a_policy_of_squashed_gaussians_acts_and_is_saved(tmp_path):
    time_steps = ts.time_step_spec(tf.TensorSpec([2], tf.float32))
    actions = BoundedTensorSpec([2], tf.float32, LOW, HIGH)
    policy = TaskPolicy(
        time_steps, actions, gaussian_policy(2, 2, (3,)), distribution=squashed_gaussian(LOW, HIGH)
    )
    policy.save(tmp_path / "policy")
    step = ts.restart(tf.ones([4, 2]), batch_size=4)
    loaded = tf.saved_model.load(str(tmp_path / "policy"))
    drawn = loaded.action(step).action.numpy()
    assert drawn.shape == (4, 2) and (drawn > LOW).all() and (drawn < HIGH).all()


INTEGERS = BoundedTensorSpec([], tf.int64, 0, 2)


@pytest.mark.parametrize(
    ("distribution", "spec", "message"),
    [
        (categorical(tf.zeros([1, 4])), INTEGERS, "has 3 choices of an action, but .* 4"),
        (categorical(tf.zeros([1, 2])), INTEGERS, "has 3 choices of an action, but .* 2"),
        (
            multi_categorical([3, 2])(tf.zeros([1, 5])),
            BoundedTensorSpec([2], tf.int64, 0, [2, 3]),
            r"has \[3, 4\] choices of an action, but .* \[3, 2\]",
        ),
        (
            diagonal_gaussian({"mean": tf.zeros([1, 2]), "log_std": tf.zeros([1, 2])}),
            BoundedTensorSpec([2], tf.int64, 0, [2, 3]),
            "actions of dtype int64, but .* float32. Pass .*categorical",
        ),
        (categorical(tf.zeros([1, 3])), {"gear": INTEGERS}, "or parts for a dictionary"),
        (
            categorical(tf.zeros([1, 3])),
            BoundedTensorSpec([], tf.int64, 1, 3),
            "from 1, a policy from 0. from_tf_agents adds .*Discrete with start=",
        ),
        (
            squashed_gaussian()({"mean": tf.zeros([1, 2]), "log_std": tf.zeros([1, 2])}),
            BoundedTensorSpec([2], tf.float32, -1, [1, 2]),
            r"have the maximum \[1.0, 2.0\], but .* \[1.0, 1.0\]. Pass squashed_gaussian\(low",
        ),
    ],
)
def test_actions_that_the_environment_does_not_take_are_refused(distribution, spec, message):
    with pytest.raises(ValueError, match=message):
        distributions.check_actions(distribution, spec)


ONE, TWO = (BoundedTensorSpec([size], tf.float32, -1, 1) for size in (1, 2))
tfd = tfp.distributions


@pytest.mark.parametrize(
    ("distribution", "spec", "message"),
    [
        (
            tfd.Normal(tf.zeros([1, 1]), 1.0),
            ONE,
            r"\(1,\) is to have one log_prob.*\(1, 1\) with N",
        ),
        (tfd.Categorical(logits=tf.zeros([1, 2, 3]), dtype=tf.int64), None, "Independent"),
        (
            tfd.Independent(tfd.TruncatedNormal(tf.zeros([1, 2]), 1.0, -1.0, 1.0), 1),
            TWO,
            "but Independent has no kl_divergence",
        ),
        (
            tfd.MixtureSameFamily(
                tfd.Categorical(logits=tf.zeros([1, 2])),
                tfd.MultivariateNormalDiag(tf.zeros([1, 2, 2])),
            ),
            TWO,
            "MixtureSameFamily has no kl_divergence",
        ),
        (
            tfd.TransformedDistribution(
                tfd.MultivariateNormalDiag(tf.zeros([1, 2])), tfp.bijectors.Tanh()
            ),
            TWO,
            "Distribution has no entropy.*squashed_gaussian",
        ),
    ],
)
def test_distributions_that_agents_cannot_learn_are_refused(distribution, spec, message):
    with pytest.raises(ValueError, match=message):
        spec = BoundedTensorSpec([2], tf.int64, 0, 2) if spec is None else spec
        distributions.check_actions(distribution, spec)


def test_own_distributions_that_have_what_agents_need_are_none_of_them():
    normal = tfd.Independent(tfd.Normal(tf.zeros([1, 1]), 1.0), 1)
    distributions.check_actions(normal, ONE)
    distributions.check_actions(
        tfd.Normal(tf.zeros([1]), 1.0), BoundedTensorSpec([], tf.float32, -1, 1)
    )
    beta = tfd.Independent(tfd.Beta(tf.fill([1, 2], 2.0), 3.0), 1)
    distributions.check_actions(beta, BoundedTensorSpec([2], tf.float32, 0, 1))


def test_actions_that_the_environment_takes_are_none_of_them():
    distributions.check_actions(categorical(tf.zeros([1, 3])), INTEGERS)
    two = BoundedTensorSpec([2], tf.int64, 0, [2, 1])
    distributions.check_actions(multi_categorical([3, 2])(tf.zeros([1, 5])), two)
    gaussian = {"mean": tf.zeros([1, 2]), "log_std": tf.zeros([1, 2])}
    for bound in (2.0, np.inf):  # of what has no bounds any part may be taken
        reals = BoundedTensorSpec([2], tf.float32, -bound, bound)
        distributions.check_actions(squashed_gaussian(-2.0, 2.0)(gaussian), reals)


@pytest.mark.parametrize(("batch", "event", "dimensions"), [((2,), (3,), 1), ((2, 3), (), 2)])
def test_the_advice_to_join_entries_is_right(batch, event, dimensions):
    scale = tf.ones([1, *batch, *event])
    normal = tfp.distributions.MultivariateNormalDiag if event else tfp.distributions.Normal
    entries = normal(0.0 * scale, scale)
    spec = tf.TensorSpec([*batch, *event])
    with pytest.raises(ValueError, match=f"reinterpreted_batch_ndims={dimensions}"):
        distributions.check_actions(entries, spec)
    distributions.check_actions(tfp.distributions.Independent(entries, dimensions), spec)
