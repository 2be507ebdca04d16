"""Arrays of examples, as users have them, and what episodes are to make of each."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_maml.episodes.plain_arrays import array_of, check_distinct, check_range, plain_array
from keras_maml.validation import check_number

ADVICE = "Pass an array, a list of texts, or a dictionary of these."


@dataclasses.dataclass(frozen=True)
class Examples:
    """One array of examples.

    Attributes:
        values: ``[N, ...]``. Captured by reference: a constant in the graph would be copied into
            it and could not exceed 2 GB.
        dtype: Of what comes out.
        scale: Factor applied after the cast.
        is_image: Whether it can be turned: ``[N, H, W]`` or ``[N, H, W, C]``.
    """

    values: tf.Tensor
    dtype: tf.DType
    scale: float
    is_image: bool

    def take(self, rows: np.ndarray) -> "Examples":
        """Some of the examples, of which the same becomes as of all.

        Example:
            >>> examples_of(np.array([[3, 1], [2, 7]])).take([1]).values.numpy().tolist()
            [[2, 7]]
        """
        return dataclasses.replace(self, values=tf.gather(self.values, rows))

    def finish(self, x: tf.Tensor) -> tf.Tensor:
        """Casts and scales what was taken from the values."""
        x = x if self.dtype == x.dtype else tf.cast(x, self.dtype)
        return x if self.scale == 1 else x * tf.cast(self.scale, self.dtype)


def examples_of(
    arrays: Any,
    *,
    name: str = "images",
    dtype: Any = None,
    scale: Any = None,
    image_axes: Sequence[int] = (3, 4),
) -> Examples | dict[str, Examples]:
    """Checks arrays of examples and decides what comes out of them.

    ===========================================  =============  ==================================
    what is in the array                         comes out as   times
    ===========================================  =============  ==================================
    uint8                                        float32        1/255
    other integers, ``[N, H, W]``, with          float32        1/255 if all are in 0..255 and some
    channels or not                                             above 1, or else 1
    other integers, ``[N, T]``: token ids        as it is       1
    floats and booleans                          float32        1
    texts, ``[N]`` or ``[N, T]``                 texts          -
    ===========================================  =============  ==================================

    Integers other than uint8 are judged by all that are in the array: where arrays of several calls
    belong together, give ``scale``.

    Args:
        arrays: An array or tensor ``[N, ...]``, a list of texts, or a dictionary of these by the
            names of a model's inputs.
        name: What errors call them.
        dtype: What comes out instead, if it is numbers; by name, if there are several arrays.
        scale: The factor instead, if floats come out; by name, if there are several arrays.
        image_axes: How many axes arrays have that are taken for images.

    Returns:
        The array with what is to be done, or a dictionary of these.

    Raises:
        ValueError: If there is no array, arrays differ in length, hold neither numbers nor texts,
            or numbers that are not finite or would not be once cast, or that float32 does not
            tell apart where no dtype is given, or a dtype or scale does not fit.

    Example:
        >>> tokens = examples_of(np.array([[3, 1], [2, 7]]))
        >>> tokens.dtype, tokens.scale
        (tf.int64, 1.0)
        >>> examples_of({"photo": np.zeros([2, 8, 8], "uint8"), "title": ["a", "b"]})["title"].dtype
        tf.string
    """
    if not isinstance(arrays, Mapping):
        for option, value in (("dtype", dtype), ("scale", scale)):
            if isinstance(value, Mapping):
                raise ValueError(
                    f"{option} must be one value, since {name} is no dictionary, got {value!r}."
                )
        return _examples(arrays, name, dtype, scale, image_axes)
    unknown = {
        key for value in (dtype, scale) if isinstance(value, Mapping) for key in value
    } - set(arrays)
    if not arrays or unknown:
        trouble = f"got none named {sorted(unknown)}" if unknown else "got an empty dictionary"
        raise ValueError(
            f"{name} must hold an array for every name in dtype and scale, and at least one: "
            f"{trouble}. The names are {sorted(arrays)}."
        )
    of = {
        key: _examples(
            array,
            f"{name}[{key!r}]",
            dtype.get(key) if isinstance(dtype, Mapping) else dtype,
            scale.get(key) if isinstance(scale, Mapping) else scale,
            image_axes,
        )
        for key, array in arrays.items()
    }
    lengths = {key: part.values.shape[0] for key, part in of.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"All arrays of {name} must have the same length, got {lengths}.")
    return of


def count_examples(examples: Examples | Mapping[str, Examples]) -> int:
    """How many examples there are.

    Example:
        >>> count_examples(examples_of(["a", "b", "c"]))
        3
    """
    parts = examples.values() if isinstance(examples, Mapping) else (examples,)
    return next(iter(parts)).values.shape[0]


def _examples(given: Any, name: str, dtype: Any, scale: Any, image_axes: Sequence[int]) -> Examples:
    array = _array(given, name)
    if array.dtype.kind in "USO":
        return _texts(array, name, scale)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
        raise ValueError(
            f"{name} must be finite, but {len(bad)} of {len(array)} hold NaN or infinity; the "
            f"first is {name}[{bad[0]}]. Repair or remove them."
        )
    if array.ndim < 2:
        raise ValueError(
            f"{name} must be [N, ...], an array per example, got shape {list(array.shape)}. If an "
            f"example is one number, pass {name}[:, None]."
        )
    is_image = array.ndim in image_axes
    is_tokens = array.dtype.kind in "iu" and array.dtype != np.uint8 and array.ndim == 2
    is_asked = dtype is not None
    dtype = tf.as_dtype(dtype or (array.dtype if is_tokens else "float32"))
    if not (dtype.is_floating or dtype.is_integer):
        raise ValueError(f"dtype must be one of numbers such as 'float32', got {dtype.name!r}.")
    if scale is None:
        scale = 1 / 255 if dtype.is_floating and _is_bytes(array, is_image) else 1.0
    if scale != 1 and not dtype.is_floating:
        raise ValueError(
            f"scale needs a floating dtype such as 'float32', but {name} come out as {dtype.name}: "
            f"got scale={scale!r}. Give dtype='float32', or leave scale out."
        )
    check_number("scale", scale, lambda _: True)
    check_range(array, dtype, name, scale=scale, advice="Scale them before, or give another dtype.")
    if not (is_asked or is_tokens):
        check_distinct(array, name)
    values = tf.convert_to_tensor(given if tf.is_tensor(given) else array)
    return Examples(values, dtype, float(scale), is_image)


def _array(given: Any, name: str) -> np.ndarray:
    try:
        array = array_of(given)
    except ValueError as error:  # NumPy says that the shape is inhomogeneous
        raise ValueError(
            f"The examples in {name} must have one shape: {error}. Pad them to one length."
        ) from error
    if array.ndim == 0 or not len(array):
        raise ValueError(f"{name} must hold examples, got {given!r}. {ADVICE}")
    return plain_array(array, name)


def _texts(array: np.ndarray, name: str, scale: Any) -> Examples:
    if scale not in (None, 1):
        raise ValueError(f"Texts cannot be scaled: got scale={scale!r} for {name}.")
    return Examples(tf.convert_to_tensor(array), tf.string, 1.0, is_image=False)


def _is_bytes(array: np.ndarray, is_image: bool) -> bool:
    """Whether numbers stand for the brightness of pixels in 0..255."""
    if array.dtype == np.uint8:
        return True
    if not is_image or array.dtype.kind not in "iu":
        return False
    return array.min() >= 0 and 1 < array.max() <= 255
