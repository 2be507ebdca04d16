"""Experiments on images: rows of settings, commands, run folders that survive SIGKILL."""

import dataclasses
import functools
import hashlib
import json
import pathlib
import subprocess
import sys

import h5py
import numpy as np
import pytest
import tensorflow as tf
from interruption import kill_when, run

from experiments import glyphs, mini_imagenet, omniglot, publish
from experiments.shared import command_line, image_classification, runs
from experiments.shared.image_classification import Files
from experiments.shared.image_settings import Settings
from keras_maml import MAML, episodes, networks, pretrained
from keras_maml.files import read_csv

EXPERIMENTS = [omniglot.EXPERIMENT, mini_imagenet.EXPERIMENT, glyphs.EXPERIMENT]
# What `python -m experiments.glyphs` runs, with a network that compiles quickly.
TINY_GLYPHS = dataclasses.replace(
    glyphs.EXPERIMENT,
    make_network=lambda settings: networks.fully_connected_classifier(
        settings.ways, units=(8,), seed=settings.seed
    ),
)
# The paper's networks on glyphs, with what their published runs use besides.
PAPER = {
    "omniglot": (
        dataclasses.replace(omniglot.EXPERIMENT, load=glyphs.load),
        {"cooldown_iterations": 4},
    ),
    "mini_imagenet": (
        dataclasses.replace(
            mini_imagenet.EXPERIMENT,
            load=glyphs.load,
            make_network=lambda settings: networks.mini_imagenet_classifier(
                settings.ways, settings.filters, (28, 28, 1), settings.seed
            ),
        ),
        {"clip_gradient": 0.125, "inner_steps": 2},
    ),
}
TINY = {
    "ways": 2,
    "evaluation_steps": 1,
    "meta_batch_size": 2,
    "ema_momentum": 0.5,
    "filters": 8,
    "iterations": 8,
    "epoch_iterations": 1,
    "validation_tasks": 2,
    "test_tasks": 4,
    "test_queries": (1,),
}
ROOT = pathlib.Path(__file__).parents[2]


def parse(monkeypatch, experiment, *options):
    """Returns what a command would run."""
    seen = []
    monkeypatch.setattr(image_classification, "run", lambda *arguments: seen.append(arguments))
    monkeypatch.setattr("sys.argv", [experiment.name, *options])
    image_classification.main(experiment, "")
    ((ours, settings, files, _),) = seen
    assert ours is experiment and type(settings) is Settings
    return settings, files


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.name)
def test_every_row_is_chosen_by_its_options(monkeypatch, experiment):
    for row in experiment.rows:
        options = ["--ways", str(row.ways), "--shots", str(row.shots)]
        options += [] if row.convolutions else ["--no-convolutions"]
        options += ["--first-order"] if row.first_order else []
        assert parse(monkeypatch, experiment, *options)[0] == row
        settings, _ = parse(monkeypatch, experiment, *options, "--seed", "7")
        assert settings == dataclasses.replace(row, seed=7)
        assert experiment.departures(settings) == []


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.name)
def test_rows_have_folders_of_their_own_and_every_published_number_a_row(experiment):
    assert len({experiment.folder(row) for row in experiment.rows}) == len(experiment.rows)
    assert all(experiment.row(task) for task in experiment.published)


def test_one_inner_step_is_the_authors_step():
    # They divide the sum of the losses by the shots; a mean divides it by the ways as well.
    for row in omniglot.EXPERIMENT.rows:
        if row.first_order:  # which they did not report for Omniglot
            continue
        assert row.inner_learning_rate / row.ways == {5: 0.4, 20: 0.1}[row.ways]
    for row in mini_imagenet.EXPERIMENT.rows:
        assert row.inner_learning_rate / row.ways == pytest.approx(0.01)
        assert row.clip_gradient * row.ways * row.queries / row.shots == pytest.approx(10)


def test_the_meta_gradient_is_clipped_element_by_element():
    settings = dataclasses.replace(Settings(**TINY), clip_gradient=0.125)
    learner = image_classification.make_learner(TINY_GLYPHS, settings)
    learner.build_on(episodes.glyphs(split="train", ways=2, shots=1, queries=1, meta_batch_size=2))
    optimizer = learner.optimizer
    gradients = [np.full(w.shape, 3.0, "float32") for w in learner.trainable_variables]
    gradients[0][0] = 0.0625
    optimizer.apply(gradients, learner.trainable_variables)
    first_moment = next(v for v in optimizer.variables if "momentum" in v.path)
    expected = 0.1 * np.clip(gradients[0], -0.125, 0.125)  # Adam's beta_1 is 0.9
    np.testing.assert_allclose(first_moment, expected, rtol=1e-6)


def test_the_outer_rate_falls_in_the_last_iterations_only():
    settings = Settings(**TINY, learning_rate=0.5, cooldown_iterations=4)
    rates = image_classification.learning_rate(settings)
    falling = [0.25 * (1 + np.cos(np.pi * i / 4)) for i in range(5)]
    np.testing.assert_allclose([rates(i) for i in range(9)], [0.5] * 4 + falling, atol=1e-7)
    constant = dataclasses.replace(settings, cooldown_iterations=0)
    assert image_classification.learning_rate(constant) == 0.5


@pytest.mark.parametrize("wrong", ["--ways", "--shots"])
def test_sizes_of_zero_are_left_to_the_checks(monkeypatch, wrong):
    for experiment in EXPERIMENTS:
        assert 0 in dataclasses.astuple(parse(monkeypatch, experiment, wrong, "0")[0])


def test_flags_can_be_taken_back(monkeypatch):
    settings, _ = parse(monkeypatch, glyphs.EXPERIMENT, "--no-first-order", "--no-convolutions")
    assert not settings.first_order and not settings.convolutions


def test_a_command_says_what_it_will_do_before_it_does(tmp_path, capsys):
    def load(folder, *, split):
        said.append(capsys.readouterr().out)
        raise FileNotFoundError

    said = []
    experiment = dataclasses.replace(omniglot.EXPERIMENT, load=load)
    with pytest.raises(FileNotFoundError):
        image_classification.run(experiment, Settings(), Files(output=str(tmp_path / "run")))
    results = json.loads(
        (image_classification.RESULTS / "omniglot-5way-1shot" / "results.json").read_text()
    )
    (text,) = said
    assert "60,000 meta-iterations of 32 tasks, then a test on 1,000 tasks." in text
    assert f"about {results['train_hours']:.1f} hours" in text
    assert "Without --data, Omniglot is downloaded" in text and str(tmp_path / "run") in text


@pytest.mark.parametrize(
    ("iterations", "ways", "data", "has", "lacks"),
    [
        (6_000, 5, "folder", "about 31 minutes where omniglot-5way-1shot of", "Without --data"),
        (60_000, 7, None, "How long that takes is said after every epoch", "about"),
    ],
)
def test_the_time_is_that_of_known_results(iterations, ways, data, has, lacks):
    settings = Settings(iterations=iterations, ways=ways)
    text = image_classification.plan(omniglot.EXPERIMENT, settings, Files(data=data))
    assert has in text and lacks not in text


def test_no_option_has_two_negatives(capsys, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Options:
        film: bool = False

    monkeypatch.setattr("sys.argv", ["test", "--help"])
    with pytest.raises(SystemExit):
        command_line.run_command("test", "", print, Options)
    text = capsys.readouterr().out
    assert "--no-film" in text and "--nofilm" not in text
    seen = []
    monkeypatch.setattr("sys.argv", ["test", "--film"])
    command_line.run_command("test", "", seen.append, Options)
    assert [options.film for options in seen] == [True] and isinstance(seen[0], Options)


def test_sizes_without_a_row_take_the_nearest_rows_settings(monkeypatch):
    settings, _ = parse(monkeypatch, omniglot.EXPERIMENT, "--ways", "10", "--shots", "3")
    assert (settings.queries, settings.test_queries) == (3, (3, 15))
    assert settings.inner_learning_rate == 2.0
    assert omniglot.EXPERIMENT.departures(settings) == ["no such row in the paper's table 1"]
    assert omniglot.EXPERIMENT.folder(settings) == "runs/omniglot-10way-3shot"
    short = dataclasses.replace(settings, iterations=500)
    assert omniglot.EXPERIMENT.departures(short)[1] == "cut short: 500 of 60,000 iterations"
    for options in (["--shots", "3"], ["--no-convolutions"]):
        settings, _ = parse(monkeypatch, omniglot.EXPERIMENT, "--ways", "20", *options)
        assert (settings.inner_steps, settings.meta_batch_size) == (5, 16)
    settings, _ = parse(monkeypatch, omniglot.EXPERIMENT, "--shots", "3", "--first-order")
    assert (settings.inner_learning_rate, settings.meta_batch_size) == (0.4, 32)
    settings, _ = parse(monkeypatch, mini_imagenet.EXPERIMENT, "--shots", "3")
    assert (settings.queries, settings.test_queries) == (15, (3, 15))
    assert settings.clip_gradient * (5 * 15 / 3) == pytest.approx(10)
    settings, _ = parse(monkeypatch, mini_imagenet.EXPERIMENT, "--ways", "10")
    assert settings.clip_gradient * (10 * 15 / 1) == pytest.approx(10)


def test_a_test_takes_no_more_images_than_a_class_has(monkeypatch):
    settings, _ = parse(monkeypatch, omniglot.EXPERIMENT, "--shots", "12")
    assert (settings.queries, settings.test_queries) == (8, (8,))
    settings, _ = parse(monkeypatch, omniglot.EXPERIMENT, "--shots", "7")
    assert (settings.queries, settings.test_queries) == (7, (7, 13))


def test_what_differs_from_the_row_is_said():
    settings = Settings(iterations=1_000, filters=8, seed=3, test_tasks=5)
    assert omniglot.EXPERIMENT.departures(settings) == [
        "filters 8 instead of 64",
        "cut short: 1,000 of 60,000 iterations",
    ]
    settings = Settings(first_order=True)
    assert omniglot.EXPERIMENT.departures(settings) == ["inner_learning_rate 2.0 instead of 0.4"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_queries": (1, 10_000)}, "10000"),
        ({"test_queries": (1, 0)}, "test_queries must be an integer of at least 1, got 0"),
        ({"test_queries": ()}, "test_queries must be one number of query images or several"),
        ({"test_queries": (1, 1)}, r"several different ones, got \(1, 1\)"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number above 0, got 0.0"),
        ({"inner_learning_rate": float("nan")}, "inner_learning_rate must be a finite number"),
        ({"clip_gradient": -1.0}, "clip_gradient must be a finite number above 0, got -1.0"),
        ({"ema_momentum": 1.0}, "ema_momentum must be above 0 and below 1, got 1.0"),
        ({"ways": 0}, "ways must be an integer of at least 1, got 0"),
        ({"inner_steps": 0}, "inner_steps must be an integer of at least 1, got 0"),
        ({"epoch_iterations": 0}, "epoch_iterations must be an integer of at least 1, got 0"),
        ({"initial_learner": ""}, "initial_learner must be the name of a pretrained learner"),
        ({"iterations": -8}, "iterations must be an integer of at least 1, got -8"),
        ({"cooldown_iterations": 9}, "cooldown_iterations must be at most iterations, 8, got 9"),
        (
            {"validation_tasks": 3},
            "validation_tasks must be a multiple of meta_batch_size, 2, got 3",
        ),
    ],
)
def test_what_cannot_be_drawn_fails_before_anything_is_written(tmp_path, changes, message):
    settings = Settings(**TINY | changes)
    with pytest.raises(ValueError, match=message):
        image_classification.run(glyphs.EXPERIMENT, settings, Files(output=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_every_network_can_be_made():
    for experiment in EXPERIMENTS:
        for row in experiment.rows:
            for convolutions in (row.convolutions, False):
                settings = dataclasses.replace(row, convolutions=convolutions)
                assert experiment.make_network(settings).output_shape == (None, row.ways)


class HaltError(Exception):
    """Ends a run."""


@pytest.mark.parametrize("mirrored", [False, True])
def test_every_split_has_images_and_episodes_of_its_own(tmp_path, monkeypatch, mirrored):
    values = {"train": 10, "validation": 20, "test": 30}

    def load(folder, *, split):
        images = np.full([40, 28, 28, 1], values[split], "uint8")
        images += np.arange(40, dtype="uint8")[:, None, None, None] % 5  # tells drawings apart
        images[:, :, 14:] += 5  # and the sides
        return episodes.ImageClasses(images, ("a", "b"), (20, 20))

    def pixels(dataset):
        batches = [
            tf.reshape(x, [-1, 28 * 28])[:, 0].numpy() for pair in dataset.take(2) for x, _ in pair
        ]
        return np.round(255 * np.concatenate(batches)).astype(int)

    seen = {}

    def train(this, learner, settings, make_episodes, validation):
        seen["train"] = pixels(make_episodes("train"))
        seen["validation"] = pixels(validation)

    def test(this, learner, experiment, settings, make_episodes, history, checksum):
        seen["test"] = pixels(make_episodes("test", queries=1))
        seen["checksum"] = checksum
        raise HaltError

    monkeypatch.setattr(image_classification, "train", train)
    monkeypatch.setattr(image_classification, "test", test)
    experiment = dataclasses.replace(TINY_GLYPHS, load=load)
    with pytest.raises(HaltError):
        run = Files(output=str(tmp_path / "run"))
        image_classification.run(experiment, Settings(**TINY, mirrored_classes=mirrored), run)
    for split, value in values.items():
        assert set(seen[split] // 10) == {value // 10}
        sides = {False, True} if mirrored and split == "train" else {False}
        assert set(seen[split] % 10 >= 5) == sides
    assert seen["checksum"] == image_classification.checksum(load(None, split="test"))
    drawn = [tuple(seen[split] % 10) for split in values]
    assert len(set(drawn)) == 3  # each with a seed of its own


def test_jitter_is_for_training_and_validation(tmp_path, monkeypatch):
    seen = {True: [], False: []}

    def train(this, learner, settings, make_episodes, validation):
        sets = make_episodes("train", start=4), validation, make_episodes("test", queries=1)
        seen[settings.jitter] = [next(iter(episodes)) for episodes in sets]
        raise HaltError

    monkeypatch.setattr(image_classification, "train", train)
    for jitter in (True, False):
        with pytest.raises(HaltError):
            run = Files(output=str(tmp_path / f"run-{jitter}"))
            image_classification.run(TINY_GLYPHS, Settings(**TINY, jitter=jitter), run)
    train, validation, test = (
        [np.array_equal(a, b) for a, b in zip(*map(tf.nest.flatten, pair), strict=True)]
        for pair in zip(seen[True], seen[False], strict=True)
    )
    assert train == validation == [False, True, False, True]  # other images, the same labels
    assert all(test)


def test_a_run_does_not_go_on_with_other_images(tmp_path):
    data = {"train": "1", "validation": "2", "test": "3"}
    runs.Run(tmp_path, Settings(**TINY), data)
    runs.Run(tmp_path, Settings(**TINY), data)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"The data \(validation\) are not those that the run in"):
        runs.Run(tmp_path, Settings(**TINY), data | {"validation": "0"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert len(json.loads(before["starts.json"])) == 2  # and what is refused is no start


def test_glyphs_are_not_read_from_a_folder(tmp_path):
    with pytest.raises(ValueError, match="leave --data out, got '/tmp/data'"):
        image_classification.run(glyphs.EXPERIMENT, Settings(**TINY), Files("/tmp/data"))


def weights(path):
    """Reads all arrays of a weights file."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: (
                found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
        )
    return found


def options(**more):
    """Writes the tiny settings as a command's options."""
    for name, value in (TINY | more).items():
        yield "--" + name.replace("_", "-")
        yield str(value[0] if isinstance(value, tuple) else value)


@pytest.fixture(scope="module", params=["checkpoints/epoch-*", "test_tasks.csv"])
def killed_and_continued(request, tmp_path_factory):
    """The folder of a run that was killed, in training or in the test, and continued."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    arguments = [*options(), "--output", str(folder)]
    kill_when(lambda: any(folder.glob(request.param)), [__file__, *arguments])
    assert not (folder / "results.json").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["glyphs", *arguments])
        image_classification.main(TINY_GLYPHS, "")
    return folder


def run_whole(folder):
    image_classification.run(TINY_GLYPHS, Settings(**TINY), Files(output=str(folder)))
    return folder


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder of a run of the same settings; XLA would take seconds for every program."""
    with pytest.MonkeyPatch.context() as patch:
        plain = functools.partialmethod(MAML.compile, jit_compile=False)
        patch.setattr(MAML, "compile", plain)
        return run_whole(tmp_path_factory.mktemp("whole") / "run")


def assert_same_runs(ours, theirs):
    for name in ("best.weights.h5", "epoch-000008.weights.h5"):
        a, b = (weights(folder / "checkpoints" / name) for folder in (ours, theirs))
        assert a.keys() == b.keys() and len(a) > 10
        assert all(np.array_equal(a[key], b[key]) for key in a)
    history = [
        [line.rpartition(",")[0] for line in (folder / "history.csv").read_text().splitlines()]
        for folder in (ours, theirs)
    ]  # without the column of seconds
    assert history[0] == history[1] and len(history[0]) == 9
    for name in ("data.json", "test_tasks.csv", "results.txt", "figures/hardest-1.png"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    records = [json.loads((folder / "results.json").read_text()) for folder in (ours, theirs)]
    for key in ("results", "settings", "iterations_of_best_epoch", "departures"):
        assert records[0][key] == records[1][key]
    assert [len(record["starts"]) for record in records] == [2, 1]


@pytest.mark.slow
def test_a_killed_run_ends_bit_for_bit_as_if_it_had_not_been(killed_and_continued, tmp_path):
    assert_same_runs(killed_and_continued, run_whole(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER)
def test_killed_runs_of_the_papers_networks_end_as_if_they_had_not_been(name, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [__file__, name, *options(**PAPER[name][1]), "--output"]
    kill_when(lambda: any(killed.glob("checkpoints/epoch-*")), [*command, str(killed)])
    for folder in (killed, whole):
        run([*command, str(folder)])
    assert_same_runs(killed, whole)


def test_a_run_leaves_what_it_says(uninterrupted):
    record = json.loads((uninterrupted / "results.json").read_text())
    data = json.loads((uninterrupted / "data.json").read_text())
    assert data["test"] == record["images_sha256"] and len({*data.values()}) == 3
    steps = {(row["batch_normalization"], row["step"]) for row in record["results"]}
    assert steps == {(m, s) for m in ("transductive", "inductive") for s in range(11)}
    assert record["licence"] and record["title"] == "Glyphs, 2-way 1-shot"
    images = episodes.load_glyphs("test").images
    assert record["images_sha256"] == hashlib.sha256(images.tobytes()).hexdigest()
    best = max(
        read_csv(uninterrupted / "history.csv"),
        key=lambda row: (row["val_accuracy"], -row["val_loss"]),
    )
    assert record["iterations_of_best_epoch"] == best["iterations"]
    pictures = {path.name for path in (uninterrupted / "figures").iterdir()}
    assert {f"{kind}-{i}.png" for kind in ("example", "hardest") for i in (1, 2, 3)} <= pictures
    assert list((uninterrupted / "tensorboard").rglob("events*"))
    text = (uninterrupted / "results.txt").read_text()
    assert "1 query image per class" in text and "inductive" in text


@pytest.fixture
def published(uninterrupted, tmp_path, monkeypatch):
    """Publishes the learner of a run as ``mine``."""
    models = tmp_path / "models"
    models.mkdir()
    monkeypatch.setenv("KERAS_MAML_MODELS", str(models))
    publish.publish(uninterrupted, "mine")


@pytest.mark.parametrize("from_run", [False, True], ids=["pretrained", "run"])
def test_a_run_can_begin_with_the_weights_of_another_learner(
    from_run, published, uninterrupted, tmp_path, monkeypatch
):
    initial, seen = str(uninterrupted) if from_run else "mine", []

    def train(this, learner, *rest):
        seen.extend(learner.model.get_weights())
        raise HaltError

    monkeypatch.setattr(image_classification, "train", train)
    settings = Settings(**TINY, initial_learner=initial)
    with pytest.raises(HaltError):
        image_classification.run(TINY_GLYPHS, settings, Files(output=str(tmp_path / "run")))
    weights = pretrained.load("mine").model.get_weights()
    assert len(seen) == len(weights) and all(map(np.array_equal, seen, weights))
    fresh = image_classification.make_learner(TINY_GLYPHS, settings).model.get_weights()
    assert not all(map(np.array_equal, seen, fresh))
    assert f"begun with the weights of {initial}, whose training comes on top" in (
        TINY_GLYPHS.departures(settings)
    )
    # A run that goes on has weights of its own and needs that learner no longer.
    monkeypatch.setattr(pretrained, "load", None)
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "epoch-000001.weights.h5").touch()
    with pytest.raises(HaltError):
        image_classification.run(TINY_GLYPHS, settings, Files(output=str(tmp_path / "run")))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"initial_learner": "yours"}, FileNotFoundError, "yours"),
        ({"ways": 3, "initial_learner": "mine"}, ValueError, r"\(8, 3\).* mine has .*\(8, 2\)"),
    ],
)
def test_a_run_begins_with_no_other_learner(published, tmp_path, changes, error, message):
    settings = Settings(**TINY | changes)
    with pytest.raises(error, match=message):
        image_classification.run(TINY_GLYPHS, settings, Files(output=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_a_damaged_initial_learner_is_named(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / pretrained.LEARNER).write_bytes(b"no archive")
    settings = Settings(**TINY, initial_learner=str(other))
    with pytest.raises(ValueError, match=r"other/learner\.keras cannot be loaded \("):
        image_classification.run(TINY_GLYPHS, settings, Files(output=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_what_is_validated_and_tested_is_the_average_of_the_weights(uninterrupted):
    settings = Settings(**TINY)
    tested = pretrained.read(uninterrupted / pretrained.LEARNER)
    sizes = {"ways": 2, "shots": 1, "queries": 1, "meta_batch_size": 2}
    validation = TINY_GLYPHS.load(None, split="validation").episodes(**sizes, tasks=2, seed=1)
    best = image_classification.make_learner(TINY_GLYPHS, settings)
    best.build_on(validation)
    best.load_weights(uninterrupted / "checkpoints" / "best.weights.h5")
    assert not np.array_equal(best.get_weights()[0], tested.get_weights()[0])
    best.optimizer.finalize_variable_values(best.trainable_variables)
    for ours, theirs in zip(best.get_weights(), tested.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    rows = read_csv(uninterrupted / "history.csv")
    chosen = max(rows, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    measured = tested.evaluate(validation, return_dict=True, verbose=0)
    assert measured["loss"] == pytest.approx(chosen["val_loss"], rel=1e-5)


def test_a_finished_run_is_shown_again_without_training(uninterrupted, monkeypatch, capsys):
    page = uninterrupted / "report.html"
    first = page.read_text()
    page.unlink()
    before = (uninterrupted / "results.json").read_bytes()
    monkeypatch.setattr(image_classification, "make_learner", None)
    files = Files(output=str(uninterrupted))
    record = image_classification.run(TINY_GLYPHS, Settings(**TINY), files)
    assert (uninterrupted / "results.json").read_bytes() == before
    assert record == json.loads(before)
    assert page.read_text() == first
    assert record["title"] in capsys.readouterr().out


if __name__ == "__main__":
    experiment = TINY_GLYPHS if sys.argv[1] not in PAPER else PAPER[sys.argv.pop(1)][0]
    image_classification.main(experiment, "")


@pytest.mark.slow
def test_two_workers_run_an_experiment_as_one_process_does(tmp_path):
    options = {"ways": 2, "meta-batch-size": 4, "iterations": 6, "epoch-iterations": 2}
    # Larger rates, and batch statistics of two images, amplify rounding.
    options |= {"inner-learning-rate": 0.01, "shots": 5}
    options |= {"validation-tasks": 4, "test-tasks": 8, "test-queries": 1}
    given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    for name, launch in ("one", []), ("two", ["keras_maml.launch", "--workers", "2", "-m"]):
        command = [sys.executable, "-m", *launch, "experiments.glyphs", "--no-convolutions", *given]
        subprocess.run([*command, "--output", str(tmp_path / name)], check=True, cwd=ROOT)
    files = [
        sorted(str(path.relative_to(tmp_path / name)) for path in (tmp_path / name).rglob("*.*"))
        for name in ("one", "two")
    ]
    one, two = ([name for name in found if "events" not in name] for found in files)
    assert one == two
    results, histories = [], []
    for name in ("one", "two"):
        results.append(json.loads((tmp_path / name / "results.json").read_text())["results"])
        histories.append(read_csv(tmp_path / name / "history.csv"))
    for of_one, of_two in zip(*histories, strict=True):
        for name in of_one.keys() - {"seconds"}:
            assert of_two[name] == pytest.approx(of_one[name], rel=1e-4, abs=1e-5)
    for of_one, of_two in zip(*results, strict=True):
        assert of_two == {
            name: value if isinstance(value, str) else pytest.approx(value, rel=1e-3, abs=1e-3)
            for name, value in of_one.items()
        }
