"""Runs in processes of their own, that are killed or end by themselves."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

ROOT = pathlib.Path(__file__).parents[1]


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}


def run(command: Sequence[str]) -> None:
    """Runs ``python *command`` to its end."""
    subprocess.run([sys.executable, *command], env=_environment(), cwd=ROOT, check=True)


def kill_when(
    ready: Callable[[], bool],
    command: Sequence[str],
    number: int = signal.SIGKILL,
    code: int = -signal.SIGKILL,
) -> str:
    """Starts ``python *command`` and sends it a signal as soon as ``ready`` says so.

    The process must end with the exit code given; returns what it has written to stderr.
    """
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, *command], env=_environment(), stdout=subprocess.DEVNULL, stderr=errors
        ) as process,
    ):
        deadline = time.monotonic() + 300
        while not ready():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        assert process.wait() == code
        errors.seek(0)
        return errors.read()
