"""Reads arrays from pickles without running anything that a pickle may contain."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np

NUMPY = ("numpy.core", "numpy._core")


class PickledDtype:
    """Stands for `numpy.dtype`: takes plain integer types and nothing else."""

    def __init__(self, code: str = "", *_: Any) -> None:
        code = code.decode("ascii") if isinstance(code, bytes) else code
        if not isinstance(code, str) or code[:1] not in tuple("biu") or not code[1:].isdigit():
            raise pickle.UnpicklingError(f"it holds an array of type {code!r}, not of integers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if state[1] in (">", b">"):
            self.dtype = self.dtype.newbyteorder(">")


class PickledNdarray:
    """Stands for `numpy.ndarray` as a type, which is only ever named."""

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it misuses numpy.ndarray")


class PickledArray:
    """Stands for the function that makes an empty array and for the array that it is to become."""

    def __init__(self, *_: Any) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, column_major, content = state
        self.array = _array(content, dtype, shape, "F" if column_major else "C")


class PickledBuffer(PickledArray):
    """Stands for the function that makes an array of a buffer, in pickles of protocol 5."""

    def __init__(self, content: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> None:
        self.array = _array(content, dtype, shape, order)


class PickledScalar:
    """Stands for the function that makes a NumPy scalar; gives a plain integer."""

    def __new__(cls, dtype: Any, content: Any) -> int:
        """Makes the number."""
        return int(_array(content, dtype, (), "C"))

    def __setstate__(self, state: Any) -> None:
        """There is no object of this class, nor anything to set."""


class PickledBytes:
    """Stands for `_codecs.encode`, with which protocols 0 to 2 write bytes; gives these."""

    def __new__(cls, text: Any, encoding: Any) -> bytes:
        """Makes the bytes."""
        if encoding != "latin1" or not isinstance(text, str):
            raise pickle.UnpicklingError(f"it encodes text as {encoding!r}, not as latin1")
        return text.encode("latin1")

    def __setstate__(self, state: Any) -> None:
        """As above."""


STAND_INS = {
    ("numpy", "dtype"): PickledDtype,
    ("numpy", "ndarray"): PickledNdarray,
    ("_codecs", "encode"): PickledBytes,
    **{(f"{core}.multiarray", "_reconstruct"): PickledArray for core in NUMPY},
    **{(f"{core}.multiarray", "scalar"): PickledScalar for core in NUMPY},
    **{(f"{core}.numeric", "_frombuffer"): PickledBuffer for core in NUMPY},
}
"""All that a pickle may name, and the harmless classes that it gets instead.

They are classes with ``__setstate__``: otherwise a pickle could set attributes of theirs.
"""


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler for which only `STAND_INS` exist."""

    def find_class(self, module: str, name: str) -> type:
        """Looks up a name that the pickle holds."""
        try:
            return STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it refers to {module}.{name}, which arrays do not need, and which could run "
                f"code: do not use this file"
            ) from None


def read_arrays(path: str | os.PathLike) -> Any:
    """Reads a pickle of built-in containers, text, numbers and arrays of integers.

    No function or class that the file names is looked up: the few that NumPy's own pickles need
    (of Python 2 or 3, any protocol) have stand-ins here, anything else is refused.

    Args:
        path: The file.

    Returns:
        What was pickled; arrays are read-only.

    Raises:
        ValueError: If the file is damaged, is no pickle, or holds anything else.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "data.pkl")
        >>> _ = path.write_bytes(pickle.dumps({"image_data": np.arange(3)}))
        >>> read_arrays(path)
        {'image_data': array([0, 1, 2])}
    """
    try:
        with Path(path).open("rb") as file:
            return _unwrap(ArrayUnpickler(file, encoding="latin1").load())
    except FileNotFoundError:
        raise
    except Exception as error:  # A damaged pickle can raise nearly anything, also MemoryError.
        raise ValueError(
            f"{path} cannot be read as a pickle of arrays: "
            f"{error or type(error).__name__}. Download it again, or use the images themselves."
        ) from error


def _array(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    content = content.encode("latin1") if isinstance(content, str) else content
    order = order if order in ("C", "F") else "C"
    return np.frombuffer(content, dtype.dtype).reshape(shape, order=order)


def _unwrap(value: Any) -> Any:
    if isinstance(value, PickledArray):
        return value.array
    if isinstance(value, dict):
        return {key: _unwrap(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_unwrap(entry) for entry in value]
    if value is not None and not isinstance(value, str | bytes | int | float):
        raise pickle.UnpicklingError(f"it holds {type(value).__name__} outside an array")
    return value
