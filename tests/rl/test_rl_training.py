"""Training goes on bit for bit, in another process, too, and shows what it does."""

import contextlib
import io
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from rl_zoo import make_agent
from zoo import slow

from keras_maml import files
from keras_maml.algorithm.update_rules import GradientDescent
from keras_maml.files import read_csv
from keras_maml.rl import Proximal, Sampler, environments, gaussian_policy, train


def start(units=3, rate=0.01, activation="relu", **settings):
    """An agent as new, and its sampler."""
    environment = environments.TaskPyEnvironment(
        environments.TaskVectorEnv("Navigation2D-v0", 4, horizon=3)
    )
    model = gaussian_policy(2, 2, (units,), seed=0, activation=activation)
    # It has a state to keep, and is traced faster than a trust region.
    settings = {"outer": keras.optimizers.Adam(rate)} | settings
    agent = make_agent(environment, model, **settings)
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
    with pytest.raises(ValueError, match="units: 3 there, 4 asked for"):
        train(other, sampler, iterations=5, folder=tmp_path)
    with pytest.raises(ValueError, match="is of an agent with variables of the shapes"):
        other.restore(tmp_path / "agent.npz")


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_run_may_not_move_in(whole):
    folder, *_ = whole
    before = files_of(folder)
    for changes, seed, message in (
        ({}, 1, r"\(seed: 0 there, 1 asked for\)"),
        ({"rate": 0.5}, 0, r"\(outer.learning_rate: 0.00999.* there, 0.5 asked for\)"),
        ({"outer": Proximal()}, 0, r"\(outer.kind: 'Adam' there, 'Proximal' asked for"),
        ({"activation": "tanh"}, 0, r"activation: 'relu' there, 'tanh' asked for\)"),
        ({"update_rule": GradientDescent(0.2)}, 0, "update_rule.learning_rate: 0.1 there, 0.2"),
        ({"adapted_layers": "head"}, 0, r"adapted_variables: \[True, .* there, \[False"),
        ({"first_order": True, "discount": 0.9}, 0, "first_order: False .*; discount: 0.99 "),
        ({"baseline": abs}, 0, "baseline: 'linear' there, 'abs' asked for"),
    ):
        with pytest.raises(ValueError, match=message):
            train(*start(**changes), iterations=6, seed=seed, folder=folder)
    unlock = files.lock(folder)
    with pytest.raises(BlockingIOError, match="is in use by another run"):
        train(*start(), iterations=6, folder=folder)
    unlock()
    assert files_of(folder) == before


def test_runs_without_settings_go_on_and_get_them(whole, tmp_path):
    folder, weights, history, _ = whole
    for name in ("agent.npz", "history.csv"):
        shutil.copy(folder / name, tmp_path)
    agent, sampler = start()
    assert train(agent, sampler, iterations=5, folder=tmp_path, verbose=False) == history
    for variable, value in zip(agent.saved_variables, weights, strict=True):
        assert np.array_equal(variable, value)
    assert (tmp_path / "settings.json").read_text() == (folder / "settings.json").read_text()


@pytest.mark.parametrize("lost", ["removed", slow("emptied")])
def test_a_run_whose_history_is_lost_goes_on_all_the_same(lost, whole, tmp_path):
    folder, weights, *_ = whole
    shutil.copy(folder / "agent.npz", tmp_path)
    if lost == "emptied":
        (tmp_path / "history.csv").touch()
    agent, sampler = start()
    assert train(agent, sampler, iterations=5, folder=tmp_path, verbose=False) == []
    for variable, value in zip(agent.saved_variables, weights, strict=True):
        assert np.array_equal(variable, value)
    (row,) = train(agent, sampler, iterations=6, folder=tmp_path, verbose=False)
    assert row["iterations"] == 6 == read_csv(tmp_path / "history.csv")[0]["iterations"]


def test_what_was_never_saved_binds_nobody(tmp_path):
    """Neither a run that ended before its first checkpoint nor one that was refused."""
    (tmp_path / "settings.json").write_text('{"seed": 3}')
    agent, sampler = start(tasks=4)
    with pytest.raises(ValueError, match="number of tasks must be 4"):
        train(agent, sampler, iterations=1, tasks=3, folder=tmp_path)
    assert '"seed": 0' in (tmp_path / "settings.json").read_text()


def test_the_outer_learning_rate_is_the_agents_own(whole):
    """And not that of the agent that was saved."""
    folder, weights, *_ = whole
    agent, _ = start(rate=0.5)
    agent.restore(folder / "agent.npz")
    assert float(agent.outer.learning_rate) == 0.5
    for variable, value in zip(agent.saved_variables, weights, strict=True):
        assert variable is agent.outer.learning_rate or np.array_equal(variable, value)


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
