"""Measures a store of many customers: their size, how fast they adapt and are predicted for.

    python -m experiments.benchmarks.customers
    python -m experiments.benchmarks.customers --customers 1000

Customers draw five characters each, and the Omniglot network adapts its head to them. All adapt in
one call of `Personalizer.adapt_many` into an SQLite file; then `predict_many` predicts one drawing
each for customers in random order: once kept as float32, once as float16.
"""

import dataclasses
import pathlib
import sys
import tempfile
import time

import numpy as np
import tabulate

from experiments.benchmarks import memory
from experiments.benchmarks.store import Store
from experiments.benchmarks.worker import Worker, WorkerError
from experiments.shared.command_line import run_command

LEARNER = "omniglot-5way-1shot-drawn"
PRECISIONS = ("float32", "float16")
DRAWN = 1000
"""Different customers: with more, what takes the memory would be drawings."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the figures depend on."""

    customers: int = 10_000
    predictions: int = 20_000
    batch_size: int = 256  # of the personalizer


@dataclasses.dataclass(frozen=True)
class Files:
    """Where things are."""

    output: str = "runs/benchmarks/customers"  # folder of the results
    overwrite: bool = False  # whether to remove what is in that folder


def run(settings: Settings, files: Files) -> Store:
    """Measures what is not there yet, and shows the table."""
    store = Store(files.output, settings, table, overwrite=files.overwrite)
    store.measure("customers", lambda: measure(settings))
    return store.shown()


def measure(settings: Settings) -> dict:
    """Keeps customers in both precisions.

    Args:
        settings: How many.

    Returns:
        The figures by precision; ``same`` are the answers that are those of float32.
    """
    records, answers = {}, {}
    for precision in PRECISIONS:
        with (
            tempfile.TemporaryDirectory() as folder,
            # A process each, whose memory begins at the same.
            Worker(
                "customers:Customers",
                str(pathlib.Path(folder, "customers.sqlite")),
                settings.customers,
                settings.batch_size,
                precision == "float16",
            ) as worker,
        ):
            adapted = worker.call("adapt")
            predicted, answers[precision] = worker.call("predict", settings.predictions)
            same = float(np.mean(answers[precision] == answers[PRECISIONS[0]]))
            records[precision] = adapted | predicted | {"same": same}
    return {"customers": settings.customers, "precisions": records}


class Customers:
    """A store in a process of its own.

    Args:
        path: The SQLite file.
        customers: How many.
        batch_size: How many adapt, or are predicted for, at once.
        half_precision: Whether they are kept as float16.
    """

    def __init__(self, path: str, customers: int, batch_size: int, half_precision: bool) -> None:
        import keras_maml
        from keras_maml.serving.personalization import Personalizer
        from keras_maml.serving.stores import SQLiteStore

        self._path = pathlib.Path(path)
        learner = keras_maml.load(LEARNER)
        learner.adapted_layers = "head"
        episodes = keras_maml.episodes.glyphs(split="test", meta_batch_size=DRAWN)
        (x, y), (x_query, _) = next(iter(episodes.take(1)))
        x, y, self._x_query = x.numpy(), y.numpy(), x_query.numpy()
        # As many as asked for: the same drawings again, for customers with names of their own.
        index = np.arange(customers) % DRAWN
        self._x, self._y = x[index], y[index]
        self._names = [f"customer-{number}" for number in range(customers)]
        learner.adapt(x[0], y[0])
        self._personalizer = Personalizer(
            learner,
            SQLiteStore(path),
            half_precision=half_precision,
            batch_size=batch_size,
        )
        few = slice(batch_size)
        self._personalizer.adapt_many(self._names[few], self._x[few], self._y[few])
        self._personalizer.predict_many(self._names[few], self._x[few])

    def adapt(self) -> dict:
        """Adapts to all customers in one call."""
        memory.reset_peak()
        before, start = memory.megabytes(), time.perf_counter()
        self._personalizer.adapt_many(self._names, self._x, self._y)
        seconds = time.perf_counter() - start
        (record,) = self._personalizer.store.get(self._names[:1])
        return {
            "adapt_seconds": seconds,
            "adapt_megabytes": memory.megabytes("peak") - before,
            "record_bytes": len(record),
            "file_bytes": self._path.stat().st_size / len(self._names),
        }

    def predict(self, count: int) -> tuple[dict, np.ndarray]:
        """Predicts a drawing each for customers in random order; returns the classes as well."""
        random = np.random.default_rng(0)
        who = random.integers(len(self._names), size=count)
        which = random.integers(self._x_query.shape[1], size=len(who))
        x = self._x_query[who % DRAWN, which][:, None]
        names = [self._names[number] for number in who]
        memory.reset_peak()
        before, start = memory.megabytes(), time.perf_counter()
        logits = self._personalizer.predict_many(names, x)[:, 0]
        seconds = time.perf_counter() - start
        figures = {
            "predictions": len(who),
            "predict_seconds": seconds,
            "predict_megabytes": memory.megabytes("peak") - before,
        }
        return figures, logits.argmax(-1)


def table(records: dict[str, dict]) -> str:
    """Returns the table: a line for each precision."""
    (record,) = records.values()
    rows = [
        [
            precision,
            f"{figures['record_bytes']:,}",
            f"{figures['file_bytes']:,.0f}",
            f"{figures['adapt_seconds']:.1f}",
            f"{figures['adapt_megabytes']:.0f}",
            f"{figures['predictions'] / figures['predict_seconds']:,.0f}",
            f"{figures['predict_megabytes']:.0f}",
            f"{100 * figures['same']:.2f}",
        ]
        for precision, figures in record["precisions"].items()
    ]
    headers = ["kept as", "bytes", "in the file", f"adapt {record['customers']:,}, s", "MB"]
    headers += ["predictions/s", "MB", "same answers, %"]
    text = tabulate.tabulate(rows, headers, stralign="right", disable_numparse=True)
    return (
        f"{text}\n\nbytes: of a customer's record, and of the SQLite file for each. MB: the peak "
        "of the memory above that before the call."
    )


def main() -> None:
    """Runs the command."""
    try:
        run_command("benchmarks.customers", __doc__, run, Settings, Files)
    except WorkerError as error:
        sys.exit(f"python -m experiments.benchmarks.customers: {error}")


if __name__ == "__main__":
    main()
