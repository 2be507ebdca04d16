"""Times the episode pipelines on one core, beside the training steps that they feed.

    python -m experiments.benchmarks.episodes
    python -m experiments.benchmarks.episodes --data FOLDER_WITH_THE_OMNIGLOT_ARCHIVES

A pipeline that delivers many more meta-batches than the training step takes is not what limits
training. Images are random numbers unless --data is given. The times of the steps are read from
the results of `experiments.benchmarks.meta_step`.
"""

import dataclasses
import json
import pathlib
import sys

import tabulate

from experiments.benchmarks import timing
from experiments.benchmarks.contenders import OURS
from experiments.benchmarks.pipelines import Pipeline
from experiments.benchmarks.store import Store
from experiments.benchmarks.worker import Worker, WorkerError
from experiments.shared.command_line import run_command
from keras_maml.execution.cores import available_cores

PIPELINES = (
    Pipeline("sinusoid, 25 tasks, 10 points", "1 second", "sinusoid", 25, 1, 10, 10),
    Pipeline("Omniglot 5-way 1-shot, 32 tasks, 1 query", "2 second", "omniglot", 32, 5, 1, 1),
    Pipeline("Omniglot 5-way 1-shot, 32 tasks, 15 queries", "3 second", "omniglot", 32, 5, 1, 15),
    Pipeline("Omniglot 20-way 1-shot, 16 tasks, 1 query", "4 second", "omniglot", 16, 20, 1, 1),
    Pipeline(
        "84x84x3, 5-way 1-shot, 4 tasks, 15 queries", "5 second", "mini_imagenet", 4, 5, 1, 15
    ),
    Pipeline(
        "84x84x3, 5-way 5-shot, 2 tasks, 15 queries", "6 second", "mini_imagenet", 2, 5, 5, 15
    ),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the figures depend on."""

    seconds: float = 5.0  # of each pipeline
    data: str | None = None  # folder of the Omniglot archives; None: random images
    meta_step: str = "runs/benchmarks/meta_step"  # folder of the results of the steps
    step_ms: float | None = None  # milliseconds of a step, instead of those results


@dataclasses.dataclass(frozen=True)
class Files:
    """Where things are."""

    output: str = "runs/benchmarks/episodes"  # folder of the results
    overwrite: bool = False  # whether to remove what is in that folder


def run(settings: Settings, files: Files) -> Store:
    """Measures what is not there yet, and shows the table."""
    steps = step_times(settings)
    store = Store(files.output, settings, table, overwrite=files.overwrite)
    for pipeline in PIPELINES:

        def measure(pipeline: Pipeline = pipeline) -> dict:
            core = min(available_cores())
            with Worker("pipelines:Rate", pipeline, settings.data, cpus=(core,)) as worker:
                figures = timing.summary(worker.call("times", settings.seconds))
            del figures["steps"]
            return figures | {"title": pipeline.title, "step_ms": steps.get(pipeline.key)}

        store.measure(pipeline.title, measure)
    return store.shown()


def step_times(settings: Settings) -> dict[str, float]:
    """Returns the milliseconds of the training steps by line and order, as far as known."""
    if settings.step_ms is not None:
        return {pipeline.key: settings.step_ms for pipeline in PIPELINES}
    path = pathlib.Path(settings.meta_step) / "results.json"
    if not path.exists():
        return {}
    records = json.loads(path.read_text())["results"]
    return {
        key: record["contenders"][OURS]["median_ms"]
        for key, record in records.items()
        if record.get("contenders", {}).get(OURS)
    }


def table(records: dict[str, dict]) -> str:
    """Returns the table: a line per pipeline."""
    rows = []
    for record in records.values():
        median, step = record["median_ms"], record["step_ms"]
        low, high = record["quartiles_ms"]
        factor = f"{step / median:.1f}" if step else "-"
        times = f"{median:.3f} [{low:.3f}, {high:.3f}]"
        step_text = f"{step:.2f}" if step else "-"
        rows.append([record["title"], f"{1e3 / median:.0f}", times, step_text, factor])
    headers = ["pipeline, on one core", "meta-batches/s", "ms [quartiles]", "step, ms", "factor"]
    text = tabulate.tabulate(rows, headers, stralign="right", disable_numparse=True)
    return f"{text}\n\nfactor: how many times faster the pipeline is than the step, on all cores."


def main() -> None:
    """Runs the command."""
    try:
        run_command("benchmarks.episodes", __doc__, run, Settings, Files)
    except WorkerError as error:
        sys.exit(f"python -m experiments.benchmarks.episodes: {error}")


if __name__ == "__main__":
    main()
