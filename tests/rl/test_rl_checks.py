"""What an agent could not do as it is asked to is refused when the agent is made."""

import keras
import pytest
import rl_zoo
from rl_zoo import make_agent

from keras_maml.rl.policy import StateIndependent

LINE = rl_zoo.Line(4)


def policy(deviation=0.0, **arguments):
    """A policy whose first layer is made with other arguments."""
    x = inputs = keras.Input((2,))
    x = keras.layers.Dense(3, "tanh", name="first", **arguments)(x)
    mean = keras.layers.Dense(1, name="mean")(x)
    return keras.Model(inputs, {"mean": mean, "log_std": StateIndependent(deviation)(mean)})


class Adding(keras.layers.Layer):
    def call(self, x):
        self.add_loss(keras.ops.sum(x))
        return x


def test_losses_of_a_model_are_refused():
    penalty = keras.regularizers.L2(0.1)
    for arguments in ({"kernel_regularizer": penalty}, {"activity_regularizer": penalty}):
        with pytest.raises(ValueError, match="^'first' adds losses of its own .*AdamW"):
            make_agent(LINE, policy(**arguments))
    first = policy()
    adding = keras.Model(first.inputs, first(Adding(name="adder")(first.inputs[0])))
    with pytest.raises(ValueError, match="^'adder' adds losses of its own"):
        make_agent(LINE, adding)
