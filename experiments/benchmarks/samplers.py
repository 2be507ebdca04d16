"""Contenders of the sampling benchmark, each at work in a process of its own."""

import keras_maml.rl  # noqa: F401 (makes TF-Agents importable)

# isort: split
import dataclasses
import time
from typing import Any

import gymnasium
import mujoco.batch
import numpy as np
from tf_agents.environments import parallel_py_environment, py_environment
from tf_agents.system import system_multiprocessing
from tf_agents.trajectories import time_step as ts

from keras_maml.rl.environments import TaskEnv, TaskPyEnvironment, TaskVectorEnv
from keras_maml.rl.environments.problems import find_problem
from keras_maml.rl.environments.robot_world import load_model
from keras_maml.validation import check_choice

ACTIONS = 16  # different batches of them


class BarePhysics:
    """The physics and nothing else: controls are written, and MuJoCo steps.

    Args:
        name: The environment, a robot.
        physics: Its physics.
        count: Number of simulations.
    """

    def __init__(self, name: str, physics: str, count: int) -> None:
        robot = find_problem(name, physics).robots[physics]
        model = load_model(dataclasses.replace(robot, contact_cost=None))  # without sensors
        self._batch = mujoco.batch.Batch(model, count)
        self._frame_skip = robot.frame_skip
        self.action_size = model.nu

    def reset(self) -> None:
        """Puts all into the initial state."""
        self._batch.reset()

    def step(self, actions: np.ndarray) -> None:
        """Steps all."""
        self._batch.ctrl = actions
        self._batch.step(nstep=self._frame_skip)


class SinglePyEnvironment(py_environment.PyEnvironment):
    """A single environment as TF-Agents would have it, not batched.

    Args:
        name: The environment.
        physics: Its physics.
    """

    def __init__(self, name: str, physics: str) -> None:
        super().__init__()
        self._environment = TaskEnv(name, physics=physics)
        with_specs = TaskPyEnvironment(TaskVectorEnv(name, 1, physics=physics))
        self._specs = with_specs.observation_spec(), with_specs.action_spec()
        self._ended = True

    def observation_spec(self) -> Any:
        """Returns the spec of observations."""
        return self._specs[0]

    def action_spec(self) -> Any:
        """Returns the spec of actions."""
        return self._specs[1]

    def _reset(self) -> ts.TimeStep:
        self._ended = False
        return ts.restart(self._environment.reset()[0].astype(np.float32))

    def _step(self, action: np.ndarray) -> ts.TimeStep:
        if self._ended:
            return self.reset()
        observation, reward, terminated, truncated, _ = self._environment.step(action)
        self._ended = terminated or truncated
        observation = observation.astype(np.float32)
        if terminated:
            return ts.termination(observation, reward)
        return (ts.truncation if truncated else ts.transition)(observation, reward)


def make(kind: str, name: str, physics: str, count: int) -> Any:
    """Makes a contender, something with `reset` and `step`.

    Args:
        kind: One of `KINDS`.
        name: The environment.
        physics: Its physics.
        count: How many there are of it.
    """
    check_choice("kind", kind, tuple(KINDS))
    return KINDS[kind](name, physics, count)


def _parallel(name: str, physics: str, count: int) -> Any:
    system_multiprocessing.enable_interactive_mode()
    makers = [lambda: SinglePyEnvironment(name, physics)] * count
    return parallel_py_environment.ParallelPyEnvironment(makers)


def _vector(mode: str) -> Any:
    return lambda name, physics, count: gymnasium.make_vec(
        name, count, vectorization_mode=mode, physics=physics
    )


KINDS = {
    "mujoco.batch": BarePhysics,
    "TaskVectorEnv": _vector("vector_entry_point"),
    "TaskPyEnvironment": lambda *arguments: TaskPyEnvironment(
        _vector("vector_entry_point")(*arguments)
    ),
    "SyncVectorEnv": _vector("sync"),
    "AsyncVectorEnv": _vector("async"),
    "ParallelPyEnvironment": _parallel,
}


class Sampler:
    """A contender that takes steps with random actions.

    Args:
        kind: One of `KINDS`.
        name: The environment.
        physics: Its physics.
        count: How many there are of it.
    """

    def __init__(self, kind: str, name: str, physics: str, count: int) -> None:
        self._subject = make(kind, name, physics, count)
        size = TaskVectorEnv(name, physics=physics).single_action_space.shape
        actions = np.random.default_rng(0).normal(size=(ACTIONS, count, *size))
        self._actions = np.clip(actions, -1, 1).astype(np.float32)
        self._taken = 0
        self._subject.reset()
        self.time(1)

    def time(self, steps: int) -> list[float]:
        """Returns the seconds of each of several steps of all environments."""
        times = []
        for _ in range(steps):
            actions = self._actions[self._taken % ACTIONS]
            self._taken += 1
            start = time.perf_counter()
            self._subject.step(actions)
            times.append(time.perf_counter() - start)
        return times
