"""A point that moves in a plane towards a goal it is not told."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from keras_maml.rl.environments.world import World

STRIDE = 0.1  # longest step along an axis
TOLERANCE = 0.01  # the goal is reached when both coordinates are nearer than this


class NavigationWorld(World):
    """Points in a plane, their goals the tasks, ``[count, 2]``.

    Every episode starts in the origin. An observation is the position, an action the step as a
    share of 0.1 along each axis; the reward is the distance to the goal after the step, negative
    and not squared. An episode ends where both coordinates are within 0.01 of the goal.

    Source: Finn et al. 2017, section 5.3, with the distance of the authors' code instead of the
    squared one of the text: it is the one that gives their figures.

    Args:
        count: Number of points.
    """

    observation_size = 2
    action_size = 2
    frames_per_second = 10

    def __init__(self, count: int) -> None:
        self.count = count
        self._positions = np.zeros((count, 2))
        self._paths: dict[int, list[np.ndarray]] = {}  # of the points that are being drawn

    def reset(self, ids: np.ndarray, generators: Sequence[np.random.Generator]) -> None:
        """Puts points back into the origin."""
        self._positions[ids] = 0.0
        for index in ids:
            self._paths.pop(int(index), None)

    def step(self, actions: np.ndarray, ids: np.ndarray | None = None) -> None:
        """Moves points."""
        rows = slice(None) if ids is None else ids
        self._positions[rows] += STRIDE * actions[rows]
        for index, path in self._paths.items():
            path.append(self._positions[index].copy())

    def observe(self) -> np.ndarray:
        """Returns the positions."""
        return self._positions.copy()

    def rewards(
        self, actions: np.ndarray, tasks: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Returns the distance, negative."""
        rewards = -np.linalg.norm(self._positions - tasks, axis=1)
        return rewards, {"reward_distance": rewards}

    def terminated(self, tasks: np.ndarray) -> np.ndarray:
        """Says which points have reached their goals."""
        return (np.abs(self._positions - tasks) < TOLERANCE).all(axis=1)

    def render(self, index: int, task: np.ndarray, width: int, height: int) -> np.ndarray:
        """Draws a point, the way it came since it was first drawn in this episode, and its goal."""
        path = self._paths.setdefault(index, [np.zeros(2), self._positions[index].copy()])
        points = np.array(path)
        with matplotlib.rc_context(matplotlib.rcParamsDefault):
            figure = Figure((width / 100, height / 100), dpi=100)
            canvas = FigureCanvasAgg(figure)
            axes = figure.add_axes((0.02, 0.02, 0.96, 0.96), aspect="equal", xticks=(), yticks=())
            axes.set(xlim=(-1, 1), ylim=(-1, 1))
            axes.plot(0, 0, "+", color="gray", label="start")
            axes.plot(*task, "*", color="tab:red", markersize=14, label="goal")
            axes.plot(*points.T, color="tab:blue")
            axes.plot(*points[-1], "o", color="tab:blue", label="position")
            axes.legend(loc="upper left")
            canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()
