"""Names and shapes of what signatures take and give, and the checks of requests inside a graph.

Every input has a fixed rank with the tasks as its first axis. Servers that gather requests into
batches join them along that axis: with tasks there, two customers' requests become two tasks. If
the first axis were the examples, one customer's labels would end in the other's adaptation.
"""

import re
from typing import Any

import keras
import tensorflow as tf

from keras_maml.learners.checks import extent

Specs = dict[str, tf.TensorSpec]


def input_name(*path: Any) -> str:
    """Returns the name of an input within a nest, in letters that signatures take."""
    return re.sub(r"\W", "_", "_".join(map(str, path)))


def named(name: str, nest: Any) -> dict[str, Any]:
    """Flattens a nest to names such as ``x_query_left``.

    Raises:
        ValueError: Two leaves would have the same name.

    Example:
        >>> named("x", {"left": 1, "right": (2, 3)})
        {'x_left': 1, 'x_right_0': 2, 'x_right_1': 3}
    """
    leaves = {}
    for path, leaf in keras.tree.flatten_with_path(nest):
        key = input_name(name, *path)
        if key in leaves:
            raise ValueError(f"Two inputs would both be called {key!r}: give them other names.")
        leaves[key] = leaf
    return leaves


def named_outputs(predictions: Any) -> dict[str, tf.Tensor]:
    """Flattens predictions to names; a dictionary keeps its keys."""
    return {
        "_".join(map(str, path if isinstance(predictions, dict) else ("predictions", *path))): leaf
        for path, leaf in keras.tree.flatten_with_path(predictions)
    }


def plain(nest: Any) -> Any:
    """Replaces the containers by which Keras tracks attributes, which models do not expect."""
    if isinstance(nest, dict):
        return {key: plain(value) for key, value in nest.items()}
    return tuple(map(plain, nest)) if isinstance(nest, (tuple, list)) else nest


def with_tasks(specs: Specs, tasks: int | None = None, examples: int | None = None) -> Specs:
    """Puts a task axis before ``[examples, ...]`` and sets both sizes; None leaves one open."""
    return {
        name: tf.TensorSpec([tasks, examples, *spec.shape[1:]], spec.dtype, name)
        for name, spec in specs.items()
    }


def with_open_sizes(model: keras.Model, x_spec: Any, y_spec: Any) -> tuple[Any, Any]:
    """Opens the sizes that the model leaves open: those where its inputs and outputs say None.

    Args:
        model: A built model; one without symbolic inputs says nothing, and nothing changes.
        x_spec: The specifications of inputs ``[examples, ...]``, sizes as they were in training.
        y_spec: Those of targets.

    Returns:
        Both specifications.
    """
    inputs = keras.tree.flatten(getattr(model, "inputs", None) or [])
    outputs = keras.tree.flatten(getattr(model, "outputs", None) or [])
    return _opened(x_spec, inputs), _opened(y_spec, outputs)


def _opened(nest: Any, symbolic: list[keras.KerasTensor]) -> Any:
    leaves = keras.tree.flatten(nest)
    if len(leaves) != len(symbolic):
        return nest
    opened = []
    for spec, tensor in zip(leaves, symbolic, strict=True):
        # Targets of classes have one axis less than the outputs.
        theirs = [*tensor.shape, *spec.shape[len(tensor.shape) :]][: len(spec.shape)]
        shape = [None if t is None else s for s, t in zip(spec.shape, theirs, strict=True)]
        opened.append(tf.TensorSpec(shape, spec.dtype, spec.name))
    return keras.tree.pack_sequence_as(nest, opened)


def unchecked(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Returns the inputs of a signature as tensors of which nothing is known yet.

    What a signature says of shapes is believed while tracing, and checks of them would be computed
    then. But loaders do not compare a request's shapes with the signature's (TensorFlow 2.21).
    """
    hide = tf.raw_ops.PlaceholderWithDefault
    return {name: hide(input=tensor, shape=None) for name, tensor in inputs.items()}


def checked(inputs: dict[str, tf.Tensor], *sets: Specs) -> dict[str, tf.Tensor]:
    """Checks a request where it is served.

    Args:
        inputs: The tensors of a request.
        *sets: Specifications ``[tasks, examples, ...]`` of those that must have as many tasks and
            examples as each other. Between sets, only the tasks must be as many.

    Returns:
        The same tensors, whose use waits for the checks.
    """
    specs = {name: spec for named_specs in sets for name, spec in named_specs.items()}
    seen = unchecked({name: inputs[name] for name in specs})
    sizes = {name: _leading_sizes(name, seen[name], specs[name]) for name in specs}
    firsts = [next(iter(named_specs)) for named_specs in sets]
    checks = [
        _same(name, first, "tasks and examples", sizes[name], sizes[first])
        for first, named_specs in zip(firsts, sets, strict=True)
        for name in named_specs
        if name != first
    ]
    checks += [
        _same(first, firsts[0], "tasks", sizes[first][:1], sizes[firsts[0]][:1])
        for first in firsts[1:]
    ]
    with tf.control_dependencies(checks + list(sizes.values())):
        right = {name: tf.ensure_shape(seen[name], specs[name].shape) for name in specs}
    return inputs | right


def in_range(inputs: dict[str, tf.Tensor], bounds: dict[str, int]) -> dict[str, tf.Tensor]:
    """Checks the numbers of classes and of tokens where a request is served.

    Args:
        inputs: The tensors of a request.
        bounds: What the numbers of an input must be below, by its name; others may be anything.

    Returns:
        The same tensors, whose use waits for the checks.
    """
    bounded = {name: inputs[name] for name in bounds if name in inputs}
    checks = []
    for name, seen in unchecked(bounded).items():
        low, high = extent(seen)
        # As float64, for a bound may be beyond the integers of the input.
        fits = (low >= 0) & (tf.cast(high, tf.float64) < bounds[name])
        message = f"{name} must hold integers in 0..{bounds[name] - 1}, got some from"
        checks.append(tf.debugging.Assert(fits, [message, low, "to", high]))
    with tf.control_dependencies(checks):
        return inputs | {name: tf.identity(tensor) for name, tensor in bounded.items()}


def checked_vectors(
    inputs: dict[str, tf.Tensor], name: str, other: str, size: int | None = None
) -> tf.Tensor:
    """Checks an input that has an entry, or a vector, for each task.

    Args:
        inputs: The tensors of a request.
        name: The name of the input ``[tasks]``, or ``[tasks, size]`` if there is a size.
        other: The name of an input that is known to be right.
        size: The length of the vectors.

    Returns:
        The same tensor, whose use waits for the check.
    """
    seen = unchecked(inputs)[name]
    sizes = [] if size is None else [size]
    expected = "".join(f", {number}" for number in sizes)
    message = f"{name} must have the shape [tasks{expected}], with as many tasks as {other}, got"
    shape = tf.shape(seen)
    fits = _equal(shape, tf.stack([tf.shape(inputs[other])[0], *sizes]))
    with tf.control_dependencies([tf.debugging.Assert(fits, [message, shape], summarize=9)]):
        return tf.ensure_shape(seen, [None, *sizes])


def _same(name: str, other: str, what: str, ours: tf.Tensor, theirs: tf.Tensor) -> tf.Operation:
    message = f"{name} must have as many {what} as {other}, got"
    return tf.debugging.Assert(tf.reduce_all(ours == theirs), [message, ours, "and", theirs])


def _leading_sizes(name: str, tensor: tf.Tensor, spec: tf.TensorSpec) -> tf.Tensor:
    """Returns the numbers of tasks and examples, of a tensor that is as the specification says."""
    features = [-1 if size is None else size for size in spec.shape[2:]]
    shape = tf.shape(tensor)
    fits = tf.reduce_all(shape > 0) & _equal(shape, tf.constant([-1, -1, *features], tf.int32))
    inner = "".join(f", {'any' if size == -1 else size}" for size in features)
    message = f"{name} must have the shape [tasks, examples{inner}], none of them 0, got"
    with tf.control_dependencies([tf.debugging.Assert(fits, [message, shape], summarize=9)]):
        return tf.identity(shape[:2])


def _equal(shape: tf.Tensor, wanted: tf.Tensor) -> tf.Tensor:
    """Compares shapes, which may differ in length; -1 stands for any size."""
    return tf.cond(
        tf.size(shape) == tf.size(wanted),
        lambda: tf.reduce_all((shape == wanted) | (wanted == -1)),
        lambda: tf.constant(False),
    )
