"""Keras models as pure functions of their weights.

`forward` runs a model with explicit weights and state, so that fast weights flow through it as
tensors: assigning variables would cut the gradient.
"""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_maml.execution import forms

Tensors = list[tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Forward:
    """What a forward pass gives.

    Attributes:
        predictions: What the model returned.
        losses: Scalars from `add_loss` and from the regularisers, each once.
        state: The model's non-trainable variables after the pass.
    """

    predictions: Any
    losses: Tensors
    state: Tensors


def forward(
    model: keras.Model,
    weights: Tensors,
    state: Tensors,
    x: Any,
    *,
    training: bool,
    route: forms.Route = "plain",
    batch_statistics: forms.BatchStatistics = "batch",
    write_statistics: bool = False,
) -> Forward:
    """Calls a model with explicit weights and state; none of its variables changes.

    Args:
        model: A built model.
        weights: One tensor per trainable variable of the model.
        state: One tensor per non-trainable variable: batch statistics, seeds of random layers.
        x: The inputs, ``[examples, ...]`` or a nest of such.
        training: Whether dropout and its like are active.
        route: See `forms.differentiable_forms`.
        batch_statistics: See `forms.differentiable_forms`.
        write_statistics: See `forms.differentiable_forms`.

    Returns:
        The predictions, additional losses and next state.
    """
    mapping = [
        *zip(model.trainable_variables, weights, strict=True),
        *zip(model.non_trainable_variables, state, strict=True),
    ]
    lent = forms.differentiable_forms(
        model,
        route=route,
        batch_statistics=batch_statistics,
        write_statistics=write_statistics,
    )
    with lent, keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
        predictions = model(x, training=training)
        # Not `model.losses`: it finds added losses by the id of a tensor, which a later trace
        # can reuse, and would then count a loss twice.
        losses = list(scope.losses)
        losses += [
            variable.regularizer(weight)
            for variable, weight in zip(model.trainable_variables, weights, strict=True)
            if variable.regularizer is not None
        ]
        state = [scope.get_current_value(v) for v in model.non_trainable_variables]
    state = [tf.convert_to_tensor(value) for value in state]
    return Forward(predictions, losses, state)


def is_seed(variable: keras.Variable) -> bool:
    """Whether a variable is the state of a `keras.random.SeedGenerator`."""
    return variable.name == "seed_generator_state"


def task_states(model: keras.Model, numbers: tf.Tensor) -> Tensors:
    """Gives every task of a meta-batch a copy of the model's state, with random seeds of its own.

    Args:
        model: A built model.
        numbers: Which tasks of the meta-batch, counted from 0: ``[tasks]``, of an integer dtype.

    Returns:
        One tensor ``[tasks, ...]`` per non-trainable variable. Task 0 keeps the model's seeds.
    """
    states = []
    for variable in model.non_trainable_variables:
        value = tf.convert_to_tensor(variable)
        state = tf.repeat(value[None], tf.size(numbers), axis=0)
        if is_seed(variable):
            # An odd factor keeps the seeds of different tasks apart (modulo 2^32).
            shift = tf.cast(numbers, value.dtype) * tf.cast(0x3C6EF35F, value.dtype)
            state += tf.stack([shift, tf.zeros_like(shift)], axis=1)
        states.append(state)
    return states


def examples(batch: Any) -> tuple[Any, Any, Any]:
    """Splits a support or query set into inputs, targets (or None) and sample weights (or None)."""
    return keras.utils.unpack_x_y_sample_weight(batch)


def merge_tasks(nest: Any) -> Any:
    """Reshapes ``[tasks, examples, ...]`` to ``[tasks * examples, ...]`` throughout a nest."""

    def merge(tensor: tf.Tensor | None) -> tf.Tensor | None:
        if tensor is None:
            return None
        return tf.reshape(tensor, tf.concat([[-1], tf.shape(tensor)[2:]], 0))

    return keras.tree.map_structure(merge, nest)


def as_tensors(nest: Any) -> Any:
    """Converts a nest of arrays or variables to tensors; NumPy floats to Keras's float type."""

    def convert(value: Any) -> tf.Tensor:
        floats = isinstance(value, np.ndarray) and value.dtype.kind == "f"
        return tf.convert_to_tensor(value, keras.config.floatx() if floats else None)

    return keras.tree.map_structure(convert, nest)
