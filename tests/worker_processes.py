"""Processes of `worker_program`, on this machine."""

import json
import os
import pathlib
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

import pytest

PROGRAM = pathlib.Path(__file__).with_name("worker_program.py")
SECONDS = 1200  # of a collective that hangs


def run_workers(folder, count: int, *arguments: str, killed: int | None = None) -> Sequence[str]:
    """Runs the program on workers on this machine, of which one is killed; returns their output."""
    folder.mkdir(exist_ok=True)
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("localhost", 0))
    addresses = [f"localhost:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    outputs = [folder / f"{index}.txt" for index in range(count)]
    processes = []
    try:
        for index, output in enumerate(outputs):
            task = {"type": "worker", "index": index}
            config = {"cluster": {"worker": addresses}, "task": task}
            paths = [str(PROGRAM.parents[1]), os.environ.get("PYTHONPATH", "")]
            with output.open("w") as file:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, str(PROGRAM), str(folder), *arguments],
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                        env={
                            **os.environ,
                            "TF_CONFIG": json.dumps(config),
                            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                            "CUDA_VISIBLE_DEVICES": "-1",
                        },
                    )
                )
        codes = [process.wait(SECONDS) for process in processes]
    except subprocess.TimeoutExpired:
        codes = None
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    printed = [output.read_text() for output in outputs]
    if codes != [-signal.SIGKILL if index == killed else 0 for index in range(count)]:
        ends = [f"--- worker {index}\n{text[-3000:]}" for index, text in enumerate(printed)]
        pytest.fail(f"Exit codes {codes}.\n" + "\n".join(ends))
    return printed


def results_of(folder, count: int) -> list[dict]:
    return [pickle.loads((folder / f"{i}.pickle").read_bytes()) for i in range(count)]
