"""Names of Keras that have no public place, in one place."""

import keras
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.trainers.compile_utils import CompileLoss, CompileMetrics
from keras.src.utils.tracking import no_automatic_dependency_tracking

__all__ = [
    "CompileLoss",
    "CompileMetrics",
    "KerasSaveable",
    "flatten_layers",
    "is_called_on",
    "no_automatic_dependency_tracking",
    "replace_sublayer",
    "wrapped_function",
]


def flatten_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns every layer of a model once: itself, its layers, and theirs."""
    return list(model._flatten_layers())


def is_called_on(layer: keras.layers.Layer, tensor: keras.KerasTensor) -> bool:
    """Returns whether a layer takes a symbolic tensor of a functional model as its input."""
    nodes = layer._inbound_nodes
    return any(argument is tensor for node in nodes for argument in node.input_tensors)


def wrapped_function(metric: keras.metrics.MeanMetricWrapper) -> tuple:
    """Returns the function of a metric and its keyword arguments, which have no config."""
    return metric._fn, metric._fn_kwargs


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
