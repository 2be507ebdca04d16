"""Metrics before adaptation, and of adapted models, are those that were compiled."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo

from keras_maml import MAML
from keras_maml.learners.metrics import clone_metrics


class Within(keras.metrics.Metric):
    """The share of small errors; Keras asks for no more than this."""

    def __init__(self, bound, name="within"):
        super().__init__(name=name)
        self.bound = bound
        self.counts = [self.add_weight((), "zeros", name=name) for name in ("small", "all")]
        self.largest = tf.Variable(0.0)
        self.error = keras.metrics.MeanAbsoluteError()
        self.small = self.is_small

    def is_small(self, error):
        self.largest.assign(tf.maximum(self.largest, tf.reduce_max(error)))
        return error < self.bound

    def update_state(self, y, predictions, sample_weight=None):
        small = self.small(tf.abs(y - predictions))
        self.counts[0].assign_add(tf.reduce_sum(tf.cast(small, "float32")))
        self.counts[1].assign_add(keras.ops.cast(tf.size(y), "float32"))
        self.error.update_state(y, predictions)

    def result(self):
        return self.counts[0] / self.counts[1] + 10 * self.error.result()


class WithDefault(keras.metrics.Mean):
    """What it is made with is not in its config."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def update_state(self, y, predictions, sample_weight=None):
        super().update_state(self.factor * tf.abs(y - predictions))


Y, GOOD, BAD = (np.full((2, 1), value, "float32") for value in (0.0, 0.25, 0.75))


METRICS = {
    "required argument": lambda: Within(0.5),
    "argument with a default": lambda: WithDefault(2.0, name="mine"),
    "function": lambda: keras.metrics.MeanMetricWrapper(
        lambda y, p, power: abs(y - p) ** power, "own", power=3
    ),
    "of Keras": lambda: keras.metrics.AUC(thresholds=[0.5]),
}


@pytest.mark.parametrize("name", METRICS)
def test_a_copy_measures_the_same_and_counts_by_itself(name):
    metric = METRICS[name]()
    metric.update_state(Y, GOOD)
    before = np.array(metric.result())
    (copy,) = clone_metrics([metric])
    copy.update_state(Y, BAD)
    assert np.array(metric.result()) == before
    other = np.array(copy.result())
    assert (copy.name, len(copy.variables)) == (metric.name, len(metric.variables))
    metric.reset_state()
    metric.update_state(Y, BAD)
    assert np.array(metric.result()) == other
    if isinstance(metric, Within):
        assert copy.largest is not metric.largest
        assert copy.small.__self__ is copy


def test_metrics_that_keras_takes_are_measured_before_adaptation():
    learner = MAML(zoo.CASES["dense"].build(), 0.0)
    learner.compile("sgd", "mse", metrics=[Within(0.5), WithDefault(2.0)], jit_compile=False)
    found = learner.test_on_batch(zoo.episodes(zoo.CASES["dense"]), return_dict=True)
    names = [name for name in found if not name.endswith("_before")]
    assert len(names) == 3
    for name in names:
        assert found[name] == pytest.approx(found[f"{name}_before"])
