"""Starts a program as several workers on this machine: `python -m keras_maml.launch`.

    python -m keras_maml.launch --workers 2 -m experiments.omniglot --data FOLDER
    python -m keras_maml.launch --workers 2 train.py --epochs 3

Every worker gets its place in TF_CONFIG, which `keras_maml.Workers` reads, and where the system can
do that an equal part of the cores. Their lines come with their number in front.
"""

import argparse
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence

PATIENCE = 5
"""Seconds that workers have to end by themselves once one of them has failed or is told to stop."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the workers; returns the exit code of the first that fails, or 0."""
    parser = argparse.ArgumentParser("python -m keras_maml.launch", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workers", type=int, required=True, help="how many processes")
    parser.add_argument("-m", action="store_true", dest="module", help="the program is a module")
    parser.add_argument("program", help="a file, or after -m a module")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="what the program takes")
    given = parser.parse_args(arguments)
    if given.workers < 1:
        parser.error(f"--workers must be at least 1, got {given.workers}.")
    program = [*(["-m"] if given.module else []), given.program, *given.arguments]
    return run([sys.executable, "-u", *program], given.workers)


def run(command: Sequence[str], workers: int) -> int:
    """Runs a command as workers until all have ended, or one has failed.

    Args:
        command: The command.
        workers: How many.

    Returns:
        The exit code of the first that failed, 128 and the number of the signal if one ended it; 0
        if none failed.
    """
    addresses = free_addresses(workers)
    ended: queue.Queue = queue.Queue()
    processes, followers = [], []
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
            follower = threading.Thread(target=_follow, args=(index, process, ended), daemon=True)
            follower.start()
            followers.append(follower)
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
        stop(processes)
        for follower in followers:
            follower.join()
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


def stop(processes: Sequence[subprocess.Popen]) -> None:
    """Ends processes with all that they have started: asks them first."""
    running = [process for process in processes if process.poll() is None]
    for number, seconds in ((signal.SIGTERM, PATIENCE), (signal.SIGKILL, None)):
        for process in running:
            if process.poll() is None:
                os.killpg(process.pid, number)
        for process in running:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                continue


def _follow(index: int, process: subprocess.Popen, ended: queue.Queue) -> None:
    """Prints what a worker prints, and says when it has ended."""
    with process.stdout:
        for line in process.stdout:
            print(f"[{index}] {line}", end="", flush=True)
    ended.put((index, process.wait()))


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
