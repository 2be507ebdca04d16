"""The command line does what its commands say, and fails without tracebacks."""

import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

import keras_maml
from keras_maml import cli, episodes, pretrained

NAME = "omniglot-5way-1shot"


def run(capsys, *arguments):
    """Returns the exit code, standard output and standard error of a command."""
    code = cli.main([*map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """Two folders of five drawn characters, dark on white: one image to learn, one to name."""
    folder = tmp_path_factory.mktemp("letters")
    glyphs = episodes.load_glyphs("test")
    starts = np.cumsum((0, *glyphs.counts))[:5]
    for place, offset in (("known", 0), ("new", 1)):
        for name, start in zip("abcde", starts, strict=True):
            path = folder / place / name
            path.mkdir(parents=True)
            Image.fromarray(255 - glyphs.images[start + offset, :, :, 0]).save(path / "1.png")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_MAML_CACHE", str(tmp_path / "cache"))


def test_info_lists_the_learners(capsys):
    code, out, _ = run(capsys, "info")
    assert (code, out.split()) == (0, pretrained.available())


def test_info_shows_shapes_and_the_accuracy_of_the_card(capsys):
    code, out, _ = run(capsys, "info", NAME, "--json")
    report = json.loads(out)
    assert (code, report["inputs"], report["outputs"]) == (0, [28, 28, 1], [5])
    assert report["weights"] == 112_005
    assert report["accuracy"] == pretrained.card(NAME)["accuracy"]
    assert "99.30 ± 0.25 %, 1000 tasks" in run(capsys, "info", NAME)[1]


def test_adapt_names_new_pictures(capsys, letters, tmp_path):
    pictures = [letters / "new" / name / "1.png" for name in "edcba"]
    output = tmp_path / "adapted.keras"
    command = ["adapt", NAME, letters / "known", "--invert", "--json", "--output", output]
    code, out, _ = run(capsys, *command, "--predict", *pictures)
    report = json.loads(out)
    assert code == 0
    assert report["classes"] == dict.fromkeys("abcde", 1)
    found = [prediction["class"] for prediction in report["predictions"]]
    assert sum(a == b for a, b in zip(found, "edcba", strict=True)) >= 4, found
    assert all(
        np.isclose(sum(prediction["probabilities"].values()), 1)
        for prediction in report["predictions"]
    )
    # What is saved predicts the same, one picture at a time: nothing depends on the others.
    adapted = keras.models.load_model(output)
    image = 1 - np.asarray(Image.open(pictures[0]), "float32")[None, :, :, None] / 255
    chances = keras.ops.softmax(adapted.predict(image, verbose=0))[0]
    expected = [*report["predictions"][0]["probabilities"].values()]
    np.testing.assert_allclose(chances, expected, atol=1e-5)


class Linear(keras.Model):
    """Scores of five classes, of a class of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(5)

    def call(self, x):
        return self.dense(keras.ops.reshape(x, (-1, 28 * 28)))


def normalized():
    """Returns a model whose normalisation knows other data than pictures between 0 and 1."""
    normalization = keras.layers.Normalization(axis=None)
    normalization.adapt(np.float32([-3, 2]))
    head = [keras.layers.BatchNormalization(), keras.layers.Flatten(), keras.layers.Dense(5)]
    return keras.Sequential([keras.Input((28, 28, 1)), normalization, *head])


@pytest.mark.parametrize("make_model", [normalized, Linear])
def test_adapt_keeps_what_a_learner_has_learned(capsys, letters, monkeypatch, make_model):
    keras.utils.set_random_seed(0)
    learner = keras_maml.MetaSGD(make_model(), evaluation_steps=2)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile(loss=loss, run_eagerly=True)
    learner.build_on(episodes.glyphs(ways=5))
    for rate in learner.update_rule.trainable_variables:
        rate.assign(keras.random.uniform(rate.shape, 0, 0.2, seed=1))
    monkeypatch.setattr(cli, "_load", lambda name: (learner, {}))
    report = json.loads(run(capsys, "info", "learner", "--json")[1])
    assert (report["inputs"], report["outputs"]) == ([28, 28, 1], [5])

    def pictures(place):
        paths = [letters / place / name / "1.png" for name in "abcde"]
        return paths, np.stack([np.float32(Image.open(path)) / 255 for path in paths])[..., None]

    (_, x_support), (paths, x_query) = pictures("known"), pictures("new")
    for option, how in (([], "inductive"), (["--transductive"], "transductive")):
        command = ["adapt", "learner", letters / "known", *option, "--json", "--predict", *paths]
        code, out, _ = run(capsys, *command)
        assert code == 0
        report = json.loads(out)
        labels = np.array([[*report["classes"]].index(name) for name in "abcde"])
        adapted = learner.adapt(x_support, labels, batch_normalization=how)
        expected = keras.ops.softmax(adapted.predict(x_query, verbose=0))
        found = [[*p["probabilities"].values()] for p in report["predictions"]]
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("outputs", [5, 6, 1])
def test_a_classifier_that_gives_probabilities(capsys, letters, monkeypatch, outputs):
    head = [keras.layers.Flatten(), keras.layers.Dense(outputs, "softmax")]
    learner = keras_maml.MAML(keras.Sequential([keras.Input((28, 28, 1)), *head]), 0.1)
    learner.compile(loss="categorical_crossentropy", run_eagerly=True)
    monkeypatch.setattr(cli, "_load", lambda name: (learner, {}))
    place = letters / "known"
    paths = [place / name / "1.png" for name in "abcde"]
    code, out, err = run(capsys, "adapt", "learner", place, "--json", "--predict", *paths)
    if outputs == 1:
        assert code == 1 and "gives [1], not one score for each class" in err
        return
    report = json.loads(out)
    order = [*report["classes"]]
    labels = np.eye(outputs)[[order.index(name) for name in "abcde"]]
    x = np.stack([np.float32(Image.open(path)) / 255 for path in paths])[..., None]
    expected = learner.adapt(x, labels).predict(x, verbose=0)[:, :5]
    found = [[*p["probabilities"].values()] for p in report["predictions"]]
    np.testing.assert_allclose(found, expected / expected.sum(-1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("how", ["inductive", "transductive"])
def test_what_cannot_be_written_leaves_the_old_file(capsys, letters, tmp_path, monkeypatch, how):
    def save(model, path, **kwargs):
        pathlib.Path(path).write_text("half")
        raise OSError("No space left on device")

    monkeypatch.setattr(keras.Model, "save", save)
    output = tmp_path / "adapted.keras"
    output.write_text("precious")
    command = ["adapt", NAME, letters / "known", "--output", output]
    option = ["--transductive"] if how == "transductive" else []
    code, _, err = run(capsys, *command, *option)
    assert code == 1
    assert "No space left" in err
    assert [path.read_text() for path in tmp_path.glob("*keras")] == ["precious"]


@pytest.mark.parametrize("predict", [True, False])
def test_what_is_not_finite_is_neither_said_nor_saved(
    capsys, letters, tmp_path, monkeypatch, predict
):
    learner = keras_maml.MAML(Linear(), 1e38, evaluation_steps=3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile(loss=loss, run_eagerly=True)
    learner.build_on(episodes.glyphs(ways=5))
    monkeypatch.setattr(cli, "_load", lambda name: (learner, {}))
    command = ["adapt", "learner", letters / "known", "--output", tmp_path / "a.keras"]
    option = ["--predict", letters / "new/a/1.png"] if predict else []
    code, out, err = run(capsys, *command, *option)
    assert (code, out) == (1, "")
    assert "not finite: take fewer --steps" in err
    assert not (tmp_path / "a.keras").exists()


@pytest.mark.parametrize("output", ["nowhere/a.keras", "a.keras"])
def test_where_nothing_can_be_written_is_said_before_anything_is_loaded(capsys, tmp_path, output):
    (tmp_path / "a.keras").mkdir()
    code, _, err = run(capsys, "adapt", "nothing", "letters", "--output", tmp_path / output)
    assert code == 1
    assert f"{output} cannot be a file" in err


def test_evaluate_agrees_with_the_library(capsys, tmp_path):
    image = keras.Input((28, 28, 1))
    scores = keras.layers.Dense(3)(keras.layers.Flatten()(image))
    learner = keras_maml.MAML(keras.Model(image, scores), 0.1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile(loss=loss, metrics=["accuracy"])
    learner.build_on(episodes.glyphs(ways=3))
    learner.save(tmp_path / "learner.keras")
    command = ["evaluate", tmp_path, "glyphs", "--tasks", 8, "--steps", 1, "--queries", 2, "--json"]
    code, out, _ = run(capsys, *command)
    data = episodes.glyphs(split="test", ways=3, queries=2, meta_batch_size=8)
    expected = keras_maml.evaluation.evaluate(learner, data, tasks=8, steps=1)
    assert code == 0
    for row, other in zip(json.loads(out)["results"], expected.rows(), strict=True):
        assert row["step"] == other["step"]
        np.testing.assert_allclose(row["mean"], other["mean"], rtol=1e-4)


def test_curves_have_as_many_points_as_where_learners_are_trained_on_them():
    values = cli.parser().parse_args(["evaluate", "learner.keras", "sinusoid"])
    (x_support, _), _ = cli._episodes(values, keras_maml.MAML(keras.Model()), {}).element_spec
    assert x_support.shape == (8, *episodes.sinusoid().element_spec[0][0].shape[1:])


def test_evaluate_takes_a_folder_and_counts_its_images(capsys, letters):
    code, _, err = run(capsys, "evaluate", NAME, letters / "known", "--tasks", 1)
    assert code == 1
    assert "needs at least shots + queries = 1 + 1 = 2 examples" in err


def test_a_learner_may_be_a_file_or_a_folder(capsys):
    folder = pretrained.models_folder() / NAME
    by_name, by_folder, by_file = (
        json.loads(run(capsys, "info", learner, "--json")[1])
        for learner in (NAME, folder, folder / pretrained.LEARNER)
    )
    assert by_folder == {**by_name, "learner": str(folder)}
    assert (by_file["weights"], by_file["accuracy"]) == (by_name["weights"], [])


def test_export_writes_once(capsys, tmp_path):
    line = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    learner = keras_maml.MAML(line, inner_learning_rate=0.1)
    learner.compile(loss="mean_squared_error")
    learner.adapt(np.ones([2, 1], "float32"), np.ones([2, 1], "float32"))
    learner.save(tmp_path / "line.keras")
    command = ["export", tmp_path / "line.keras", tmp_path / "served/1"]
    assert run(capsys, *command)[0] == 0
    assert (tmp_path / "served/1/saved_model.pb").is_file()
    code, out, err = run(capsys, *command)
    assert (code, out) == (1, "")
    assert "already holds a SavedModel" in err
    assert run(capsys, *command, "--overwrite")[0] == 0


@pytest.mark.slow
def test_demo_draws_and_saves(capsys, tmp_path):
    command = ["demo", "--iterations", 3, "--output", tmp_path / "demo", "--json"]
    code, out, _ = run(capsys, *command)
    report = json.loads(out)
    assert code == 0
    assert [row["step"] for row in report["results"]] == [*range(11)]
    with Image.open(tmp_path / "demo/adaptation.png") as picture:
        assert picture.size[0] > 100
    assert run(capsys, "info", tmp_path / "demo")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "nothing"], "holds no pretrained learner 'nothing'. There are: mini-imagenet"),
        (["info", "no/where"], "There is no learner no/where"),
        (["info", "tests/.."], "no folder that holds learner.keras"),
        (["evaluate", NAME, "nothing"], "There are no data nothing: expected glyphs, sinusoid"),
        (["adapt", NAME, "nowhere"], "nowhere is none"),
        (["evaluate", NAME, "sinusoid", "--tasks", "1"], "."),
    ],
)
def test_errors_are_one_message(capsys, arguments, message):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (1, "")
    assert message in err
    assert err.startswith("keras-maml: ")
    assert "Traceback" not in err


def test_too_many_classes_are_said(capsys, letters, tmp_path):
    for name in "abcdef":
        (tmp_path / "six" / name).mkdir(parents=True)
        Image.new("L", (28, 28)).save(tmp_path / "six" / name / "1.png")
    code, _, err = run(capsys, "adapt", NAME, tmp_path / "six")
    assert code == 1
    assert f"holds 6 classes, but {NAME} tells 5 apart" in err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["evaluate", NAME, "glyphs", "--tasks", "0"],
        ["adapt", NAME, "letters", "--output", "adapted.h5"],
    ],
)
def test_wrong_usage_exits_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    assert "usage: keras-maml" in capsys.readouterr().err


def test_the_package_is_a_program():
    command = [sys.executable, "-m", "keras_maml", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == keras_maml.__version__
