"""The page of a run of image classification, made from the files in its folder alone."""

import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.shared.report import page
from keras_maml import plots
from keras_maml.files import read_csv, write_text
from keras_maml.words import counted

Row = Mapping[str, Any]


def write(folder: str | os.PathLike) -> pathlib.Path:
    """Writes ``report.html`` into the folder of a finished run.

    Args:
        folder: Holds ``results.json``, ``history.csv``, ``test_tasks.csv`` and the pictures of
            tasks in ``figures/``; the plots are drawn there again.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: The folder holds no finished run.
    """
    folder = pathlib.Path(folder)
    if not (folder / "results.json").exists():
        raise FileNotFoundError(
            f"{folder} holds no results.json: the run has not finished, or is another folder's. "
            "Give the command of the run again to finish it."
        )
    record = json.loads((folder / "results.json").read_text())
    history, tasks = read_csv(folder / "history.csv"), read_csv(folder / "test_tasks.csv")
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    parts = [*_summary(record), *_test(record, figures), *_training(record, history, figures)]
    parts += [*_tasks(record, tasks, figures), *provenance(record)]
    write_text(folder / "report.html", page.page(record["title"], parts))
    return folder / "report.html"


def headline(record: Row) -> str:
    """Says in a line how good the learner is, after the steps it is judged by."""
    step = record["settings"]["evaluation_steps"]
    text = f"{record['title']}: {percent(accuracy(record, step))} after {counted(step, 'step')}"
    published = record["published"]
    if published:
        text += f"; published: {_published(published)}"
        if published_steps(record) != step:
            text += f" after {counted(published_steps(record), 'step')}"
        text += f" ({published['source']})"
    return text + "."


def published_steps(record: Row) -> int:
    """Returns the inner steps after which the published accuracy holds."""
    # Runs from before it was kept were judged by as many.
    return record["published"].get("steps", record["settings"]["evaluation_steps"])


def accuracy(
    record: Row, step: int, queries: int | None = None, mode: str | None = None
) -> Row | None:
    """Returns the row of accuracy after so many steps; by default of the first way of testing."""
    for row in record["results"]:
        same = row["metric"] == "accuracy" and row["step"] == step
        same &= queries is None or row["queries"] == queries
        if same and mode in (None, row["batch_normalization"]):
            return row
    return None


def percent(row: Row | None) -> str:
    """Writes a mean with its interval, in percent."""
    if row is None or row["mean"] is None:
        return "-"
    spread = "" if row["ci95"] is None else f" ± {100 * row['ci95']:.2f}"
    return f"{100 * row['mean']:.2f}{spread} %"


def commits(record: Row) -> str:
    """Names the commit of a run, or those of all its starts in their order, if they differ."""
    names = [start["commit"] or "unknown" for start in record.get("starts", [record])]
    changes = [name for i, name in enumerate(names) if i == 0 or name != names[i - 1]]
    return ", then ".join(changes)


def hardest(tasks: Sequence[Row]) -> list[Row]:
    """Sorts test tasks, of the first number of queries, from the lowest accuracy up; then by loss.

    A loss that is not a number counts as the highest, and of equal ones the first task comes first.

    Args:
        tasks: Mappings with ``queries``, ``accuracy`` and ``loss``.
    """
    chosen = [row for row in tasks if row["queries"] == tasks[0]["queries"]]
    return sorted(
        chosen,
        key=lambda row: (row["accuracy"], -np.nan_to_num(row["loss"], nan=np.inf), row["task"]),
    )


def _summary(record):
    settings = record["settings"]
    step = settings["evaluation_steps"]
    facts = {f"accuracy after {counted(step, 'step')}": percent(accuracy(record, step))}
    if record["published"]:
        after = counted(published_steps(record), "step")
        name = f"published, after {after} ({record['published']['source']})"
        facts[name] = _published(record["published"])
    facts["before adaptation"] = percent(accuracy(record, 0))
    facts["meta-iterations"] = f"{settings['iterations']:,}"
    facts["hours of training"] = f"{record['train_hours']:.2f}"
    yield page.tiles(facts)
    if record["departures"]:
        yield page.paragraph(
            f"Differs from the full setting: {'; '.join(record['departures'])}.", "notice"
        )


def _test(record, figures):
    settings = record["settings"]
    step = settings["evaluation_steps"]
    curves, columns = {}, {}
    for row in record["results"]:
        if row["metric"] == "accuracy":
            name = f"{row['batch_normalization']}, {row['queries']} per class"
            columns.setdefault(name, []).append(row)
    for name, rows in columns.items():
        curves[name] = tuple(
            np.array([row[key] for row in rows], float) for key in ("mean", "ci95")
        )
    published = record["published"]
    if published:
        steps = published_steps(record)
        published = (published["accuracy"], published["ci95"], steps, published["source"])
    plots.save(plots.accuracy_over_steps(curves, published), figures / "accuracy_over_steps.png")
    steps = range(len(next(iter(columns.values()))))
    lines = [[i, *(percent(rows[i]) for rows in columns.values())] for i in steps]
    yield page.heading("Accuracy on test tasks")
    yield page.paragraph(
        f"The mean over {settings['test_tasks']:,} tasks and its 95 % interval, for each number of "
        "query images per class. Transductive batch normalisation takes the statistics of the "
        "query images that are classified together, inductive those of the support images. "
        f"Step {step} is what the learner is judged by."
    )
    yield page.picture(figures / "accuracy_over_steps.png", "Accuracy after every inner step.")
    yield page.table(["step", *columns], lines, marked=step)


def _training(record, history, figures):
    best = record["iterations_of_best_epoch"]
    published = {"accuracy": record["published"] and record["published"]["accuracy"]}
    yield page.heading("Learning curves")
    pictures = []
    for metric in ("accuracy", "loss"):
        path = figures / f"learning_curve_{metric}.png"
        plots.save(plots.learning_curve(history, metric, best, published.get(metric)), path)
        pictures.append(page.picture(path, f"{metric.capitalize()} of query images."))
    yield page.side_by_side(pictures)
    yield page.paragraph(
        f"The checkpoint after {best:,.0f} iterations, the best on validation tasks, was tested. "
        "Training tasks are measured after the inner steps of training, validation tasks after "
        f"{record['settings']['evaluation_steps']}."
    )


def _tasks(record, tasks, figures):
    ranked = hardest(tasks)
    settings = record["settings"]
    seed = settings["seed"] + 2
    yield page.heading("Examples of test tasks")
    yield page.paragraph(
        "A column is a class: support images above, and framed below them query images with the "
        "class predicted before and after adaptation, green where that is right in the end. Of "
        "each class, up to three images are shown."
    )
    for path in sorted(figures.glob("example-*.png")):
        number = int(path.stem.split("-")[1]) - 1
        yield page.picture(path, f"Test task {number}.")
    yield page.heading("The hardest test tasks")
    yield page.paragraph(
        f"Task i is episode i of the test split: seed={seed}, start=i, meta_batch_size=1, tasks=1, "
        f"ways={settings['ways']}, shots={settings['shots']} and "
        f"queries={settings['test_queries'][0]} draw it again."
    )
    rows = [
        [f"{row['task']:.0f}", *(f"{row[k]:.0%}" for k in ("accuracy_before", "accuracy"))]
        + [f"{row['loss']:.3f}"]
        for row in ranked[:10]
    ]
    yield page.table(["task", "accuracy before", "accuracy after", "loss after"], rows)
    for path, row in zip(sorted(figures.glob("hardest-*.png")), ranked, strict=False):
        yield page.picture(path, f"Test task {row['task']:.0f}.")


def provenance(record: Row) -> Iterator[str]:
    """Yields the section on how results were made: command, data, versions and settings."""
    yield page.heading("How it was made")
    yield page.code(record["command"])
    facts = {"data": record["data"], "licence of the data": record["licence"]}
    if "images_sha256" in record:  # runs from before it was kept have none
        facts["SHA-256 of the test images"] = record["images_sha256"]
    facts |= {"commit": commits(record), "date": record["date"]} | record["versions"]
    yield page.side_by_side(
        [
            page.table(["", ""], list(facts.items())),
            page.table(["setting", ""], list(record["settings"].items())),
        ]
    )


def _published(published):
    return f"{100 * published['accuracy']:.2f} ± {100 * published['ci95']:.2f} %"
