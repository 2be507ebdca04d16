"""Trains an agent by meta-iterations, with checkpoints from which it goes on bit for bit."""

import logging
import math
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from experiments.shared.interruption import INTERRUPTION
from experiments.shared.runs import check_epochs
from keras_maml.files import read_csv, whole, write_csv
from keras_maml.progress import progress
from keras_maml.rl import MetaLossInfo, MetaPolicyGradientAgent, Sampler, meta_iteration
from keras_maml.rl.training import measures, summarize

MEASURES = ("return_before", "return", *MetaLossInfo._fields, "episode_length")
COMPARED_TASKS = 200  # at least, of what an epoch is judged by
MAX_SKIPS = 10  # iterations in a row without a finite result

logger = logging.getLogger("keras_maml")


def train_agent(
    folder: pathlib.Path,
    agent: MetaPolicyGradientAgent,
    sampler: Sampler,
    *,
    tasks: int,
    iterations: int,
    epoch_iterations: int,
    seed: int,
    tensorboard: pathlib.Path,
    initial: pathlib.Path | None = None,
) -> list[dict[str, float]]:
    """Trains, or continues, or loads what was trained.

    Tasks, resets and actions are functions of the seed and the number of the iteration.

    Args:
        folder: Where ``checkpoints/`` and ``history.csv`` go.
        agent: The agent; ends with the weights of the epoch with the best return.
        sampler: Draws with the agent's collect policy.
        tasks: How many tasks to draw for an iteration, for all workers of the agent.
        iterations: Meta-iterations in all.
        epoch_iterations: Meta-iterations between checkpoints.
        seed: An integer from 0.
        tensorboard: Where event files go.
        initial: A folder like ``folder``, of another run, whose best weights training begins with.

    Returns:
        The history, a row per meta-iteration.

    Raises:
        ValueError: ``iterations`` is not a multiple of ``epoch_iterations``.
        FloatingPointError: Ten meta-iterations in a row changed nothing: their result was not
            finite, or the line search found no better policy. Single ones are logged, and have
            ``accepted`` 0 or NaN in the history.
    """
    check_epochs(iterations, epoch_iterations)
    checkpoint = Checkpoint(folder, agent, tasks)
    checkpoint.restore()
    history, workers = checkpoint.history, agent.workers
    done, first = len(history), workers is None or workers.index == 0
    worker, count = agent.collect_policy.shard
    if workers is not None:
        done = int(workers.of_first(done))
    if initial is not None and not done:
        begin_with(agent, initial)
    if first and 0 < len(history) < iterations:
        print(f"{folder.name}: continuing after {len(history)} of {iterations} iterations.")
    between = [f"return_{step}" for step in range(1, agent.inner_steps)]  # inner steps
    writer = tf.summary.create_file_writer(str(tensorboard))
    clock, skips = time.monotonic(), 0
    left = range(done, iterations)
    bar = progress(left, iterations, folder.name, "iterations", initial=done)
    for iteration in bar if first else left:
        row = {"iterations": float(iteration + 1)}
        row |= dict.fromkeys((*MEASURES, *between), np.nan)
        try:
            chosen = sampler.environment.sample_tasks(tasks, (seed, iteration))
            share = np.split(chosen, count)[worker]
            info, returns = meta_iteration(agent, sampler, share, seed, iteration)
            row |= measures(info, returns, sampler, workers)
            if not info.extra.accepted:
                raise FloatingPointError(
                    "the outer step found no better policy, or its result was not finite."
                )
            skips = 0
        except FloatingPointError as error:
            skips += 1
            logger.warning("Meta-iteration %d changes nothing: %s", iteration + 1, error)
            if skips == MAX_SKIPS:
                raise FloatingPointError(
                    f"{MAX_SKIPS} meta-iterations in a row changed nothing, the last because: "
                    f"{error} Lower the inner learning rate or the limit of the outer step."
                ) from error
        now = time.monotonic()
        row["seconds"] = (history[-1]["seconds"] if history else 0.0) + now - clock
        clock = now
        history.append(row)
        INTERRUPTION.unsaved()
        if INTERRUPTION.requested() and (iteration + 1) % epoch_iterations:
            checkpoint.save()
            INTERRUPTION.saved()
        if (iteration + 1) % epoch_iterations == 0:
            # Only what a continued run will not do again, lest TensorBoard shows it twice.
            checkpoint.save(epoch_iterations)
            summarize(writer, history[-epoch_iterations:])
            if first:
                bar.write(
                    f"{folder.name} {iteration + 1}/{iterations}: return "
                    f"{row['return_before']:.2f} before adaptation, {row['return']:.2f} after; "
                    f"{row['seconds']:.0f} s"
                )
                sys.stdout.flush()
            INTERRUPTION.saved()
    writer.close()
    if first:
        checkpoint.restore_best()
    agent.initialize()  # its policies take these weights
    return history


def begin_with(agent: MetaPolicyGradientAgent, folder: pathlib.Path) -> None:
    """Gives an agent the best weights of another run.

    Args:
        agent: The agent.
        folder: That of the method in the folder of the run.

    Raises:
        FileNotFoundError: There is no checkpoint.
        ValueError: Its policy has weights of other shapes.
    """
    path = best_path(folder)
    if not path.exists():
        raise FileNotFoundError(
            f"initial_policy must be the folder of a run that has trained this method, and {path} "
            "is not there."
        )
    with np.load(path, allow_pickle=False) as file:
        values = [file[f"arr_{index}"] for index in range(len(file.files) - 1)]
    theirs = [value.shape for value in values]
    ours = [tuple(variable.shape) for variable in agent.learned_variables]
    if theirs != ours:
        raise ValueError(
            f"initial_policy must have a policy like that of the run, with weights of shapes "
            f"{ours}; {folder} has {theirs}."
        )
    for variable, value in zip(agent.learned_variables, values, strict=True):
        variable.assign(value)


def has_begun(folder: pathlib.Path) -> bool:
    """Returns whether there is a state from which a training goes on."""
    return last_path(folder).exists()


def last_path(folder: pathlib.Path) -> pathlib.Path:
    """Returns where the state after the last epoch is."""
    return folder / "checkpoints" / "last.npz"


def best_path(folder: pathlib.Path) -> pathlib.Path:
    """Returns where the weights of the best epoch are."""
    return folder / "checkpoints" / "best.npz"


class Checkpoint:
    """The state of an agent after the last epoch, and the weights of the best one.

    Args:
        folder: Where ``checkpoints/`` and ``history.csv`` go.
        agent: The agent.
        tasks: Of a meta-iteration.

    Attributes:
        history: A row per meta-iteration.
    """

    def __init__(self, folder: pathlib.Path, agent: MetaPolicyGradientAgent, tasks: int) -> None:
        self.history: list[dict[str, float]] = []
        self._history_path = folder / "history.csv"
        self._last = last_path(folder)
        self._best = best_path(folder)
        self._agent, self._tasks = agent, tasks

    def save(self, epoch_iterations: int | None = None) -> None:
        """Writes the history, then the weights if they are the best, then the state.

        Args:
            epoch_iterations: The length of the epoch that ends; None within one, when the weights
                are not compared with the best.
        """
        self._last.parent.mkdir(parents=True, exist_ok=True)
        write_csv(self._history_path, self.history)
        if epoch_iterations is not None:
            epochs = epoch_returns(self.history, epoch_iterations, self._tasks)
            if epochs[-1] >= epochs.max():
                self._write(self._best, self._agent.learned_variables)
        self._write(self._last, self._agent.saved_variables)

    def restore(self) -> None:
        """Loads the last state, if there is one."""
        if self._last.exists():
            done = _read(self._last, self._agent.saved_variables)
            self.history.extend(read_csv(self._history_path)[:done])

    def restore_best(self) -> None:
        """Loads the weights of the best epoch, if there is one."""
        if self._best.exists():
            _read(self._best, self._agent.learned_variables)

    def _write(self, path: pathlib.Path, variables: Sequence[Any]) -> None:
        values = [np.asarray(variable) for variable in variables]
        with whole(path) as temporary:
            np.savez(temporary, *values, iterations=len(self.history))


def _read(path: pathlib.Path, variables: Sequence[Any]) -> int:
    """Loads variables, and returns after how many meta-iterations they were saved."""
    with np.load(path, allow_pickle=False) as file:
        for index, variable in enumerate(variables):
            variable.assign(file[f"arr_{index}"])
        return int(file["iterations"])


def epoch_returns(
    history: Sequence[Mapping[str, float]], epoch_iterations: int, tasks: int
) -> np.ndarray:
    """Returns the mean return after adaptation at the end of every epoch.

    It is over the epoch, or over as many meta-iterations as have `COMPARED_TASKS` tasks if these
    are more: of few tasks the best epoch would be the one with the easiest. Skipped ones are left
    out.

    Args:
        history: A row per meta-iteration.
        epoch_iterations: Meta-iterations of an epoch.
        tasks: Of a meta-iteration.
    """
    count = max(epoch_iterations, math.ceil(COMPARED_TASKS / tasks))
    ends = range(epoch_iterations, len(history) + 1, epoch_iterations)
    recent = [[row["return"] for row in history[max(0, end - count) : end]] for end in ends]
    finite = [[value for value in values if np.isfinite(value)] for values in recent]
    return np.array([np.mean(values) if values else -np.inf for values in finite])
