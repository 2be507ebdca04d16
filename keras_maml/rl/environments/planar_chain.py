"""The centre of mass of a robot that moves in a plane, in closed form."""

import mujoco
import numpy as np


class PlanarChain:
    """A tree of bodies in the x-z plane, joined by hinges about y.

    The centre of mass is the root's position and a sum over bodies ``b`` of ``R(angle_b) lever_b``:
    ``R`` turns about y, ``angle_b`` is the sum of the hinges between the root and the body, and the
    lever of a body weighs its own centre of mass, and the places where others are joined to it,
    with the share of the mass that is there and beyond.

    Args:
        model: A model whose joints are two slides along x and z and a hinge for the root, then one
            hinge for each body, in order.
        root: The name of the root.
    """

    def __init__(self, model: mujoco.MjModel, root: str) -> None:
        first = model.body(root).id
        bodies = range(first, model.nbody)
        total = model.body_subtreemass[first]
        levers = model.body_mass[first:, None] * model.body_ipos[first:]
        self._parents = [int(model.body_parentid[body]) - first for body in bodies]
        for body, parent in enumerate(self._parents):
            if parent >= 0:
                mass = model.body_subtreemass[first + body]
                levers[parent] += mass * model.body_pos[first + body]
        self._x, self._z = levers[:, :1] / total, levers[:, 2:] / total
        self._root = model.body_pos[first]

    def centre(
        self, positions: np.ndarray, velocities: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the centre of mass and its velocity.

        Args:
            positions: float64 ``[n, 2 + bodies]``, generalised positions.
            velocities: float64 of the same shape.

        Returns:
            float64 ``[n, 3]`` each.
        """
        angles, rates = positions[:, 2:].T.copy(), velocities[:, 2:].T.copy()  # [bodies, n]
        for body, parent in enumerate(self._parents):
            if parent >= 0:
                angles[body] += angles[parent]
                rates[body] += rates[parent]
        cosine, sine = np.cos(angles), np.sin(angles)
        x = cosine * self._x + sine * self._z
        z = cosine * self._z - sine * self._x
        centre, velocity = np.empty((2, len(positions), 3))
        centre[:, 0] = self._root[0] + positions[:, 0] + x.sum(axis=0)
        centre[:, 1] = self._root[1]
        centre[:, 2] = self._root[2] + positions[:, 1] + z.sum(axis=0)
        velocity[:, 0] = velocities[:, 0] + (rates * z).sum(axis=0)
        velocity[:, 1] = 0.0
        velocity[:, 2] = velocities[:, 1] - (rates * x).sum(axis=0)
        return centre, velocity
