"""Trajectories are a function of the seed; returns count whole first episodes, task by task."""

import itertools

import gymnasium
import keras
import numpy as np
import pytest
import rl_zoo
import tensorflow as tf
from rl_zoo import equal, make_agent, make_sampler
from tf_agents.environments import py_environment, suite_gym
from tf_agents.environments.batched_py_environment import BatchedPyEnvironment
from tf_agents.environments.wrappers import PyEnvironmentBaseWrapper
from tf_agents.policies.random_tf_policy import RandomTFPolicy
from tf_agents.specs import array_spec
from tf_agents.trajectories import StepType, Trajectory
from tf_agents.trajectories import time_step as ts

from keras_maml.algorithm.update_rules import GradientDescent
from keras_maml.rl import (
    Sampler,
    environments,
    episode_returns,
    evaluate,
    gaussian_policy,
    meta_iteration,
    tensor_specs,
)
from keras_maml.rl.advantages import complete
from keras_maml.rl.sampling import begin_adaptation

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
    assert not goes_on.numpy()[:, :-1].all()  # some episodes end early, and then there is a rest
    goes_on = goes_on.numpy()[:, :-1]
    np.testing.assert_allclose(
        (place + moves)[:, :-1][goes_on], place[:, 1:][goes_on], rtol=1e-5, atol=1e-6
    )
    directions = np.repeat(DIRECTIONS, 3)[:, None]
    expected = np.where(trajectory.step_type == 2, 0, moves * directions)
    np.testing.assert_allclose(trajectory.reward, expected, rtol=1e-6)
    starts = trajectory.step_type.numpy() == 0
    assert (clock[starts] == 0).all() and starts[:, 0].all() and starts.sum() == 6


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


class Coin(py_environment.PyEnvironment):
    """Episodes of reward 1 a step that end with probability 1/4, and at the horizon."""

    def __init__(self, count, horizon):
        super().__init__()
        self.batch_size, self.horizon, self._ended = count, horizon, np.zeros(count, bool)

    batched = True
    batch_size = None

    def observation_spec(self):
        return array_spec.ArraySpec([1], np.float32)

    def action_spec(self):
        return array_spec.BoundedArraySpec([1], np.float32, -1, 1)

    def set_tasks(self, tasks):
        pass

    def seed(self, seed):
        self._random = np.random.default_rng(seed)

    def _reset(self):
        self._clocks = np.zeros(self.batch_size, int)
        return ts.restart(np.zeros([self.batch_size, 1], np.float32), self.batch_size)

    def _step(self, action):
        assert type(action) is np.ndarray  # not an EagerTensor
        started = self._ended
        self._clocks = np.where(started, 0, self._clocks + 1)
        heads = self._random.uniform(size=self.batch_size) < 0.25
        self._ended = ~started & (heads | (self._clocks == self.horizon))
        return ts.TimeStep(
            np.select([started, self._ended], [StepType.FIRST, StepType.LAST], 1).astype(np.int32),
            np.float32(~started),
            np.ones(self.batch_size, np.float32),
            np.float32(self._clocks[:, None]),
        )


def coin_lengths(steps, horizon=8):
    """The trajectory of many coins, and the mean length of the episodes that count."""
    environment = Coin(4000, horizon)
    policy = RandomTFPolicy(*tensor_specs(environment))
    policy.seed_actions = lambda *seed: None
    trajectory = Sampler(environment, policy, steps=steps).draw(5)
    counted = complete(trajectory).numpy()
    ends = trajectory.next_step_type.numpy() == StepType.LAST
    assert ends.any(axis=1).all()
    assert trajectory.reward.numpy()[~counted].sum() == 0  # no step is thrown away
    return trajectory, counted.sum() / (ends & counted).sum()


@pytest.mark.parametrize("steps", [8, 12, 24])
def test_short_episodes_do_not_count_more_than_long_ones(steps):
    expected = (1 - 0.75**8) / 0.25  # the mean of a geometric length that is cut at 8
    trajectory, length = coin_lengths(steps)
    deviation = 3.0 / np.sqrt(4000)  # at most, of the mean
    assert abs(length - expected) < 4 * deviation
    # An episode begins only where a whole horizon fits in.
    latest = np.argwhere(trajectory.step_type.numpy() == StepType.FIRST)[:, 1].max()
    assert latest == steps - 8


def test_an_environment_that_can_rest_gives_what_one_that_cannot_gives():
    goals = np.array([[0.005, 0.0], [-0.5, 0.5]])  # the first is reached whatever one does
    drawn = []
    for hidden in (False, True):
        environment = environments.TaskPyEnvironment(
            environments.TaskVectorEnv("Navigation2D-v0", 4, horizon=6)
        )
        agent = make_agent(environment, gaussian_policy(2, 2, (3,), initial_std=1e-3, seed=0))
        sampler = Sampler(Restless(environment) if hidden else environment, agent.collect_policy)
        sampler.set_tasks(goals)
        agent.reset_adaptation()
        drawn.append(sampler.draw(7))
    rests = drawn[0].step_type.numpy() == StepType.LAST
    np.testing.assert_array_equal(rests.sum(axis=1), [5, 5, 0, 0])
    for name in ("step_type", "next_step_type", "reward"):
        np.testing.assert_array_equal(getattr(drawn[0], name), getattr(drawn[1], name))
    for name in ("observation", "action"):
        one, other = (getattr(trajectory, name).numpy()[~rests] for trajectory in drawn)
        np.testing.assert_array_equal(one, other)


class Restless(PyEnvironmentBaseWrapper):
    """Hides that an environment can rest."""

    def __getattr__(self, name):
        if name == "restarts":
            raise AttributeError(name)
        return super().__getattr__(name)

    def __setattr__(self, name, value):
        assert name != "restarts"
        super().__setattr__(name, value)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (lambda: suite_gym.load("CartPole-v1"), "is a single environment.*from_tf_agents"),
        (
            lambda: BatchedPyEnvironment([suite_gym.load("CartPole-v1")], multithreading=False),
            "BatchedPyEnvironment has no set_tasks.*from_gymnasium.*from_tf_agents",
        ),
        (lambda: gymnasium.make("CartPole-v1"), "must be a batched PyEnvironment.*from_gymnasium"),
    ],
)
def test_environments_without_tasks_are_refused(environment, message, agent):
    with pytest.raises(TypeError, match=message):
        Sampler(environment(), agent.collect_policy, steps=200)


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


@pytest.mark.parametrize("tasks", [np.ones(1), np.ones(3), np.ones(4)])
def test_as_many_tasks_as_the_agent_has(agent, sampler, tasks):
    with pytest.raises(ValueError, match="must be 2, the tasks of the agent, got"):
        meta_iteration(agent, sampler, tasks, 0)
    if len(tasks) != 4:
        with pytest.raises(ValueError, match="must be a multiple of 2, the tasks of the agent"):
            evaluate(agent, sampler, tasks, [], seed=0)


def test_without_inner_steps_every_rollout_may_have_a_task_of_its_own(agent):
    still = make_agent(rl_zoo.Line(2), inner_steps=0)
    still.check_tasks(np.ones(4))
    with pytest.raises(ValueError, match="must be a multiple of 2"):
        still.check_tasks(np.ones(3))


def test_evaluation_takes_as_many_tasks_at_once_as_the_agent_has(agent, sampler):
    rules = [GradientDescent(1.0)]
    others = -3.0 * DIRECTIONS
    both = evaluate(agent, sampler, np.concatenate([DIRECTIONS, others]), rules, seed=4)
    both = both.values["adaptation"]["return"]
    first = evaluate(agent, sampler, DIRECTIONS, rules, seed=4).values["adaptation"]["return"]
    np.testing.assert_array_equal(both[:2], first)
    begin_adaptation(agent, sampler, others)
    trajectory = sampler.draw(4, 2)
    np.testing.assert_array_equal(both[2:, 0], episode_returns(trajectory, 2))
    agent.adapt(trajectory, rules[0])
    np.testing.assert_array_equal(both[2:, 1], episode_returns(sampler.draw(4, 3), 2))


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
        ({"inner_gae_lambda": -0.1}, "inner_gae_lambda must be in 0 .. 1, got -0.1"),
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


class Unlimited(rl_zoo.Line):
    """Names no horizon: only the bound ends its episodes."""

    def __init__(self, bound):
        super().__init__(4, bound=bound)
        self.horizon = None

    def _observe(self):
        return np.float32(np.stack([self._places, self._clocks], axis=1))


def test_returns_of_episodes_that_are_not_over_are_not_known():
    policy = make_agent(rl_zoo.Line(4)).collect_policy
    drawn = Sampler(Unlimited(bound=-1.0), policy, steps=3).draw(0)  # all are over at once
    np.testing.assert_array_equal(complete(drawn), [[True, False, False]] * 4)
    endless = Sampler(Unlimited(bound=100.0), policy, steps=3)
    with pytest.raises(ValueError, match="environment 0 is not over after 3 steps.* Pass steps="):
        endless.draw(0)
