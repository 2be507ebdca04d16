"""Settings of a learner: checked when they are set, in force from the next step on."""

from collections.abc import Callable
from typing import Any

import numpy as np


class Setting:
    """An attribute that is checked when it is set, and that compiled steps depend on.

    The object that has it defines ``forget_programs()``, which is called when the value changes.

    Args:
        check: Takes the name and the value, and raises where it is out of range.

    Example:
        >>> from keras_maml import validation
        >>> class Counter:
        ...     steps = Setting(validation.check_count)
        ...     def forget_programs(self):
        ...         print("forgotten")
        >>> counter = Counter()
        >>> counter.steps = 1
        forgotten
        >>> counter.steps
        1
    """

    def __init__(self, check: Callable[[str, Any], None]) -> None:
        self._check = check

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        try:
            return instance._settings[self._name]
        except KeyError:
            raise AttributeError(self._name) from None

    def __set__(self, instance: Any, value: Any) -> None:
        self._check(self._name, value)
        value = _own(value)
        settings = instance.__dict__.setdefault("_settings", {})
        if self._name in settings and settings[self._name] == value:
            return
        settings[self._name] = value
        instance.forget_programs()


def _own(value: Any) -> Any:
    """Returns a value that nobody else changes, without types of NumPy, which trace otherwise."""
    if isinstance(value, np.generic):
        return value.item()
    return tuple(value) if isinstance(value, list) else value
