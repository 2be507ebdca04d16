"""Names of Keras that have no public place, in one place."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras.src.models.functional import Functional
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.trainers.compile_utils import CompileLoss, CompileMetrics
from keras.src.utils.tracking import no_automatic_dependency_tracking

__all__ = [
    "CompileLoss",
    "CompileMetrics",
    "KerasSaveable",
    "averaged_by",
    "decays",
    "flatten_layers",
    "inputs_of",
    "is_called_on",
    "is_functional",
    "made_by",
    "no_automatic_dependency_tracking",
    "own_variables",
    "replace_sublayer",
    "replace_variables",
    "scales_losses",
]


def flatten_layers(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns every layer of a model or layer once: itself, its layers, and theirs."""
    return list(model._flatten_layers())


def inputs_of(model: keras.Model) -> Any:
    """Returns the nest of symbolic tensors that a model is made on; None where there are none.

    A sequential model may be built without any, on what its layers say nothing of.
    """
    if isinstance(model, keras.Sequential):
        model = model._functional
    return model._inputs_struct if isinstance(model, Functional) else None


def is_called_on(layer: keras.layers.Layer, tensor: keras.KerasTensor) -> bool:
    """Returns whether a layer takes a symbolic tensor of a functional model as its input."""
    nodes = layer._inbound_nodes
    return any(argument is tensor for node in nodes for argument in node.input_tensors)


def is_functional(model: keras.Model) -> bool:
    """Returns whether a model is sequential or functional: made of layers that it knows."""
    return isinstance(model, (keras.Sequential, Functional))


def made_by(tensor: keras.KerasTensor) -> tuple[Any, list[keras.KerasTensor]]:
    """Returns the operation that a symbolic tensor of a functional model is of, and its inputs."""
    operation, node, _ = tensor._keras_history
    return operation, operation._inbound_nodes[node].input_tensors


def own_variables(metric: keras.metrics.Metric) -> list[keras.Variable]:
    """Returns the variables of a metric without those of metrics that it keeps."""
    return list(metric._variables)


def scales_losses(optimizer: keras.optimizers.Optimizer) -> bool:
    """Returns whether an optimizer divides gradients by what losses are to be multiplied by."""
    scaling = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    return scaling or optimizer.loss_scale_factor is not None


def decays(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> bool:
    """Returns whether an optimizer takes weight decay off a variable."""
    return optimizer.weight_decay is not None and optimizer._use_weight_decay(variable)


def replace_variables(
    layer: keras.layers.Layer, old: Sequence[keras.Variable], make: Callable[[], None]
) -> None:
    """Lets a built layer make other variables in the place of some."""
    tracker = layer._tracker
    locked = tracker.locked
    tracker.unlock()
    try:
        for variable in old:
            layer._untrack_variable(variable)
        make()
    finally:
        tracker.locked = locked


def averaged_by(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable] | None:
    """Returns the variables that a built optimizer keeps moving averages of, if it does."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return list(optimizer._trainable_variables) if getattr(optimizer, "use_ema", False) else None


def begin_at(model: keras.Model, epoch: int | None) -> None:
    """Lets `fit`, which is about to begin, begin with an epoch; None: as it is told."""
    model._initial_epoch = epoch


def replace_sublayer(
    owner: keras.layers.Layer, old: keras.layers.Layer | None, new: keras.layers.Layer
) -> None:
    """Lets a layer, built or not, track another sublayer in the place of one."""
    tracker = owner._tracker
    locked = tracker.locked
    tracker.unlock()
    try:
        if old is not None:
            tracker.untrack(old)
        tracker.track(new)
    finally:
        tracker.locked = locked
