"""Times the training step of the family's algorithms, in turns on the same episodes.

    python -m experiments.benchmarks.algorithms
    python -m experiments.benchmarks.algorithms --lines 2 --algorithms maml anil

A line is one of `experiments.benchmarks.meta_step`; all algorithms take its network, its inner
steps and its rate. A step is `train_on_batch`: inner loop, meta-gradient and Adam.
Memory is that of a step above what the process had before the first. `maml-bfloat16` and
`maml-float16` are MAML with layers in half precision.
"""

import contextlib
import dataclasses
import sys
import time

import keras
import tabulate
import tensorflow as tf

import keras_maml
from experiments.benchmarks import memory, timing, work
from experiments.benchmarks.contenders import ours
from experiments.benchmarks.store import Store, check_known
from experiments.benchmarks.worker import Worker, WorkerError
from experiments.shared import image_settings
from experiments.shared.algorithms import ALGORITHMS
from experiments.shared.command_line import run_command

# Those that take the network, the steps and the rate of all.
NAMES = ("maml", "first-order", "anil", "boil", "meta-sgd", "maml++")
HALF = ("maml-bfloat16", "maml-float16")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the figures depend on."""

    lines: tuple[str, ...] = ("2", "3", "5")  # of experiments.benchmarks.meta_step
    algorithms: tuple[str, ...] = NAMES  # their names
    seconds: float = 10.0  # of each algorithm


@dataclasses.dataclass(frozen=True)
class Files:
    """Where things are."""

    output: str = "runs/benchmarks/algorithms"  # folder of the results
    overwrite: bool = False  # whether to remove what is in that folder


class Training:
    """An algorithm at work in a process of its own.

    Args:
        algorithm: One of `NAMES` or `HALF`.
        line: What it trains on.
        workers: The processes that train together, this one among them; None for it alone.
    """

    def __init__(
        self, algorithm: str, line: work.Work, workers: keras_maml.Workers | None = None
    ) -> None:
        chosen = ALGORITHMS[algorithm]
        network = chosen.network(ours.build_network(line))
        self._learner = chosen.make(network, inner_learning_rate=line.rate, inner_steps=line.steps)
        loss = keras.losses.SparseCategoricalCrossentropy(True)
        self._learner.compile(chosen.optimizer(image_settings.Settings()), loss, workers=workers)
        index, count = workers.shard if workers else (0, 1)
        mine = slice(index * line.tasks // count, (index + 1) * line.tasks // count)
        data = [tf.constant(array[0, mine]) for array in work.episodes(line)]
        self._episode = tuple(data[:2]), tuple(data[2:])
        self._resident = memory.megabytes()

    def time(self, repeats: int) -> list[float]:
        """Takes a step untimed, and returns the seconds of timed ones."""
        seconds = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            self._learner.train_on_batch(self._episode)
            seconds.append(time.perf_counter() - start)
        return seconds[1:]

    def peak_memory(self) -> float:
        """Returns the memory of a step, in GB."""
        memory.reset_peak()
        self._learner.train_on_batch(self._episode)
        return (memory.megabytes("peak") - self._resident) / 1e3


def run(settings: Settings, files: Files) -> Store:
    """Measures what is not there yet, and shows the table.

    Raises:
        ValueError: There is no such algorithm or line, or the line is not one of classification.
    """
    check_known("algorithms", settings.algorithms, NAMES + HALF)
    lines = list(work.select(settings.lines, ("second",)))
    if any(line.ways == 1 or line.evaluation for line in lines):
        raise ValueError(f"lines must be trainings of classifiers, got {settings.lines}.")
    store = Store(files.output, settings, table, overwrite=files.overwrite)
    for line in lines:
        store.measure(line.line, lambda line=line: measure(line, settings))
    return store.shown()


def measure(line: work.Work, settings: Settings) -> dict:
    """Times all algorithms on a line, in turns."""
    with contextlib.ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker("algorithms:Training", name, line))
            for name in settings.algorithms
        }
        for worker in workers.values():
            worker.call("time", 1)  # compiles
        times = timing.interleave(workers, seconds=settings.seconds, repeats=3)
        peaks = {name: worker.call("peak_memory") for name, worker in workers.items()}
    figures = {
        name: timing.summary(seconds) | {"peak_gb": peaks[name]} for name, seconds in times.items()
    }
    return {"title": line.title, "algorithms": figures}


def table(records: dict[str, dict]) -> str:
    """Returns the table: a row per line and algorithm, with its speed beside the first one's."""
    rows = []
    for record in records.values():
        first = next(iter(record["algorithms"].values()))["median_ms"]
        for name, figures in record["algorithms"].items():
            low, high = figures["quartiles_ms"]
            times = f"{figures['median_ms']:.1f} [{low:.1f}, {high:.1f}]"
            speed, peak = first / figures["median_ms"], figures["peak_gb"]
            rows.append([record["title"], name, times, f"{speed:.2f}", f"{peak:.2f}"])
    headers = ["line", "algorithm", "ms a step [quartiles]", "speed", "memory, GB"]
    return tabulate.tabulate(rows, headers, disable_numparse=True)


def main() -> None:
    """Runs the command."""
    try:
        run_command("benchmarks.algorithms", __doc__, run, Settings, Files)
    except WorkerError as error:
        sys.exit(f"python -m experiments.benchmarks.algorithms: {error}")


if __name__ == "__main__":
    main()
