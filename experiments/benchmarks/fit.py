"""Times what a step takes in a user's `fit`, beside the meta-step alone.

    python -m experiments.benchmarks.fit
    python -m experiments.benchmarks.fit --lines 1

A line is one of `experiments.benchmarks.meta_step`. What is timed there is loss and meta-gradient;
`fit` adds the check of the data, the loss before adaptation, metrics, Adam, callbacks and Keras's
loop, on meta-batches that are ready. All are timed in turns.
"""

import contextlib
import dataclasses
import itertools
import sys
import time

import keras
import tabulate
import tensorflow as tf

from experiments.benchmarks import contenders, timing, work
from experiments.benchmarks.contenders import ours
from experiments.benchmarks.store import Store
from experiments.benchmarks.worker import Worker, WorkerError
from experiments.shared.command_line import run_command


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the figures depend on."""

    lines: tuple[str, ...] = ("1", "2", "3", "5")  # of experiments.benchmarks.meta_step
    seconds: float = 10.0  # of each way


@dataclasses.dataclass(frozen=True)
class Files:
    """Where things are."""

    output: str = "runs/benchmarks/fit"  # folder of the results
    overwrite: bool = False  # whether to remove what is in that folder


class Fitting:
    """`fit` at work in a process of its own.

    Args:
        line: What it trains on.
        steps_per_execution: How many steps a call of the compiled program takes.
    """

    def __init__(self, line: work.Work, steps_per_execution: int) -> None:
        self._learner = ours.build_learner(line, timing.initial_weights(line))
        self._each = steps_per_execution
        self._learner.compile(
            keras.optimizers.Adam(), self._learner.loss, steps_per_execution=self._each
        )
        arrays = work.episodes(line)
        episodes = tf.data.Dataset.from_tensor_slices((tuple(arrays[:2]), tuple(arrays[2:])))
        self._episodes = episodes.cache().repeat().prefetch(tf.data.AUTOTUNE)

    def time(self, repeats: int) -> list[float]:
        """Returns the seconds of a step in each of several executions, after one untimed."""
        ends: list[float] = []
        stamp = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: ends.append(time.perf_counter())
        )
        steps = self._each * (repeats + 1)
        self._learner.fit(self._episodes, steps_per_epoch=steps, callbacks=[stamp], verbose=0)
        return [(b - a) / self._each for a, b in itertools.pairwise(ends)]


def run(settings: Settings, files: Files) -> Store:
    """Measures what is not there yet, and shows the table.

    Raises:
        ValueError: There is no such line, or nothing is trained in it.
    """
    lines = list(work.select(settings.lines, ("second",)))
    if any(line.evaluation for line in lines):
        raise ValueError(f"lines must be trainings, got {settings.lines}.")
    store = Store(files.output, settings, table, overwrite=files.overwrite)
    for line in lines:
        store.measure(line.line, lambda line=line: measure(line, settings))
    return store.shown()


def measure(line: work.Work, settings: Settings) -> dict:
    """Times a line in all ways, in turns."""
    with contextlib.ExitStack() as stack:
        alone = stack.enter_context(Worker("session:Session", contenders.OURS))
        alone.call("start", line, timing.initial_weights(line), work.episodes(line))
        workers = {"loss and meta-gradient": alone}
        for each in sorted({1, line.batches}):
            name = "fit" if each == 1 else f"fit, steps_per_execution={each}"
            workers[name] = stack.enter_context(Worker("fit:Fitting", line, each))
            workers[name].call("time", 1)  # compiles
        times = timing.interleave(workers, seconds=settings.seconds, repeats=3)
    figures = {
        # A call of the first has all meta-batches of the line in it.
        name: timing.summary(seconds, line.batches if workers[name] is alone else 1)
        for name, seconds in times.items()
    }
    return {"title": line.title, "tasks": line.tasks, "ways": figures}


def table(records: dict[str, dict]) -> str:
    """Returns the table: a row per line and way."""
    rows = []
    for record in records.values():
        for name, figures in record["ways"].items():
            low, high = figures["quartiles_ms"]
            times = f"{figures['median_ms']:.3g} [{low:.3g}, {high:.3g}]"
            rows.append([f"{record['title']}, {record['tasks']} tasks", name, times])
    return tabulate.tabulate(rows, ["line", "", "ms a step [quartiles]"], disable_numparse=True)


def main() -> None:
    """Runs the command."""
    try:
        run_command("benchmarks.fit", __doc__, run, Settings, Files)
    except WorkerError as error:
        sys.exit(f"python -m experiments.benchmarks.fit: {error}")


if __name__ == "__main__":
    main()
