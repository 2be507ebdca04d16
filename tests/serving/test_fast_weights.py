"""Vectors hold all that a prediction needs, and the checksum tells what they mean."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_maml import MAML
from keras_maml.learners.family import MAMLPlusPlus
from keras_maml.serving.fast_weights import ServedLearner

STEPS = 2


def built(learner, x, y, loss="mean_squared_error"):
    learner.compile("sgd", loss, run_eagerly=True)
    half = x[None], y[None]
    learner.build_on(tf.data.Dataset.from_tensors((half, half)))
    return learner


@pytest.fixture
def examples():
    random = np.random.default_rng(0)
    return random.normal(size=(6, 2)).astype("float32"), random.normal(size=(6, 1))


@pytest.mark.parametrize("how", ["transductive", "inductive"])
def test_scales_of_every_step_are_those_of_the_step_that_adaptation_reached(examples, how):
    stack = [keras.Input((2,)), keras.layers.Dense(3), keras.layers.BatchNormalization()]
    model = keras.Sequential([*stack, keras.layers.Dense(1)])
    learner = built(MAMLPlusPlus(model, 0.1, inner_steps=STEPS), *examples)
    for variable in learner.model.variables:
        if variable.name in ("gamma", "beta"):  # [steps, units]
            variable.assign(variable + keras.ops.arange(STEPS, dtype="float32")[:, None])
    served, (x, y) = ServedLearner(learner, how), examples
    support, queries = (tf.constant(x[None]), tf.constant(y[None])), tf.constant(x[None])
    weights = served.adapt(support, STEPS, every_step=True)[0]
    for step in range(STEPS + 1):
        adapted = learner.adapt(x, y, steps=step, batch_normalization=how)
        ours = served.predict_with(weights[None, step], queries)[0]
        np.testing.assert_allclose(ours, adapted(x), rtol=0, atol=1e-5)
    assert served.size == weights.shape[-1]


class RandomFeatures(keras.layers.Layer):
    """A layer whose constants come from its seed, with a layer of Keras's among its settings."""

    def __init__(self, seed, inner=None, **kwargs):
        super().__init__(**kwargs)
        self.seed, self.inner = seed, inner or keras.layers.Dropout(0.1, seed=np.random.randint(99))

    def call(self, x):
        matrix = np.random.default_rng(self.seed).normal(size=(2, 2)).astype("float32")
        return self.inner(keras.ops.matmul(x, matrix))

    def get_config(self):
        inner = keras.saving.serialize_keras_object(self.inner)
        return super().get_config() | {"seed": self.seed, "inner": inner}


class Columns(keras.layers.Layer):
    """A layer set to what Keras cannot write."""

    def __init__(self, columns, **kwargs):
        super().__init__(**kwargs)
        self.columns = columns

    def call(self, x):
        return keras.ops.take(x, sorted(self.columns), axis=-1)

    def get_config(self):
        return super().get_config() | {"columns": self.columns}


def checksum(examples, *layers):
    dense = keras.layers.Dense(1, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((2,)), *layers, dense])
    return ServedLearner(built(MAML(model, 0.1), *examples)).checksum()


def test_constants_that_come_from_a_seed_tell_learners_apart(examples):
    ours, again, other = (checksum(examples, RandomFeatures(seed)) for seed in (0, 0, 1))
    assert ours == again != other
    ours, other = (checksum(examples, keras.layers.Dropout(0.1, seed=seed)) for seed in (0, 1))
    assert ours == other  # which no prediction reads


def test_settings_that_keras_cannot_write_tell_learners_apart(examples):
    ours, again, other = (checksum(examples, Columns({column})) for column in (0, 0, 1))
    assert ours == again != other
