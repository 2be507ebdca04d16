"""Weights that a function hides from gradients adapt and learn as any others, or are refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from keras import layers

from keras_maml import MAML
from keras_maml.execution.lending import Lent, lend


class Scaled(layers.Layer):
    """A product with a weight for each feature, in one of the ways that hide what is read."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.early = tf.recompute_grad(self.scale)

    def build(self, shape):
        self.scales = self.add_weight(shape=shape[-1:], initializer="uniform")

    def scale(self, x):
        return tf.tanh(x * self.scales)

    @tf.function
    def scale_in_a_function(self, x):
        if tf.reduce_sum(x) < 1e9:  # what AutoGraph makes an operation of
            return self.scale(x)
        return x

    def scale_with_a_gradient(self, x):
        @tf.custom_gradient
        def scale(x):
            return x * self.scales, lambda upstream: upstream * self.scales

        return scale(x)

    def scale_with_a_gradient_for_all(self, x):
        @tf.custom_gradient
        def product(x, scales):
            return x * scales, lambda u: (u * scales, tf.reduce_sum(u * x, axis=0))

        return tf.tanh(product(x, tf.convert_to_tensor(self.scales)))

    def call(self, x):
        way = {
            "plain": self.scale,
            "function": self.scale_in_a_function,
            "helper": lambda x: helper(self, x),
            "remat": keras.remat(self.scale),
            "recompute_grad": tf.recompute_grad(self.scale),
            "argument": self.scale_with_a_gradient_for_all,
            "early": self.early,
            "custom_gradient": self.scale_with_a_gradient,
        }
        return way[self.way](x)


@tf.function
def helper(layer, x):
    return layer.scale(x)


class Model(keras.Model):
    def __init__(self, way="plain"):
        super().__init__()
        self.scaled, self.dense = Scaled(way), layers.Dense(1)

    def call(self, x, training=False):
        return self.dense(self.scaled(x))


class InAFunction(Model):
    @tf.function
    def call(self, x, training=False):
        return super().call(x, training)


def meta_gradients(make, loss="mean_squared_error", **options):
    """Returns the loss and its gradients, and the learner."""
    keras.utils.set_random_seed(0)
    learner = MAML(make(), 0.1, inner_steps=2)
    learner.compile("sgd", loss, jit_compile=False, **options)
    return (*learner.meta_gradients(*zoo.episodes(zoo.Case(None, (3,)))), learner)


def assert_equal(ours, theirs):
    for one, other in zip(tf.nest.flatten(ours[:2]), tf.nest.flatten(theirs[:2]), strict=True):
        assert np.abs(other).max() > 1e-3
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def plain():
    return meta_gradients(Model)


@pytest.mark.parametrize("eager", [False, zoo.slow(True)])
@pytest.mark.parametrize("way", ["function", "helper", "remat", "recompute_grad", "argument"])
def test_what_hides_weights_is_looked_through(plain, way, eager):
    assert_equal(meta_gradients(lambda: Model(way), run_eagerly=eager), plain)


def test_a_model_whose_call_is_a_function(plain):
    *ours, learner = meta_gradients(InAFunction)
    assert_equal(ours, plain)
    before = learner.model.get_weights()
    learner.fit(zoo.episodes(zoo.Case(None, (3,))), verbose=0)
    for old, new in zip(before, learner.model.get_weights(), strict=True):
        assert not np.array_equal(old, new)
    assert np.isfinite(learner.model(np.ones([2, 3]))).all()  # its own trace keeps no fast weights
    assert not isinstance(type(tf.function(abs)).__call__, Lent)


@pytest.mark.parametrize("way", ["early", "custom_gradient"])
def test_a_gradient_that_would_miss_a_weight_is_refused(way):
    with pytest.raises(NotImplementedError, match="scaled.*inside of a function with a gradient"):
        meta_gradients(lambda: Model(way))


def with_loss(make):
    """The same of a plain model and the loss that is made for it."""
    keras.utils.set_random_seed(0)
    model = Model()
    model(np.ones([1, 3]))
    return meta_gradients(lambda: model, make(model))


def penalty(model, how):
    """A penalty of all weights, which a loss reads, and the same as regularisers."""
    if how == "loss":
        return lambda y, p: (
            tf.reduce_mean((y - p) ** 2)
            + 0.1 * sum(tf.reduce_sum(weight**2) for weight in model.trainable_variables)
        )
    for weight in model.trainable_variables:
        weight.regularizer = keras.regularizers.L2(0.1)
    return "mean_squared_error"


def test_a_loss_sees_the_weights_that_made_the_predictions():
    ours, theirs = (
        with_loss(lambda model, how=how: penalty(model, how)) for how in ("loss", "regularizer")
    )
    assert_equal(ours, theirs)


def test_a_loss_may_call_the_model_again_and_take_moments():
    def noisy(model, moments):
        def loss(y, predictions):
            again = model(tf.reverse(y, [0]) * tf.ones([1, 3], y.dtype))
            return tf.reduce_mean((y - predictions) ** 2) + moments(again + predictions)

        return loss

    def own(x):
        return tf.reduce_mean((x - tf.reduce_mean(x)) ** 2)

    def tensorflows(x):
        return tf.nn.moments(x, [0, 1])[1]

    ours, theirs = (with_loss(lambda model, m=m: noisy(model, m)) for m in (tensorflows, own))
    assert_equal(ours, theirs)


def test_what_was_lent_and_kept_is_itself_again():
    class Owner:
        def name(self):
            return "own"

    owner = Owner()
    with lend(owner, "name", lambda: "lent"):
        kept = owner.name
        assert kept() == "lent"
    assert kept() == owner.name() == "own"
