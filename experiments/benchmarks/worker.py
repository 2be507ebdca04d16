"""Objects that live in a process of their own and are driven through a pipe.

A contender shares no thread pool, no memory and no import with another one. Run as a script with
the number of a pipe, the class to make (``module:name``) and nothing else, this file is the
process; imported, it offers `Worker`, which starts it.
"""

import ctypes
import importlib
import multiprocessing.connection
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
import types
from collections.abc import Mapping
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]


class WorkerError(RuntimeError):
    """What a worker could not do, with its own traceback."""


class WorkerTimeout(WorkerError):  # noqa: N818 (the name of what happened)
    """A worker took longer than it was given; it has been ended."""


class Worker:
    """An object in a process of its own.

    Args:
        target: The class, ``"module:name"`` with a module of `experiments.benchmarks`.
        *args: Its arguments.
        cpus: The processors it may use; by default all. Set before anything is imported, so that
            thread pools have the size that fits.
        variables: More variables of its environment.

    Example:
        >>> with Worker("work:Network", "omniglot", (28, 28, 1), 64, 4) as worker:
        ...     worker.call("__getattribute__", "filters")
        64
    """

    def __init__(
        self,
        target: str,
        *args: Any,
        cpus: tuple[int, ...] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self._name = " ".join([target.rpartition(":")[2], *(a for a in args if isinstance(a, str))])
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the worker)
        self._connection, child = multiprocessing.connection.Pipe()
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(child.fileno()), target],
            pass_fds=[child.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | dict(variables or {}),
        )
        child.close()
        self._connection.send(cpus)
        self._exchange(("made", args))

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def call(self, method: str, *args: Any, timeout: float | None = None) -> Any:
        """Calls a method of the object and returns what it returns.

        Args:
            method: Its name.
            *args: Its arguments.
            timeout: Seconds after which the process is ended; None waits.

        Raises:
            WorkerTimeout: The method took longer than ``timeout``.
            WorkerError: The method raised, or the process died.
        """
        return self._exchange((method, args), timeout)

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _exchange(self, message: Any, timeout: float | None = None) -> Any:
        try:
            self._connection.send(message)
            if not self._connection.poll(timeout):
                self._process.kill()
                raise WorkerTimeout(f"{self._name}: no result after {timeout:.0f} s.")
            succeeded, value = self._connection.recv()
        except (EOFError, ConnectionError):
            status = self._process.wait()
            self._errors.seek(0)
            last = "".join(self._errors.readlines()[-10:])
            raise WorkerError(f"{self._name}: the process ended ({status}).\n{last}") from None
        if not succeeded:
            raise WorkerError(f"{self._name}: {value}")
        return value


def _serve(connection: multiprocessing.connection.Connection, target: str) -> None:
    cpus = connection.recv()
    # Before the next message, whose objects import their modules; macOS assigns no processors.
    if cpus is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    method, args = connection.recv()
    path, name = target.split(":")
    subject: Any = None
    while True:
        try:
            if subject is None:
                module = importlib.import_module(f"experiments.benchmarks.{path}")
                subject, value = getattr(module, name)(*args), None
            else:
                value = getattr(subject, method)(*args)
            reply = pickle.dumps((True, value))
        except Exception:
            reply = pickle.dumps((False, traceback.format_exc()))
        connection.send_bytes(reply)
        try:
            method, args = connection.recv()
        except EOFError:  # closed by the parent
            return


def _package_without_tensorflow() -> None:
    """Puts `experiments` in place without its __init__, which imports TensorFlow."""
    package = types.ModuleType("experiments")
    package.__path__ = [str(ROOT / "experiments")]
    sys.modules["experiments"] = package
    sys.path[0] = str(ROOT)


def _end_with_parent() -> None:
    """Asks Linux to end this process when its parent dies, even in the middle of a step."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    _end_with_parent()
    _package_without_tensorflow()
    _serve(multiprocessing.connection.Connection(int(sys.argv[1])), sys.argv[2])
