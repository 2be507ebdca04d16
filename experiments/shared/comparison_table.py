"""What the table of a comparison says of an algorithm: accuracy over tasks and seeds, and time."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.shared.training_clock import step_seconds, training_seconds
from keras_maml import evaluation


def summary(accuracies: Sequence[Sequence[float]]) -> dict[str, float | None]:
    """Summarises the accuracy on the test tasks over tasks and seeds.

    Args:
        accuracies: That of every task, for every seed: ``[seeds, tasks]``.

    Returns:
        ``accuracy``, the mean; ``ci95``, the half-width of its 95 % interval over tasks, each with
        its mean over seeds; ``seed_deviation``, the standard deviation over seeds of the mean over
        tasks, None of one seed.
    """
    values = np.array(accuracies)
    over_seeds = evaluation.Evaluation({"": {"accuracy": values.mean(axis=0)[:, None]}})
    (row,) = over_seeds.rows()
    deviation = float(np.std(values.mean(axis=1), ddof=1)) if len(values) > 1 else None
    return {"accuracy": row["mean"], "ci95": row["ci95"], "seed_deviation": deviation}


def times(histories: Sequence[Sequence[Mapping[str, float]]], target: float) -> dict[str, Any]:
    """Summarises how long training takes.

    Args:
        histories: Those of the trainings of an algorithm.
        target: An accuracy on validation tasks.

    Returns:
        ``iterations`` and ``train_seconds``, means over seeds; ``step_seconds``, the median over
        epochs without the first of a process; ``target_seconds``, the median over seeds of the
        seconds of training at the first epoch that reached the target, None where it is never.
    """
    reached = [
        min(
            (s for s, r in zip(training_seconds(h), h, strict=True) if r["val_accuracy"] >= target),
            default=np.inf,
        )
        for h in histories
    ]
    soonest = float(np.median(reached))
    return {
        "iterations": float(np.mean([h[-1]["iterations"] if h else 0.0 for h in histories])),
        "train_seconds": float(np.mean([training_seconds(h)[-1] if h else 0.0 for h in histories])),
        "step_seconds": step_seconds(histories),
        "target_seconds": soonest if np.isfinite(soonest) else None,
    }
