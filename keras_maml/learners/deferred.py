"""Objects that are made when they are needed.

Keras takes a tenth of a second to make a model of a small network, and much of what models are made
for, to predict once, can be had without. So what `MAML.adapt` returns is a model from the start,
as far as anybody can tell, and becomes one when it is asked for more than predictions.
"""

import functools
import threading
import types
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Kind = TypeVar("Kind")

_STATE = "_deferred"


def deferred(kind: type[Kind], make: Callable[[], Kind], ready: Mapping[str, Callable]) -> Kind:
    """Returns an object that becomes what ``make`` returns when it is first used.

    Args:
        kind: The class of the object; `isinstance` is right from the start.
        make: Makes the object: called once, unless it raises.
        ready: Methods that are there before, by name: functions of the object and more.

    Example:
        >>> class Answer:
        ...     def __init__(self):
        ...         print("thinking")
        ...         self.number = 42
        >>> answer = deferred(Answer, Answer, {"ask": lambda self: "six by nine?"})
        >>> answer.ask(), isinstance(answer, Answer)
        ('six by nine?', True)
        >>> answer.number
        thinking
        42
        >>> type(answer) is Answer
        True
    """
    result = object.__new__(_deferred_class(kind))
    object.__getattribute__(result, "__dict__")[_STATE] = make, dict(ready), threading.RLock()
    return result


class _Deferred:
    """What an object is until it is used."""

    def __getattribute__(self, name: str) -> Any:
        state = object.__getattribute__(self, "__dict__").get(_STATE)
        if state is not None:
            make, ready, lock = state
            if name in ready:
                return types.MethodType(ready[name], self)
            with lock:
                _become(self, make)
            return getattr(self, name)
        return object.__getattribute__(self, name)


def _become(self: _Deferred, make: Callable[[], Any]) -> None:
    if _STATE not in object.__getattribute__(self, "__dict__"):  # another thread was faster
        return
    made = make()
    # One dictionary for both: what the methods of one keep, the other has. First the dictionary:
    # other threads may look at any time, and find the class that knows what to do.
    object.__setattr__(self, "__dict__", vars(made))
    object.__setattr__(self, "__class__", type(made))


@functools.cache
def _deferred_class(kind: type) -> type:
    return type(kind)(kind.__name__, (_Deferred, kind), {"__module__": kind.__module__})
