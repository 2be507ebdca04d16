"""Times the meta-iterations of reinforcement learning, and says where the time goes.

    python -m experiments.benchmarks.meta_iteration
    python -m experiments.benchmarks.meta_iteration --tasks cheetah-direction ant-direction

A meta-iteration is that of `experiments.locomotion` with its settings for the task, from the random
initialisation: sampling before adaptation, the policy gradient steps, sampling after them, and the
outer step with its conjugate gradient and line search. The first one, in which programs are
compiled, is timed apart.
"""

import collections
import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import tabulate

from experiments.benchmarks import timing
from experiments.benchmarks.store import Store, check_known
from experiments.locomotion import PROBLEMS
from experiments.shared.agent_settings import Problem
from experiments.shared.command_line import run_command
from experiments.shared.reinforcement_learning import make_agent, make_environment
from keras_maml.rl import Sampler, meta_iteration

WHOLE, REST = "meta-iteration", "rest: checks, returns, bookkeeping"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the figures depend on."""

    tasks: tuple[str, ...] = ("cheetah-direction",)  # of experiments.locomotion
    repeats: int = 10  # meta-iterations that are timed
    seed: int = 0  # of weights, tasks, resets and actions
    fisher_stride: int = 4  # products with the Hessian take every so-many-th transition


@dataclasses.dataclass(frozen=True)
class Files:
    """Where things are."""

    output: str = "runs/benchmarks/meta_iteration"  # folder of the results
    overwrite: bool = False  # whether to remove what is in that folder


def run(settings: Settings, files: Files, problems: dict[str, Problem] = PROBLEMS) -> Store:
    """Measures what is not there yet, and shows the tables.

    Raises:
        ValueError: An unknown task, or less than one repeat.
    """
    check_known("tasks", settings.tasks, problems)
    if settings.repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {settings.repeats}.")
    store = Store(files.output, settings, table, overwrite=files.overwrite)
    for task in settings.tasks:
        store.measure(task, functools.partial(measure, settings, problems[task]))
    return store.shown()


def measure(settings: Settings, problem: Problem) -> dict[str, Any]:
    """Times meta-iterations and their parts."""
    shared = {"seed": settings.seed, "fisher_stride": settings.fisher_stride}
    chosen = dataclasses.replace(problem.settings, **shared)
    environment = make_environment(problem, chosen, "maml", chosen.tasks * chosen.rollouts)
    agent = make_agent(chosen, "maml", environment, chosen.tasks)
    sampler = Sampler(environment, agent.collect_policy, steps=chosen.horizon)
    spent: collections.Counter = collections.Counter()
    sampler.draw = timed(spent, "sampling, before and after adaptation", sampler.draw)
    agent.adapt = timed(spent, "adaptation", agent.adapt)
    agent.train = timed(spent, "outer step", agent.train)
    iterate = timed(spent, WHOLE, meta_iteration)
    rows, backtracks = [], []
    for iteration in range(settings.repeats + 1):
        spent.clear()
        tasks = environment.sample_tasks(chosen.tasks, (settings.seed, iteration))
        info, _ = iterate(agent, sampler, tasks, settings.seed, iteration)
        whole = spent.pop(WHOLE)
        rows.append({**spent, REST: whole - spent.total(), WHOLE: whole})
        backtracks.append(int(info.extra.backtracks))
    first, *rows = rows
    return {
        "settings": dataclasses.asdict(chosen),
        "first_seconds": first[WHOLE],
        "backtracks": backtracks[1:],
        "parts": {name: timing.summary([row[name] for row in rows]) for name in first},
    }


def timed(spent: collections.Counter, name: str, function: Callable) -> Callable:
    """Returns the function; what its calls take is added to ``spent[name]``, in seconds."""

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        start = time.perf_counter()
        result = function(*arguments)
        spent[name] += time.perf_counter() - start
        return result

    return call


def table(records: dict[str, dict]) -> str:
    """Returns the tables: one for each task."""
    parts = []
    for task, record in records.items():
        rows = []
        for name, figures in record["parts"].items():
            low, high = (value / 1e3 for value in figures["quartiles_ms"])
            median = figures["median_ms"] / 1e3
            share = 100 * median / record["parts"][WHOLE]["median_ms"] * 1e3
            rows.append([name, f"{median:.2f} [{low:.2f}, {high:.2f}]", f"{share:.0f} %"])
        chosen = record["settings"]
        about = (
            f"{task}: {chosen['tasks']} tasks, {chosen['rollouts']} rollouts, {chosen['horizon']} "
            f"steps, before and after adaptation, fisher_stride {chosen['fisher_stride']}; "
            f"{len(record['backtracks'])} meta-iterations "
            f"after the first, which took {record['first_seconds']:.1f} s; the line search "
            f"went back {sum(record['backtracks'])} times"
        )
        headers = ["", "seconds [quartiles]", "share"]
        text = tabulate.tabulate(rows, headers, stralign="right", disable_numparse=True)
        parts.append(f"{about}\n{text}")
    return "\n\n".join(parts)


if __name__ == "__main__":
    run_command("benchmarks.meta_iteration", __doc__, run, Settings, Files)
