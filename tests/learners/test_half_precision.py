"""Layers in float16: losses are scaled through both loops, and what overflows is left out."""

import keras
import numpy as np
import pytest
import zoo
from keras import layers

from keras_maml import MAML


def tiny_error(y, predictions):
    """Its gradients are less than the least number of float16."""
    return 1e-7 * keras.losses.mean_squared_error(y, predictions)


def make_learner(policy, optimizer=None, loss=tiny_error, rate=1e6, **settings):
    keras.utils.set_random_seed(0)
    stack = [layers.Dense(8, "tanh", dtype=policy), layers.Dense(1, dtype=policy)]
    learner = MAML(keras.Sequential([keras.Input((3,)), *stack]), rate, **settings)
    optimizer = optimizer or keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1e4))
    learner.compile(optimizer, loss, jit_compile=False)
    return learner


def flat(tensors):
    return np.concatenate([np.ravel(np.asarray(tensor, "float64")) for tensor in tensors])


DATA = zoo.episodes(zoo.CASES["dense"])


@pytest.mark.parametrize(
    "settings",
    [{}, {"first_order": True}, zoo.slow({"rematerialize": True, "task_map": "sequential"})],
    ids=str,
)
def test_the_meta_gradient_is_nearly_that_of_float32(settings):
    expected, exact = make_learner("float32", **settings).meta_gradients(*DATA)
    half = make_learner("mixed_float16", **settings)
    loss, gradients = half.meta_gradients(*DATA)
    assert {v.dtype for v in half.trainable_variables} == {"float32"}
    error = np.linalg.norm(flat(gradients) - flat(exact)) / np.linalg.norm(flat(exact))
    assert error < 0.02  # float16 has eleven bits
    assert float(loss) == pytest.approx(float(expected), rel=0.02)


def test_large_losses_do_not_overflow():
    data = [(x, 300 * y) for x, y in DATA]
    settings = {"optimizer": keras.optimizers.SGD(), "loss": "mse", "rate": 1e-3}
    expected, exact = make_learner("float32", **settings).meta_gradients(*data)
    loss, gradients = make_learner("mixed_float16", **settings).meta_gradients(*data)
    assert float(expected) > 1e4
    assert float(loss) == pytest.approx(float(expected), rel=0.02)
    assert np.linalg.norm(flat(gradients) - flat(exact)) < 0.02 * np.linalg.norm(flat(exact))


def test_without_scaling_most_numbers_would_be_zero():
    learner = make_learner("mixed_float16", keras.optimizers.SGD(1.0))
    _, (kernel, *_) = learner.meta_gradients(*DATA)
    assert np.mean(np.asarray(kernel) == 0) > 0.5


def test_a_step_that_overflows_is_left_out_and_lowers_the_scale():
    inner = keras.optimizers.SGD(1e4)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**45)
    learner = make_learner("mixed_float16", optimizer)
    before, scales, changed = learner.get_weights(), [], []
    for _ in range(24):
        logs = learner.train_on_batch(DATA, return_dict=True)
        assert np.isfinite(logs["loss"]) and np.isfinite(logs["gradient_norm"])
        scales.append(float(optimizer.dynamic_scale))
        after = learner.get_weights()
        changed.append(any(np.any(a != b) for a, b in zip(after, before, strict=True)))
        before = after
    assert scales[0] == 2.0**44 and not changed[0]
    assert changed[-1] and scales[-1] == scales[-2]
    assert inner.iterations.numpy() == sum(changed)
