"""The problems by name: what moves, and which tasks there are."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_maml.rl.environments.navigation import NavigationWorld
from keras_maml.rl.environments.robot_worlds import ANT, HALF_CHEETAH, RobotWorld
from keras_maml.rl.environments.robots import PHYSICS, Physics
from keras_maml.rl.environments.tasks import Directions, TaskFamily, Uniform
from keras_maml.rl.environments.world import World
from keras_maml.validation import check_choice

NAMESPACE = "keras_maml"


def velocity_reward(speed: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """Returns the distance of speeds to those that are the tasks, negative.

    Args:
        speed: float64 ``[n]``, m/s.
        tasks: float64 ``[n]``, m/s.
    """
    return -np.abs(speed - tasks)


def direction_reward(speed: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """Returns the speed in the direction that is the task.

    Args:
        speed: float64 ``[n]``, m/s.
        tasks: float64 ``[n]``, -1 or 1.
    """
    return tasks * speed


@dataclasses.dataclass(frozen=True)
class Problem:
    """A family of environments that differ in the task.

    Attributes:
        tasks: The tasks.
        forward: The reward of a task, from speed and task; None: the problem is navigation.
        robots: What moves, by physics.
        bonus: Added to the reward of a task with the paper's physics.
    """

    tasks: TaskFamily
    forward: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    robots: dict[Physics, type[RobotWorld]] = dataclasses.field(default_factory=dict)
    bonus: float = 0.0

    def horizon(self, physics: Physics) -> int:
        """Returns the steps of an episode."""
        return self.robots[physics].robot.horizon if self.robots else 100

    def make_world(self, count: int, physics: Physics, threads: int | None) -> World:
        """Makes copies of the world.

        Args:
            count: How many.
            physics: The physics.
            threads: See `RobotWorld`.
        """
        if self.forward is None:
            return NavigationWorld(count)
        forward, bonus = self.forward, self.bonus if physics == "paper" else 0.0
        return self.robots[physics](
            count, lambda speed, tasks: forward(speed, tasks) + bonus, threads
        )


PROBLEMS: dict[str, Problem] = {
    "Navigation2D-v0": Problem(Uniform(-0.5, 0.5, (2,))),
    "HalfCheetahVelocity-v0": Problem(Uniform(0.0, 2.0), velocity_reward, HALF_CHEETAH),
    "HalfCheetahDirection-v0": Problem(Directions(), direction_reward, HALF_CHEETAH),
    "AntVelocity-v0": Problem(Uniform(0.0, 3.0), velocity_reward, ANT, bonus=1.0),
    "AntDirection-v0": Problem(Directions(), direction_reward, ANT),
}


def find_problem(name: str, physics: Any = "paper") -> Problem:
    """Returns the problem of a name, with or without the namespace.

    Raises:
        ValueError: There is none, or it has no such physics.

    Example:
        >>> find_problem("keras_maml/AntVelocity-v0").tasks
        numbers in [0.0, 3.0]
    """
    check_choice("The environment", short := name.removeprefix(f"{NAMESPACE}/"), tuple(PROBLEMS))
    problem = PROBLEMS[short]
    check_choice(f"physics of {short}", physics, tuple(problem.robots) or PHYSICS[:1])
    return problem
