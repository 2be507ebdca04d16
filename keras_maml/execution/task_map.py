"""Runs one task's function for all tasks of a meta-batch.

Two routes give the same values. The vectorised one turns every operation of one task into one
operation over all tasks (`tf.vectorized_map`); the gradient must be taken inside the mapped
function. The sequential one (`tf.map_fn`) takes one task after another and accepts any
operation. Both are traced into the caller's graph, so XLA compiles either.
"""

import contextlib
import contextvars
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_maml.execution.context import holding
from keras_maml.execution.convolution import PatchesTooLarge, limited_patches

MODES = ("auto", "vectorized", "sequential")

TaskFunction = Callable[[Any, Any, bool], Any]

_log = logging.getLogger("keras_maml")

_at_once = contextvars.ContextVar("whether tasks may only run at once", default=False)


class TakeTurns(Exception):  # noqa: N818
    """The tasks of a meta-batch run one after another."""


def at_once() -> contextlib.AbstractContextManager[None]:
    """Lets a `TaskMap` raise `TakeTurns`, while the context is open, instead of doing so."""
    return holding(_at_once, True)


class TaskMap:
    """Maps a function over the leading (task) axis of nested tensors.

    Args:
        mode: ``"vectorized"``, ``"sequential"``, or ``"auto"``: vectorised unless an operation
            has no vectorised form, in which case one message names the layer and every later
            call is sequential.
        layer_names: The names of the model's layers, to recognise the layer in that message.

    Example:
        >>> scale = lambda factor, x, vectorized: factor * x
        >>> TaskMap()(scale, tf.constant(2.0), tf.constant([[1.0], [2.0]])).numpy().tolist()
        [[2.0], [4.0]]
    """

    def __init__(self, mode: str = "auto", layer_names: Sequence[str] = ()) -> None:
        if mode not in MODES:
            raise ValueError(f"task_map must be one of {MODES}, got {mode!r}.")
        self.mode = mode
        self.layer_names = layer_names

    def __call__(
        self,
        function: TaskFunction,
        shared: Any,
        elements: Any,
        finish: Callable[[Any], Any] = lambda results: results,
    ) -> Any:
        """Applies ``function`` to every task.

        Args:
            function: One task's function ``function(shared, element, vectorized)``, from nests
                of tensors to a nest of tensors; the flag says which route it is traced for. It
                must not use tensors of the caller other than its arguments.
            shared: A nest of tensors that all tasks share, such as the initial weights.
            elements: A nest of tensors with a leading task axis.
            finish: What to make of the nest of results, stacked along a leading task axis; it is
                called in the graph that computes them.

        Returns:
            What ``finish`` returns.
        """
        if tf.executing_eagerly():
            return finish(_sequential(function, shared, elements))
        if self.mode == "vectorized":
            return _vectorized(function, shared, elements, finish)
        failure = None
        if self.mode == "auto":
            try:
                with limited_patches():
                    return _vectorized(function, shared, elements, finish)
            except PatchesTooLarge:
                pass
            except Exception as error:  # of any kind: the sequential route decides whose it is
                failure = error
        if _at_once.get():
            raise TakeTurns
        results = _sequential(function, shared, elements)  # a user's own error is raised here
        if failure is not None:
            self.mode = "sequential"
            _log.warning(
                "%s cannot be vectorised over tasks; the tasks of a meta-batch run one after "
                "another instead (still compiled, but slower).",
                self._culprit(failure),
            )
        return finish(results)

    def _culprit(self, error: Exception) -> str:
        operation = getattr(error, "operation", None) or str(error)
        for part in reversed(re.split(r"[/\s\"]+", operation)):  # the innermost layer
            name = part if part in self.layer_names else re.sub(r"_\d+$", "", part)
            if name in self.layer_names:
                return f"Layer '{name}'"
        return "An operation of the model (" + operation.strip().splitlines()[-1].strip() + ")"


def _vectorized(
    function: TaskFunction, shared: Any, elements: Any, finish: Callable[[Any], Any]
) -> Any:
    @tf.function(autograph=False)
    def mapped(shared: Any, elements: Any) -> Any:
        def one(element: Any) -> Any:
            results = function(shared, element, True)
            _refuse_what_changes(tf.compat.v1.get_default_graph().as_graph_def())
            return results

        return finish(tf.vectorized_map(one, elements, fallback_to_while_loop=False))

    # Traced as a function of its own, so that a failure leaves nothing in the caller's graph.
    with _failed_operations() as operations, _outside_xla():
        try:
            return mapped(shared, elements)
        except Exception as error:
            operations.extend(_operation_names(str(error)))
            error.operation = operations[0] if operations else None
            raise


def _sequential(function: TaskFunction, shared: Any, elements: Any) -> Any:
    return map_sequentially(lambda element: function(shared, element, False), elements)


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
    one = tf.function(function, autograph=False)
    element = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape[1:], t.dtype), elements)
    results = one.get_concrete_function(element).structured_outputs
    if not tf.nest.flatten(results):
        return results
    tasks = count_tasks(elements)

    def task(number: tf.Tensor) -> Any:
        return tf.nest.map_structure(lambda t: t[number], elements)

    # Each turn takes out the next task's element, and finds its own among the loop's variables.
    # XLA would fuse taking it out into what uses it, once for every number computed there:
    # evaluation of mini-ImageNet 2.64 instead of 2.29 s, of 20-way Omniglot 644 instead of 576 ms.
    def turn(number: tf.Tensor, element: Any) -> tuple[Any, Any]:
        return task(tf.minimum(number + 1, tasks - 1)), one(element)

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


def joined(parts: Sequence[Any]) -> Any:
    """Joins nests of results of parts of a meta-batch along their leading axis."""
    if len(parts) == 1:
        return parts[0]
    return tf.nest.map_structure(lambda *values: tf.concat(values, 0), *parts)


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
def _failed_operations() -> Iterator[list[str]]:
    """Collects the operations TensorFlow failed to vectorise, instead of printing them."""
    operations: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        operations.extend(_operation_names(record.getMessage()))
        return record.levelno < logging.ERROR

    logger = tf.get_logger()
    logger.addFilter(collect)
    try:
        yield operations
    finally:
        logger.removeFilter(collect)


def _operation_names(message: str) -> list[str]:
    return re.findall(r'name: "([^"]+)"', message)
