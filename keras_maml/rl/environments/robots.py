"""The robots, each in the physics of the paper and in that of gymnasium.

What follows from a state, observation, costs and health, is written here as functions over a
leading axis of robots; how states follow each other is `keras_maml.rl.environments.robot_worlds`.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np

Physics = Literal["paper", "gymnasium"]
PHYSICS: tuple[Physics, ...] = ("paper", "gymnasium")


@dataclasses.dataclass(frozen=True)
class State:
    """States of ``n`` robots, in MuJoCo's units: metres, radians, seconds, newtons.

    Attributes:
        positions: float64 ``[n, nq]``, generalised positions.
        velocities: float64 ``[n, nv]``, generalised velocities.
        centre: float64 ``[n, 3]``, centre of mass; None where nobody asks, like what follows.
        rotation: float64 ``[n, 9]``, rotation matrix of the torso.
        forces: float64 ``[n, bodies, 6]``, external torque and force on each body.
    """

    positions: np.ndarray
    velocities: np.ndarray
    centre: np.ndarray | None = None
    rotation: np.ndarray | None = None
    forces: np.ndarray | None = None

    @property
    def bounded_forces(self) -> np.ndarray:
        """The forces, clipped to [-1, 1]."""
        return np.clip(self.forces, -1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Motion:
    """How ``n`` robots move: what the reward of a task depends on.

    Attributes:
        speed: float64 ``[n]``, along x, in m/s.
        place: float64 ``[n, 2]``, x and y, in metres.
    """

    speed: np.ndarray
    place: np.ndarray


def observe_cheetah(state: State) -> np.ndarray:
    """Returns 20 numbers: positions but x, velocities, centre of mass."""
    return np.concatenate([state.positions[:, 1:], state.velocities, state.centre], axis=1)


def observe_cheetah_v5(state: State) -> np.ndarray:
    """Returns 17 numbers: positions but x, velocities."""
    return np.concatenate([state.positions[:, 1:], state.velocities], axis=1)


def observe_ant(state: State) -> np.ndarray:
    """Returns 125 numbers: positions, velocities, forces, rotation, centre of mass."""
    forces = state.bounded_forces.reshape(len(state.forces), -1)
    parts = [state.positions, state.velocities, forces, state.rotation, state.centre]
    return np.concatenate(parts, axis=1)


def observe_ant_v5(state: State) -> np.ndarray:
    """Returns 105 numbers: positions but x and y, velocities, forces but those on the world."""
    forces = state.bounded_forces[:, 1:].reshape(len(state.forces), -1)
    return np.concatenate([state.positions[:, 2:], state.velocities, forces], axis=1)


@dataclasses.dataclass(frozen=True)
class Robot:
    """A robot and the physics it lives in.

    Attributes:
        model: Its file among gymnasium's MuJoCo models.
        physics: Whose noise and survival it has, see below.
        frame_skip: MuJoCo steps in a step.
        horizon: Steps in an episode.
        observe: Maps states to observations.
        observation_size: Their length.
        start: Whether episodes start in the position that the model's file names ``init_qpos``.
        position_noise: Standard deviation (paper) or greatest value (gymnasium) of the noise on
            initial positions.
        velocity_noise: Standard deviation of the noise on initial velocities.
        control_cost: Factor of the sum of squared actions.
        contact_cost: Factor of the sum of squared forces, clipped to [-1, 1]; None: there is none,
            the robot feels no forces.
        survival: Reward of every step; with gymnasium's physics of every step that is not fatal.
        heights: Between which the torso must stay; None: it may be anywhere.
        timestep: Seconds of a MuJoCo step; None: those of the model's file, 0.01.
        impedance: Of all contacts (MuJoCo's ``solimp``: least, greatest, width in metres); None:
            MuJoCo's own, 0.9, 0.95 and 0.001.
    """

    model: str
    physics: Physics
    frame_skip: int
    horizon: int
    observe: Callable[[State], np.ndarray]
    observation_size: int
    start: bool
    position_noise: float
    velocity_noise: float
    control_cost: float
    contact_cost: float | None = None
    survival: float = 0.0
    heights: tuple[float, float] | None = None
    timestep: float | None = None
    impedance: tuple[float, float, float] | None = None

    def draw_noise(
        self, generator: np.random.Generator, positions: int, velocities: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws noise on the initial positions and velocities of one robot."""
        if self.physics == "paper":
            position = self.position_noise * generator.standard_normal(positions)
        else:
            position = generator.uniform(-self.position_noise, self.position_noise, positions)
        return position, self.velocity_noise * generator.standard_normal(velocities)

    def rewards(
        self, state: State, actions: np.ndarray, forward: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Returns rewards and their parts.

        Args:
            state: The new states.
            actions: float64 ``[n, actions]`` in [-1, 1].
            forward: float64 ``[n]``, the reward of the task.
        """
        control = self.control_cost * np.square(actions).sum(axis=1)
        parts = {"reward_forward": forward, "reward_ctrl": -control}
        if self.heights is None:
            return forward - control, parts
        forces = state.bounded_forces.reshape(len(state.forces), -1)
        contact = self.contact_cost * np.square(forces).sum(axis=1)
        survival = np.full(len(forward), self.survival)
        if self.physics == "gymnasium":
            survival[self.fallen(state)] = 0.0
        parts |= {"reward_contact": -contact, "reward_survive": survival}
        return forward + survival - (control + contact), parts

    def fallen(self, state: State) -> np.ndarray:
        """Says which robots have left the heights they must keep, bool ``[n]``."""
        if self.heights is None:
            return np.zeros(len(state.positions), bool)
        low, high = self.heights
        height = state.positions[:, 2]
        return ~((height >= low) & (height <= high))


HALF_CHEETAH = Robot(
    model="half_cheetah.xml",
    physics="paper",
    frame_skip=1,
    horizon=200,
    observe=observe_cheetah,
    observation_size=20,
    start=False,
    position_noise=0.01,
    velocity_noise=0.1,
    control_cost=0.05,
)
HALF_CHEETAH_V5 = Robot(
    model="half_cheetah.xml",
    physics="gymnasium",
    frame_skip=5,
    horizon=1000,
    observe=observe_cheetah_v5,
    observation_size=17,
    start=False,
    position_noise=0.1,
    velocity_noise=0.1,
    control_cost=0.1,
)
ANT = Robot(
    model="ant.xml",
    physics="paper",
    frame_skip=1,
    horizon=200,
    observe=observe_ant,
    observation_size=125,
    start=True,
    position_noise=0.01,
    velocity_noise=0.1,
    control_cost=0.005,
    contact_cost=5e-4,
    survival=0.05,
    heights=(0.2, 1.0),
    # The authors' model has softer contacts than gymnasium's, and bears steps twice as long. (It
    # names solref=".02 1", too, which is MuJoCo's own.)
    timestep=0.02,
    impedance=(0.8, 0.8, 0.01),
)
ANT_V5 = Robot(
    model="ant.xml",
    physics="gymnasium",
    frame_skip=5,
    horizon=1000,
    observe=observe_ant_v5,
    observation_size=105,
    start=False,
    position_noise=0.1,
    velocity_noise=0.1,
    control_cost=0.5,
    contact_cost=5e-4,
    survival=1.0,
    heights=(0.2, 1.0),
)
HALF_CHEETAHS: dict[Physics, Robot] = {"paper": HALF_CHEETAH, "gymnasium": HALF_CHEETAH_V5}
ANTS: dict[Physics, Robot] = {"paper": ANT, "gymnasium": ANT_V5}
