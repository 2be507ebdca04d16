"""Layers of users' own, and corners of Keras's, give the same however the tasks are run."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from keras import layers

from keras_maml import MAML, evaluation
from keras_maml.execution.linear import sum_tasks
from keras_maml.execution.normalization import moments
from keras_maml.learners.adapted import TransductiveModel


class Heads(layers.Layer):
    """A product with a matrix for each of three heads, added up."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(3, shape[-1], 2), name="kernel")

    def call(self, x):
        return tf.reduce_sum(tf.matmul(tf.repeat(x[None], 3, axis=0), self.kernel), 0)


class StandardizedConvolution(layers.Conv2D):
    """Weight standardisation, in the method that Keras has for it."""

    def convolution_op(self, inputs, kernel):
        mean, variance = tf.nn.moments(kernel, axes=[0, 1, 2], keepdims=True)
        return super().convolution_op(inputs, (kernel - mean) / tf.sqrt(variance + 1e-3))


class Conditional(layers.BatchNormalization):
    """Normalisation with a scale from elsewhere, that hands on what Keras's own call takes."""

    def call(self, x, scale, training=None):
        return super().call(x, training=training) * scale


class AnyArguments(layers.BatchNormalization):
    """Normalisation that hands on whatever it is given."""

    def call(self, x, scale, **kwargs):
        return super().call(x, **kwargs) * scale


class Scaled(layers.Layer):
    """Applies a layer between others to its inputs and to a scale that depends on them."""

    def __init__(self, layer, apply, units):
        super().__init__()
        self.scale, self.before = layers.Dense(units, "sigmoid"), layers.Dense(units)
        self.layer, self.apply = layer, apply

    def call(self, x):
        return self.apply(self.layer, self.before(x), self.scale(x))


class Modulated(layers.Conv2D):
    """A convolution with a scale from elsewhere, which it returns as well."""

    def call(self, x, scale, training=None):
        return super().call(x * scale), scale


class HalfMoments(layers.BatchNormalization):
    def _moments(self, inputs, mask):
        return [0.5 * moment for moment in super()._moments(inputs, mask)]


class HalfSteps(layers.LSTM):
    def inner_loop(self, *args, **kwargs):
        last, outputs, states = super().inner_loop(*args, **kwargs)
        return 0.5 * last, outputs, states


class HalfImages(layers.Resizing):
    def transform_images(self, *args, **kwargs):
        return 0.5 * super().transform_images(*args, **kwargs)


class Penalty(layers.Layer):
    """Adds a loss for each example."""

    def call(self, x):
        self.add_loss(0.1 * tf.reduce_sum(tf.square(x), axis=-1))
        return x


class Apply(layers.Layer):
    """Applies a function."""

    def __init__(self, function):
        super().__init__(name="apply")
        self.function = function

    def call(self, x):
        return self.function(x)


def images(*stack):
    return keras.Sequential([keras.Input((5, 5, 2)), *stack, layers.Flatten(), layers.Dense(1)])


def negative(x):
    return -1.0 - tf.square(x)


def padded(x):
    return keras.ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=5.0)


def rolled(axis):
    return lambda x: x * keras.ops.roll(x, 1, axis=axis)


MODELS = {  # with whether all tasks run at once
    "max_pooling": (lambda: images(Apply(negative), layers.MaxPooling2D(3, 2, "same")), True),
    "padding": (lambda: images(Apply(padded), layers.Conv2D(2, 3)), False),
    "roll_from_the_end": (lambda: images(layers.Conv2D(3, 3), Apply(rolled(-1))), False),
    "roll": (lambda: images(layers.Conv2D(3, 3), Apply(rolled(3))), True),
    "padding_in_a_function": (
        lambda: images(Apply(tf.function(padded)), layers.Conv2D(2, 3)),
        False,
    ),
    "roll_in_a_function": (
        lambda: images(layers.Conv2D(3, 3), Apply(tf.function(rolled(3)))),
        True,
    ),
    "heads": (lambda: images(layers.Flatten(), Heads()), True),
    "convolution_op": (lambda: images(StandardizedConvolution(2, 3)), False),
    "losses_of_examples": (lambda: images(layers.Flatten(), layers.Dense(2), Penalty()), True),
}


# The first is a padding like another, and the second rolls by one of the ways of the others.
LATE = ("padding_in_a_function", "roll")


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("first_order", [False, zoo.slow(True)])
@pytest.mark.parametrize("name", [zoo.slow_if(name in LATE, name) for name in MODELS])
def test_the_meta_gradient_is_that_of_one_task_after_another(name, first_order):
    build, at_once = MODELS[name]
    data = zoo.episodes(zoo.Case(build, (5, 5, 2)))
    results = []
    for options in ({"jit_compile": False}, {"run_eagerly": True}):
        keras.utils.set_random_seed(0)
        learner = MAML(build(), 0.02, inner_steps=2, first_order=first_order)
        learner.compile("sgd", "mean_squared_error", **options)
        results.append(learner.meta_gradients(*data))
        if not options.get("run_eagerly"):
            assert learner.tasks.run_at_once() == at_once
    tf.nest.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), *results
    )


def test_the_sum_over_tasks_keeps_the_batch_axis_of_a_weight():
    @tf.function
    def total(a, b):
        return sum_tasks(tf.matmul(a, b, transpose_a=True))

    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 3, 4, 5)), random.normal(size=(2, 3, 4, 6))
    np.testing.assert_allclose(total(a, b), np.einsum("thei,theo->hio", a, b), rtol=1e-12)


def test_moments_of_a_variable():
    variable = keras.Variable([[1.0, 2.0], [3.0, 6.0]])
    mean, variance = moments(variable, [0])
    assert mean.numpy().tolist() == [2.0, 4.0]
    assert variance.numpy().tolist() == [1.0, 4.0]


def test_layers_of_different_types():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, "relu"), layers.Dense(1)])
    mixed = keras.Sequential([model, layers.Dense(1, dtype="float64")])
    learner = MAML(mixed, 0.01)
    learner.compile("sgd", "mean_squared_error")
    history = learner.fit(zoo.episodes(zoo.CASES["dense"]), verbose=0).history
    assert np.isfinite(history["gradient_norm"][0]) and history["gradient_norm"][0] > 0


def normalized(**settings):
    stack = [layers.Dense(4), layers.BatchNormalization(**settings), layers.Dense(1)]
    return keras.Sequential([keras.Input((3,)), *stack])


def compiled(model, **settings):
    learner = MAML(model, 0.1, **settings)
    learner.compile("sgd", "mean_squared_error", jit_compile=False)
    return learner


def same_gradients(case, *builds, **settings):
    """Checks that models have the same meta-gradients, and returns their learners."""
    learners, results = [], []
    for build in builds:
        keras.utils.set_random_seed(0)
        learners.append(MAML(build(), 0.1, **settings))
        learners[-1].compile("sgd", "mean_squared_error", run_eagerly=True)
        results.append(learners[-1].meta_gradients(*zoo.episodes(case, tasks=2)))
    tf.nest.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), *results
    )
    return learners


def scaled(shape, layer, apply):
    stack = [Scaled(layer, apply, shape[-1]), layers.Flatten(), layers.Dense(1)]
    return keras.Sequential([keras.Input(shape), *stack])


def own_call(layer, x, scale):
    return layer(x, scale)


def scaled_outputs(layer, x, scale):
    return layer(x) * scale


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("batch_normalization", ["transductive", "inductive"])
@pytest.mark.parametrize("kind", [Conditional, zoo.slow(AnyArguments)])
def test_normalisation_with_a_call_of_its_own_normalises_as_the_learner_says(
    kind, batch_normalization
):
    same_gradients(
        zoo.Case(None, (3,)),
        lambda: scaled((3,), kind(), own_call),
        lambda: scaled((3,), layers.BatchNormalization(), scaled_outputs),
        batch_normalization=batch_normalization,
    )


@pytest.mark.usefixtures("float64")
def test_a_convolution_with_a_call_of_its_own():
    own, plain = same_gradients(
        zoo.Case(None, (4, 4, 2)),
        lambda: scaled(
            (4, 4, 2), Modulated(2, 3), lambda layer, x, scale: layer(x, scale=scale)[0]
        ),
        lambda: scaled((4, 4, 2), layers.Conv2D(2, 3), lambda layer, x, scale: layer(x * scale)),
    )
    assert own.patch_bytes == plain.patch_bytes == 4 * 18 * 8


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(HalfMoments, (3,)), (lambda: HalfSteps(2), (4, 3)), (lambda: HalfImages(2, 2), (3, 3, 1))],
)
def test_layers_compute_by_methods_of_their_own(layer, shape):
    model = keras.Sequential([keras.Input(shape), layer(), layers.Flatten(), layers.Dense(1)])
    learner = MAML(model, 0.1, inner_steps=0)
    learner.compile("sgd", "mean_squared_error", run_eagerly=True)
    data = zoo.episodes(zoo.Case(None, shape), tasks=1)
    predictions = learner.predict(data, verbose=0)
    np.testing.assert_allclose(predictions[0], model(data[1][0][0], training=True), rtol=1e-5)


def test_an_adapted_model_inside_a_learner_normalises_as_the_learner_says():
    learner = compiled(TransductiveModel(normalized()), batch_normalization="inductive")
    support, (x, y) = zoo.episodes(zoo.CASES["dense"])
    whole = learner.predict((support, (x, y)), verbose=0)
    fewer = learner.predict((support, (x[:, 1:], y[:, 1:])), verbose=0)
    np.testing.assert_allclose(whole[:, 1:], fewer, rtol=1e-4, atol=1e-6)


def test_renormalisation_does_not_move_its_statistics_in_the_inner_loop():
    learner = compiled(normalized(renorm=True), inner_steps=3)
    support, (x, y) = zoo.episodes(zoo.CASES["dense"])
    predictions = learner.predict((support, (x, y)), verbose=0)
    adapted = learner.adapt(support[0][0], support[1][0], batch_normalization="transductive")
    np.testing.assert_allclose(adapted(x[0]), predictions[0], rtol=1e-4, atol=1e-6)


def test_a_gradient_whose_shape_tensorflow_loses():
    stack = [keras.Input((2, 3, 1)), layers.Dense(2, "tanh"), layers.Flatten(), layers.Dense(1)]
    learner = compiled(keras.Sequential(stack), inner_steps=2)
    support, (x, y) = zoo.episodes(zoo.Case(None, (2, 3, 1)))
    predictions = learner.predict((support, (x, y)), verbose=0)
    adapted = learner.adapt(support[0][0], support[1][0])
    np.testing.assert_allclose(adapted(x[0]), predictions[0], rtol=1e-4, atol=1e-6)


def test_inputs_in_a_list():
    inputs = [keras.Input((2,)), keras.Input((3,))]
    model = keras.Model(inputs, layers.Dense(1)(layers.Concatenate()(inputs)))
    learner = compiled(model)
    a, b, y = np.ones((2, 4, 2)), np.ones((2, 4, 3)), np.ones((2, 4, 1))
    episode = (([a, b], y), ([a, b], y))
    assert len(learner.fit(episode, verbose=0).history["loss"]) == 1
    assert np.isfinite(learner.evaluate(episode, verbose=0)).all()


def test_the_last_episodes_say_what_a_support_set_looks_like():
    stack = [keras.Input((None, 2)), layers.GlobalAveragePooling1D(), layers.Dense(1)]
    learner = compiled(keras.Sequential(stack))
    for length in (4, 6, 4):
        learner.evaluate(zoo.episodes(zoo.Case(None, (length, 2))), verbose=0)
        assert learner.support_spec[0].shape.as_list() == [None, length, 2]


def test_a_metric_of_several_numbers_is_refused():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, "softmax")])
    learner = MAML(model, 0.1)
    learner.compile("sgd", "categorical_crossentropy", metrics=[keras.metrics.F1Score()])
    x, y = np.ones((2, 4, 3), "float32"), np.eye(4, dtype="float32")[None].repeat(2, 0)
    dataset = tf.data.Dataset.from_tensors(((x, y), (x, y)))
    with pytest.raises(ValueError, match=r"got f1_score of shape \(4,\) each.*macro"):
        evaluation.evaluate(learner, dataset, tasks=2, steps=1)


@pytest.mark.parametrize("task_map", ["auto", zoo.slow("sequential")])
def test_masked_steps_count_in_no_metric(task_map):
    stack = [layers.Embedding(5, 4, mask_zero=True), layers.LSTM(3, return_sequences=True)]
    model = keras.Sequential([keras.Input((6,)), *stack, layers.Dense(2)])
    learner = MAML(model, 0.1, inner_steps=0, task_map=task_map)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile("sgd", loss, metrics=["accuracy"])
    random = np.random.default_rng(0)
    x, y = random.integers(0, 3, (2, 4, 6)), random.integers(0, 2, (2, 4, 6))
    right = [np.argmax(model.predict(task, verbose=0), -1) for task in x] == y
    measured = learner.evaluate(((x, y), (x, y)), verbose=0, return_dict=True)
    assert 0.1 < right[x > 0].mean() != right.mean()
    assert measured["accuracy"] == pytest.approx(right[x > 0].mean(), rel=1e-6)
    each = learner.trajectories((x, y), (x, y), steps=0)["accuracy"][:, 0]
    np.testing.assert_allclose(each, [r[t > 0].mean() for r, t in zip(right, x, strict=True)])


def test_an_adapted_model_takes_images_of_another_size():
    stack = [layers.Conv2D(3, 3), layers.BatchNormalization(), layers.MaxPooling2D()]
    stack += [layers.GlobalAveragePooling2D(), layers.Dense(1)]
    learner = compiled(keras.Sequential([keras.Input((None, None, 2)), *stack]))
    (x, y), _ = zoo.episodes(zoo.Case(None, (8, 8, 2)))
    adapted = learner.adapt(x[0], y[0])
    for size in (8, 6, 7):
        assert adapted.predict(x[0, :, :size, :size], verbose=0).shape == (6, 1)


def test_an_adapted_model_has_the_vocabulary_that_was_learned():
    lookup = layers.IntegerLookup(output_mode="one_hot")
    lookup.adapt(np.array([[11], [12], [13]]))
    model = keras.Sequential([keras.Input((1,), dtype="int64"), lookup, layers.Dense(1)])
    learner = MAML(model, 0.1, task_map="sequential")
    learner.compile("sgd", "mean_squared_error", jit_compile=False)
    x, y = np.array([[[11], [12], [13], [14]]]), np.ones((1, 4, 1))
    predictions = learner.predict(((x, y), (x, y)), verbose=0)
    adapted = learner.adapt(x[0], y[0])
    np.testing.assert_allclose(adapted.predict(x[0], verbose=0), predictions[0], rtol=1e-5)


@pytest.mark.parametrize("task_map", ["vectorized", "sequential"])
def test_a_method_given_to_one_layer_alone_counts(task_map):
    pool, random = layers.MaxPooling2D(), np.random.default_rng(0)
    own = pool.call
    pool.call = lambda x: 10 * own(x)
    stack = [pool, layers.Flatten(), layers.Dense(1)]
    model = keras.Sequential([keras.Input((4, 4, 1)), *stack])
    x, y = random.normal(size=(2, 3, 4, 4, 1)), random.normal(size=(2, 3, 1))
    learner = MAML(model, 0.0, task_map=task_map)
    learner.compile("sgd", "mse", jit_compile=False)
    expected = np.mean(
        [np.mean((np.asarray(model(a)) - b) ** 2) for a, b in zip(x, y, strict=True)]
    )
    assert learner.evaluate(((x, y), (x, y)), verbose=0)[0] == pytest.approx(expected, rel=1e-5)
