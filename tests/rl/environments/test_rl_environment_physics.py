"""Dynamics, rewards, observations and resets: against the formulas, MuJoCo and gymnasium."""

import os
import pathlib
import warnings

import gymnasium
import mujoco
import numpy as np
import pytest

from keras_maml.rl import Sampler, TaskPolicy, episode_returns, gaussian_policy, tensor_specs
from keras_maml.rl.environments import TaskEnv, TaskPyEnvironment, TaskVectorEnv
from keras_maml.rl.environments.planar_chain import PlanarChain
from keras_maml.rl.environments.robot_world import load_model
from keras_maml.rl.environments.robots import ANT, ANT_V5, HALF_CHEETAH


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def test_navigation(generator):
    goal = np.array([0.23, -0.31])
    env = TaskEnv("Navigation2D-v0", task=goal)
    position, _ = env.reset(seed=0)
    np.testing.assert_array_equal(position, [0, 0])
    assert env.horizon == 100
    for step in range(100):
        action = generator.uniform(-2, 2, 2)
        expected = position + 0.1 * np.clip(action, -1, 1)
        position, reward, terminated, truncated, _ = env.step(action)
        np.testing.assert_allclose(position, expected)
        assert reward == pytest.approx(-np.sqrt(((position - goal) ** 2).sum()))
        assert not terminated
        assert truncated == (step == 99)


@pytest.mark.parametrize(("off", "ends"), [((0.009, -0.009), True), ((0.0, 0.011), False)])
def test_navigation_ends_within_a_hundredth_of_the_goal_along_both_axes(off, ends):
    env = TaskEnv("Navigation2D-v0", task=np.add((0.05, 0.05), off))
    env.reset()
    *_, terminated, truncated, _ = env.step([0.5, 0.5])
    assert (terminated, truncated) == (ends, False)


def paper_reference(name, model, data, action, task):
    """The observation and reward of the paper, all from MuJoCo's own functions."""
    now = mujoco.MjData(model)
    now.qpos[:], now.qvel[:], now.ctrl[:] = data.qpos, data.qvel, action
    now.qacc_warmstart[:] = data.qacc_warmstart
    mujoco.mj_forward(model, now)
    mujoco.mj_subtreeVel(model, now)
    mujoco.mj_rnePostConstraint(model, now)
    torso = now.body("torso")
    speed = now.subtree_linvel[1, 0]
    if "Position" in name:
        forward = -np.abs(torso.subtree_com[:2] - task).sum()
    else:
        forward = task * speed if "Direction" in name else -abs(speed - task)
    if name.startswith("HalfCheetah"):
        observation = [now.qpos[1:], now.qvel, torso.subtree_com]
        return np.concatenate(observation), forward - 0.05 * (action**2).sum()
    forces = np.clip(now.cfrc_ext, -1, 1)
    observation = [now.qpos, now.qvel, forces.ravel(), torso.xmat, torso.subtree_com]
    costs = 0.005 * (action**2).sum() + 0.0005 * (forces**2).sum()
    bonus = {"AntVelocity-v0": 1.0, "AntDirection-v0": 0.0, "AntPosition-v0": 4.0}[name]
    return np.concatenate(observation), forward + bonus - costs + 0.05


@pytest.mark.parametrize(
    ("name", "robot", "task", "size", "rest"),
    [
        ("HalfCheetahVelocity-v0", HALF_CHEETAH, 1.3, 20, 3),
        ("HalfCheetahDirection-v0", HALF_CHEETAH, -1.0, 20, 3),
        ("AntVelocity-v0", ANT, 1.3, 125, 96),
        ("AntDirection-v0", ANT, -1.0, 125, 96),
        ("AntPosition-v0", ANT, [2.0, -1.0], 125, 96),
    ],
)
def test_paper_is_plain_mujoco_with_the_papers_formulas(name, robot, task, size, rest, generator):
    env = TaskEnv(name, task=task)
    observation, _ = env.reset(seed=1)
    assert observation.shape == (size,)
    model = load_model(robot)
    model.opt.disableflags = 0
    data = mujoco.MjData(model)
    # Both observations begin with positions (the cheetah's without x) and velocities.
    hidden = 1 if robot is HALF_CHEETAH else 0
    data.qpos[:hidden] = 0.01 * np.random.default_rng(1).standard_normal(hidden)
    data.qpos[hidden:], data.qvel[:] = np.split(observation[: size - rest], [model.nq - hidden])
    mujoco.mj_forward(model, data)
    touched = False
    for _ in range(60):
        action = generator.uniform(-1, 1, model.nu)
        observation, reward, terminated, _, info = env.step(action)
        data.ctrl[:] = action
        mujoco.mj_step(model, data)
        expected, expected_reward = paper_reference(name, model, data, action, env.task)
        np.testing.assert_allclose(observation, expected, rtol=0, atol=1e-12)
        assert reward == pytest.approx(expected_reward, abs=1e-12)
        assert reward == pytest.approx(sum(info.values()), abs=1e-12)
        assert not terminated
        touched |= info.get("reward_contact", -1.0) < 0
    assert touched


def test_the_ant_of_the_paper_takes_one_long_step_and_has_soft_contacts():
    """The authors' model: RK4, 0.02 s, solref ".02 1", solimp ".8 .8 .01", 150 Nm at action 1."""
    model, theirs = load_model(ANT), load_model(ANT_V5)
    assert ANT.frame_skip * model.opt.timestep == 0.02
    assert model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4
    np.testing.assert_allclose(model.geom_solref, np.tile([0.02, 1.0], (model.ngeom, 1)))
    np.testing.assert_allclose(model.geom_solimp[:, :3], np.tile([0.8, 0.8, 0.01], (14, 1)))
    np.testing.assert_allclose(model.actuator_gear[:, 0] * model.actuator_ctrlrange[:, 1], 150)
    assert theirs.opt.timestep == 0.01
    np.testing.assert_allclose(theirs.geom_solimp[:, :3], np.tile([0.9, 0.95, 0.001], (14, 1)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stored", "interval"), [("AntVelocity-v0", -78.6, 39), ("AntDirection-v0", 3.1, 16)]
)
def test_a_random_policy_returns_what_it_did_for_the_authors(name, stored, interval):
    """Mean returns in the result files of their code (maml_rl): 40 tasks of velocity, 2 directions.

    Of velocity the interval is that of the difference of both means at 95 %, of direction twice
    that of our mean, since the authors had two runs. Gymnasium's steps or another bonus leave it.
    """
    environment = TaskPyEnvironment(TaskVectorEnv(name, 200, threads=1))
    policy = TaskPolicy(*tensor_specs(environment), gaussian_policy(125, 8, seed=0))
    sampler = Sampler(environment, policy)
    sampler.set_tasks(environment.sample_tasks(200, seed=1))
    returns = episode_returns(sampler.draw(0), 200)
    assert abs(returns.mean() - stored) < interval
    assert returns.std() > 1.4 * interval  # tasks differ, so many are needed


def test_position_of_gymnasiums_ant_is_that_of_its_torso(generator):
    env = TaskEnv("AntPosition-v0", physics="gymnasium", task=[2.0, -1.0])
    env.reset(seed=0)
    for _ in range(10):
        reward = env.step(generator.uniform(-1, 1, 8))[4]["reward_forward"]
        place = env._batch._world.positions[0, :2]
        assert reward == -np.abs(place - [2.0, -1.0]).sum()
    assert abs(place).max() > 0


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("HalfCheetahDirection-v0", "HalfCheetah-v5"), ("AntDirection-v0", "Ant-v5")],
)
def test_gymnasium_physics_is_gymnasiums_bit_for_bit(ours, theirs, generator, tmp_path):
    env = TaskEnv(ours, physics="gymnasium", task=1.0)
    assert env.horizon == 1000
    before = pathlib.Path.cwd()
    os.chdir(tmp_path)  # where MuJoCo writes its log when gymnasium loads the model
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reference = gymnasium.make(theirs)
    finally:
        os.chdir(before)
    for seed in range(2):
        observation, _ = env.reset(seed=seed)
        expected, _ = reference.reset(seed=seed)
        np.testing.assert_array_equal(observation, expected)
        for _ in range(60):
            action = generator.uniform(-1, 1, env.action_space.shape)
            step, expected_step = env.step(action), reference.step(action)
            np.testing.assert_array_equal(step[0], expected_step[0])
            assert step[1:3] == expected_step[1:3]
            assert step[4].items() <= expected_step[4].items()
            if step[2]:
                break


@pytest.mark.parametrize(
    ("name", "survival"), [("HalfCheetahVelocity-v0", 0.0), ("AntVelocity-v0", 1.0)]
)
def test_gymnasium_physics_replaces_only_the_reward_for_moving(name, survival):
    direction = TaskEnv(name.replace("Velocity", "Direction"), physics="gymnasium", task=1.0)
    velocity = TaskEnv(name, physics="gymnasium", task=0.7)
    action = np.full(direction.action_space.shape, 0.3)
    infos = []
    for env in (direction, velocity):
        env.reset(seed=0)
        infos.append(env.step(action)[4])
    speed = infos[0].pop("reward_forward")
    assert infos[1].pop("reward_forward") == -abs(speed - 0.7)
    assert infos[0] == infos[1]
    assert infos[1].get("reward_survive", 0.0) == survival


def test_resets_of_the_paper_are_gaussian_around_the_initial_state():
    env = TaskVectorEnv("AntVelocity-v0", 400)
    observations, _ = env.reset(seed=0)
    expected = np.array([0, 0, 0.55, 1, 0, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1])
    # MuJoCo leaves quaternions as they are, so all 15 positions have the same noise.
    positions, velocities = observations[:, :15] - expected, observations[:, 15:29]
    for noise, deviation in ((positions, 0.01), (velocities, 0.1)):
        assert abs(noise.mean()) < 5 * deviation / np.sqrt(noise.size)
        np.testing.assert_allclose(noise.std(axis=0), deviation, rtol=0.2)


def test_an_ant_on_its_back_ends_the_episode():
    env = TaskVectorEnv("AntDirection-v0", 2, tasks=[1.0, 1.0])
    env.reset(seed=0)
    world = env._batch._world
    world.positions[1, 2] = 1.5
    *_, terminated, truncated, _ = env.step(np.zeros((2, 8)))
    assert terminated.tolist() == [False, True]
    assert not truncated.any()


def test_centre_of_mass_in_closed_form(generator):
    model = load_model(HALF_CHEETAH)
    data = mujoco.MjData(model)
    positions = generator.normal(size=(20, model.nq))
    velocities = generator.normal(size=(20, model.nv))
    centres, speeds = PlanarChain(model, "torso").centre(positions, velocities)
    for index in range(20):
        data.qpos[:], data.qvel[:] = positions[index], velocities[index]
        mujoco.mj_forward(model, data)
        mujoco.mj_subtreeVel(model, data)
        np.testing.assert_allclose(centres[index], data.subtree_com[1], atol=1e-12)
        np.testing.assert_allclose(speeds[index], data.subtree_linvel[1], atol=1e-12)


def test_oracle_sees_the_task():
    goal = TaskEnv("Navigation2D-v0", oracle=True, task=[0.2, -0.1])
    np.testing.assert_array_equal(goal.reset()[0], [0, 0, 0.2, -0.1])
    ants = TaskVectorEnv("AntVelocity-v0", 2, oracle=True, tasks=[0.5, 2.5])
    observations, _ = ants.reset(seed=0)
    assert observations.shape == (2, 126) == ants.observation_space.shape
    np.testing.assert_array_equal(observations[:, -1], [0.5, 2.5])
