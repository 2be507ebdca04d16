"""Evaluation of a learner step by step, over many tasks, with confidence intervals."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import tabulate
import tensorflow as tf

from keras_maml import validation
from keras_maml.algorithm.objective import BATCH_NORMALIZATIONS
from keras_maml.execution.forms import batch_normalizations as normalizing_layers
from keras_maml.learners.checks import check_episode_spec
from keras_maml.learners.maml import MAML
from keras_maml.progress import progress

Value = float | int | str | None
STATISTICS = ("mean", "ci95", "median", "not_finite")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Loss and metrics of many tasks, before adaptation and after every inner step.

    Attributes:
        values: By batch normalisation and metric, an array ``[tasks, steps + 1]`` of float64.
            A model without batch normalisation has the one key its learner is set to.
    """

    values: dict[str, dict[str, np.ndarray]]

    @property
    def tasks(self) -> int:
        """The number of tasks."""
        return len(next(iter(next(iter(self.values.values())).values())))

    def curve(self, metric: str, statistic: str = "mean", batch_normalization: str | None = None):
        """Returns one statistic of one metric for every step.

        Args:
            metric: ``"loss"`` or the name of a metric.
            statistic: ``"mean"``, ``"ci95"``, ``"median"`` or ``"not_finite"``.
            batch_normalization: By default the first.

        Returns:
            An array ``[steps + 1]``, NaN where a step has too few finite values for it.

        Raises:
            ValueError: There is no such statistic, metric or batch normalisation here.
        """
        mode = batch_normalization or next(iter(self.values))
        validation.check_choice("batch_normalization", mode, self.values)
        validation.check_choice("metric", metric, self.values[mode])
        validation.check_choice("statistic", statistic, STATISTICS)
        values = [summary(column)[statistic] for column in self.values[mode][metric].T]
        return np.array(values, "float64")  # None becomes NaN

    def rows(self) -> list[dict[str, Value]]:
        """Returns a row per batch normalisation, metric and step.

        Returns:
            Dictionaries with ``batch_normalization``, ``metric``, ``step``, ``tasks``, and over
            the tasks whose value is finite: ``mean``, ``ci95`` (the half-width of the 95 %
            interval of the mean, 1.96 standard errors) and ``median``; and ``not_finite``, the
            number of the other tasks. Statistics of no task at all are None.
        """
        return [
            {"batch_normalization": mode, "metric": metric, "step": step, "tasks": len(column)}
            | summary(column)
            for mode, metrics in self.values.items()
            for metric, table in metrics.items()
            for step, column in enumerate(table.T)
        ]

    def to_dict(self) -> dict[str, list[Value]]:
        """Returns the rows by column: what `pandas.DataFrame` takes."""
        rows = self.rows()
        return {name: [row[name] for row in rows] for name in rows[0]}

    def to_json(self) -> str:
        """Returns the rows as JSON."""
        return json.dumps(self.rows(), indent=1)

    def to_text(self) -> str:
        """Returns a table for the terminal: a line per step, a column per metric."""
        lines = []
        for mode, metrics in self.values.items():
            table: dict[str, list[Any]] = {"step": list(range(self._steps + 1))}
            for metric, values in metrics.items():
                summaries = [summary(column) for column in values.T]
                table[metric] = [_interval(s["mean"], s["ci95"]) for s in summaries]
                table["median"] = [_number(s["median"]) for s in summaries]
                if metric == "loss":
                    table["loss median"] = table.pop("median")
                else:
                    table.pop("median")
            first = next(iter(metrics.values()))
            table["not finite"] = [summary(column)["not_finite"] for column in first.T]
            title = f"{self.tasks} tasks"
            if len(self.values) > 1:
                title += f", batch normalisation: {mode}"
            lines += [title, tabulate.tabulate(table, headers="keys", stralign="right"), ""]
        return "\n".join(lines).rstrip()

    @property
    def _steps(self) -> int:
        return next(iter(next(iter(self.values.values())).values())).shape[1] - 1


def evaluate(
    learner: MAML,
    episodes: tf.data.Dataset,
    *,
    tasks: int = 1000,
    steps: int | None = None,
    batch_normalizations: Sequence[str] | None = None,
) -> Evaluation:
    """Adapts to many tasks and measures every query set before and after each inner step.

    Args:
        learner: A compiled learner.
        episodes: Episodes, at least ``tasks`` of them.
        tasks: How many tasks to evaluate.
        steps: The number of inner steps; by default the learner's `evaluation_steps`.
        batch_normalizations: The ways of batch normalisation to report; by default both if the
            model has trainable batch normalisation, the learner's own first.

    Returns:
        The loss and the compiled metrics of every task and step.

    Raises:
        ValueError: A setting is out of range, a metric is not a number, or there are fewer
            episodes than ``tasks``.

    Example:
        >>> import keras_maml
        >>> learner = keras_maml.MAML(keras_maml.networks.sinusoid_regressor(seed=0))
        >>> learner.compile(loss="mean_squared_error")
        >>> episodes = keras_maml.episodes.sinusoid(meta_batch_size=10)
        >>> result = evaluate(learner, episodes, tasks=20, steps=2)
        >>> [row["step"] for row in result.rows()], result.tasks
        ([0, 1, 2], 20)
    """
    steps = learner.evaluation_steps if steps is None else steps
    validation.check_count("tasks", tasks, minimum=1)
    validation.check_count("steps", steps)
    if batch_normalizations is None:
        batch_normalizations = [learner.batch_normalization]
        if normalizing_layers(learner.model):
            batch_normalizations = sorted(
                BATCH_NORMALIZATIONS, key=lambda mode: mode != learner.batch_normalization
            )
    if isinstance(batch_normalizations, str) or not len(batch_normalizations):
        raise ValueError(
            f"batch_normalizations must be a list of {BATCH_NORMALIZATIONS} or of one of them, got "
            f"{batch_normalizations!r}."
        )
    validation.check_several(
        "batch_normalizations", batch_normalizations, validation.one_of(BATCH_NORMALIZATIONS)
    )
    check_enough(episodes, tasks)
    parts: dict[str, dict[str, list]] = {mode: {} for mode in batch_normalizations}
    done = 0
    with progress(None, tasks, "Adapting", "tasks") as bar:
        for support, query in episodes:
            for mode in batch_normalizations:
                results = learner.trajectories(
                    support, query, steps=steps, batch_normalization=mode
                )
                for name, values in results.items():
                    if len(values.shape) != 2:
                        raise ValueError(
                            f"Metrics must be one number per task and step, got {name} of shape "
                            f"{tuple(values.shape[2:])} each. Compile the learner with metrics "
                            "that are averaged, e.g. keras.metrics.F1Score(average='macro')."
                        )
                    parts[mode].setdefault(name, []).append(values.numpy())
            bar.update(min(len(values), tasks - done))
            done += len(values)
            if done >= tasks:
                break
    _check_enough(done, tasks)
    return Evaluation(
        {
            mode: {
                name: np.concatenate(values)[:tasks].astype("float64")
                for name, values in metrics.items()
            }
            for mode, metrics in parts.items()
        }
    )


def check_enough(episodes: tf.data.Dataset, tasks: int) -> None:
    """Checks before any work that there are enough episodes, as far as a dataset tells.

    Args:
        episodes: Meta-batches, of a size that is known or not.
        tasks: How many tasks are asked for.

    Raises:
        ValueError: There are fewer, or what is in the dataset is no meta-batch.
    """
    if isinstance(episodes, tf.data.Dataset):
        check_episode_spec(episodes.element_spec)
        meta_batches = int(episodes.cardinality())
        size = tf.nest.flatten(episodes.element_spec)[0].shape[0]
        if meta_batches >= 0 and size is not None:
            _check_enough(meta_batches * size, tasks)


def _check_enough(episodes: int, tasks: int) -> None:
    if episodes < tasks:
        raise ValueError(
            f"tasks={tasks} were asked for, but the dataset ends after {episodes}. Give it more "
            "episodes, or ask for fewer tasks."
        )


def summary(values: np.ndarray) -> dict[str, Value]:
    """Returns mean, half of its 95 % interval (None for one value) and median of finite values.

    Args:
        values: ``[tasks]``; ``not_finite`` says how many were left out.
    """
    finite = values[np.isfinite(values)]
    missing = len(values) - len(finite)
    if not len(finite):
        return {"mean": None, "ci95": None, "median": None, "not_finite": missing}
    error = float(np.std(finite, ddof=1) / np.sqrt(len(finite))) if len(finite) > 1 else None
    return {
        "mean": float(np.mean(finite)),
        "ci95": None if error is None else 1.96 * error,
        "median": float(np.median(finite)),
        "not_finite": missing,
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _interval(mean: float | None, half_width: float | None) -> str:
    return f"{_number(mean)} ± {_number(half_width)}"
