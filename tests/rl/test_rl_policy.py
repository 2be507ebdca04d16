"""Every task acts with weights of its own, reproducibly; policies and models can be saved."""

import keras
import numpy as np
import pytest
import rl_zoo
import tensorflow as tf
from rl_zoo import equal, make_agent, values
from tf_agents.policies import policy_saver
from tf_agents.trajectories import time_step

from keras_maml.rl import TaskPolicy, categorical, gaussian_policy, tensor_specs
from keras_maml.rl.policy import StateIndependent

LINE = rl_zoo.Line(6)


def make_policy(model=None, **settings):
    model = model or gaussian_policy(2, 1, (3,), activation="tanh", seed=0)
    return TaskPolicy(*tensor_specs(LINE), model, **settings)


def time_steps(seed=0, batch=6):
    observations = np.random.default_rng(seed).normal(size=(batch, 2)).astype(np.float32)
    return time_step.restart(tf.constant(observations), batch_size=batch)


def different_weights(policy, seed=0):
    random = np.random.default_rng(seed)
    return [tf.constant(random.normal(size=v.shape), v.dtype) for v in policy.fast_weights]


@pytest.mark.parametrize("compiled", [False, True])
def test_environments_act_with_the_weights_of_their_task(compiled):
    model = gaussian_policy(2, 1, (3,), activation="tanh", seed=0)
    policy = make_policy(model, tasks=3)
    weights = different_weights(policy)
    policy.assign(weights)
    steps = time_steps()

    def moments(steps):
        found = policy.distribution(steps).action
        return found.mean(), found.stddev()

    # Compiled, it is vectorised over tasks.
    mean, std = (tf.function(moments, autograph=False) if compiled else moments)(steps)
    for task in range(3):
        for variable, value in zip(model.trainable_variables, weights, strict=True):
            variable.assign(value[task])
        own = slice(2 * task, 2 * task + 2)
        expected = model(steps.observation[own])
        np.testing.assert_allclose(mean[own], expected["mean"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(std[own], np.exp(expected["log_std"]), rtol=1e-5)


def test_weights_are_the_models_at_first_and_may_be_the_same_for_all_tasks():
    model = gaussian_policy(2, 1, (3,), activation="tanh", seed=0)
    policy = make_policy(model, tasks=3)
    copies = [np.repeat(v[None], 3, 0) for v in values(model.trainable_variables)]
    assert equal(policy.fast_weights, copies)
    policy.assign(different_weights(policy))
    policy.assign([tf.convert_to_tensor(v) for v in model.trainable_variables])
    assert equal(policy.fast_weights, copies)
    assert not set(map(id, policy.variables())) & set(map(id, model.variables))


def test_actions_are_a_function_of_the_seed():
    def actions(policy, *seed):
        policy.seed_actions(*seed)
        return [policy.action(time_steps()).action.numpy() for _ in range(3)]

    policy = make_policy(tasks=2)
    first = actions(policy, 1, 2)
    assert equal(first, actions(policy, 1, 2))
    assert equal(first, actions(make_policy(tasks=2), 1, 2))
    others = [actions(policy, *seed) for seed in [(1, 3), (2, 1), (2, 2), (1,)]]
    drawn = np.array([first, *others]).reshape(-1, 6)
    assert len(np.unique(drawn, axis=0)) == len(drawn)  # neither within a stream nor across


@pytest.mark.parametrize(("one", "other"), [((5,), (5, 1)), ((5, 2), (5, 2, 1)), ((5,), (5, 0))])
def test_streams_of_actions_do_not_overlap(one, other):
    """Such as those of an evaluation, and of the second stage of a training iteration."""
    drawn = []
    for seed in (one, other):
        policy = make_policy()
        policy.seed_actions(*seed)
        drawn += [policy.action(time_steps()).action.numpy().ravel() for _ in range(4)]
    assert len(np.unique(drawn, axis=0)) == 8


@pytest.mark.parametrize("numbers", [(2**31,), (1, 2**40), (np.int64(3),), (1, np.uint32(7))])
def test_any_integers_seed_actions(numbers):
    policy = make_policy()
    policy.seed_actions(*numbers)
    action = policy.action(time_steps()).action.numpy()
    policy.seed_actions(*map(int, numbers))
    assert equal(action, policy.action(time_steps()).action)


def test_actions_have_the_distribution_of_the_policy():
    policy = make_policy()
    observation = np.tile(np.float32([[0.3, -0.2]]), (20_000, 1))
    steps = time_step.restart(tf.constant(observation), batch_size=20_000)
    policy.seed_actions(0)
    actions = policy.action(steps).action.numpy()
    mean = policy.distribution(steps).action.mean().numpy()[0, 0]
    assert abs(actions.mean() - mean) < 5 / np.sqrt(20_000)
    assert abs(actions.std() - 1) < 0.03
    assert np.abs(actions).max() > 2  # not clipped to the bounds of the environment's actions


def test_the_greedy_action_is_the_most_likely_one():
    policy = make_policy(tasks=2, greedy=True)
    policy.assign(different_weights(policy))
    mean = policy.distribution(time_steps()).action.mean()
    assert equal(policy.action(time_steps()).action, mean)
    line = rl_zoo.Line(6, discrete=True)
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(2)])
    greedy = TaskPolicy(*tensor_specs(line), model, distribution=categorical, greedy=True)
    greedy.assign([tf.constant([[-1.0, 1.0], [0.0, 0.0]]), tf.zeros([2])])
    steps = time_steps()
    right = steps.observation.numpy()[:, 0] > 0
    assert 0 < right.sum() < 6 and equal(greedy.action(steps).action, right)


def test_a_saved_policy_acts_the_same(tmp_path):
    policy = make_policy(greedy=True)
    expected = policy.action(time_steps()).action
    policy.save(tmp_path / "new" / "policy")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["policy"]
    loaded = tf.saved_model.load(tmp_path / "new" / "policy")
    np.testing.assert_allclose(loaded.action(time_steps()).action, expected, rtol=1e-6)
    assert loaded.action(time_steps(batch=11)).action.shape == (11, 1)  # any number
    assert {"action", "get_initial_state"} <= set(loaded.signatures)


def test_the_policy_that_adapted_to_a_task_is_saved(tmp_path):
    agent = make_agent(LINE, tasks=3)
    weights = different_weights(agent.collect_policy)
    agent.collect_policy.assign(weights)
    policy = agent.adapted_policy(1)
    assert equal(policy.fast_weights, [w[1:2] for w in weights])
    policy.save(tmp_path / "policy")
    loaded = tf.saved_model.load(tmp_path / "policy")
    drawn = np.array([loaded.action(time_steps()).action for _ in range(100)])
    expected = policy.distribution(time_steps()).action
    deviations = 5 * expected.stddev().numpy() / np.sqrt(100)
    np.testing.assert_array_less(np.abs(drawn.mean(0) - expected.mean()), deviations)


@pytest.mark.parametrize("task", [3, -1])
def test_a_policy_of_a_task_that_does_not_exist_is_refused(task):
    agent = make_agent(LINE, tasks=3)
    with pytest.raises(ValueError, match=f"(?i)task.*3.*got {task}"):
        agent.adapted_policy(task)


def test_what_is_there_is_kept(tmp_path, monkeypatch):
    folder, policy = tmp_path / "policy", make_policy()
    folder.mkdir()
    (folder / "mine").touch()

    def failing(self, export_dir):
        raise OSError("disk full")

    with pytest.raises(FileExistsError, match="overwrite=True"):
        policy.save(folder)
    with monkeypatch.context() as patch:
        patch.setattr(policy_saver.PolicySaver, "save", failing)
        for target in (folder, tmp_path / "other"):
            with pytest.raises(OSError, match="disk full"):
                policy.save(target, overwrite=True)
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["policy", "policy/mine"]
    policy.save(folder, overwrite=True)
    assert (folder / "saved_model.pb").exists() and not (folder / "mine").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["policy"]


def test_the_gaussian_policy(tmp_path):
    model = gaussian_policy(2, 3, (4, 5), initial_std=0.5, min_std=0.2, seed=3)
    assert equal(model.variables, gaussian_policy(2, 3, (4, 5), initial_std=0.5, seed=3).variables)
    assert not equal(model.variables[0], gaussian_policy(2, 3, (4, 5), seed=4).variables[0])
    kernels = [v for v in values(model.variables) if v.ndim == 2]
    assert [k.shape for k in kernels] == [(2, 4), (4, 5), (5, 3)]
    assert not any(values(b)[0].any() for b in model.variables[1:6:2])  # biases
    x = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    hidden = np.maximum(np.maximum(x @ kernels[0], 0) @ kernels[1], 0)
    outputs = model(x)
    np.testing.assert_allclose(outputs["mean"], hidden @ kernels[2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs["log_std"], np.full((6, 3), np.log(0.5)), rtol=1e-6)
    model.variables[-1].assign(np.log([0.1, 0.2, 0.9]))
    expected = np.tile(np.log([0.2, 0.2, 0.9]), (6, 1))
    np.testing.assert_allclose(model(x)["log_std"], expected, rtol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert equal(loaded(x), model(x))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"observation_size": 0}, "observation_size must be an integer of at least 1, got 0"),
        ({"initial_std": 0}, "initial_std must be at least min_std, 1e-06, got 0"),
        ({"min_std": 0.0}, "min_std must be a finite number above 0, got 0.0"),
        ({"min_std": 0.5, "initial_std": 0.2}, "initial_std must be at least min_std, 0.5"),
    ],
)
def test_settings_of_the_policy_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        gaussian_policy(**{"observation_size": 2, "action_size": 1} | settings)


def normalized(mean, variance):
    """A policy whose batch normalisation has seen other observations."""
    inputs = keras.Input((2,))
    x = keras.layers.BatchNormalization(name="statistics")(inputs)
    mean_layer = keras.layers.Dense(1, kernel_initializer=keras.initializers.GlorotUniform(1))
    outputs = {"mean": mean_layer(x), "log_std": StateIndependent(0.0)(mean_layer.output)}
    model = keras.Model(inputs, outputs)
    statistics = model.get_layer("statistics")
    statistics.moving_mean.assign([mean, -mean])
    statistics.moving_variance.assign([variance, variance])
    return model


def means(policy):
    return policy.distribution(time_steps()).action.mean().numpy()


def test_policies_act_with_the_batch_statistics_of_their_model(tmp_path):
    """Also with those that are restored or loaded after the policies were made."""
    saved, agent = make_agent(LINE, normalized(2.0, 0.5)), make_agent(LINE, normalized(0.0, 1.0))
    saved.save(tmp_path / "agent.npz")
    agent.restore(tmp_path / "agent.npz")
    expected = saved.model(time_steps().observation)["mean"].numpy()
    for policy in (saved.policy, agent.policy, agent.collect_policy):
        np.testing.assert_allclose(means(policy), expected, rtol=1e-5, atol=1e-6)

    adapted = agent.adapted_policy(0)
    agent.model.get_layer("statistics").moving_mean.assign([5.0, 5.0])
    agent.reset_adaptation()
    assert not np.allclose(means(agent.collect_policy), expected)
    assert equal(means(adapted), means(saved.adapted_policy(0)))


def test_an_adapted_policy_is_what_the_collect_policy_was_adapted_with():
    """All of it, though the model has been trained since: its statistics and shared weights."""
    agent = make_agent(LINE, normalized(2.0, 0.5), adapted_layers="head")
    agent.collect_policy.assign(different_weights(agent.collect_policy))
    acted = means(agent.collect_policy)
    for variable in agent.model.variables:
        variable.assign(variable + 1.0)
    tasks = [means(agent.adapted_policy(task)) for task in range(2)]
    assert equal(np.concatenate([tasks[0][:3], tasks[1][3:]]), acted)
