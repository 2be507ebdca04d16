"""Metrics of several workers: what each of them counts is added up."""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from keras_maml.execution.functional import Tensors


def counted(metrics: Sequence[keras.metrics.Metric], update: Callable[[], None]) -> Tensors:
    """Returns what an update adds to the states of metrics; the metrics do not change.

    Args:
        metrics: Built metrics.
        update: Calls their ``update_state``.

    Returns:
        A tensor for each of their variables.

    Example:
        >>> mean = keras.metrics.Mean()
        >>> mean.update_state(5.0)
        >>> [float(t) for t in counted([mean], lambda: mean.update_state([1.0, 2.0]))]
        [3.0, 2.0]
        >>> float(mean.result())
        5.0
    """
    states = variables(metrics)
    mapping = [(state, tf.convert_to_tensor(state)) for state in states]
    with keras.StatelessScope(state_mapping=mapping) as scope:
        for metric in metrics:
            metric.reset_state()
        # From the beginning instead of from the state at hand, whose sums may be large.
        begun = [scope.get_current_value(state) for state in states]
        update()
        ended = [scope.get_current_value(state) for state in states]
    return [after - before for before, after in zip(begun, ended, strict=True)]


def count(metrics: Sequence[keras.metrics.Metric], added: Tensors) -> None:
    """Adds to metrics what `counted` has returned, or a sum of such.

    Args:
        metrics: Built metrics.
        added: A tensor for each of their variables.
    """
    for state, more in zip(variables(metrics), added, strict=True):
        state.assign_add(more)


def check_additive(metrics: Sequence[keras.metrics.Metric]) -> None:
    """Checks that the states of metrics are sums, by what Keras's metrics say of them.

    Raises:
        NotImplementedError: One is not.
    """
    for metric in metrics:
        for state in metric.variables:
            if state.aggregation != "sum" or not (
                "float" in str(state.dtype) or "int" in str(state.dtype)
            ):
                raise NotImplementedError(
                    f"Metric {metric.name!r} keeps {state.name!r}, which is no sum "
                    f"(aggregation={state.aggregation!r}, {state.dtype}), so that it cannot be "
                    "added up over workers. Leave the metric out of compile, and measure what "
                    "predict returns."
                )


def variables(metrics: Sequence[keras.metrics.Metric]) -> list[keras.Variable]:
    """Returns the variables of metrics, each once."""
    return list({id(v): v for metric in metrics for v in metric.variables}.values())
