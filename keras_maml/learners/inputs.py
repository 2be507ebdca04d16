"""What `fit`, `evaluate` and `predict` take, as one dataset of meta-batches."""

import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_maml import validation
from keras_maml.execution.functional import as_tensors, examples
from keras_maml.learners.checks import (
    asserted,
    check_dense,
    check_episode_spec,
    input_errors,
    names_of_loss,
)

# What a source that cannot be read twice leaves in the graph of a dataset.
_STREAMS = ("GeneratorDataset", "PyFunc", "EagerPyFunc")


def meta_batches(
    x: Any,
    y: Any = None,
    *,
    caller: str,
    batch_size: int | None = None,
    shuffle: bool = False,
    class_weight: dict[int, float] | None = None,
    sample_weight: Any = None,
    loss: Any = None,
    needs_query: bool = True,
) -> tf.data.Dataset:
    """Turns episodes of any kind into a dataset of meta-batches.

    Args:
        x: A dataset or `keras.utils.PyDataset` of meta-batches, a generator of them, or arrays: a
            meta-batch ``((x_support, y_support), (x_query, y_query))``.
        y: Must be None: the targets are in the episodes.
        caller: Who asks, for messages.
        batch_size: Tasks per meta-batch of arrays; by default all. Only for arrays.
        shuffle: Whether to shuffle the tasks of arrays that are cut into meta-batches.
        class_weight: Weights of the examples of each class of integer or one-hot targets, in
            support and query sets, as in `keras.Model.fit`; of the positions of each class where
            there are targets ``[tasks, examples, ...]`` by position.
        sample_weight: Weights ``(support, query)`` of the examples of arrays,
            ``[tasks, examples]``; they may as well be a third entry of each pair.
        loss: What `compile` was given, which says what targets are.
        needs_query: Whether support sets alone, ``((x_support, y_support),)``, stay so, instead of
            being their own query sets; those of arrays have ``sample_weight=(support,)``.

    Returns:
        The meta-batches.

    Raises:
        TypeError: ``x`` is of another kind.
        ValueError: An argument is given that has no meaning for this kind.
    """
    if y is not None:
        raise ValueError(
            f"{caller} takes episodes alone, {validation.EPISODE}: the targets are in them."
        )
    complete = _as_it_is if needs_query else _with_query
    if isinstance(x, (tuple, list)):
        episode = _episode(x)
        if sample_weight is not None:
            episode = _weighted(episode, sample_weight, caller)
        dataset = _of_arrays(complete(episode), batch_size, shuffle)
    else:
        for name, value in (("batch_size", batch_size), ("sample_weight", sample_weight)):
            if value is not None:
                raise ValueError(
                    f"{caller} takes {name} with arrays only, got {type(x).__name__}. A dataset is "
                    "batched with dataset.batch, and sample weights are a third entry of a "
                    "support or query set: (x, y, sample_weight)."
                )
        dataset = complete(x) if isinstance(x, tf.data.Dataset) else _of_python(x, caller, complete)
    if class_weight is None:
        return dataset
    weights = _table(class_weight)
    return dataset.map(
        lambda support, query: (
            _with_class_weights(support, weights, loss),
            _with_class_weights(query, weights, loss),
        )
    )


def _episode(x: Any) -> Any:
    """Converts ``((x, y), (x, y))`` of arrays, in lists or tuples, to tensors in tuples."""
    return tuple(
        tuple(map(arrays, half)) if isinstance(half, (tuple, list)) else arrays(half) for half in x
    )


def _as_it_is(x: Any) -> Any:
    return x


def _with_query(x: Any) -> Any:
    """Makes support sets alone, of a meta-batch or a dataset, their own query sets."""
    if isinstance(x, tf.data.Dataset):
        alone = isinstance(x.element_spec, tuple) and len(x.element_spec) == 1
        return x.map(lambda support: (support, support)) if alone else x
    return x * 2 if len(x) == 1 else x


def support_set(
    x: Any,
    y: Any,
    sample_weight: Any = None,
    class_weight: dict[int, float] | None = None,
    loss: Any = None,
) -> Any:
    """Returns one support set as a meta-batch of one task, with the weights of its examples.

    Args:
        x: Inputs, ``[examples, ...]`` or a nest of such.
        y: Targets, likewise.
        sample_weight: Weights of the examples, ``[examples]``.
        class_weight: As in `meta_batches`.
        loss: As in `meta_batches`.

    Returns:
        ``(x, y)``, or ``(x, y, weights)``, of tensors ``[1, examples, ...]``.

    Raises:
        ValueError: Arrays are malformed, or classes have weights and targets no classes.
    """
    given = (x, y) if sample_weight is None else (x, y, sample_weight)
    support = keras.tree.map_structure(lambda array: array[None], tuple(map(arrays, given)))
    if class_weight is None:
        return support
    with input_errors():
        return _with_class_weights(support, _table(class_weight), loss)


def are_labels(targets: Any, axes: int) -> bool:
    """Whether targets are numbers of classes, and not one-hot.

    Args:
        targets: ``[..., examples]`` or ``[..., examples, 1]`` if they are.
        axes: How many axes there are up to that of the examples.
    """
    if not tf.is_tensor(targets) or not targets.dtype.is_integer:
        return False
    return targets.shape.rank == axes or (targets.shape.rank == axes + 1 and targets.shape[-1] == 1)


def ways_of(support: Any) -> int | None:
    """Returns how many classes the tasks of a meta-batch have; None where targets do not say.

    Args:
        support: The support sets ``(x, y)``, with integer or one-hot targets.
    """
    if not isinstance(support, (tuple, list)) or len(support) < 2 or not tf.is_tensor(support[1]):
        return None
    targets = support[1]
    if are_labels(targets, axes=2):
        ways = int(tf.reduce_max(targets)) + 1
        return ways if ways > 1 else None
    return targets.shape[-1] if targets.shape.rank == 3 and targets.shape[-1] > 1 else None


def arrays(nest: Any) -> Any:
    """Converts a nest of arrays as users have them to tensors: a list of numbers is one, too.

    Raises:
        ValueError: Something is a ragged or sparse tensor, or a list of numbers of uneven lengths.
    """
    check_dense(nest)
    if isinstance(nest, list) and _is_array(nest):
        try:
            nest = np.array(nest)
        except ValueError as error:
            raise ValueError(f"A list of numbers must be rectangular: {error}") from error
        if nest.dtype == np.float64:
            nest = nest.astype(keras.config.floatx())
    if isinstance(nest, dict):
        return {key: arrays(value) for key, value in nest.items()}
    if isinstance(nest, (tuple, list)):
        return tuple(map(arrays, nest))
    return None if nest is None else as_tensors(nest)


def _is_array(nest: list) -> bool:
    scalars = (bool, int, float, str, bytes, np.generic)
    return bool(nest) and all(
        isinstance(entry, scalars) or (isinstance(entry, list) and _is_array(entry))
        for entry in nest
    )


def is_stream(dataset: tf.data.Dataset) -> bool:
    """Returns whether reading the first element may change what is read later."""
    return any(
        node.op in _STREAMS
        for graph in _graphs(dataset)
        for nodes in (graph.node, *(function.node_def for function in graph.library.function))
        for node in nodes
    )


def _graphs(dataset: tf.data.Dataset) -> Iterator[Any]:
    """Yields the graphs of the functions that a dataset and those before it are made with.

    There is no public way to them but to write the whole dataset, arrays included, as a graph.
    """
    for function in dataset._functions():
        yield function.function.graph.as_graph_def()
    for before in dataset._inputs():
        yield from _graphs(before)


def of_spec(spec: Any, caller: str) -> Any:
    """Makes a meta-batch of one task of zeros that fits a specification.

    Args:
        spec: A nest of `tf.TensorSpec`; tasks and examples may be unknown.
        caller: Who asks, for messages.

    Raises:
        ValueError: Sizes of examples are unknown.
    """
    shapes = [array.shape for array in tf.nest.flatten(spec)]
    if any(shape.rank is None or None in shape[2:] for shape in shapes):
        raise ValueError(
            f"{caller} got a dataset that can be read once only, and does not say how large "
            f"examples are: {spec}. Give tf.data.Dataset.from_generator an output_signature with "
            "all sizes after tasks and examples."
        )
    return tf.nest.map_structure(
        lambda s: tf.zeros([1, s.shape[1] or 2, *s.shape[2:]], s.dtype), spec
    )


def with_first(dataset: tf.data.Dataset) -> tuple[tf.data.Dataset, Any]:
    """Reads the first meta-batch of a dataset that may be read once only.

    Args:
        dataset: The meta-batches.

    Returns:
        The same meta-batches, the first included, by way of Python; and the first, None if there
        are none.
    """
    begun = iter(dataset)
    first = next(begun, None)

    def passes() -> Iterator[Any]:
        nonlocal begun
        rest, begun = begun, None
        return iter(dataset) if rest is None else itertools.chain([first], rest)

    return tf.data.Dataset.from_generator(passes, output_signature=dataset.element_spec), first


def _of_arrays(episode: Any, batch_size: int | None, shuffle: bool) -> tf.data.Dataset:
    if batch_size is None:
        return tf.data.Dataset.from_tensors(episode)
    validation.check_count("batch_size", batch_size, minimum=1)
    check_episode_spec(keras.tree.map_structure(tf.TensorSpec.from_tensor, episode))
    dataset = tf.data.Dataset.from_tensor_slices(episode)
    if shuffle:
        dataset = dataset.shuffle(int(dataset.cardinality()))
    tasks = int(dataset.cardinality())
    return dataset.batch(batch_size, drop_remainder=tasks % batch_size == 0)


def split_tasks(x: Any, fraction: float, sample_weight: Any = None) -> tuple[Any, Any]:
    """Splits off the last tasks of arrays for validation, as `keras.Model.fit` does.

    Args:
        x: A meta-batch of arrays.
        fraction: Of the tasks, above 0 and below 1.
        sample_weight: As in `meta_batches`; each task keeps its own.

    Returns:
        The meta-batches to train and to validate with, weights included.

    Raises:
        ValueError: ``x`` is no meta-batch of arrays, or a part would have no task.
    """
    if not isinstance(x, (tuple, list)):
        raise ValueError(
            f"validation_split needs arrays, got {type(x).__name__}: pass validation_data."
        )
    episode = _episode(x)
    if sample_weight is not None:
        episode = _weighted(episode, sample_weight, "fit")
    tasks = len(keras.tree.flatten(episode)[0])
    first = int(tasks * (1 - fraction))
    if not 0 < fraction < 1 or not 0 < first < tasks:
        raise ValueError(
            f"validation_split must leave tasks on both sides, got {fraction!r} of {tasks} tasks."
        )
    return tuple(
        keras.tree.map_structure(lambda array, part=part: array[part], episode)
        for part in (slice(first), slice(first, None))
    )


def _of_python(x: Any, caller: str, complete: Callable[[Any], Any]) -> tf.data.Dataset:
    """Makes a dataset of a `keras.utils.PyDataset` or a generator."""

    def read(batch: Any) -> Any:
        return complete(_episode(batch))

    if isinstance(x, keras.utils.PyDataset):
        first = read(x[0])
        passes: Callable[[], Iterator] = lambda: map(read, _one_pass(x))  # noqa: E731
    elif inspect.isgenerator(x):
        first = next(x, None)
        if first is None:
            raise ValueError(f"{caller} got a generator without a single episode.")
        stream = itertools.chain([first], x)
        first = read(first)
        passes = lambda: map(read, stream)  # noqa: E731
    else:
        raise TypeError(
            f"{caller} takes a tf.data.Dataset, a keras.utils.PyDataset or a generator of "
            f"episodes, {validation.EPISODE}, or one such meta-batch of arrays, got "
            f"{type(x).__name__}."
        )
    spec = keras.tree.map_structure(tf.TensorSpec.from_tensor, first)
    check_episode_spec(spec)
    open_spec = keras.tree.map_structure(
        lambda s: tf.TensorSpec([None, None, *s.shape[2:]], s.dtype), spec
    )
    return tf.data.Dataset.from_generator(passes, output_signature=open_spec)


def _one_pass(dataset: keras.utils.PyDataset) -> Iterator[Any]:
    dataset.on_epoch_begin()
    numbers = itertools.count() if dataset.num_batches is None else range(dataset.num_batches)
    for number in numbers:
        yield dataset[number]
    dataset.on_epoch_end()


def _weighted(episode: Any, sample_weight: Any, caller: str) -> Any:
    fits = isinstance(sample_weight, (tuple, list)) and len(sample_weight) == len(episode)
    if not fits or len(episode) > 2 or any(len(half) != 2 for half in episode):
        raise ValueError(
            f"{caller} takes sample_weight=(support, query), weights [tasks, examples] for "
            "episodes that have none yet."
        )
    return tuple((*half, arrays(w)) for half, w in zip(episode, sample_weight, strict=True))


def _table(class_weight: dict[int, float]) -> tf.Tensor:
    classes = [int(c) for c in class_weight]
    if not classes or min(classes) < 0:
        raise ValueError(f"class_weight must map classes from 0 to weights, got {class_weight!r}.")
    table = np.ones(max(classes) + 1, keras.config.floatx())
    table[classes] = list(class_weight.values())
    return tf.constant(table)


def _with_class_weights(half: Any, table: tf.Tensor, loss: Any) -> Any:
    x, y, weight = examples(half)
    if y is None or keras.tree.is_nested(y):
        raise ValueError("class_weight needs one array of targets per support and query set.")
    classes = _classes(y, names_of_loss(loss))
    known = tf.clip_by_value(classes, 0, len(table) - 1)
    weights = tf.where(classes == known, tf.gather(table, known), tf.ones([], table.dtype))
    if weight is None:
        return x, y, weights
    of_classes, own = _of_one_rank(weights, tf.cast(weight, table.dtype))
    return x, y, of_classes * own


def _classes(y: tf.Tensor, loss: str) -> tf.Tensor:
    """Returns the class of every example or position of targets ``[tasks, examples, ...]``.

    Shapes alone do not tell sequences of labels from one-hot vectors: the loss does, or the values.
    """
    if y.shape.rank > 2 and y.shape[-1] == 1:
        return tf.cast(y[..., 0], tf.int32)
    if y.shape.rank == 2 or "sparse_categorical" in loss:
        return tf.cast(y, tf.int32)
    if "categorical" not in loss:  # which may be of soft labels, too
        values = tf.cast(y, "float32")
        bits = tf.reduce_all((values == 0) | (values == 1))
        one_hot = bits & tf.reduce_all(tf.reduce_sum(values, -1) == 1)
        message = (
            f"class_weight found targets of shape {tuple(y.shape)} that are not one-hot along the "
            "last axis, and a loss that does not say whether they are labels by position. If they "
            "are, give them a last axis of size 1, such as with numpy.expand_dims(y, -1); "
            "otherwise give the weights as sample_weight."
        )
        y = asserted([(one_hot, [message])], y)
    return tf.argmax(y, -1, tf.int32)


def _of_one_rank(*weights: tf.Tensor) -> list[tf.Tensor]:
    """Gives weights of examples further axes of size 1 beside weights of positions."""
    rank = max(weight.shape.rank for weight in weights)
    return [weight[(..., *[None] * (rank - weight.shape.rank))] for weight in weights]
