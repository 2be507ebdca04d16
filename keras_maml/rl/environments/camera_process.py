"""The process that draws robots, run as a script with the number of a pipe.

It imports MuJoCo and NumPy only. TensorFlow shows its own LLVM to all libraries that are loaded
after it, and Mesa, the OpenGL of machines without a graphics processor, crashes when it meets it.
"""

import multiprocessing.connection
import sys

import mujoco
import numpy as np


def draw(renderer: mujoco.Renderer, model: mujoco.MjModel, positions: np.ndarray) -> np.ndarray:
    """Returns a picture from the model's camera ``track``.

    Args:
        renderer: What draws.
        model: The model.
        positions: float64 ``[nq]``, its generalised positions.

    Returns:
        uint8 ``[height, width, 3]``.
    """
    data = mujoco.MjData(model)
    data.qpos[:] = positions
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_camlight(model, data)
    renderer.update_scene(data, camera="track")
    return renderer.render()


def serve(connection: multiprocessing.connection.Connection) -> None:
    """Takes a model and the height and width of pictures, then positions until there are no more.

    Answers each with what it draws, or the message of an error.
    """
    model, height, width = connection.recv()
    model.vis.global_.offheight = height
    model.vis.global_.offwidth = width
    try:
        renderer = mujoco.Renderer(model, height, width)
        connection.send(None)
    except Exception as error:  # each of the OpenGL libraries has its own
        connection.send(f"{type(error).__name__}: {error}")
        return
    while True:
        try:
            positions = connection.recv()
        except EOFError:
            renderer.close()
            return
        connection.send(draw(renderer, model, positions))


if __name__ == "__main__":
    serve(multiprocessing.connection.Connection(int(sys.argv[1])))
