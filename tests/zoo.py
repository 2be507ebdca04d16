"""Small smooth models of every kind, each with episodes that fit it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, the shape of its inputs, and how it is trained.

    Attributes:
        build: Makes the model.
        shape: The shape of one input; or a nest of shapes.
        loss: The loss; classification has 3 classes, regression one output.
        vocabulary: If not 0, the inputs are integers below it.
        vectorizes: Whether all its layers have a vectorised form.
    """

    build: Callable[[], keras.Model]
    shape: Any
    loss: str = "mean_squared_error"
    vocabulary: int = 0
    vectorizes: bool = True

    @property
    def classifies(self) -> bool:
        return "categorical" in self.loss


def episodes(case: Case, tasks: int = 3, support: int = 6, query: int = 5, seed: int = 0) -> Any:
    """One meta-batch of random numbers, in the current float type."""
    random = np.random.default_rng(seed)
    floatx = keras.config.floatx()

    def inputs(examples: int) -> Any:
        def one(shape: tuple[int, ...]) -> tf.Tensor:
            size = (tasks, examples, *shape)
            if case.vocabulary:
                return tf.constant(random.integers(case.vocabulary, size=size), "int32")
            return tf.constant(random.normal(size=size), floatx)

        if isinstance(case.shape, dict):
            return {name: one(shape) for name, shape in case.shape.items()}
        if isinstance(case.shape, list):
            return tuple(one(shape) for shape in case.shape)
        return one(case.shape)

    def targets(examples: int) -> tf.Tensor:
        if case.classifies:
            return tf.constant(random.integers(3, size=(tasks, examples)), "int32")
        return tf.constant(random.normal(size=(tasks, examples, 1)), floatx)

    return (inputs(support), targets(support)), (inputs(query), targets(query))


def _sequential(*stack: layers.Layer, shape: tuple[int, ...], **kwargs: Any) -> keras.Model:
    return keras.Sequential([keras.Input(shape, **kwargs), *stack])


def _dense():
    return _sequential(layers.Dense(5, "tanh"), layers.Dense(1), shape=(3,))


def _image(*middle: layers.Layer, shape=(6, 6, 2)):
    stack = (*middle, layers.Flatten(), layers.Dense(3, "softmax"))
    return _sequential(*stack, shape=shape)


def _convolution():
    return _image(
        layers.Conv2D(3, 3, strides=2, padding="same", activation="softplus"),
        layers.Conv2D(4, 2, dilation_rate=2, padding="same", groups=1, activation="tanh"),
        layers.Conv2D(2, (2, 3), activation="tanh", use_bias=False),
    )


def _small():
    return _image(
        layers.Conv2D(2, 3), layers.BatchNormalization(), layers.Activation("tanh"), shape=(4, 4, 1)
    )


def _paper_convolution():
    return _image(
        layers.Conv2D(3, 3, padding="same"),
        layers.BatchNormalization(),
        layers.Activation("softplus"),
        layers.MaxPooling2D(2),
        layers.Conv2D(3, 3, padding="same"),
        layers.BatchNormalization(scale=False),
        layers.Activation("tanh"),
        layers.AveragePooling2D(2, padding="same"),
    )


def _other_convolutions():
    return _image(
        layers.Conv2D(4, 3, groups=2, activation="tanh"),
        layers.DepthwiseConv2D(2, depth_multiplier=2, activation="tanh"),
        layers.Reshape((9, 8)),
        layers.Conv1D(4, 3, padding="causal", activation="tanh"),
        layers.MaxPooling1D(2),
        layers.AveragePooling1D(2),
        layers.Reshape((1, 2, 2, 2)),
        layers.Conv3D(3, (1, 2, 2), padding="same", activation="tanh"),
        layers.MaxPooling3D((1, 2, 1)),
    )


def _normalization():
    return _sequential(
        layers.Dense(6, "tanh"),
        layers.LayerNormalization(),
        layers.Dense(6, "tanh"),
        layers.BatchNormalization(),
        layers.Dense(6, "softplus"),
        layers.GroupNormalization(2),
        layers.Dense(1),
        shape=(3,),
    )


def _attention():
    inputs = keras.Input((4, 3))
    x = layers.Dense(4)(inputs)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 2)(x, x))
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(3, "softmax")(x))


def _dropout():
    return _sequential(
        layers.SpatialDropout1D(0.3, seed=5),
        layers.Flatten(),
        layers.Dense(8, "tanh"),
        layers.Dropout(0.5, seed=3),
        layers.Dense(1),
        shape=(4, 3),
    )


def _shared_weights():
    inputs = keras.Input((3,))
    shared = layers.Dense(3, "tanh")
    return keras.Model(inputs, layers.Dense(1)(shared(shared(inputs))))


def _several_inputs():
    left, right = keras.Input((3,), name="left"), keras.Input((2,), name="right")
    merged = layers.Concatenate()([layers.Dense(3, "tanh")(left), right])
    outputs = layers.Dense(1)(layers.Dense(4, "tanh")(merged))
    return keras.Model({"left": left, "right": right}, outputs)


def _tuple_inputs():
    left, right = keras.Input((3,)), keras.Input((2,))
    merged = layers.Concatenate()([left, right])
    return keras.Model((left, right), layers.Dense(1)(layers.Dense(4, "tanh")(merged)))


def _frozen():
    model = _sequential(
        layers.Dense(4, "tanh", trainable=False),
        layers.BatchNormalization(trainable=False),
        layers.Dense(1),
        shape=(3,),
    )
    return model


def _regularized():
    return _sequential(
        layers.Dense(5, "tanh", kernel_regularizer=keras.regularizers.L2(0.1)),
        layers.ActivityRegularization(l2=0.05),
        AddsLoss(),
        layers.Dense(1, bias_regularizer="l2"),
        shape=(3,),
    )


def _nested():
    body = _sequential(layers.Dense(4, "tanh"), layers.BatchNormalization(), shape=(3,))
    inputs = keras.Input((3,))
    return keras.Model(inputs, layers.Dense(1)(_sequential(body, shape=(3,))(inputs)))


@keras.saving.register_keras_serializable("tests")
class AddsLoss(layers.Layer):
    """Adds a loss of its own."""

    def call(self, x):
        self.add_loss(0.1 * keras.ops.mean(x**4))
        return x


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    """A model with a call of its own, a weight nothing uses, and a list of layers."""

    def __init__(self, width=4, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.hidden = [layers.Dense(width, "tanh") for _ in range(2)]
        self.unused = layers.Dense(2)
        self.head = layers.Dense(1)

    def call(self, x):
        for layer in self.hidden:
            x = layer(x)
        self.unused(x)
        return self.head(x)

    def get_config(self):
        return {**super().get_config(), "width": self.width}


SPARSE = "sparse_categorical_crossentropy"
# Take ten times as long to trace as the others.
SLOW = ("gru", "other_convolutions")


def slow(value: Any) -> Any:
    """A value of a parameter, for the slow tests alone."""
    return pytest.param(value, marks=pytest.mark.slow)


def slow_if(condition: bool, *values: Any) -> Any:
    """Values of parameters; for the slow tests alone if the condition holds."""
    return pytest.param(*values, marks=[pytest.mark.slow] if condition else [])


def cases(*, late: tuple[str, ...] = SLOW, of: Callable[[Case], bool] = lambda case: True) -> list:
    """The names of the models, as values of a parameter; some are for the slow tests."""
    names = [name for name, case in CASES.items() if of(case)]
    return [slow(name) if name in late else name for name in names]


CASES = {
    "dense": Case(_dense, (3,)),
    "subclassed": Case(Subclassed, (3,)),
    "nested": Case(_nested, (3,)),
    "convolution": Case(_convolution, (6, 6, 2), SPARSE),
    "paper": Case(_paper_convolution, (6, 6, 2), SPARSE),
    "other_convolutions": Case(_other_convolutions, (6, 6, 2), SPARSE),
    "normalization": Case(_normalization, (3,)),
    "embedding": Case(
        lambda: _sequential(
            layers.Embedding(7, 3), layers.Flatten(), layers.Dense(1), shape=(4,), dtype="int32"
        ),
        (4,),
        vocabulary=7,
    ),
    "lstm": Case(lambda: _sequential(layers.LSTM(3), layers.Dense(1), shape=(4, 2)), (4, 2)),
    "gru": Case(
        lambda: _sequential(
            layers.Bidirectional(layers.GRU(3, return_sequences=True)),
            layers.SimpleRNN(2),
            layers.Dense(1),
            shape=(3, 2),
        ),
        (3, 2),
    ),
    "attention": Case(_attention, (4, 3), SPARSE),
    "dropout": Case(_dropout, (4, 3)),
    "shared_weights": Case(_shared_weights, (3,)),
    "dictionary_inputs": Case(_several_inputs, {"left": (3,), "right": (2,)}),
    "tuple_inputs": Case(_tuple_inputs, [(3,), (2,)]),
    "frozen": Case(_frozen, (3,)),
    "regularized": Case(_regularized, (3,)),
    "transposed_convolution": Case(
        lambda: _image(layers.Conv2DTranspose(2, 3, activation="tanh", name="upsample")),
        (6, 6, 2),
        SPARSE,
        vectorizes=False,
    ),
}
# The least that has a convolution and batch statistics: what is traced often is traced with it.
SMALL = Case(_small, (4, 4, 1), SPARSE)
