"""The problems by name: what moves, and which tasks there are."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_maml.rl.environments.navigation import NavigationWorld
from keras_maml.rl.environments.robots import ANTS, HALF_CHEETAHS, PHYSICS, Motion, Physics, Robot
from keras_maml.rl.environments.tasks import Directions, TaskFamily, Uniform
from keras_maml.rl.environments.world import World
from keras_maml.validation import check_choice

NAMESPACE = "keras_maml"


def velocity_reward(motion: Motion, tasks: np.ndarray) -> np.ndarray:
    """Returns the distance of speeds to those that are the tasks, negative.

    Args:
        motion: How ``n`` robots move.
        tasks: float64 ``[n]``, m/s.
    """
    return -np.abs(motion.speed - tasks)


def direction_reward(motion: Motion, tasks: np.ndarray) -> np.ndarray:
    """Returns the speed in the direction that is the task.

    Args:
        motion: How ``n`` robots move.
        tasks: float64 ``[n]``, -1 or 1.
    """
    return tasks * motion.speed


def position_reward(motion: Motion, tasks: np.ndarray) -> np.ndarray:
    """Returns the distance to the place that is the task, along both axes together, negative.

    Args:
        motion: How ``n`` robots move.
        tasks: float64 ``[n, 2]``, metres.
    """
    return -np.abs(motion.place - tasks).sum(axis=1)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A family of environments that differ in the task.

    Attributes:
        tasks: The tasks.
        forward: The reward of a task; None: the problem is navigation.
        robots: What moves, by physics.
        bonus: Added to the reward of a task with the paper's physics.
    """

    tasks: TaskFamily
    forward: Callable[[Motion, np.ndarray], np.ndarray] | None = None
    robots: dict[Physics, Robot] = dataclasses.field(default_factory=dict)
    bonus: float = 0.0

    def horizon(self, physics: Physics) -> int:
        """Returns the steps of an episode."""
        return self.robots[physics].horizon if self.robots else 100

    def make_world(self, count: int, physics: Physics, threads: int | None) -> World:
        """Makes copies of the world.

        Args:
            count: How many.
            physics: The physics.
            threads: See `RobotWorld`.

        Raises:
            ImportError: Robots need MuJoCo, which cannot be imported.
        """
        if self.forward is None:
            return NavigationWorld(count)
        forward, bonus = self.forward, self.bonus if physics == "paper" else 0.0
        return _world_of(self.robots[physics])(
            count, lambda motion, tasks: forward(motion, tasks) + bonus, threads
        )


PROBLEMS: dict[str, Problem] = {
    "Navigation2D-v0": Problem(Uniform(-0.5, 0.5, (2,))),
    "HalfCheetahVelocity-v0": Problem(Uniform(0.0, 2.0), velocity_reward, HALF_CHEETAHS),
    "HalfCheetahDirection-v0": Problem(Directions(), direction_reward, HALF_CHEETAHS),
    "AntVelocity-v0": Problem(Uniform(0.0, 3.0), velocity_reward, ANTS, bonus=1.0),
    "AntDirection-v0": Problem(Directions(), direction_reward, ANTS),
    # Not in the paper: the authors' code has it (ant_env_rand_goal).
    "AntPosition-v0": Problem(Uniform(-3.0, 3.0, (2,)), position_reward, ANTS, bonus=4.0),
}


def find_problem(name: str, physics: Any = "paper") -> Problem:
    """Returns the problem of a name, with or without the namespace.

    Raises:
        ValueError: There is none, or it has no such physics.

    Example:
        >>> find_problem("keras_maml/AntVelocity-v0").tasks
        numbers in [0.0, 3.0]
    """
    short = name.removeprefix(f"{NAMESPACE}/") if isinstance(name, str) else name
    if short not in PROBLEMS:
        raise ValueError(
            f"The environment must be one of {tuple(PROBLEMS)}, got {name!r}. For any other "
            "environment use keras_maml.rl.environments.from_gymnasium(make, tasks=..., "
            "set_task=..., count=...)."
        )
    problem = PROBLEMS[short]
    check_choice(f"physics of {short}", physics, tuple(problem.robots) or PHYSICS[:1])
    return problem


def _world_of(robot: Robot) -> type:
    """The world of a robot; only here MuJoCo is imported."""
    try:
        from keras_maml.rl.environments.robot_worlds import WORLDS
    except ImportError as error:
        raise ImportError(
            f"Robots need MuJoCo 4, which cannot be imported ({error}). Install the extra: "
            "pip install 'keras-maml[rl,mujoco]'."
        ) from error
    except AttributeError as error:  # so it fails to load the library that MUJOCO_GL names
        raise ImportError(
            f"MuJoCo cannot be imported with MUJOCO_GL={os.environ.get('MUJOCO_GL')!r} ({error}). "
            "Unset MUJOCO_GL, or install the OpenGL library that it names."
        ) from error
    return WORLDS[robot]
