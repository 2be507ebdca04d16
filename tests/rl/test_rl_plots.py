"""Figures and films show what they say."""

import numpy as np
from PIL import Image

from keras_maml.rl import environments, gaussian_policy, plots, tensor_specs
from keras_maml.rl.film import record, write_gif
from keras_maml.rl.policy import TaskPolicy


def lines_of(figure):
    return {line.get_label(): line for line in figure.axes[0].lines}


def test_returns_stand_beside_the_published_ones():
    curves = {
        "MAML": (np.array([1.0, 2.0, 3.0]), np.array([0.1, 0.2, 0.3])),
        "oracle": (np.array([5.0]), np.array([0.5])),
    }
    published = {"MAML": (1.5, 2.5, 3.5, 4.5), "oracle": (6.0,)}
    figure = plots.returns_over_steps(curves, published)
    lines = lines_of(figure)
    assert lines["MAML"].get_ydata().tolist() == [1.0, 2.0, 3.0]
    assert set(lines["oracle"].get_ydata()) == {5.0}
    dashed = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    shown = [list(line.get_ydata()) for line in dashed if len(line.get_ydata())]
    assert shown == [[1.5, 2.5, 3.5], [6.0, 6.0]]


def test_a_learning_curve_shows_returns_before_adaptation_where_they_differ():
    adapting = [{"iterations": i, "return": 2.0 * i, "return_before": 0.0} for i in range(3)]
    plain = [{"iterations": i, "return": 1.0, "return_before": 1.0} for i in range(3)]
    lines = lines_of(plots.learning_curves({"MAML": adapting, "oracle": plain}))
    assert set(lines) == {"MAML", "MAML, before adaptation", "oracle"}
    assert list(lines["MAML"].get_ydata()) == [0.0, 2.0, 4.0]


def test_paths_end_where_an_episode_does():
    path = np.array([[[0.0, 0.0], [1.0, 2.0], [np.nan, np.nan]]])
    lines = lines_of(plots.navigation_paths({"before": path}, np.array([3.0, 4.0])))
    assert lines["before"].get_xdata()[:2].tolist() == [0.0, 1.0]
    assert np.isnan(lines["before"].get_ydata()[2])
    assert (lines["goal"].get_xdata(), lines["goal"].get_ydata()) == ([3.0], [4.0])


def test_a_film_shows_every_environment_to_the_end_of_its_episode(tmp_path):
    vector = environments.TaskVectorEnv(
        "Navigation2D-v0", 2, horizon=4, render_mode="rgb_array", width=120, height=100
    )
    environment = environments.TaskPyEnvironment(vector)
    # A policy that always goes 0.1 along both axes: it reaches the first goal with its first step.
    environment.set_tasks(np.array([[0.1, 0.1], [0.5, 0.5]]))
    straight = gaussian_policy(2, 2, (4,), initial_std=1e-6, seed=0)
    *_, kernel, bias, _ = straight.weights
    kernel.assign(np.zeros(kernel.shape))
    bias.assign(np.ones(bias.shape))
    policy = TaskPolicy(*tensor_specs(environment), straight, tasks=2)
    pictures, returns = record(environment, policy, steps=10)
    assert pictures.shape == (5, 2, 100, 120, 3)
    assert np.allclose(returns, [0.0, -np.sqrt(2)], atol=1e-4)
    assert (pictures[1:, 0] == pictures[1, 0]).all() and (pictures[4, 1] != pictures[3, 1]).any()
    write_gif(tmp_path / "film.gif", pictures, ["one", "two"], height=50)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.size == (120, 50) and film.n_frames == 5
    assert [path.name for path in tmp_path.iterdir()] == ["film.gif"]
