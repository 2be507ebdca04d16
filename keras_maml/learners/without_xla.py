"""What XLA cannot compile runs without it."""

import functools
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import tensorflow as tf

from keras_maml.learners import inputs

Method = TypeVar("Method", bound=Callable)

_log = logging.getLogger("keras_maml")


def without_xla_where_it_fails(method: Method) -> Method:
    """Makes a method of a learner go on without XLA where that cannot compile an operation.

    XLA refuses before anything runs, so nothing has been learned or counted then; the method is
    called once more. A data set that can be read once only has lost what was read: there the
    message says what to do.

    Args:
        method: A method of an `EpisodicModel`, whose first argument is its data.
    """

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
            operation = _refused(str(error))
            if operation is None or not self.jit_compile:
                raise
            said = f"XLA cannot compile {operation}"
            if _reads_once(args[0] if args else kwargs.get("x")):
                raise ValueError(f"{said}: call compile with jit_compile=False.") from error
        _log.warning(
            "%s; the learner goes on without XLA, more slowly. With jit_compile=False, compile "
            "spares this message.",
            said,
        )
        self.jit_compile = False
        self.forget_programs(tasks=self.tasks)
        return method(self, *args, **kwargs)

    return call


def _reads_once(data: Any) -> bool:
    if isinstance(data, tf.data.Dataset):
        return inputs.is_stream(data)
    return isinstance(data, Iterator)


def _refused(message: str) -> str | None:
    """Returns the operation that XLA refuses, if that is what a message says."""
    # XLA says so whatever the reason: an operation it lacks, a loop whose gradient keeps a list of
    # unknown length, a shape that depends on values. Nothing that runs says it.
    if "tf2xla conversion failed" not in message:
        return None
    kind = re.search(r"No registered '(\w+)' OpKernel|node `.+` with op (\w+) must be", message)
    node = re.search(r"\{\{node ([^}]+)\}\}", message)
    operation = (kind[1] or kind[2]) if kind else "an operation"
    return f"{operation} of {node[1] if node else 'the model'}"
