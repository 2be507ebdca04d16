"""A step is one XLA program where tasks run at once, and one per core where they take turns."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo

from keras_maml import MAML
from keras_maml.execution import compilation
from keras_maml.execution.placement import PROCESSOR, using

TURNS = {"task_map": "sequential"}
PLAIN = {"jit_compile": False}
METRICS = {"metrics": ["mae"]}
CASE = zoo.CASES["dropout"]  # with random seeds, which every part has to use as the whole does


def make_learner(case=CASE, options=None, **settings):
    keras.utils.set_random_seed(0)
    learner = MAML(case.build(), 0.1, **{"inner_steps": 2, **settings})
    learner.compile(keras.optimizers.Adam(0.01), case.loss, **(options or {}))
    return learner


def assert_close(found, expected, rtol=1e-9):
    tf.nest.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12), found, expected
    )


def called_programs(learner, data):
    """Returns the names of the compiled functions that one training step calls, in order."""
    learner.build_on(data)
    graph = tf.function(learner.train_step, autograph=False).get_concrete_function(data).graph
    operations = [o for o in graph.get_operations() if o.type.endswith("PartitionedCall")]
    return [o.get_attr("f").name for o in operations if o.get_attr("_XlaMustCompile")]


@pytest.fixture
def cores(monkeypatch):
    """Lets a test say how many cores there are."""
    return lambda count: monkeypatch.setattr(compilation, "count_cores", lambda: count)


def test_tasks_that_run_at_once_are_one_program(cores):
    cores(2)
    assert len(called_programs(make_learner(), zoo.episodes(CASE, tasks=4))) == 1


def test_tasks_that_take_turns_are_calls_of_one_program(cores):
    cores(2)
    programs = called_programs(make_learner(**TURNS), zoo.episodes(CASE, tasks=4))
    first, second, update = programs
    assert first == second != update


def test_one_core_takes_all_tasks(cores):
    cores(1)
    assert len(called_programs(make_learner(**TURNS), zoo.episodes(CASE, tasks=4))) == 2


def test_a_model_that_does_not_vectorise_takes_turns_from_the_first_step_on(cores):
    cores(2)
    case = zoo.CASES["transposed_convolution"]
    assert len(called_programs(make_learner(case), zoo.episodes(case, tasks=2))) == 3


@pytest.mark.parametrize(
    ("tasks", "task_chunk", "cores", "expected"),
    [
        (32, None, 2, 2),
        (32, None, 1, 1),
        (25, None, 2, 5),  # of one size, for each size is compiled
        (7, None, 2, 7),
        (4, None, 16, 4),
        (32, 1, 2, 1),
        (32, 2, 2, 2),
        (25, 3, 4, 1),
        (24, 5, 8, 4),
    ],
)
def test_a_meta_batch_is_cut_into_equal_parts(tasks, task_chunk, cores, expected, monkeypatch):
    monkeypatch.setattr(compilation, "count_cores", lambda: cores)
    assert compilation.count_slices(tasks, task_chunk) == expected


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "settings",
    [{"rematerialize": True}, *map(zoo.slow, ({"task_chunk": 1}, {"first_order": True}))],
    ids=str,
)
def test_the_meta_gradient_of_parts_is_that_of_the_whole(settings, cores):
    cores(2)
    data = zoo.episodes(CASE, tasks=6)
    learners = [make_learner(**TURNS, **settings), make_learner(options=PLAIN, **settings)]
    assert_close(*(learner.meta_gradients(*data) for learner in learners))


@pytest.mark.slow  # several programs; their gradients are compared above
@pytest.mark.usefixtures("float64")
def test_training_and_evaluation_are_those_of_one_program(cores):
    data, results = zoo.episodes(CASE, tasks=6), []
    for count, options in ((1, PLAIN), (4, METRICS)):
        cores(count)
        learner = make_learner(options=METRICS | options, **TURNS)
        history = learner.fit(data, epochs=2, verbose=0).history  # of two draws of the dropout
        trajectories = learner.trajectories(*data, steps=2)
        predictions = learner.predict(data, verbose=0)
        results.append((history, trajectories, predictions, learner.evaluate(data, verbose=0)))
    for found in results[1:]:
        assert_close(found, results[0])


@pytest.mark.slow
def test_training_is_the_same_to_the_bit_and_with_several_steps_in_one_call(cores):
    cores(2)
    stacked = tf.nest.map_structure(
        lambda *tensors: tf.stack(tensors), *(zoo.episodes(CASE, seed=seed) for seed in range(4))
    )
    weights = []
    for steps in (1, 2):
        learner = make_learner(options={"steps_per_execution": steps}, **TURNS)
        learner.fit(tf.data.Dataset.from_tensor_slices(stacked), verbose=0)
        weights.append(learner.get_weights())
    for ours, theirs in zip(*weights, strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_meta_batches_of_unknown_size_are_taken_as_they_come(cores):
    cores(2)
    episodes = tf.data.Dataset.from_tensor_slices(zoo.episodes(CASE, tasks=5)).batch(3)
    learners = [make_learner(**TURNS), make_learner(options=PLAIN)]
    histories = [learner.fit(episodes, epochs=2, verbose=0).history for learner in learners]
    assert_close(*histories)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("tasks", [4, 9])  # two parts for two cores, and three
def test_large_parts_keep_to_a_core_each(tasks, cores, monkeypatch):
    cores(2)
    data = zoo.episodes(CASE, tasks=tasks)
    expected = make_learner(**TURNS).meta_gradients(*data)
    ways = []
    keep = compilation.on_one_core_each
    monkeypatch.setattr(compilation, "on_one_core_each", lambda *a: ways.append(a) or keep(*a))
    with using(dataclasses.replace(PROCESSOR, min_slice=0)):
        assert_close(make_learner(**TURNS).meta_gradients(*data), expected)
    ((_, _, parts),) = ways
    assert parts == (2 if tasks == 4 else 3)


@pytest.mark.parametrize(
    ("shapes", "cores_", "expected"),
    [
        ([(4, 5, 3), (4, 5)], 2, True),  # 160 bytes a part, of 160
        ([(4, 5, 3), (4, 4)], 2, False),
        ([(4, 5, 3), (4, 5)], 3, False),  # a core would have nothing to do
        ([(4, None, 300)], 2, False),
    ],
)
def test_parts_keep_to_a_core_where_it_is_worth_it(shapes, cores_, expected, cores):
    cores(cores_)
    elements = tuple(tf.TensorSpec(shape) for shape in shapes)
    with using(dataclasses.replace(PROCESSOR, min_slice=160)):
        assert compilation.keep_to_cores(elements, 2) == expected
