"""Checks of what users pass in: each says what was expected, what came, and what to do."""

import math
import numbers
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

EPISODE = "((x_support, y_support), (x_query, y_query))"

# Begins what a running step says, and what a ValueError then repeats without the rest.
MARK = "keras_maml says: "
MARK_OF_ALL = "keras_maml says on all workers: "


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


def one_of(choices: Sequence[Any]) -> Callable[[str, Any], None]:
    """Returns a check that raises ValueError unless a value is one of ``choices``."""
    return lambda name, value: check_choice(name, value, choices)


def check_flag(name: str, value: Any) -> None:
    """Raises ValueError unless ``value`` is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be one of (False, True), got {value!r}.")


def check_optional_count(name: str, value: Any) -> None:
    """Raises ValueError unless ``value`` is None or an integer of at least 1."""
    if value is not None:
        check_count(name, value, minimum=1)


def check_several(name: str, values: Collection[Any], check: Callable[[str, Any], None]) -> None:
    """Checks a setting of several values.

    Args:
        name: Of the setting.
        values: Its values.
        check: Called with the name and each value.

    Raises:
        ValueError: There is no value, or one is there twice; and what ``check`` raises.
    """
    for value in values:
        check(name, value)
    if len({*values}) < max(len(values), 1):
        raise ValueError(f"{name} must be one or several different ones, got {values}.")
