"""Compiles a step over a meta-batch with XLA: as one program, or as several side by side.

Tasks that run at once are one program: few, large operations, and one call. Tasks that take turns
are many small operations, and an XLA program runs one after another; only its largest products
use more than one core. There the meta-batch is cut into equal parts, each a call of the same
compiled program, in a graph that is not compiled itself: TensorFlow runs calls that do not depend
on each other at the same time, each on a core. What follows the tasks, such as the optimizer, is
a program of its own.

Measured in turns on 2 cores (AMD EPYC with AVX-512, second order), as one program and side by
side: 5-way 1-shot Omniglot 94 and 74 ms a meta-step, with 15 queries 375 to 650 and 371, 20-way
with 5 steps 651 and 609; evaluation of 5-way 1-shot 96 and 35 ms. Two loops side by side within
one program were slower than one. A program per task instead of one per core costs up to a tenth
more.

A program called in a graph cuts its products into pieces for all cores, though these are busy with
the other parts. That hurts most where a long sum makes a small result, as in the gradient of a
kernel: 3,675 rows of 576 and 64 columns take 2.6 ms on two cores and 2.25 on one. TensorFlow keeps
to one core only what a data set calls, so parts that are large enough are called by one. That
takes 1 to 4 ms, for each time TensorFlow prepares the function anew. Measured in turns on 2 cores
of an Intel Xeon with AMX, called in a graph and by a data set: Omniglot with 15 queries, first
order, 267 and 250 ms, 20-way 217 and 205 (second order 585 and 548), its evaluation 464 and 445;
of 5-way 1-shot 128 tasks 149 and 141 ms, 32 tasks 38.4 and 39.3; mini-ImageNet the same in both.
"""

import contextvars
import os
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_maml.execution.context import holding
from keras_maml.execution.task_map import TakeTurns, at_once, in_chunks

# Parts with as many bytes of input are faster when each keeps to one core.
MIN_PART = 3 * 2**18

_side_by_side = contextvars.ContextVar("whether a step consists of several programs", default=False)


def compiled_step(step: Callable, *arguments: Any) -> Any:
    """Calls a step so that XLA compiles it.

    Args:
        step: Maps nests of tensors to a nest of tensors. It may use `over_tasks` and `program`.
        *arguments: Its arguments.

    Returns:
        What the step returns.

    Example:
        >>> from keras_maml.execution.task_map import joined
        >>> twice = lambda x: joined(over_tasks(lambda tasks: 2 * tasks, x, task_chunk=None))
        >>> compiled_step(twice, tf.constant([1.0, 2.0])).numpy().tolist()
        [2.0, 4.0]
    """
    try:
        with at_once():
            return tf.function(step, jit_compile=True, autograph=False)(*arguments)
    except TakeTurns:
        with holding(_side_by_side, True):
            return step(*arguments)


def over_tasks(function: Callable[[Any], Any], elements: Any, task_chunk: int | None) -> list[Any]:
    """Applies a function of many tasks to a meta-batch.

    Args:
        function: From a nest of tensors ``[tasks, ...]`` to a nest of tensors that all have a
            leading axis: of tasks, or of length 1 for a sum over them.
        elements: A nest of tensors with a leading task axis.
        task_chunk: How many tasks may be in memory at once; None for no limit.

    Returns:
        The nests of results of the parts that the meta-batch was cut into, for `task_map.joined`.
    """
    if not _side_by_side.get():
        return [in_chunks(function, elements, task_chunk)]
    tasks = tf.nest.flatten(elements)[0].shape[0]  # None where meta-batches differ in size
    parts = 1 if tasks is None else _count_parts(tasks, task_chunk)
    part = program(function)
    if parts == 1:
        return [part(elements)]
    if _keep_apart(elements, parts):
        return _on_one_core_each(part, elements, parts)
    size = tasks // parts
    starts = range(0, tasks, size)
    return [part(tf.nest.map_structure(lambda t, i=i: t[i : i + size], elements)) for i in starts]


def program(function: Callable) -> Callable:
    """Compiles a part of a step by itself, unless the whole step is one program anyway."""
    if not _side_by_side.get():
        return function
    return tf.function(function, jit_compile=True, autograph=False)


def _keep_apart(elements: Any, parts: int) -> bool:
    """Returns whether every core has parts of its own to run, large enough to keep it to them."""
    if parts < _count_cores() or tf.config.list_logical_devices("GPU"):
        return False
    inputs = tf.nest.flatten(elements)
    if not all(t.shape.is_fully_defined() for t in inputs):
        return False
    return sum(t.dtype.size * t.shape.num_elements() for t in inputs) >= parts * MIN_PART


def _on_one_core_each(part: Callable[[Any], Any], elements: Any, parts: int) -> list[Any]:
    """Calls a program for every part, as many at the same time as there are cores.

    Args:
        part: A program.
        elements: Its arguments, one part after another: a nest of tensors of defined shapes.
        parts: How many parts these are.

    Returns:
        What it returns for each of them.
    """
    structures = []

    @tf.autograph.experimental.do_not_convert
    def call(*values: tf.Tensor) -> tuple[tf.Tensor, ...]:
        results = part(tf.nest.pack_sequence_as(elements, values))
        structures.append(results)
        return tuple(tf.nest.flatten(results))

    inputs = [
        tf.reshape(t, [parts, t.shape[0] // parts, *t.shape[1:]]) for t in tf.nest.flatten(elements)
    ]
    dataset = tf.data.Dataset.from_tensor_slices(tuple(inputs))
    dataset = dataset.map(call, num_parallel_calls=_count_cores(), deterministic=True)
    dataset = dataset.batch(parts, drop_remainder=True)
    specs = tf.nest.flatten(dataset.element_spec)
    types = {"output_types": [s.dtype for s in specs], "output_shapes": [s.shape for s in specs]}
    # The option of the same name is not heeded where one element is taken.
    dataset = tf.raw_ops.MaxIntraOpParallelismDataset(
        input_dataset=tf.data.experimental.to_variant(dataset), max_intra_op_parallelism=1, **types
    )
    results = tf.raw_ops.DatasetToSingleElement(dataset=dataset, **types)
    split = zip(*map(tf.unstack, results), strict=True)
    return [tf.nest.pack_sequence_as(structures[-1], values) for values in split]


def _count_parts(tasks: int, task_chunk: int | None) -> int:
    """Returns how many parts of one size a meta-batch is cut into: at least one per core.

    Only as many parts as there are cores are in memory at once, of each part one task.
    """
    cores = _count_cores()
    divisors = [n for n in range(1, tasks + 1) if tasks % n == 0]
    if task_chunk is not None and task_chunk < cores:
        return max(n for n in divisors if n <= task_chunk)
    return next((n for n in divisors if n >= cores), tasks)


def _count_cores() -> int:
    """Returns how many operations TensorFlow runs at the same time."""
    threads = tf.config.threading.get_inter_op_parallelism_threads()
    available = getattr(os, "sched_getaffinity", None)  # not on every system
    return threads or (len(available(0)) if available else os.cpu_count() or 1)
