"""Times meta-iterations of a policy that sees pictures, and says how much memory they take.

    python -m experiments.benchmarks.pictures

A square walks in a picture towards a place that is the task. The policy has four strided
convolutions, the outer step is TRPO's. It is compared with and without XLA, with products with the
Hessian of all transitions and of every fourth, each in a process of its own.
"""

import dataclasses
import time
from typing import Any

import gymnasium
import keras
import numpy as np
import tabulate

import keras_maml.rl as rl
from experiments.benchmarks import timing
from experiments.benchmarks.memory import megabytes, reset_peak
from experiments.benchmarks.store import Store, check_known
from experiments.benchmarks.worker import Worker
from experiments.shared.command_line import run_command
from keras_maml.validation import check_count

WAYS = {
    "XLA": (True, 1),
    "XLA, fisher_stride 4": (True, 4),
    "without XLA": (False, 1),
    "without XLA, fisher_stride 4": (False, 4),
}
MOVES = np.array([[0, 3], [0, -3], [3, 0], [-3, 0]])
SQUARE = 4


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the figures depend on."""

    size: int = 42  # height and width of a picture, of three colours
    filters: int = 32  # of each convolution
    tasks: int = 4
    rollouts: int = 5  # of each task, before and after adaptation
    horizon: int = 20  # steps of a rollout
    repeats: int = 5  # meta-iterations that are timed
    seed: int = 0  # of weights, tasks and actions


@dataclasses.dataclass(frozen=True)
class Selection:
    """What to measure now."""

    ways: tuple[str, ...] = (*WAYS,)
    output: str = "runs/benchmarks/pictures"  # folder of the results
    overwrite: bool = False  # whether to remove what is in that folder


def run(settings: Settings, selection: Selection) -> Store:
    """Measures what is not there yet, and shows the table.

    Raises:
        ValueError: An unknown way, or a number out of range.
    """
    check_known("ways", selection.ways, WAYS)
    for field in dataclasses.fields(Settings):
        least = {"size": SQUARE + 1, "seed": 0}.get(field.name, 1)
        check_count(field.name, getattr(settings, field.name), minimum=least)
    store = Store(selection.output, settings, table, overwrite=selection.overwrite)
    for way in selection.ways:
        store.measure(way, lambda way=way: measure(settings, way))
    return store.shown()


def measure(settings: Settings, way: str) -> dict[str, Any]:
    """Times the meta-iterations of one way of computing, in a process of its own."""
    with Worker("pictures:Trainer", dataclasses.asdict(settings), *WAYS[way]) as worker:
        before = worker.call("memory")
        first, *seconds = [worker.call("iterate", i) for i in range(settings.repeats + 1)]
        peak = worker.call("memory")
    return {
        "before_mb": before,
        "peak_mb": peak,
        "first_seconds": first,
        "meta_iteration": timing.summary(seconds),
    }


class Walk(gymnasium.Env):
    """A square that walks from the middle of a picture; a step costs its distance from the goal."""

    goal = (0, 0)

    def __init__(self, size: int) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(MOVES))
        self._room = size - SQUARE

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        """Begins in the middle."""
        super().reset(seed=seed)
        self._place = np.full(2, self._room // 2)
        return self._picture(), {}

    def step(self, action: int) -> tuple:
        """Goes one of the moves, within the picture."""
        self._place = np.clip(self._place + MOVES[action], 0, self._room)
        cost = float(np.abs(self._place - self.goal).sum()) / self._room
        return self._picture(), -cost, False, False, {}

    def _picture(self) -> np.ndarray:
        picture = np.zeros(self.observation_space.shape, np.uint8)
        row, column = self._place
        picture[row : row + SQUARE, column : column + SQUARE] = 255
        return picture


class Trainer:
    """An agent with its environments.

    Args:
        settings: Of the benchmark, by name.
        jit_compile: Whether XLA compiles the training step.
        fisher_stride: Of the trust region.
    """

    def __init__(self, settings: dict[str, int], jit_compile: bool, fisher_stride: int) -> None:
        settings = self._settings = Settings(**settings)
        keras.utils.set_random_seed(settings.seed)
        room = settings.size - SQUARE
        environment = rl.environments.from_gymnasium(
            lambda: Walk(settings.size),
            tasks=lambda generator, n: generator.integers(0, room + 1, (n, 2)),
            set_task=lambda walk, goal: setattr(walk, "goal", goal),
            count=settings.tasks * settings.rollouts,
            horizon=settings.horizon,
        )
        convolution = keras.layers.Conv2D
        middle = [convolution(settings.filters, 3, 2, "same", activation="relu") for _ in range(4)]
        policy = keras.Sequential(
            [
                keras.Input((settings.size, settings.size, 3)),
                keras.layers.Rescaling(1 / 255),
                *middle,
                keras.layers.Flatten(),
                keras.layers.Dense(len(MOVES)),
            ]
        )
        self._agent = rl.MetaPolicyGradientAgent(
            *rl.tensor_specs(environment),
            policy,
            tasks=settings.tasks,
            inner_learning_rate=0.1,
            distribution=rl.categorical,
            baseline="time",
            outer=rl.TrustRegion(fisher_stride=fisher_stride),
            jit_compile=jit_compile,
        )
        self._sampler = rl.Sampler(environment, self._agent.collect_policy)
        reset_peak()

    def iterate(self, number: int) -> float:
        """Makes a meta-iteration; returns its seconds."""
        seed = self._settings.seed
        tasks = self._sampler.environment.sample_tasks(self._settings.tasks, (seed, number))
        start = time.perf_counter()
        rl.meta_iteration(self._agent, self._sampler, tasks, seed, number)
        return time.perf_counter() - start

    def memory(self) -> float:
        """Returns the most that the process has had since it was made, in megabytes."""
        return megabytes("peak")


def table(records: dict[str, dict]) -> str:
    """Returns the table: a row for each way."""
    rows = []
    for way, record in records.items():
        timed = record["meta_iteration"]
        middle, low, high = (value / 1e3 for value in (timed["median_ms"], *timed["quartiles_ms"]))
        rows.append(
            [
                way,
                f"{record['first_seconds']:.1f}",
                f"{middle:.2f} [{low:.2f}, {high:.2f}]",
                f"{record['before_mb']:,.0f}",
                f"{record['peak_mb']:,.0f}",
            ]
        )
    headers = ["", "first, s", "later, s [quartiles]", "MB before", "MB at most"]
    return tabulate.tabulate(rows, headers, stralign="right", disable_numparse=True)


if __name__ == "__main__":
    run_command("benchmarks.pictures", __doc__, run, Settings, Selection)
