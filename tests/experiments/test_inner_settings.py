"""The grid of inner settings: what is refused before it is measured, and on which data it is."""

import dataclasses

import numpy as np
import pytest

from experiments import inner_settings
from keras_maml import episodes

SMALL = inner_settings.Settings(rates=(0.01,), steps=(1,), test_tasks=30)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rates": ()}, "rates must be one or several different ones"),
        ({"rates": (0.1, 0.0)}, "rates must be a finite number above 0, got 0.0"),
        ({"steps": (0,)}, "steps must be an integer of at least 1, got 0"),
        ({"test_tasks": 0}, "test_tasks must be an integer of at least 1, got 0"),
        ({"seed": 1}, "seed must not be that of the test's tasks, got 1"),
    ],
)
def test_settings_are_checked_before_a_folder_is_made(change, message, tmp_path):
    files = inner_settings.Files(output=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=message):
        inner_settings.run(dataclasses.replace(SMALL, **change), files)
    assert not (tmp_path / "run").exists()


def test_the_test_has_any_number_of_tasks():
    for problem in inner_settings.problems(SMALL, {}).values():
        tasks = sum(len(x) for (x, _), _ in problem.test().take(8))
        assert tasks >= SMALL.test_tasks


def test_one_table_is_of_the_same_photographs(tmp_path, monkeypatch):
    def reduced(folder, split):
        images = np.full((40, 32, 32, 3), len(folder), "uint8")
        return episodes.ImageClasses(images, tuple("abcde"), (8,) * 5)

    def measure(settings, name, problem, steps, rate):
        loss = {"before": 1.0, "after": 1.0, "ci95": 0.0}
        return {"problem": name, "steps": steps, "rate": rate, "loss": loss}

    monkeypatch.setattr(inner_settings, "reduced", reduced)
    monkeypatch.setattr(inner_settings, "measure", measure)

    def problems(data):
        files = inner_settings.Files(data, str(tmp_path / "run"))
        return [r["problem"] for r in inner_settings.run(SMALL, files).records.values()]

    assert problems("") == ["sinusoid", "glyphs"]
    assert problems("one") == ["sinusoid", "glyphs", "photographs"]
    with pytest.raises(ValueError, match=r"The data \(train, test\) are not those that the run in"):
        problems("another")
    assert problems("") == ["sinusoid", "glyphs", "photographs"]
