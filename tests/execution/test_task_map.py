"""All tasks at once where the layers allow it; one after another, and said so, where not."""

import logging
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo

from keras_maml import MAML
from keras_maml.execution.placement import PROCESSOR
from keras_maml.execution.task_map import _failed_operations, map_sequentially, refused_loops
from keras_maml.execution.tasks import Tasks

CASE = zoo.CASES["transposed_convolution"]


def make_learner(**settings):
    learner = MAML(CASE.build(), 0.1, **settings)
    learner.compile("sgd", CASE.loss, jit_compile=False)
    return learner


def test_a_layer_that_does_not_vectorise_is_named_once(caplog):
    learner = make_learner()
    data = zoo.episodes(CASE)
    with caplog.at_level(logging.WARNING, "keras_maml"):
        learner.fit(data, epochs=2, verbose=0)
        learner.evaluate(data, verbose=0)
    messages = [record.getMessage() for record in caplog.records if record.name == "keras_maml"]
    assert len(messages) == 1
    assert messages[0].startswith("Layer 'upsample' cannot be vectorised over tasks; the tasks")
    assert not learner.tasks.run_at_once()
    assert learner.task_map == learner.get_config()["task_map"] == "auto"  # which it was set to


def test_insisting_on_vectorisation_raises():
    with pytest.raises(ValueError, match="expected to be loop invariant"):
        make_learner(task_map="vectorized").meta_gradients(*zoo.episodes(CASE))


@keras.saving.register_keras_serializable("tests")
class Bessel(keras.layers.Layer):
    """An operation that XLA has not."""

    def call(self, x):
        return tf.math.special.bessel_j0(x)


def bessel_learner(inner_learning_rate=0.1):
    """A learner that neither vectorises nor compiles, and the kind of its episodes."""
    stack = [keras.layers.Conv2DTranspose(2, 3), Bessel(), keras.layers.Flatten()]
    model = keras.Sequential([keras.Input((3, 3, 1)), *stack, keras.layers.Dense(1)])
    learner = MAML(model, inner_learning_rate)
    learner.compile("sgd", "mean_squared_error")
    return learner, zoo.Case(lambda: model, (3, 3, 1))


@pytest.mark.slow  # each has tests of its own
def test_what_neither_vectorises_nor_compiles_runs_all_the_same(caplog):
    learner, case = bessel_learner()
    for seed in range(2):
        learner.fit(zoo.episodes(case, seed=seed), verbose=0)
    assert learner.optimizer.iterations == 2 and not learner.jit_compile
    said = [record.getMessage() for record in caplog.records if record.name == "keras_maml"]
    assert len(said) == 2 and "cannot be vectorised" in said[0]
    assert said[1].startswith("XLA cannot compile BesselJ0") and "jit_compile=False" in said[1]


@pytest.mark.slow
def test_training_that_does_not_compile_loses_nothing_of_what_is_read_once():
    (plain, case), (learner, _) = (bessel_learner(inner_learning_rate=0.01) for _ in range(2))
    learner.model.set_weights(plain.model.get_weights())
    plain.compile("sgd", "mean_squared_error", jit_compile=False)
    for seed in range(2):
        plain.train_on_batch(zoo.episodes(case, seed=seed))
    learner.fit((zoo.episodes(case, seed=seed) for seed in range(2)), steps_per_epoch=2, verbose=0)
    assert learner.optimizer.iterations == 2 and not learner.jit_compile
    for ours, theirs in zip(learner.model.get_weights(), plain.model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_an_evaluation_that_does_not_compile_and_is_read_once_says_what_to_do():
    learner, case = bessel_learner()
    with pytest.raises(ValueError, match="XLA cannot compile.*compile with jit_compile=False"):
        learner.evaluate((zoo.episodes(case) for _ in range(2)), steps=2, verbose=0)


@pytest.mark.parametrize("name", [*map(zoo.slow, ("convolution", "attention")), "dropout"])
def test_models_whose_layers_allow_it_are_vectorised(name):
    case = zoo.CASES[name]
    learner = MAML(case.build(), 0.1)
    learner.compile("sgd", case.loss, jit_compile=False)
    learner.meta_gradients(*zoo.episodes(case))
    assert learner.tasks.run_at_once()


def test_an_error_of_the_function_itself_is_raised_as_it_is():
    def broken(run, x):
        def one(element):
            raise KeyError("mine")

        return run.map(one, x)

    tasks = Tasks()
    with pytest.raises(KeyError, match="mine"):
        tf.function(lambda x: tasks.call(broken, x))(tf.ones([2, 1]))
    assert tasks.run_at_once()


@pytest.mark.parametrize("mode", ["vectorized", "sequential"])
def test_nests_come_back_as_nests(mode):
    def step(run, shared, elements):
        assert run.route == ("vectorized" if mode == "vectorized" else "plain")
        return run.map(lambda e: {"sum": e[0] + shared, "twice": [2 * e[1]]}, elements)

    elements = (tf.constant([1.0, 2.0]), tf.constant([[3], [4]]))
    result = tf.function(lambda: Tasks(mode).call(step, tf.constant(10.0), elements))()
    assert result["sum"].numpy().tolist() == [11.0, 12.0]
    assert result["twice"][0].numpy().tolist() == [[6], [8]]


@pytest.mark.parametrize(
    ("mode", "examples", "at_once"),
    [
        ("auto", 2, True),
        ("auto", 3, False),
        ("auto", None, True),  # as far as one knows
        ("vectorized", 3, True),
        ("sequential", 2, False),
    ],
)
def test_only_auto_gives_way_to_large_patches(mode, examples, at_once):
    assert Tasks(mode, patch_bytes=PROCESSOR.task_patches // 2).run_at_once(examples) == at_once


@pytest.mark.parametrize(
    ("mode", "jit_compile", "at_once"),
    [("auto", True, False), ("auto", False, True), ("vectorized", True, True)],
)
def test_recurrent_layers_take_turns_where_xla_compiles_their_loops(mode, jit_compile, at_once):
    stack = [keras.layers.Bidirectional(keras.layers.GRU(2)), keras.layers.Dense(1)]
    learner = MAML(keras.Sequential([keras.Input((4, 3)), *stack]), task_map=mode)
    assert learner.tasks.run_at_once(jit_compile=jit_compile) == at_once


def test_a_sequential_map_without_results_has_none():
    assert tf.function(lambda x: map_sequentially(lambda e: {}, x))(tf.ones([2, 1])) == {}
    assert map_sequentially(lambda e: e + 1, tf.constant([1, 2])).numpy().tolist() == [2, 3]
    assert np.array_equal(map_sequentially(lambda e: (e, -e), tf.constant([1]))[1], [-1])


def test_what_other_threads_log_is_neither_lost_nor_an_error():
    logged = []
    handler = logging.Handler()
    handler.emit = logged.append
    tf.get_logger().addHandler(handler)
    try:
        with refused_loops(), _failed_operations():
            other = threading.Thread(target=tf.get_logger().error, args=["uses a while_loop"])
            other.start()
            other.join()
    finally:
        tf.get_logger().removeHandler(handler)
    assert [record.getMessage() for record in logged] == ["uses a while_loop"]
