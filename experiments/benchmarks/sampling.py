"""Times the sampling of environment steps, beside gymnasium's and TF-Agents' ways of batching.

    python -m experiments.benchmarks.sampling
    python -m experiments.benchmarks.sampling --count 64 --seconds 2

Rates are environment steps per second, from the median time of a step with random actions. The
bare call of mujoco.batch computes the physics alone: no observation, no reward, no reset.
Contenders that need a process for each environment have as many as there are processors.
"""

import contextlib
import dataclasses
import functools
import itertools
import sys

import tabulate

from experiments.benchmarks import timing
from experiments.benchmarks.store import Store
from experiments.benchmarks.worker import Worker, WorkerError
from experiments.shared.command_line import run_command
from keras_maml.execution.cores import count_cores

ENVIRONMENTS = ("keras_maml/HalfCheetahVelocity-v0", "keras_maml/AntVelocity-v0")
PHYSICS = ("paper", "gymnasium")
BARE = "mujoco.batch"
CONTENDERS = (BARE, "TaskVectorEnv", "TaskPyEnvironment", "SyncVectorEnv")
WITH_PROCESSES = ("AsyncVectorEnv", "ParallelPyEnvironment")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the figures depend on."""

    count: int = 800  # environments
    processes: int = count_cores()  # and environments, of those that need them
    seconds: float = 10.0  # of each contender
    repeats: int = 20  # steps of each contender at least


@dataclasses.dataclass(frozen=True)
class Files:
    """Where things are."""

    output: str = "runs/benchmarks/sampling"  # folder of the results
    overwrite: bool = False  # whether to remove what is in that folder


def run(settings: Settings, files: Files) -> Store:
    """Measures what is not there yet, and shows the table."""
    store = Store(files.output, settings, table, overwrite=files.overwrite)
    for name, physics in itertools.product(ENVIRONMENTS, PHYSICS):
        store.measure(f"{name} {physics}", functools.partial(measure, settings, name, physics))
    return store.shown()


def measure(settings: Settings, name: str, physics: str) -> dict:
    """Times all contenders on one environment in turns, so that all see the same machine."""
    counts = dict.fromkeys(CONTENDERS, settings.count)
    counts |= dict.fromkeys(WITH_PROCESSES, settings.processes)
    with contextlib.ExitStack() as stack:
        workers = {}
        for kind, count in counts.items():
            worker = Worker("samplers:Sampler", kind, name, physics, count)
            workers[kind] = stack.enter_context(worker)
        times = timing.interleave(workers, seconds=settings.seconds, repeats=settings.repeats)
    figures = {
        kind: {"environments": count} | timing.summary(times[kind])
        for kind, count in counts.items()
    }
    return {"name": name, "physics": physics, "contenders": figures}


def table(records: dict[str, dict]) -> str:
    """Returns the tables: one for each environment and physics."""
    parts = []
    for record in records.values():
        rates = {
            kind: 1e3 * figures["environments"] / figures["median_ms"]
            for kind, figures in record["contenders"].items()
        }
        rows = []
        for kind, figures in record["contenders"].items():
            low, high = figures["quartiles_ms"]
            rows.append(
                [
                    kind,
                    figures["environments"],
                    f"{rates[kind]:.0f}",
                    f"{100 * rates[kind] / rates[BARE]:.0f} %",
                    f"{figures['median_ms']:.2f} [{low:.2f}, {high:.2f}]",
                    figures["steps"],
                ]
            )
        headers = ["", "environments", "steps/s", "of bare", "ms per call [quartiles]", "calls"]
        text = tabulate.tabulate(rows, headers, stralign="right", disable_numparse=True)
        parts.append(f"{record['name']}, physics: {record['physics']}\n{text}")
    return "\n\n".join(parts)


def main() -> None:
    """Runs the command."""
    try:
        run_command("benchmarks.sampling", __doc__, run, Settings, Files)
    except WorkerError as error:
        sys.exit(f"python -m experiments.benchmarks.sampling: {error}")


if __name__ == "__main__":
    main()
