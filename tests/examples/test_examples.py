"""The examples run to their picture, their data are what they say, and docs show what they gave."""

import importlib
import json
import pathlib
import re

import keras
import numpy as np
import pytest
from zoo import slow

from examples import documentation, drawings, oscillator, recording, speakers

ROOT = pathlib.Path(__file__).parents[2]
RECORDED = sorted(path.name for path in (ROOT / "experiments/results/examples").iterdir())
LONG = ("backbone", "documentation", "speakers")  # for the slow tests
NAMES = ("backbone", "documentation", "drawings", "oscillator", "shops", "speakers")


@pytest.fixture
def vowels(tmp_path):
    """Recordings in the format of aeon's files: nine speakers, two channels of a constant each."""
    for part, count in (("TRAIN", 6), ("TEST", 16)):
        lines = [
            f"{speaker},{speaker}:{-speaker},{-speaker}:{speaker}"
            for speaker in range(1, 10)
            for _ in range(count)
        ]
        text = "\n".join(["#A comment", "@problemName JapaneseVowels", "@data", *lines])
        (tmp_path / f"JapaneseVowels_{part}.ts").write_text(text)
    return tmp_path


@pytest.mark.usefixtures("without_xla")
@pytest.mark.parametrize("name", [slow(name) if name in LONG else name for name in NAMES])
def test_example(name, tmp_path, vowels, monkeypatch):
    example = importlib.import_module(f"examples.{name}")
    settings = {"iterations": 10, "tasks": 200, "folder": tmp_path / "run"}
    settings |= {"speakers": {"data": vowels}, "backbone": {"epochs": 1}}.get(name, {})
    if name == "documentation":
        monkeypatch.setattr(documentation, "WORDS", 100)
    results = example.main(**settings)
    recorded = json.loads((tmp_path / "run/results.json").read_text())
    assert recorded["results"] == results
    assert recorded["seed"] == 0
    assert (tmp_path / "run/picture.png").read_bytes().startswith(b"\x89PNG")
    assert np.isfinite([*numbers(results)]).all()


def test_results_that_are_there_are_kept_unless_asked(tmp_path, monkeypatch, capsys):
    called = []
    monkeypatch.setattr("sys.argv", ["example", "--folder", str(tmp_path)])
    recording.run(example := lambda seed=0, folder="": called.append((seed, folder)))
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(SystemExit):
        recording.run(example)
    assert "add --overwrite" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["example", "--overwrite", "--seed=3", f"--folder={tmp_path}"])
    recording.run(example)
    assert called == [(0, str(tmp_path)), (3, str(tmp_path))]


def test_recordings_are_stretched_to_as_many_frames(vowels):
    x, names = speakers.recordings(vowels)
    assert x.shape == (9 * 22, speakers.FRAMES, 2)
    assert (x[:, :, 0] == names.astype(float)[:, None]).all()
    assert (x[:, :, 1] == -x[:, :, 0]).all()


def test_the_solution_solves_the_equation():
    c, k, width = np.float64(0.5), np.float64(3.0), 1e-3
    time = np.linspace(0.1, 6, 50)
    before, now, after = (oscillator.solution(t, c, k) for t in (time - width, time, time + width))
    residual = (after - 2 * now + before) / width**2 + c * (after - before) / (2 * width) + k * now
    np.testing.assert_allclose(residual, 0, atol=1e-5)
    assert oscillator.solution(np.float64(0.0), c, k) == 1


def test_new_pictures_and_new_modules_are_others():
    train, test = (
        {y.tobytes() for _, y in drawings.pictures(split)} for split in ("train", "test")
    )
    assert len(train) > 1200
    assert not train & test
    texts, modules = documentation.docstrings()
    assert len(set(texts)) == len(texts)
    assert min(np.unique(modules, return_counts=True)[1]) >= 20


def test_options_are_the_arguments(monkeypatch, capsys):
    called = {}

    def main(iterations=10, folder="runs", data=None):
        called.update(iterations=iterations, folder=folder, data=data)

    monkeypatch.setattr("sys.argv", ["example", "--iterations", "3", "--data", "here"])
    recording.run(main)
    assert called == {"iterations": 3, "folder": "runs", "data": "here"}


@pytest.mark.parametrize("name", RECORDED)
def test_the_page_shows_what_was_recorded(name):
    recorded = json.loads((ROOT / f"experiments/results/examples/{name}/results.json").read_text())
    page = (ROOT / "docs/examples.md").read_text()
    section = page.split(f"(../examples/{name}.py)")[1].split("\n## ")[0]
    assert f"../experiments/results/examples/{name}/picture.png" in section
    assert f"python -m examples.{name}" in section
    rows = [line.strip("| ").split(" | ")[1:] for line in section.splitlines() if line[:2] == "| "]
    shown = re.findall(r"-?\d+\.\d+", " ".join(" ".join(row) for row in rows))
    assert shown
    for text in shown:  # the rounding of a recorded number, or of a share in percent
        digits = len(text.split(".")[1])
        values = [*numbers(recorded["results"])]
        assert text in {f"{factor * v:.{digits}f}" for v in values for factor in (1, 100)}, text


def numbers(results):
    """All numbers in nested results."""
    return [leaf for leaf in keras.tree.flatten(results) if not isinstance(leaf, str)]
