"""Measures files that adapt without TensorFlow's Python: size, error, and how long they take.

    python -m experiments.benchmarks.devices
    python -m experiments.benchmarks.devices --learners omniglot --seconds 2

Learners are exported for five support examples and one query, as LiteRT, as LiteRT with half
precision and as ONNX. Each runs in a process of its own, and all are timed in turns. The LiteRT
interpreter is the one in TensorFlow, the same code as in the package ai-edge-litert.
"""

import contextlib
import dataclasses
import pathlib
import sys
import tempfile
import time
import warnings
from typing import Any

import numpy as np
import tabulate

from experiments.benchmarks import timing
from experiments.benchmarks.store import Store, check_known
from experiments.benchmarks.worker import Worker, WorkerError
from experiments.shared.command_line import run_command

SUPPORT = 5
SIGNATURES = ("adapt", "predict_with")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the figures depend on."""

    seconds: float = 5.0  # of timing, per file and signature
    repeats: int = 20  # timed calls at least
    threads: int = 1  # of a runtime


@dataclasses.dataclass(frozen=True)
class Selection:
    """What to measure now."""

    learners: tuple[str, ...] = ("sinusoid", "omniglot", "omniglot-head", "mini-imagenet")
    output: str = "runs/benchmarks/devices"  # folder of the results
    overwrite: bool = False  # whether to remove what is in that folder


def run(settings: Settings, selection: Selection) -> Store:
    """Measures what is not there yet, and shows the table."""
    check_known("learners", selection.learners, LEARNERS)
    store = Store(selection.output, settings, table, overwrite=selection.overwrite)
    for name in selection.learners:
        store.measure(name, lambda name=name: measure(name, settings))
    return store.shown()


def measure(name: str, settings: Settings) -> dict:
    """Exports a learner to every format, compares and times them.

    Args:
        name: One of `LEARNERS`.
        settings: How long.

    Returns:
        By format: the ``bytes`` of each file, the ``error`` of the predictions after adaptation in
        parts of the largest, and the figures of each signature.
    """
    learner, (x, y, x_query) = LEARNERS[name]()
    expected = np.asarray(learner.adapt(x, y)(x_query))
    how: dict[str, Any] = {"support": SUPPORT, "query": 1}
    records, workers = {}, {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        lite, half, onnx = (pathlib.Path(folder, file) for file in ("a.tflite", "b.tflite", "onnx"))
        learner.export_litert(lite, **how)
        learner.export_litert(half, float16=True, **how)
        learner.export_onnx(onnx, **how)
        for title, kind, path in (
            ("LiteRT", "LiteRT", lite),
            ("LiteRT, float16", "LiteRT", half),
            ("ONNX Runtime", "ONNXRuntime", onnx),
        ):
            arguments = str(path), {"x_support": x, "y_support": y}, x_query, settings.threads
            worker = stack.enter_context(Worker(f"devices:{kind}", *arguments))
            workers[title] = worker
            answer = worker.call("answer")
            files = sorted(path.iterdir()) if path.is_dir() else [path]
            records[title] = {
                "bytes": [file.stat().st_size for file in files],
                "error": float(np.abs(answer - expected).max() / np.abs(expected).max()),
            }
        for signature in SIGNATURES:
            for worker in workers.values():
                worker.call("choose", signature)
            how = {"seconds": settings.seconds, "repeats": settings.repeats}
            for title, times in timing.interleave(workers, **how).items():
                records[title][signature] = timing.summary(times)
    return {"contenders": records}


# --- runtimes -------------------------------------------------------------------------------------


class Runtime:
    """A file that adapts, in a process of its own.

    Args:
        path: The file, or the folder of its parts.
        support: The inputs of ``adapt``.
        x: The inputs of a prediction.
        threads: How many threads may compute.
    """

    def __init__(
        self, path: str, support: dict[str, np.ndarray], x: np.ndarray, threads: int
    ) -> None:
        self._functions = self.open(pathlib.Path(path), threads)
        self._inputs = {"adapt": support}
        weights = self._functions["adapt"](**support)["weights"]
        self._inputs["predict_with"] = {"x": x, "weights": weights}
        self._chosen = "predict_with"

    def open(self, path: pathlib.Path, threads: int) -> dict[str, Any]:
        """Returns the two functions by name."""
        raise NotImplementedError

    def answer(self) -> np.ndarray:
        """Returns the predictions after adaptation."""
        return self._functions["predict_with"](**self._inputs["predict_with"])["predictions"]

    def choose(self, signature: str) -> None:
        """Chooses which function is timed."""
        self._chosen = signature

    def time(self, calls: int) -> list[float]:
        """Returns the seconds of calls, after an untimed one."""
        function, inputs, seconds = self._functions[self._chosen], self._inputs[self._chosen], []
        for _ in range(calls + 1):
            start = time.perf_counter()
            function(**inputs)
            seconds.append(time.perf_counter() - start)
        return seconds[1:]


class LiteRT(Runtime):
    """A .tflite file."""

    def open(self, path: pathlib.Path, threads: int) -> dict[str, Any]:
        """Returns the two functions by name."""
        import tensorflow as tf

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the interpreter moves to another package
            self._interpreter = tf.lite.Interpreter(str(path), num_threads=threads)
        return {name: self._interpreter.get_signature_runner(name) for name in SIGNATURES}


class ONNXRuntime(Runtime):
    """A folder of two .onnx files."""

    def open(self, path: pathlib.Path, threads: int) -> dict[str, Any]:
        """Returns the two functions by name."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads

        def function(name: str) -> Any:
            providers = ["CPUExecutionProvider"]
            session = onnxruntime.InferenceSession(path / f"{name}.onnx", options, providers)
            outputs = [output.name for output in session.get_outputs()]
            return lambda **inputs: dict(zip(outputs, session.run(outputs, inputs), strict=True))

        return {name: function(name) for name in SIGNATURES}


# --- learners -------------------------------------------------------------------------------------


def _sinusoid() -> tuple[Any, tuple]:
    import keras_maml

    model = keras_maml.networks.sinusoid_regressor(seed=0)
    learner = keras_maml.MAML(model, 0.01, evaluation_steps=5)
    learner.compile(loss="mean_squared_error")
    random = np.random.default_rng(0)
    x, x_query = (random.uniform(-5, 5, [n, 1]).astype("float32") for n in (SUPPORT, 1))
    return learner, (x, np.sin(x), x_query)


def _pretrained(name: str, data: tuple, adapted_layers: str = "all") -> tuple[Any, tuple]:
    import keras_maml

    learner = keras_maml.load(name)
    learner.batch_normalization, learner.adapted_layers = "inductive", adapted_layers
    return learner, data


def _characters() -> tuple:
    import keras_maml

    episodes = keras_maml.episodes.glyphs(split="test", meta_batch_size=1)
    (x, y), (x_query, _) = next(iter(episodes.take(1)))
    return x[0].numpy(), y[0].numpy(), x_query[0, :1].numpy()


def _noise() -> tuple:
    random = np.random.default_rng(0)
    x, x_query = (random.random([n, 84, 84, 3]).astype("float32") for n in (SUPPORT, 1))
    return x, np.arange(SUPPORT, dtype="int32"), x_query


DRAWN = "omniglot-5way-1shot-drawn"
LEARNERS = {
    "sinusoid": _sinusoid,
    "omniglot": lambda: _pretrained(DRAWN, _characters()),
    "omniglot-head": lambda: _pretrained(DRAWN, _characters(), "head"),
    "mini-imagenet": lambda: _pretrained("mini-imagenet-5way-1shot", _noise()),
}
"""What is exported: a learner, and its support set and query."""


def table(records: dict[str, dict]) -> str:
    """Returns the table: a line for each learner and format."""
    rows = []
    for name, record in records.items():
        for title, figures in record["contenders"].items():
            times = [
                "{:.2f} [{:.2f}, {:.2f}]".format(
                    figures[signature]["median_ms"], *figures[signature]["quartiles_ms"]
                )
                for signature in SIGNATURES
            ]
            sizes = " + ".join(f"{size / 1000:,.0f}" for size in figures["bytes"])
            rows.append([name, title, sizes, f"{figures['error']:.1e}", *times])
    headers = ["learner", "runtime", "kB", "error", "adapt, ms [quartiles]", "predict, ms"]
    text = tabulate.tabulate(rows, headers, stralign="right", disable_numparse=True)
    return (
        f"{text}\n\nkB of ONNX: adapt.onnx + predict_with.onnx. error: of the predictions after "
        "adaptation, against TensorFlow, in parts of the largest."
    )


def main() -> None:
    """Runs the command."""
    try:
        run_command("benchmarks.devices", __doc__, run, Settings, Selection)
    except WorkerError as error:
        sys.exit(f"python -m experiments.benchmarks.devices: {error}")


if __name__ == "__main__":
    main()
