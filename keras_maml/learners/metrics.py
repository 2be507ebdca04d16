"""Compiled losses and metrics of one task, and of the predictions before adaptation."""

from typing import Any

import keras
import tensorflow as tf
from keras.src.trainers.compile_utils import CompileLoss, CompileMetrics


class MetricsBefore(CompileMetrics):
    """A second set of the metrics passed to `compile`, named ``..._before``.

    Args:
        metrics: As passed to `keras.Model.compile`.
        weighted_metrics: As passed to `keras.Model.compile`.
    """

    def __init__(self, metrics: Any, weighted_metrics: Any) -> None:
        super().__init__(clone_metrics(metrics), clone_metrics(weighted_metrics))

    def result(self) -> dict[str, tf.Tensor]:
        """Returns the metrics by name."""
        return {f"{name}_before": value for name, value in super().result().items()}


def clone_metrics(metrics: Any) -> Any:
    """Copies a nest of metrics as passed to `compile`; names and functions stay as they are."""

    def clone(metric: Any) -> Any:
        if isinstance(metric, keras.metrics.Metric):
            if type(metric) is keras.metrics.MeanMetricWrapper:  # its function has no config
                return type(metric)(metric._fn, metric.name, metric.dtype, **metric._fn_kwargs)
            return type(metric).from_config(metric.get_config())
        return metric

    return keras.tree.map_structure(clone, metrics) if metrics is not None else None


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


def stateless_result(metrics: CompileMetrics | None, y: Any, predictions: Any, weight: Any) -> dict:
    """Computes metrics of one set of predictions alone; the metric objects do not change.

    Args:
        metrics: Compiled and built metrics.
        y: The targets ``[examples, ...]``, or a nest of such.
        predictions: The predictions, likewise.
        weight: Sample weights ``[examples]``, or None.

    Returns:
        Scalars by name.
    """
    if metrics is None:
        return {}
    with keras.StatelessScope():
        metrics.reset_state()
        metrics.update_state(y, predictions, weight)
        return {name: tf.convert_to_tensor(value) for name, value in metrics.result().items()}


def stateless_loss(
    compile_loss: CompileLoss | None, y: Any, predictions: Any, weight: Any
) -> tuple[tf.Tensor | None, list[tf.Tensor]]:
    """Computes the compiled loss; its trackers of the losses by output do not change.

    Args:
        compile_loss: The compiled loss; None for a model that only adds losses of its own.
        y: The targets ``[examples, ...]``, or a nest of such.
        predictions: The predictions, likewise.
        weight: Sample weights ``[examples]``, or None.

    Returns:
        The total loss, and the losses by output if there are several.
    """
    if compile_loss is None:
        return None, []
    trackers = compile_loss.metrics
    zeros = [(v, tf.zeros(v.shape, v.dtype)) for t in trackers for v in t.variables]
    with keras.StatelessScope(state_mapping=zeros):
        loss = compile_loss(y, predictions, weight)
        return loss, [tf.convert_to_tensor(tracker.result()) for tracker in trackers]
