"""Trajectories are a function of the seed; returns count whole first episodes, task by task."""

import itertools

import keras
import numpy as np
import pytest
import rl_zoo
import tensorflow as tf
from rl_zoo import equal, make_agent, make_sampler
from tf_agents.trajectories import Trajectory

from keras_maml.algorithm.update_rules import GradientDescent
from keras_maml.rl import (
    Sampler,
    environments,
    episode_returns,
    evaluate,
    gaussian_policy,
    meta_iteration,
)

DIRECTIONS = np.array([-1.0, 1.0])


@pytest.fixture(scope="module")
def agent():
    return make_agent(rl_zoo.Line(6))


@pytest.fixture(scope="module")
def _sampler(agent):
    return make_sampler(agent, rl_zoo.Line(6, bound=1.0))


@pytest.fixture
def sampler(agent, _sampler):
    agent.reset_adaptation()
    _sampler.set_tasks(DIRECTIONS)
    return _sampler


def test_a_trajectory_is_what_the_environment_did(sampler):
    trajectory = sampler.draw(0)
    arrays = [np.asarray(a) for a in tf.nest.flatten(trajectory)]
    assert all(a.shape[:2] == (6, 5) for a in arrays)
    place, clock = np.moveaxis(trajectory.observation.numpy(), -1, 0)
    moves = np.clip(trajectory.action.numpy()[..., 0], -1, 1)
    goes_on = (trajectory.step_type != 2) & (trajectory.next_step_type != 2)
    assert not goes_on.numpy()[:, :-1].all()  # some episodes end early
    goes_on = goes_on.numpy()[:, :-1]
    np.testing.assert_allclose(
        (place + moves)[:, :-1][goes_on], place[:, 1:][goes_on], rtol=1e-5, atol=1e-6
    )
    directions = np.repeat(DIRECTIONS, 3)[:, None]
    expected = np.where(trajectory.step_type == 2, 0, moves * directions)
    np.testing.assert_allclose(trajectory.reward, expected, rtol=1e-6)
    starts = trajectory.step_type.numpy() == 0
    assert (clock[starts] == 0).all() and starts[:, 0].all() and starts.sum() > 6


def test_trajectories_are_a_function_of_the_seed(sampler):
    first = sampler.draw(3, 1)
    other = sampler.draw(3, 2)
    assert equal(first, sampler.draw(3, 1))
    assert not equal(first.action, other.action)
    assert not equal(first.observation[:, 0], other.observation[:, 0])  # resets
    fresh = make_sampler(make_agent(rl_zoo.Line(6)), rl_zoo.Line(6, bound=1.0))
    fresh.set_tasks(DIRECTIONS)
    assert equal(first, fresh.draw(3, 1))


def test_every_sequence_of_integers_is_another_seed(sampler):
    """Such as that of an evaluation, and of the first stage of a training iteration."""
    starts = [sampler.draw(*seed).observation[:, 0] for seed in [(5,), (5, 0), (5, 0, 0), (5, 1)]]
    for one, other in itertools.combinations(starts, 2):
        assert not equal(one, other)


@pytest.mark.parametrize("seed", [2**40, np.int64(5), np.uint32(7)])
def test_any_integer_is_a_seed(sampler, seed):
    assert equal(sampler.draw(0, seed), sampler.draw(0, int(seed)))


def test_the_environments_of_a_task_stand_side_by_side(sampler):
    assert sampler.environment.tasks.tolist() == [-1, -1, -1, 1, 1, 1]
    with pytest.raises(ValueError, match="6 environments cannot be divided among 4 tasks"):
        sampler.set_tasks(np.ones(4))
    assert sampler.environment.tasks.tolist() == [-1, -1, -1, 1, 1, 1]
    with pytest.raises(ValueError, match="steps must be an integer of at least 1, got 0"):
        Sampler(rl_zoo.Line(6), sampler.policy, steps=0)
    with pytest.raises(ValueError, match="6 environments cannot be divided among 0 tasks"):
        sampler.set_tasks(np.ones(0))
    with pytest.raises(ValueError, match="5 environments cannot be divided among the 2 tasks of"):
        Sampler(rl_zoo.Line(5), sampler.policy, steps=50)


def test_shorter_trajectories_than_the_horizon_are_refused(sampler):
    horizon = sampler.environment.horizon
    with pytest.raises(ValueError, match=f"steps must be at least {horizon}, the horizon"):
        Sampler(sampler.environment, sampler.policy, steps=horizon - 1)


def test_a_sampler_of_another_agent_is_refused(agent, sampler):
    other = make_agent(rl_zoo.Line(6))
    for use in (
        lambda: meta_iteration(other, sampler, DIRECTIONS, 0),
        lambda: evaluate(other, sampler, DIRECTIONS, [], seed=0),
    ):
        with pytest.raises(ValueError, match="must draw with the agent's own collect policy"):
            use()


def test_seeds_are_integers(sampler):
    with pytest.raises(TypeError, match="float"):
        sampler.draw(0.5)


@pytest.mark.parametrize("tasks", [np.ones(1), np.ones(3)])
def test_as_many_tasks_as_the_agent_has(agent, sampler, tasks):
    """Or a multiple: the baselines give every environment a task of its own."""
    with pytest.raises(ValueError, match="multiple of 2"):
        meta_iteration(agent, sampler, tasks, 0)
    with pytest.raises(ValueError, match="multiple of 2"):
        evaluate(agent, sampler, tasks, [], seed=0)


def test_returns_count_the_first_episode_of_each_environment():
    rewards = np.arange(1.0, 25.0).reshape(4, 6)
    next_types = np.array(
        [
            [1, 1, 2, 0, 1, 2],  # 1 + 2 + 3, then another episode
            [1, 1, 1, 1, 1, 2],  # 7 + .. + 12
            [2, 0, 2, 0, 2, 0],  # 13
            [1, 2, 0, 1, 1, 1],  # 19 + 20
        ],
        np.int32,
    )
    types = np.concatenate([np.zeros((4, 1), np.int32), next_types[:, :-1]], axis=1)
    trajectory = Trajectory(
        step_type=tf.constant(types),
        observation=(),
        action=(),
        policy_info=(),
        next_step_type=tf.constant(next_types),
        reward=tf.constant(rewards, tf.float32),
        discount=tf.ones([4, 6]),
    )
    np.testing.assert_allclose(episode_returns(trajectory, 2), [(6 + 57) / 2, (13 + 39) / 2])
    np.testing.assert_allclose(episode_returns(trajectory, 4), [6, 57, 13, 39])


def test_evaluation_adapts_step_by_step_with_fresh_rollouts(agent, sampler):
    rules = [GradientDescent(1.0), GradientDescent(0.5)]
    found = evaluate(agent, sampler, DIRECTIONS, rules, seed=4)
    returns = found.values["adaptation"]["return"]
    assert returns.shape == (2, 3) and found.tasks == 2
    agent.reset_adaptation()
    for step, rule in enumerate([*rules, None]):
        trajectory = sampler.draw(4, step)
        np.testing.assert_array_equal(returns[:, step], episode_returns(trajectory, 2))
        if rule:
            agent.adapt(trajectory, rule)
    # Without adaptation the rollouts of every step are those of the initial policy, but others.
    still = evaluate(agent, sampler, DIRECTIONS, [GradientDescent(0.0)], seed=4)
    still = still.values["adaptation"]["return"]
    np.testing.assert_array_equal(still[:, 0], returns[:, 0])
    agent.reset_adaptation()
    np.testing.assert_array_equal(still[:, 1], episode_returns(sampler.draw(4, 1), 2))
    assert not np.array_equal(still[:, 0], still[:, 1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": 0}, "tasks must be an integer of at least 1, got 0"),
        ({"inner_steps": -1}, "inner_steps must be .* got -1"),
        ({"inner_loss": "surrogate"}, "inner_loss must be one of .*'log_likelihood'.*'surrogate'"),
        ({"discount": 1.5}, "discount must be in 0 .. 1, got 1.5"),
        ({"gae_lambda": np.nan}, "gae_lambda must be in 0 .. 1, got nan"),
        ({"inner_learning_rate": -0.1}, "inner_learning_rate must be .* got -0.1"),
        ({"outer": "trpo"}, "outer must be .* got 'trpo'"),
    ],
)
def test_settings_of_an_agent_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_agent(rl_zoo.Line(6), **settings)


def test_a_model_that_is_not_built_is_refused():
    model = keras.Sequential([keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="must be built and have trainable variables"):
        make_agent(rl_zoo.Line(6), model)


def test_it_draws_from_the_environments_of_the_paper():
    environment = environments.TaskPyEnvironment(
        environments.TaskVectorEnv("Navigation2D-v0", 4, horizon=3)
    )
    agent = make_agent(environment, gaussian_policy(2, 2, (3,), seed=0))
    sampler = Sampler(environment, agent.collect_policy, steps=3)
    goals = environment.sample_tasks(2, seed=0)
    sampler.set_tasks(goals)
    trajectory = sampler.draw(0)
    positions = np.cumsum(0.1 * np.clip(trajectory.action, -1, 1), axis=1)
    np.testing.assert_allclose(trajectory.observation[:, 1:], positions[:, :-1], atol=1e-6)
    distances = np.linalg.norm(positions - np.repeat(goals, 2, axis=0)[:, None], axis=2)
    np.testing.assert_allclose(trajectory.reward, -distances, rtol=1e-5)
    expected = -distances.sum(1).reshape(2, 2).mean(1)
    np.testing.assert_allclose(episode_returns(trajectory, 2), expected, rtol=1e-5)
    assert sampler.episode_length.result() == 3
