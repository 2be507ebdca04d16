"""Pictures of robots, with or without a screen."""

import multiprocessing.connection
import os
import pathlib
import subprocess
import sys
import tempfile
import weakref
from typing import Any

import mujoco
import numpy as np

SCRIPT = pathlib.Path(__file__).with_name("camera_process.py")
OFF = ("", "disable", "disabled", "off", "false", "0")  # values of MUJOCO_GL that do not draw


class Camera:
    """The camera ``track`` of a model, which follows the robot's centre of mass.

    It draws in a process of its own, see `keras_maml.rl.environments.camera_process`, with the
    OpenGL that the environment variable MUJOCO_GL names, or else EGL where there is no screen.

    Args:
        model: The model.
        width: Of the pictures, in pixels.
        height: Of the pictures.

    Raises:
        RuntimeError: There is no OpenGL to draw with.
    """

    def __init__(self, model: mujoco.MjModel, width: int, height: int) -> None:
        self._library = os.environ.get("MUJOCO_GL", "")
        if self._library.lower() in OFF:
            self._library = "glfw" if os.environ.get("DISPLAY") else "egl"
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the camera)
        self._connection, child = multiprocessing.connection.Pipe()
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(child.fileno())],
            pass_fds=[child.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
            env=os.environ | {"MUJOCO_GL": self._library},
        )
        child.close()
        self.close = weakref.finalize(self, _end, self._connection, self._process, self._errors)
        message = self._exchange((model, height, width))
        if message is not None:
            self.close()
            raise self._no_opengl(message)

    def picture(self, positions: np.ndarray) -> np.ndarray:
        """Returns a picture.

        Args:
            positions: float64 ``[nq]``, the generalised positions of the model.

        Returns:
            uint8 ``[height, width, 3]``.

        Raises:
            RuntimeError: The OpenGL library failed.
        """
        return self._exchange(positions)

    def _exchange(self, message: Any) -> Any:
        try:
            self._connection.send(message)
            return self._connection.recv()
        except (EOFError, ConnectionError):
            status = self._process.wait()
            self._errors.seek(0)
            said = "".join(self._errors.readlines()[-1:]).strip()
            self.close()
            raise self._no_opengl(said or f"the process ended with {status}") from None

    def _no_opengl(self, message: str) -> RuntimeError:
        return RuntimeError(
            f"MuJoCo cannot draw with MUJOCO_GL={self._library} ({message}). Without a screen, "
            "install the system's EGL (libegl1) and set the environment variable MUJOCO_GL=egl; "
            "or install OSMesa (libosmesa6) and set MUJOCO_GL=osmesa."
        )


def _end(connection: Any, process: subprocess.Popen, errors: Any) -> None:
    connection.close()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    errors.close()
