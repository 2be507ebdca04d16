"""What an agent asks of a policy's model before it is made."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from tf_agents.networks.network import Network

from keras_maml.execution.forms import recurrent_inputs
from keras_maml.private_keras import flatten_layers
from keras_maml.rl import distributions
from keras_maml.rl.policy import DistributionFunction

NETWORKS = (
    "TF-Agents' networks are layers of Keras 2, whose weights cannot be arguments. Build the same "
    "with keras: gaussian_policy, or keras.Sequential with distribution=keras_maml.rl.categorical."
)


def check_model(
    model: keras.Model, distribution: DistributionFunction, observation_spec: Any, action_spec: Any
) -> Any:
    """Raises ValueError unless the model makes actions of an environment from its observations.

    Returns:
        The distribution of an action, or a nest of them.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"model must be a keras.Model, got {_kind_of(model)}."
            + (" " + NETWORKS if isinstance(model, Network) else "")
        )
    if not model.built or not model.trainable_variables:
        raise ValueError(
            "The policy's model must be built and have trainable variables: call it once, or "
            "give it a keras.Input."
        )
    zeros = tf.nest.map_structure(lambda s: tf.zeros([1, *s.shape], s.dtype), observation_spec)
    try:
        with recurrent_inputs(model) as lengths:
            outputs = model(zeros)
        made = distribution(outputs)
        distributions.sample(made)
    except Exception as error:  # Whatever the user's model and distribution raise.
        seen = tf.nest.map_structure(lambda s: f"{s.dtype.name}{list(s.shape)}", observation_spec)
        hint = ""
        if tf.nest.is_nested(action_spec):
            hint = " Actions are a nest: give the model outputs by name, and pass parts({...})."
        raise ValueError(
            f"The model must take observations {seen}, and distribution its outputs; they raised "
            f"{type(error).__name__}: {error}{hint}"
        ) from error
    _check_precision(model, outputs)
    stateful = [layer.name for layer in flatten_layers(model) if getattr(layer, "stateful", False)]
    if stateful:
        raise ValueError(
            f"Layer {stateful[0]!r} keeps a state from call to call, which would be another "
            "episode's. Make it with stateful=False, and let observations hold the last steps."
        )
    forgetful = [name for name, length in lengths.items() if length == 1]
    if forgetful:
        raise ValueError(
            f"Layer {forgetful[0]!r} is recurrent but sees one step at a time, and a policy keeps "
            "no state between steps: it would remember nothing. Let observations hold the last "
            "steps (gymnasium.wrappers.FrameStackObservation) and give the layer all of them."
        )
    with_losses = [layer.name for layer in flatten_layers(model) if layer.losses]
    if with_losses:
        raise ValueError(
            f"{with_losses[-1]!r} adds losses of its own (a regularizer, an activity_regularizer "
            "or add_loss), for which the objective of reinforcement learning has no term. Make it "
            "without them; outer=keras.optimizers.AdamW(weight_decay=...) keeps weights small."
        )
    distributions.check_actions(made, action_spec)
    return made


def check_unconstrained(variables: Sequence[keras.Variable]) -> None:
    """Raises ValueError where variables have constraints, which a trust region cannot keep."""
    constrained = [v.path for v in variables if getattr(v, "constraint", None) is not None]
    if constrained:
        raise ValueError(
            f"The weight {constrained[0]!r} has a constraint, which outer=TrustRegion() would not "
            "apply. Pass a Keras optimizer or Proximal() as outer, which apply it after every "
            "step, or make the layer without."
        )


def _check_precision(model: keras.Model, outputs: Any) -> None:
    """Raises ValueError unless weights and outputs have the dtype that losses are computed in."""
    kinds = [tf.as_dtype(v.dtype) for v in (*model.trainable_variables, *tf.nest.flatten(outputs))]
    others = {kind.name for kind in kinds if kind.is_floating} - {"float32"}
    if others:
        policies = {layer.dtype_policy.name for layer in flatten_layers(model)} - {"float32"}
        cause, remedy = "a cast within it", "Cast its outputs to float32."
        if policies:
            cause = f"layers with the dtype policy {', '.join(sorted(policies))}"
            remedy = (
                "Make the model with keras.config.set_dtype_policy('float32'), or at least, in "
                "mixed precision, its outputs by layers with dtype='float32'."
            )
        raise ValueError(
            "The model's weights and outputs must be float32, as rewards are, got "
            f"{', '.join(sorted(others))} from {cause}. {remedy}"
        )


def _kind_of(model: Any) -> str:
    """The class of something, with its package where that tells it from Keras's own."""
    kind = type(model)
    return f"{kind.__name__} of {kind.__module__.partition('.')[0]}"
