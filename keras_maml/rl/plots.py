"""Figures of meta-reinforcement learning, as `matplotlib.figure.Figure`."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure


def learning_curves(
    histories: Mapping[str, Sequence[Mapping[str, float]]], title: str | None = None
) -> Figure:
    """Plots the returns of training over meta-iterations.

    Args:
        histories: By name, a mapping per epoch with ``iterations``, ``return_before`` and
            ``return``, the returns before and after adaptation.
        title: The title.
    """
    figure = Figure((6, 4))
    axes = figure.subplots()
    for color, (name, history) in enumerate(histories.items()):
        iterations = [row["iterations"] for row in history]
        axes.plot(iterations, [row["return"] for row in history], f"C{color}-", label=name)
        before = [row["return_before"] for row in history]
        if before != [row["return"] for row in history]:
            label = f"{name}, before adaptation"
            axes.plot(iterations, before, f"C{color}:", label=label)
    axes.set(xlabel="meta-iterations", ylabel="return on training tasks", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def returns_over_steps(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    published: Mapping[str, Sequence[float]],
    title: str | None = None,
) -> Figure:
    """Plots returns over gradient steps (paper, figures 4 and 5).

    Args:
        curves: By name, the mean ``[steps + 1]`` and the half-width of its 95 % interval; a single
            entry (an oracle does not adapt) is drawn as a line across.
        published: By the same names, the authors' means; drawn dashed in the same colour.
        title: The title.
    """
    figure = Figure((6, 4))
    axes = figure.subplots()
    last = max(len(mean) for mean, _ in curves.values()) - 1
    for index, (name, (mean, half_width)) in enumerate(curves.items()):
        color = f"C{index}"
        if len(mean) == 1:
            axes.axhline(mean[0], color=color, label=name)
        else:
            steps = np.arange(len(mean))
            axes.plot(steps, mean, "o-", color=color, label=name)
            axes.fill_between(
                steps, mean - half_width, mean + half_width, color=color, alpha=0.2, linewidth=0
            )
        theirs = published.get(name)
        if theirs is not None:
            style = {"color": color, "linestyle": "--", "linewidth": 1}
            if len(theirs) == 1:
                axes.axhline(theirs[0], **style)
            else:
                axes.plot(np.arange(len(theirs))[: last + 1], theirs[: last + 1], **style)
    if published:
        axes.plot([], [], color="0.4", linestyle="--", linewidth=1, label="the authors' numbers")
    axes.set(xlabel="gradient steps", ylabel="return", title=title, xticks=range(last + 1))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def navigation_paths(
    paths: Mapping[str, np.ndarray], goal: np.ndarray, title: str | None = None
) -> Figure:
    """Draws trajectories of 2-D navigation before and after adaptation (paper, figure 4).

    Args:
        paths: By name, positions ``[rollouts, steps, 2]``; NaN where an episode is over.
        goal: ``[2]``.
        title: The title.
    """
    figure = Figure((4.5, 4.5))
    axes = figure.subplots()
    for color, (name, rollouts) in enumerate(paths.items()):
        for index, path in enumerate(rollouts):
            label = name if index == 0 else None
            axes.plot(*path.T, color=f"C{color}", alpha=0.7, linewidth=1, label=label)
    axes.plot(0, 0, "k.", label="start")
    axes.plot(*goal, "*", color="tab:red", markersize=14, label="goal")
    axes.set(title=title, aspect="equal", xlabel="metres", ylabel="metres")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
