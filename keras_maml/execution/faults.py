"""What workers tell each other of errors, so that none waits for one that has stopped.

TensorFlow's coordination service hands a text to all processes and ends what they wait for. Whoever
finds a connection broken looks which of the others still answer.
"""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence

import tensorflow as tf
from tensorflow.python.eager import context as _context

LENGTH = 1000
"""Bytes of what a worker says of its error; the rest is left out."""

LINGERING = 10
"""Seconds for which a killed process may seem to answer, whose sockets close one after another."""

_TOLD = "keras_maml tells all workers: "


class WorkersError(RuntimeError):
    """Another worker has failed or is lost; the message says which and why."""


class DisagreementError(ValueError):
    """All workers see at once that they do not fit together."""


def said(worker: int, error: BaseException) -> str:
    """Returns what is said of an error of a worker, on one line.

    Example:
        >>> said(1, ValueError("Labels must be integers."))
        'Worker 1 failed with ValueError: Labels must be integers.'
    """
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return f"Worker {worker} failed with {text}"[:LENGTH]


def tell(text: str) -> None:
    """Ends what all workers wait for, here and elsewhere, with a text.

    Their connections are of no use afterwards: all have to be started again.
    """
    with contextlib.suppress(tf.errors.OpError):  # of a service that is gone, too
        _context.context().report_error_to_cluster(tf.errors.ABORTED, _TOLD + text)


@contextlib.contextmanager
def told_after(seconds: float, text: str) -> Iterator[None]:
    """Tells all workers a text unless a block is done after so many seconds."""
    timer = threading.Timer(seconds, tell, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def reason(error: BaseException, addresses: Sequence[str]) -> str | None:
    """Returns why workers were parted, if that is what an error says.

    Args:
        error: What this worker has met.
        addresses: ``host:port`` of all.

    Returns:
        The text; None if the error is another.

    Example:
        >>> reason(ValueError("no"), []) is None
        True
        >>> message = f"Collective ops is aborted by: {_TOLD}Worker 1 failed."
        >>> reason(tf.errors.AbortedError(None, None, message), [])
        'Worker 1 failed.'
    """
    message = str(error)
    told = re.search(re.escape(_TOLD) + r"(.*?)(?:\\n|\n|$)", message)
    if told:
        return told[1]
    parted = "Collective ops is aborted" in message or "stopped sending heartbeats" in message
    if not (parted and isinstance(error, tf.errors.OpError)):
        return None
    lost = _lost(addresses)
    if not lost:
        return f"The connection between workers broke: {' '.join(message.split())}"[:LENGTH]
    names = " and ".join(f"worker {index} ({addresses[index]})" for index in lost)
    return (
        f"Lost {names}: killed, or its machine is down. Its own log may say more. Start all "
        "workers again."
    )


def _lost(addresses: Sequence[str]) -> list[int]:
    """Returns the numbers of those who do not answer, as soon as there is one."""
    end = time.monotonic() + LINGERING
    while True:
        lost = [index for index, address in enumerate(addresses) if not _answers(address)]
        if lost or time.monotonic() >= end:
            return lost
        time.sleep(0.1)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True
