"""Comparisons: tables that follow from per-task accuracies, and trainings that go on."""

import dataclasses
import functools
import json
import shutil

import keras
import numpy as np
import pytest

from experiments import compare, glyphs, mini_imagenet, omniglot
from experiments.compare import Files, Settings
from experiments.shared.algorithms import ALGORITHMS, FAMILY, joined, with_context
from experiments.shared.comparison_table import summary, times
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


@pytest.fixture(scope="module", autouse=True)
def least_work():
    """A network that is traced quickly, and glyphs that are drawn once."""
    least = dataclasses.replace(
        glyphs.EXPERIMENT,
        load=functools.cache(glyphs.load),
        make_network=lambda settings: networks.fully_connected_classifier(
            settings.ways, units=(), seed=settings.seed
        ),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glyphs, "EXPERIMENT", least)
        yield


def run(folder, **changes):
    return compare.run(dataclasses.replace(TINY, **changes), Files(output=str(folder)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, without_xla, least_work):
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
        assert "first-order MAML" in content and "6 test tasks and 2 seeds" in " ".join(
            content.split()
        )
    record = json.loads((whole / "results.json").read_text())
    assert record["command"] and record["versions"]["keras"] and record["licence"]
    assert record["arguments"]["first-order"]["inner_learning_rate"] == 0.4
    assert record["arguments"]["anil"]["outer optimizer"] == "Adam 0.001" and "Adam 0.001" in page


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


@pytest.mark.slow
def test_an_interrupted_comparison_ends_with_the_same_table(whole, tmp_path, monkeypatch):
    def interrupting(function, call):
        calls = []

        def interrupted(*arguments):
            calls.append(arguments)
            if len(calls) == call:
                raise KeyboardInterrupt
            return function(*arguments)

        return interrupted

    folder = tmp_path / "cut"
    for owner, name, call in (
        (compare.Progress, "on_epoch_end", 2),  # in the first training
        (compare, "measure", 1),  # in its test
        (compare, "train", 2),  # after that, before the second training
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupting(getattr(owner, name), call))
            with pytest.raises(KeyboardInterrupt):
                run(folder, seeds=(0,))
        assert len([*folder.glob("*/result.json")]) == (name == "train")
    assert len(read_csv(folder / "anil-0" / "history.csv")) == 2
    (row, _) = run(folder, seeds=(0,))["results"]
    for path in folder.glob("*/result.json"):
        assert path.read_bytes() == (whole / path.relative_to(folder)).read_bytes()
    accuracy = json.loads((whole / "anil-0" / "result.json").read_text())["accuracy"]
    assert summary([accuracy]).items() <= row.items()


def test_a_finished_comparison_is_extended_without_training_again(
    whole, tmp_path, monkeypatch, capsys
):
    folder = shutil.copytree(whole, tmp_path / "more")
    files = [path for path in folder.glob("*-?/**/*") if path.is_file()]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    assert len(before) == 4 * 4
    more = (*TINY.algorithms, "maml")
    run(folder, algorithms=more)
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in files} == before
    assert results(folder)[:2] == results(whole)
    assert (folder / "maml-1" / "result.json").exists() and (folder / "results-1.json").exists()
    monkeypatch.setattr(compare, "train", None)
    capsys.readouterr()
    run(folder, algorithms=more)
    assert "first-order MAML" in capsys.readouterr().out
    # Another accuracy to reach needs no training either; fewer algorithms are another comparison.
    run(folder, algorithms=more, target_accuracy=2.0)
    assert [row["target_seconds"] for row in results(folder)] == [None] * 3
    with pytest.raises(FileExistsError, match="algorithms"):
        run(folder)


@pytest.mark.slow
def test_more_iterations_continue_every_training(whole, tmp_path):
    run(tmp_path, algorithms=("anil",), seeds=(0,), iterations=2)
    run(tmp_path, algorithms=("anil",), seeds=(0,))
    ours, theirs = (folder / "anil-0" / "result.json" for folder in (tmp_path, whole))
    assert ours.read_bytes() == theirs.read_bytes()


def test_training_that_is_not_finite_is_a_result_and_ends_nothing(tmp_path, monkeypatch):
    diverging = dataclasses.replace(
        ALGORITHMS["maml"], departures=lambda settings: {"inner_learning_rate": 1e38}
    )
    monkeypatch.setitem(ALGORITHMS, "maml", diverging)
    record = run(tmp_path / "run", algorithms=("maml", "anil"), seeds=(0,), test_tasks=2)
    assert [row["stopped"] for row in record["results"]] == [1, 0]
    assert "Training met a loss that was not finite" in (tmp_path / "run/report.html").read_text()


class Steps:
    """A learner whose steps take seconds: 100 where they are compiled, else 1."""

    stop_training = False
    train_function = "first program"


def epoch_on(clock, steps, seconds, now):
    """Lets a clock see an epoch, or the part until it ends training; returns what it logs."""
    clock.on_epoch_begin(0)
    for step in range(steps):
        clock.on_train_batch_begin(step)
        now[0] += next(seconds)
        clock.on_train_batch_end(step, {})
        if clock.model.stop_training:
            break
    now[0] += 1000  # validation
    logs = {}
    clock.on_epoch_end(0, logs)
    return logs | {"iterations": step + 1}


def test_the_clock_counts_steps_alone_and_stops_at_its_limit(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("experiments.shared.training_clock.time.monotonic", lambda: now[0])
    clock = TrainingClock(limit=12.0)
    clock.set_model(Steps())
    history = [epoch_on(clock, 4, iter([100, 1, 1, 4]), now)]
    assert history[0] == {"step_seconds": 2.0, "warming_up": 1.0, "iterations": 4}
    assert clock.seconds == 8.0 and not clock.expired
    clock.model.train_function = "another program"  # such as that of another meta-gradient
    history.append(epoch_on(clock, 4, iter([100, 1.5, 1.5, 1.5]), now))
    assert clock.expired and clock.model.stop_training
    assert history[1] == {"step_seconds": 1.5, "warming_up": 0.0, "iterations": 3}
    history[1]["iterations"] += 4
    np.testing.assert_allclose(training_seconds(history), [8.0, 12.5])
    assert step_seconds([history]) == 1.5 and step_seconds([history[:1]]) == 2.0
    assert step_seconds([[]]) is None


@pytest.mark.parametrize(("steps", "stops_after"), [(0, 4), (2, 2)])
def test_the_clock_goes_on_where_other_processes_ended(monkeypatch, steps, stops_after):
    now = [0.0]
    monkeypatch.setattr("experiments.shared.training_clock.time.monotonic", lambda: now[0])
    clock = TrainingClock(limit=12.0)
    clock.set_model(Steps())
    clock.resume([{"iterations": 4.0, "step_seconds": 2.0}], steps, {"step_seconds": 1.0})
    assert clock.seconds == 8.0 + steps
    logs = epoch_on(clock, 10, iter([100, *[1.0] * 9]), now)
    assert logs["iterations"] == {0: 4, 2: 2}[steps]


@pytest.mark.slow
def test_equal_time_ends_training_within_an_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingClock, "_elapsed", lambda clock: 1.0)
    record = run(
        tmp_path, algorithms=("anil",), seeds=(0,), minutes=5 / 60, iterations=2, epoch_iterations=2
    )
    (row,) = record["results"]
    assert (row["iterations"], row["train_seconds"], row["step_seconds"]) == (5, 5, 1)
    assert "Training ended after 0.0833333 minutes" in (tmp_path / "report.html").read_text()
    path = tmp_path / "anil-0" / "result.json"
    before = path.read_bytes()
    path.unlink()  # as if the process had been killed in the test: there is no time left to train
    (tmp_path / "results.json").unlink()
    assert run(
        tmp_path, algorithms=("anil",), seeds=(0,), minutes=5 / 60, iterations=2, epoch_iterations=2
    )["results"] == [row]
    assert path.read_bytes() == before


def test_times_are_those_of_trainings_and_of_the_first_epoch_that_reached_the_target():
    def history(step, *accuracies):
        return [
            {
                "iterations": 10.0 * (i + 1),
                "step_seconds": step,
                "warming_up": 0.0,
                "val_accuracy": a,
            }
            for i, a in enumerate(accuracies)
        ]

    quick, slow = history(1.0, 0.5, 0.9, 0.8), history(2.0, 0.5, 0.7)
    row = times([quick, slow, quick], 0.9)
    assert row["target_seconds"] == 20.0 and row["step_seconds"] == 1.0
    assert row["iterations"] == 80 / 3 and row["train_seconds"] == 100 / 3
    assert times([quick, slow, slow], 0.9)["target_seconds"] is None  # the median is never
    none = {"iterations": 0.0, "train_seconds": 0.0, "step_seconds": None, "target_seconds": None}
    assert times([[]], 0.9) == none


@pytest.mark.parametrize(
    ("changes", "data", "message"),
    [
        ({"algorithms": ("maml", "mamba")}, None, r"'maml', 'first-order', 'anil'.*got 'mamba'\."),
        ({"algorithms": ()}, None, "algorithms must be one or several different ones"),
        ({"seeds": (1, 1)}, None, "seeds must be one or several different ones"),
        ({"seeds": (-1,)}, None, "seeds must be an integer of at least 0"),
        ({"glyphs": False}, None, "Give either --data, .* or --glyphs, not neither"),
        ({}, "folder", "Give either --data, .* or --glyphs, not both"),
        ({"mini_imagenet": True}, None, "Give --glyphs or --mini-imagenet"),
        ({"minutes": 0.0}, None, "minutes must be a finite number above 0"),
        ({"target_accuracy": -1.0}, None, "target_accuracy must be a finite number above 0"),
        ({"batch_normalization": "none"}, None, "batch_normalization must be"),
        ({"iterations": 3}, None, "iterations must be a multiple of 2"),
        ({"ways": 1_000}, None, "1000"),
        ({"test_queries": 500}, None, "500"),
    ],
)
def test_what_cannot_be_compared_fails_before_anything_is_written(tmp_path, changes, data, message):
    settings = dataclasses.replace(TINY, **changes)
    with pytest.raises(ValueError, match=message):
        compare.run(settings, Files(data, str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def parse(monkeypatch, *options):
    """Returns the settings and files that a command would run with."""
    seen = []
    monkeypatch.setattr(compare, "run", lambda *arguments: seen.append(arguments))
    monkeypatch.setattr("sys.argv", ["compare", *options])
    compare.main()
    ((settings, files),) = seen
    assert type(settings) is Settings
    return settings, files


def test_defaults_are_those_of_data_and_sizes(monkeypatch):
    settings, _ = parse(monkeypatch, "--glyphs")
    assert settings.glyphs and settings.algorithms == FAMILY
    assert (settings.iterations, settings.filters, settings.meta_batch_size) == (1_000, 32, 8)
    options = ["--data", "x", "--ways", "20", "--algorithms", "maml", "cavia", "--seeds", "7"]
    settings, files = parse(monkeypatch, *options, "--minutes", "1.5", "--inner-steps", "1")
    assert not settings.glyphs and files.data == "x" and settings.minutes == 1.5
    assert (settings.algorithms, settings.seeds) == (("maml", "cavia"), (7,))
    assert (settings.meta_batch_size, settings.inner_steps, settings.evaluation_steps) == (16, 1, 5)
    common = compare.of_images(settings, seed=7)
    assert (common.ways, common.inner_steps, common.seed) == (20, 1, 7)
    settings, _ = parse(monkeypatch, "--mini-imagenet", "--data", "x", "--shots", "5")
    assert (settings.filters, settings.meta_batch_size, settings.evaluation_steps) == (32, 2, 10)
    assert compare.experiment_of(settings) is mini_imagenet.EXPERIMENT
    assert compare.of_images(settings).clip_gradient == 10 * 5 / (5 * 15)


def test_the_plan_says_how_much_it_is():
    text = compare.plan(TINY, "folder")
    assert "4 trainings of 4 meta-iterations (16 in all), 2 tasks" in text and "folder" in text
    text = compare.plan(dataclasses.replace(TINY, minutes=45), "folder")
    assert "4 trainings of 45 minutes (3.0 hours in all" in text


def learner_of(name):
    settings = compare.of_images(dataclasses.replace(TINY, inner_steps=2))
    network = networks.omniglot_classifier(2, filters=2, seed=0)
    return ALGORITHMS[name].make_learner(network, settings)


@pytest.mark.parametrize(
    ("name", "meta_gradient", "rule", "adapted"),
    [
        ("maml", meta_gradients.Exact, update_rules.GradientDescent, "all"),
        ("first-order", meta_gradients.FirstOrder, update_rules.GradientDescent, "all"),
        ("anil", meta_gradients.Exact, update_rules.GradientDescent, "head"),
        ("boil", meta_gradients.Exact, update_rules.GradientDescent, "body"),
        ("meta-sgd", meta_gradients.Exact, update_rules.MetaSGD, "all"),
        ("meta-curvature", meta_gradients.Exact, update_rules.MetaCurvature, "all"),
        ("maml++", meta_gradients.Exact, update_rules.PerLayerPerStep, "all"),
        ("reptile", meta_gradients.Reptile, update_rules.Adam, "all"),
        ("imaml", meta_gradients.Implicit, update_rules.GradientDescent, "all"),
        ("cavia", meta_gradients.Exact, update_rules.GradientDescent, None),
    ],
)
def test_the_learners_are_those_of_the_family(name, meta_gradient, rule, adapted):
    learner = learner_of(name)
    assert type(learner) is MAML and not learner.measure_before
    assert type(learner.meta_gradient) is meta_gradient and type(learner.update_rule) is rule
    assert learner.first_order == (name == "first-order")
    assert (type(learner.query_loss) is query_losses.MultiStep) == (name == "maml++")
    per_step = [isinstance(layer, PerStepBatchNormalization) for layer in learner.model.layers]
    assert any(per_step) == (name == "maml++")
    assert type(learner.optimizer) is {"reptile": keras.optimizers.SGD}.get(
        name, keras.optimizers.Adam
    )
    if adapted:
        assert learner.adapted_layers == adapted
    else:
        assert [tuple(v.shape) for v in learner.partition().initial] == [(100,)]
    assert learner.batch_normalization == "transductive"


def test_a_network_with_context_begins_as_it_was():
    network = networks.omniglot_classifier(3, filters=4, seed=0)
    images = np.random.default_rng(0).uniform(size=(5, 28, 28, 1))
    expected = network(images).numpy()
    told = with_context(network)
    np.testing.assert_allclose(told(images), expected, rtol=1e-5, atol=1e-6)
    (context,) = [v for v in told.trainable_variables if v.shape == (100,)]
    context.assign(np.random.default_rng(1).normal(size=100))
    assert np.max(np.abs(told(images) - expected)) > 1e-3
    with pytest.raises(ValueError, match="batch normalisation"):
        with_context(networks.sinusoid_regressor())


def test_an_episode_is_joined_to_a_support_set():
    support, query = next(iter(episodes.glyphs(ways=2, shots=1, queries=3, meta_batch_size=4)))
    ((x, y),) = joined(support, query)
    assert x.shape == (4, 8, 28, 28, 1) and y.shape == (4, 8)
    np.testing.assert_array_equal(x[:, 2:], query[0])
    np.testing.assert_array_equal(y[:, :2], support[1])


@pytest.mark.slow
def test_all_algorithms_run_on_glyphs(tmp_path, monkeypatch):
    papers = dataclasses.replace(glyphs.EXPERIMENT, make_network=omniglot.make_network)
    monkeypatch.setattr(glyphs, "EXPERIMENT", papers)
    record = run(
        tmp_path,
        algorithms=tuple(ALGORITHMS),
        seeds=(0,),
        filters=4,
    )
    assert [row["algorithm"] for row in record["results"]] == list(ALGORITHMS)
    assert not any(row["stopped"] for row in record["results"])
