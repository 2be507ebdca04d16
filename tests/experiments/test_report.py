"""Report pages: self-contained, escaped, and with the numbers of the run."""

import base64
import csv
import html.parser
import json
import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.shared.report import images, page
from keras_maml import plots

VOID = {"meta", "img"}
SETTINGS = {
    "ways": 5,
    "shots": 1,
    "test_queries": [1],
    "evaluation_steps": 1,
    "iterations": 20,
    "test_tasks": 4,
    "seed": 0,
}


class Structure(html.parser.HTMLParser):
    """Reads a page: its tags, what they load, its text; fails where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loaded, self.open, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href", "srcset")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def row(mode, queries, step, mean):
    label = {"queries": queries, "batch_normalization": mode, "metric": "accuracy"}
    return label | {"step": step, "tasks": 4, "mean": mean, "ci95": 0.015, "not_finite": 0}


@pytest.fixture
def record():
    return {
        "title": "<script>alert(1)</script> & co",
        "command": "python -m experiments.glyphs --output 'a&b'",
        "commit": "abc",
        "date": "2026-01-01",
        "versions": {"keras": "3"},
        "settings": SETTINGS,
        "data": "glyphs",
        "licence": "free",
        "published": {"accuracy": 0.987, "ci95": 0.004, "source": "table 1"},
        "departures": ["cut short: 20 of 60,000 iterations"],
        "train_hours": 0.25,
        "iterations_of_best_epoch": 10.0,
        "results": [
            row(mode, queries, step, 0.2 + 0.6 * step + 0.01 * queries)
            for queries in (1, 15)
            for mode in ("transductive", "inductive")
            for step in (0, 1)
        ],
    }


@pytest.fixture
def folder(tmp_path, record):
    """A finished run, as files."""
    (tmp_path / "results.json").write_text(json.dumps(record))
    history = [{"iterations": 10.0 * i, "accuracy": 0.5, "loss": 1.0} for i in (1, 2)]
    tasks = [
        {"queries": q, "task": task, "accuracy_before": 0.2, "accuracy": accuracy, "loss": loss}
        for q in (1, 15)
        for task, (accuracy, loss) in enumerate([(1.0, 0.1), (0.4, 1.0), (0.4, 2.0), (0.2, 0.5)])
    ]
    for name, rows in (("history.csv", history), ("test_tasks.csv", tasks)):
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    (tmp_path / "figures").mkdir()
    for name in ("example-1.png", "hardest-1.png"):
        figure = Figure((1, 1))
        figure.subplots().set_title(name)
        plots.save(figure, tmp_path / "figures" / name)
    return tmp_path


def test_the_page_needs_nothing_but_itself(folder):
    text = images.write(folder).read_text()
    structure = Structure(text)
    assert not {"script", "link", "iframe", "object"} & set(structure.tags)
    assert "url(" not in text and "@import" not in text
    assert structure.loaded
    for source in structure.loaded:
        kind, content = source.split(",", 1)
        assert kind == "data:image/png;base64"
        assert base64.b64decode(content, validate=True).startswith(b"\x89PNG")
    pictures = {path.read_bytes() for path in (folder / "figures").glob("*.png")}
    assert pictures == {base64.b64decode(source.split(",", 1)[1]) for source in structure.loaded}


def test_text_is_escaped(folder, record):
    structure = Structure(images.write(folder).read_text())
    assert structure.text.count(record["title"]) == 2  # the title and the heading
    assert record["command"] in structure.text


def test_the_numbers_of_the_run_are_on_the_page(folder):
    text = " ".join(Structure(images.write(folder).read_text()).text)
    assert "81.00 ± 1.50 %" in text and "95.00 ± 1.50 %" in text  # one step, 1 and 15 queries
    assert "98.70 ± 0.40 %" in text
    assert "Differs from the full setting: cut short: 20 of 60,000 iterations." in text
    assert "The checkpoint after 10 iterations" in text


def test_the_hardest_tasks_come_first(folder):
    structure = Structure(images.write(folder).read_text())
    start = structure.text.index("The hardest test tasks")
    numbers = [text for text in structure.text[start:] if text in ("0", "1", "2", "3")]
    assert numbers[:4] == ["3", "2", "1", "0"]


def test_tasks_of_one_number_of_queries_are_ranked():
    first = [{"queries": 1, "task": i, "accuracy": 0.8 - 0.2 * i, "loss": 1.0} for i in (0, 1)]
    other = [{"queries": 15, "task": 0, "accuracy": 0.1, "loss": 1.0}]
    assert [row["task"] for row in images.hardest(first + other)] == [1, 0]


def test_the_hardest_are_in_one_order_where_losses_are_no_numbers():
    losses = [0.1, math.nan, 5.0, math.inf, math.nan, 5.0]
    tasks = [{"queries": 1, "task": i, "accuracy": 0.2, "loss": x} for i, x in enumerate(losses)]
    for given in (tasks, tasks[::-1]):
        assert [row["task"] for row in images.hardest(given)] == [1, 4, 3, 2, 5, 0]


def test_a_run_that_has_not_finished_has_no_page(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no results.json: the run has not finished"):
        images.write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_headline_names_step_and_source(record):
    record["title"] = "Glyphs"
    line = "Glyphs: 81.00 ± 1.50 % after 1 step; published: 98.70 ± 0.40 % (table 1)."
    assert images.headline(record) == line
    record["published"]["steps"] = 5
    line = line.replace(" (table", " after 5 steps (table")
    assert images.headline(record) == line
    record["published"] = None
    assert images.headline(record) == "Glyphs: 81.00 ± 1.50 % after 1 step."


def test_a_run_that_went_on_with_other_commits_names_them(folder, record):
    record["starts"] = [{"commit": commit} for commit in (None, "old", "old", "abc")]
    assert images.commits(record) == "unknown, then old, then abc"
    (folder / "results.json").write_text(json.dumps(record))
    assert "unknown, then old, then abc" in Structure(images.write(folder).read_text()).text


def test_what_has_no_number_is_a_dash():
    assert images.percent(None) == images.percent({"mean": None, "ci95": None}) == "-"
    assert images.percent({"mean": 0.5, "ci95": None}) == "50.00 %"


def test_a_page_without_parts_is_whole():
    assert Structure(page.page("Title", [])).tags[:2] == ["html", "head"]


def test_the_marked_row_is_the_one_marked():
    text = page.table(["a"], [["x"], ["y"]], marked=1)
    assert text.index('class="marked"') > text.index("x") and text.count("marked") == 1


def test_the_published_value_is_a_line_at_its_height():
    curve = (np.array([0.2, 0.9]), np.array([0.01, 0.01]))
    figure = plots.accuracy_over_steps({"ours": curve}, published=(0.987, 0.004, 1, "table 2"))
    lines = [line for line in figure.axes[0].lines if len(set(line.get_ydata())) == 1]
    assert {line.get_ydata()[0] for line in lines} == {98.7}
    band = figure.axes[0].patches[0]
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((98.3, 99.1))
    ours = next(line for line in figure.axes[0].lines if list(line.get_xdata()) == [0, 1])
    assert ours.get_ydata().tolist() == [20.0, 90.0]
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert "table 2:\n98.7 ± 0.4 after step 1" in labels
