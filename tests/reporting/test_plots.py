"""Figures show what they say."""

import keras
import numpy as np
import pytest

from keras_maml import MAML, networks, plots


def test_a_learning_curve_has_a_line_for_each_series_there_is():
    history = [
        {"iterations": 10.0 * i, "loss": 3.0 - i, "loss_before": 3.0, "val_loss": 2.0}
        for i in range(3)
    ]
    del history[2]["loss_before"]  # a run that measured it at first
    axes = plots.learning_curve(history, "loss", published=0.5).axes[0]
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines.pop("published, test tasks") == [0.5, 0.5]
    assert lines["training tasks"] == [3.0, 2.0, 1.0]
    assert set(lines) == {
        "training tasks",
        "validation tasks",
        "training tasks, before adaptation",
    }
    assert all(line.get_marker() == "." for line in axes.lines[:3])  # one epoch alone is seen


def test_adaptation_to_a_sine_curve_shows_each_step():
    learner = MAML(networks.sinusoid_regressor(seed=0), 0.1)
    learner.compile(loss="mean_squared_error")
    x_support = np.array([[-1.0], [2.0]], "float32")
    steps = (0, 3, *range(4, 9))
    figure = plots.sinusoid_adaptation(learner, 2.0, 0.5, x_support, steps=steps)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert len(lines) == 2 + len(steps)
    truth = lines["ground truth"]
    assert np.allclose(truth.get_ydata(), 2 * np.sin(truth.get_xdata() - 0.5), atol=1e-5)
    adapted = learner.adapt(x_support, 2 * np.sin(x_support - 0.5), steps=3)
    x = truth.get_xdata().reshape(-1, 1)
    shown = lines["after 3 steps"].get_ydata().reshape(-1, 1)
    assert np.allclose(shown, adapted.predict(x, verbose=0), atol=1e-6)
    pixels = plots.to_array(figure)
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3 and pixels.std() > 0


SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
BINARY = keras.losses.BinaryCrossentropy(from_logits=True)
ONE_HOT = keras.losses.CategoricalCrossentropy(from_logits=True)


def classifier(loss, outputs, activation=None):
    """A learner that takes all images for class 0, and a small step from there."""
    dense = keras.layers.Dense(outputs, activation, kernel_initializer="zeros")
    stack = [keras.Input((2, 2, 1)), keras.layers.Flatten(), dense]
    learner = MAML(keras.Sequential(stack), 0.5, evaluation_steps=1)
    learner.compile("sgd", loss, run_eagerly=True)
    return learner


def episode_of(targets, support=(0, 1, 0, 1), query=(0, 1, 1, 0, 1)):
    """An episode of dark images, of class 0, and bright ones, of class 1."""

    def half(labels):
        x = np.array(labels, "float32")[:, None, None, None] - np.full((1, 2, 2, 1), 0.5, "float32")
        return x[None], targets(np.array(labels))[None]

    return half(support), half(query)


@pytest.mark.parametrize(
    ("learner", "targets"),
    [
        ((SPARSE, 3), lambda y: y),
        ((SPARSE, 3), lambda y: y[:, None]),
        ((ONE_HOT, 2), lambda y: np.eye(2, dtype="float32")[y]),
        ((BINARY, 1), lambda y: y.astype("float32")),
        ((BINARY, 1), lambda y: y[:, None]),
        (("binary_crossentropy", 1, "sigmoid"), lambda y: y.astype("float32")),
        ((keras.losses.BinaryFocalCrossentropy(), 1, "sigmoid"), lambda y: y.astype("float32")),
    ],
    ids=["integers", "column", "one_hot", "logits", "binary_column", "probabilities", "focal"],
)
def test_an_episode_shows_every_image_and_names_every_prediction(learner, targets):
    figure = plots.episode(classifier(*learner), episode_of(targets))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:4] == ["support: 0", "support: 1"] * 2
    shown = [title.split() for title in titles[4:]]
    truth, before, after = (list(column) for column in zip(*(w[1::2] for w in shown), strict=True))
    assert truth == list("01101") and before == list("00000")
    assert after == truth  # a line separates the classes, and the step is towards it
    assert "40% right before, 100% after" in figure.get_suptitle()


def test_predictions_of_an_episode_are_those_of_the_learner():
    learner = MAML(networks.fully_connected_classifier(2, (4, 4, 1), (3,), seed=0), 0.1)
    learner.compile(loss=SPARSE)
    random = np.random.default_rng(0)
    x_support = random.normal(size=(1, 2, 4, 4, 1)).astype("float32")
    x_query = random.normal(size=(1, 4, 4, 4, 1)).astype("float32")
    y_support, y_query = np.array([[0, 1]]), np.array([[0, 1, 1, 0]])
    figure = plots.episode(learner, ((x_support, y_support), (x_query, y_query)))
    titles = [axis.get_title() for axis in figure.axes]
    right = learner.adapt(x_support[0], y_support[0]).predict(x_query[0], verbose=0).argmax(-1)
    shown = [title.split("after: ")[1] for title in titles if "query" in title]
    assert shown == [str(label) for label in right]


def test_a_column_of_an_episode_is_a_class():
    figure = plots.episode(classifier(SPARSE, 2), episode_of(lambda y: y, query=(1, 1)))
    columns = {(axis.get_title()[:8], axis.get_subplotspec().colspan.start) for axis in figure.axes}
    assert columns == {("support:", 0), ("support:", 1), ("query: 1", 1)}


@pytest.mark.parametrize(
    ("learner", "targets", "expected"),
    [
        (("mean_squared_error", 1), lambda y: y.astype("float32"), "binary cross-entropy"),
        ((BINARY, 1), lambda y: y * 0.5 + 0.2, "labels 0 and 1"),
        ((BINARY, 2), lambda y: np.stack([y, y], -1).astype("float32"), "one-hot"),
    ],
    ids=["regression", "soft", "several"],
)
def test_an_episode_without_classes_is_refused(learner, targets, expected):
    with pytest.raises(ValueError, match=expected):
        plots.episode(classifier(*learner), episode_of(targets))


def test_an_episode_without_images_is_refused():
    (x, y), query = episode_of(lambda y: y)
    with pytest.raises(ValueError, match=r"images \[tasks, .* got shape \[1, 4, 4\]"):
        plots.episode(classifier(SPARSE, 2), ((x.reshape(1, 4, 4), y), query))
    with pytest.raises(ValueError, match="one array of images and one of classes"):
        plots.episode(classifier(SPARSE, 2), ((x, y), (query[0],)))
    with pytest.raises(ValueError, match="most must be .* got 0"):
        plots.episode(classifier(SPARSE, 2), ((x, y), query), most=0)


def test_a_figure_is_written_whole_or_not_at_all(tmp_path):
    figure = plots.loss_over_steps({"MAML": (np.array([2.0, 1.0]), np.array([0.1, 0.1]))})
    path = tmp_path / "figure.png"
    plots.save(figure, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    before = path.read_bytes()
    figure.savefig = lambda *args, **kwargs: (_ for _ in ()).throw(OSError("disk full"))
    with pytest.raises(OSError, match="disk full"):
        plots.save(figure, path)
    assert path.read_bytes() == before
