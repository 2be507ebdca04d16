"""A batch is single environments, bit for bit, and speaks gymnasium's and TF-Agents' languages."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from tf_agents.environments.utils import validate_py_environment

from keras_maml.rl.environments import ENVIRONMENTS, TaskPyEnvironment, TaskVectorEnv

KINDS = [
    (name, physics)
    for name in ENVIRONMENTS
    for physics in ("paper", "gymnasium")
    if physics == "paper" or "Navigation" not in name
]


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch, tmp_path):
    """Nothing may be written, not even MuJoCo's log."""
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "physics"), KINDS)
def test_batch_is_single_environments_bit_for_bit(name, physics):
    count = 5
    options = {"num_envs": count, "physics": physics, "horizon": 12}
    batch = gymnasium.make_vec(name, **options)
    assert isinstance(batch, TaskVectorEnv)
    singles = gymnasium.make_vec(name, **options, vectorization_mode="sync")
    assert batch.observation_space == singles.observation_space
    assert batch.action_space == singles.action_space
    generator = np.random.default_rng(0)
    endings = set()
    for tasks in (batch.sample_tasks(count, seed=0), batch.sample_tasks(count, seed=1), None):
        batch.set_tasks(tasks)
        for index, env in enumerate(singles.envs):
            env.unwrapped.set_task(None if tasks is None else tasks[index])
        observations, _ = batch.reset(seed=7)
        np.testing.assert_array_equal(observations, singles.reset(seed=7)[0])
        for number in range(30):
            actions = generator.uniform(-1.5, 1.5, batch.action_space.shape).astype(np.float32)
            if "Ant" in name and number == 4:
                lift(batch, singles, index=1)
            if "Navigation" in name:
                actions[1] = 10 * (batch.tasks[1] - observations[1])  # straight to the goal
            steps, expected = batch.step(actions), singles.step(actions)
            for ours, theirs in zip(steps[:4], expected[:4], strict=True):
                np.testing.assert_array_equal(ours, theirs)
            for key, part in steps[4].items():  # gymnasium has no part where all were reset
                np.testing.assert_array_equal(part, expected[4].get(key, np.zeros(count)))
            observations = steps[0]
            endings |= set(map(tuple, np.stack(steps[2:4], 1).tolist()))
            if tasks is None:
                drawn = [env.unwrapped.task for env in singles.envs]
                np.testing.assert_array_equal(batch.tasks, drawn)
    assert (False, True) in endings
    assert "Cheetah" in name or (True, False) in endings


def lift(batch, singles, index):
    """Puts one ant so high that it counts as flying."""
    single = singles.envs[index].unwrapped
    for world, row in ((batch._batch._world, index), (single._batch._world, 0)):
        world.positions[row, 2] = 1.2


@pytest.mark.parametrize(("name", "physics"), KINDS)
def test_gymnasium_and_tf_agents_accept_it(name, physics):
    check_env(gymnasium.make(name, physics=physics).unwrapped, skip_render_check=True)
    batch = gymnasium.make_vec(name, num_envs=2, physics=physics, horizon=5)
    validate_py_environment(TaskPyEnvironment(batch), episodes=4)


def test_steps_of_tf_agents_say_how_an_episode_ended():
    env = TaskPyEnvironment(TaskVectorEnv("Navigation2D-v0", 2, horizon=3))
    assert env.batched and env.batch_size == 2
    env.set_tasks([[0.1, 0.0], [-0.5, -0.5]])
    env.reset()
    right = np.array([[1.0, 0.0]] * 2, np.float32)
    steps = [env.step(right) for _ in range(5)]
    types = np.array([step.step_type for step in steps])
    # The first reaches its goal at once and starts anew; the other runs into the horizon.
    np.testing.assert_array_equal(types, [[2, 1], [0, 1], [2, 2], [0, 0], [2, 1]])
    discounts = np.array([step.discount for step in steps])
    np.testing.assert_array_equal(discounts, [[0, 1], [1, 1], [0, 1], [1, 1], [0, 1]])
    rewards = np.array([step.reward for step in steps])
    np.testing.assert_allclose(rewards[:, 0], 0.0, atol=1e-7)
    assert rewards[3, 1] == 0.0
    observations = np.array([step.observation for step in steps])
    assert observations.dtype == np.float32
    np.testing.assert_allclose(observations[:, 1, 0], [0.1, 0.2, 0.3, 0.0, 0.1], rtol=1e-6)


def test_seeds_of_tf_agents():
    env = TaskPyEnvironment(TaskVectorEnv("HalfCheetahVelocity-v0", 2))
    env.seed(5)
    first, second = env.reset().observation, env.reset().observation
    env.seed(5)
    np.testing.assert_array_equal(env.reset().observation, first)
    assert not np.array_equal(first, second)


def test_a_mask_resets_some_environments():
    env = TaskVectorEnv("HalfCheetahVelocity-v0", 3)
    env.reset(seed=0)
    before = env.step(np.ones((3, 6)))[0]
    mask = np.array([False, True, False])
    after, _ = env.reset(seed=[0, 9, 0], options={"reset_mask": mask})
    np.testing.assert_array_equal((after == before).all(axis=1), ~mask)
    np.testing.assert_array_equal(after[1], env.reset(seed=[1, 9, 2])[0][1])


def test_misuse_is_explained():
    env = TaskVectorEnv("HalfCheetahVelocity-v0", 2)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros((2, 6)))
    with pytest.raises(ValueError, match="2 seeds, got 3"):
        env.reset(seed=[1, 2, 3])
    with pytest.raises(ValueError, match=r"reset_mask must be bool \[2\]"):
        env.reset(options={"reset_mask": [1, 0]})
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions of shape \(2, 6\).*got \(6,\)"):
        env.step(np.zeros(6))
    with pytest.raises(
        FloatingPointError, match="action of environment 1 of keras_maml/HalfCheetah"
    ):
        env.step(np.array([[0.0] * 6, [np.nan] * 6]))


@pytest.mark.parametrize("name", ["HalfCheetahVelocity-v0", "AntVelocity-v0"])
@pytest.mark.parametrize("physics", ["paper", "gymnasium"])
def test_numerical_trouble_names_environment_task_and_step(name, physics, capfd):
    env = TaskVectorEnv(name, 3, tasks=[0.5, 1.5, 1.0], physics=physics)
    env.reset(seed=0)
    actions = np.zeros(env.action_space.shape)
    env.step(actions)
    env._batch._world.velocities[1, 3] = 1e300
    message = (
        f"environment 1 of keras_maml/{name} is not finite after step 2 .*task 1.5.*MuJoCo says"
    )
    with pytest.raises(FloatingPointError, match=message):
        env.step(actions)
    env.reset(seed=0)
    assert np.isfinite(env.step(actions)[0]).all()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["Navigation2D-v0", "HalfCheetahVelocity-v0", "AntVelocity-v0"])
def test_pictures(name, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disable")  # as set for training
    monkeypatch.delenv("DISPLAY", raising=False)
    env = TaskPyEnvironment(
        TaskVectorEnv(name, 2, render_mode="rgb_array", width=96, height=64, horizon=30)
    )
    env.seed(0)
    env.reset()
    try:
        pictures = [env.render()]
    except RuntimeError as error:
        pytest.skip(str(error))
    for _ in range(5):
        env.step(np.full((2, *env.action_spec().shape), 0.8, np.float32))
        pictures.append(env.render())
    pictures = np.array(pictures)
    assert pictures.shape == (6, 2, 64, 96, 3)
    assert pictures.dtype == np.uint8
    assert pictures[0].std() > 10
    assert (pictures[0] != pictures[-1]).any(axis=(1, 2, 3)).all()
    env.close()


def test_without_opengl_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "wrong")
    env = gymnasium.make("keras_maml/HalfCheetahVelocity-v0", render_mode="rgb_array")
    env.reset(seed=0)
    with pytest.raises(RuntimeError, match="MUJOCO_GL=osmesa.*libegl1.*MUJOCO_GL=egl"):
        env.render()


def test_pictures_need_a_render_mode():
    env = TaskPyEnvironment(TaskVectorEnv("Navigation2D-v0", 1))
    env.reset()
    with pytest.raises(ValueError, match="render_mode='rgb_array'"):
        env.render()
