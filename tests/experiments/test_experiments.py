"""Runs: they resume bit for bit, and never write over another run."""

import contextlib
import dataclasses
import json
import math
import pathlib
import shlex
import signal
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
from interruption import kill_when
from zoo import slow

from experiments import demo, sinusoid
from experiments.shared import command_line, interruption, runs
from experiments.shared.interruption import INTERRUPTION
from keras_maml import callbacks, episodes, evaluation, query_losses
from keras_maml.files import write_csv

pytestmark = pytest.mark.usefixtures("without_xla")
ROOT = pathlib.Path(__file__).parents[2]
TINY = sinusoid.Settings(
    methods=sinusoid.METHODS,
    seeds=(0,),
    shots=(5,),
    evaluation_steps=2,
    iterations=20,
    epoch_iterations=10,
    test_tasks=10,
    pretrained_rates=(0.01, 100.0),
)


class Interrupt(keras.callbacks.Callback):
    """Ends the process, as far as the run can see, within an epoch."""

    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations >= self.batch:
            raise KeyboardInterrupt


def train(folder, iterations, *others, steps_per_execution=10, query_loss="last"):
    settings = dataclasses.replace(
        TINY, iterations=iterations, inner_steps=1 if query_loss == "last" else 2
    )
    this = runs.Run(folder, settings)
    learner = sinusoid.make_learner(settings, "maml", seed=0)
    learner.query_loss = query_loss
    learner.steps_per_execution = steps_per_execution
    history = this.train(
        learner,
        lambda seen: episodes.sinusoid(meta_batch_size=4, start=seen * 4),
        iterations=iterations,
        epoch_iterations=10,
        callbacks=list(others),
        validation_data=episodes.sinusoid(meta_batch_size=4, tasks=8, seed=1),
        verbose=0,
    )
    return learner, history


def state(learner):
    return [v.numpy() for v in (*learner.variables, *learner.optimizer.variables)]


def without_clock(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, without_xla):
    """State and history after a run that was not interrupted."""
    learner, history = train(tmp_path_factory.mktemp("whole") / "run", 40)
    return state(learner), history


def test_an_interrupted_run_ends_bit_for_bit_as_if_it_had_not_been(tmp_path, whole):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", 40, Interrupt(batch=30))
    assert len(list((tmp_path / "cut" / "checkpoints").glob("epoch-*"))) == 1
    resumed, history = train(tmp_path / "cut", 40)
    for ours, theirs in zip(state(resumed), whole[0], strict=True):
        assert np.array_equal(ours, theirs)
    assert without_clock(history) == without_clock(whole[1])
    assert [row["iterations"] for row in history] == [10.0, 20.0, 30.0, 40.0]


@pytest.mark.slow  # test_compare makes one longer
def test_a_run_can_be_made_longer(tmp_path, whole):
    train(tmp_path / "short", 20)
    longer, _ = train(tmp_path / "short", 40)
    for ours, theirs in zip(state(longer), whole[0], strict=True):
        assert np.array_equal(ours, theirs)


@dataclasses.dataclass(frozen=True)
class Cooling:
    iterations: int = 40
    epoch_iterations: int = 10
    cooldown_iterations: int = 20


@pytest.mark.parametrize(("done", "refused"), [(0, False), (20, False), (30, True), (40, True)])
def test_a_run_is_made_longer_only_before_its_rate_falls(tmp_path, done, refused):
    runs.Run(tmp_path, Cooling())
    (tmp_path / "checkpoints").mkdir()
    if done:
        (tmp_path / f"checkpoints/epoch-{done // 10:06d}.weights.h5").touch()
    longer = Cooling(iterations=60)
    if refused:
        with pytest.raises(FileExistsError, match=f"since iteration 20, and {done} are done"):
            runs.Run(tmp_path, longer)
        assert runs.Run(tmp_path, Cooling()).settings["iterations"] == 40
    else:
        assert runs.Run(tmp_path, longer).settings["iterations"] == 60


@dataclasses.dataclass(frozen=True)
class Agents:
    iterations: int = 600
    epoch_iterations: int = 5
    final_max_kl: float | None = None


@pytest.mark.parametrize(
    ("asked", "refused"),
    [
        ({"iterations": 335}, None),
        ({"iterations": 800}, None),
        ({"iterations": 330}, "holds a run, and 332 are done: it cannot become one of 330"),
        (
            {"iterations": 800, "final_max_kl": 0.01},
            "600 iterations whose max_kl has fallen since iteration 0, and 332 are done",
        ),
    ],
)
def test_a_run_ends_earlier_unless_more_is_done(tmp_path, asked, refused):
    begun = {name: value for name, value in asked.items() if name != "iterations"}
    runs.Run(tmp_path, Agents(**begun))
    (tmp_path / "maml").mkdir()
    write_csv(tmp_path / "maml/history.csv", [{"iterations": 331.0}, {"iterations": 332.0}])
    with pytest.raises(FileExistsError, match=refused) if refused else contextlib.nullcontext():
        assert runs.Run(tmp_path, Agents(**asked)).settings["iterations"] == asked["iterations"]


def test_results_are_those_of_a_run_that_knows_a_newer_setting(tmp_path):
    this = runs.Run(tmp_path, Cooling(cooldown_iterations=0))
    record = this.finish([1])
    del this
    del record["settings"]["cooldown_iterations"]
    defaults = runs.defaults_of(Cooling()) | {"cooldown_iterations": 0}
    (tmp_path / "results.json").write_text(json.dumps(record))
    settings = runs.as_json(Cooling(cooldown_iterations=0))
    assert runs.results_of(tmp_path, settings, defaults) == record
    assert runs.results_of(tmp_path, runs.as_json(Cooling()), defaults) is None


def test_the_best_epoch_is_kept(tmp_path):
    this = runs.Run(tmp_path, TINY)
    learner = sinusoid.make_learner(TINY, "maml", seed=0)
    saved = []

    class Score(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["score"] = [1.0, 3.0, 2.0][epoch]
            saved.append([v.numpy() for v in self.model.variables])

    this.train(
        learner,
        lambda seen: episodes.sinusoid(meta_batch_size=4),
        iterations=30,
        epoch_iterations=10,
        callbacks=[Score()],
        monitor="score",
        verbose=0,
    )
    for variable, best in zip(learner.variables, saved[1], strict=True):
        assert np.array_equal(variable, best)
    assert learner.optimizer.iterations == 20


@pytest.mark.parametrize("interrupted_after", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("scores", "losses", "best"),
    [
        ([1, 3, 2, 0], [0.5, 0.5, 0.1, 0.1], 2),
        ([3, 1, 3, 3], [0.5, 0.1, 0.25, 1 / 3], 3),
        ([3, 3, 2, 3], [0.1, 0.2, 0.1, 0.1], 1),
    ],
    ids=["the highest", "of several the one with the lowest loss", "or else the first"],
)
def test_which_epoch_is_best(tmp_path, interrupted_after, scores, losses, best):
    learner = sinusoid.make_learner(TINY, "maml", seed=0)
    learner.build_on(episodes.sinusoid(meta_batch_size=4))
    for epoch, (score, loss) in enumerate(zip(scores, losses, strict=True)):
        if epoch in (0, interrupted_after):
            checkpoint = runs.Checkpoint(tmp_path, "score")
            checkpoint.set_model(learner)
            assert checkpoint.restore(learner) == epoch
        learner.optimizer.iterations.assign(epoch + 1)
        checkpoint.on_epoch_end(epoch, {"score": score, "val_loss": loss})
    learner.load_weights(checkpoint.best_path)
    assert learner.optimizer.iterations == best


@pytest.mark.parametrize(
    ("scores", "losses", "best"),
    [
        ([math.nan, 1, 3, math.nan], [0.1, 0.5, 0.5, 0.1], [1, 2, 3]),
        ([3, 3, 3, 3], [math.nan, 0.5, 0.1, math.nan], [1, 2, 3]),
    ],
)
def test_what_is_no_number_is_worse_than_any(tmp_path, monkeypatch, scores, losses, best):
    checkpoint, saved = runs.Checkpoint(tmp_path, "score"), []
    model = types.SimpleNamespace(optimizer=types.SimpleNamespace(iterations=0))
    checkpoint.set_model(model)
    checkpoint.folder.mkdir()
    monkeypatch.setattr(
        checkpoint, "_save", lambda path: saved.append((path, model.optimizer.iterations))
    )
    for epoch, (score, loss) in enumerate(zip(scores, losses, strict=True)):
        model.optimizer.iterations = epoch + 1
        checkpoint.on_epoch_end(epoch, {"score": score, "val_loss": loss})
    assert [epoch for path, epoch in saved if path == checkpoint.best_path] == best


def test_a_run_goes_on_with_more_methods_and_with_settings_it_did_not_know(tmp_path):
    few = dataclasses.replace(TINY, methods=("maml",))
    runs.Run(tmp_path, few)
    older = json.loads((tmp_path / "settings.json").read_text())
    del older["learning_rate"]
    (tmp_path / "settings.json").write_text(json.dumps(older))
    more = dataclasses.replace(few, methods=("maml", "oracle"))
    assert runs.Run(tmp_path, more).settings["learning_rate"] == TINY.learning_rate
    with pytest.raises(FileExistsError, match="methods"):
        runs.Run(tmp_path, few)
    with pytest.raises(FileExistsError, match="learning_rate: 0.001 there, 0.1 asked for"):
        runs.Run(tmp_path, dataclasses.replace(more, learning_rate=0.1))


def test_another_run_may_not_move_in(tmp_path):
    runs.Run(tmp_path, TINY)
    before = (tmp_path / "settings.json").read_bytes()
    with pytest.raises(FileExistsError, match=r"other settings \(meta_batch_size: 25 there, 7"):
        runs.Run(tmp_path, dataclasses.replace(TINY, meta_batch_size=7))
    with pytest.raises(FileExistsError, match="evaluation_steps: 2 there, 3 asked for"):
        runs.Run(tmp_path, dataclasses.replace(TINY, evaluation_steps=3))
    assert (tmp_path / "settings.json").read_bytes() == before


def test_a_folder_that_a_run_is_using_is_refused(tmp_path):
    run = runs.Run(tmp_path, TINY)
    with pytest.raises(BlockingIOError, match=f"{tmp_path} is in use by another run. Wait until"):
        runs.Run(tmp_path, TINY)
    del run
    with pytest.raises(FileExistsError):  # and what is refused keeps nobody out
        runs.Run(tmp_path, dataclasses.replace(TINY, meta_batch_size=7))
    runs.Run(tmp_path, TINY)


@pytest.mark.slow
def test_another_process_is_told_that_the_folder_is_in_use(tmp_path):
    run = runs.Run(tmp_path, TINY)
    command = ["-m", "experiments.sinusoid", "--output", str(tmp_path)]
    process = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 2
    expected = f"python -m experiments.sinusoid: {tmp_path} is in use by another run."
    assert process.stderr.startswith(expected)
    assert (run.folder / "settings.json").exists()


def test_every_start_of_a_run_is_listed(tmp_path, monkeypatch):
    for commit in ("a", "a", "b"):
        monkeypatch.setattr(runs, "COMMIT", commit)
        run = None  # the one before has ended
        run = runs.Run(tmp_path, TINY)
    record = run.finish([])
    assert [start["commit"] for start in record["starts"]] == ["a", "a", "b"]
    assert record["starts"][-1] == {key: record[key] for key in record["starts"][-1]}
    assert json.loads((tmp_path / "starts.json").read_text()) == record["starts"]
    del run
    monkeypatch.setattr(runs, "COMMIT", "c")
    runs.Run(tmp_path, TINY)  # shows results and makes none
    assert json.loads((tmp_path / "starts.json").read_text()) == record["starts"]
    run = runs.Run(tmp_path, TINY)
    assert [start["commit"] for start in run.finish([])["starts"]] == ["a", "a", "b", "c"]


def test_of_starts_before_there_was_a_list_the_results_know_the_last(tmp_path):
    run = runs.Run(tmp_path, TINY)
    (tmp_path / "starts.json").unlink()
    del run
    run = runs.Run(tmp_path, TINY)
    record = run.finish([])
    assert [start["commit"] for start in record["starts"]] == [None, runs.COMMIT]
    (tmp_path / "starts.json").unlink()
    (tmp_path / "results.json").write_text(json.dumps(record | {"commit": "old"}))
    del run
    starts = runs.Run(tmp_path, TINY).finish([])["starts"]
    assert [start["commit"] for start in starts] == ["old", runs.COMMIT]


def test_a_new_run_takes_over_no_list(tmp_path):
    run = runs.Run(tmp_path, TINY)
    (tmp_path / "settings.json").unlink()  # as a benchmark does that is started over
    del run
    assert len(runs.Run(tmp_path, TINY).finish([])["starts"]) == 1


def test_results_set_aside_take_no_name_that_was_given(tmp_path):
    for tasks in (1, 2, 3):
        run = None  # the one before has ended
        run = runs.Run(tmp_path, dataclasses.replace(TINY, test_tasks=tasks))
        run.finish([f"{tasks} tasks"])
        run.finish([f"{tasks} tasks, again"])  # replaces, and is not set aside
    (tmp_path / "results-1.json").unlink()  # as a person may who tidies up
    run.set_results_aside()
    kept = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("results*.json")}
    assert {name: record["results"] for name, record in kept.items()} == {
        "results-2.json": ["2 tasks, again"],
        "results-3.json": ["3 tasks, again"],
    }


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="not empty and holds no run. Choose another"):
        runs.Run(tmp_path, TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_iterations_must_make_whole_epochs(tmp_path):
    with pytest.raises(ValueError, match="iterations must be a multiple of 10 .* got 25"):
        train(tmp_path, 25)


def test_an_epoch_must_be_whole_executions(tmp_path):
    with pytest.raises(
        ValueError, match="multiple of the learner's steps_per_execution, 4, got 10"
    ):
        train(tmp_path, 40, steps_per_execution=4)
    for epoch, steps in ((1_000, 500), (750, 250), (7, 1)):
        settings = dataclasses.replace(TINY, epoch_iterations=epoch)
        assert sinusoid.make_learner(settings, "maml", seed=0).steps_per_execution == steps


def test_the_sinusoid_experiment_writes_what_it_says(tmp_path, capsys):
    output = tmp_path / "run"
    record = sinusoid.run(TINY, sinusoid.Files(str(output)))
    rows = record["results"]
    assert {row["method"] for row in rows} == set(sinusoid.METHODS)
    assert {row["step"] for row in rows if row["method"] == "maml"} == set(range(3))
    rates = {row["inner_learning_rate"] for row in rows if row["method"] == "pretrained"}
    assert rates == {0.01}  # the other candidate diverges
    assert record["settings"]["iterations"] == 20 and record["versions"]["keras"]
    names = {path.name for path in output.glob("*.png")}
    assert {"figure3_5_shots.png", "figure2_maml_5_shots.png"} <= names
    before = (output / "results.json").read_bytes()
    capsys.readouterr()
    assert sinusoid.run(TINY, sinusoid.Files(str(output))) == json.loads(before)
    assert "MAML" in capsys.readouterr().out
    assert (output / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ("maml", "anil")}, r"methods must be one of \('maml', .*got 'anil'"),
        ({"methods": ()}, "methods must be one or several different ones"),
        ({"seeds": (0, 0)}, "seeds must be one or several different ones"),
        ({"seeds": (0, -1)}, "seeds must be an integer of at least 0, got -1"),
        ({"seeds": (0, 20_000)}, "seeds must be none of 10000 and 20000, whose episodes are"),
        ({"shots": (0,)}, "shots must be an integer of at least 1, got 0"),
        ({"test_tasks": 0}, "test_tasks must be an integer of at least 1"),
        ({"pretrained_rates": (0.0,)}, "pretrained_rates must be a finite number above 0"),
        ({"iterations": 15}, "iterations must be a multiple of 10"),
    ],
)
def test_settings_of_the_sinusoid_are_checked_before_a_folder_is_made(change, message, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        sinusoid.run(dataclasses.replace(TINY, **change), sinusoid.Files(str(folder)))
    assert not folder.exists()


def test_the_table_says_of_how_many_tasks_the_loss_is_not_finite():
    losses = np.full((10, 3), 2.0)
    losses[:4, 1:] = np.inf
    both = [evaluation.Evaluation({"": {"loss": values}}) for values in (losses, losses[::-1])]
    label = {"method": "maml", "shots": 5}
    rows = [label | {"seed": seed} | row for seed, one in enumerate(both) for row in one.rows()]
    settings = dataclasses.replace(TINY, methods=("maml",), seeds=(0, 1))
    *_, line = sinusoid.table(rows, settings).splitlines()
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:] == ["MAML", "2.000 ± 0.000", "2.000 ± 0.000, 8 not finite", "", ""]


@pytest.mark.slow
def test_the_demo_leaves_what_it_lists(tmp_path, capsys):
    settings = dataclasses.replace(demo.SETTINGS, iterations=20, epoch_iterations=10, test_tasks=10)
    demo.run(str(tmp_path / "demo"), settings)
    text = capsys.readouterr().out
    for name in ("adaptation.png", "learner.keras", "saved_model/1", "tensorboard"):
        assert str(tmp_path / "demo" / name) in text and (tmp_path / "demo" / name).exists()
    assert keras.models.load_model(tmp_path / "demo" / "learner.keras").inner_steps == 1
    assert (tmp_path / "demo" / "saved_model" / "1" / "saved_model.pb").exists()


def test_a_command_says_what_is_wrong_without_a_traceback(tmp_path, capsys, monkeypatch):
    (tmp_path / "thesis.txt").write_text("precious")
    monkeypatch.setattr("sys.argv", ["sinusoid", "--output", str(tmp_path), "--iterations", "1000"])
    with pytest.raises(SystemExit) as exit_:
        command_line.run_command("sinusoid", "", sinusoid.run, sinusoid.Settings, sinusoid.Files)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("python -m experiments.sinusoid: ") and "holds no run" in error


@pytest.fixture
def requested():
    """Ends training as Ctrl-C does, once the optimizer has done so many steps."""

    class Request(keras.callbacks.Callback):
        def __init__(self, after):
            super().__init__()
            self.after = after

        def on_train_batch_end(self, batch, logs=None):
            if self.model.optimizer.iterations >= self.after:
                INTERRUPTION.request()

    INTERRUPTION.reset()
    yield Request
    INTERRUPTION.reset()


def train_annealed(folder, *others):
    """Trains four epochs: the first of first order, the last two with the last step alone."""
    orders = []
    order = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: orders.append(order.model.first_order)
    )
    learner, _ = train(
        folder,
        40,
        callbacks.DerivativeOrderAnnealing(epochs=1),
        order,
        *others,
        steps_per_execution=1,
        query_loss=query_losses.MultiStep(epochs=2),
    )
    return state(learner), orders


@pytest.fixture(scope="module")
def annealed(tmp_path_factory, without_xla):
    """State after annealing that was not interrupted."""
    values, orders = train_annealed(tmp_path_factory.mktemp("annealed") / "run")
    assert orders == [True] * 10 + [False] * 30
    return values


# Within the epochs of first order and of all losses; before and within those of the last one.
@pytest.mark.parametrize("after", [5, 14, 20, 25])
@pytest.mark.slow
def test_annealing_goes_on_where_it_was_interrupted(tmp_path, annealed, requested, after):
    with pytest.raises(KeyboardInterrupt):
        train_annealed(tmp_path, requested(after))
    INTERRUPTION.reset()
    resumed, orders = train_annealed(tmp_path)
    assert orders == ([True] * 10 + [False] * 30)[after:]
    for ours, theirs in zip(resumed, annealed, strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("after", [slow(10), 14])
def test_what_is_done_within_an_epoch_is_saved_at_ctrl_c(tmp_path, whole, requested, after):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, 40, requested(after), steps_per_execution=1)
    left = [path.name for path in (tmp_path / "checkpoints").glob("*.h5")]
    part = f"part-{after // 10:06d}-{after % 10:06d}.weights.h5"
    epoch = "epoch-000001.weights.h5"
    # A part counts as done for a rate that falls.
    assert runs.Checkpoint(tmp_path).steps_done(10) == after
    assert sorted(left) == [epoch] * (after >= 10) + [part] * (after % 10 > 0)
    INTERRUPTION.reset()
    steps = []
    counter = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: steps.append(batch)
    )
    learner, history = train(tmp_path, 40, counter, steps_per_execution=1)
    assert len(steps) == 40 - after
    for ours, theirs in zip(state(learner), whole[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(without_clock(history), without_clock(whole[1]), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    left = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert left == ["epoch-000004.weights.h5"]


@pytest.mark.slow
def test_ctrl_c_ends_a_command_with_one_line_and_the_same_command_continues(tmp_path):
    options = ["--methods", "maml", "--seeds", "0", "--epoch-iterations", "100"]
    options += ["--iterations", "1000000", "--output", str(tmp_path / "run")]
    said = kill_when(
        lambda: (tmp_path / "run" / "maml-seed0" / "history.csv").exists(),
        ["-m", "experiments.sinusoid", *options],
        signal.SIGINT,
        interruption.EXIT_CODE,
    )
    *_, last = said.strip().splitlines()
    assert last.startswith("Interrupted. The same command continues: python -m experiments.sinus")
    assert last.endswith(shlex.join(options)) and "Traceback" not in said
    assert runs.Checkpoint(tmp_path / "run" / "maml-seed0").steps_done(100) >= 100


# A process that runs the module alone: the package would import TensorFlow.
ALONE = f"""
import importlib.util, os, signal, threading
spec = importlib.util.spec_from_file_location("interruption", {str(interruption.__file__)!r})
interruption = importlib.util.module_from_spec(spec)
spec.loader.exec_module(interruption)
here = interruption.INTERRUPTION
"""


def run_alone(code):
    return subprocess.run(
        [sys.executable, "-c", ALONE + code], capture_output=True, text=True, timeout=60
    )


def test_ctrl_c_ends_at_once_what_has_nothing_to_save():
    result = run_alone(
        "with here.continuable(lambda: 'command'):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    threading.Event().wait()\n"  # as long as a compilation that never ends
    )
    assert result.returncode == 130
    assert result.stderr == "\nInterrupted. The same command continues: command\n"


def test_a_second_ctrl_c_does_not_wait_for_what_is_to_be_saved():
    result = run_alone(
        "with here.continuable(lambda: 'command'):\n"
        "    here.unsaved()\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    while not here.requested(): pass\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    threading.Event().wait()\n"
    )
    assert result.returncode == 130
    assert "Stopping as soon as what is done is saved" in result.stderr
    assert result.stderr.endswith("Interrupted. The same command continues: command\n")


def test_ctrl_c_is_as_it_was_after_a_command():
    result = run_alone(
        "before = signal.getsignal(signal.SIGINT)\n"
        "with here.continuable(str): assert signal.getsignal(signal.SIGINT) is not before\n"
        "assert signal.getsignal(signal.SIGINT) is before\n"
        "assert threading.active_count() == 1\n"
    )
    assert (result.returncode, result.stderr) == (0, "")
