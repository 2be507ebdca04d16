"""Returns, advantages and the baseline are what plain NumPy makes of them, episode by episode."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from tf_agents.trajectories import StepType, Trajectory

from keras_maml.rl import advantages, baseline

FIRST, MID, LAST = int(StepType.FIRST), int(StepType.MID), int(StepType.LAST)
STEPS = 8
# Lengths of the episodes of each environment; what does not fit into STEPS is cut off.
LENGTHS = [[3, 9], [8], [20], [2, 2, 9], [7, 1], [1, 1, 1, 1]]
DISCOUNT = 0.95


def step_types(lengths):
    types = [t for n in lengths for t in (FIRST, *[MID] * (n - 1), LAST)]
    return types[: STEPS + 1] + [FIRST] * (STEPS + 1 - len(types))


def make_trajectory(lengths=LENGTHS, seed=0):
    random = np.random.default_rng(seed)
    types = np.array([step_types(row) for row in lengths], np.int32)
    shape = types[:, 1:].shape
    return Trajectory(
        step_type=tf.constant(types[:, :-1]),
        next_step_type=tf.constant(types[:, 1:]),
        observation={
            "scalar": tf.constant(random.normal(size=shape), tf.float32),
            "vector": tf.constant(random.normal(0, 8, size=(*shape, 2)), tf.float32),
        },
        action=tf.constant(random.normal(size=(*shape, 1)), tf.float32),
        policy_info=(),
        reward=tf.constant(random.normal(size=shape), tf.float32),
        discount=tf.ones(shape),
    )


def complete_episodes(lengths=LENGTHS):
    """The environment and the steps of every episode that ends."""
    for environment, row in enumerate(lengths):
        start = 0
        for length in row:
            if start + length <= STEPS:
                yield environment, np.arange(start, start + length)
            start += length + 1


def reference_features(trajectory, environment, steps):
    x = np.concatenate(
        [
            trajectory.observation["scalar"].numpy()[environment, steps, None],
            trajectory.observation["vector"].numpy()[environment, steps],
        ],
        axis=1,
    ).astype(float)
    x = np.clip(x, -10, 10)
    t = np.arange(len(steps))[:, None] / 100
    return np.concatenate([x, x**2, t, t**2, t**3, np.ones_like(t)], axis=1)


def reference_returns(rewards):
    return np.array(
        [sum(DISCOUNT**k * r for k, r in enumerate(rewards[i:])) for i in range(len(rewards))]
    )


def reference_advantages(trajectory, tasks, gae_lambda):
    """``[environments, steps]``, 0 for what does not count; task by task, episode by episode."""
    result = np.zeros(trajectory.reward.shape)
    rewards = trajectory.reward.numpy().astype(float)
    side_by_side = len(result) // tasks
    for task in range(tasks):
        episodes = [e for e in complete_episodes() if e[0] // side_by_side == task]
        inputs = [reference_features(trajectory, *episode) for episode in episodes]
        returns = [reference_returns(rewards[episode]) for episode in episodes]
        coefficients = ridge_regression(np.concatenate(inputs), np.concatenate(returns))
        for episode, x in zip(episodes, inputs, strict=True):
            value = x @ coefficients
            surprise = rewards[episode] + DISCOUNT * np.append(value[1:], 0) - value
            result[episode] = [
                sum((DISCOUNT * gae_lambda) ** k * s for k, s in enumerate(surprise[i:]))
                for i in range(len(surprise))
            ]
        everything = np.concatenate([result[episode] for episode in episodes])
        for episode in episodes:
            result[episode] = (result[episode] - everything.mean()) / everything.std()
    return result


def ridge_regression(inputs, targets, ridge=1e-5):
    """Least squares with a row more per feature: the square root of the ridge on its diagonal."""
    size = inputs.shape[1]
    inputs = np.concatenate([inputs, np.sqrt(ridge) * np.eye(size)])
    return np.linalg.lstsq(inputs, np.concatenate([targets, np.zeros(size)]), rcond=None)[0]


def test_only_transitions_of_episodes_that_end_are_complete():
    expected = np.zeros([len(LENGTHS), STEPS], bool)
    for episode in complete_episodes():
        expected[episode] = True
    assert expected.any(1).tolist() == [True, True, False, True, True, True]
    np.testing.assert_array_equal(advantages.complete(make_trajectory()), expected)


def test_steps_are_counted_from_the_start_of_each_episode():
    times = advantages.episode_times(make_trajectory().step_type).numpy()
    assert times[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert times[5].tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    for environment, steps in complete_episodes():
        np.testing.assert_array_equal(times[environment, steps], np.arange(len(steps)))


def test_returns_end_with_their_episode():
    trajectory = make_trajectory()
    returns = advantages.discounted_returns(trajectory, DISCOUNT).numpy()
    for episode in complete_episodes():
        expected = reference_returns(trajectory.reward.numpy()[episode])
        np.testing.assert_allclose(returns[episode], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.9, 1.0])
def test_advantages_equal_a_loop_over_episodes(gae_lambda):
    trajectory = make_trajectory()
    found = advantages.transitions(trajectory, tasks=2, discount=DISCOUNT, gae_lambda=gae_lambda)
    expected = reference_advantages(trajectory, 2, gae_lambda).reshape(2, -1)
    np.testing.assert_allclose(found.advantages, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(found.weights, expected != 0)
    np.testing.assert_array_equal(
        found.observations["vector"].numpy().reshape(6, STEPS, 2), trajectory.observation["vector"]
    )
    np.testing.assert_array_equal(found.actions.numpy().reshape(6, STEPS, 1), trajectory.action)


def test_what_is_cut_off_or_between_episodes_changes_nothing():
    trajectory = make_trajectory()
    counts = advantages.complete(trajectory)
    other = make_trajectory(seed=1)
    mixed = trajectory.replace(
        reward=tf.where(counts, trajectory.reward, 100 * other.reward),
        observation={
            "scalar": tf.where(
                counts, trajectory.observation["scalar"], other.observation["scalar"]
            ),
            "vector": tf.where(
                counts[..., None], trajectory.observation["vector"], other.observation["vector"]
            ),
        },
    )
    estimate = {"tasks": 3, "discount": DISCOUNT, "gae_lambda": 0.9}
    np.testing.assert_allclose(
        advantages.transitions(mixed, **estimate).advantages,
        advantages.transitions(trajectory, **estimate).advantages,
        atol=1e-5,
    )


def test_every_task_has_a_baseline_and_a_scale_of_its_own():
    trajectory = make_trajectory()
    estimate = {"tasks": 2, "discount": DISCOUNT, "gae_lambda": 1.0}
    before = advantages.transitions(trajectory, **estimate).advantages
    factors = tf.constant([[1.0]] * 3 + [[4.0]] * 3)
    scaled = trajectory.replace(reward=trajectory.reward * factors)
    after = advantages.transitions(scaled, **estimate).advantages
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_allclose(after[1], before[1], rtol=1e-5)
    mixed = advantages.transitions(scaled, **estimate | {"tasks": 1}).advantages
    assert not np.allclose(tf.reshape(mixed, [2, -1]), before, atol=0.1)


def test_standardized_advantages_have_mean_0_and_deviation_1():
    found = advantages.transitions(make_trajectory(), tasks=2, discount=DISCOUNT, gae_lambda=0.5)
    for values, weights in zip(found.advantages.numpy(), found.weights.numpy(), strict=True):
        counted = values[weights == 1]
        np.testing.assert_allclose([counted.mean(), counted.std()], [0, 1], atol=1e-5)
        assert not values[weights == 0].any()


def test_equal_advantages_and_no_transitions_at_all_give_zeros():
    weights = tf.constant([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    values = tf.constant([[7.0, 7.0, 7.0], [1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(advantages.standardize(values, weights), np.zeros((2, 3)))


def test_the_baseline_is_ridge_regression_on_the_points_that_count():
    random = np.random.default_rng(0)
    inputs = random.normal(size=(3, 30, 5))
    targets = random.normal(size=(3, 30))
    weights = (random.uniform(size=(3, 30)) < 0.7).astype(np.float32)
    for ridge in (1e-5, 3.0):
        found = baseline.fit_predict(
            tf.constant(inputs), tf.constant(targets), tf.constant(weights), ridge
        )
        for task in range(3):
            counted = weights[task] == 1
            coefficients = ridge_regression(inputs[task, counted], targets[task, counted], ridge)
            np.testing.assert_allclose(found[task], inputs[task] @ coefficients, rtol=1e-9)


def test_the_baseline_bears_features_that_depend_on_each_other():
    """Hundreds of observations at their limit: without the ridge there would be no solution."""
    inputs = baseline.features(tf.fill([1, 2000, 125], 50.0), tf.range(2000)[None] % 100)
    targets = tf.random.stateless_normal([1, 2000], [0, 0])
    found = baseline.fit_predict(inputs, targets, tf.ones([1, 2000]))
    cubic = np.polynomial.Polynomial.fit(np.arange(2000) % 100, targets[0], 3)
    np.testing.assert_allclose(found[0], cubic(np.arange(2000) % 100), atol=1e-3)


def test_the_baseline_of_time_alone_is_a_cubic_of_time():
    times = tf.constant(np.tile(np.arange(50), (2, 3)), tf.int32)
    t = times.numpy() / 100
    cubic = np.stack([1 - 2 * t[0] + 5 * t[0] ** 3, -3 + t[1] ** 2])
    noise = np.random.default_rng(0).normal(size=(2, 50))
    noisy = cubic + np.concatenate([noise, -noise, 0 * noise], axis=1)  # its mean is nothing
    pictures = tf.zeros([2, 150, 64, 64, 3], tf.uint8)
    find = baseline.find_baseline("time")
    found = find(pictures, times, tf.constant(noisy, tf.float32), tf.ones([2, 150]))
    np.testing.assert_allclose(found, cubic, atol=1e-3)


@pytest.mark.parametrize("unused", [0, 30])
def test_the_standardized_baseline_is_ridge_regression_of_standardized_features(unused):
    random = np.random.default_rng(0)
    times = np.tile(np.arange(40, dtype=np.int32), (2, 3))
    observations = random.normal(3, [1, 5, 0], size=(2, 120, 3))  # the last is the same everywhere
    returns = random.normal(2, size=(2, 120)) + observations[..., 0]
    weights = np.ones((2, 120))
    weights[1, 120 - unused :] = 0
    given = [tf.constant(x, tf.float32) for x in (observations, returns, weights)]
    find = tf.function(functools.partial(baseline.standardized, penalty=0.5), jit_compile=True)
    values = find(given[0], tf.constant(times), *given[1:])
    for task, used in enumerate((slice(0, 120), slice(0, 120 - unused))):
        x, t = observations[task, used, :2], times[task, used, None] / 100
        clipped = np.clip(x, -10, 10)
        x = np.concatenate([clipped, clipped**2, t, t**2, t**3], 1)
        z, y = (x - x.mean(0)) / x.std(0), returns[task, used]
        # Ridge regression is least squares with a row for every penalised coefficient.
        rows = np.sqrt(0.5 * len(y)) * np.eye(x.shape[1])
        padded = np.concatenate([y - y.mean(), np.zeros(x.shape[1])])
        coefficients = np.linalg.lstsq(np.concatenate([z, rows]), padded, rcond=None)[0]
        np.testing.assert_allclose(values[task, used], z @ coefficients + y.mean(), atol=1e-4)


def test_the_standardized_baseline_leaves_noise_in_the_advantages():
    random = np.random.default_rng(0)
    observations = tf.constant(random.normal(size=(1, 100, 40)), tf.float32)
    returns = tf.constant(random.normal(size=(1, 100)), tf.float32)
    given = observations, tf.zeros([1, 100], tf.int32), returns, tf.ones([1, 100])
    left = {
        name: np.std(returns - np.asarray(baseline.find_baseline(name)(*given))) / np.std(returns)
        for name in ("linear", "standardized")
    }
    assert left["linear"] < 0.5 and left["standardized"] > 0.7, left


@pytest.mark.parametrize("gae_lambda", [0.5, 1.0])
def test_without_a_baseline_advantages_are_the_returns(gae_lambda):
    trajectory = make_trajectory()
    estimate = {"tasks": 2, "discount": DISCOUNT, "gae_lambda": gae_lambda}
    found = advantages.transitions(trajectory, **estimate, baseline=None)
    decayed = advantages.discounted_returns(trajectory, DISCOUNT * gae_lambda)
    weights = tf.cast(advantages.complete(trajectory), tf.float32)
    expected = advantages.standardize(tf.reshape(decayed, [2, -1]), tf.reshape(weights, [2, -1]))
    np.testing.assert_allclose(found.advantages, expected, atol=1e-5)


def test_a_baseline_of_ones_own_sees_transitions_and_is_subtracted():
    trajectory = make_trajectory()
    seen = {}

    def half(observations, times, returns, weights):
        seen.update(observations=observations, times=times, weights=weights)
        return 0.5 * returns

    estimate = {"tasks": 2, "discount": DISCOUNT, "gae_lambda": 1.0}
    found = advantages.transitions(trajectory, **estimate, baseline=half)
    # The return minus its half is the half, and its scale does not matter.
    without = advantages.transitions(trajectory, **estimate, baseline=None)
    np.testing.assert_allclose(found.advantages, without.advantages, atol=1e-5)
    assert seen["observations"]["vector"].shape == (2, 24, 2)
    np.testing.assert_array_equal(seen["weights"], found.weights)
    times = advantages.episode_times(trajectory.step_type)
    np.testing.assert_array_equal(seen["times"], tf.reshape(times, [2, -1]))
    with pytest.raises(ValueError, match=r"of shape \(2, 24\), got \(2, 23\)"):
        advantages.transitions(
            trajectory, **estimate, baseline=lambda o, t, returns, w: returns[:, 1:]
        )


def test_pictures_need_another_baseline_than_the_linear_one():
    message = "3528 numbers.*7060 features.*baseline='time'"
    for name in ("linear", "standardized"):
        smaller = f"{name}.*" + message.replace("3528", "1764").replace("7060", "3532")
        with pytest.raises(ValueError, match=smaller):
            baseline.check_baseline(name, tf.TensorSpec([42, 42], tf.uint8))
    trajectory = make_trajectory()
    trajectory = trajectory.replace(observation=tf.zeros([6, STEPS, 42, 42, 2], tf.uint8))
    estimate = {"tasks": 2, "discount": DISCOUNT, "gae_lambda": 1.0}
    with pytest.raises(ValueError, match=message):
        advantages.transitions(trajectory, **estimate)
    found = advantages.transitions(trajectory, **estimate, baseline="time")
    assert found.observations.dtype == tf.uint8  # pictures stay as small as they came
    baseline.check_baseline("time", tf.TensorSpec([42, 42], tf.uint8))
    baseline.check_baseline("linear", {"a": tf.TensorSpec([400]), "b": tf.TensorSpec([])})


@pytest.mark.parametrize("wrong", ["quadratic", 3, ["linear"]])
def test_other_baselines_are_refused(wrong):
    with pytest.raises(ValueError, match=r"'linear', 'standardized', 'time'.*a function.*got"):
        baseline.find_baseline(wrong)
