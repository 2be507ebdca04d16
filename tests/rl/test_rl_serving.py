"""A policy adapts and acts where it is served as it does here."""

import keras
import numpy as np
import pytest
import rl_zoo
import tensorflow as tf
from rl_zoo import draw, make_agent, make_sampler
from tf_agents.trajectories import time_step

from keras_maml.algorithm.update_rules import Momentum
from keras_maml.rl import TaskPolicy, categorical, diagonal_gaussian
from keras_maml.rl.serving import Served

STEPS = 5


@pytest.mark.slow  # three programs to save and load
@pytest.mark.parametrize("discrete", [False, True])
def test_a_saved_policy_adapts_and_acts(discrete, tmp_path):
    environment = rl_zoo.Line(6, bound=1.0, discrete=discrete)  # some episodes end early
    distribution = categorical if discrete else diagonal_gaussian
    layers = [keras.Input((2,)), keras.layers.Dense(2)]
    model = keras.Sequential(layers) if discrete else None
    agent = make_agent(environment, model, inner_steps=2, distribution=distribution)
    experience = draw(agent, make_sampler(agent, environment))
    agent.export(tmp_path / "policy", rollouts=3, steps=STEPS)
    call = tf.saved_model.load(str(tmp_path / "policy")).signatures
    fast = tf.repeat(call["initial"]()["fast_weights"], 2, axis=0)
    for step, batch in enumerate(experience[:2]):
        ends = np.asarray(batch.next_step_type == 2)
        lengths = ends.argmax(axis=1) + 1
        assert step or lengths.min() < STEPS
        by_task = lambda x: tf.reshape(x, [2, 3, *x.shape[1:]])  # noqa: E731
        fast = call["adapt"](
            fast_weights=fast,
            observations=by_task(batch.observation),
            actions=by_task(batch.action),
            rewards=by_task(batch.reward),
            lengths=tf.constant(lengths.reshape(2, 3), tf.int32),
            step=tf.fill([2], step),
        )["fast_weights"]
    parts = [np.reshape(v, [2, -1]) for v in agent.collect_policy.fast_weights]
    np.testing.assert_allclose(fast, np.concatenate(parts, axis=1), rtol=1e-4, atol=1e-6)
    observations = experience[0].observation[:, 0]
    acted = call["act"](fast_weights=fast, observations=tf.reshape(observations, [2, 3, 2]))
    greedy = TaskPolicy(
        agent.time_step_spec,
        agent.action_spec,
        agent.model,
        tasks=2,
        distribution=distribution,
        greedy=True,
    )
    greedy.assign([tf.convert_to_tensor(v) for v in agent.collect_policy.fast_weights])
    chosen = greedy.action(time_step.restart(observations, batch_size=6)).action
    np.testing.assert_allclose(
        tf.reshape(acted["most_likely_actions"], chosen.shape), chosen, rtol=1e-4, atol=1e-6
    )
    assert acted["actions"].shape == acted["most_likely_actions"].shape
    lengths = tf.constant([[0, 1, 1], [1, 1, 1]])
    with pytest.raises(tf.errors.InvalidArgumentError, match="lengths must be those of whole"):
        call["adapt"](
            fast_weights=fast,
            observations=by_task(batch.observation),
            actions=by_task(batch.action),
            rewards=by_task(batch.reward),
            lengths=lengths,
            step=tf.fill([2], 0),
        )


@pytest.mark.parametrize("discrete", [False, True])
def test_what_stands_after_an_episode_does_not_count(discrete):
    """Whatever it is: not a number, or no action."""
    environment = rl_zoo.Line(6, discrete=discrete)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]) if discrete else None
    agent = make_agent(
        environment, model, distribution=categorical if discrete else diagonal_gaussian
    )
    served = Served(
        agent._objective,
        agent.time_step_spec.observation,
        agent.action_spec,
        {"discount": 0.9, "gae_lambda": 1.0, "baseline": "linear"},
    )
    random, lengths = np.random.default_rng(0), np.array([2, 4, 1])
    observations = random.normal(size=(3, STEPS, 2)).astype(np.float32)
    actions = np.ones((3, STEPS) if discrete else (3, STEPS, 1), np.int64 if discrete else "f4")
    rewards = random.normal(size=(3, STEPS)).astype(np.float32)
    after = np.arange(STEPS) >= lengths[:, None]

    def adapted(number, action):
        for array, value in ((observations, number), (actions, action), (rewards, number)):
            array[after] = value
        element = (served.initial(), observations, actions, rewards, np.int32(lengths), 0)
        return served.adapt(tuple(map(tf.constant, element))).numpy()

    expected = adapted(0.0, 0)
    assert np.isfinite(expected).all() and not np.allclose(expected, served.initial())
    for number, action in ((7.0, 1), (np.nan, 99 if discrete else np.nan), (np.inf, -1)):
        np.testing.assert_array_equal(adapted(number, action), expected)


def test_what_cannot_be_exported_is_refused(tmp_path):
    agent = make_agent(rl_zoo.Line(6))
    with pytest.raises(FileExistsError, match="choose another folder, or pass overwrite=True"):
        agent.export(tmp_path, rollouts=3, steps=5)
    with pytest.raises(ValueError, match="rollouts must be an integer of at least 1, got 0"):
        agent.export(tmp_path / "policy", rollouts=0, steps=5)
    agent = make_agent(rl_zoo.Line(6), update_rule=Momentum(0.1))
    with pytest.raises(ValueError, match="Momentum keeps something between inner steps"):
        agent.export(tmp_path / "policy", rollouts=3, steps=5)
