"""Robots in MuJoCo, all of them stepped in one call."""

import abc
import contextlib
import importlib.resources
from collections.abc import Callable, Iterator, Sequence

import mujoco
import mujoco.batch
import numpy as np

from keras_maml.execution.cores import count_cores
from keras_maml.rl.environments.camera import Camera
from keras_maml.rl.environments.robots import Motion, Robot, State
from keras_maml.rl.environments.world import World

TORSO = "torso"
NONE = mujoco.mjtStage.mjSTAGE_NONE.value


def load_model(robot: Robot) -> mujoco.MjModel:
    """Loads gymnasium's model of a robot, with the robot's own time step and contacts.

    Returns:
        The model. A robot that feels forces has two sensors: first one of the linear velocity of
        the centre of mass, then an accelerometer, which makes MuJoCo compute ``cfrc_ext``. A state
        that is not finite is left as it is, where MuJoCo would go back to the initial one.
    """
    file = importlib.resources.files("gymnasium") / "envs/mujoco/assets" / robot.model
    with importlib.resources.as_file(file) as path:
        spec = mujoco.MjSpec.from_file(str(path))
    mass = spec.compiler.settotalmass
    spec.compiler.settotalmass = -1  # MuJoCo warns of this attribute, so its work is done below
    if robot.contact_cost is not None:
        body = {"objtype": mujoco.mjtObj.mjOBJ_BODY, "objname": TORSO}
        spec.add_sensor(type=mujoco.mjtSensor.mjSENS_SUBTREELINVEL, **body)
        spec.body(TORSO).add_site(name=TORSO)
        site = {"objtype": mujoco.mjtObj.mjOBJ_SITE, "objname": TORSO}
        spec.add_sensor(type=mujoco.mjtSensor.mjSENS_ACCELEROMETER, **site)
    if robot.timestep is not None:
        spec.option.timestep = robot.timestep
    if robot.impedance is not None:
        for geom in spec.geoms:
            geom.solimp[: len(robot.impedance)] = robot.impedance
    spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
    model = spec.compile()
    if mass > 0:
        mujoco.mj_setTotalmass(model, mass)
        mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


@contextlib.contextmanager
def collect_warnings(messages: list[str]) -> Iterator[None]:
    """Appends what MuJoCo warns of to a list, instead of the terminal and MUJOCO_LOG.TXT."""
    handler = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(messages.append)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(handler)


class RobotWorld(World):
    """Robots of one kind, each in a MuJoCo simulation of its own.

    Args:
        count: Number of robots.
        forward: The reward of a task, from the motion of all robots and tasks ``[count, ...]``.
        threads: Threads that step them; None: one for each processor.

    Attributes:
        robot: What they are.
        persistent: Whether MuJoCo keeps all it computes for each of them.
        stage: What MuJoCo computes of the new state after a step.
    """

    robot: Robot
    persistent: bool = False
    stage: int = NONE

    def __init__(
        self,
        count: int,
        forward: Callable[[Motion, np.ndarray], np.ndarray],
        threads: int | None = None,
    ) -> None:
        self.count = count
        self.model = load_model(self.robot)
        self.observation_size = self.robot.observation_size
        self.action_size = self.model.nu
        self.seconds_per_step = self.robot.frame_skip * self.model.opt.timestep
        self.frames_per_second = round(1 / self.seconds_per_step)
        threads = min(count, threads or count_cores())
        self.batch = mujoco.batch.Batch(self.model, count, threads, self.persistent)
        self.positions, self.velocities = self.batch.bind("qpos"), self.batch.bind("qvel")
        self._controls = self.batch.bind("ctrl")
        self._forward = forward
        self._speed = np.zeros(count)
        self._start = self.model.qpos0.copy()
        if self.robot.start:
            self._start[:] = self.model.numeric("init_qpos").data
        self._camera: Camera | None = None
        self._warnings: list[str] = []

    @abc.abstractmethod
    def state(self) -> State:
        """Returns the states of all robots."""

    @abc.abstractmethod
    def speed(self, before: np.ndarray) -> np.ndarray:
        """Returns the speed of the last step, float64 ``[count]``.

        Args:
            before: float64 ``[count]``, `x` before the step.
        """

    def x(self) -> np.ndarray:
        """Returns where the robots are, float64 ``[count]``."""
        return self.positions[:, 0]

    def place(self) -> np.ndarray:
        """Returns where the robots are, float64 ``[count, 2]``."""
        return self.positions[:, :2]

    def after(self, ids: np.ndarray | None, started: bool) -> None:  # noqa: B027
        """Computes what MuJoCo has not.

        Args:
            ids: int32 ``[k]``, of which robots; None for all.
            started: Whether they have been reset, not stepped.
        """

    def reset(self, ids: np.ndarray, generators: Sequence[np.random.Generator]) -> None:
        """Puts robots into their initial positions, with noise on positions and velocities."""
        self._warnings.clear()
        with collect_warnings(self._warnings):
            self.batch.reset(ids, stage=NONE)
            for index, generator in zip(ids, generators, strict=True):
                noise = self.robot.draw_noise(generator, self.model.nq, self.model.nv)
                self.positions[index], self.velocities[index] = self._start + noise[0], noise[1]
            self.batch.forward(ids)
        self.after(ids, started=True)

    def step(self, actions: np.ndarray, ids: np.ndarray | None = None) -> None:
        """Steps robots."""
        self._warnings.clear()
        self._controls[:] = actions
        before = self.x().copy()
        with collect_warnings(self._warnings):
            self.batch.step(ids, nstep=self.robot.frame_skip, stage=self.stage)
        self.after(ids, started=False)
        self._speed = self.speed(before)

    def observe(self) -> np.ndarray:
        """Returns observations, see `keras_maml.rl.environments.robots`."""
        return self.robot.observe(self.state())

    def rewards(
        self, actions: np.ndarray, tasks: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Returns the reward of the task, that of survival, and costs of control and contact."""
        forward = self._forward(Motion(self._speed, self.place()), tasks)
        return self.robot.rewards(self.state(), actions, forward)

    def terminated(self, tasks: np.ndarray) -> np.ndarray:
        """Says which robots have fallen or taken off."""
        return self.robot.fallen(self.state())

    def render(self, index: int, task: np.ndarray, width: int, height: int) -> np.ndarray:
        """Returns a picture from a camera that follows the robot."""
        if self._camera is None:
            self._camera = Camera(self.model, width, height)
        return self._camera.picture(self.positions[index])

    def trouble(self) -> str:
        """Returns MuJoCo's first warning of the last step."""
        return self._warnings[0] if self._warnings else ""

    def close(self) -> None:
        """Ends the process that draws."""
        if self._camera is not None:
            self._camera.close()
            self._camera = None
