"""Pretrained learners: what is published loads, is small, says what it is, and adapts."""

import json
import pathlib
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from zoo import slow

import keras_maml
from experiments import publish
from experiments.shared.report import images as report
from keras_maml import MAML, episodes, evaluation, networks, pretrained

WAYS = 3
PUBLISHED = pretrained.available()
OTHERS = [name for name in PUBLISHED if name != "omniglot-5way-1shot"]


@pytest.fixture(scope="module")
def learner():
    """A small learner, hardly trained."""
    learner = MAML(
        networks.fully_connected_classifier(WAYS, units=(32, 32), seed=0), 1.0, evaluation_steps=3
    )
    learner.compile(
        optimizer=keras.optimizers.Adam(0.005, clipvalue=0.5),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    train(learner, 2)
    return learner


def train(learner, steps):
    training = episodes.glyphs(ways=WAYS, queries=5, meta_batch_size=16)
    learner.fit(training, steps_per_epoch=steps, verbose=0)


@pytest.fixture
def card():
    score = {"queries": 1, "batch_normalization": "transductive", "metric": "accuracy"}
    score |= {"tasks": 10, "ci95": 0.0123}
    return {
        "title": "Glyphs",
        "command": "python -m experiments.glyphs",
        "commit": "abc",
        "date": "2026-01-01",
        "versions": {"keras": "3"},
        "data": "glyphs",
        "licence": "free",
        "images": "28 x 28 x 1, ink 1 on paper 0",
        "published": None,
        "departures": ["cut short: 150 of 600 iterations"],
        "train_hours": 0.01,
        "iterations_of_best_epoch": 150.0,
        "settings": {
            "ways": WAYS,
            "shots": 1,
            "evaluation_steps": 3,
            "iterations": 150,
            "batch_normalization": "transductive",
            "test_tasks": 10,
        },
        "results": [
            score | {"step": step, "mean": mean + 0.04321 * step} | mode
            for mode, mean in (({}, 0.5), ({"batch_normalization": "inductive"}, 0.4))
            for step in range(11)
        ],
    }


@pytest.fixture
def folder(tmp_path, learner, card):
    """A folder of pretrained learners with one in it, published from a run."""
    run, models = tmp_path / "run", tmp_path / "models"
    run.mkdir()
    models.mkdir()
    learner.save(run / "learner.keras")
    (run / "results.json").write_text(json.dumps(card))
    (run / "settings.json").write_text(json.dumps(card["settings"]))
    publish.publish(run, "glyphs", models)
    return models


def accuracy(learner, ways, size=28, channels=1):
    """Adapts to freshly drawn glyphs, as large as the learner's images."""
    fresh = episodes.glyphs(
        split="test", ways=ways, queries=5, seed=99, meta_batch_size=8, tasks=40
    )

    def resize(support, query):
        def one(x, y):
            tasks, examples = x.shape[:2]
            x = tf.image.resize(tf.reshape(x, [-1, *x.shape[2:]]), [size, size])
            return tf.reshape(
                tf.repeat(x, channels, -1), [tasks, examples, size, size, channels]
            ), y

        return one(*support), one(*query)

    result = evaluation.evaluate(
        learner, fresh.map(resize), tasks=40, batch_normalizations=[learner.batch_normalization]
    )
    return result.curve("accuracy")


@pytest.mark.slow
def test_a_learner_trained_for_seconds_adapts_to_freshly_drawn_glyphs(folder):
    loaded = keras_maml.load("glyphs", folder)
    train(loaded, 150)
    curve = accuracy(loaded, WAYS)
    assert curve[0] < 0.5 and curve[-1] > 0.7


def test_what_is_loaded_is_what_was_published(folder, learner):
    loaded = keras_maml.load("glyphs", folder)
    ours, theirs = loaded.get_config(), learner.get_config()
    for name in ("inner_learning_rate", "inner_steps", "evaluation_steps"):
        assert ours[name] == theirs[name]
    for a, b in zip(loaded.model.get_weights(), learner.model.get_weights(), strict=True):
        assert np.array_equal(a, b)
    settings = loaded.optimizer.get_config()
    assert settings["clipvalue"] == 0.5 and settings["learning_rate"] == pytest.approx(0.005)
    assert int(loaded.optimizer.iterations) == 0


def test_the_optimizer_stays_behind(folder, learner):
    with zipfile.ZipFile(folder / "glyphs" / "learner.keras") as archive:
        size = archive.getinfo("model.weights.h5").file_size
    assert 4 * learner.model.count_params() <= size < 8 * learner.model.count_params()


@keras.saving.register_keras_serializable("tests")
class Table(keras.layers.Layer):
    """A layer with a state of its own, which is no weight."""

    table = np.zeros(2, "float32")

    def call(self, x):
        return x + self.table

    def save_own_variables(self, store):
        store["table"] = self.table

    def load_own_variables(self, store):
        self.table = np.array(store["table"])


@keras.saving.register_keras_serializable("tests")
class Network(keras.Model):
    """A subclass, whose variables are made when it is called."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.normalization = keras.layers.Dense(2), keras.layers.BatchNormalization()

    def call(self, x, training=None):
        return self.normalization(self.dense(x), training=training)

    def get_config(self):
        return {}


def texts():
    lookup, table = keras.layers.StringLookup(max_tokens=4, output_mode="one_hot"), Table()
    lookup.adapt(["red", "green", "green"])
    table.table = np.ones(2, "float32")
    text = keras.Input((1,), dtype="string")
    return keras.Sequential([text, lookup, keras.layers.Dense(2), table])


@pytest.mark.parametrize(
    ("model", "x"), [(Network, [[0.0, 1.0], [2.0, 3.0]]), (texts, [["red"], ["blue"]])]
)
def test_all_of_a_learner_is_published(tmp_path, model, x):
    how = {"inner_steps": 2, "per_step_batch_normalization": False}
    learner, x = keras_maml.MAMLPlusPlus(model(), 0.1, **how), tf.constant(x)
    learner.compile("sgd", "mean_squared_error", run_eagerly=True)
    learner.adapt(x, tf.zeros([2, 2]))
    learner.query_loss.variables[0].assign(7)
    pretrained.save(learner, tmp_path / "new", {}, "")
    loaded = keras_maml.load("new", tmp_path)
    assert np.array_equal(loaded(x), learner(x))
    assert loaded.query_loss.variables[0] == 7


@keras.saving.register_keras_serializable("tests")
class Unbuilt(Network):
    """A subclass whose variables Keras cannot make before it reads their values."""

    def build(self, shape):
        self.built = True


def test_a_learner_that_is_loaded_with_other_weights_replaces_none(folder):
    learner = MAML(Unbuilt())
    learner.compile("sgd", "mean_squared_error", run_eagerly=True)
    learner.adapt(tf.ones([2, 2]), tf.zeros([2, 2]))
    before = pretrained.card("glyphs", folder)
    with pytest.raises(ValueError, match="Unbuilt .*build|cannot be loaded"):
        pretrained.save(learner, folder / "glyphs", {"new": True}, "", replace=True)
    assert pretrained.card("glyphs", folder) == before


def test_a_learner_that_could_not_be_loaded_replaces_none(folder):
    class Unknown(keras.layers.Dense):
        """A class that is not registered."""

    learner = MAML(keras.Sequential([keras.Input((1,)), Unknown(1)]))
    learner.compile("sgd", "mean_squared_error")
    before = pretrained.card("glyphs", folder)
    with pytest.raises(ValueError, match="(?s)cannot be loaded: register .*Unknown"):
        pretrained.save(learner, folder / "glyphs", {"new": True}, "", replace=True)
    assert pretrained.card("glyphs", folder) == before
    assert [item.name for item in folder.iterdir()] == ["glyphs"]


def test_the_card_has_the_numbers_of_the_run(folder, card):
    text = (folder / "glyphs" / "card.md").read_text()
    for step in (0, 1, 3, 10):
        assert f"{100 * (0.5 + 0.04321 * step):.2f} ± 1.23 %" in text
    assert (
        "\nAs it is loaded (inductive, for one picture at a time): 52.96 ± 1.23 % after 3" in text
    )
    assert "\nAs its run is judged (transductive): Glyphs: 62.96 ± 1.23 % after 3 steps" in text
    assert card["command"] in text and "cut short: 150 of 600 iterations" in text
    assert "| images | float32, 28 x 28 x 1, ink 1 on paper 0 |" in text
    known = pretrained.card("glyphs", folder)
    assert known["accuracy"] == card["results"] and known["licence"] == "free"


def test_nothing_is_replaced_unasked(folder):
    path = folder / "glyphs"
    run = folder.parent / "run"
    before = (path / "card.json").read_bytes()
    (run / "results.json").write_text((run / "results.json").read_text().replace("abc", "def"))
    with pytest.raises(FileExistsError, match="is there already. Choose another name"):
        publish.publish(run, "glyphs", folder)
    assert (path / "card.json").read_bytes() == before
    publish.main([str(run), "glyphs", "--folder", str(folder), "--replace"])
    assert pretrained.card("glyphs", folder)["commit"] == "def"
    assert [item.name for item in folder.iterdir()] == ["glyphs"]  # and nothing half-written


def test_a_run_from_before_images_were_described_is_published(folder, card):
    del card["images"]
    run = folder.parent / "run"
    (run / "results.json").write_text(json.dumps(card))
    publish.publish(run, "older", folder)
    assert "| images | float32, 28 x 28 x 1 in 0 .. 1 |" in (folder / "older/card.md").read_text()


def test_a_run_of_something_else_is_not_published(folder, capsys):
    run = folder.parent / "run"
    (run / "results.json").write_text(json.dumps({"settings": {}, "results": []}))
    (run / "settings.json").write_text("{}")
    with pytest.raises(SystemExit) as exit_:
        publish.main([str(run), "name", "--folder", str(folder)])
    assert exit_.value.code == 2
    assert (
        "no run of image classification: its results.json has no title" in capsys.readouterr().err
    )


@pytest.mark.parametrize("moment", [1, 2], ids=["the old one is aside", "the new one is in place"])
def test_killed_while_it_is_replaced_a_learner_is_still_there(folder, monkeypatch, learner, moment):
    path, rename, done = folder / "glyphs", pathlib.Path.rename, []

    def die(self, target):
        rename(self, target)
        done.append(target)
        if len(done) == moment:
            raise KeyboardInterrupt

    before = pretrained.card("glyphs", folder)
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "rename", die)
        with pytest.raises(KeyboardInterrupt):
            pretrained.save(learner, path, {"new": True}, "", replace=True)
    assert path.exists() == (moment == 2)
    card = pretrained.card("glyphs", folder)
    assert card == before if moment == 1 else card["new"]
    assert pretrained.available(folder) == ["glyphs"]
    assert keras_maml.load("glyphs", folder).model.count_params() == learner.model.count_params()
    with pytest.raises(FileExistsError, match="is there already"):
        pretrained.save(learner, path, {}, "")
    pretrained.save(learner, path, {"newer": True}, "", replace=True)
    assert pretrained.card("glyphs", folder)["newer"]
    assert [item.name for item in folder.iterdir()] == ["glyphs"]


def test_a_run_that_has_not_finished_is_not_published(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        publish.main([str(tmp_path), "name", "--folder", str(tmp_path)])
    assert exit_.value.code == 2
    assert "only a run that has finished can be published" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_results_of_a_shorter_run_are_not_published_with_a_longer_ones_learner(folder, card):
    run = folder.parent / "run"
    (run / "settings.json").write_text(json.dumps(card["settings"] | {"iterations": 300}))
    with pytest.raises(FileNotFoundError, match="only a run that has finished"):
        publish.publish(run, "longer", folder)
    assert pretrained.available(folder) == ["glyphs"]


def test_a_run_that_was_shown_again_with_newer_settings_is_published(folder, card):
    run = folder.parent / "run"
    settings = json.loads((run / "settings.json").read_text())
    (run / "settings.json").write_text(json.dumps(settings | {"cooldown_iterations": 0}))
    assert "cooldown_iterations" not in card["settings"]
    publish.publish(run, "shown", folder)
    assert pretrained.available(folder) == ["glyphs", "shown"]


@pytest.mark.parametrize("name", ["../out", "a/b", "", ".hidden", "..", None])
def test_a_name_is_no_path(folder, name):
    with pytest.raises(ValueError, match="must be that of a folder, not a path, got"):
        publish.publish(folder.parent / "run", name, folder)
    with pytest.raises(FileNotFoundError, match="holds no pretrained learner"):
        keras_maml.load(name, folder)


@pytest.mark.parametrize("damaged", [pretrained.LEARNER, pretrained.CARD])
def test_damaged_files_are_named(folder, damaged):
    (folder / "glyphs" / damaged).write_bytes(b"x")
    with pytest.raises(ValueError, match=f"glyphs.{damaged} cannot be loaded .*. Write or"):
        keras_maml.load("glyphs", folder)


def test_an_unknown_name_lists_what_there_is(folder, monkeypatch):
    monkeypatch.setenv("KERAS_MAML_MODELS", str(folder))
    assert pretrained.available() == ["glyphs"]
    with pytest.raises(FileNotFoundError, match="no pretrained learner 'omniglot'. There are: gly"):
        keras_maml.load("omniglot")
    with pytest.raises(FileNotFoundError, match="no pretrained learner ''"):
        keras_maml.load("")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder. .*KERAS_MAML_MODELS"):
        keras_maml.load("glyphs", tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["omniglot-5way-1shot", *map(slow, OTHERS)])
def test_every_published_learner_adapts_to_freshly_drawn_glyphs(name):
    learner = keras_maml.load(name)
    *_, size, channels = learner.model.input_shape
    ways = learner.model.output_shape[-1]
    curve = accuracy(learner, ways, size, channels)
    # Learners of characters know glyphs; those of photographs were made for something else.
    assert curve[0] < 2 / ways and curve[-1] > (0.9 if channels == 1 else 1.5 / ways)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_learner_is_small_and_says_what_it_is(name):
    path = pretrained.models_folder() / name
    assert keras_maml.load(name).batch_normalization == "inductive"
    assert sum(file.stat().st_size for file in path.iterdir()) < 2**20
    card, text = pretrained.card(name), (path / "card.md").read_text()
    assert card["command"] in text and card["data"] in text and card["licence"] in text
    scores = {report.percent(row) for row in card["accuracy"] if row["step"] in (0, 1, 10)}
    assert scores and all(score in text for score in scores)
