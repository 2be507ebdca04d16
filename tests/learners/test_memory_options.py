"""`task_chunk` and `rematerialize` change memory and time, not the meta-gradient."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo

from keras_maml import MAML

OPTIONS = ({"rematerialize": True}, {"task_chunk": 2}, {"rematerialize": True, "task_chunk": 2})


def make_learner(case, compile_arguments=None, **settings):
    keras.utils.set_random_seed(0)
    learner = MAML(case.build(), 0.1, **{"inner_steps": 2, **settings})
    learner.compile("sgd", case.loss, **(compile_arguments or {"jit_compile": False}))
    return learner


def assert_equal(results, expected, rtol):
    tf.nest.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12), results, expected
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(zoo.slow_if(options != OPTIONS[2], "dense", options) for options in OPTIONS),
        pytest.param("normalization", OPTIONS[2], marks=pytest.mark.slow),
        ("transposed_convolution", OPTIONS[2]),  # one task after another
    ],
    ids=str,
)
def test_the_meta_gradient_is_the_same(name, options):
    case = zoo.CASES[name]
    data = zoo.episodes(case, tasks=3)  # chunks of 2 and 1
    expected = make_learner(case).meta_gradients(*data)
    assert_equal(make_learner(case, **options).meta_gradients(*data), expected, 1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "compile_arguments", [zoo.slow({"jit_compile": True}), {"run_eagerly": True}]
)
def test_it_is_the_same_compiled_and_eager(compile_arguments):
    case = zoo.CASES["dense"]
    data = zoo.episodes(case, tasks=3)
    expected = make_learner(case).meta_gradients(*data)
    learner = make_learner(case, compile_arguments, rematerialize=True, task_chunk=2)
    assert_equal(learner.meta_gradients(*data), expected, 1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("settings", [{"first_order": True}, {"inner_steps": 0}], ids=str)
def test_it_is_the_same_in_first_order_and_without_steps(settings):
    case = zoo.CASES["dense"]
    data = zoo.episodes(case)
    expected = make_learner(case, **settings).meta_gradients(*data)
    learner = make_learner(case, rematerialize=True, **settings)
    assert_equal(learner.meta_gradients(*data), expected, 1e-9)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_training_and_evaluation_are_the_same(options):
    case = zoo.CASES["dropout"]
    data = zoo.episodes(case, tasks=5)
    results = []
    for each in ({}, options):
        learner = make_learner(case, **each)
        history = learner.fit(data, epochs=2, verbose=0).history
        predictions = learner.predict(data, verbose=0)
        results.append((history, learner.evaluate(data, verbose=0), predictions))
    assert_equal(*results, 1e-9)


def test_options_survive_saving(tmp_path):
    learner = make_learner(zoo.CASES["dense"], rematerialize=True, task_chunk=2)
    learner.build_on(zoo.episodes(zoo.CASES["dense"]))
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    assert loaded.rematerialize is True
    assert loaded.task_chunk == 2


@pytest.mark.parametrize("task_chunk", [0, -1, 1.5, True])
def test_a_chunk_is_a_positive_number_of_tasks(task_chunk):
    with pytest.raises(ValueError, match="task_chunk must be an integer of at least 1, got"):
        make_learner(zoo.CASES["dense"], task_chunk=task_chunk)


def test_rematerialize_is_a_choice():
    with pytest.raises(ValueError, match=r"rematerialize must be one of \(False, True\), got 'no'"):
        make_learner(zoo.CASES["dense"], rematerialize="no")


def test_chunks_need_meta_batches_of_one_size():
    case = zoo.CASES["dense"]
    episodes = tf.data.Dataset.from_tensor_slices(zoo.episodes(case, tasks=5)).batch(3)
    with pytest.raises(ValueError, match="drop_remainder=True"):
        make_learner(case, task_chunk=2).fit(episodes, verbose=0)


def test_the_program_does_not_grow_with_rematerialized_steps():
    case = zoo.CASES["dense"]
    data = tf.nest.map_structure(tf.constant, zoo.episodes(case))

    def operations(steps, **options):
        graph = make_learner(case, inner_steps=steps, **options).meta_step_graph(*data)
        functions = graph.as_graph_def().library.function
        return sum(len(function.node_def) for function in functions)

    assert operations(9, rematerialize=True) == operations(3, rematerialize=True)
    assert operations(9) > 2 * operations(3)
