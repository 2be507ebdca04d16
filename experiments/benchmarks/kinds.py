"""Times models of other kinds: a frozen backbone under a head, and recurrent ones.

    python -m experiments.benchmarks.kinds

For each model: the seconds of the first training step, compilation included, and of later ones; the
first `adapt` and later ones. A frozen backbone should cost one forward pass over all images, so
beside it stands what one does by hand: that pass, and a learner of the head alone.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tabulate
from keras import layers

from experiments.benchmarks.store import Store
from experiments.shared.command_line import run_command
from keras_maml import MAML

WAYS, SHOTS, QUERIES, TASKS = 5, 5, 15, 4


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the figures depend on."""

    repeats: int = 10  # timed steps


@dataclasses.dataclass(frozen=True)
class Selection:
    """What to measure now."""

    output: str = "runs/benchmarks/kinds"  # folder of the results
    overwrite: bool = False  # whether to remove what is in that folder


def run(settings: Settings, selection: Selection) -> Store:
    """Measures what is not there yet, and shows the table."""
    store = Store(selection.output, settings, table, overwrite=selection.overwrite)
    for name, measure in KINDS.items():
        store.measure(name, lambda measure=measure: measure(settings))
    return store.shown()


def backbone() -> keras.Model:
    """Returns MobileNetV2 for images of 96 x 96, frozen, up to the mean over positions."""
    model = keras.applications.MobileNetV2(
        (96, 96, 3), include_top=False, weights=None, pooling="avg"
    )
    model.trainable = False
    return model


def images(shape: tuple[int, ...]) -> Any:
    """Returns a meta-batch of noise with labels: 5 ways, 5 shots, 15 queries, 4 tasks."""
    random = np.random.default_rng(0)

    def half(of_each: int) -> tuple[np.ndarray, np.ndarray]:
        count = WAYS * of_each
        labels = np.tile(np.arange(count, dtype="int32") % WAYS, (TASKS, 1))
        return random.random((TASKS, count, *shape), "float32"), labels

    return half(SHOTS), half(QUERIES)


def learner_of(model: keras.Model, steps: int) -> MAML:
    """Returns a compiled learner of a classifier."""
    learner = MAML(model, 0.01, inner_steps=steps, batch_normalization="inductive")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile(keras.optimizers.Adam(1e-3), loss)
    return learner


def times(settings: Settings, step: Callable[[], Any]) -> tuple[float, float]:
    """Returns the seconds of the first call, and the median of later ones."""
    seconds = []
    for _ in range(1 + settings.repeats):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds[0], float(np.median(seconds[1:]))


def measure_learner(settings: Settings, learner: MAML, episodes: Any) -> dict[str, float]:
    """Times training steps and adaptation of a learner."""
    first, step = times(settings, lambda: learner.train_on_batch(episodes))
    x, y = episodes[0]
    first_adapt, adapt = times(settings, lambda: learner.adapt(x[0], y[0]))
    return {"first": first, "step": step, "first_adapt": first_adapt, "adapt": adapt}


def frozen(settings: Settings) -> dict[str, float]:
    """Measures a head on a frozen backbone as one model."""
    keras.utils.set_random_seed(0)
    features = backbone()
    model = keras.Sequential([keras.Input((96, 96, 3)), features, layers.Dense(WAYS)])
    return measure_learner(settings, learner_of(model, 5), images((96, 96, 3)))


def by_hand(settings: Settings) -> dict[str, float]:
    """Measures the same in two parts: one pass of the backbone, and a learner of the head."""
    keras.utils.set_random_seed(0)
    features = backbone()
    head = learner_of(keras.Sequential([keras.Input((1280,)), layers.Dense(WAYS)]), 5)
    support, query = images((96, 96, 3))

    def of_images(x: np.ndarray) -> np.ndarray:
        return features.predict_on_batch(x.reshape(-1, 96, 96, 3)).reshape(*x.shape[:2], -1)

    def step() -> None:
        both = of_images(np.concatenate([support[0], query[0]], 1))
        cut = support[0].shape[1]
        head.train_on_batch(((both[:, :cut], support[1]), (both[:, cut:], query[1])))

    first, later = times(settings, step)
    first_adapt, adapt = times(
        settings, lambda: head.adapt(of_images(support[0][:1])[0], support[1][0])
    )
    return {"first": first, "step": later, "first_adapt": first_adapt, "adapt": adapt}


def recurrent(settings: Settings) -> dict[str, float]:
    """Measures an LSTM of 16 units over 64 steps of time, five inner steps, second order."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64, 3)), layers.LSTM(16), layers.Dense(WAYS)])
    return measure_learner(settings, learner_of(model, 5), images((64, 3)))


KINDS = {
    "MobileNetV2, frozen, and a head": frozen,
    "the same by hand": by_hand,
    "LSTM, 64 steps of time": recurrent,
}


def table(records: dict[str, dict]) -> str:
    """Returns the table: a row for each model."""
    rows = [
        [name, f"{r['first']:.1f}", f"{1e3 * r['step']:.0f}"]
        + [f"{r['first_adapt']:.1f}", f"{1e3 * r['adapt']:.0f}"]
        for name, r in records.items()
    ]
    headers = ["model", "first step, s", "step, ms", "first adapt, s", "adapt, ms"]
    return tabulate.tabulate(rows, headers, stralign="right", disable_numparse=True)


def main() -> None:
    """Runs the command."""
    run_command("benchmarks.kinds", __doc__, run, Settings, Selection)


if __name__ == "__main__":
    main()
