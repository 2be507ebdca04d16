"""Times one MAML meta-step (loss and meta-gradient) beside PyTorch, JAX and plain TensorFlow.

    python -m experiments.benchmarks.meta_step
    python -m experiments.benchmarks.meta_step --lines 2,5 --orders second --seconds 10

Every contender computes the same from the same weights and data, which is checked, in a process
of its own; they are timed in turns, while the others are idle. A line that is finished is kept:
the same command continues, and with other --lines or --tables it adds to what is there.
"""

import contextlib
import dataclasses
import functools
import sys
from typing import Any

from experiments.benchmarks import contenders, report, timing, work
from experiments.benchmarks.comparison import ComparisonError
from experiments.benchmarks.store import Store
from experiments.benchmarks.worker import Worker, WorkerError
from experiments.shared.command_line import run_command

TABLES = ("steps", "scaling", "memory", "many-tasks")
TASKS = (4, 8, 16, 32, 64, 128, 256)
# Tasks, inner steps, and arguments of MAML, of the memory tables.
MEMORY = [
    (4, steps, options)
    for steps in (5, 50)
    for options in (
        {"rematerialize": False},
        {"rematerialize": True},
        {"task_chunk": 2},
        {"task_chunk": 1},
        {"task_chunk": 1, "rematerialize": True},
    )
]
MANY_TASKS = [(tasks, 5, {"task_chunk": 1, "rematerialize": True}) for tasks in (16, 64, 256)]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the figures depend on."""

    contenders: tuple[str, ...] = tuple(contenders.CONTENDERS)  # names, in quotation marks
    seconds: float = 10.0  # of timing, per contender and line
    repeats: int = 5  # timed steps at least
    limit: float = 900.0  # seconds after which a contender without a result is given up


@dataclasses.dataclass(frozen=True)
class Selection:
    """What to measure now; separated by commas or spaces."""

    tables: tuple[str, ...] = ("steps",)  # steps scaling memory many-tasks
    lines: tuple[str, ...] = ("1", "2", "3", "4", "5", "6", "7a", "7b")  # of the table steps
    orders: tuple[str, ...] = work.ORDERS  # second first
    output: str = "runs/benchmarks/meta_step"  # folder of the results
    overwrite: bool = False  # whether to remove what is in that folder


def run(settings: Settings, selection: Selection) -> Store:
    """Measures what is not there yet, and shows the tables."""
    settings = dataclasses.replace(settings, contenders=_split(settings.contenders))
    contenders.require(settings.contenders)
    lines = work.select(_split(selection.lines), _split(selection.orders))
    tables = _split(selection.tables)
    for name in tables:
        if name not in TABLES:
            raise ValueError(f"There is no table {name!r}; tables are {', '.join(TABLES)}.")
    store = Store(selection.output, settings, report.tables, overwrite=selection.overwrite)
    if "steps" in tables:
        for line in lines:
            store.measure(line.key, lambda line=line: _measure_line(line, settings))
    if "scaling" in tables:
        _measure_scaling(store, settings)
    for table, rows in (("memory", MEMORY), ("many-tasks", MANY_TASKS)):
        if table in tables:
            _measure_memory(store, settings, rows)
    return store.shown()


def _measure_line(line: work.Work, settings: Settings) -> dict:
    record = timing.measure(
        line,
        settings.contenders,
        seconds=settings.seconds,
        repeats=settings.repeats,
        limit=settings.limit,
    )
    about = {name: getattr(line, name) for name in ("line", "title", "order", "tasks")}
    return about | {"limit": settings.limit} | record


def _measure_scaling(store: Store, settings: Settings) -> None:
    line = work.select(("2",), ("second",))[0]
    sizes = {tasks: dataclasses.replace(line, tasks=tasks) for tasks in TASKS}
    figures = functools.cache(lambda: _measure_alone(sizes, {}, settings))
    for tasks in TASKS:
        about = {"title": f"{tasks} tasks", "divide_by": tasks}
        store.measure(
            f"scaling {tasks}",
            lambda tasks=tasks, about=about: about | {"figures": figures()[tasks]},
        )


def _measure_memory(store: Store, settings: Settings, rows: list) -> None:
    line = work.select(("5",), ("second",))[0]
    for tasks, steps, options in rows:
        deep = dataclasses.replace(line, tasks=tasks, steps=steps)
        text = ", ".join(f"{name}={value}" for name, value in options.items())
        many = "" if tasks == line.tasks else f"{tasks} tasks, "
        title = f"{many}{steps} steps, {text}"
        measure = functools.partial(_measure_alone, {title: deep}, options, settings)
        store.measure(
            f"memory {title}",
            lambda title=title, measure=measure: {"title": title, "figures": measure()[title]},
        )


def _measure_alone(lines: dict[Any, work.Work], options: dict, settings: Settings) -> dict:
    """Returns the figures of keras_maml alone: each line in a fresh process, timed in turns."""
    figures, workers = {}, {}
    with contextlib.ExitStack() as stack:
        for key, line in lines.items():
            workers[key] = stack.enter_context(Worker("session:Session", contenders.OURS))
            arguments = (line, timing.initial_weights(line), work.episodes(line), options)
            first, _ = workers[key].call("start", *arguments)
            figures[key] = {"first_seconds": first}
        timed = timing.interleave(workers, seconds=settings.seconds, repeats=settings.repeats)
        for key, worker in workers.items():
            figures[key] |= timing.summary(timed[key])
            figures[key]["peak_gb"] = worker.call("peak_memory")
            figures[key]["peak_gb_of_steps"] = worker.call("peak_memory_of_steps")
    return figures


def _split(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part for value in values for part in value.split(",") if part)


def main() -> None:
    """Runs the command."""
    try:
        run_command("benchmarks.meta_step", __doc__, run, Settings, Selection)
    except (ComparisonError, WorkerError, ImportError) as error:
        sys.exit(f"python -m experiments.benchmarks.meta_step: {error}")


if __name__ == "__main__":
    main()
