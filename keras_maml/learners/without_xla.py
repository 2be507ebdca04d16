"""What XLA cannot compile runs without it."""

import functools
import itertools
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import tensorflow as tf

from keras_maml.learners import inputs
from keras_maml.words import counted

Method = TypeVar("Method", bound=Callable)

_REFUSALS = (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError)

_log = logging.getLogger("keras_maml")


def without_xla_where_it_fails(method: Method) -> Method:
    """Makes a method of a learner go on without XLA where that cannot compile an operation.

    XLA refuses a program before it runs: unless steps were taken before, nothing has been learned
    then, and the method is called once more. The message says what to do where that would repeat
    steps, or where a data set that can be read once has lost what was read.

    Args:
        method: A method of an `EpisodicModel`, whose first argument is its data.
    """

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = _steps_taken(self)
        try:
            return method(self, *args, **kwargs)
        except _REFUSALS as error:
            said = _refused(self, error)
            more = _steps_taken(self) - before
            if more:
                raise ValueError(
                    f"{said}, to which training came after {counted(more, 'step')}. What it has "
                    "learned stays: call compile with jit_compile=False, and fit for the rest."
                ) from error
            if _reads_once(args[0] if args else kwargs.get("x")):
                raise ValueError(f"{said}: call compile with jit_compile=False.") from error
        _leave_xla(self, said)
        return method(self, *args, **kwargs)

    return call


def first_step_without_xla_where_it_fails(learner: Any, step: Callable) -> Callable:
    """Makes a training step go on without XLA where that refuses the first call.

    A setting that changes within `fit` makes another step, whose meta-batches are kept until XLA
    has compiled it: what has been learned stays, and no meta-batch is left out.

    Args:
        learner: An `EpisodicModel`.
        step: Its training step, a function of an iterator.
    """
    compiled = False

    @functools.wraps(step)
    def call(batches: Any) -> Any:
        nonlocal compiled
        if compiled or not learner.jit_compile or not isinstance(batches, tf.data.Iterator):
            return step(batches)
        kept = list(itertools.islice(batches, learner.steps_per_execution))
        spec = batches.element_spec
        again = tf.data.Dataset.from_generator(lambda: iter(kept), output_signature=spec)
        before = _steps_taken(learner)
        try:
            results = step(iter(again))
        except _REFUSALS as error:
            said = _refused(learner, error)
            if _steps_taken(learner) != before:
                raise
        else:
            compiled = True
            return results
        _leave_xla(learner, said)
        return learner.train_function(iter(again))

    return call


def _steps_taken(learner: Any) -> int:
    optimizer = getattr(learner, "optimizer", None)
    if optimizer is None or not tf.executing_eagerly():  # traced within a user's own function
        return 0
    return int(optimizer.iterations)


def _leave_xla(learner: Any, said: str) -> None:
    _log.warning(
        "%s; the learner goes on without XLA, more slowly. With jit_compile=False, compile "
        "spares this message.",
        said,
    )
    learner.jit_compile = False
    learner.forget_programs(tasks=learner.tasks)


def _reads_once(data: Any) -> bool:
    if isinstance(data, tf.data.Dataset):
        return inputs.is_stream(data)
    return isinstance(data, Iterator)


def _refused(learner: Any, error: Exception) -> str:
    """Says which operation XLA refuses, in an exception's handler; raises all other errors."""
    message = str(error)
    # XLA says so whatever the reason: an operation it lacks, a loop whose gradient keeps a list of
    # unknown length, a shape that depends on values. Nothing that runs says it.
    if "tf2xla conversion failed" not in message or not learner.jit_compile:
        raise error
    kind = re.search(r"No registered '(\w+)' OpKernel|node `.+` with op (\w+) must be", message)
    node = re.search(r"\{\{node ([^}]+)\}\}", message)
    operation = (kind[1] or kind[2]) if kind else "an operation"
    return f"XLA cannot compile {operation} of {node[1] if node else 'the model'}"
