"""A small problem of reinforcement learning, and agents that learn it in seconds."""

from typing import Any

import numpy as np
import tensorflow as tf

from keras_maml.rl import MetaPolicyGradientAgent, Sampler, gaussian_policy, tensor_specs

# isort: split
# After keras_maml.rl, which gives TF-Agents the Keras it needs.
from tf_agents.environments import py_environment
from tf_agents.specs import array_spec
from tf_agents.trajectories import StepType, Trajectory
from tf_agents.trajectories import time_step as ts


class Line(py_environment.PyEnvironment):
    """Points on a line, each to walk in the direction of its task, -1 or 1.

    They start at random near 0. An action is a velocity, cut to -1 .. 1; the reward is velocity
    times task. An episode ends outside of the bound, or at the horizon.

    Args:
        count: Number of points.
        horizon: Steps in an episode.
        bound: Where the line ends.
        discrete: The actions are 0 for -1 and 1 for 1.
        nested: The observation is a dictionary.
    """

    def __init__(
        self,
        count: int,
        horizon: int = 5,
        bound: float = 2.0,
        discrete: bool = False,
        nested: bool = False,
    ) -> None:
        super().__init__()
        self.count, self.horizon, self.bound = count, horizon, bound
        self.discrete, self.nested = discrete, nested
        self.tasks = np.ones(count)
        self._random = np.random.default_rng(0)

    @property
    def batched(self) -> bool:
        return True

    @property
    def batch_size(self) -> int:
        return self.count

    def observation_spec(self) -> Any:
        if self.nested:
            one = array_spec.ArraySpec([1], np.float32)
            return {"clock": one, "place": one}
        return array_spec.ArraySpec([2], np.float32)

    def action_spec(self) -> Any:
        if self.discrete:
            return array_spec.BoundedArraySpec([], np.int64, 0, 1)
        return array_spec.BoundedArraySpec([1], np.float32, -1, 1)

    def set_tasks(self, tasks: np.ndarray) -> None:
        self.tasks = np.asarray(tasks)

    def seed(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def _start(self, which: np.ndarray) -> None:
        # As many numbers for any `which`: environments do not depend on each other's episodes.
        self._places = np.where(which, self._random.normal(0, 0.1, self.count), self._places)
        self._clocks = np.where(which, 0, self._clocks)

    def _observe(self) -> Any:
        place, clock = self._places[:, None], self._clocks[:, None] / self.horizon
        if self.nested:
            return {"clock": np.float32(clock), "place": np.float32(place)}
        return np.float32(np.concatenate([place, clock], axis=1))

    def _reset(self) -> ts.TimeStep:
        self._places, self._clocks = np.zeros(self.count), np.zeros(self.count)
        self._start(np.full(self.count, True))
        self._ended = np.full(self.count, False)
        return ts.restart(self._observe(), batch_size=self.count)

    def _step(self, action: np.ndarray) -> ts.TimeStep:
        action = np.asarray(action)
        moves = 2.0 * action - 1.0 if self.discrete else np.clip(action[:, 0], -1, 1)
        started = self._ended
        self._places, self._clocks = self._places + moves, self._clocks + 1
        self._start(started)
        outside = (np.abs(self._places) > self.bound) & ~started
        self._ended = outside | (self._clocks == self.horizon)
        return ts.TimeStep(
            step_type=np.select(
                [started, self._ended], [StepType.FIRST, StepType.LAST], StepType.MID
            ).astype(np.int32),
            reward=np.float32(np.where(started, 0, moves * self.tasks)),
            discount=np.float32(~outside),
            observation=self._observe(),
        )


def make_agent(
    environment: py_environment.PyEnvironment, model: Any = None, **settings: Any
) -> MetaPolicyGradientAgent:
    """An agent with a policy of three hidden units; without XLA, which takes long to compile."""
    settings = {"tasks": 2, "jit_compile": False} | settings
    model = model or gaussian_policy(2, 1, (3,), activation="tanh", seed=0)
    return MetaPolicyGradientAgent(*tensor_specs(environment), model, **settings)


def make_sampler(agent: MetaPolicyGradientAgent, environment: Any) -> Sampler:
    """A sampler of as many steps as an episode has at most."""
    return Sampler(environment, agent.collect_policy, steps=environment.horizon)


def draw(agent: MetaPolicyGradientAgent, sampler: Sampler, *, seed: int = 0) -> list[Trajectory]:
    """The trajectories of one meta-iteration, with the tasks -1 and 1."""
    sampler.set_tasks(np.array([-1.0, 1.0]))
    agent.reset_adaptation()
    experience = []
    for stage in range(agent.inner_steps + 1):
        experience.append(sampler.draw(seed, stage))
        if stage < agent.inner_steps:
            agent.adapt(experience[-1])
    return experience


def values(variables: Any) -> list[np.ndarray]:
    """Copies of what variables or tensors hold."""
    return [np.array(tf.convert_to_tensor(v)) for v in tf.nest.flatten(variables)]


def equal(some: Any, others: Any) -> bool:
    """Whether two nests of arrays are equal, bit for bit."""
    pairs = zip(values(some), values(others), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)
