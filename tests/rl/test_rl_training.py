"""Training goes on bit for bit, in another process, too, and shows what it does."""

import contextlib
import io
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from rl_zoo import make_agent

from keras_maml.files import read_csv
from keras_maml.rl import Sampler, environments, gaussian_policy, train


def start(units=3):
    """An agent as new, and its sampler."""
    environment = environments.TaskPyEnvironment(
        environments.TaskVectorEnv("Navigation2D-v0", 4, horizon=3)
    )
    model = gaussian_policy(2, 2, (units,), seed=0)
    # It has a state to keep, and is traced faster than a trust region.
    agent = make_agent(environment, model, outer=keras.optimizers.Adam(0.01))
    return agent, Sampler(environment, agent.collect_policy)


def trained(folder, iterations):
    agent, sampler = start()
    history = train(agent, sampler, iterations=iterations, folder=folder, save_every=2)
    return [np.asarray(variable) for variable in agent.saved_variables], history


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of five iterations: its folder, weights, history and what it has shown."""
    folder = tmp_path_factory.mktemp("training") / "whole"
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        weights, history = trained(folder, 5)
    return folder, weights, history, shown.getvalue()


def without_seconds(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


def test_without_a_folder_it_goes_on_with_the_agent(whole, tmp_path):
    _, weights, history, _ = whole
    agent, sampler = start()
    rows = [row for n in (2, 3) for row in train(agent, sampler, iterations=n, verbose=False)]
    assert without_seconds(rows) == without_seconds(history)
    for variable, value in zip(agent.saved_variables, weights, strict=True):
        assert np.array_equal(variable, value)
    with pytest.raises(ValueError, match="has had 5 meta-iterations.*pass more than 5, got 4"):
        train(agent, sampler, iterations=4, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow  # three agents
def test_a_folder_is_gone_on_from_bit_for_bit(whole, tmp_path):
    folder, weights, history, _ = whole
    trained(tmp_path, 3)
    again, continued = trained(tmp_path, 5)
    assert all(np.array_equal(one, other) for one, other in zip(weights, again, strict=True))
    assert without_seconds(continued) == without_seconds(history)
    assert [row["iterations"] for row in read_csv(folder / "history.csv")] == [1, 2, 3, 4, 5]
    assert train(*start(), iterations=5, folder=tmp_path, verbose=False) == continued
    other, sampler = start(units=4)
    with pytest.raises(ValueError, match="is of an agent with variables of the shapes"):
        train(other, sampler, iterations=5, folder=tmp_path)


def test_tensorboard_shows_returns_under_the_names_of_tf_agents(whole):
    folder, _, history, _ = whole
    events = [
        (value.tag, event.step, float(tf.make_ndarray(value.tensor)))
        for path in (folder / "tensorboard").iterdir()
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    ]
    shown = [(step, value) for tag, step, value in events if tag == "Metrics/AverageReturn"]
    expected = [(row["iterations"], np.float32(row["return"])) for row in history]
    assert shown == expected
    tags = {tag for tag, *_ in events}
    assert tags >= {
        "Metrics/AverageReturnBeforeAdaptation",
        "Metrics/AverageEpisodeLength",
        "Losses/policy_gradient_loss",
        "MetaLearning/gain_ratio",
    }


def test_a_bar_shows_the_returns_before_and_after(whole):
    *_, history, shown = whole
    for name in ("return_before", "return"):
        assert f"{name}: {history[-1][name]:.4f}" in shown  # it leaves out what comes too fast


@pytest.mark.slow
def test_another_process_goes_on(whole, tmp_path):
    _, weights, *_ = whole
    program = (
        "import sys; sys.path[:0] = ['tests', 'tests/rl']; import test_rl_training as t;"
        "t.trained(sys.argv[1], int(sys.argv[2]))"
    )
    for iterations in ("2", "5"):
        subprocess.run([sys.executable, "-c", program, str(tmp_path), iterations], check=True)
    with np.load(tmp_path / "agent.npz") as file:
        assert all(np.array_equal(file[f"arr_{i}"], value) for i, value in enumerate(weights))
