"""What the inner loop adapts: all layers, the head (ANIL), the body (BOIL), or named layers."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_maml.algorithm.inner_loop import Parameters
from keras_maml.algorithm.update_rule import UpdateRule
from keras_maml.execution.functional import as_tensors, state_variables
from keras_maml.private_keras import flatten_layers, made_by

NAMES = ("all", "head", "body")


def check(name: str, value: Any) -> None:
    """Raises ValueError unless ``value`` says which layers are adapted."""
    if isinstance(value, str):
        value = [] if value in NAMES else None
    listed = isinstance(value, Sequence) and all(
        isinstance(entry, (str, keras.layers.Layer)) for entry in value
    )
    if not listed:
        raise ValueError(
            f"{name} must be one of {NAMES}, or a list of layers or of their names, got {value!r}."
        )


def names_of(adapted_layers: str | Sequence) -> str | list[str]:
    """Returns a choice of layers as it is saved: by name."""
    if isinstance(adapted_layers, str):
        return adapted_layers
    return [entry if isinstance(entry, str) else entry.name for entry in adapted_layers]


def select(model: keras.Model, adapted_layers: str | Sequence) -> list[keras.Variable]:
    """Returns the trainable variables that the inner loop adapts.

    Args:
        model: A built model.
        adapted_layers: ``"all"``; ``"head"``, the last layer with weights (Raghu et al. 2020,
            ANIL), in the order in which the model was put together, or the last before each of
            several outputs, with all that the layer is made of, and looked for in models within the
            model; ``"body"``, all but that (Oh et al. 2021, BOIL); or layers of the model or their
            names, of which no two layers have the same.

    Raises:
        ValueError: The model has no such layer, or none of them has trainable weights.

    Example:
        >>> stack = [keras.layers.Dense(2, name="first"), keras.layers.Dense(3, name="last")]
        >>> model = keras.Sequential([keras.Input((1,)), *stack])
        >>> [tuple(variable.shape) for variable in select(model, "head")]
        [(2, 3), (3,)]
    """
    chosen = _chosen(model, adapted_layers)
    own = {id(variable) for variable in task_variables(model)}
    chosen -= {
        id(variable)
        for layer in _task_layers(model)
        for variable in layer.variables
        if id(variable) not in own
    }
    selected = [variable for variable in model.trainable_variables if id(variable) in chosen]
    if not selected and adapted_layers != "all":
        raise ValueError(
            f"adapted_layers={names_of(adapted_layers)!r} chooses no trainable weights: there is "
            "nothing to adapt. Choose other layers, or make some trainable."
        )
    return selected


def task_variables(model: keras.Model) -> list[keras.Variable]:
    """Returns the variables that every task begins anew with, and that are not meta-trained.

    They are those that layers name as their ``task_variables``, see `keras_maml.layers`; other
    variables of such layers are meta-trained and not adapted.
    """
    return [variable for layer in _task_layers(model) for variable in layer.task_variables]


def _task_layers(model: keras.Model) -> list[keras.layers.Layer]:
    return [layer for layer in flatten_layers(model) if hasattr(layer, "task_variables")]


def _chosen(model: keras.Model, adapted_layers: str | Sequence) -> set[int]:
    """Returns the identities of the trainable variables of the layers that are chosen."""
    everything = _ids([model])
    if adapted_layers == "all":
        return everything
    if adapted_layers == "head":
        return _ids(_heads(model))
    if adapted_layers == "body":
        return everything - _ids(_heads(model))
    layers = flatten_layers(model)[1:]
    return _ids([_find(entry, layers) for entry in adapted_layers])


def _ids(layers: list[keras.layers.Layer]) -> set[int]:
    return {id(variable) for layer in layers for variable in layer.trainable_variables}


def _find(entry: str | keras.layers.Layer, layers: list) -> keras.layers.Layer:
    """Returns the layer that is meant, which has a name of its own, since it is saved by that."""
    (name,) = names_of([entry])
    found = [layer for layer in layers if layer.name == name]
    if len(found) > 1:
        raise ValueError(
            f"adapted_layers names {name!r}, which {len(found)} layers of the model are called. "
            "Give each a name of its own."
        )
    if not found:
        raise ValueError(
            f"adapted_layers names {name!r}, which the model does not have. Its layers are "
            f"{sorted(layer.name for layer in layers)}."
        )
    if entry not in (name, found[0]):
        raise ValueError(
            f"adapted_layers has a layer {name!r} that is not the model's own, which is another of "
            "that name. Take it from the model, or name it."
        )
    return found[0]


def _heads(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns the last layer with weights; for several outputs that before each of them.

    A layer counts with all that it is made of, as a wrapper or an attention does; a model within
    a model is what it is made of.
    """
    tensors = keras.tree.flatten(getattr(model, "outputs", None) or [])
    if len(tensors) < 2:
        layers = [layer for layer in model._layers if layer.trainable_variables][-1:]
        return [head for layer in layers for head in _heads_of(layer)]
    heads = []
    while tensors:
        operation, inputs = made_by(tensors.pop())
        layer = isinstance(operation, keras.layers.Layer) and operation.trainable_variables
        own = _heads_of(operation) if layer else []
        heads += own
        tensors += [] if own else inputs
    return heads


def _heads_of(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    return _heads(layer) if isinstance(layer, keras.Model) else [layer]


def partition(model: keras.Model, adapted_layers: str | Sequence, rule: UpdateRule) -> Parameters:
    """Returns the variables of a model and of an update rule by what becomes of them.

    Builds the rule if it is not built. What a task has of its own is left out, see
    `functional.state_variables`.

    Args:
        model: A built model.
        adapted_layers: See `select`.
        rule: The update rule.

    Raises:
        ValueError: There are no such layers, or the rule has learned for others.
    """
    initial = select(model, adapted_layers)
    moved = {id(variable) for variable in initial}
    state = {id(variable) for variable in state_variables(model)}
    rule.build_for([tuple(variable.shape) for variable in initial])
    return Parameters(
        initial,
        [v for v in model.trainable_variables if id(v) not in moved],
        rule.trainable_variables,
        [v for v in model.non_trainable_variables if id(v) not in state],
    )


def values_of(variables: Parameters) -> Parameters:
    """Returns the values of variables, in the places that they have."""
    return Parameters(*(as_tensors(list(kind)) for kind in variables))
