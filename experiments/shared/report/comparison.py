"""The page of a comparison of algorithms, made from the files in its folder alone."""

import json
import os
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tabulate
from matplotlib.figure import Figure

from experiments.shared.report import page
from experiments.shared.report.images import percent, provenance
from experiments.shared.training_clock import training_seconds
from keras_maml import plots
from keras_maml.files import read_csv, write_text
from keras_maml.words import counted

Row = Mapping[str, Any]
PICTURE = "accuracy-over-time.png"


def write(folder: str | os.PathLike) -> pathlib.Path:
    """Writes picture and ``report.html`` into the folder of a finished comparison.

    Args:
        folder: Holds ``results.json`` and, in a folder for each algorithm and seed, the history.

    Returns:
        The path of the page.
    """
    folder = pathlib.Path(folder)
    record = json.loads((folder / "results.json").read_text())
    histories = {
        row["title"]: [
            read_csv(path)
            for seed in record["settings"]["seeds"]
            if (path := folder / f"{row['algorithm']}-{seed}" / "history.csv").exists()
        ]
        for row in record["results"]
    }
    (folder / "figures").mkdir(exist_ok=True)
    figure = accuracy_over_time(histories, record["settings"]["target_accuracy"])
    plots.save(figure, folder / "figures" / PICTURE)
    parts = [*_table(record), *_picture(record, folder), *_arguments(record), *provenance(record)]
    write_text(folder / "report.html", page.page(record["title"], parts))
    return folder / "report.html"


def to_text(record: Row) -> str:
    """Returns the table as text, with what its numbers are."""
    headers, rows = _cells(record)
    table = tabulate.tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    explanation = textwrap.fill(_explanation(record), width=100)
    return "\n\n".join([record["title"], table, explanation]) + "\n"


def accuracy_over_time(
    histories: Mapping[str, Sequence[Sequence[Row]]], target: float | None = None
) -> Figure:
    """Plots the accuracy on validation tasks over the time of training.

    Args:
        histories: By title of the algorithm, the history of every seed: thin lines; a bold one is
            their mean, as far as all of them go.
        target: An accuracy to mark.
    """
    figure = Figure((8, 5), layout="constrained")
    axes = figure.subplots()
    curves = {
        title: [
            (training_seconds(history), np.array([row["val_accuracy"] for row in history]))
            for history in of_seeds
            if history
        ]
        for title, of_seeds in histories.items()
    }
    longest = max((x[-1] for of_seeds in curves.values() for x, _ in of_seeds), default=0.0)
    unit, seconds = ("minutes", 60) if longest >= 300 else ("seconds", 1)
    for i, (title, of_seeds) in enumerate(curves.items()):
        # Ten colours, and another line for those that come after.
        style = {"color": f"C{i % 10}", "linestyle": "-" if i < 10 else "--"}
        if len(of_seeds) > 1:
            for x, y in of_seeds:
                axes.plot(x / seconds, y, alpha=0.25, linewidth=1, **style)
        if of_seeds:
            epochs = min(len(x) for x, _ in of_seeds)
            x, y = np.mean([(x[:epochs], y[:epochs]) for x, y in of_seeds], axis=0)
            axes.plot(x / seconds, y, marker="o", markersize=3, linewidth=2, label=title, **style)
    if target is not None:
        axes.axhline(target, color="0.5", linestyle=":", linewidth=1, label=f"{100 * target:g} %")
    axes.set(xlabel=f"{unit} of training", ylabel="accuracy on validation tasks")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center")
    return figure


def _table(record):
    headers, rows = _cells(record)
    yield page.heading("Accuracy on test tasks, and time")
    yield page.table(headers, rows)
    yield page.paragraph(_explanation(record))
    stopped = [row["title"] for row in record["results"] if row["stopped"]]
    if stopped:
        yield page.paragraph(
            f"Training met a loss that was not finite and ended early: {', '.join(stopped)}.",
            "notice",
        )


def _cells(record):
    """Returns the headers and the cells of the table."""
    target = record["settings"]["target_accuracy"]
    headers = ["algorithm", "accuracy", "deviation over seeds", "meta-iterations"]
    headers += ["seconds of training", "seconds per step", f"seconds to {100 * target:g} %"]
    rows = [
        [
            row["title"],
            percent({"mean": row["accuracy"], "ci95": row["ci95"]}),
            _number(row["seed_deviation"], "{:.2%}").replace("%", " %"),
            _number(row["iterations"], "{:,.0f}"),
            _number(row["train_seconds"], "{:,.1f}"),
            _number(row["step_seconds"], "{:.4f}"),
            _number(row["target_seconds"], "{:,.1f}"),
        ]
        for row in record["results"]
    ]
    return headers, rows


def _number(value, form):
    return "-" if value is None else form.format(value)


def _explanation(record):
    settings = record["settings"]
    text = (
        f"Accuracy is the mean over {settings['test_tasks']:,} test tasks and "
        f"{counted(len(settings['seeds']), 'seed')} with the 95 % interval over tasks, each with "
        "its mean over seeds. The deviation is that of the seeds' means from each other (standard "
        "deviation). Seconds are those of training steps alone, without compilation, validation "
        "and test: in all, the mean over seeds; per step, the median over epochs without the first "
        "of a process; to an accuracy, the median over seeds of the time at the end of the first "
        "epoch that reached it on validation tasks."
    )
    if settings["minutes"] is not None:
        text += f" Training ended after {settings['minutes']:g} minutes."
    return text


def _picture(record, folder):
    yield page.heading("Accuracy over time")
    yield page.picture(
        folder / "figures" / PICTURE,
        f"Accuracy on {record['settings']['validation_tasks']:,} validation tasks at the end of "
        "every epoch: a thin line per seed, a bold one for their mean.",
    )


def _arguments(record):
    names = list(dict.fromkeys(name for each in record["arguments"].values() for name in each))
    titles = {row["algorithm"]: row["title"] for row in record["results"]}
    rows = [
        [titles[algorithm], *(each.get(name, "") for name in names)]
        for algorithm, each in record["arguments"].items()
    ]
    yield page.heading("Settings of each algorithm")
    yield page.paragraph(
        "Inner steps are those of training, evaluation steps those of validation and test. What is "
        "not here is equal for all."
    )
    yield page.table(["algorithm", *(name.replace("_", " ") for name in names)], rows)
