"""Loads a server with clients for a while: are all answers right, and does its memory grow?

    python -m experiments.benchmarks.load
    python -m experiments.benchmarks.load --clients 2 --seconds 10

`keras-maml serve` runs in a process of its own, and clients with a customer each do three things in
turn: adapt to new examples, predict with what is kept, and adapt and predict in one request. Every
answer is compared with that of the learner in this process.
"""

import concurrent.futures
import contextlib
import dataclasses
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import tabulate

import keras_maml
from experiments.benchmarks import memory
from experiments.benchmarks.store import Store
from experiments.benchmarks.worker import ROOT
from experiments.shared.command_line import run_command
from keras_maml.serving.personalization import Personalizer

TOLERANCE = 1e-4  # of the logits
EPISODES = 16
PATIENCE = 300.0  # seconds until the server listens, at most


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the figures depend on."""

    learner: str = "omniglot-5way-1shot-drawn"  # a pretrained classifier of 28x28 characters
    clients: int = 8  # that ask at the same time
    warmup: float = 10.0  # seconds before memory is looked at
    seconds: float = 120.0  # under load


@dataclasses.dataclass(frozen=True)
class Files:
    """Where things are."""

    output: str = "runs/benchmarks/load"  # folder of the results
    overwrite: bool = False  # whether to remove what is in that folder


def run(settings: Settings, files: Files) -> Store:
    """Measures, and shows the table."""
    store = Store(files.output, settings, table, overwrite=files.overwrite)
    store.measure(f"{settings.clients} clients", lambda: measure(settings))
    return store.shown()


def measure(settings: Settings) -> dict:
    """Loads a server.

    Args:
        settings: Which learner, how many clients, how long.

    Returns:
        The numbers of requests, of wrong answers and of refusals, milliseconds by kind of request,
        and the server's memory before and after.
    """
    requests = list(_requests(settings.learner))
    with tempfile.TemporaryDirectory() as folder, _server(settings.learner, folder) as server:
        port, process = server
        with concurrent.futures.ThreadPoolExecutor(settings.clients) as threads:

            def load(seconds: float) -> list[tuple[str, float, bool]]:
                until = time.monotonic() + seconds
                clients = [
                    threads.submit(_ask, port, number, requests, until)
                    for number in range(settings.clients)
                ]
                return [answer for client in clients for answer in client.result()]

            load(settings.warmup)
            before, start = memory.megabytes(process=process), time.monotonic()
            answers = load(settings.seconds)
            seconds = time.monotonic() - start
            after = memory.megabytes(process=process)
    kinds = Counter(kind for kind, *_ in answers)
    return {
        "learner": settings.learner,
        "clients": settings.clients,
        "seconds": round(seconds, 1),
        "requests": len(answers),
        "wrong": sum(not right for *_, right in answers),
        "milliseconds": {
            kind: [
                round(1e3 * float(np.percentile([s for k, s, _ in answers if k == kind], q)), 2)
                for q in (50, 95, 100)
            ]
            for kind in sorted(kinds)
        },
        "megabytes": [round(before, 1), round(after, 1)],
    }


def _requests(name: str) -> Iterator[tuple[list[bytes], np.ndarray]]:
    """Yields the bodies of three requests and the answer to the last two, for several episodes."""
    learner = keras_maml.load(name)
    episodes = keras_maml.episodes.glyphs(split="test", meta_batch_size=EPISODES)
    (x, y), (x_query, _) = next(iter(episodes.take(1)))
    x, y, x_query = x.numpy().round(3), y.numpy(), x_query.numpy().round(3)  # shorter bodies
    learner.adapt(x[0], y[0])  # the kinds of the arrays become those of the signatures
    personalizer = Personalizer(learner, batch_normalization="inductive")
    names = [str(number) for number in range(EPISODES)]
    personalizer.adapt_many(names, x, y)
    right = personalizer.predict_many(names, x_query)
    for support, labels, query, answer in zip(x, y, x_query, right, strict=True):
        support, labels, query = support.tolist(), labels.tolist(), query.tolist()
        inputs = {"x_support": [support], "y_support": [labels], "x_query": [query]}
        bodies = (
            {"x": support, "y": labels},
            {"x": query},
            {"signature_name": "adapt_and_predict", "inputs": inputs},
        )
        yield [json.dumps(body).encode() for body in bodies], answer


def _ask(
    port: int, number: int, requests: list[tuple[list[bytes], np.ndarray]], until: float
) -> list[tuple[str, float, bool]]:
    """Asks until it is time; returns the kind, the seconds and the rightness of every answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    answers, turn = [], 0
    customer = f"/v1/customers/client-{number}"
    kinds = (
        ("adapt", f"{customer}/adapt", None),
        ("predict", f"{customer}/predict", "predictions"),
        ("adapt and predict", "/v1/models/loaded:predict", "outputs"),
    )
    while time.monotonic() < until:
        bodies, expected = requests[(number + turn) % len(requests)]
        turn += 1
        for (kind, path, key), body in zip(kinds, bodies, strict=True):
            start = time.monotonic()
            connection.request("POST", path, body)
            response = connection.getresponse()
            content = json.loads(response.read())
            seconds = time.monotonic() - start
            right = response.status == 200
            if right and key is not None:
                found = np.asarray(content[key]).reshape(expected.shape)
                right = bool(np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max())
            answers.append((kind, seconds, right))
    connection.close()
    return answers


@contextlib.contextmanager
def _server(learner: str, folder: str) -> Iterator[tuple[int, int]]:
    """Yields the port and the process of a server, as soon as it listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["serve", learner, "--name", "loaded", "--store", f"{folder}/customers.sqlite"]
    process = subprocess.Popen(
        [sys.executable, "-m", "keras_maml", *arguments, "--port", str(port)],
        cwd=ROOT,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait(process, port)
        yield port, process.pid
    finally:
        process.kill()
        process.wait()


def _wait(process: subprocess.Popen, port: int) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/healthz")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    raise OSError("The server did not start: run keras-maml serve to see why.")


def table(records: dict[str, dict[str, Any]]) -> str:
    """Returns the table: a line for each kind of request."""
    parts = []
    for key, record in records.items():
        rows = [
            [kind, *(f"{value:.1f}" for value in values)]
            for kind, values in record["milliseconds"].items()
        ]
        before, after = record["megabytes"]
        head = (
            f"{key}, {record['learner']}: {record['requests']:,} requests in "
            f"{record['seconds']:.0f} s ({record['requests'] / record['seconds']:.0f} a second), "
            f"{record['wrong']} wrong; memory {before:.0f} MB before, {after:.0f} MB after."
        )
        headers = ["request", "median, ms", "95 %, ms", "slowest, ms"]
        text = tabulate.tabulate(rows, headers, stralign="right", disable_numparse=True)
        parts.append(f"{head}\n\n{text}")
    return "\n\n".join(parts)


def main() -> None:
    """Runs the command."""
    run_command("benchmarks.load", __doc__, run, Settings, Files)


if __name__ == "__main__":
    main()
