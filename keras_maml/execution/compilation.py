"""Programs side by side: how tasks that take turns use all cores.

Tasks that run at once are one XLA program: few, large operations, and one call. Tasks that take
turns are many small operations, and an XLA program runs one after another; only its largest
products use more than one core. There the meta-batch is cut into equal slices, each a call of the
same compiled program, in a graph that is not compiled itself: TensorFlow runs calls that do not
depend on each other at the same time, each on a core.

A program called in a graph cuts its products into pieces for all cores, though these are busy with
the other slices. TensorFlow keeps to one core only what a data set calls, so slices that are large
enough are called by one; preparing that call takes a few milliseconds. docs/speed.md has figures.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_maml.execution import cores
from keras_maml.execution.placement import placement


def side_by_side(program: Callable[[Any], Any], elements: Any, task_chunk: int | None) -> list[Any]:
    """Calls a program for slices of a meta-batch, as many at the same time as there are cores.

    Args:
        program: From a nest of tensors ``[tasks, ...]`` to a nest of tensors.
        elements: A nest of tensors with a leading task axis.
        task_chunk: How many tasks may be in memory at once; None for no limit.

    Returns:
        What the program returns for each slice.
    """
    tasks = tf.nest.flatten(elements)[0].shape[0]  # None where meta-batches differ in size
    one = tasks is None or not placement().slices
    slices = 1 if one else count_slices(tasks, task_chunk)
    if slices == 1:
        return [program(elements)]
    if keep_to_cores(elements, slices):
        return on_one_core_each(program, elements, slices)
    size = tasks // slices
    starts = range(0, tasks, size)
    return [
        program(tf.nest.map_structure(lambda t, i=i: t[i : i + size], elements)) for i in starts
    ]


def keep_to_cores(elements: Any, slices: int) -> bool:
    """Returns whether every core has slices of its own to run, large enough to keep it to them."""
    if slices < count_cores():
        return False
    inputs = tf.nest.flatten(elements)
    if not all(t.shape.is_fully_defined() for t in inputs):
        return False
    return (
        sum(t.dtype.size * t.shape.num_elements() for t in inputs) >= slices * placement().min_slice
    )


def on_one_core_each(program: Callable[[Any], Any], elements: Any, slices: int) -> list[Any]:
    """Calls a program for every slice, each on one core.

    Args:
        program: A program.
        elements: Its arguments, one slice after another: a nest of tensors of defined shapes.
        slices: How many slices these are.

    Returns:
        What it returns for each of them.
    """
    structures = []

    @tf.autograph.experimental.do_not_convert
    def call(*values: tf.Tensor) -> tuple[tf.Tensor, ...]:
        results = program(tf.nest.pack_sequence_as(elements, values))
        structures.append(results)
        return tuple(tf.nest.flatten(results))

    inputs = [
        tf.reshape(t, [slices, t.shape[0] // slices, *t.shape[1:]])
        for t in tf.nest.flatten(elements)
    ]
    dataset = tf.data.Dataset.from_tensor_slices(tuple(inputs))
    dataset = dataset.map(call, num_parallel_calls=count_cores(), deterministic=True)
    dataset = dataset.batch(slices, drop_remainder=True)
    specs = tf.nest.flatten(dataset.element_spec)
    types = {"output_types": [s.dtype for s in specs], "output_shapes": [s.shape for s in specs]}
    # The option of the same name is not heeded where one element is taken.
    dataset = tf.raw_ops.MaxIntraOpParallelismDataset(
        input_dataset=tf.data.experimental.to_variant(dataset), max_intra_op_parallelism=1, **types
    )
    results = tf.raw_ops.DatasetToSingleElement(dataset=dataset, **types)
    split = zip(*map(tf.unstack, results), strict=True)
    return [tf.nest.pack_sequence_as(structures[-1], values) for values in split]


def count_slices(tasks: int, task_chunk: int | None) -> int:
    """Returns how many slices of one size a meta-batch is cut into: at least one per core.

    Only as many slices as there are cores are in memory at once, of each slice one task.
    """
    cores = count_cores()
    divisors = [n for n in range(1, tasks + 1) if tasks % n == 0]
    if task_chunk is not None and task_chunk < cores:
        return max(n for n in divisors if n <= task_chunk)
    return next((n for n in divisors if n >= cores), tasks)


def count_cores() -> int:
    """Returns how many operations TensorFlow runs at the same time."""
    return tf.config.threading.get_inter_op_parallelism_threads() or cores.count_cores()
