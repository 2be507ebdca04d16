"""Functions whose graphs are freed once nobody uses them.

In a graph, TensorFlow keeps the gradient of every `tf.custom_gradient`, its own in Keras's
optimizers among them, and of every call of a function under a name in a registry of the process,
for ever, and with it the whole graph. A process that made one learner after another would grow
without bound. Here these gradients are kept by the graph in which they are of use.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import ops as _ops

# What TensorFlow keeps by name are dictionaries with a "type"; there is no public way to them.
_REGISTRY = _ops._gradient_registry._registry
_BRANCHES = ("_true_graph", "_false_graph")
_REGISTERED = ("IdentityN", "PartitionedCall", "StatefulPartitionedCall")


def function(python_function: Callable, **settings: Any) -> Callable:
    """Makes a `tf.function`, without AutoGraph, whose graphs are freed with it.

    Args:
        python_function: From tensors to tensors.
        **settings: As in `tf.function`.

    Example:
        >>> float(function(lambda x: 2 * x)(tf.constant(3.0)))
        6.0
    """

    @functools.wraps(python_function)
    def call(*args: Any, **kwargs: Any) -> Any:
        results = python_function(*args, **kwargs)
        free_with_graph()
        return results

    return tf.function(call, autograph=False, **settings)


def custom_gradient(python_function: Callable) -> Callable:
    """Gives a function a gradient of its own, as `tf.custom_gradient` does.

    Args:
        python_function: From tensors to ``(results, gradient)``.

    Example:
        >>> @custom_gradient
        ... def clipped(x):
        ...     return x, lambda upstream: tf.clip_by_value(upstream, -1.0, 1.0)
        >>> x = tf.constant(2.0)
        >>> with tf.GradientTape() as tape:
        ...     tape.watch(x)
        ...     y = 5.0 * clipped(x)
        >>> float(tape.gradient(y, x))
        1.0
    """
    with_gradient = tf.custom_gradient(python_function)

    @functools.wraps(python_function)
    def call(*args: Any, **kwargs: Any) -> Any:
        results = with_gradient(*args, **kwargs)
        for tensor in tf.nest.flatten(results):
            if not isinstance(tensor, _ops.EagerTensor):
                _tie(tensor.op)
        return results

    return call


def free_with_graph() -> None:
    """Lets the gradients of all operations so far live as long as the graph being traced."""
    if not tf.executing_eagerly():
        _tie_all(tf.compat.v1.get_default_graph())


def _tie_all(graph: tf.Graph) -> None:
    for op in graph.get_operations():
        if op.type in _REGISTERED:
            _tie(op)
        elif op.type in ("If", "StatelessIf"):
            for branch in filter(None, (getattr(op, name, None) for name in _BRANCHES)):
                _tie_all(branch)


def _tie(op: tf.Operation) -> None:
    """Hands what is registered as the gradient of an operation to the operation."""
    try:
        name = op.get_attr("_gradient_op_type").decode()
    except ValueError:  # it has no gradient of its own
        return
    entry = _REGISTRY.get(name)
    if entry is not None and not isinstance(entry["type"], _Tied):
        op._registered_gradient = entry["type"]
        entry["type"] = _Tied(entry["type"], name)


class _Tied:
    """A registered gradient that is there, with its name, as long as somebody else keeps it."""

    def __init__(self, gradient: Callable, name: str) -> None:
        self._gradient = weakref.ref(gradient, lambda _: _REGISTRY.pop(name, None))

    def __call__(self, op: tf.Operation, *upstream: tf.Tensor) -> Any:
        return self._gradient()(op, *upstream)
