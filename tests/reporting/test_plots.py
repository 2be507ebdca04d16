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


def test_adaptation_to_a_sine_curve_shows_each_step():
    learner = MAML(networks.sinusoid_regressor(seed=0), 0.1)
    learner.compile(loss="mean_squared_error")
    x_support = np.array([[-1.0], [2.0]], "float32")
    figure = plots.sinusoid_adaptation(learner, 2.0, 0.5, x_support, steps=(0, 3))
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    truth = lines["ground truth"]
    assert np.allclose(truth.get_ydata(), 2 * np.sin(truth.get_xdata() - 0.5), atol=1e-5)
    adapted = learner.adapt(x_support, 2 * np.sin(x_support - 0.5), steps=3)
    x = truth.get_xdata().reshape(-1, 1)
    shown = lines["after 3 steps"].get_ydata().reshape(-1, 1)
    assert np.allclose(shown, adapted.predict(x, verbose=0), atol=1e-6)
    pixels = plots.to_array(figure)
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3 and pixels.std() > 0


def test_an_episode_shows_every_image_and_names_every_prediction():
    learner = MAML(networks.fully_connected_classifier(2, (4, 4, 1), (3,), seed=0), 0.1)
    learner.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    random = np.random.default_rng(0)
    x_support = random.normal(size=(1, 2, 4, 4, 1)).astype("float32")
    x_query = random.normal(size=(1, 4, 4, 4, 1)).astype("float32")
    y_support, y_query = np.array([[0, 1]]), np.array([[0, 1, 1, 0]])
    figure = plots.episode(learner, ((x_support, y_support), (x_query, y_query)))
    titles = [axis.get_title() for axis in figure.axes]
    assert [title for title in titles if "support" in title] == ["support: 0", "support: 1"]
    right = learner.adapt(x_support[0], y_support[0]).predict(x_query[0], verbose=0).argmax(-1)
    shown = [title.split("after: ")[1] for title in titles if "query" in title]
    assert shown == [str(label) for label in right]


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
