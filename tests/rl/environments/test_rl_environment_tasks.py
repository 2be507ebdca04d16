"""Tasks are drawn reproducibly, in range, and nothing else can be set."""

import gymnasium
import numpy as np
import pytest

from keras_maml.rl.environments import ENVIRONMENTS, TaskEnv, TaskVectorEnv
from keras_maml.rl.environments.tasks import Directions, Uniform, sample

RANGES = {
    "Navigation2D-v0": (-0.5, 0.5),
    "HalfCheetahVelocity-v0": (0.0, 2.0),
    "HalfCheetahDirection-v0": (-1.0, 1.0),
    "AntVelocity-v0": (0.0, 3.0),
    "AntDirection-v0": (-1.0, 1.0),
    "AntPosition-v0": (-3.0, 3.0),
}


def test_all_are_registered():
    assert tuple(f"keras_maml/{name}" for name in RANGES) == ENVIRONMENTS
    assert set(ENVIRONMENTS) <= set(gymnasium.registry)


@pytest.mark.parametrize("name", RANGES)
def test_tasks_fill_their_range_and_can_be_set(name):
    env = TaskEnv(name)
    tasks = env.sample_tasks(2000, seed=3)
    low, high = RANGES[name]
    assert tasks.shape == ((2000,) if "Velocity" in name or "Direction" in name else (2000, 2))
    np.testing.assert_allclose([tasks.min(), tasks.max()], [low, high], atol=0.01)
    # The mean of a uniform or of a fair coin, within five standard errors.
    bound = 5 * tasks.std() / np.sqrt(tasks.size)
    assert abs(tasks.mean() - (low + high) / 2) < bound
    if "Direction" in name:
        assert set(tasks) == {-1.0, 1.0}
    for task in tasks[:20]:
        env.set_task(task)
        np.testing.assert_array_equal(env.task, task)


@pytest.mark.parametrize("family", [Uniform(-0.5, 0.5, (2,)), Directions()])
def test_tasks_are_a_function_of_the_seed(family):
    tasks = sample(family, 50, seed=(1, 2))
    np.testing.assert_array_equal(tasks, sample(family, 50, seed=(1, 2)))
    np.testing.assert_array_equal(tasks[:7], sample(family, 7, seed=(1, 2)))
    assert not np.array_equal(tasks, sample(family, 50, seed=(1, 3)))


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        ("Navigation2D-v0", [0.1, 0.6], r"2 numbers in \[-0.5, 0.5\], got \[0.1, 0.6\]"),
        ("Navigation2D-v0", 0.1, r"shape \(1, 2\)"),
        ("HalfCheetahVelocity-v0", 2.1, "got 2.1"),
        ("HalfCheetahVelocity-v0", np.nan, "got nan"),
        ("HalfCheetahVelocity-v0", "fast", "must be numbers"),
        ("AntDirection-v0", 0.5, "-1 or 1, got 0.5"),
    ],
)
def test_other_tasks_are_refused(name, task, message):
    with pytest.raises(ValueError, match=message):
        TaskEnv(name, task=task)
    env = TaskEnv(name)
    with pytest.raises(ValueError, match=message):
        env.set_task(task)


def test_a_vector_needs_a_task_for_each_and_names_the_wrong_one():
    env = TaskVectorEnv("AntVelocity-v0", 3)
    with pytest.raises(ValueError, match=r"shape \(3,\).*np.repeat"):
        env.set_tasks([1.0, 2.0])
    with pytest.raises(ValueError, match="got 3.5 for environment 1"):
        env.set_tasks([1.0, 3.5, -1.0])


@pytest.mark.parametrize(("n", "seed"), [(0, 0), (2, -1), (2, 0.5), (2, (0, "a")), (2, None)])
def test_sample_checks_its_arguments(n, seed):
    with pytest.raises(ValueError, match="must be an integer"):
        sample(Directions(), n, seed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "Walker-v0"},
            "must be one of .*'AntVelocity-v0'.*got 'Walker-v0'.*from_gymnasium",
        ),
        ({"name": "AntVelocity-v0", "physics": "bullet"}, "physics of AntVelocity-v0"),
        ({"name": "Navigation2D-v0", "physics": "gymnasium"}, r"\('paper',\), got 'gymnasium'"),
        ({"name": "AntVelocity-v0", "horizon": 0}, "horizon"),
        ({"name": "AntVelocity-v0", "num_envs": 0}, "number of environments"),
        ({"name": "AntVelocity-v0", "render_mode": "human"}, "render_mode"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TaskVectorEnv(**arguments)
