"""How speed and forces of each robot are measured, in the paper and by gymnasium.

The paper's speed is that of the centre of mass at the new state, and its forces are those of the
new state. Gymnasium's speed is displacement divided by time, and its forces are those that the last
stage of integration has left behind.
"""

from typing import Any

import mujoco
import numpy as np

from keras_maml.rl.environments import robots
from keras_maml.rl.environments.planar_chain import PlanarChain
from keras_maml.rl.environments.robot_world import TORSO, RobotWorld
from keras_maml.rl.environments.robots import State


class HalfCheetahWorld(RobotWorld):
    """Half-cheetahs with the paper's physics.

    MuJoCo is asked for the new state only. Centre of mass and its velocity are computed from that,
    which is much faster than all of MuJoCo's stages up to velocity.
    """

    robot = robots.HALF_CHEETAH

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._chain = PlanarChain(self.model, TORSO)

    def after(self, ids: np.ndarray | None, started: bool) -> None:
        """Computes the centres of mass."""
        self._centre, self._velocity = self._chain.centre(self.positions, self.velocities)

    def state(self) -> State:
        """Returns the states."""
        return State(self.positions, self.velocities, self._centre)

    def speed(self, before: np.ndarray) -> np.ndarray:
        """Returns the speed of the centre of mass."""
        return self._velocity[:, 0]


class HalfCheetahV5World(RobotWorld):
    """Half-cheetahs as in gymnasium's HalfCheetah-v5."""

    robot = robots.HALF_CHEETAH_V5

    def state(self) -> State:
        """Returns the states."""
        return State(self.positions, self.velocities)

    def speed(self, before: np.ndarray) -> np.ndarray:
        """Returns displacement divided by time."""
        return (self.x() - before) / self.seconds_per_step


class AntWorld(RobotWorld):
    """Ants with the paper's physics."""

    robot = robots.ANT
    stage = mujoco.mjtStage.mjSTAGE_ACC.value

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        torso = self.model.body(TORSO).id
        self._sensors = self.batch.bind("sensordata")
        self._state = State(
            self.positions,
            self.velocities,
            self.batch.bind("subtree_com")[:, torso],
            self.batch.bind("xmat")[:, torso],
            self.batch.bind("cfrc_ext"),
        )

    def state(self) -> State:
        """Returns the states."""
        return self._state

    def speed(self, before: np.ndarray) -> np.ndarray:
        """Returns the speed of the centre of mass."""
        return self._sensors[:, 0]

    def place(self) -> np.ndarray:
        """Returns where the centres of mass are."""
        return self._state.centre[:, :2]


class AntV5World(RobotWorld):
    """Ants as in gymnasium's Ant-v5."""

    robot = robots.ANT_V5
    persistent = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._torso = self.batch.bind("xpos")[:, self.model.body(TORSO).id]
        forces = np.zeros((self.count, self.model.nbody, 6))
        self._state = State(self.positions, self.velocities, forces=forces)
        self._data = mujoco.MjData(self.model)

    def x(self) -> np.ndarray:
        """Returns where the torsos were at the last stage of integration."""
        return self._torso[:, 0]

    def after(self, ids: np.ndarray | None, started: bool) -> None:
        """Computes forces, which are 0 after a reset, from the last stage of integration."""
        for index in range(self.count) if ids is None else ids:
            if started:
                self._state.forces[index] = 0.0
                continue
            self.batch.get_data(int(index), self._data)
            mujoco.mj_rnePostConstraint(self.model, self._data)
            self._state.forces[index] = self._data.cfrc_ext

    def state(self) -> State:
        """Returns the states."""
        return self._state

    def speed(self, before: np.ndarray) -> np.ndarray:
        """Returns displacement divided by time."""
        return (self.x() - before) / self.seconds_per_step


WORLDS: dict[robots.Robot, type[RobotWorld]] = {
    world.robot: world for world in (HalfCheetahWorld, HalfCheetahV5World, AntWorld, AntV5World)
}
