"""Graphs are freed with the learners and functions that they were traced for."""

import gc

import keras
import pytest
import tensorflow as tf
import zoo

from keras_maml import MAML
from keras_maml.execution import tracing


@pytest.fixture(autouse=True)
def only_what_a_test_makes():
    """Nobody looks for graphs and garbage among the millions of objects of other tests."""
    gc.freeze()


def graphs_besides(known):
    """Returns the graphs of functions that are alive, without some that the caller keeps alive."""
    gc.collect()
    ids = set(map(id, known))
    graphs = (thing for thing in gc.get_objects() if isinstance(thing, tf.Graph))
    return [graph for graph in graphs if hasattr(graph, "outer_graph") and id(graph) not in ids]


def train(task_map, **settings):
    case = zoo.CASES["dense"]
    learner = MAML(case.build(), 0.1, task_map=task_map, **settings)
    learner.compile(keras.optimizers.Adam(), case.loss, jit_compile=False)
    data = zoo.episodes(case)
    learner.fit(data, verbose=0)
    learner.predict(data, verbose=0)
    (x, y), (x_query, _) = data
    learner.adapt(x[0], y[0]).predict(x_query[0], verbose=0)


@pytest.mark.slow
@pytest.mark.parametrize("task_map", ["vectorized", "sequential"])
def test_a_learner_leaves_no_graph_behind(task_map):
    train(task_map, rematerialize=True)
    before = graphs_besides([])
    train(task_map, rematerialize=True)
    assert graphs_besides(before) == []


@tracing.custom_gradient
def _square(x):
    return x * x, lambda upstream: 2 * x * upstream


def test_a_gradient_is_there_as_long_as_the_graph():
    before, registered = graphs_besides([]), len(tracing._REGISTRY)

    @tracing.function
    def square(x):
        return tf.cond(x > 0, lambda: _square(tf.identity(x)), lambda: x)

    x = tf.constant(3.0)
    square(x)
    assert graphs_besides(before)
    with tf.GradientTape() as tape:  # differentiated after what was traced has been tied
        tape.watch(x)
        y = square(x)
    assert float(tape.gradient(y, x)) == 6.0
    assert len(tracing._REGISTRY) > registered
    del square, tape
    assert (graphs_besides(before), len(tracing._REGISTRY)) == ([], registered)
