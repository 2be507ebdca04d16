"""How much of a task's policy gradient is signal, by baseline and by `gae_lambda`.

    python -m experiments.benchmarks.gradient_signal --tasks ant-direction
    python -m experiments.benchmarks.gradient_signal --tasks cheetah-direction --rollouts 40

What an inner step has to learn from a few rollouts is in what way a task differs from the others.
The random initial policy draws two batches of rollouts of the same tasks. The gradients of the
tasks in each batch, less their mean, agree as far as they are signal: their scalar products, summed
over tasks, divided by the norms, are the share of signal in the variance of a gradient between
tasks. The number of rollouts that give the same certainty goes with 1 / share - 1.
"""

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np
import tabulate
import tensorflow as tf

from experiments.benchmarks.store import Store, check_known
from experiments.locomotion import PROBLEMS
from experiments.shared import agent_settings
from experiments.shared.agent_settings import Problem
from experiments.shared.command_line import run_command
from experiments.shared.reinforcement_learning import make_agent, make_environment
from keras_maml.progress import progress
from keras_maml.reporting.evaluation import summary
from keras_maml.rl import MetaPolicyGradientAgent, Sampler
from keras_maml.rl.baseline import BASELINES
from keras_maml.validation import check_count


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the figures depend on."""

    tasks: tuple[str, ...] = ("ant-direction",)  # of experiments.locomotion
    meta_batch_size: int = 20  # tasks of a batch
    rollouts: int = 20  # of each task
    baselines: tuple[str, ...] = BASELINES  # of returns
    gae_lambdas: tuple[float, ...] = (0.7, 0.8, 0.9, 0.95, 1.0)  # of advantages
    repeats: int = 4  # pairs of batches
    seed: int = 0  # of weights, tasks, resets and actions


@dataclasses.dataclass(frozen=True)
class Files:
    """Where things are."""

    output: str = "runs/benchmarks/gradient_signal"  # folder of the results
    overwrite: bool = False  # whether to remove what is in that folder


def run(settings: Settings, files: Files, problems: dict[str, Problem] = PROBLEMS) -> Store:
    """Measures what is not there yet, and shows the tables.

    Raises:
        ValueError: An unknown task or baseline, or a number out of range.
    """
    check_known("tasks", settings.tasks, problems)
    check_known("baselines", settings.baselines, BASELINES)
    check_count("repeats", settings.repeats, minimum=2)
    check_count("meta_batch_size", settings.meta_batch_size, minimum=2)
    check_count("rollouts", settings.rollouts, minimum=1)
    store = Store(files.output, settings, table, overwrite=files.overwrite)
    for task in settings.tasks:
        store.measure(task, functools.partial(measure, settings, problems[task]))
    return store.shown()


def measure(settings: Settings, problem: Problem) -> dict[str, Any]:
    """Draws the batches and compares the gradients that each estimator makes of them."""
    chosen = dataclasses.replace(
        problem.settings,
        tasks=settings.meta_batch_size,
        rollouts=settings.rollouts,
        seed=settings.seed,
        inner_learning_rate=1.0,
    )
    environment = make_environment(problem, chosen, "maml", chosen.tasks * chosen.rollouts)
    estimators = [*itertools.product(settings.baselines, settings.gae_lambdas)]
    agents = []  # alike but for the estimator
    for baseline, gae_lambda in estimators:
        estimator = {"gae_lambda": gae_lambda, "inner_gae_lambda": None}
        of_agent = dataclasses.replace(chosen, baseline=baseline, **estimator)
        agent_settings.check(of_agent)
        agents.append(make_agent(of_agent, "maml", environment, chosen.tasks))
    sampler = Sampler(environment, agents[0].collect_policy, steps=chosen.horizon)
    shares = []
    for repeat in progress(range(settings.repeats), settings.repeats, "pairs of batches", "pairs"):
        tasks = environment.sample_tasks(chosen.tasks, (settings.seed, repeat))
        sampler.set_tasks(tasks)
        pair = []
        for batch in range(2):
            agents[0].reset_adaptation()
            pair.append(sampler.draw(settings.seed, repeat, batch))
        shares.append([share(*(gradients(agent, drawn) for drawn in pair)) for agent in agents])
    return {
        "settings": dataclasses.asdict(chosen),
        "estimators": [
            {
                "baseline": baseline,
                "gae_lambda": gae_lambda,
                "share": found["mean"],
                "ci95": found["ci95"],
            }
            for (baseline, gae_lambda), found in zip(
                estimators, map(summary, np.transpose(shares)), strict=True
            )
        ],
    }


def gradients(agent: MetaPolicyGradientAgent, experience: Any) -> np.ndarray:
    """Returns the policy gradient of every task, ``[tasks, weights]``."""
    agent.reset_adaptation()
    before = [tf.identity(weight) for weight in agent.collect_policy.fast_weights]
    agent.adapt(experience)
    steps = zip(before, agent.collect_policy.fast_weights, strict=True)
    return np.concatenate([np.reshape(old - new, [agent.tasks, -1]) for old, new in steps], axis=1)


def share(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the share of signal in two estimates of the gradients of the same tasks.

    Args:
        first: ``[tasks, weights]``.
        second: The same of other rollouts.

    Example:
        >>> signal, noise = np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([[0.0, 1.0], [0.0, -1.0]])
        >>> share(signal + noise, signal - noise), share(signal + noise, signal)
        (0.0, 0.7071067811865475)
    """
    first, second = (of_one - of_one.mean(0) for of_one in (first, second))
    return float(np.sum(first * second) / (np.linalg.norm(first) * np.linalg.norm(second)))


def table(records: dict[str, dict]) -> str:
    """Returns the tables: one for each task."""
    parts = []
    for task, record in records.items():
        chosen, rows = record["settings"], {}
        for one in record["estimators"]:
            cell = f"{100 * one['share']:.1f} ± {100 * one['ci95']:.1f}"
            rows.setdefault(one["baseline"], {})[one["gae_lambda"]] = cell
        lambdas = list(dict.fromkeys(one["gae_lambda"] for one in record["estimators"]))
        about = (
            f"{task}: {chosen['tasks']} tasks, {chosen['rollouts']} rollouts of at most "
            f"{chosen['horizon']} steps; share of signal in % by baseline and gae_lambda"
        )
        lines = [[baseline, *cells.values()] for baseline, cells in rows.items()]
        text = tabulate.tabulate(lines, ["", *lambdas], stralign="right", disable_numparse=True)
        parts.append(f"{about}\n{text}")
    return "\n\n".join(parts)


if __name__ == "__main__":
    run_command("benchmarks.gradient_signal", __doc__, run, Settings, Files)
