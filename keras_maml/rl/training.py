"""Meta-iterations in a row, with a progress bar, TensorBoard, and a folder to go on from."""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from tf_agents.agents.tf_agent import LossInfo

from keras_maml import validation
from keras_maml.execution.workers import Workers
from keras_maml.files import lock, read_csv, write_csv, write_json
from keras_maml.rl import run_settings
from keras_maml.rl.meta_policy_gradient import MetaPolicyGradientAgent
from keras_maml.rl.sampling import Sampler, meta_iteration

# What TensorBoard calls things: TF-Agents' names where it has one.
TAGS = {
    "return": "Metrics/AverageReturn",
    "return_before": "Metrics/AverageReturnBeforeAdaptation",
    "episode_length": "Metrics/AverageEpisodeLength",
    "loss_before": "Losses/policy_gradient_loss",
    "kl": "mean_kl_divergence",
    "entropy": "policy_entropy_mean",
}


def train(
    agent: MetaPolicyGradientAgent,
    sampler: Sampler,
    *,
    iterations: int,
    tasks: int | None = None,
    seed: int = 0,
    folder: str | os.PathLike | None = None,
    save_every: int = 10,
    verbose: bool = True,
) -> list[dict[str, float]]:
    """Trains an agent, or goes on with it.

    Tasks, resets and actions are functions of the seed and the number of the iteration, which the
    agent counts. So a new process that is given the same arguments and the folder of one that was
    stopped ends with the same weights, bit for bit, unless the environments themselves remember
    something from episode to episode, such as the running means of gymnasium's
    `NormalizeObservation`.

    Args:
        agent: The agent. Its weights are those of the folder afterwards, if there are some.
        sampler: Draws with the agent's collect policy; its environment draws tasks, too
            (``sample_tasks``).
        iterations: Meta-iterations in all, those of earlier processes included; without a folder
            so many more than the agent has had.
        tasks: How many tasks to draw for an iteration, for all workers of the agent; by default as
            many as they have.
        seed: An integer from 0.
        folder: Where ``settings.json``, ``history.csv``, ``agent.npz`` and TensorBoard's events go;
            of several workers the first one's. A run of other settings cannot move in, nor can two
            processes at once. None: nowhere.
        save_every: Meta-iterations between two times that the folder is written.
        verbose: Whether to show a progress bar, with the returns before and after adaptation.

    Returns:
        A row for each meta-iteration, see `measures`; where ``history.csv`` has been lost, from the
        one on that ``agent.npz`` goes on with.

    Raises:
        ValueError: An argument is out of range, or the folder is of a run with other settings, or
            workers have different ones.
        BlockingIOError: Another run is using the folder.
        WorkersError: Another worker has failed.
        FloatingPointError: See `meta_iteration`. What the folder holds can be gone on from.
    """
    for name, value in (("iterations", iterations), ("save_every", save_every)):
        validation.check_count(name, value, minimum=1)
    worker, workers = agent.collect_policy.shard
    path = None if folder is None else pathlib.Path(folder)
    size = {
        "seed": seed,
        "tasks": tasks or agent.tasks * workers,
        "environments": sampler.environment.batch_size * workers,
        "steps": sampler.steps,
    }
    settings = agent.settings | run_settings.described(size)
    history: list[dict[str, float]] = []
    goes_on, writer = False, None
    with contextlib.ExitStack() as stack:
        if agent.workers is not None:
            stack.enter_context(agent.workers.sharing_errors(counted_on=False))
        if path is not None and worker == 0:
            _check_left(path, int(agent.train_step_counter), iterations)
            path.mkdir(parents=True, exist_ok=True)
            stack.callback(lock(path))
            goes_on = (path / "agent.npz").exists()
            if goes_on and (path / "settings.json").exists():  # older runs have none
                run_settings.check_same(path / "settings.json", settings)
            if goes_on and (path / "history.csv").exists():
                history = read_csv(path / "history.csv")
            write_json(path / "settings.json", settings)
            writer = tf.summary.create_file_writer(str(path / "tensorboard"))
        if agent.workers is not None:
            agent.workers.all_ready()
            facts = settings | {"folder": path is not None, "iterations": iterations}
            agent.workers.check_equal(**{name: json.dumps(fact) for name, fact in facts.items()})
            goes_on = bool(agent.workers.of_first(goes_on))
        if goes_on:
            agent.restore(path / "agent.npz")
        else:
            agent.hand_out()
        done = int(agent.train_step_counter)
        history = [row for row in history if row["iterations"] <= done]
        if path is None:
            iterations += done
        names = ["return_before", "return"]
        bar = keras.utils.Progbar(
            iterations,
            verbose=int(verbose and worker == 0),
            stateful_metrics=names,
            unit_name="iteration",
        )
        saved, start = len(history), time.monotonic()
        before = history[-1]["seconds"] if history else 0.0
        for iteration in range(done, iterations):
            chosen = sampler.environment.sample_tasks(size["tasks"], (seed, iteration))
            chosen = np.split(chosen, workers)[worker]
            row = {"iterations": iteration + 1.0}
            info, returns = meta_iteration(agent, sampler, chosen, seed, iteration)
            row |= measures(info, returns, sampler, agent.workers)
            row["seconds"] = before + time.monotonic() - start
            history.append(row)
            bar.update(iteration + 1, [(name, row[name]) for name in names])
            last = iteration + 1 == iterations
            if writer is not None and (last or (iteration + 1) % save_every == 0):
                write_csv(path / "history.csv", history)
                agent.save(path / "agent.npz")
                # Only what a process that goes on will not do again, lest it is shown twice.
                summarize(writer, history[saved:])
                saved = len(history)
    agent.initialize()  # its policies take the weights
    return history


def _check_left(folder: pathlib.Path, done: int, iterations: int) -> None:
    """Raises ValueError if the agent, and not the folder, has had all meta-iterations."""
    if done >= iterations and not (folder / "agent.npz").exists():
        raise ValueError(
            f"The agent has had {done} meta-iterations, and the folder keeps none: iterations is "
            f"their number in all, so pass more than {done}, got {iterations}."
        )


def measures(
    info: LossInfo,
    returns: Sequence[np.ndarray],
    sampler: Sampler,
    workers: Workers | None = None,
) -> dict[str, float]:
    """Returns what there is to know of a meta-iteration, for tables and TensorBoard.

    Args:
        info: See `meta_iteration`.
        returns: See `meta_iteration`.
        sampler: Drew the trajectories.
        workers: Those of the agent, if there are several; all of them call this.

    Returns:
        The mean returns before adaptation, ``return_before``, after it, ``return``, and after each
        inner step but the last, ``return_1`` and so on; what `MetaLossInfo` holds; and
        ``episode_length``.
    """
    means = [float(values.mean()) for values in returns]
    row = {"return_before": means[0], "return": means[-1]}
    row |= {f"return_{step}": mean for step, mean in enumerate(means[1:-1], 1)}
    row |= {name: float(value) for name, value in info.extra._asdict().items()}
    length = tf.constant(float(sampler.episode_length.result()))
    return row | {"episode_length": float(length if workers is None else workers.mean(length))}


def summarize(writer: tf.summary.SummaryWriter, rows: Sequence[Mapping[str, float]]) -> None:
    """Writes rows of a history for TensorBoard, under TF-Agents' names where it has some.

    Args:
        writer: Of TensorFlow's summaries.
        rows: With ``iterations``, the number of the step, and any other numbers.
    """
    for row in rows:
        with writer.as_default(step=int(row["iterations"])):
            for name, value in row.items():
                tf.summary.scalar(TAGS.get(name, f"MetaLearning/{name}"), value)
    writer.flush()
