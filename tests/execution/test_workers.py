"""Several processes train as one on all their tasks does."""

import json
import os
import pathlib
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

import keras
import numpy as np
import pytest
import tensorflow as tf
import worker_program

import keras_maml
from keras_maml.execution import workers as workers_module
from keras_maml.learners import agreement, joint_metrics

PROGRAM = pathlib.Path(worker_program.__file__)
SECONDS = 600  # of a collective that hangs
# Of weights after 20 meta-steps, and of all else.
TOLERANCES = {"float64": (1e-10, 1e-8), "float32": (1e-6, 3e-5), "mixed_float16": (1e-2, 5e-2)}


def run_workers(folder, count: int, *arguments: str) -> Sequence[str]:
    """Runs the program on workers on this machine; returns what they print."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("localhost", 0))
    addresses = [f"localhost:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    outputs = [folder / f"{index}.txt" for index in range(count)]
    processes = []
    try:
        for index, output in enumerate(outputs):
            task = {"type": "worker", "index": index}
            config = {"cluster": {"worker": addresses}, "task": task}
            paths = [str(PROGRAM.parents[1]), os.environ.get("PYTHONPATH", "")]
            with output.open("w") as file:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, str(PROGRAM), str(folder), *arguments],
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                        env={
                            **os.environ,
                            "TF_CONFIG": json.dumps(config),
                            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                            "CUDA_VISIBLE_DEVICES": "-1",
                        },
                    )
                )
        codes = [process.wait(SECONDS) for process in processes]
    except subprocess.TimeoutExpired:
        codes = None
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    printed = [output.read_text() for output in outputs]
    if codes != [0] * count:
        ends = [f"--- worker {index}\n{text[-3000:]}" for index, text in enumerate(printed)]
        pytest.fail(f"Exit codes {codes}.\n" + "\n".join(ends))
    return printed


def check_equal(folder, count: int, cases: Sequence[str]) -> None:
    run_workers(folder, count, *cases)
    of_workers = [pickle.loads((folder / f"{i}.pickle").read_bytes()) for i in range(count)]
    for case in cases:
        expected = worker_program.run(case, None, (0, 1))
        # What the steps amplify is held to less than the weights themselves.
        first, rest = TOLERANCES[worker_program.CASES[case].policy]
        for of_worker in of_workers:
            for name, value in expected.items():
                tolerance = first if name == "weights" else rest
                pairs = map(keras.tree.flatten, (of_worker[case][name], value))
                for found, one in zip(*pairs, strict=True):
                    np.testing.assert_allclose(
                        found, one, tolerance, tolerance, err_msg=f"{case}: {name}"
                    )


@pytest.mark.slow  # on a machine busy with other tests, workers miss each other's heartbeat
def test_two_workers_train_evaluate_and_predict_as_one(tmp_path):
    check_equal(tmp_path, 2, ["dense"])


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in worker_program.CASES if case != "dense"])
def test_two_workers_are_as_one(tmp_path, case):
    check_equal(tmp_path, 2, [case])


@pytest.mark.slow
def test_four_workers_are_as_one(tmp_path):
    check_equal(tmp_path, 4, ["at once"])


@pytest.mark.slow
def test_workers_are_told_what_is_wrong_with_their_data(tmp_path):
    for printed in run_workers(tmp_path, 2, "wrong"):
        assert "got the same tasks on several of the 2 workers" in printed
        assert "Workers differ in their numbers of meta batches: [3.0, 4.0]" in printed
        assert "Workers differ in the numbers of tasks of their shares: [1.0, 2.0]" in printed
        assert "does not take shuffle=True with arrays" in printed
        assert "does not take validation_split with arrays" in printed
        assert (
            "was not finite at training step 2; the learner keeps the weights of step 1" in printed
        )
        assert printed.count("\nThe 2 workers had shares of different sizes") == 2


@pytest.fixture
def two(monkeypatch):
    """One of two workers, whose sums are twice its own."""
    workers = keras_maml.Workers()
    workers.count = 2
    monkeypatch.setattr(workers, "all_reduce", lambda flat: 2 * flat)
    return workers


def test_without_tf_config_there_is_one_worker(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    workers = keras_maml.Workers()
    assert workers.shard == (0, 1)
    learner = keras_maml.MAML(keras.Sequential([keras.layers.Dense(1)]))
    learner.compile(loss="mean_squared_error", workers=workers)
    assert learner.several_workers is None


@pytest.mark.parametrize(
    ("cluster", "task", "place"),
    [
        ({"worker": ["a:1", "b:1"]}, {"type": "worker", "index": 1}, (1, 2)),
        ({"chief": ["a:1"], "worker": ["b:1"]}, {"type": "worker", "index": 0}, (1, 2)),
        ({"chief": ["a:1"], "worker": ["b:1"]}, {"type": "chief", "index": 0}, (0, 2)),
        ({"worker": ["a:1"]}, {"type": "worker", "index": "0"}, (0, 1)),
    ],
)
def test_a_worker_finds_its_place(cluster, task, place):
    assert workers_module._place(json.dumps({"cluster": cluster, "task": task})) == place


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "TF_CONFIG must be"),
        ('{"cluster": {"worker": ["a:1", "b:1"]}}', "TF_CONFIG must be"),
        (
            '{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "ps", "index": 0}}',
            "may have the roles",
        ),
        (
            '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}',
            "names task 2 of 2",
        ),
    ],
)
def test_a_wrong_tf_config_is_explained(config, message, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(ValueError, match=message):
        keras_maml.Workers()


def test_workers_come_before_anything_else(monkeypatch):
    config = '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}'
    monkeypatch.setenv("TF_CONFIG", config)
    tf.zeros([])
    with pytest.raises(RuntimeError, match="must be the first that uses TensorFlow"):
        keras_maml.Workers()


def test_a_sum_keeps_structure_shapes_and_dtypes(two):
    nest = {"a": tf.ones([2, 3]), "b": (tf.constant(2**40, tf.int64), tf.ones([1], tf.float64))}
    total = two.sum(nest)
    assert total["a"].shape == (2, 3)
    assert total["a"].dtype == tf.float32
    assert int(total["b"][0]) == 2**41
    assert total["b"][1].dtype == tf.float64


def test_shares_follow_each_other(two, monkeypatch):
    monkeypatch.setattr(two, "_assert_equal", lambda counts: tf.no_op())
    two.index = 1
    assert two.gather(tf.constant([[1.0], [2.0]])).numpy().ravel().tolist() == [0, 0, 2, 4]


def test_tasks_that_cannot_be_vectorised_take_turns_on_workers_too(two, monkeypatch, caplog):
    monkeypatch.setattr(agreement, "agree", lambda *_: None)
    monkeypatch.setattr(two, "check_equal", lambda **_: None)
    monkeypatch.setattr(two, "_assert_equal", lambda counts: tf.no_op())
    histories = []
    for workers in (None, two):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(3)
        stack = [keras.layers.Conv2DTranspose(2, 2), keras.layers.Flatten(), keras.layers.Dense(1)]
        learner = keras_maml.MAML(keras.Sequential([keras.Input((2, 2, 1)), *stack]))
        # The other of two workers has the same tasks, which leaves means as they are.
        metrics = [keras.metrics.RootMeanSquaredError(name="rmse")]
        learner.compile("adam", "mean_squared_error", metrics=metrics, workers=workers)
        x, y = np.random.default_rng(0).normal(size=(2, 2, 3, 2, 2, 1)), np.ones([2, 2, 3, 1])
        x, y = x.astype("float32"), y.astype("float32")
        batch = (x[0], y[0]), (x[1], y[1])
        histories.append(learner.fit(batch, epochs=3, verbose=0).history)
    assert caplog.text.count("cannot be vectorised") == 2
    for name, values in histories[0].items():
        np.testing.assert_allclose(histories[1][name], values, 1e-6, err_msg=name)


def test_a_metric_that_is_no_sum_is_refused():
    class Largest(keras.metrics.Metric):
        def __init__(self):
            super().__init__()
            self.largest = self.add_variable((), "zeros", aggregation="mean", name="largest")

    with pytest.raises(NotImplementedError, match="keeps 'largest', which is no sum"):
        joint_metrics.check_additive([Largest()])


def test_what_is_no_workers_is_refused():
    learner = keras_maml.MAML(keras.Sequential([keras.layers.Dense(1)]))
    with pytest.raises(TypeError, match=r"must be a keras_maml\.Workers"):
        learner.compile(loss="mean_squared_error", workers=2)


def test_workers_are_not_saved(tmp_path):
    learner = keras_maml.MAML(keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]))
    workers = keras_maml.Workers()
    learner.compile(loss="mean_squared_error", workers=workers)
    learner.build_on(keras_maml.episodes.sinusoid(meta_batch_size=1, tasks=1))
    learner.save(tmp_path / "learner.keras")
    loaded = keras.saving.load_model(tmp_path / "learner.keras")
    assert loaded.workers is None
    loaded.workers = workers
    assert loaded.workers is workers


def test_other_data_has_another_digest():
    episode = (tf.zeros([2]), tf.constant(["a"]))
    assert agreement._digest(episode) == agreement._digest((tf.zeros([2]), tf.constant(["a"])))
    assert agreement._digest(episode) != agreement._digest((tf.zeros([2]), tf.constant(["b"])))
