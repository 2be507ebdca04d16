"""What an agent could not do as it is asked to is refused when the agent is made."""

import keras
import numpy as np
import pytest
import rl_zoo
import tensorflow as tf
from rl_zoo import draw, equal, make_agent, make_sampler, values

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


def test_an_outer_optimizer_decays_what_the_users_would():
    optimizer = keras.optimizers.AdamW(1e-6, weight_decay=1e5)
    model = policy()
    optimizer.exclude_from_weight_decay([model.get_layer("mean").kernel], ["bias"])
    model.get_layer("first").bias.assign([1.0, 2.0, 3.0])
    agent = make_agent(LINE, model, inner_steps=0, outer=optimizer)
    assert agent.settings["decayed_variables"] == [
        "bias" not in v.path and v is not model.get_layer("mean").kernel
        for v in model.trainable_variables
    ]
    before = values(model.trainable_variables)
    agent.train(draw(agent, make_sampler(agent, LINE)))
    changed = [
        not np.allclose(new, old, rtol=1e-3, atol=1e-5)
        for new, old in zip(values(model.trainable_variables), before, strict=True)
    ]
    assert changed == [v is model.get_layer("first").kernel for v in model.trainable_variables]


def test_averages_of_weights_must_become_the_weights():
    with pytest.raises(ValueError, match="use_ema=True .* Pass ema_overwrite_frequency="):
        make_agent(LINE, policy(), outer=keras.optimizers.SGD(0.1, use_ema=True))
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=1)
    agent = make_agent(LINE, policy(), inner_steps=0, outer=optimizer)
    agent.train(draw(agent, make_sampler(agent, LINE)))
    averages = agent.outer._model_variables_moving_average
    assert equal(agent.model.trainable_variables, averages)
    assert equal(agent.policy.fast_weights, [v[None] for v in averages])


def test_optimizers_that_scale_losses_are_refused():
    adam = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())
    for optimizer in (adam, keras.optimizers.SGD(0.1, loss_scale_factor=8.0)):
        with pytest.raises(ValueError, match="scales losses, .* Pass the optimizer without"):
            make_agent(LINE, policy(), outer=optimizer)


def test_layers_that_are_frozen_later_need_another_agent(tmp_path):
    model = policy()
    agent = make_agent(LINE, model, outer=keras.optimizers.SGD(0.1))
    experience = draw(agent, make_sampler(agent, LINE))
    saved = tmp_path / "agent.npz"
    agent.save(saved)
    model.get_layer("mean").kernel.assign_add([[1.0], [2.0], [3.0]])
    model.get_layer("first").trainable = False
    before = values(agent.saved_variables)
    for use in (
        agent.reset_adaptation,
        lambda: agent.adapt(experience[0]),
        lambda: agent.train(experience),
        lambda: agent.adapted_policy(0),
        lambda: agent.restore(saved),
        lambda: agent.export(tmp_path / "policy", rollouts=1, steps=1),
    ):
        with pytest.raises(ValueError, match="have been frozen.* Make another agent on the same"):
            use()
    assert equal(before, agent.saved_variables)
    model.get_layer("first").trainable = True
    agent.reset_adaptation()


@pytest.mark.parametrize("name", ["float64", "float16", "bfloat16", "mixed_bfloat16"])
def test_models_of_another_precision_are_refused(name):
    keras.config.set_dtype_policy(name)
    model = policy()
    keras.config.set_dtype_policy("float32")
    kind = name.removeprefix("mixed_")
    message = (
        f"must be float32, as rewards are, got {kind} from layers with the dtype policy {name}"
    )
    with pytest.raises(ValueError, match=message):
        make_agent(LINE, model)


def test_casts_within_a_model_are_refused_as_such():
    cast = keras.layers.Lambda(lambda outputs: keras.ops.cast(outputs, "float64"))
    inputs = keras.Input((2,))
    outputs = {name: cast(tensor) for name, tensor in policy()(inputs).items()}
    with pytest.raises(ValueError, match="got float64 from a cast within it. Cast its outputs"):
        make_agent(LINE, keras.Model(inputs, outputs))


def test_layers_within_may_be_of_mixed_precision():
    agent = make_agent(LINE, policy(dtype="mixed_bfloat16"), outer=keras.optimizers.SGD(0.1))
    assert agent.train(draw(agent, make_sampler(agent, LINE))).extra.accepted


def test_baselines_are_made_of_tensorflows_operations():
    def of_numpy(observations, times, returns, weights):
        return np.mean(returns) * np.ones_like(returns)

    def of_arrays(observations, times, returns, weights):
        return tf.constant(returns.numpy())

    for baseline in (of_numpy, of_arrays):
        name = baseline.__name__
        with pytest.raises(ValueError, match=f"TensorFlow's operations, .* got '{name}', which"):
            make_agent(LINE, policy(), baseline=baseline)

    def of_two_rollouts(observations, times, returns, weights):
        rollouts = tf.reshape(returns, [2, 2, LINE.horizon])
        means = tf.reduce_mean(rollouts, axis=1, keepdims=True)
        return tf.reshape(tf.broadcast_to(means, rollouts.shape), [2, -1])

    agent = make_agent(LINE, policy(), inner_steps=0, baseline=of_two_rollouts)
    agent.train(draw(agent, make_sampler(agent, LINE)))
