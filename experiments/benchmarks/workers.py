"""Times training by one process and by several workers, and says what more workers would give.

    python -m experiments.benchmarks.workers
    python -m experiments.benchmarks.workers --lines 3 --seconds 5

A line is one of `experiments.benchmarks.meta_step`. Its training step (`train_on_batch`) is taken
by one process on one core, by one on all cores, by workers on a core each that share the tasks, and
by as many processes with the same shares that know nothing of each other, all in turns: what the
last lose, too, the machine takes (its cores share memory), not the exchange. The sum of a message
over two workers is timed for messages of several sizes, and the time of a step with many workers on
as many tasks each is computed from both:

    step + 2 (N - 1) hop + 2 (N - 1) / N bytes / bandwidth,

as messages go around a ring. hop and bandwidth are fitted to what was measured, which is this
machine's memory; beside it stand those of a network that --hop and --bandwidth describe.
"""

import concurrent.futures
import contextlib
import dataclasses
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import tabulate
import tensorflow as tf

from experiments.benchmarks import algorithms, timing, work
from experiments.benchmarks.store import Store
from experiments.benchmarks.worker import Worker, WorkerError
from experiments.shared.command_line import run_command
from keras_maml import Workers
from keras_maml.execution.cores import available_cores
from keras_maml.launch import free_addresses, tf_config

MANY = (8, 64, 256)
UNCONNECTED = "as many processes that share nothing"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the figures depend on."""

    lines: tuple[str, ...] = ("3", "5")  # of experiments.benchmarks.meta_step
    workers: int = 2  # as many cores are needed
    seconds: float = 20.0  # of each way to train
    sizes: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)  # of messages, in numbers
    hop: float = 50e-6  # seconds from one worker to the next, of the network to compute for
    bandwidth: float = 1.25e9  # bytes a second of that network: 10 Gbit/s


@dataclasses.dataclass(frozen=True)
class Files:
    """Where things are."""

    output: str = "runs/benchmarks/workers"  # folder of the results
    overwrite: bool = False  # whether to remove what is in that folder


class Member(algorithms.Training):
    """One of the workers that train together.

    Args:
        line: What they train on.
    """

    def __init__(self, line: work.Work) -> None:
        self._workers = Workers()
        super().__init__("maml", line, self._workers)
        self.numbers = sum(int(np.prod(v.shape)) for v in self._learner.trainable_variables)

    def sum_seconds(self, size: int, repeats: int = 50) -> list[float]:
        """Returns the seconds of each of several sums of a message of float32 numbers."""
        message, seconds = tf.zeros([size]), []
        for _ in range(repeats):
            start = time.perf_counter()
            self._workers.all_reduce(message).numpy()
            seconds.append(time.perf_counter() - start)
        return seconds


class Team:
    """Processes with a core and a share of the tasks each, driven as one `Worker` is.

    Args:
        line: What they train on.
        cores: The cores.
        together: Whether they are workers that train together, or know nothing of each other.
    """

    def __init__(self, line: work.Work, cores: Sequence[int], together: bool = True) -> None:
        addresses = free_addresses(len(cores))
        self._stack, self._pool = contextlib.ExitStack(), concurrent.futures.ThreadPoolExecutor()

        def start(index: int) -> Worker:
            mine = (cores[index],)
            if not together:
                share = dataclasses.replace(line, tasks=line.tasks // len(cores))
                return Worker("algorithms:Training", "maml", share, cpus=mine)
            variables = {"TF_CONFIG": tf_config(addresses, index)}
            return Worker("workers:Member", line, cpus=mine, variables=variables)

        made = list(self._pool.map(start, range(len(cores))))
        self._members = [self._stack.enter_context(worker) for worker in made]

    def __enter__(self) -> "Team":
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()
        self._pool.shutdown()

    def call(self, method: str, *args: Any) -> Any:
        """Calls a method of all workers at the same time; returns what the first one returns."""
        return [*self._pool.map(lambda member: member.call(method, *args), self._members)][0]


def run(settings: Settings, files: Files) -> Store:
    """Measures what is not there yet, and shows the tables.

    Raises:
        ValueError: There is no such line, its tasks cannot be shared, or cores are missing.
    """
    lines = list(work.select(settings.lines, ("second",)))
    for line in lines:
        if line.ways == 1 or line.evaluation or line.tasks % settings.workers:
            raise ValueError(
                f"lines must be trainings of classifiers whose tasks {settings.workers} workers "
                f"can share, got {line.line} of {line.tasks} tasks."
            )
    cores = sorted(available_cores())
    if len(cores) < settings.workers:
        raise ValueError(f"{settings.workers} workers need as many cores, there are {len(cores)}.")
    store = Store(files.output, settings, table, overwrite=files.overwrite)
    for line in lines:
        store.measure(line.line, lambda line=line: measure(line, settings, cores))
    return store.shown()


def measure(line: work.Work, settings: Settings, cores: Sequence[int]) -> dict:
    """Times a line in all ways in turns, and messages; computes what more workers would give."""
    few = cores[: settings.workers]
    with contextlib.ExitStack() as stack:
        ways = {
            "one process, one core": stack.enter_context(
                Worker("algorithms:Training", "maml", line, cpus=(few[0],))
            ),
            f"one process, {len(few)} cores": stack.enter_context(
                Worker("algorithms:Training", "maml", line, cpus=tuple(few))
            ),
            UNCONNECTED: stack.enter_context(Team(line, few, together=False)),
            f"{len(few)} workers, a core each": (team := stack.enter_context(Team(line, few))),
        }
        for way in ways.values():
            way.call("time", 1)  # compiles
        times = timing.interleave(ways, seconds=settings.seconds, repeats=3)
        numbers = team.call("__getattribute__", "numbers")
        messages = {
            4 * size: statistics.median(team.call("sum_seconds", size)) for size in settings.sizes
        }
    figures = {name: timing.summary(seconds) for name, seconds in times.items()}
    alone, *_, together = [figure["median_ms"] for figure in figures.values()]
    apart = figures[UNCONNECTED]["median_ms"]
    slope, intercept = np.polyfit([*messages], [*messages.values()], 1)
    # The sum over two workers: two hops, and the message once in each direction.
    fitted = {"hop": max(float(intercept), 0.0) / 2, "bandwidth": 1 / float(slope)}
    network = {"hop": settings.hop, "bandwidth": settings.bandwidth}
    return {
        "title": line.title,
        "tasks": line.tasks,
        "ways": figures,
        "share_of_linear": alone / together / len(few),
        "share_of_unconnected": apart / together,
        "message_bytes": 4 * numbers,
        "messages": {str(size): seconds for size, seconds in messages.items()},
        "fitted": fitted,
        "computed": {
            name: {str(n): share(alone / 1e3, 4 * numbers, n, **of) for n in MANY}
            for name, of in (("this machine", fitted), ("network", network))
        },
        "network": network,
    }


def share(step: float, size: int, workers: int, hop: float, bandwidth: float) -> float:
    """Returns the share of time in which workers compute, each on as many tasks as one alone.

    Args:
        step: Seconds of a step without a message.
        size: Bytes of the message.
        workers: How many, in a ring.
        hop: Seconds from one to the next.
        bandwidth: Bytes a second.

    Example:
        >>> share(step=0.9, size=0, workers=2, hop=0.05, bandwidth=1.0)
        0.9
    """
    exchange = 2 * (workers - 1) * hop + 2 * (workers - 1) / workers * size / bandwidth
    return step / (step + exchange)


def table(records: dict[str, dict]) -> str:
    """Returns the tables: times of a step, and what was computed."""
    times, computed = [], []
    for record in records.values():
        first = next(iter(record["ways"].values()))["median_ms"]
        for name, figures in record["ways"].items():
            low, high = figures["quartiles_ms"]
            middle = figures["median_ms"]
            ms = f"{middle:.1f} [{low:.1f}, {high:.1f}]"
            times.append([record["title"], name, ms, f"{first / middle:.2f}"])
        for name, shares in record["computed"].items():
            of = record["fitted"] if name == "this machine" else record["network"]
            about = f"{of['hop'] * 1e6:.0f} us, {of['bandwidth'] / 1e9:.2f} GB/s"
            rates = [f"{100 * value:.1f} %" for value in shares.values()]
            computed.append([record["title"], f"{name}: {about}", record["message_bytes"], *rates])
    many = [f"{n} workers" for n in MANY]
    return "\n\n".join(
        [
            tabulate.tabulate(
                times, ["line", "", "ms a step [quartiles]", "speed"], disable_numparse=True
            ),
            "Computed: share of linear speed with as many tasks for each worker as one core took.",
            tabulate.tabulate(
                computed, ["line", "hop, bandwidth", "bytes", *many], disable_numparse=True
            ),
        ]
    )


def main() -> None:
    """Runs the command."""
    try:
        run_command("benchmarks.workers", __doc__, run, Settings, Files)
    except WorkerError as error:
        sys.exit(f"python -m experiments.benchmarks.workers: {error}")


if __name__ == "__main__":
    main()
