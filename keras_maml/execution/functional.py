"""Keras models as pure functions of their weights.

`forward` runs a model with explicit weights and state, so that fast weights flow through it as
tensors: assigning variables would cut the gradient.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_maml.execution.forms import (
    BatchStatistics,
    Route,
    batch_normalizations,
    differentiable_forms,
)
from keras_maml.execution.memo import Memo
from keras_maml.execution.tracing import custom_depth

Tensors = list[tf.Tensor]


class WeightScope(keras.StatelessScope):
    """Gives variables other values, through which gradients flow.

    Raises:
        NotImplementedError: A weight is read within a function that has a gradient of its own,
            which knows nothing of the value in its place.
    """

    def __enter__(self) -> "WeightScope":
        self._outside = custom_depth()
        self._reads = []
        return super().__enter__()

    @contextlib.contextmanager
    def reads(self) -> Iterator[set[int]]:
        """Collects the identities of the variables that are read within."""
        self._reads.append(set())
        try:
            yield self._reads[-1]
        finally:
            read = self._reads.pop()
            if self._reads:
                self._reads[-1] |= read

    def get_current_value(self, variable: keras.Variable) -> tf.Tensor | None:
        """Returns the value of a variable, None for its own."""
        value = super().get_current_value(variable)
        if self._reads:
            self._reads[-1].add(id(variable))
        if value is not None and variable.trainable and custom_depth() > self._outside:
            raise NotImplementedError(
                f"The weight {variable.path!r} is read inside of a function with a gradient of its "
                "own (tf.custom_gradient, or tf.recompute_grad applied before the call), which "
                "would miss it: the weight would not learn. Pass it to the function as an "
                "argument, or, instead of tf.recompute_grad, make the learner with "
                "rematerialize=True."
            )
        return value


@dataclasses.dataclass(frozen=True)
class Forward:
    """What a forward pass gives.

    Attributes:
        predictions: What the model returned.
        losses: Scalars from `add_loss` and from the regularisers, each once.
        state: The state after the pass.
    """

    predictions: Any
    losses: Tensors
    state: Tensors


def forward(
    model: keras.Model,
    weights: Sequence[tuple[keras.Variable, tf.Tensor]],
    state: Sequence[tuple[keras.Variable, tf.Tensor]],
    x: Any,
    *,
    training: bool,
    route: Route = "plain",
    batch_statistics: BatchStatistics = "batch",
    write_statistics: bool = False,
    memo: Memo | None = None,
) -> Forward:
    """Calls a model with explicit weights and state; none of its variables changes.

    Args:
        model: A built model.
        weights: What takes the place of its weights, trainable and frozen ones.
        state: What takes the place of its state; see `state_variables`.
        x: The inputs, ``[examples, ...]`` or a nest of such.
        training: Whether dropout and its like are active.
        route: See `forms.differentiable_forms`.
        batch_statistics: See `forms.differentiable_forms`.
        write_statistics: See `forms.differentiable_forms`.
        memo: What layers computed in earlier calls with the same weights; None to remember nothing.

    Returns:
        The predictions, additional losses and next state, in the order of ``state``.

    Raises:
        NotImplementedError: A layer assigns a variable that is neither batch statistics nor a
            random seed: what it would keep, no task could have of its own. Or see `WeightScope`.
    """
    scope = WeightScope(state_mapping=[*weights, *state], collect_losses=True)
    given = dict(scope.state_mapping)
    forms = differentiable_forms(
        model, route=route, batch_statistics=batch_statistics, write_statistics=write_statistics
    )
    remembered = (
        memo.lent(model, scope, training, (batch_statistics, write_statistics))
        if memo
        else contextlib.nullcontext()
    )
    with forms, remembered, scope:
        predictions = model(x, training=training)
        # Not `model.losses`: it finds added losses by the id of a tensor, which a later trace
        # can reuse, and would then count a loss twice.
        losses = list(scope.losses)
        losses += [
            variable.regularizer(weight)
            for variable, weight in weights
            if variable.trainable and variable.regularizer is not None
        ]
        values = [tf.convert_to_tensor(scope.get_current_value(v)) for v, _ in state]
    may_change = {id(variable) for variable, _ in state}
    for key, value in scope.state_mapping.items():
        if key not in may_change and given.get(key) is not value:
            raise NotImplementedError(_assigned(model, key))
    return Forward(predictions, losses, values)


def _assigned(model: keras.Model, key: int) -> str:
    paths = [variable.path for variable in model.variables if id(variable) == key]
    if not paths:
        return (
            "A layer assigns a variable outside of the model in its call, such as a metric or the "
            "state of Keras's global random generator. Give a layer that draws random numbers a "
            "keras.random.SeedGenerator of its own, and measure in metrics passed to compile."
        )
    *_, layer, _ = (model.name, *paths[0].split("/"))
    return (
        f"Layer '{layer}' assigns the variable {paths[0]!r} in its call. Tasks are adapted side by "
        "side, and each would need that variable for itself: only batch statistics and random "
        "seeds are kept so. Replace the layer by one that computes without assigning."
    )


def is_seed(variable: keras.Variable) -> bool:
    """Whether a variable is the state of a `keras.random.SeedGenerator`."""
    return variable.name == "seed_generator_state"


def is_step(variable: keras.Variable) -> bool:
    """Whether a variable tells a layer the inner step, see `keras_maml.layers`."""
    return variable.name == "inner_step"


def at_step(variables: Sequence[keras.Variable], state: Tensors, step: int | tf.Tensor) -> Tensors:
    """Tells layers the inner step: returns the state with the number in its place.

    Args:
        variables: See `state_variables`.
        state: Their values.
        step: The number of the step, counted from 0.
    """
    pairs = zip(variables, state, strict=True)
    return [tf.cast(step, value.dtype) if is_step(v) else value for v, value in pairs]


def state_variables(model: keras.Model) -> list[keras.Variable]:
    """Returns what a task has of its own: random seeds, batch statistics, the inner step.

    Other variables that are not trained, those of frozen layers among them, are constants.
    """
    statistics = {
        id(variable)
        for layer in batch_normalizations(model)
        for variable in layer.non_trainable_variables
    }
    variables = model.non_trainable_variables
    return [v for v in variables if is_seed(v) or is_step(v) or id(v) in statistics]


def task_states(variables: Sequence[keras.Variable], numbers: tf.Tensor) -> Tensors:
    """Gives every task of a meta-batch a copy of a state, with random seeds of its own.

    Args:
        variables: See `state_variables`.
        numbers: Which tasks of the meta-batch, counted from 0: ``[tasks]``, of an integer dtype.

    Returns:
        One tensor ``[tasks, ...]`` per variable. Task 0 keeps the model's seeds.
    """
    states = []
    for variable in variables:
        value = tf.convert_to_tensor(variable)
        state = tf.repeat(value[None], tf.size(numbers), axis=0)
        if is_seed(variable):
            state += seed_shifts(numbers, value.dtype)
        states.append(state)
    return states


def seed_shifts(numbers: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns what the random seeds of tasks have more than the model's, ``[tasks, 2]``.

    Args:
        numbers: Which tasks of the meta-batch, ``[tasks]``.
        dtype: That of the seeds.
    """
    # An odd factor keeps the seeds of different tasks apart (modulo 2^32).
    shift = tf.cast(numbers, dtype) * tf.cast(0x3C6EF35F, dtype)
    return tf.stack([shift, tf.zeros_like(shift)], axis=1)


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


def masks_of(predictions: Any) -> dict[str, tf.Tensor]:
    """Returns the Keras masks of a nest of outputs, of those that have one, by their number."""
    masks = [getattr(tensor, "_keras_mask", None) for tensor in keras.tree.flatten(predictions)]
    return {str(i): mask for i, mask in enumerate(masks) if mask is not None}


def with_masks(predictions: Any, masks: dict[str, tf.Tensor]) -> Any:
    """Gives outputs the masks that `masks_of` found, which metrics look for there."""
    tensors = keras.tree.flatten(predictions)
    for number, mask in masks.items():
        tensors[int(number)] = tf.identity(tensors[int(number)])
        tensors[int(number)]._keras_mask = mask
    return keras.tree.pack_sequence_as(predictions, tensors)
