"""Comparisons: tables that follow from per-task accuracies, and trainings that go on."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from zoo import slow

from experiments import compare, glyphs
from experiments.compare import Files, Settings
from experiments.shared import runs
from experiments.shared.algorithms import ALGORITHMS, joined, with_context
from experiments.shared.training_clock import TrainingClock, step_seconds, training_seconds
from keras_maml import MAML, episodes, meta_gradients, networks, query_losses, update_rules
from keras_maml.files import read_csv
from keras_maml.layers import PerStepBatchNormalization

pytestmark = pytest.mark.usefixtures("without_xla")
TINY = Settings(
    glyphs=True,
    ways=2,
    algorithms=("anil", "first-order"),
    seeds=(0, 1),
    evaluation_steps=1,
    meta_batch_size=2,
    iterations=4,
    epoch_iterations=2,
    validation_tasks=2,
    test_tasks=6,
    test_queries=2,
    target_accuracy=0.01,
)
UNTRAINED = {"tested", "measure"}


@pytest.fixture(scope="module", autouse=True)
def tiny_network():
    """A network that is traced quickly."""
    tiny = dataclasses.replace(
        glyphs.EXPERIMENT,
        make_network=lambda settings: networks.fully_connected_classifier(
            settings.ways, units=(8,), seed=settings.seed
        ),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glyphs, "EXPERIMENT", tiny)
        yield


def run(folder, **changes):
    return compare.run(dataclasses.replace(TINY, **changes), Files(output=str(folder)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, without_xla, tiny_network):
    """The folder of a comparison that was not interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder)
    return folder


def without_clock(rows):
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


def results(folder):
    return json.loads((folder / "results.json").read_text())["results"]


def test_the_table_follows_from_the_accuracy_of_every_task(whole):
    for row in results(whole):
        name = row["algorithm"]
        found = [json.loads((whole / f"{name}-{s}/result.json").read_text()) for s in (0, 1)]
        accuracies = np.array([result["accuracy"] for result in found])
        assert accuracies.shape == (2, 6) and set(4 * accuracies.ravel()) <= {0, 1, 2, 3, 4}
        tasks = (accuracies[0] + accuracies[1]) / 2
        assert row["accuracy"] == pytest.approx(np.mean(accuracies))
        assert row["ci95"] == pytest.approx(1.96 * np.std(tasks, ddof=1) / np.sqrt(6))
        first, second = accuracies.mean(axis=1)
        assert row["seed_deviation"] == pytest.approx(abs(first - second) / np.sqrt(2))
        assert row["iterations"] == 4 and not row["stopped"]
        histories = [read_csv(whole / f"{name}-{s}/history.csv") for s in (0, 1)]
        last = [history[1]["step_seconds"] for history in histories]  # the first is a warm-up
        assert row["step_seconds"] == pytest.approx(np.median(last))
        assert row["target_seconds"] > 0


def test_a_comparison_leaves_table_picture_and_page(whole):
    lines = (whole / "comparison.csv").read_text().splitlines()
    assert lines[0].startswith("algorithm,title,accuracy,ci95,seed_deviation,iterations")
    assert [line.split(",")[:2] for line in lines[1:]] == [
        ["anil", "ANIL"],
        ["first-order", "first-order MAML"],
    ]
    assert (whole / "figures" / "accuracy-over-time.png").stat().st_size > 1000
    page, text = ((whole / name).read_text() for name in ("report.html", "results.txt"))
    for content in (page, text):
        assert "first-order MAML" in content and "6 test tasks and 2 seeds" in content
    record = json.loads((whole / "results.json").read_text())
    assert record["command"] and record["versions"]["keras"] and record["licence"]
    assert record["arguments"]["first-order"]["inner_learning_rate"] == 0.4


def test_seeds_differ_in_weights_and_training_and_share_the_test(whole, tmp_path, monkeypatch):
    seen = []

    def train(this, settings, name, seed, make_episodes, validation, where):
        images = [make_episodes("train", seed=seed), validation]
        seen.append([next(iter(dataset))[0][0].numpy() for dataset in images])
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "train", train)
    for seed in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / str(seed), seeds=(seed,))
    (ours, our_validation), (theirs, their_validation) = seen
    assert not np.array_equal(ours, theirs)
    assert np.array_equal(our_validation, their_validation)
    networks_of = [
        glyphs.EXPERIMENT.make_network(compare.of_images(TINY, seed)).get_weights()[0]
        for seed in (0, 1)
    ]
    assert not np.array_equal(*networks_of)


@pytest.mark.parametrize("at", ["training", "test"])
def test_an_interrupted_comparison_ends_with_the_same_table(whole, tmp_path, monkeypatch, at):
    finished = []
    if at == "training":
        end = compare.Progress.on_epoch_end

        def halt(progress, epoch, logs=None):
            finished.append(epoch)
            if len(finished) == 4:  # in the second training
                raise KeyboardInterrupt
            end(progress, epoch, logs)

        monkeypatch.setattr(compare.Progress, "on_epoch_end", halt)
    else:
        measure = compare.measure

        def halt(*arguments):
            finished.append(arguments)
            if len(finished) == 2:
                raise KeyboardInterrupt
            return measure(*arguments)

        monkeypatch.setattr(compare, "measure", halt)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut")
    assert len([*(tmp_path / "cut").glob("*/result.json")]) == 1
    run(tmp_path / "cut")
    assert without_clock(results(tmp_path / "cut")) == without_clock(results(whole))
    for path in whole.glob("*/result.json"):
        other = tmp_path / "cut" / path.relative_to(whole)
        assert other.read_bytes() == path.read_bytes()


def test_a_finished_comparison_is_shown_and_extended_without_training_again(
    whole, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "more"
    run(folder, algorithms=("anil",), seeds=(0,))
    files = [*folder.glob("anil-0/**/*.*")]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    assert len(before) >= 4
    run(folder)
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in files} == before
    assert without_clock(results(folder)) == without_clock(results(whole))
    assert (folder / "results-1.json").exists()
    monkeypatch.setattr(compare, "train", None)
    capsys.readouterr()
    run(folder)
    assert "first-order MAML" in capsys.readouterr().out
    # Another accuracy to reach needs no training either, fewer algorithms are another comparison.
    run(folder, target_accuracy=2.0)
    assert [row["target_seconds"] for row in results(folder)] == [None, None]
    with pytest.raises(FileExistsError, match="algorithms"):
        run(folder, algorithms=("anil",), target_accuracy=2.0)


def test_more_iterations_continue_every_training(whole, tmp_path):
    folder = tmp_path / "longer"
    run(folder, algorithms=("anil",), seeds=(0,), iterations=2)
    run(folder, algorithms=("anil",), seeds=(0,))
    ours, theirs = (path / "anil-0" / "result.json" for path in (folder, whole))
    assert ours.read_bytes() == theirs.read_bytes()


def test_training_that_is_not_finite_is_a_result_and_ends_nothing(tmp_path, monkeypatch):
    diverging = dataclasses.replace(
        ALGORITHMS["maml"], departures=lambda settings: {"inner_learning_rate": 1e30}
    )
    monkeypatch.setitem(ALGORITHMS, "maml", diverging)
    record = run(tmp_path / "run", algorithms=("maml", "anil"), seeds=(0,), test_tasks=2)
    assert [row["stopped"] for row in record["results"]] == [1, 0]
    assert "Training met a loss that was not finite" in (tmp_path / "run/report.html").read_text()


class Clock(TrainingClock):
    """Every step takes as long as a list says."""


@pytest.fixture
def ticking(monkeypatch):
    """A clock that moves by a second per step, and by 100 in the first."""
    durations = iter([100.0] + [1.0] * 100)
    now = [0.0]

    def monotonic():
        return now[0]

    def begin(clock, batch, logs=None):
        clock._clock = now[0]
        now[0] += next(durations)

    monkeypatch.setattr("experiments.shared.training_clock.time.monotonic", monotonic)
    monkeypatch.setattr(TrainingClock, "on_train_batch_begin", begin)
