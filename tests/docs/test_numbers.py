"""What README shows of results and speed is what docs say, and docs link to files that exist."""

import csv
import itertools
import json
import pathlib
import re
import statistics

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NUMBER = re.compile(r"-?\d[\d,.]*\d|\d")


def table(heading):
    """The cells with numbers of README's table under a heading, its first column left out."""
    section = (ROOT / "README.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:1] == "|"]
    return [cell.strip("*| ") for row in rows[2:] for cell in row[1:] if NUMBER.search(cell)]


@pytest.mark.parametrize(("heading", "page"), [("Results", "results"), ("Speed", "speed")])
def test_numbers_of_readme_stand_in_docs(heading, page):
    numbers = set(NUMBER.findall((ROOT / f"docs/{page}.md").read_text()))
    cells = table(heading)
    assert len(cells) > 10
    for cell in cells:
        missing = [n for n in NUMBER.findall(cell) if n not in numbers]
        assert not missing, f"{cell}: {missing}"


def test_readme_can_be_read_in_a_minute():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")], ids=lambda page: page.name
)
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)#]+)[)#]", page.read_text()):
        if "://" not in link and link:
            assert (page.parent / link).exists(), link


def chosen():
    """The rows of the table of docs/records.md that says which learner of each run was tested."""
    for folder in sorted(
        path.parent for path in (ROOT / "experiments/results").glob("*/results.json")
    ):
        results = json.loads((folder / "results.json").read_text())
        link = f"[{folder.name}](../experiments/results/{folder.name})"
        epoch = results["settings"].get("epoch_iterations")
        if "iterations_of_best_epoch" in results:
            best, history = results["iterations_of_best_epoch"], history_of(folder)
            (row,) = (row for row in history if float(row["iterations"]) == best)
            tasks = results["settings"]["validation_tasks"]
            value = f"{100 * float(row['val_accuracy']):.2f} % of {tasks:,} tasks"
            iterations = f"{best:,.0f} of {len(history) * epoch:,}"
            yield f"| {link} | {iterations} | {value} | {hours_of(history)} | |"
        for method, training in results.get("training", {}).items():
            best, skipped = training["iterations_of_best_epoch"], training["skipped"]
            path = folder / method / "history.csv"
            value, hours = "not kept", ""
            if path.exists():
                hours = hours_of(history_of(path.parent))
            if "return_of_best_epoch" in training:
                value = f"{training['return_of_best_epoch']:.1f}"
            elif path.exists():
                of_epoch = history_of(path.parent)[best - epoch : best]
                value = f"{statistics.fmean(float(row['return']) for row in of_epoch):.1f}"
            iterations = f"{best} of {training['iterations']}"
            yield f"| {link}, {method} | {iterations} | {value} | {hours} | {skipped} |"


def compared():
    """The rows of docs/records.md that say the same of comparisons of algorithms, by seeds."""
    for folder in sorted((ROOT / "experiments/results").glob("compare-*")):
        results = json.loads((folder / "results.json").read_text())
        settings = results["settings"]
        link = f"[{folder.name}](../experiments/results/{folder.name})"
        for name in results["arguments"]:
            histories = [history_of(folder / f"{name}-{seed}") for seed in settings["seeds"]]
            best = [max(rows, key=lambda row: float(row["val_accuracy"])) for rows in histories]
            taken = " / ".join(f"{float(row['iterations']):,.0f}" for row in best)
            ends = [f"{float(rows[-1]['iterations']):,.0f}" for rows in histories]
            value = " / ".join(f"{100 * float(row['val_accuracy']):.2f}" for row in best)
            tasks = f"{settings['validation_tasks']:,} tasks"
            yield f"| {link}, {name} | {taken} of {' / '.join(ends)} | {value} % of {tasks} |"


def over_hours():
    """The rows of the table of docs/results.md that says what was reached after how many hours."""
    for name in (
        "omniglot-5way-1shot",
        "omniglot-5way-1shot-first-order",
        "omniglot-20way-1shot",
        "mini-imagenet-5way-1shot",
        "mini-imagenet-5way-1shot-first-order",
    ):
        rows = history_of(ROOT / "experiments/results" / name)
        rows = [row | {"seconds": at} for row, at in zip(rows, without_stops(rows), strict=True)]
        cells = [f"[{name}](../experiments/results/{name})"]
        for hours in (0.25, 0.5, 1, 2, 3):
            so_far = [row for row in rows if float(row["seconds"]) <= 3600 * hours]
            best = max(100 * float(row["val_accuracy"]) for row in so_far)
            cells.append(f"{best:.1f} %" if len(so_far) < len(rows) else "")
        best, end = (max(float(row[key]) for row in rows) for key in ("val_accuracy", "seconds"))
        yield f"| {' | '.join(cells)} | {100 * best:.1f} % after {end / 3600:.1f} h |"


def hours_of(history):
    """The hours of a training: without stops, and with them if that is more."""
    net, gross = (f"{at[-1] / 3600:.2f}" for at in (without_stops(history), seconds(history)))
    return net if net == gross else f"{net} ({gross})"


def without_stops(history):
    """The seconds after every epoch: one that took more than twice the median counts as that."""
    epochs = [later - at for at, later in itertools.pairwise([0.0, *seconds(history)])]
    usual = statistics.median(epochs)
    return list(itertools.accumulate(usual if it > 2 * usual else it for it in epochs))


def seconds(history):
    return [float(row["seconds"]) for row in history]


def history_of(folder):
    with open(folder / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("rows", "page"),
    [(chosen, "records"), (compared, "records"), (over_hours, "results")],
    ids=["chosen", "compared", "over_hours"],
)
def test_docs_have_a_row_of_each_run(rows, page):
    rows = list(rows())
    assert len(rows) > 4
    missing = set(rows) - set((ROOT / f"docs/{page}.md").read_text().splitlines())
    assert not missing, "\n".join(row for row in rows if row in missing)
