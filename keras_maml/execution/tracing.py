"""Functions whose graphs are freed once nobody uses them.

In a graph, TensorFlow keeps the gradient of every `tf.custom_gradient`, its own in Keras's
optimizers among them, and of every call of a function under a name in a registry of the process,
for ever, and with it the whole graph. A process that made one learner after another would grow
without bound. Here these gradients are kept by the graph in which they are of use.
"""

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.autograph.core import ag_ctx as _autograph
from tensorflow.python.eager.polymorphic_function import autograph_util as _autograph_util
from tensorflow.python.framework import ops as _ops
from tensorflow.python.ops import custom_gradient as _custom_gradient

from keras_maml.execution.lending import lend, lending

# There is no public way to these. What TensorFlow keeps by name are dictionaries with a "type".
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


class _Custom(threading.local):
    """How many functions with a gradient of their own the thread is in."""

    depth = 0


_custom = _Custom()


def custom_depth() -> int:
    """Returns how many functions with a gradient of their own this thread is in.

    Those that it entered before it was inside `transparent` do not count.
    """
    return _custom.depth


@contextlib.contextmanager
def transparent() -> Iterator[None]:
    """Lets gradients pass what hides from them which weights a function reads, in this thread.

    TensorFlow finds the weights that a `tf.function` or a function with a gradient of its own reads
    by its variables. Tensors in their place would be constants there: a `tf.function` would even
    keep those of its first trace. So a user's `tf.function` is called as what it wraps,
    `tf.recompute_grad` (and `keras.remat`) gives back its function, and inside any other gradient
    `custom_depth` is larger.
    """
    with lending, contextlib.ExitStack() as stack:
        stack.enter_context(lend(_FUNCTION, "__call__", _inline))
        stack.enter_context(lend(tf, "recompute_grad", lambda function: function))
        for name, counted in _COUNTED.items():
            stack.enter_context(lend(_custom_gradient, name, counted))
        yield


def _inline(function: Any, *args: Any, **kwargs: Any) -> Any:
    if function.python_function.__module__.startswith(_READ_NO_WEIGHTS):
        return _CALL(function, *args, **kwargs)
    if not function._autograph:
        return function.python_function(*args, **kwargs)
    converted = _autograph_util.py_func_from_autograph(
        function.python_function, function._experimental_autograph_options
    )
    # Keras calls layers with AutoGraph off, which a `tf.function` turns on again.
    with _autograph.ControlStatusCtx(status=_autograph.Status.ENABLED):
        return converted(*args, **kwargs)


def _counting(own: Callable) -> Callable:
    def call(*args: Any) -> Any:
        _custom.depth += 1
        try:
            return own(*args)
        finally:
            _custom.depth -= 1

    return call


_FUNCTION = type(tf.function(lambda: None))
_CALL = _FUNCTION.__call__
# They take all they need as arguments. Keras compiles some that TensorFlow has no kernel for.
_READ_NO_WEIGHTS = ("keras.", "tensorflow.")
_COUNTED = {
    name: _counting(getattr(_custom_gradient, name))
    for name in ("_graph_mode_decorator", "_eager_mode_decorator")
}


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
