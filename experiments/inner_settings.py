"""The inner learning rate and the number of inner steps: what they make of different problems.

    python -m experiments.inner_settings
    python -m experiments.inner_settings --data FOLDER

Meta-trains a small learner with every pair of a grid, for a few minutes each, on sine curves, on
glyphs and, with a folder of mini-ImageNet, on its photographs reduced to 32 x 32; then tests it
on new tasks, before and after as many steps as it was trained with. Classifiers normalise by the
statistics of the support set. It shows how far a setting that suits one problem suits another.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tabulate
import tensorflow as tf

from experiments.benchmarks.store import Store
from experiments.shared.command_line import run_command
from experiments.shared.image_classification import checksum
from experiments.shared.training_bar import TrainingBar
from keras_maml import MAML, episodes, evaluation, networks
from keras_maml.validation import check_count, check_positive, check_several

WAYS, SIZE = 5, 32
TEST = 1  # seed of the test's tasks


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the figures depend on."""

    rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)  # inner learning rates
    steps: tuple[int, ...] = (1, 3, 5)  # inner steps
    iterations: int = 400  # meta-steps of four tasks, or of 25 sine curves
    meta_rate: float = 0.001  # Adam's
    filters: int = 16  # of the classifiers
    test_tasks: int = 200
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Files:
    """What to read and to write."""

    data: str = ""  # folder of mini-ImageNet; without it there are no photographs
    output: str = "runs/inner-settings"  # folder of the results
    overwrite: bool = False  # whether to remove what is in that folder


@dataclasses.dataclass(frozen=True)
class Problem:
    """A model, its loss, and episodes to train with and to test on."""

    model: Callable[[Settings], keras.Model]
    loss: Any
    training: Callable[[], tf.data.Dataset]
    test: Callable[[], tf.data.Dataset]
    steps_factor: int = 1  # how many times as many meta-steps


def run(settings: Settings, files: Files) -> Store:
    """Trains and tests what is not there yet, and shows the table.

    Raises:
        FileExistsError: The folder holds results of other settings, or something else.
        BlockingIOError: Another run is using the folder.
        ValueError: A setting is out of range, or results are to be continued with other images.
    """
    check(settings)
    splits = ("train", "test") if files.data else ()
    data = {split: reduced(files.data, split) for split in splits}
    checksums = {split: checksum(classes) for split, classes in data.items()} or None
    store = Store(files.output, settings, table, checksums, overwrite=files.overwrite)
    for name, problem in problems(settings, data).items():
        for steps in settings.steps:
            for rate in settings.rates:
                store.measure(
                    f"{name}, {steps} steps, rate {rate:g}",
                    functools.partial(measure, settings, name, problem, steps, rate),
                )
    return store.shown()


def check(settings: Settings) -> None:
    """Raises ValueError where settings are out of range."""
    for name in ("iterations", "filters", "test_tasks"):
        check_count(name, getattr(settings, name), minimum=1)
    check_several("rates", settings.rates, check_positive)
    check_several("steps", settings.steps, functools.partial(check_count, minimum=1))
    check_positive("meta_rate", settings.meta_rate)
    check_count("seed", settings.seed)
    if settings.seed == TEST:
        raise ValueError(f"seed must not be that of the test's tasks, got {TEST}.")


def problems(settings: Settings, data: Mapping[str, episodes.ImageClasses]) -> dict[str, Problem]:
    """Returns the problems by name, photographs where their training and test classes are given."""
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    sizes = {"ways": WAYS, "shots": 1, "queries": 5, "meta_batch_size": 4}
    test = {**sizes, "seed": TEST}  # without end: any number of tasks is taken
    found = {
        "sinusoid": Problem(
            lambda settings: networks.sinusoid_regressor(seed=settings.seed),
            "mean_squared_error",
            lambda: episodes.sinusoid(seed=settings.seed),
            lambda: episodes.sinusoid(seed=TEST),
            5,
        ),
        "glyphs": Problem(
            lambda settings: networks.omniglot_classifier(WAYS, settings.filters, settings.seed),
            crossentropy,
            lambda: episodes.glyphs(**sizes, seed=settings.seed),
            lambda: episodes.glyphs(**test, split="test"),
        ),
    }
    if data:
        found["photographs"] = Problem(
            lambda settings: networks.mini_imagenet_classifier(
                WAYS, settings.filters, (SIZE, SIZE, 3), settings.seed
            ),
            crossentropy,
            lambda: data["train"].episodes(**sizes, seed=settings.seed),
            lambda: data["test"].episodes(**test),
        )
    return found


def reduced(folder: str, split: str) -> episodes.ImageClasses:
    """Returns the classes of a split of mini-ImageNet with small images."""
    classes = episodes.load_mini_imagenet(pathlib.Path(folder), split=split)
    small = [
        tf.image.resize(part, (SIZE, SIZE), antialias=True).numpy().round().astype("uint8")
        for part in np.array_split(classes.images, max(1, len(classes.images) // 1000))
    ]
    return dataclasses.replace(classes, images=np.concatenate(small))


def measure(settings: Settings, name: str, problem: Problem, steps: int, rate: float) -> dict:
    """Trains a learner, and tests it before and after adaptation."""
    keras.utils.set_random_seed(settings.seed)
    learner = MAML(problem.model(settings), rate, steps, batch_normalization="inductive")
    metrics = [] if problem.loss == "mean_squared_error" else ["accuracy"]
    learner.compile(keras.optimizers.Adam(settings.meta_rate), problem.loss, metrics=metrics)
    record = {"problem": name, "steps": steps, "rate": rate}
    try:
        count = settings.iterations * problem.steps_factor
        bar = TrainingBar(count, name)
        learner.fit(problem.training(), steps_per_epoch=count, callbacks=[bar], verbose=0)
    except FloatingPointError as error:
        return record | {"diverged": str(error)}
    result = evaluation.evaluate(learner, problem.test(), tasks=settings.test_tasks)
    for metric in ("loss", *metrics):
        mean, interval = result.curve(metric), result.curve(metric, "ci95")
        record[metric] = {
            "before": float(mean[0]),
            "after": float(mean[-1]),
            "ci95": float(interval[-1]),
        }
    return record


def table(records: dict[str, dict]) -> str:
    """Returns the tables: for each problem a row for each number of steps."""
    parts = []
    for problem in dict.fromkeys(r["problem"] for r in records.values()):
        own = {(r["steps"], r["rate"]): r for r in records.values() if r["problem"] == problem}
        rates = sorted({rate for _, rate in own})
        rows = [
            [steps, *(cell(own.get((steps, rate))) for rate in rates)]
            for steps in sorted({steps for steps, _ in own})
        ]
        what = "accuracy" if any("accuracy" in r for r in own.values()) else "loss"
        headers = ["steps", *(f"rate {rate:g}" for rate in rates)]
        text = tabulate.tabulate(rows, headers, stralign="right", disable_numparse=True)
        parts.append(f"{problem}: {what} before, after adaptation ± 95 % interval\n{text}")
    return "\n\n".join(parts)


def cell(record: dict | None) -> str:
    """Returns what the table says of a pair of settings."""
    if record is None:
        return ""
    if "diverged" in record:
        return "diverged"
    if "accuracy" in record:
        figures = {name: 100 * value for name, value in record["accuracy"].items()}
        return "{before:.1f}, {after:.1f} ± {ci95:.1f} %".format(**figures)
    return "{before:.2f}, {after:.2f} ± {ci95:.2f}".format(**record["loss"])


def main() -> None:
    """Runs the command."""
    run_command("inner_settings", __doc__, run, Settings, Files)


if __name__ == "__main__":
    main()
