"""Lending: a layer's call is another one for the thread that borrows it, for a while."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

# Held while forms are lent: one thread at a time borrows. Traces are short; compiling is outside.
lending = threading.RLock()


class Lent:
    """Stands in for a callable attribute: another form for one thread, itself for the others."""

    def __init__(self, own: Callable, form: Callable) -> None:
        self._own, self._form = own, form
        self._thread: int | None = threading.get_ident()

    @property
    def is_mine(self) -> bool:
        """Whether it is lent to the thread that asks."""
        return self._thread == threading.get_ident()

    def give_back(self) -> None:
        """Is itself for all from now on; who has kept it, as an import in a call does, may."""
        self._thread = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls what the thread that asks has."""
        return (self._form if self.is_mine else self._own)(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Binds what stands in for a method of a class."""
        return self if instance is None else functools.partial(self, instance)


def unlent(attribute: Any) -> Any:
    """Returns what a callable attribute is where it is not lent."""
    while isinstance(attribute, Lent):
        attribute = attribute._own
    return attribute


@contextlib.contextmanager
def lend(owner: Any, name: str, form: Callable) -> Iterator[None]:
    """Shadows a callable attribute of a layer, module or class, past Keras's own tracking."""
    attributes = vars(owner)
    had, before = name in attributes, attributes.get(name)
    put = functools.partial(setattr, owner) if isinstance(owner, type) else attributes.__setitem__
    lent = Lent(unlent(getattr(owner, name)), form)  # other threads never get a lent form
    put(name, lent)
    try:
        yield
    finally:
        lent.give_back()
        if had:
            put(name, before)
        else:
            del attributes[name]
