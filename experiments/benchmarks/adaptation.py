"""Times `adapt` and `predict` in Python: many tasks of many sizes, one after another.

    python -m experiments.benchmarks.adaptation

For each network a learner adapts to support sets of 5 to 24 images in turn and predicts 3 more.
What the first call takes, tracing included, and the first of every other size, is told apart from
the later calls, and what the process's memory grows by in these.
"""

import dataclasses
import gc
import time

import keras
import numpy as np
import tabulate

from experiments.benchmarks.memory import megabytes
from experiments.benchmarks.store import Store, check_known
from experiments.shared.command_line import run_command
from keras_maml import MAML, networks

SIZES = range(5, 25)
WAYS, QUERIES = 5, 3


NETWORKS = {
    "without convolutions": lambda: networks.fully_connected_classifier(WAYS),
    "16 filters": lambda: networks.omniglot_classifier(WAYS, filters=16),
    "64 filters": lambda: networks.omniglot_classifier(WAYS),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the figures depend on."""

    calls: int = 200  # of adapt and predict, after one of every size
    steps: int = 3  # inner steps


@dataclasses.dataclass(frozen=True)
class Selection:
    """What to measure now."""

    networks: tuple[str, ...] = (*NETWORKS,)
    output: str = "runs/benchmarks/adaptation"  # folder of the results
    overwrite: bool = False  # whether to remove what is in that folder


def run(settings: Settings, selection: Selection) -> Store:
    """Measures what is not there yet, and shows the table."""
    check_known("networks", selection.networks, NETWORKS)
    store = Store(selection.output, settings, table, overwrite=selection.overwrite)
    for name in selection.networks:
        store.measure(name, lambda name=name: measure(settings, name))
    return store.shown()


def measure(settings: Settings, name: str) -> dict:
    """Times the calls of one network.

    Args:
        settings: How many calls.
        name: One of `NETWORKS`.

    Returns:
        Seconds of the first call, of the first of every other size and of the later calls, the
        parts of these, and by how many megabytes the process grew in them.
    """
    keras.utils.set_random_seed(0)
    learner = MAML(NETWORKS[name](), 0.4, evaluation_steps=settings.steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile("adam", loss, metrics=["accuracy"])
    random = np.random.default_rng(0)
    pictures = random.random([SIZES[-1], 28, 28, 1], "float32")
    labels = np.arange(SIZES[-1]) % WAYS

    def call(size: int) -> tuple[float, float]:
        start = time.perf_counter()
        adapted = learner.adapt(pictures[:size], labels[:size])
        middle = time.perf_counter()
        adapted.predict(pictures[:QUERIES], verbose=0)
        return middle - start, time.perf_counter() - middle

    first, *sizes = [sum(call(size)) for size in SIZES]
    gc.collect()
    before = megabytes()
    later = np.array([call(SIZES[i % len(SIZES)]) for i in range(settings.calls)])
    gc.collect()
    return {
        "parameters": learner.model.count_params(),
        "first_seconds": first,
        "first_of_a_size_ms": list(1e3 * np.array(sizes)),
        "adapt_ms": list(1e3 * later[:, 0]),
        "predict_ms": list(1e3 * later[:, 1]),
        "growth_mb": megabytes() - before,
    }


def table(records: dict[str, dict]) -> str:
    """Returns the table: a row for each network."""
    rows = []
    for name, record in records.items():
        adapt, predict = (np.array(record[f"{part}_ms"]) for part in ("adapt", "predict"))
        rows.append(
            [
                name,
                record["parameters"],
                f"{record['first_seconds']:.1f}",
                f"{np.median(record['first_of_a_size_ms']):.0f}",
                "{:.1f} [{:.1f}, {:.1f}]".format(*np.percentile(adapt + predict, [50, 10, 90])),
                f"{np.median(adapt):.1f}",
                f"{np.median(predict):.1f}",
                f"{record['growth_mb']:.0f}",
            ]
        )
    headers = ["network", "weights", "first, s", "first of a size, ms", "later, ms [10, 90 %]"]
    headers += ["adapt, ms", "predict, ms", "growth, MB"]
    return tabulate.tabulate(rows, headers, stralign="right", disable_numparse=True)


def main() -> None:
    """Runs the command."""
    run_command("benchmarks.adaptation", __doc__, run, Settings, Selection)


if __name__ == "__main__":
    main()
