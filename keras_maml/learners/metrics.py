"""Compiled losses and metrics of one task, and of the predictions before adaptation."""

import inspect
import types
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_maml.execution.functional import WeightScope
from keras_maml.private_keras import CompileLoss, CompileMetrics, own_variables


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
    """Copies a nest of metrics as passed to `compile`; names and functions stay as they are.

    The copies have counted nothing yet.
    """

    def clone(metric: Any) -> Any:
        if not isinstance(metric, keras.metrics.Metric):
            return metric
        config = _whole_config(metric)
        if config is not None:
            return type(metric).from_config(config)
        copied = _copied(metric, {})
        copied.reset_state()
        return copied

    return keras.tree.map_structure(clone, metrics) if metrics is not None else None


def _whole_config(metric: keras.metrics.Metric) -> dict[str, Any] | None:
    """Returns the configuration of a metric if that says all that its constructor takes.

    Keras does not ask for it: a metric that is compiled need not have a `get_config` of its own.
    """
    if isinstance(metric, keras.metrics.MeanMetricWrapper):  # its function has no config
        return None
    config, parameters = metric.get_config(), inspect.signature(type(metric)).parameters.values()
    named = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    others = any(p.kind is p.VAR_KEYWORD for p in parameters)
    whole = named <= config.keys() and (others or config.keys() <= named)
    return config if whole else None


def _copied(value: Any, copies: dict[int, Any]) -> Any:
    """Copies what a metric counts in, wherever it keeps that, and shares the rest.

    Args:
        value: A metric, or what one keeps.
        copies: What is copied already, by id.
    """
    if id(value) in copies:
        return copies[id(value)]
    if isinstance(value, keras.metrics.Metric):
        copy = copies[id(value)] = object.__new__(type(value))
        keras.metrics.Metric.__init__(copy, dtype=value.dtype, name=value.name)
        of_keras = {*vars(copy)}
        for v in own_variables(value):
            copies[id(v)] = copy.add_variable(v.shape, "zeros", v.dtype, v.aggregation, v.name)
        for name, kept in vars(value).items():
            if name not in of_keras:
                setattr(copy, name, _copied(kept, copies))
        return copy
    if isinstance(value, types.MethodType):
        return types.MethodType(value.__func__, _copied(value.__self__, copies))
    if isinstance(value, tf.Variable):
        return tf.Variable(value, trainable=False)
    if isinstance(value, dict):
        return {key: _copied(entry, copies) for key, entry in value.items()}
    if isinstance(value, list):
        return [_copied(entry, copies) for entry in value]
    if type(value) is tuple:
        return tuple(_copied(entry, copies) for entry in value)
    return value


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
