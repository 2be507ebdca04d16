"""Arrays of numbers or of texts, whatever holds them; nothing else is taken for one of the two."""

import numbers
from typing import Any

import numpy as np
import tensorflow as tf


def array_of(values: Any) -> np.ndarray:
    """Makes an array of a list without turning what stands among texts into texts.

    Example:
        >>> array_of(["a", float("nan")]).tolist(), np.asarray(["a", float("nan")]).tolist()
        (['a', nan], ['a', 'nan'])
    """
    if np.ma.is_masked(values):  # NumPy would show what the mask hides
        return values
    array = np.asarray(values)
    is_array = hasattr(values, "dtype")
    return np.asarray(values, object) if array.dtype.kind in "US" and not is_array else array


def plain_array(values: Any, name: str) -> np.ndarray:
    """Makes an array of numbers or of texts.

    Args:
        values: An array, tensor, column of a data frame or list.
        name: What errors call them.

    Returns:
        Booleans, integers or floats; or texts, as str or bytes, also in an array of objects.

    Raises:
        ValueError: If they are neither, or some are missing. A float may be NaN.

    Example:
        >>> plain_array(np.array([10, 0.5], object), "y")
        array([10. ,  0.5])
        >>> plain_array(["spam", None], "y")
        Traceback (most recent call last):
        ...
        ValueError: y must be all numbers or all texts, but row 1 holds None. Convert it, or fill \
in or remove what is missing.
    """
    array = array_of(values)
    if np.ma.is_masked(array):
        raise ValueError(f"{name} must have all values, some are masked. Fill in or remove them.")
    if array.dtype == object and array.ndim:
        array = _of_objects(array, name)
    if array.dtype.kind not in "biufUSO":
        raise ValueError(f"{name} must be numbers or texts, got dtype {array.dtype}. Convert them.")
    return array


def decoded(array: np.ndarray) -> np.ndarray:
    """Texts of `plain_array` as str, where NumPy takes bytes for ASCII; numbers as they are.

    Example:
        >>> decoded(np.array(["é".encode(), "e"], object)).tolist()
        ['é', 'e']
    """
    if array.dtype.kind not in "SO":
        return array
    texts = [text.decode() if isinstance(text, bytes) else text for text in array.flat]
    return np.array(texts, str).reshape(array.shape)


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: None, NaN, NaT or pandas.NA, which is neither equal nor unequal.

    Example:
        >>> [is_missing(value) for value in (None, float("nan"), np.datetime64("NaT"), "", 0)]
        [True, True, True, False, False]
    """
    try:
        return value is None or bool(value != value)
    except TypeError:
        return True


def check_range(
    array: np.ndarray, dtype: tf.DType, name: str, *, scale: float = 1.0, advice: str
) -> None:
    """Checks that a cast keeps numbers: integers would wrap around, floats become infinite.

    Args:
        array: Booleans, integers or finite floats.
        dtype: What they become.
        name: What the error calls them.
        scale: Factor applied after the cast.
        advice: What to do, for the error.

    Raises:
        ValueError: If the smallest or largest number is out of the range of the dtype.

    Example:
        >>> check_range(np.array([5, 300]), tf.uint8, "x", advice="Scale it.")
        Traceback (most recent call last):
        ...
        ValueError: x becomes uint8, which holds 0 .. 255, but has 300 in it. Scale it.
    """
    factor = max(1.0, abs(scale))
    if not array.size or (factor == 1 and np.can_cast(array.dtype, dtype.as_numpy_dtype)):
        return
    number = float if dtype.is_floating else int
    least, most = number(dtype.min), number(dtype.max)
    for end in (array.min().item(), array.max().item()):
        if not least <= (end if factor == 1 else end * factor) <= most:
            scaled = "" if factor == 1 else f", times {scale!r}"
            raise ValueError(
                f"{name} becomes {dtype.name}, which holds {least} .. {most}, but has {end!r} in "
                f"it{scaled}. {advice}"
            )


def check_distinct(array: np.ndarray, name: str) -> None:
    """Checks that different large numbers are still different in float32.

    Up to 2**24 every whole number is. Others are rounded, which is no matter where few of many
    become equal: in a column a tenth may.

    Args:
        array: Booleans, integers or finite floats, ``[N]`` or ``[N, ..., columns]``.
        name: What the error calls them.

    Raises:
        ValueError: If more in a column become equal, as times in seconds since 1970 do.

    Example:
        >>> check_distinct(np.array([2**24, 2**24 + 1]), "x")
        Traceback (most recent call last):
        ...
        ValueError: x must hold numbers that float32 tells apart, but of 2 different ones in \
16777216 .. 16777217 it leaves 1. Subtract the first of them, or leave them out if they are no \
quantities.
    """
    if np.can_cast(array.dtype, "float32") or not array.size:
        return
    rows = array.reshape(-1, array.shape[-1] if array.ndim > 1 else 1)
    least, most = rows.min(axis=0), rows.max(axis=0)
    for column in np.flatnonzero((least < -(2**24)) | (most > 2**24)):
        different = np.unique(rows[:, column])
        left = len(np.unique(different.astype("float32")))
        if len(different) - left > 0.1 * len(different):
            which = f"column {column} of {name}" if rows.shape[1] > 1 else name
            raise ValueError(
                f"{which} must hold numbers that float32 tells apart, but of {len(different)} "
                f"different ones in {least[column]} .. {most[column]} it leaves {left}. Subtract "
                "the first of them, or leave them out if they are no quantities."
            )


def _of_objects(array: np.ndarray, name: str) -> np.ndarray:
    others = [i for i, value in enumerate(array.flat) if not isinstance(value, str | bytes)]
    if not others:
        return array
    strange = [i for i in others if not isinstance(array.flat[i], (numbers.Real, np.bool_))]
    if not strange and len(others) == array.size:
        found = np.array(array.tolist())
        if found.dtype != object:  # as fractions stay
            return found
    first = (strange or others)[0]
    raise ValueError(
        f"{name} must be all numbers or all texts, but row {first // (array.size // len(array))} "
        f"holds {array.flat[first]!r}. Convert it, or fill in or remove what is missing."
    )
