"""Settings that hold while something is traced."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def holding(variable: contextvars.ContextVar, value: Any) -> Iterator[None]:
    """Gives a context variable a value while the context is open.

    Args:
        variable: The variable.
        value: Its value inside.

    Example:
        >>> depth = contextvars.ContextVar("depth", default=0)
        >>> with holding(depth, 1):
        ...     depth.get()
        1
        >>> depth.get()
        0
    """
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
