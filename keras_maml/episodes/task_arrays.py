"""Puts the arrays of tasks together, and says which task does not fit."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_maml.episodes.plain_arrays import plain_array


def text_classes(targets: Sequence[np.ndarray]) -> tuple[str, ...]:
    """The classes of tasks whose labels are texts, sorted; none if they are numbers.

    Args:
        targets: The targets of each task, numbers or str.

    Raises:
        ValueError: If targets are texts in some tasks and numbers in others.

    Example:
        >>> text_classes([np.array(["no", "yes"]), np.array(["maybe"])])
        ('maybe', 'no', 'yes')
    """
    if not _are_texts(targets, "y"):
        return ()
    return tuple(np.unique(np.concatenate([y.ravel() for y in targets])).tolist())


def joined(arrays: Mapping[Any, Any], what: str) -> Any:
    """Concatenates the arrays of tasks, or each of the arrays that their dictionaries hold.

    Args:
        arrays: By task, an array ``[n, ...]`` or a dictionary of arrays.
        what: What they are, for errors.

    Returns:
        An array ``[N, ...]``, or a dictionary of arrays.

    Raises:
        ValueError: If the examples of a task have another shape than those of the first, are texts
            in some tasks and numbers in others, or a value is missing or not finite.

    Example:
        >>> joined({"a": np.zeros([2, 3]), "b": np.ones([1, 3])}, "x").shape
        (3, 3)
    """
    first_name, first = next(iter(arrays.items()))
    if isinstance(first, Mapping):
        for name, part in arrays.items():
            if not isinstance(part, Mapping) or set(part) != set(first):
                raise ValueError(
                    f"The inputs of all tasks must have the names {sorted(first)}, which those of "
                    f"task {name} have not."
                )
        return {
            key: joined({name: part[key] for name, part in arrays.items()}, f"{what}[{key!r}]")
            for key in first
        }
    found = {name: plain_array(part, f"{what} of task {name}") for name, part in arrays.items()}
    _are_texts(found.values(), what)
    for name, part in found.items():
        if part.shape[1:] != found[first_name].shape[1:]:
            raise ValueError(
                f"An example must have the same shape in every task, but {what} is "
                f"{list(part.shape)} in task {name} and {list(found[first_name].shape)} in task "
                f"{first_name}. Pad or cut them."
            )
        if part.dtype.kind == "f" and not np.isfinite(part).all():
            raise ValueError(
                f"{what} of task {name} holds NaN or infinity. Repair its rows, or leave the task "
                "out with leave_out=[...]."
            )
    return np.concatenate(list(found.values()))


def _are_texts(arrays: Iterable[np.ndarray], what: str) -> bool:
    """Whether the arrays of all tasks are texts; they must not be in some only."""
    kinds = {array.dtype.kind in "USO" for array in arrays}
    if len(kinds) > 1:
        raise ValueError(
            f"{what} must be numbers in all tasks or texts in all, got both. Make them alike."
        )
    return kinds == {True}
