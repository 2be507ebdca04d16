"""Starts a program as several workers on this machine: `python -m keras_maml.launch`.

    python -m keras_maml.launch --workers 2 -m experiments.omniglot --data FOLDER
    python -m keras_maml.launch --workers 2 train.py --epochs 3

Every worker gets its place in TF_CONFIG, which `keras_maml.Workers` reads, and where the system can
do that an equal part of the cores. Their lines come with their number in front.
"""

import argparse
import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

PATIENCE = 5
"""Seconds that workers have to end by themselves once one of them has failed or is told to stop."""
MOMENT = 1
"""Seconds for the last lines of a worker that has ended; what it has started may go on printing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the workers; returns the exit code of the first that fails, or 0."""
    parser = argparse.ArgumentParser(
        "python -m keras_maml.launch",
        usage="%(prog)s [-h] --workers WORKERS [-m] program ...",
        description=__doc__,
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workers", type=int, required=True, help="how many processes")
    parser.add_argument("-m", action="store_true", dest="module", help="the program is a module")
    parser.add_argument(
        "program",
        nargs=argparse.REMAINDER,  # alone: an argument before it would take a "--" after itself
        help="a file, or after -m a module, and what it takes",
    )
    given = parser.parse_args(arguments)
    if given.workers < 1:
        parser.error(f"--workers must be at least 1, got {given.workers}.")
    program = given.program[given.program[:1] == ["--"] :]
    if not program:
        parser.error("a program is needed, a file or after -m a module.")
    module = ["-m"] if given.module else []
    return run([sys.executable, "-u", *module, *program], given.workers)


def run(command: Sequence[str], workers: int) -> int:
    """Runs a command as workers until all have ended, or one has failed.

    Then everything that they have started ends as well.

    Args:
        command: The command.
        workers: How many.

    Returns:
        The exit code of the first that failed, 128 and the number of the signal if one ended it; 0
        if none failed.
    """
    addresses = free_addresses(workers)
    ended: queue.SimpleQueue = queue.SimpleQueue()  # the only one for handlers of signals
    processes, threads = [], []
    handlers = {
        number: signal.signal(number, lambda number, _: ended.put((None, number)))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        for index in range(workers):
            process = subprocess.Popen(
                command,
                env={**os.environ, "TF_CONFIG": tf_config(addresses, index)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # signals of the terminal come from here, once
            )
            processes.append(process)
            _keep_to_cores(process.pid, index, workers)
            printer = threading.Thread(target=_print, args=(index, process.stdout), daemon=True)
            watch = (index, process, printer, ended)
            threads += [printer, threading.Thread(target=_watch, args=watch, daemon=True)]
            for thread in threads[-2:]:
                thread.start()
        for _ in range(workers):
            index, code = ended.get()
            if index is None:
                print(f"Signal {signal.Signals(code).name}: stopping all workers.", flush=True)
                return 128 + code
            if code:
                print(f"Worker {index} {_said(code)}: stopping the others.", flush=True)
                return 128 - code if code < 0 else code
        return 0
    finally:
        stop(processes, threads)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def free_addresses(count: int) -> list[str]:
    """Returns addresses of this machine that nobody listens at."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("localhost", 0))
        return [f"localhost:{one.getsockname()[1]}" for one in sockets]
    finally:
        for one in sockets:
            one.close()


def tf_config(addresses: Sequence[str], index: int) -> str:
    """Returns the TF_CONFIG of one worker.

    Example:
        >>> tf_config(["a:1"], 0)
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}'
    """
    task = {"type": "worker", "index": index}
    return json.dumps({"cluster": {"worker": [*addresses]}, "task": task})


def stop(processes: Sequence[subprocess.Popen], threads: Sequence[threading.Thread]) -> None:
    """Ends processes with all that they have started: asks them first.

    Args:
        processes: Each leads a group, which it may have left behind.
        threads: They end with a process, or with the last of its group that can print.
    """
    overdue = time.monotonic() + PATIENCE
    _signal_groups(processes, signal.SIGTERM)
    for thread in threads:
        thread.join(max(0, overdue - time.monotonic()))
    _signal_groups(processes, signal.SIGKILL)
    for process in processes:
        process.wait()
    for thread in threads:
        thread.join(MOMENT)


def _signal_groups(processes: Sequence[subprocess.Popen], number: signal.Signals) -> None:
    for process in processes:
        # Nobody is left, or (on macOS) none but the dead.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)


def _print(index: int, lines: IO[str]) -> None:
    """Prints what a worker, and all that it has started, print."""
    with lines:
        for line in lines:
            print(f"[{index}] {line}", end="", flush=True)


def _watch(
    index: int, process: subprocess.Popen, printer: threading.Thread, ended: queue.SimpleQueue
) -> None:
    """Says when a worker has ended, whether or not its output has."""
    code = _code(process)
    printer.join(MOMENT)
    ended.put((index, code))


def _code(process: subprocess.Popen) -> int:
    """Waits for a process and returns its exit code, negative for a signal.

    The system keeps its number, by which `stop` finds its group, until that has ended it.
    """
    if not hasattr(os, "waitid"):
        return process.wait()
    end = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status


def _keep_to_cores(process: int, index: int, workers: int) -> None:
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    part = cores[index * len(cores) // workers : (index + 1) * len(cores) // workers]
    if part:  # fewer cores than workers are for all
        os.sched_setaffinity(process, part)


def _said(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with {code}"


if __name__ == "__main__":
    sys.exit(main())
