"""Figures of the paper and of a run, as `matplotlib.figure.Figure` (no display needed)."""

import itertools
import os
from collections.abc import Mapping, Sequence

import keras
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from keras_maml import validation
from keras_maml.episodes.arrays import class_labels
from keras_maml.execution.functional import examples
from keras_maml.files import whole
from keras_maml.learners.maml import MAML
from keras_maml.words import counted


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure as PNG, whole or not at all."""
    with whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight")


def to_array(figure: Figure) -> np.ndarray:
    """Renders a figure to pixels, uint8 ``[height, width, 3]``."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def learning_curve(
    history: Sequence[Mapping[str, float]],
    metric: str,
    best: float | None = None,
    published: float | None = None,
) -> Figure:
    """Plots a metric over meta-iterations: training and validation, before and after adaptation.

    Args:
        history: A mapping per epoch with ``iterations``, the metric, and if there are any
            ``{metric}_before``, ``val_{metric}`` and ``val_{metric}_before``.
        metric: The name of the metric.
        best: The meta-iterations of the checkpoint that was chosen, to mark it.
        published: A published value of the metric, to compare with.
    """
    figure = Figure((6, 4.5), layout="constrained")
    axes = figure.subplots()
    iterations = [row["iterations"] for row in history]
    for name, label, style in (
        (metric, "training tasks", "C0.-"),
        (f"val_{metric}", "validation tasks", "C1.-"),
        (f"{metric}_before", "training tasks, before adaptation", "C0.:"),
        (f"val_{metric}_before", "validation tasks, before adaptation", "C1.:"),
    ):
        if any(name in row for row in history):
            values = [row.get(name, np.nan) for row in history]
            axes.plot(iterations, values, style, ms=4, label=label)  # one point alone is seen, too
    if best is not None:
        axes.axvline(best, color="0.5", ls="--", lw=1, label="best on validation tasks")
    if published is not None:
        axes.axhline(published, color="k", ls="--", lw=1, label="published, test tasks")
    axes.set(xlabel="meta-iterations", ylabel=metric)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def episode(learner: MAML, episodes: tuple, task: int = 0, most: int | None = None) -> Figure:
    """Shows one image task: support images, query images, and predictions before and after.

    A column is a class: its support images, and below them its query images in frames, green
    where the prediction after adaptation is right, red where it is wrong.

    Args:
        learner: A compiled classifier of images, with an output for each class, or with one output
            and a binary cross-entropy.
        episodes: One meta-batch ``((x_support, y_support), (x_query, y_query))``: images
            ``[tasks, examples, height, width]`` or with a last axis of 1, 3 or 4 channels, and
            their classes, integers ``[tasks, examples]`` or ``[tasks, examples, 1]`` or one-hot
            ``[tasks, examples, classes]``.
        task: Which of its tasks.
        most: How many support images and query images of a class to show; by default all.

    Raises:
        ValueError: The examples are no such images, or have no such classes; or the learner is no
            such classifier.
    """
    validation.check_optional_count("most", most)
    (x_support, *support), (x_query, y_query, _) = (_of_task(half, task) for half in episodes)
    y_support, y_query = labels = class_labels(support[0]), class_labels(y_query)

    def predicted(steps: int) -> np.ndarray:
        targets, weight = support
        how = {"batch_normalization": learner.batch_normalization, "sample_weight": weight}
        outputs = learner.adapt(x_support, targets, steps, **how)(x_query)
        return _chosen(np.asarray(outputs), np.concatenate(labels), learner.loss)

    steps = learner.evaluation_steps
    before, after = predicted(0), predicted(steps)
    right = after == y_query
    columns = {label: i for i, label in enumerate(np.union1d(y_support, y_query))}
    supports, queries = (_cells(labels, columns, most) for labels in (y_support, y_query))
    shots = 1 + max(row for row, _ in supports.values())
    rows = shots + 1 + max(row for row, _ in queries.values())
    size = 1.1 if len(columns) <= 10 else 0.75
    figure = Figure((size * len(columns) + 0.4, (size + 0.4) * rows + 0.4))
    grid = figure.add_gridspec(rows, len(columns))
    for i, (row, column) in supports.items():
        title = f"support: {int(y_support[i])}"
        _show(figure.add_subplot(grid[row, column]), x_support[i], title)
    for i, (row, column) in queries.items():
        axis = figure.add_subplot(grid[shots + row, column])
        title = f"query: {int(y_query[i])}\nbefore: {before[i]}\nafter: {after[i]}"
        _show(axis, x_query[i], title, color="C2" if right[i] else "C3", width=2)
    figure.suptitle(
        f"{counted(steps, 'inner step')}, {len(y_query)} query images: "
        f"{np.mean(before == y_query):.0%} right before, {np.mean(right):.0%} after",
        fontsize=9,
    )
    figure.tight_layout()
    return figure


def _of_task(half, task):
    """Returns images, targets and sample weights of a task, or of the last None."""
    x, y, weight = examples(half)
    if any(part is None or keras.tree.is_nested(part) for part in (x, y)):
        raise ValueError(
            "An episode to show has one array of images and one of classes, for support and query."
        )
    shape = np.shape(x)
    if not (len(shape) == 4 or (len(shape) == 5 and shape[-1] in (1, 3, 4))):
        raise ValueError(
            "An episode to show has images [tasks, examples, height, width], or with 1, 3 or 4 "
            f"channels as the last axis, got shape {list(shape)}. Reshape the examples."
        )
    return tuple(None if array is None else np.asarray(array)[task] for array in (x, y, weight))


def _chosen(outputs, labels, loss):
    """Returns the classes that outputs tell, ``[examples]``, if labels are such classes."""
    threshold = _threshold(loss) if outputs.size == len(outputs) else None
    if threshold is not None:
        classes, chosen = 2, (outputs.ravel() > threshold).astype(int)
    else:
        classes, chosen = outputs.shape[-1] if outputs.ndim == 2 else 1, outputs.argmax(-1)
    if classes < 2 or not np.isin(labels, range(classes)).all():
        raise ValueError(
            "An episode to show is of a classifier: an output for each class from 0, or one output "
            f"and a binary cross-entropy with labels 0 and 1. Got outputs {list(outputs.shape)}, "
            f"labels {np.unique(labels)[:10].tolist()} and the loss {loss!r}."
        )
    return chosen


def _threshold(loss):
    """Returns above which output a binary classifier tells class 1; None for other losses."""
    (loss,) = map(keras.losses.get, keras.tree.flatten(loss))
    if isinstance(loss, (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)):
        return 0.0 if loss.from_logits else 0.5
    functions = keras.losses.binary_crossentropy, keras.losses.binary_focal_crossentropy
    return 0.5 if loss in functions else None


def _cells(labels, columns, most):
    """Maps the number of an example to (its place among those of its class, its column)."""
    cells = {i: (np.sum(labels[:i] == label), columns[label]) for i, label in enumerate(labels)}
    return {i: cell for i, cell in cells.items() if most is None or cell[0] < most}


def _show(axis, image, title, color="black", width=0.5):
    image = image[..., 0] if image.shape[2:] == (1,) else image
    axis.imshow(image, cmap="gray_r" if image.ndim == 2 else None)
    axis.set_title(title, fontsize=7, color=color)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(color=color, linewidth=width)


def sinusoid_adaptation(
    learner: MAML,
    amplitude: float,
    phase: float,
    x_support: np.ndarray,
    steps: Sequence[int] = (0, 1, 10),
    title: str | None = None,
    input_range: tuple[float, float] = (-5.0, 5.0),
) -> Figure:
    """Plots how a regressor adapts to one sine curve (paper, figure 2).

    Args:
        learner: A compiled regressor with one input.
        amplitude: The amplitude of the curve.
        phase: Its phase in radians.
        x_support: Where its support points are, ``[shots, 1]``.
        steps: After how many inner steps to show the fit.
        title: The title.
        input_range: The range of inputs to show.
    """
    figure = Figure((6, 4))
    axes = figure.subplots()
    x = np.linspace(*input_range, 200, dtype="float32")[:, None]
    curve = lambda x: amplitude * np.sin(x - phase)  # noqa: E731
    axes.plot(x, curve(x), "C3-", label="ground truth")
    axes.plot(x_support, curve(x_support), "C4^", label=f"{len(x_support)} support points")
    y_support = curve(x_support).astype("float32")
    others = (f"C{color}{line}" for line in ("-", "--", ":") for color in (1, 5, 6, 8, 9))
    styles = itertools.cycle(("C2:", "C0--", "C0-", *others))
    for step, style in zip(steps, styles, strict=False):
        adapted = learner.adapt(x_support, y_support, steps=step)
        label = f"after {step} step{'s' if step > 1 else ''}" if step else "before adaptation"
        axes.plot(x, adapted.predict(x, verbose=0), style, label=label)
    axes.set(xlabel="x", ylabel="y", title=title)
    axes.legend(fontsize=8)
    return figure


def loss_over_steps(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str | None = None
) -> Figure:
    """Plots the loss over inner steps, a curve per method (paper, figure 3).

    Args:
        curves: By name, the mean ``[steps + 1]`` and the half-width of its 95 % interval.
        title: The title.
    """
    return _over_steps(curves, ylabel="mean squared error", title=title, ylim=(0, None))


def accuracy_over_steps(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    published: tuple[float, float, int, str] | None = None,
    title: str | None = None,
) -> Figure:
    """Plots the accuracy over inner steps, a curve per way of testing, in percent.

    Args:
        curves: By name, the mean ``[steps + 1]`` and the half-width of its 95 % interval, both
            in 0 .. 1.
        published: What is published, drawn as a line with its interval: accuracy, half-width, the
            inner steps after which it holds, and where.
        title: The title.
    """
    percent = {
        name: tuple(100 * np.asarray(values) for values in curve) for name, curve in curves.items()
    }
    figure = _over_steps(percent, ylabel="accuracy (%)", title=title, ylim=(0, 102))
    axes = figure.axes[0]
    if published is not None:
        accuracy, half_width, step = 100 * published[0], 100 * published[1], published[2]
        axes.axhspan(accuracy - half_width, accuracy + half_width, color="k", alpha=0.15, lw=0)
        axes.axhline(accuracy, color="k", ls="--", lw=1)
        label = f"{published[3]}:\n{accuracy:.1f} ± {half_width:.1f} after step {step}"
        axes.plot([step], [accuracy], "k*", ms=10, label=label)
    axes.legend(fontsize=8, loc="lower right")
    return figure


def _over_steps(curves, **settings):
    figure = Figure((6, 4))
    axes = figure.subplots()
    for name, (mean, half_width) in curves.items():
        axes.errorbar(range(len(mean)), mean, yerr=half_width, marker="o", ms=3, label=name)
    axes.set(xlabel="inner steps", **settings)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
