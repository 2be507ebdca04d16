"""Checks of episodes: each says what was expected, what came, and what to do."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_maml.execution.faults import DisagreementError
from keras_maml.private_keras import (
    averaged_by,
    flatten_layers,
    inputs_of,
    is_called_on,
)
from keras_maml.validation import EPISODE, MARK, MARK_OF_ALL
from keras_maml.words import counted

# The first is what TensorFlow has outside of all scopes; there is no public way to ask for it.
_OF_ONE_DEVICE = ("_DefaultDistributionStrategy", "OneDeviceStrategy")

Vocabulary = dict[tuple | None, int]
"""What `vocabulary_of` returns."""


def check_episode_spec(spec: Any) -> None:
    """Checks the structure, ranks and shapes of an episodes dataset.

    Args:
        spec: The ``element_spec`` of the dataset: a nest of `tf.TensorSpec`.

    Raises:
        ValueError: It is not ``((x_support, y_support), (x_query, y_query))`` with a leading
            task axis and an example axis on every array, or support and query do not fit.
    """
    pairs = isinstance(spec, tuple) and len(spec) == 2
    if not (pairs and all(isinstance(half, (tuple, list)) and half for half in spec)):
        raise ValueError(
            f"An element of an episodes dataset must be {EPISODE}, got "
            f"{_describe(spec)}. Map your dataset to that nesting."
        )
    support, query = spec
    if not 2 <= len(support) <= 3:
        raise ValueError(
            "The support set must be (x_support, y_support), with sample weights as an optional "
            f"third, got {len(support)} entries: {_describe(support)}."
        )
    if len(query) > 3:
        raise ValueError(
            "The query set must be (x_query, y_query), with sample weights as an optional "
            f"third, got {len(query)} entries: {_describe(query)}."
        )
    for array in keras.tree.flatten(spec):
        check_dense(array)
        if array.shape.rank is None or array.shape.rank < 2:
            raise ValueError(
                "Every array of an episode needs a task axis and an example axis, "
                f"[tasks, examples, ...], got shape {_shape(array)} in {_describe(spec)}. Batch "
                "the episodes into meta-batches, e.g. with dataset.batch(meta_batch_size)."
            )
    tasks = {array.shape[0] for array in keras.tree.flatten(spec)} - {None}
    if len(tasks) > 1:
        raise ValueError(
            "Every array of an episode must have the same number of tasks on its first axis, "
            f"got {sorted(tasks)} in {_describe(spec)}."
        )
    if 0 in tasks:
        raise ValueError(f"A meta-batch needs at least one task, got {_describe(spec)}.")
    for name, half in (("support", support), ("query", query)):
        counts = {array.shape[1] for array in keras.tree.flatten(half)} - {None}
        if 0 in counts:
            raise ValueError(
                f"The {name} set of a task needs at least one example, got {_describe(half)}."
            )
        if len(counts) > 1:
            raise ValueError(
                f"The inputs and targets of the {name} set must have the same number of examples "
                f"on their second axis, got {sorted(counts)} in {_describe(half)}."
            )
    for name, ours, theirs in zip(("x", "y"), support, query, strict=False):
        _check_same_features(name, ours, theirs)


def check_dense(array: Any) -> None:
    """Refuses a ragged or sparse tensor, or its specification, and says what to make of it."""
    kinds = {
        "Ragged": (tf.RaggedTensor, tf.RaggedTensorSpec),
        "Sparse": (tf.SparseTensor, tf.SparseTensorSpec),
    }
    kind = next((name for name, types in kinds.items() if isinstance(array, types)), None)
    if kind is None:
        return
    dense = "tensor.to_tensor()" if kind == "Ragged" else "tf.sparse.to_dense(tensor)"
    raise ValueError(
        f"{kind} tensors cannot be adapted to, got shape {array.shape}. Make the sets of a "
        f"meta-batch as large as each other ({dense} pads them), and give what is padding a "
        "sample weight of 0; meta-batches may differ in size."
    )


def check_one_replica(models: Sequence[keras.Model], caller: str) -> None:
    """Raises where a strategy would run a step as one of replicas, each with a share of the tasks.

    Args:
        models: The learner and the model that it wraps.
        caller: Who asks.

    Raises:
        NotImplementedError: There are several replicas, whose means over tasks would be wrong; or
            one of a strategy for several, which cannot run an optimizer in a program.
    """
    for strategy in (model.distribute_strategy for model in models):
        replicas = strategy.num_replicas_in_sync
        if replicas > 1 or type(strategy).__name__ not in _OF_ONE_DEVICE:
            raise NotImplementedError(
                f"{caller} runs in one process on one device, and got a {type(strategy).__name__} "
                f"of {counted(replicas, 'replica')}. Build the model and the learner and "
                f"call {caller} outside of strategy.scope(). On a processor, tasks use all cores "
                "without a strategy. To share the tasks of every meta-batch between machines or "
                "devices, start a process on each, and call "
                "learner.compile(..., workers=keras_maml.Workers()) in them."
            )


def check_query_targets(caller: str, spec: Any) -> None:
    """Raises ValueError unless the query sets of an episodes dataset have targets."""
    if len(spec[1]) < 2:
        raise ValueError(
            f"{caller} needs the targets of the query set, {EPISODE}, got {_describe(spec)}. Only "
            "predict does without."
        )


def _check_same_features(name: str, support: Any, query: Any) -> None:
    try:
        keras.tree.assert_same_structure(support, query)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{name}_support and {name}_query must be nested alike, got {_describe(support)} and "
            f"{_describe(query)}."
        ) from error
    for ours, theirs in zip(keras.tree.flatten(support), keras.tree.flatten(query), strict=True):
        if not ours.shape[2:].is_compatible_with(theirs.shape[2:]) or ours.dtype != theirs.dtype:
            raise ValueError(
                f"{name}_support and {name}_query must have examples of the same shape and dtype, "
                f"got {_describe(ours)} and {_describe(theirs)}, [tasks, examples, ...]."
            )


def check_trainable(learner: keras.Model, caller: str) -> None:
    """Raises ValueError where a built learner has no variable that training would change."""
    if not learner.trainable_variables:
        raise ValueError(
            f"{caller} needs weights to train, and {learner.name} has none that are trainable. Set "
            "trainable=True for the model or for some of its layers; evaluate, predict and adapt "
            "take it as it is."
        )


def check_averages(optimizer: keras.optimizers.Optimizer, learner: keras.Model) -> None:
    """Raises ValueError where an optimizer averages other variables than it trains.

    Keras pairs its averages with the variables by their places.

    Args:
        optimizer: A built optimizer.
        learner: Whose variables are trained; they are not asked for without averages.
    """
    averaged = averaged_by(optimizer)
    if averaged is None:
        return
    trained = learner.trainable_variables
    if [*map(id, averaged)] != [*map(id, trained)]:
        raise ValueError(
            f"The optimizer keeps moving averages of {counted(len(averaged), 'variable')} "
            f"(use_ema=True), and others are trained now, {len(trained)}: layers were frozen, or "
            "are not any more, or a part was replaced. Compile the learner with a new optimizer."
        )


def check_inputs(model: keras.Model, episode: Any, caller: str) -> None:
    """Raises ValueError unless a model with one known input takes the examples of an episode.

    Args:
        model: The model.
        episode: ``((x_support, y_support), (x_query, ...))`` of tensors.
        caller: Who asks.
    """
    inputs = getattr(model, "inputs", None) if model.built else None
    if not inputs or len(inputs) != 1:
        return
    expected = inputs[0].shape[1:]
    for name, half in zip(("support", "query"), episode, strict=True):
        x = half[0]
        if keras.tree.is_nested(x) or expected.count(None) == len(expected):
            continue
        found = tuple(x.shape[2:])
        # Convolutions may take images of other sizes than the model was made for.
        if len(found) == len(expected) and expected[-1] in (None, found[-1]):
            continue
        if caller == "adapt" and len(found) == len(expected) + 1:
            raise ValueError(
                f"adapt takes the support set of one task, x [examples, {_sizes(expected)}], got "
                f"shape {tuple(x.shape[1:])}: a batch of tasks? Adapt to one after another, or "
                "call predict with episodes."
            )
        raise ValueError(
            f"The model takes examples of shape {tuple(expected)}, but x of the {name} set has "
            f"examples of shape {found}. Reshape the data, or give the model another Input."
        )


def check_targets(episode: Any, classes: int | None, predictions: Any) -> None:
    """Raises ValueError if targets are texts, or one-hot for a loss that takes integers.

    Args:
        episode: ``((x_support, y_support), (x_query, y_query))`` of tensors.
        classes: The number of outputs of a classifier with integer labels; None otherwise.
        predictions: Of one task, ``[queries, ...]``.
    """
    for name, half in zip(("support", "query"), episode, strict=True):
        for y in keras.tree.flatten(half[1]) if len(half) > 1 else ():
            if y.dtype == tf.string:
                raise ValueError(
                    f"Labels of the {name} set are texts: number the classes of each episode from "
                    "0, such as with numpy.unique(labels, return_inverse=True)."
                )
        if classes is None or len(half) < 2:
            continue
        y = half[1]
        if classes > 1 and y.shape[2:] == predictions.shape[1:]:
            raise ValueError(
                f"Labels of the {name} set must be integers [tasks, examples] for a sparse loss, "
                f"got shape {tuple(y.shape)}. For one-hot targets compile with "
                "categorical_crossentropy, or pass numpy.argmax(y, -1)."
            )


def check_metrics(metrics: keras.metrics.Metric | None) -> None:
    """Raises ValueError if one of the compiled and built metrics would hide the loss."""
    if metrics is not None and "loss" in {metric.name for metric in metrics.metrics}:
        raise ValueError(
            "A metric called 'loss' would take the place of the loss in all results: give it "
            "another name."
        )


def check_values(episode: Any, classes: int | None, vocabulary: Vocabulary) -> None:
    """Checks the numbers of one meta-batch.

    Args:
        episode: ``((x_support, y_support), (x_query, y_query))`` of tensors.
        classes: The number of outputs of a classifier with integer labels; None otherwise.
        vocabulary: How many integers the model embeds, see `vocabulary_of`.

    Raises:
        ValueError: A number is not finite, or a label or an integer is out of range.
    """
    for half, name in zip(episode, ("support", "query"), strict=True):
        for part, letter in zip(half, ("x", "y", "sample weight"), strict=False):
            for array in keras.tree.flatten(part):
                values = np.asarray(array)
                if values.dtype.kind != "f" or np.isfinite(_sum(values)):
                    continue
                finite = np.isfinite(values)
                if not finite.all():
                    raise ValueError(
                        f"{letter} of the {name} set holds {np.sum(~finite)} values that are not "
                        f"finite (NaN or infinite), the first in task {_first_task(~finite)} of "
                        "the first meta-batch. Clean the data before training."
                    )
        for part, bound, expected, remedy in _bounded(half, name, classes, vocabulary):
            values = np.asarray(part)
            wrong = (values < 0) | (values >= bound)
            if wrong.any():
                raise ValueError(
                    f"{expected}, got {values.min()}..{values.max()} (first in task "
                    f"{_first_task(wrong)}). {remedy}"
                )


def _sum(values: np.ndarray) -> np.floating:
    """Returns the sum, which is finite only if all values are; it takes no memory of their size."""
    with np.errstate(over="ignore", invalid="ignore"):
        return values.sum(dtype=np.float64)


def _bounded(half: Any, name: str, classes: int | None, vocabulary: Vocabulary) -> list[tuple]:
    """Returns what of a set has a range: the tensor, its bound, what is expected, a remedy."""
    found = []
    if classes is not None and len(half) > 1:
        found.append(
            (
                half[1],
                classes,
                f"Labels of the {name} set must be in 0..{classes - 1}, since the model has "
                f"{classes} outputs",
                "Label the classes of each episode from 0, and give the model as many outputs as "
                "there are ways.",
            )
        )
    for path, array, size in embedded(half[0], vocabulary):
        if size is not None:
            which = "".join(f"[{key!r}]" for key in path)
            found.append(
                (
                    array,
                    size,
                    f"x{which} of the {name} set must hold integers in 0..{size - 1}, which the "
                    "model embeds",
                    "Give the Embedding a larger input_dim, or map unknown tokens to one of them.",
                )
            )
    return found


def checked(
    dataset: tf.data.Dataset, classes: int | None, vocabulary: Vocabulary
) -> tf.data.Dataset:
    """Checks every meta-batch of a dataset as it comes, as far as that costs next to nothing.

    Args:
        dataset: The meta-batches.
        classes: See `check_values`.
        vocabulary: See `check_values`.

    Returns:
        The same meta-batches. Reading one that is wrong fails with a message that
        `input_errors` turns into a ValueError.
    """

    def check(number: tf.Tensor, episode: Any) -> Any:
        which = ["meta-batch ", tf.strings.as_string(number)]
        failures = []
        for half, name in zip(episode, ("support", "query"), strict=True):
            needs = f"The {name} set of a task needs at least one example, got none in "
            for array in keras.tree.flatten(half):
                if array.shape[1] is None:
                    failures.append((tf.shape(array)[1] > 0, [needs, *which, "."]))
            for part, bound, expected, remedy in _bounded(half, name, classes, vocabulary):
                low, high = extent(part)
                # As float64, for a bound may be beyond the integers of x or y.
                inside = (low >= 0) & (tf.cast(high, tf.float64) < bound)
                values = [tf.strings.as_string(low), "..", tf.strings.as_string(high)]
                message = [expected, ", got ", *values, " in ", *which, f". {remedy}"]
                failures.append((inside, message))
        return asserted(failures, episode)

    spec = dataset.element_spec
    halves = [_bounded(half, "", classes, vocabulary) for half in spec]
    sizes_open = any(array.shape[1] is None for array in keras.tree.flatten(spec))
    if not any(halves) and not sizes_open:
        return dataset
    return dataset.enumerate().map(check)


def extent(numbers: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the least and the greatest of integers, or of truth values as such."""
    if numbers.dtype == tf.bool:
        numbers = tf.cast(numbers, tf.int32)
    return tf.reduce_min(numbers), tf.reduce_max(numbers)


def asserted(conditions: Sequence[tuple[tf.Tensor, list]], nest: Any) -> Any:
    """Returns a nest of tensors that can be read only if conditions hold.

    Args:
        conditions: Scalars, each with the parts of the message that `input_errors` raises.
        nest: The tensors.
    """
    checks = [
        tf.debugging.Assert(fine, [tf.strings.join([MARK, *message])])
        for fine, message in conditions
    ]
    with tf.control_dependencies(checks):
        return tf.nest.map_structure(tf.identity, nest)


@contextlib.contextmanager
def input_errors() -> Iterator[None]:
    """Raises what `asserted` found in a meta-batch as a ValueError."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        found = re.search(rf"({MARK}|{MARK_OF_ALL})(.*?)(?:\]|'?$)", str(error.message), re.DOTALL)
        if found is None:
            raise
        kind = DisagreementError if found[1] == MARK_OF_ALL else ValueError
        raise kind(found[2].replace("\\n", " ")) from None


def vocabulary_of(model: keras.Model) -> Vocabulary:
    """Returns how many integers the layers embed that take an input, by the path of that input.

    Inputs of a list have two paths, as Keras takes them by their places or by their names; the only
    input of a model has the path None, as it may be wrapped in anything. What no layer embeds is
    left out, and so is all of a model that is not made of layers it knows.
    """
    inputs = inputs_of(model)
    if inputs is None:
        return {}
    sizes: dict[tuple | None, int | None] = {}
    for path, tensor in keras.tree.flatten_with_path(inputs):
        size = min(embedded_sizes(model, tensor), default=None)
        sizes[path] = size
        if isinstance(inputs, (list, tuple)):
            sizes[(tensor.name,)] = size
    if len(model.inputs) == 1:
        sizes = {None: size}
    return {path: size for path, size in sizes.items() if size is not None}


def embedded(x: Any, vocabulary: Vocabulary) -> list[tuple[tuple, Any, int | None]]:
    """Returns path, array and vocabulary of every input; None where it is not embedded."""
    inputs = keras.tree.flatten_with_path(x)
    return [(path, array, vocabulary.get(path, vocabulary.get(None))) for path, array in inputs]


def embedded_sizes(model: keras.Model, tensor: keras.KerasTensor) -> list[int]:
    """Returns how many integers the layers embed that take an input of a model."""
    return [
        layer.input_dim
        for layer in flatten_layers(model)
        if isinstance(layer, keras.layers.Embedding) and is_called_on(layer, tensor)
    ]


def sparse_classes(loss: Any, predictions: Any) -> int | None:
    """Returns the number of classes of a classifier with integer labels; None for other models."""
    if getattr(loss, "ignore_class", None) is not None:
        return None  # a label of the user's own
    if "sparse_categorical" in names_of_loss(loss) and not keras.tree.is_nested(predictions):
        return int(predictions.shape[-1])
    return None


def names_of_loss(loss: Any) -> str:
    """Returns the names of a loss and of its function, whatever a user may have called it.

    Args:
        loss: What `compile` was given; there are none of several losses.
    """
    losses = keras.tree.flatten(loss)
    if len(losses) != 1:
        return ""
    [loss] = losses
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    function = getattr(loss, "fn", None)
    named = (getattr(loss, "name", ""), *(getattr(f, "__name__", "") for f in (loss, function)))
    return " ".join(map(str, named))


def _sizes(shape: Any) -> str:
    return ", ".join(map(str, shape))


def _first_task(mask: np.ndarray) -> int:
    return int(np.argwhere(mask)[0][0])


def _shape(array: Any) -> str:
    return str(array.shape) if array.shape.rank is not None else "unknown"


def _describe(nest: Any) -> str:
    """Writes a nest of specs as e.g. ((float32(4, 5, 1), ...), ...)."""
    if isinstance(nest, dict):
        return "{" + ", ".join(f"{key!r}: {_describe(nest[key])}" for key in nest) + "}"
    if isinstance(nest, (tuple, list)):
        return "(" + ", ".join(_describe(part) for part in nest) + ")"
    if isinstance(nest, tf.TensorSpec):
        return f"{nest.dtype.name}{_shape(nest)}"
    return type(nest).__name__
