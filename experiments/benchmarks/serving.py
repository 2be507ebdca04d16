"""Times requests to exported learners beside a PyTorch loop: adapt to five images, predict 25.

    python -m experiments.benchmarks.serving
    python -m experiments.benchmarks.serving --tasks 1 --seconds 10

The Omniglot network, 5 ways, 1 shot, 3 inner steps, exported with signatures of any size and of
fixed sizes, with and without XLA; called from Python and by TensorFlow's C API, which has the
loader of TensorFlow Serving. Every contender gets the same requests in a process of its own, its
answers are compared, and all are timed in turns, with one client and with several.
"""

import contextlib
import dataclasses
import importlib.util
import pathlib
import sys
import tempfile

import numpy as np
import tabulate

from experiments.benchmarks import timing, work
from experiments.benchmarks.contenders import ours
from experiments.benchmarks.store import Store
from experiments.benchmarks.worker import Worker, WorkerError
from experiments.shared.command_line import run_command

BASELINE = "any size, C loader"
TOLERANCE = 1e-3  # between answers, in parts of the largest logit


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the figures depend on."""

    seconds: float = 10.0  # of timing, per contender and line
    repeats: int = 5  # timed rounds at least
    torch: bool = True  # whether PyTorch takes part


@dataclasses.dataclass(frozen=True)
class Selection:
    """What to measure now."""

    tasks: tuple[int, ...] = (1, 32)  # of a request
    clients: tuple[int, ...] = (1, 8)  # that ask at the same time
    output: str = "runs/benchmarks/serving"  # folder of the results
    overwrite: bool = False  # whether to remove what is in that folder


def run(settings: Settings, selection: Selection) -> Store:
    """Measures what is not there yet, and shows the table."""
    if settings.torch and importlib.util.find_spec("torch") is None:
        raise ValueError("PyTorch is not installed: pip install '.[bench]', or pass --no-torch.")
    store = Store(selection.output, settings, table, overwrite=selection.overwrite)
    for tasks in selection.tasks:
        for clients in selection.clients:
            store.measure(
                f"{tasks} tasks, {clients} clients",
                lambda tasks=tasks, clients=clients: measure(settings, line(tasks), clients),
            )
    return store.shown()


def line(tasks: int) -> work.Work:
    """Returns the work of a request."""
    return work.Work("s", "served Omniglot", work.OMNIGLOT, tasks, 1, 5, 3, 0.4, ways=5)


def measure(settings: Settings, line: work.Work, clients: int) -> dict:
    """Times all contenders in turns, after comparing their answers.

    Args:
        settings: How long.
        line: What a request asks for.
        clients: How many ask at the same time.

    Returns:
        The figures of each contender, in seconds per round of one request of each client.

    Raises:
        ValueError: The answers differ.
    """
    weights, episodes = timing.initial_weights(line), work.episodes(line)
    x_support, y_support, x_query, y_query = (array[0] for array in episodes)
    inputs = {"x_support": x_support, "y_support": y_support, "x_query": x_query}
    learner = ours.build_learner(line, weights)
    learner.build_on(((x_support, y_support), (x_query, y_query)))
    sizes = line.tasks, line.ways * line.shots, line.ways * line.queries
    fixed = "adapt_and_predict_" + "x".join(map(str, sizes))
    answers, workers, firsts, errors = {}, {}, {}, {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        for kind, jit_compile in (("plain", False), ("xla", True)):
            learner.export(
                pathlib.Path(folder, kind),
                signatures=["adapt_and_predict"],
                batch_normalization="transductive",
                shapes=[sizes],
                jit_compile=jit_compile,
                verbose=False,
            )
        for title, kind, signature in (
            ("any size", "plain", "adapt_and_predict"),
            ("fixed sizes", "plain", fixed),
            ("fixed sizes, XLA", "xla", fixed),
        ):
            path = str(pathlib.Path(folder, kind))
            for loader in ("Python", "C"):
                worker = Worker(f"servers:{loader}Loader", path, signature, inputs, clients)
                workers[f"{title}, {loader} loader"] = stack.enter_context(worker)
        if settings.torch:
            worker = Worker("servers:TorchLoop", line, weights, episodes, clients)
            workers["PyTorch loop"] = stack.enter_context(worker)
        for name, worker in workers.items():
            firsts[name], answers[name] = worker.call("first")
            errors[name] = _error(answers[name], answers[next(iter(answers))])
            if not errors[name] <= TOLERANCE:
                raise ValueError(
                    f"{name} answers differently: by {errors[name]:.2g} of the logits."
                )
        times = timing.interleave(workers, seconds=settings.seconds, repeats=settings.repeats)
    return {
        "tasks": line.tasks,
        "clients": clients,
        "contenders": {
            name: {"first_seconds": firsts[name], "error": errors[name]}
            | timing.summary(times[name])
            for name in workers
        },
    }


def _error(answers: np.ndarray, expected: np.ndarray) -> float:
    # In a task now and then rounding switches a ReLU, as moving its inputs by 1e-7 does: one task
    # in ten may.
    by_task = np.abs(answers - expected).max(axis=(1, 2))
    return float(np.quantile(by_task, 0.9, method="lower") / np.abs(expected).max())


def table(records: dict[str, dict]) -> str:
    """Returns the tables: one for each size of a request and number of clients."""
    parts = []
    for key, record in records.items():
        rates = {
            name: 1e3 * record["clients"] / figures["median_ms"]
            for name, figures in record["contenders"].items()
        }
        rows = [
            [
                name,
                f"{rates[name]:.1f}",
                f"{rates[name] / rates[BASELINE]:.2f}",
                "{:.1f} [{:.1f}, {:.1f}]".format(figures["median_ms"], *figures["quartiles_ms"]),
                f"{figures['first_seconds']:.1f}",
                figures["steps"],
            ]
            for name, figures in record["contenders"].items()
        ]
        headers = ["", "requests/s", "times any size, C", "ms a round [quartiles]", "first, s"]
        headers.append("rounds")
        text = tabulate.tabulate(rows, headers, stralign="right", disable_numparse=True)
        parts.append(f"{key}\n{text}")
    return "\n\n".join(parts)


def main() -> None:
    """Runs the command."""
    try:
        run_command("benchmarks.serving", __doc__, run, Settings, Selection)
    except WorkerError as error:
        sys.exit(f"python -m experiments.benchmarks.serving: {error}")


if __name__ == "__main__":
    main()
