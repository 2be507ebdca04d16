"""Experiments of reinforcement learning: commands, results, run folders that survive SIGKILL."""

import dataclasses
import json
import shutil
import types

import numpy as np
import pytest
import tensorflow as tf
from interruption import kill_when, run
from matplotlib.figure import Figure

from experiments import locomotion, navigation
from experiments.benchmarks import gradient_signal, meta_iteration, pictures, whole_episodes
from experiments.shared import agent_settings, agent_training, reinforcement_learning
from experiments.shared.interruption import INTERRUPTION
from experiments.shared.reinforcement_learning import Files
from keras_maml.files import read_csv
from keras_maml.rl import MetaPolicyGradientAgent, environments
from keras_maml.rl import plots as rl_plots

TINY = {
    "tasks": 2,
    "rollouts": 3,
    "horizon": 6,
    "units": (4,),
    "iterations": 6,
    "baseline_iterations": 4,
    "baseline_rollouts": 4,
    "epoch_iterations": 2,
    "test_tasks": 2,
    "test_rollouts": 3,
    "test_steps": 2,
}
METHODS = ("maml", "random")
SETTINGS = dataclasses.replace(navigation.PROBLEM.settings, **TINY, methods=METHODS)


def options():
    """The same settings as a command line."""
    words = []
    for name, value in TINY.items():
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return words


@pytest.fixture(scope="module", autouse=True)
def _without_xla():
    """XLA takes seconds for every program; test_rl_agent shows that it changes nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MetaPolicyGradientAgent.__init__.__kwdefaults__, "jit_compile", False)
        yield


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder of a whole run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    reinforcement_learning.run(navigation.PROBLEM, SETTINGS, Files(output=str(folder)))
    return folder


@pytest.mark.slow
def test_a_killed_run_ends_bit_for_bit_as_if_it_had_not_been(tmp_path):
    folder, uninterrupted = tmp_path / "run", tmp_path / "whole"
    methods = ["--methods", *METHODS, "oracle"]
    command = ["-m", "experiments.navigation", *options(), *methods, "--output"]
    kill_when((folder / "maml" / "checkpoints" / "last.npz").exists, [*command, str(folder)])
    assert not (folder / "oracle").exists()
    for output in (folder, uninterrupted):
        run([*command, str(output)])
    for method in ("maml", "oracle"):
        for name in ("last.npz", "best.npz"):
            path = f"{method}/checkpoints/{name}"
            with np.load(folder / path) as ours, np.load(uninterrupted / path) as theirs:
                assert ours.files == theirs.files and len(ours.files) > 4
                assert all(np.array_equal(ours[key], theirs[key]) for key in ours.files)
        histories = [
            [line.rpartition(",")[0] for line in path.read_text().splitlines()]
            for path in (f / method / "history.csv" for f in (folder, uninterrupted))
        ]  # without the column of seconds
        assert histories[0] == histories[1] and len(histories[0]) > 3
    records = [json.loads((f / "results.json").read_text()) for f in (folder, uninterrupted)]
    assert records[0]["results"] == records[1]["results"]
    rows = [(row["method"], row["step"]) for row in records[0]["results"]]
    assert rows == [(m, step) for m in METHODS for step in range(3)] + [("oracle", 0)]
    assert records[0]["training"]["oracle"]["iterations"] == 4


def test_a_run_writes_results_figures_and_policies(uninterrupted):
    record = json.loads((uninterrupted / "results.json").read_text())
    steps = {
        method: [row["step"] for row in record["results"] if row["method"] == method]
        for method in METHODS
    }
    assert steps == {"maml": [0, 1, 2], "random": [0, 1, 2]}
    assert record["training"]["maml"]["iterations"] == 6
    assert "random" not in record["training"]
    table = (uninterrupted / "results.txt").read_text()
    assert "-11.7" in table and "the authors" in table
    for name in ("returns.png", "learning_curves.png", "paths_maml.png"):
        assert (uninterrupted / name).stat().st_size > 1000
    events = [
        value
        for path in (uninterrupted / "tensorboard" / "maml").iterdir()
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in [
            (event.step, v.tag, float(tf.make_ndarray(v.tensor))) for v in event.summary.value
        ]
    ]
    tested = {step: value for step, tag, value in events if tag.startswith("test/")}
    means = [row["mean"] for row in record["results"] if row["method"] == "maml"]
    assert [tested[step] for step in range(3)] == pytest.approx(means)
    assert [step for step, tag, _ in events if tag == "Metrics/AverageReturn"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "again", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["trained", "tested again"]
)
def test_the_saved_policy_is_the_best_one_that_was_tested(uninterrupted, tmp_path, again):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    # Other weights than the last ones, as when the best epoch is an earlier one.
    path = folder / "maml" / "checkpoints" / "best.npz"
    with np.load(path) as file:
        best = {name: file[name] for name in file.files}
    if again:
        best = {n: v + (0.01 if n.startswith("arr_") else 0) for n, v in best.items()}
        np.savez(path, **best)
        settings = dataclasses.replace(SETTINGS, test_rollouts=4)
        reinforcement_learning.run(navigation.PROBLEM, settings, Files(output=str(folder)))
    saved = tf.saved_model.load(str(folder / "policy" / "maml")).model_variables
    values = [tf.convert_to_tensor(v).numpy()[0] for v in saved if v.shape.rank]
    weights = [best[f"arr_{i}"] for i in range(len(best) - 1)]
    assert len(weights) == 5
    for ours in weights:
        assert any(v.shape == ours.shape and np.array_equal(v, ours) for v in values)


def test_a_finished_run_is_shown_and_not_trained_again(uninterrupted, capsys):
    before = (uninterrupted / "results.json").read_bytes()
    reinforcement_learning.run(navigation.PROBLEM, SETTINGS, Files(output=str(uninterrupted)))
    assert "continuing" not in capsys.readouterr().out
    assert (uninterrupted / "results.json").read_bytes() == before


@pytest.mark.slow  # two runs
def test_training_begins_with_the_policy_of_another_run(uninterrupted, tmp_path):
    initial = tmp_path / "initial"
    shutil.copytree(uninterrupted, initial)
    begun = dataclasses.replace(
        SETTINGS, methods=("maml",), initial_policy=str(initial), iterations=2, max_kl=1e-12
    )
    output = tmp_path / "run"
    reinforcement_learning.run(navigation.PROBLEM, begun, Files(output=str(output)))
    paths = (folder / "maml/checkpoints/best.npz" for folder in (initial, output))
    theirs, ours = (dict(np.load(path)) for path in paths)  # whose steps were next to nothing
    assert len(ours) == 6
    for name in set(ours) - {"iterations"}:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-5)
    assert f"begun with the policies of {initial}" in (output / "results.txt").read_text()
    before = (output / "maml/history.csv").read_bytes()
    shutil.rmtree(initial)
    again = dataclasses.replace(begun, iterations=4)  # goes on, and does not begin anew
    reinforcement_learning.run(navigation.PROBLEM, again, Files(output=str(output)))
    assert (output / "maml/history.csv").read_bytes().startswith(before)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"methods": ("oracle",)}, FileNotFoundError, "oracle/checkpoints/best.npz is not there"),
        ({"units": (5,)}, ValueError, r"of shapes \[\(2, 5\).* has \[\(2, 4\)"),
    ],
)
def test_another_policy_to_begin_with_is_refused(uninterrupted, tmp_path, changes, error, said):
    settings = {"methods": ("maml",), "initial_policy": str(uninterrupted)} | changes
    settings = dataclasses.replace(SETTINGS, **settings)
    with pytest.raises(error, match=said):
        reinforcement_learning.run(
            navigation.PROBLEM, settings, Files(output=str(tmp_path / "run"))
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_films_show_the_first_task_and_the_unlikest(uninterrupted, capsys):
    settings = dataclasses.replace(SETTINGS, methods=("maml",))
    with pytest.raises(FileExistsError, match="methods"):
        reinforcement_learning.run(navigation.PROBLEM, settings, Files(output=str(uninterrupted)))
    reinforcement_learning.run(
        navigation.PROBLEM, SETTINGS, Files(output=str(uninterrupted), film=True)
    )
    assert len(list(uninterrupted.glob("*.gif"))) == 2 * len(SETTINGS.methods)


def test_unknown_methods_raise(tmp_path):
    settings = dataclasses.replace(SETTINGS, methods=("maml", "magic"))
    with pytest.raises(ValueError, match="methods must be some of .*'magic'"):
        reinforcement_learning.run(
            navigation.PROBLEM, settings, Files(output=str(tmp_path / "run"))
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "magic"}, "magic"),
        (
            {"physics": "gymnasium"},
            r"physics of Navigation2D-v0 must be one of \('paper',\), got 'gymnasium'",
        ),
        ({"test_tasks": 0}, "test_tasks must be an integer of at least 1, got 0"),
        ({"test_rate": -1.0}, "test_rate must be at least 0, got -1.0"),
        ({"test_later_rate": float("nan")}, "test_later_rate must be at least 0, got nan"),
        ({"test_steps": -1}, "test_steps must be an integer of at least 0, got -1"),
        ({"min_std": 2.0}, "initial_std must be at least min_std, 2.0, got 1.0"),
        ({"max_kl": 0.0}, "max_kl must be a finite number above 0"),
        ({"final_max_kl": -0.1}, "final_max_kl must be a finite number above 0"),
        ({"min_gain_ratio": 1.0}, r"min_gain_ratio must be in \[0, 1\), got 1.0"),
        ({"fisher_stride": 0}, "fisher_stride must be an integer of at least 1, got 0"),
    ],
)
def test_what_cannot_be_run_fails_before_anything_is_written(tmp_path, changes, message):
    settings = dataclasses.replace(SETTINGS, **changes)
    with pytest.raises(ValueError, match=message):
        reinforcement_learning.run(
            navigation.PROBLEM, settings, Files(output=str(tmp_path / "run"))
        )
    assert not (tmp_path / "run").exists()


def test_the_outer_step_is_that_of_the_settings():
    settings = dataclasses.replace(
        SETTINGS, max_kl=0.04, final_max_kl=0.01, min_gain_ratio=0.1, fisher_stride=4
    )
    for method, iterations in (
        ("maml", settings.iterations),
        ("oracle", settings.baseline_iterations),
    ):
        step = reinforcement_learning.trust_region(settings, method)
        assert (step.min_gain_ratio, step.fisher_stride) == (0.1, 4)
        limits = [float(step.max_kl(number)) for number in (0, iterations / 2, iterations)]
        np.testing.assert_allclose(limits, [0.04, 0.025, 0.01], rtol=1e-5)


def test_a_film_that_cannot_be_drawn_fails_before_training(tmp_path, monkeypatch):
    def no_opengl(*_):
        raise RuntimeError("there is no OpenGL.")

    monkeypatch.setattr(environments.TaskPyEnvironment, "render", no_opengl)
    files = Files(output=str(tmp_path / "run"), film=True)
    with pytest.raises(OSError, match="there is no OpenGL. Or leave --film out"):
        reinforcement_learning.run(navigation.PROBLEM, SETTINGS, files)
    assert not (tmp_path / "run").exists()


def test_ways_are_drawn_to_their_end(monkeypatch, tmp_path):
    """To the last position of the first episode, which is that of its boundary."""
    kinds = np.array([[0, 1, 2, 0, 1], [0, 1, 1, 1, 1]])
    positions = np.arange(20.0).reshape(2, 5, 2)
    trajectory = types.SimpleNamespace(
        is_boundary=lambda: tf.constant(kinds == 2), observation=tf.constant(positions)
    )
    sampler = types.SimpleNamespace(
        draw=lambda *_: trajectory, environment=types.SimpleNamespace(tasks=[[0.0, 0.0]])
    )
    drawn = []
    monkeypatch.setattr(
        rl_plots, "navigation_paths", lambda *arguments: drawn.append(arguments) or Figure()
    )
    reinforcement_learning.draw_paths(SETTINGS, "oracle", None, sampler, tmp_path)
    [(paths, _, title)] = drawn
    [(label, (first, second))] = paths.items()
    assert label == "without adaptation" and title.startswith("oracle")
    np.testing.assert_array_equal(first[:3], positions[0, :3])
    assert np.isnan(first[3:]).all()
    np.testing.assert_array_equal(second, positions[1])


def test_the_task_chooses_the_settings(monkeypatch):
    asked = []
    monkeypatch.setattr(
        reinforcement_learning, "run", lambda *arguments, **_: asked.append(arguments)
    )
    monkeypatch.setattr("sys.argv", ["x", "--task", "ant-direction", "--max-kl", "0.02"])
    reinforcement_learning.main("locomotion", "", locomotion.PROBLEMS)
    [(problem, settings, _)] = asked
    assert problem is locomotion.PROBLEMS["ant-direction"]
    expected = dataclasses.replace(problem.settings, max_kl=0.02)
    assert dataclasses.asdict(settings) == dataclasses.asdict(expected)
    assert settings.rollouts == 40


def test_the_settings_are_those_of_the_paper():
    for name, problem in locomotion.PROBLEMS.items():
        assert problem.settings.task == name
        assert (problem.settings.tasks, problem.settings.horizon) == (40, 200)
        if problem.published:
            assert len(problem.published["maml"]) == problem.settings.test_steps + 1
    assert [name for name, problem in locomotion.PROBLEMS.items() if not problem.published] == [
        "ant-position"
    ]
    rates = agent_settings.rates(navigation.PROBLEM.settings, "maml")
    assert rates == [0.5, 0.2, 0.2, 0.2]
    rates = agent_settings.rates(locomotion.PROBLEMS["ant-velocity"].settings, "maml")
    assert rates == [0.1, 0.05, 0.05]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["cheetah-velocity", "ant-direction"])
def test_a_robot_is_trained_and_tested(tmp_path, task):
    problem = locomotion.PROBLEMS[task]
    tiny = TINY | {"iterations": 2, "baseline_iterations": 2}
    settings = dataclasses.replace(problem.settings, **tiny, methods=("maml", "oracle"))
    record = reinforcement_learning.run(problem, settings, Files(output=str(tmp_path / "run")))
    steps = {(row["method"], row["step"]): row["mean"] for row in record["results"]}
    assert sorted(steps) == [("maml", 0), ("maml", 1), ("maml", 2), ("oracle", 0)]
    assert np.isfinite([*steps.values()]).all()
    assert record["data"].startswith(problem.environment)
    assert record["training"]["maml"]["iterations"] == 2


@pytest.mark.slow
def test_every_inner_step_is_in_the_history_and_an_iteration_that_is_not_finite_is_counted(
    tmp_path, monkeypatch, caplog
):
    original = agent_training.meta_iteration

    def sometimes(agent, sampler, tasks, seed, iteration):
        if iteration == 1:
            raise FloatingPointError("the return of task 1 is NaN.")
        return original(agent, sampler, tasks, seed, iteration)

    monkeypatch.setattr(agent_training, "meta_iteration", sometimes)
    settings = dataclasses.replace(SETTINGS, methods=("maml",), iterations=4, inner_steps=2)
    folder = tmp_path / "run"
    record = reinforcement_learning.run(navigation.PROBLEM, settings, Files(output=str(folder)))
    assert "Meta-iteration 2 changes nothing: the return of task 1 is NaN." in caplog.text
    assert record["training"]["maml"]["skipped"] >= 1
    rows = read_csv(folder / "maml" / "history.csv")
    returns = [row[name] for row in rows for name in ("return_before", "return_1", "return")]
    assert len(rows) == 4 and len({r for r in returns if np.isfinite(r)}) == 9


@pytest.mark.slow
def test_what_is_done_within_an_epoch_is_saved_at_ctrl_c(tmp_path, monkeypatch, uninterrupted):
    original, done = agent_training.meta_iteration, []

    def until_interrupted(agent, sampler, tasks, seed, iteration):
        done.append(iteration)
        if done == [0, 1, 2]:
            INTERRUPTION.request()
        return original(agent, sampler, tasks, seed, iteration)

    monkeypatch.setattr(agent_training, "meta_iteration", until_interrupted)
    settings = dataclasses.replace(SETTINGS, methods=("maml",))
    folder = tmp_path / "run"
    INTERRUPTION.reset()
    with pytest.raises(KeyboardInterrupt):
        reinforcement_learning.run(navigation.PROBLEM, settings, Files(output=str(folder)))
    INTERRUPTION.reset()
    reinforcement_learning.run(navigation.PROBLEM, settings, Files(output=str(folder)))
    assert done == [0, 1, 2, 3, 4, 5]
    for name in ("last.npz", "best.npz"):
        path = f"maml/checkpoints/{name}"
        with np.load(folder / path) as ours, np.load(uninterrupted / path) as theirs:
            assert all(np.array_equal(ours[key], theirs[key]) for key in theirs.files)


@pytest.mark.slow
def test_other_settings_of_the_test_are_tested_without_training(uninterrupted, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    settings = dataclasses.replace(SETTINGS, test_steps=1)
    record = reinforcement_learning.run(navigation.PROBLEM, settings, Files(output=str(folder)))
    assert "before adaptation," not in capsys.readouterr().out  # what training prints
    assert max(row["step"] for row in record["results"]) == 1


def test_ten_skips_in_a_row_end_the_run(tmp_path, monkeypatch):
    def never(*_):
        raise FloatingPointError("no good.")

    monkeypatch.setattr(agent_training, "meta_iteration", never)
    settings = dataclasses.replace(SETTINGS, methods=("maml",), iterations=20)
    with pytest.raises(FloatingPointError, match="10 meta-iterations in a row"):
        reinforcement_learning.run(
            navigation.PROBLEM, settings, Files(output=str(tmp_path / "run"))
        )


@pytest.mark.slow
def test_the_benchmark_of_meta_iterations_accounts_for_all_of_their_time(tmp_path):
    problems = {"navigation": dataclasses.replace(navigation.PROBLEM, settings=SETTINGS)}
    settings = meta_iteration.Settings(tasks=("navigation",), repeats=1)
    files = meta_iteration.Files(output=str(tmp_path / "run"))
    store = meta_iteration.run(settings, files, problems)
    *parts, whole = store.records["navigation"]["parts"].values()
    assert len(parts) == 4 and all(part["median_ms"] > 0 for part in parts)
    assert sum(part["median_ms"] for part in parts) == pytest.approx(whole["median_ms"])
    assert "outer step" in store.path.read_text()


def test_the_benchmark_of_meta_iterations_refuses_what_it_does_not_know(tmp_path):
    files = meta_iteration.Files(output=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"cheetah-direction.*got \['flea'\]"):
        meta_iteration.run(meta_iteration.Settings(tasks=("flea",)), files)
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        meta_iteration.run(meta_iteration.Settings(repeats=0), files)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_policies_that_see_pictures_are_timed(tmp_path):
    settings = pictures.Settings(size=8, filters=2, tasks=2, rollouts=2, horizon=3, repeats=1)
    selection = pictures.Selection(ways=("without XLA",), output=str(tmp_path / "run"))
    (record,) = pictures.run(settings, selection).records.values()
    assert record["first_seconds"] > record["meta_iteration"]["median_ms"] / 1e3 > 0
    assert record["peak_mb"] > record["before_mb"] > 0


def test_the_walk_of_the_pictures_stays_within_them():
    walk = pictures.Walk(size=7)
    first, _ = walk.reset()
    assert first.shape == (7, 7, 3) and (first[1:5, 1:5] == 255).all() and first.sum() == 48 * 255
    rewards = [walk.step(action)[1] for action in (0, 2, 0)]  # to the corner, and against it
    assert rewards == [-(1 + 3) / 3, -2.0, -2.0]
    with pytest.raises(ValueError, match="size must be an integer of at least 5, got 4"):
        pictures.run(pictures.Settings(size=4), pictures.Selection())


def test_the_share_of_signal_is_what_independent_gradients_have_in_common():
    random = np.random.default_rng(0)
    signal, *noise = random.normal(size=(3, 50, 2_000))
    shared = 10 * random.normal(size=2_000)  # by all tasks, which tells none from another
    first, second = (shared + signal + 2 * of_one for of_one in noise)
    assert gradient_signal.share(first, second) == pytest.approx(1 / (1 + 2**2), abs=0.01)


def test_the_signal_of_gradients_is_measured_by_baseline_and_lambda(tmp_path):
    own = dataclasses.replace(SETTINGS, inner_gae_lambda=0.5)  # which takes no part
    problems = {"navigation": dataclasses.replace(navigation.PROBLEM, settings=own)}
    chosen = {"meta_batch_size": 8, "rollouts": 20, "repeats": 2, "gae_lambdas": (0.0, 1.0)}
    settings = gradient_signal.Settings(tasks=("navigation",), baselines=("time",), **chosen)
    files = gradient_signal.Files(output=str(tmp_path / "run"))
    found = gradient_signal.run(settings, files, problems).records["navigation"]["estimators"]
    assert [one["gae_lambda"] for one in found] == [0.0, 1.0]
    assert all(0.5 < one["share"] < 1 for one in found)  # every reward says where the goal is
    assert found[0]["share"] != found[1]["share"]
    assert f"{100 * found[0]['share']:.1f} ± " in (tmp_path / "run" / "results.txt").read_text()


def test_the_signal_of_gradients_refuses_what_it_does_not_know(tmp_path):
    files = gradient_signal.Files(output=str(tmp_path / "run"))
    for wrong in ({"tasks": ("flea",)}, {"baselines": ("quadratic",)}, {"repeats": 1}):
        (name,) = wrong
        with pytest.raises(ValueError, match=name):
            gradient_signal.run(gradient_signal.Settings(**wrong), files)
    assert not (tmp_path / "run").exists()


def test_episodes_are_counted_in_three_ways(tmp_path):
    ant = locomotion.PROBLEMS["ant-velocity"]
    problems = {
        "ant": dataclasses.replace(ant, settings=dataclasses.replace(ant.settings, horizon=120))
    }
    settings = whole_episodes.Settings(tasks=("ant",), test_tasks=2, environments=8)
    files = whole_episodes.Files(output=str(tmp_path / "run"))
    record = whole_episodes.run(settings, files, problems).records["ant"]
    first, begun, ended = record["ways"].values()
    assert first["episodes"] == 16 and first["later"] == 0
    assert begun["episodes"] > 16 and begun["later"] == pytest.approx(1 - 16 / begun["episodes"])
    steps = ended["episodes"] * ended["length"]
    assert steps == pytest.approx((1 - record["dropped"]) * 16 * 120)
    assert ended["length"] < first["length"]  # what has not ended is long
    assert f"{record['dropped']:.1%}" in (tmp_path / "run" / "results.txt").read_text()
    with pytest.raises(ValueError, match=r"got \['flea'\]"):
        whole_episodes.run(whole_episodes.Settings(tasks=("flea",)), files)


def test_deviations_of_actions_have_the_floor_of_the_settings():
    settings = dataclasses.replace(SETTINGS, min_std=0.25)
    environment = reinforcement_learning.make_environment(navigation.PROBLEM, settings, "maml", 1)
    agent = reinforcement_learning.make_agent(settings, "maml", environment, 1)
    layer = agent.model.get_layer("log_std")
    layer.vector.assign(np.full(2, -5.0, "float32"))
    deviations = np.exp(agent.model(np.zeros([1, 2], "float32"))["log_std"])
    np.testing.assert_allclose(deviations, 0.25, rtol=1e-6)


def test_the_best_epoch_is_not_that_with_the_easiest_tasks():
    history = [{"return": value} for value in (1.0, 9.0, 5.0, 6.0, np.nan, 7.0)]
    for tasks, expected in ((100, [5.0, 5.5, 7.0]), (50, [5.0, 5.25, 6.0])):
        assert agent_training.epoch_returns(history, 2, tasks).tolist() == expected
    assert agent_training.epoch_returns([{"return": np.nan}], 1, 200).tolist() == [-np.inf]
