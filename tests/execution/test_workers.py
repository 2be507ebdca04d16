"""Several processes train as one on all their tasks does."""

import json
import socket
from collections.abc import Sequence

import keras
import numpy as np
import pytest
import tensorflow as tf
import worker_program
from worker_processes import results_of, run_workers

import keras_maml
from keras_maml.execution import faults
from keras_maml.execution import workers as workers_module
from keras_maml.learners import agreement, joint_metrics

KILLS = 20
# Of weights after 20 meta-steps, and of all else.
TOLERANCES = {"float64": (1e-9, 1e-7), "float32": (1e-6, 3e-5), "mixed_float16": (1e-2, 5e-2)}


def check_equal(folder, count: int, cases: Sequence[str]) -> None:
    run_workers(folder, count, *cases)
    of_workers = results_of(folder, count)
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
@pytest.mark.parametrize("case", ["in turns", "at once", "chunks", "two steps a call"])
def test_two_workers_are_as_one(tmp_path, case):
    check_equal(tmp_path, 2, [case])


@pytest.mark.slow
def test_two_workers_are_as_one_with_optimizers_rules_and_models_of_all_kinds(tmp_path):
    compiled = ("dense", "in turns", "at once", "chunks", "two steps a call")
    check_equal(tmp_path, 2, [case for case in worker_program.CASES if case not in compiled])


@pytest.mark.slow
@pytest.mark.parametrize(("count", "case"), [(3, "six tasks"), (4, "at once")])
def test_more_workers_are_as_one(tmp_path, count, case):
    check_equal(tmp_path, count, [case])


@pytest.mark.slow
def test_workers_are_told_what_is_wrong_with_their_data(tmp_path):
    printed = run_workers(tmp_path, 2, "wrong")
    for text in printed:
        assert "got the same tasks on several of the 2 workers" in text
        assert "Workers differ in their numbers of meta batches: [3.0, 4.0]" in text
        assert "Workers differ in the numbers of tasks of their shares: [1.0, 2.0]" in text
        assert "Workers differ in the numbers of tasks of their shares: [3.0, 4.0]" in text
        assert "Workers differ in the method that they call: ['evaluate', 'fit']" in text
        assert "does not take shuffle=True with arrays" in text
        assert "does not take validation_split with arrays" in text
        assert "x of the support set holds" in text
        assert "The model takes examples of shape (1,)" in text
        assert "Nothing was learned." in text
        assert "was not finite at training step 2; the learner keeps the weights of step 1" in text
        assert text.count("\nThe 2 workers had shares of different sizes") == 2
        assert text.count("\nKept.") == 2
    assert printed[0].count("Worker 1 failed with ValueError: ") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "devices", "strategy"),
    [
        (1, "one device", "MirroredStrategy of 1 replica."),
        (1, "two devices", "MirroredStrategy of 2 replicas."),
        (2, "two workers", "CollectiveAllReduceStrategy of 2 replicas."),
    ],
)
def test_a_learner_in_the_scope_of_a_strategy_is_refused(tmp_path, count, devices, strategy):
    methods = ["build_on", "fit", "evaluate", "predict", "adapt", "meta_gradients", "compile"]
    methods += ["train_on_batch", "test_on_batch", "predict_on_batch"]
    for text in run_workers(tmp_path, count, f"scopes:{devices}"):
        assert "was not refused" not in text.replace("Workers: was not refused", "")
        for where in [*methods, "compile outside"]:
            caller = where.split()[0]
            (said,) = (line for line in text.splitlines() if line.startswith(f"{where}: "))
            assert f"{caller} runs in one process on one device, and got a {strategy}" in said
            assert "learner.compile(..., workers=keras_maml.Workers())" in said
        assert ("must be the first that uses TensorFlow" in text) == (count > 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "told", "itself"),
    [
        (
            "failing",
            "WorkersError: Worker 1 failed with ZeroDivisionError: no more patience",
            "ZeroDivisionError: no more\npatience",
        ),
        ("short", "WorkersError: Worker 1 had no more meta-batches after 3, and others", None),
        ("killed", "WorkersError: Lost worker 1 (localhost:", ""),
    ],
)
def test_a_worker_that_stops_stops_all(tmp_path, case, told, itself):
    printed = run_workers(tmp_path, 3, f"stopping:{case}", killed=1 if case == "killed" else None)
    for index, text in enumerate(printed):
        assert (itself if index == 1 and itself is not None else told) in text


@pytest.mark.slow
def test_killed_workers_go_on_from_the_last_checkpoint_bit_for_bit(tmp_path):
    run_workers(tmp_path / "whole", 2, "resumed:")
    random = np.random.default_rng(0)
    for _ in range(KILLS):
        worker, writing = random.integers(2, size=2)
        moment = random.integers(1, 16)  # within two epochs
        case = f"resumed:{worker},{moment},{writing}"
        printed = run_workers(tmp_path / "cut", 2, case, killed=worker)
        assert f"WorkersError: Lost worker {worker} (localhost:" in printed[1 - worker]
    for text in run_workers(tmp_path / "cut", 2, "resumed:"):
        assert f"{worker_program.EPOCHS - 1}]" in text
        assert "Trained in epochs [0," not in text
    whole, cut = (results_of(tmp_path / name, 2) for name in ("whole", "cut"))
    for one, other in zip(keras.tree.flatten(whole), keras.tree.flatten(cut), strict=True):
        np.testing.assert_array_equal(one, other)


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


def test_several_steps_a_call_are_said_to_be_one(two, monkeypatch, caplog):
    monkeypatch.setattr(agreement, "agree", lambda *_: None)
    learner = keras_maml.MAML(keras.Sequential([keras.layers.Dense(1)]))
    learner.compile("sgd", "mean_squared_error", workers=two, steps_per_execution=5)
    for _ in range(2):
        learner.build_on(keras_maml.episodes.sinusoid(meta_batch_size=2, tasks=2))
    assert caplog.text.count("steps_per_execution=5 counts as 1 on 2 workers") == 1


@pytest.fixture
def told(monkeypatch):
    """What this worker tells the others."""
    texts = []
    monkeypatch.setattr(faults, "tell", texts.append)
    return texts


def test_an_error_is_told_to_workers_that_wait(two, told):
    with pytest.raises(ZeroDivisionError), two.sharing_errors(counted_on=True):
        raise ZeroDivisionError("nothing\nis left")
    assert told == ["Worker 0 failed with ZeroDivisionError: nothing is left"]


def test_an_error_of_all_workers_is_not_told(two, told):
    of_all = pytest.raises(ValueError, match="Workers differ in size: ")
    with of_all, two.sharing_errors(counted_on=True):
        two.check_equal(size=3)
    assert not told


def test_an_error_in_what_a_worker_is_given_leaves_the_connections_whole(two, told, monkeypatch):
    said = []
    monkeypatch.setattr(two, "_texts", lambda text: said.append(text) or said)
    with pytest.raises(ValueError, match="one"), two.sharing_errors(counted_on=False):
        raise ValueError("one")
    assert (told, said) == ([], ["Worker 0 failed with ValueError: one"])
    with pytest.raises(faults.WorkersError, match="ValueError: one"):
        two.all_ready()


def test_a_worker_that_answers_no_more_is_named(two, told, monkeypatch):
    monkeypatch.setattr(faults, "LINGERING", 0)
    with socket.create_server(("localhost", 0)) as there, socket.socket() as gone:
        gone.bind(("localhost", 0))  # and does not listen
        two._addresses = [f"localhost:{one.getsockname()[1]}" for one in (there, gone)]
        broken = tf.errors.UnavailableError(None, None, "Collective ops is aborted by: reset")
        lost = pytest.raises(faults.WorkersError, match=r"Lost worker 1 \(localhost:")
        with lost, two.sharing_errors(counted_on=True):
            raise broken
        assert told[0].startswith("Lost worker 1 (")
        del two._addresses[1]
        assert faults.reason(broken, two._addresses).startswith("The connection between workers")


def test_a_killed_worker_is_named_that_seems_to_answer_at_first(monkeypatch):
    answers = iter([True, True, True, False])
    monkeypatch.setattr(faults, "_answers", lambda address: next(answers))
    broken = tf.errors.UnavailableError(None, None, "Collective ops is aborted by: reset")
    assert faults.reason(broken, ["a:1", "b:1"]).startswith("Lost worker 1 (b:1)")


def test_who_does_not_come_is_told_of(told):
    with faults.told_after(0, "too late"):
        while not told:
            pass
    with faults.told_after(600, "in time"):
        pass
    assert told == ["too late"]


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
