"""What an agent could not do as it is asked to is refused when the agent is made."""

import keras
import numpy as np
import pytest
import rl_zoo
from rl_zoo import draw, make_agent, make_sampler

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


def test_constraints_are_for_optimizers():
    constrained = policy(kernel_constraint=keras.constraints.MaxNorm(0.01))
    message = "'first/kernel' has a constraint, .* Pass a Keras optimizer or Proximal"
    with pytest.raises(ValueError, match=message):
        make_agent(LINE, constrained)
    agent = make_agent(LINE, constrained, inner_steps=0, outer=keras.optimizers.SGD(0.1))
    agent.train(draw(agent, make_sampler(agent, LINE)))
    kernel = agent.model.get_layer("first").kernel.numpy()
    assert np.linalg.norm(kernel, axis=0).max() < 0.0101
