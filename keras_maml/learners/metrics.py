"""Compiled losses and metrics of one task, and of the predictions before adaptation."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_maml.execution.functional import WeightScope
from keras_maml.private_keras import CompileLoss, CompileMetrics, wrapped_function


class MetricsBefore(CompileMetrics):
    """A second set of the metrics passed to `compile`, named ``..._before``.

    Args:
        metrics: As passed to `keras.Model.compile`.
        weighted_metrics: As passed to `keras.Model.compile`.
        output_names: The names of the model's outputs, if it has names for them.
    """

    def __init__(self, metrics: Any, weighted_metrics: Any, output_names: Any = None) -> None:
        super().__init__(
            clone_metrics(metrics), clone_metrics(weighted_metrics), output_names=output_names
        )

    def result(self) -> dict[str, tf.Tensor]:
        """Returns the metrics by name."""
        return {f"{name}_before": value for name, value in super().result().items()}


def clone_metrics(metrics: Any) -> Any:
    """Copies a nest of metrics as passed to `compile`; names and functions stay as they are."""

    def clone(metric: Any) -> Any:
        if isinstance(metric, keras.metrics.Metric):
            if type(metric) is keras.metrics.MeanMetricWrapper:  # its function has no config
                function, arguments = wrapped_function(metric)
                return type(metric)(function, metric.name, metric.dtype, **arguments)
            return type(metric).from_config(metric.get_config())
        return metric

    return keras.tree.map_structure(clone, metrics) if metrics is not None else None


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
    compile_loss: CompileLoss | None,
    y: Any,
    predictions: Any,
    weight: Any,
    weights: Sequence[tuple[keras.Variable, tf.Tensor]] = (),
) -> tuple[tf.Tensor | None, list[tf.Tensor]]:
    """Computes the compiled loss; its trackers of the losses by output do not change.

    Args:
        compile_loss: The compiled loss; None for a model that only adds losses of its own.
        y: The targets ``[examples, ...]``, or a nest of such.
        predictions: The predictions, likewise.
        weight: Sample weights ``[examples]``, or None.
        weights: What takes the place of the model's weights, where the loss reads them.

    Returns:
        The total loss, and the losses by output if there are several.
    """
    if compile_loss is None:
        return None, []
    trackers = compile_loss.metrics
    zeros = [(v, tf.zeros(v.shape, v.dtype)) for t in trackers for v in t.variables]
    with WeightScope(state_mapping=[*zeros, *weights]):
        loss = compile_loss(y, predictions, weight)
        return loss, [tf.convert_to_tensor(tracker.result()) for tracker in trackers]
