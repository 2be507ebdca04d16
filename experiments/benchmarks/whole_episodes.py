"""What it does to a batch, which of its episodes count.

    python -m experiments.benchmarks.whole_episodes --tasks ant-velocity

The random initial policy draws from test tasks. Every environment begins episodes for as many steps
as a horizon has, and takes them to their end. Three ways to count are compared:

    first                the first one of each environment, what `rl.Sampler` draws by default
    begun in time        all of them, what it draws in more steps
    ended in time        those that have ended after these steps, as in the authors' code: another
                         one that is counted is a short one
"""

import dataclasses
import functools
from typing import Any

import numpy as np
import tabulate

from experiments.benchmarks.store import Store, check_known
from experiments.locomotion import PROBLEMS
from experiments.shared.agent_settings import Problem
from experiments.shared.command_line import run_command
from experiments.shared.reinforcement_learning import TEST, make_agent, make_environment
from keras_maml.reporting.evaluation import summary
from keras_maml.rl import Sampler
from keras_maml.validation import check_count

WAYS = ("first", "begun in time", "ended in time")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the figures depend on."""

    tasks: tuple[str, ...] = ("ant-velocity",)  # of experiments.locomotion
    test_tasks: int = 40
    environments: int = 50  # of each test task
    seed: int = 0  # of weights, resets and actions


@dataclasses.dataclass(frozen=True)
class Files:
    """Where things are."""

    output: str = "runs/benchmarks/whole_episodes"  # folder of the results
    overwrite: bool = False  # whether to remove what is in that folder


def run(settings: Settings, files: Files, problems: dict[str, Problem] = PROBLEMS) -> Store:
    """Measures what is not there yet, and shows the table.

    Raises:
        ValueError: An unknown task, or a number out of range.
    """
    check_known("tasks", settings.tasks, problems)
    check_count("test_tasks", settings.test_tasks, minimum=2)
    check_count("environments", settings.environments, minimum=1)
    store = Store(files.output, settings, table, overwrite=files.overwrite)
    for task in settings.tasks:
        store.measure(task, functools.partial(measure, settings, problems[task]))
    return store.shown()


def measure(settings: Settings, problem: Problem) -> dict[str, Any]:
    """Draws the batch and counts its episodes in each way."""
    chosen = dataclasses.replace(problem.settings, seed=settings.seed)
    count, horizon = settings.test_tasks * settings.environments, chosen.horizon
    environment = make_environment(problem, chosen, "random", count)
    agent = make_agent(chosen, "random", environment, 1)
    sampler = Sampler(environment, agent.collect_policy, steps=2 * horizon)
    sampler.set_tasks(environment.sample_tasks(settings.test_tasks, TEST))
    drawn = sampler.draw(settings.seed)
    found = episodes(*map(np.asarray, (drawn.step_type, drawn.next_step_type, drawn.reward)))
    chosen_by = (found["number"] == 0, found["number"] >= 0, found["end"] <= horizon)
    lengths = found["end"] - found["begin"]
    task = found["environment"] // settings.environments
    ways = {}
    for way, counts in zip(WAYS, chosen_by, strict=True):
        returns = np.bincount(task, found["return"] * counts) / np.bincount(task, counts)
        ways[way] = {
            "episodes": int(counts.sum()),
            "later": float(np.mean(found["number"][counts] > 0)),
            "length": float(lengths[counts].mean()),
            "return": summary(returns),
        }
    dropped = 1 - lengths[chosen_by[-1]].sum() / (count * horizon)
    return {"horizon": horizon, "environments": count, "ways": ways, "dropped": float(dropped)}


def episodes(
    step_types: np.ndarray, next_step_types: np.ndarray, rewards: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns the whole episodes of a batch of environments, those of one after another.

    Args:
        step_types: ``[environments, steps]``: 0 where an episode begins.
        next_step_types: The same of the step after: 2 where one ends.
        rewards: ``[environments, steps]``.

    Returns:
        ``[episodes]`` each: ``environment``, ``number`` in it, ``begin``, ``end`` and ``return``.

    Example:
        >>> found = episodes(np.array([[0, 1, 2, 0]]), np.array([[1, 2, 0, 2]]), np.ones([1, 4]))
        >>> [found[name].tolist() for name in ("number", "begin", "end", "return")]
        [[0, 1], [0, 3], [2, 4], [2.0, 1.0]]
    """
    environment, begin = np.nonzero(step_types == 0)
    end = np.nonzero(next_step_types == 2)[1] + 1
    sums = np.pad(np.cumsum(rewards, axis=1, dtype=np.float64), [(0, 0), (1, 0)])
    return {
        "environment": environment,
        "number": np.arange(len(begin)) - np.searchsorted(environment, environment),
        "begin": begin,
        "end": end,
        "return": sums[environment, end] - sums[environment, begin],
    }


def table(records: dict[str, dict]) -> str:
    """Returns the tables: one for each task."""
    parts = []
    headers = ["counted", "episodes", "of which later ones", "mean length", "mean return"]
    for task, record in records.items():
        about = (
            f"{task}: {record['environments']} environments, random initial policy, horizon "
            f"{record['horizon']}. To count what has ended in time drops {record['dropped']:.1%} "
            "of the steps until then."
        )
        lines = [
            [
                way,
                one["episodes"],
                f"{one['later']:.1%}",
                f"{one['length']:.1f}",
                f"{one['return']['mean']:.1f} ± {one['return']['ci95']:.1f}",
            ]
            for way, one in record["ways"].items()
        ]
        text = tabulate.tabulate(lines, headers, disable_numparse=True)
        parts.append(f"{about}\n{text}")
    return "\n\n".join(parts)


if __name__ == "__main__":
    run_command("benchmarks.whole_episodes", __doc__, run, Settings, Files)
