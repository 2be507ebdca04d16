"""Maps over tasks: all at once, or one after another.

Two routes give the same values. `map_at_once` turns every operation of one task into one operation
over all tasks (`tf.vectorized_map`); the gradient must be taken inside the mapped function.
`map_sequentially` takes one task after another and accepts any operation. Both are traced into the
caller's graph, so XLA compiles either.
"""

import contextlib
import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_maml.execution import tracing


class VectorizationError(ValueError):
    """TensorFlow could not vectorise a function of one task.

    Attributes:
        operation: The name of the operation that it failed at, as far as it says so.
    """

    def __init__(self, message: str, operation: str) -> None:
        super().__init__(message)
        self.operation = operation


def map_at_once(function: Callable[[Any], Any], elements: Any) -> Any:
    """Applies a function to all tasks at once, in the graph where it is called.

    Args:
        function: From a nest of tensors to a nest of tensors; it may use tensors of the caller.
        elements: A nest of tensors with a leading task axis.

    Returns:
        The nest of results, stacked along a leading task axis.

    Raises:
        VectorizationError: An operation has no form over all tasks. What was traced so far stays
            in the graph.
    """

    def one(element: Any) -> Any:
        results = function(element)
        _refuse_what_changes(tf.compat.v1.get_default_graph().as_graph_def())
        return results

    with _failed_operations() as operations, _outside_xla():
        try:
            return tf.vectorized_map(one, elements, fallback_to_while_loop=False)
        except Exception as error:  # of any kind: in turns, a user's own error shows as it is
            operations.extend(_operation_names(str(error)))
            operation = operations[0] if operations else str(error)
            raise VectorizationError(str(error), operation) from error


def map_sequentially(function: Callable[[Any], Any], elements: Any) -> Any:
    """Applies a function to one task after another; it may use tensors of the caller.

    Args:
        function: From a nest of tensors to a nest of tensors, which may be empty.
        elements: A nest of tensors with a leading task axis.

    Returns:
        The nest of results, stacked along a leading task axis.
    """
    if tf.executing_eagerly():
        tasks = range(tf.nest.flatten(elements)[0].shape[0])
        results = [function(tf.nest.map_structure(lambda t, i=i: t[i], elements)) for i in tasks]
        return tf.nest.map_structure(lambda *values: tf.stack(values), *results)
    one = tracing.function(function)
    element = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape[1:], t.dtype), elements)
    results = one.get_concrete_function(element).structured_outputs
    if not tf.nest.flatten(results):
        return results
    tasks = count_tasks(elements)

    def task(number: tf.Tensor) -> Any:
        return tf.nest.map_structure(lambda t: t[number], elements)

    # Each turn takes out the next task's element, and finds its own among the loop's variables.
    # XLA would fuse taking it out into what uses it, once for every number computed there
    # (docs/speed.md).
    def turn(number: tf.Tensor, element: Any) -> tuple[Any, Any]:
        following, results = task(tf.minimum(number + 1, tasks - 1)), one(element)
        tracing.free_with_graph()
        return following, results

    return loop(turn, task(tf.constant(0)), results, tasks)


def loop(
    turn: Callable[[tf.Tensor, Any], tuple[Any, Any]],
    variables: Any,
    like: Any,
    times: int | tf.Tensor,
) -> Any:
    """Calls a function again and again, and stacks what it returns.

    Args:
        turn: From the number of the turn, counted from 0, and the variables of the loop to the
            next variables and a nest of results.
        variables: The first variables.
        like: A nest of tensors of the results' structure, dtypes and shapes.
        times: How many turns.

    Returns:
        The nest of results, stacked along a leading axis.

    Example:
        >>> loop(lambda number, x: (2 * x, x), tf.constant(1), tf.constant(0), 3).numpy().tolist()
        [1, 2, 4]
    """

    def write(number: tf.Tensor, variables: Any, stacks: list) -> tuple[tf.Tensor, Any, list]:
        variables, results = turn(number, variables)
        values = tf.nest.flatten(results)
        stacks = [stack.write(number, v) for stack, v in zip(stacks, values, strict=True)]
        return number + 1, variables, stacks

    stacks = [tf.TensorArray(t.dtype, times, element_shape=t.shape) for t in tf.nest.flatten(like)]
    _, _, stacks = tf.while_loop(
        lambda number, *_: number < times, write, (tf.constant(0), variables, stacks)
    )
    stacked = [stack.stack() for stack in stacks]
    for values in stacked:
        values.set_shape([tf.get_static_value(times), *values.shape[1:]])
    return tf.nest.pack_sequence_as(like, stacked)


def count_tasks(elements: Any) -> int | tf.Tensor:
    """Returns the length of the task axis of a nest: a tensor where it is not known yet."""
    first = tf.nest.flatten(elements)[0]
    return first.shape[0] or tf.shape(first)[0]  # unknown once meta-batches differ in size


def in_chunks(function: Callable[[Any], Any], elements: Any, size: int | None) -> Any:
    """Applies a function of many tasks to a few tasks at a time.

    Args:
        function: From a nest of tensors ``[tasks, ...]`` to a nest of tensors that all have a
            leading axis: of tasks, or of length 1 for a sum over them.
        elements: A nest of tensors with a leading task axis.
        size: How many tasks at a time; None for all.

    Returns:
        The nest of results, joined along their leading axis.

    Raises:
        ValueError: The number of tasks is not known while tracing.
    """
    if size is None:
        return function(elements)
    tasks = tf.nest.flatten(elements)[0].shape[0]
    if tasks is None:
        raise ValueError(
            "task_chunk needs meta-batches of one size, got a dataset whose meta-batches have an "
            "unknown number of tasks. Batch it with drop_remainder=True."
        )
    if tasks <= size:
        return function(elements)
    whole = tasks - tasks % size
    chunks = tf.nest.map_structure(
        lambda t: tf.reshape(t[:whole], [whole // size, size, *t.shape[1:]]), elements
    )
    results = map_sequentially(function, chunks)
    results = tf.nest.map_structure(lambda t: tf.reshape(t, [-1, *t.shape[2:]]), results)
    if whole == tasks:
        return results
    rest = function(tf.nest.map_structure(lambda t: t[whole:], elements))
    return joined([results, rest])


def joined(slices: Sequence[Any]) -> Any:
    """Joins nests of results of slices of a meta-batch along their leading axis."""
    if len(slices) == 1:
        return slices[0]
    return tf.nest.map_structure(lambda *values: tf.concat(values, 0), *slices)


def _refuse_what_changes(graph: Any) -> None:
    """Raises for operations that TensorFlow 2.21 vectorises to something else.

    Of `PadV2` it forgets the value to pad with, and `Roll` along an axis counted from the end
    takes another axis.

    Args:
        graph: A GraphDef; the functions it calls are looked at, too.
    """
    for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
        constants = {node.name: node.attr["value"].tensor for node in nodes if node.op == "Const"}
        for node in nodes:
            if node.op in ("PadV2", "Roll"):
                third = constants.get(node.input[2].split(":")[0])
                value = None if third is None else tf.make_ndarray(third)
                same = value is not None and np.all(value >= 0 if node.op == "Roll" else value == 0)
                if not same:
                    raise NotImplementedError(f'{node.op} changes, name: "{node.name}"')


@contextlib.contextmanager
def _outside_xla() -> Iterator[None]:
    """Hides from gradients being traced that XLA will compile them.

    They would choose operations for it (XlaDynamicUpdateSlice) that cannot be vectorised.
    """
    graph = tf.compat.v1.get_default_graph()
    with contextlib.ExitStack() as stack:
        while graph is not None:
            stack.enter_context(graph.control_dependencies(None))
            graph = getattr(graph, "outer_graph", None)
        yield


@contextlib.contextmanager
def refused_loops() -> Iterator[None]:
    """Makes `map_at_once` fail at operations that TensorFlow vectorises to a loop over tasks.

    It does so for gradients of convolutions whose kernels differ between tasks, and warns of it.
    """

    def refuse(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if "uses a while_loop" in message:
            raise NotImplementedError(message)
        return True

    with _filtered(refuse):
        yield


@contextlib.contextmanager
def _failed_operations() -> Iterator[list[str]]:
    """Collects the operations TensorFlow failed to vectorise, instead of printing them."""
    operations: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        operations.extend(_operation_names(record.getMessage()))
        return record.levelno < logging.ERROR

    with _filtered(collect):
        yield operations


@contextlib.contextmanager
def _filtered(keep: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Filters what TensorFlow logs in this thread."""
    thread = threading.get_ident()

    def of_thread(record: logging.LogRecord) -> bool:
        return record.thread != thread or keep(record)

    logger = tf.get_logger()
    logger.addFilter(of_thread)
    try:
        yield
    finally:
        logger.removeFilter(of_thread)


def _operation_names(message: str) -> list[str]:
    return re.findall(r'name: "([^"]+)"', message)
