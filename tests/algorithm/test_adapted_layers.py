"""Which weights a choice of layers is, in models within models and layers of layers."""

import keras
import pytest

from keras_maml import ANIL, BOIL, CAVIA
from keras_maml.algorithm.adapted_layers import select
from keras_maml.layers import ContextParameters

Dense, Input, Sequential = keras.layers.Dense, keras.Input, keras.Sequential


def leaf_names(variables):
    return sorted({variable.path.split("/")[-2] for variable in variables})


def within(*layers):
    """A functional model that calls a sequential one of these layers."""
    inputs = Input((3,))
    return keras.Model(inputs, Sequential([Input((3,)), *layers])(inputs))


def of_two_outputs():
    inputs = Input((3,))
    hidden = Dense(4, name="a")(inputs)
    outputs = [Dense(1, activation=keras.layers.LeakyReLU(), name=name)(hidden) for name in "bc"]
    outer = Input((3,))
    return keras.Model(outer, keras.Model(inputs, outputs)(outer))


class Scaled(keras.Model):
    """A network of its own class, with a weight of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.last = Dense(2, name="a"), Dense(1, name="b")
        self.scale = self.add_weight(shape=(), name="scale")
        self(keras.ops.zeros((1, 3)))

    def call(self, x):
        return self.scale * self.last(self.first(x))


@pytest.mark.parametrize(
    ("model", "head", "body"),
    [
        (lambda: within(Dense(2, name="a"), Dense(2, name="b"), Dense(1, name="c")), "c", "ab"),
        (
            lambda: Sequential(
                [
                    Input((3,)),
                    Dense(2, activation=keras.layers.LeakyReLU(), name="a"),
                    Dense(1, activation=keras.layers.Softmax(), name="b"),
                ]
            ),
            "b",
            "a",
        ),
        (of_two_outputs, "bc", "a"),
    ],
    ids=["nested", "activations", "outputs of a nested model"],
)
def test_the_head_is_the_last_layer_with_weights_and_the_body_the_rest(model, head, body):
    model = model()
    assert leaf_names(select(model, "head")) == list(head)
    assert leaf_names(select(model, "body")) == list(body)


def test_a_layer_of_layers_is_one_layer():
    recurrent = keras.layers.Bidirectional(keras.layers.LSTM(2))
    model = Sequential([Input((3, 2)), Dense(2), recurrent])
    assert len(ANIL(model).partition().initial) == 6
    assert len(BOIL(model).partition().initial) == 2


def test_weights_of_the_model_itself_are_of_the_body():
    model = Scaled()
    assert leaf_names(select(model, "head")) == ["b"]
    assert leaf_names(select(model, "body")) == ["a", model.name]


def test_a_layer_that_is_given_is_that_layer():
    model = within(Dense(2, name="a"), Dense(1, name="b"))
    assert leaf_names(select(model, [model.layers[1].layers[0]])) == ["a"]
    with pytest.raises(ValueError, match="'a' that is not the model's own"):
        select(model, [Dense(2, name="a")])


def test_names_that_are_not_unique_are_refused():
    def block():
        return Sequential([Input((3,)), ContextParameters(1, name="a"), Dense(3)])

    model = Sequential([Input((3,)), block(), block()])
    with pytest.raises(ValueError, match="'a', which 2 layers of the model are called"):
        CAVIA(model).partition()
