"""Says what takes so long when the first call of a step does."""

import functools
import logging
import threading
from collections.abc import Callable
from typing import Any

PATIENCE = 20.0
"""Seconds until something is said."""

_log = logging.getLogger("keras_maml")


def first_call_explained(function: Callable, message: Callable[[], str]) -> Callable:
    """Returns a compiled function whose first call logs a message if it takes long.

    Args:
        function: The function; its first call traces and compiles it.
        message: Makes the message, in another thread.
    """
    called = False

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        nonlocal called
        if called:
            return function(*arguments)
        timer = threading.Timer(PATIENCE, lambda: _log.warning("%s", message()))
        timer.daemon = True
        timer.start()
        try:
            results = function(*arguments)
        finally:
            timer.cancel()
        called = True
        return results

    return call
