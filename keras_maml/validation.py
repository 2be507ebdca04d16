"""Checks of what users pass in: each says what was expected, what came, and what to do."""

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

EPISODE = "((x_support, y_support), (x_query, y_query))"


def check_count(name: str, value: Any, minimum: int = 0) -> None:
    """Raises ValueError unless ``value`` is an integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}.")


def check_number(
    name: str, value: Any, allowed: Callable[[float], bool], expected: str = "a finite number"
) -> None:
    """Raises ValueError unless ``value`` is a finite number that is ``allowed``."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and allowed(value)):
        raise ValueError(f"{name} must be {expected}, got {value!r}.")


def check_positive(name: str, value: Any) -> None:
    """Raises ValueError unless ``value`` is a finite number above 0."""
    check_number(name, value, lambda number: number > 0, "a finite number above 0")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raises ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {tuple(choices)}, got {value!r}.")


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


def check_values(episode: Any, classes: int | None) -> None:
    """Checks the numbers of one meta-batch.

    Args:
        episode: ``((x_support, y_support), (x_query, y_query))`` of tensors.
        classes: The number of outputs of a classifier with integer labels; None otherwise.

    Raises:
        ValueError: A number is not finite, or a label is out of range.
    """
    for half, name in zip(episode, ("support", "query"), strict=True):
        for part, letter in zip(half, ("x", "y", "sample weight"), strict=False):
            for array in keras.tree.flatten(part):
                values = np.asarray(array)
                finite = np.isfinite(values) if values.dtype.kind == "f" else np.True_
                if not finite.all():
                    raise ValueError(
                        f"{letter} of the {name} set holds {np.sum(~finite)} values that are not "
                        f"finite (NaN or infinite), the first in task {_first_task(~finite)} of "
                        "the first meta-batch. Clean the data before training."
                    )
        if classes is not None and len(half) > 1:
            labels = np.asarray(half[1])
            wrong = (labels < 0) | (labels >= classes)
            if wrong.any():
                raise ValueError(
                    f"Labels of the {name} set must be in 0..{classes - 1}, since the model has "
                    f"{classes} outputs, got {labels.min()}..{labels.max()} (first in task "
                    f"{_first_task(wrong)}). Label the classes of each episode from 0, and give "
                    "the model as many outputs as there are ways."
                )


def sparse_classes(loss: Any, predictions: Any) -> int | None:
    """Returns the number of classes of a classifier with integer labels; None for other models."""
    if getattr(loss, "ignore_class", None) is not None:
        return None  # a label of the user's own
    name = loss if isinstance(loss, str) else getattr(loss, "name", getattr(loss, "__name__", ""))
    if "sparse_categorical" in str(name) and not keras.tree.is_nested(predictions):
        return int(predictions.shape[-1])
    return None


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
