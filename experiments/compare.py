"""Algorithms of the family side by side: they learn from the same episodes, with several seeds.

    python -m experiments.compare --glyphs
    python -m experiments.compare --data FOLDER --ways 20 --algorithms maml anil --minutes 30
    python -m experiments.compare --mini-imagenet --data FOLDER --algorithms maml++ --minutes 60

FOLDER holds Omniglot's images_background.zip and images_evaluation.zip, or with --mini-imagenet
what `experiments.mini_imagenet` takes; glyphs need no data. A seed is that of initial weights and
training episodes; the tasks of validation and test are the same for all. Of each training the
checkpoint that is best on validation tasks is tested. --minutes gives every training the same time,
--iterations the same number of meta-iterations. The output has a table and a picture
(comparison.csv, results.txt, figures/, report.html). More --algorithms or --seeds, or more
--iterations, continue a comparison.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import simple_parsing
import tensorflow as tf

from experiments import glyphs, mini_imagenet, omniglot
from experiments.shared import image_settings
from experiments.shared.algorithms import ALGORITHMS, FAMILY
from experiments.shared.checkpoint import duration
from experiments.shared.command_line import run_command, values_of, with_defaults
from experiments.shared.comparison_table import summary, times
from experiments.shared.image_classification import SPLITS, checksum, episodes_of
from experiments.shared.image_settings import Experiment, Task
from experiments.shared.report import comparison as report
from experiments.shared.runs import Run, as_json, defaults_of, results_of
from experiments.shared.training_clock import TrainingClock
from keras_maml import MAML, evaluation
from keras_maml.algorithm.objective import BATCH_NORMALIZATIONS
from keras_maml.files import read_csv, write_csv, write_json, write_text
from keras_maml.validation import check_choice, check_count, check_positive, check_several, one_of
from keras_maml.words import counted


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the defaults of the settings depend on."""

    glyphs: bool = simple_parsing.field(  # classify glyphs, which need no data, or Omniglot
        default=False, negative_prefix="--no-"
    )
    mini_imagenet: bool = simple_parsing.field(  # classify photographs instead of characters
        default=False, negative_prefix="--no-"
    )
    ways: int = 5  # classes in an episode
    shots: int = 1  # support images per class


@dataclasses.dataclass(frozen=True)
class Settings(Sizes):
    """Settings of a comparison; the defaults are MAML's on these data, see their experiment."""

    algorithms: tuple[str, ...] = FAMILY  # which to train
    seeds: tuple[int, ...] = (0, 1, 2)  # of initial weights and training episodes
    minutes: float | None = None  # of training, for each algorithm and seed, instead of iterations
    target_accuracy: float = 0.9  # on validation tasks; how soon it is reached is in the table
    queries: int = 1  # query images per class, in training and validation
    inner_learning_rate: float = 2.0  # of algorithms that have no other, see shared/algorithms.py
    inner_steps: int = 1  # of these in training
    evaluation_steps: int = 3  # of these in validation and test
    batch_normalization: str = "transductive"  # or inductive
    filters: int = 64  # of each convolution
    meta_batch_size: int = 32  # tasks per meta-iteration
    learning_rate: float = 0.001  # of the outer Adam
    iterations: int = 60_000  # meta-iterations
    epoch_iterations: int = 500  # between checkpoints
    validation_tasks: int = 320  # after every epoch
    test_tasks: int = 1_000  # in the end
    test_queries: int = 1  # query images per class in the test


@dataclasses.dataclass(frozen=True)
class Files:
    """Where things are."""

    data: str | None = None  # folder of Omniglot or mini-ImageNet
    output: str | None = None  # folder of the comparison; None: runs/, named after data and sizes


def main() -> None:
    """Runs a comparison as a command."""
    run_command(
        "compare",
        __doc__,
        lambda values, files: run(Settings(**dataclasses.asdict(values)), files),
        with_defaults(defaults(values_of(Sizes))),
        Files,
    )


def experiment_of(sizes: Sizes) -> Experiment:
    """Returns the experiment whose data and network are taken."""
    if sizes.mini_imagenet:
        return mini_imagenet.EXPERIMENT
    return glyphs.EXPERIMENT if sizes.glyphs else omniglot.EXPERIMENT


def defaults(sizes: Sizes) -> Settings:
    """Returns the settings of data and sizes: those of MAML."""
    row = experiment_of(sizes).defaults(Task(sizes.ways, sizes.shots))
    names = {f.name for f in dataclasses.fields(Settings)} & {
        f.name for f in dataclasses.fields(row)
    }
    values = {name: getattr(row, name) for name in names - {"ways", "shots", "test_queries"}}
    return Settings(**dataclasses.asdict(sizes), **values, test_queries=row.test_queries[0])


def of_images(settings: Settings, seed: int = 0) -> image_settings.Settings:
    """Returns what a training has in common with an experiment on images."""
    row = experiment_of(settings).defaults(Task(settings.ways, settings.shots))
    names = {field.name for field in dataclasses.fields(row)}
    values = {k: v for k, v in dataclasses.asdict(settings).items() if k in names}
    return dataclasses.replace(
        row, **values | {"test_queries": (settings.test_queries,), "seed": seed}
    )


def check(settings: Settings, files: Files) -> None:
    """Raises ValueError where settings do not make a comparison."""
    if settings.glyphs == (files.data is not None):
        raise ValueError(
            "Give either --data, the folder of Omniglot or mini-ImageNet, or --glyphs, not "
            + ("both." if settings.glyphs else "neither.")
        )
    if settings.glyphs and settings.mini_imagenet:
        raise ValueError("Give --glyphs or --mini-imagenet with --data, not both.")
    check_several("algorithms", settings.algorithms, one_of([*ALGORITHMS]))
    check_several("seeds", settings.seeds, check_count)
    if settings.minutes is not None:
        check_positive("minutes", settings.minutes)
    check_positive("target_accuracy", settings.target_accuracy)
    check_choice("batch_normalization", settings.batch_normalization, BATCH_NORMALIZATIONS)
    image_settings.check(of_images(settings))


def run(settings: Settings, files: Files) -> dict[str, Any]:
    """Trains, tests and reports; or continues, or shows what is there.

    Args:
        settings: All that the results depend on.
        files: Where data and results are.

    Returns:
        The content of ``results.json``.

    Raises:
        FileExistsError: The folder holds another comparison, or something else.
        BlockingIOError: Another one is using the folder.
        ValueError: A setting is out of range, the data have no such episodes, or a comparison is
            to be continued with other images.
    """
    check(settings, files)
    experiment = experiment_of(settings)
    folder = files.output or f"{experiment.folder(of_images(settings))}-comparison"
    checksums = None
    if results_of(folder, as_json(settings), defaults_of(settings)) is None:
        print(plan(settings, folder), flush=True)
        load = functools.cache(lambda split: experiment.load(files.data, split=split))
        make_episodes = functools.partial(episodes_of, load, experiment, of_images(settings))
        # What cannot be drawn fails before anything is written.
        make_episodes("train")
        validation = make_episodes("validation", tasks=settings.validation_tasks)
        make_episodes("test", queries=settings.test_queries)
        checksums = {split: checksum(load(split)) for split in SPLITS}
    this = Run(folder, settings, checksums)
    if this.results is None:
        pairs = [(name, seed) for seed in settings.seeds for name in settings.algorithms]
        for number, (name, seed) in enumerate(pairs):
            if tested(this.folder, settings, name, seed) is None:
                where = f"{ALGORITHMS[name].title}, seed {seed} ({number + 1} of {len(pairs)})"
                result = train_and_test(
                    this, settings, name, seed, make_episodes, validation, where
                )
                write_json(result_path(this.folder, name, seed), result)
                print(f"{where}: {np.mean(result['accuracy']):.2%} of test images.", flush=True)
        finish(this, settings, experiment, checksums["test"])
    page = report.write(this.folder)
    print((this.folder / "results.txt").read_text(encoding="utf-8"))
    print(f"Results and picture: {this.folder}")
    print(f"Report: {page}")
    return this.results


def plan(settings: Settings, folder: str) -> str:
    """Says what a command will do."""
    count = len(settings.algorithms) * len(settings.seeds)
    title = experiment_of(settings).describe(of_images(settings))
    each = f"{settings.iterations:,} meta-iterations"
    total = f"{count * settings.iterations:,} in all"
    if settings.minutes is not None:
        each = duration(60 * settings.minutes)
        total = f"{duration(60 * settings.minutes * count)} in all, compilation and tests besides"
    return (
        f"{title}: {', '.join(settings.algorithms)}, with "
        f"{counted(len(settings.seeds), 'seed')} each.\n"
        f"{counted(count, 'training')} of {each} ({total}), {settings.meta_batch_size} tasks "
        f"per meta-iteration, and after each a test on {settings.test_tasks:,} tasks.\n"
        f"All goes to {folder}. Ctrl-C stops it, and the same command continues."
    )


def train_and_test(
    this: Run,
    settings: Settings,
    name: str,
    seed: int,
    make_episodes: Callable[..., tf.data.Dataset],
    validation: tf.data.Dataset,
    where: str,
) -> dict[str, Any]:
    """Returns the result of one algorithm with one seed; of its learner only programs are left."""
    learner, stopped = train(this, settings, name, seed, make_episodes, validation, where)
    episodes = make_episodes("test", queries=settings.test_queries)
    result = {"made_with": made_with(settings), "stopped": stopped}
    return result | measure(learner, episodes, settings)


def train(
    this: Run,
    settings: Settings,
    name: str,
    seed: int,
    make_episodes: Callable[..., tf.data.Dataset],
    validation: tf.data.Dataset,
    where: str,
) -> tuple[MAML, str | None]:
    """Trains one algorithm with one seed, or continues.

    Returns:
        The learner as it was when it was best in validation, and what has ended its training
        early: a loss that is not finite is a result, and the others go on.
    """
    common = of_images(settings, seed)
    keras.utils.set_random_seed(seed)
    algorithm = ALGORITHMS[name]
    learner = algorithm.make_learner(experiment_of(settings).make_network(common), common)
    clock = TrainingClock(None if settings.minutes is None else 60 * settings.minutes)
    try:
        this.train(
            learner,
            lambda seen: algorithm.training_episodes(
                make_episodes("train", seed=seed, start=seen * settings.meta_batch_size)
            ),
            iterations=settings.iterations if settings.minutes is None else None,
            epoch_iterations=settings.epoch_iterations,
            monitor="val_accuracy",
            name=part(name, seed),
            clock=clock,
            validation_data=validation,
            callbacks=[Progress(clock, settings, where)],
            verbose=0,
        )
    except FloatingPointError as error:
        print(f"{where}: {error}", flush=True)
        best = this.folder / part(name, seed) / "checkpoints" / "best.weights.h5"
        if best.exists():
            learner.load_weights(best)
        return learner, str(error)
    return learner, None


class Progress(keras.callbacks.Callback):
    """Says after every epoch how far a training is."""

    def __init__(self, clock: TrainingClock, settings: Settings, where: str) -> None:
        super().__init__()
        self.clock, self.settings, self.where = clock, settings, where

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Prints a line."""
        done = int(self.model.optimizer.iterations)
        if self.clock.limit is None:
            rest = (self.settings.iterations - done) * logs["step_seconds"]
        else:
            rest = max(self.clock.limit - self.clock.seconds, 0)
        print(
            f"{self.where}: {done:,} meta-iterations, {logs['val_accuracy']:.1%} in validation, "
            f"{logs['step_seconds']:.3f} s per step, about {duration(rest)} of training remain.",
            flush=True,
        )


def measure(learner: MAML, episodes: tf.data.Dataset, settings: Settings) -> dict[str, list[float]]:
    """Returns accuracy and loss of every test task, after the steps the algorithm is judged by."""
    mode = settings.batch_normalization
    result = evaluation.evaluate(
        learner, episodes, tasks=settings.test_tasks, batch_normalizations=[mode]
    )
    values = result.values[mode]
    return {name: values[name][:, -1].round(6).tolist() for name in ("accuracy", "loss")}


def part(name: str, seed: int) -> str:
    """Returns the folder of a training, in that of the comparison."""
    return f"{name}-{seed}"


def result_path(folder: pathlib.Path, name: str, seed: int) -> pathlib.Path:
    """Returns where the result of a training is."""
    return folder / part(name, seed) / "result.json"


def made_with(settings: Settings) -> dict[str, Any]:
    """Returns the settings that may have changed since a test, which is then to be done again."""
    values = as_json(settings)
    return {k: v for k, v in values.items() if k == "iterations" or k.startswith("test_")}


def tested(folder: pathlib.Path, settings: Settings, name: str, seed: int) -> dict[str, Any] | None:
    """Returns the result of a training that has ended; None before."""
    path = result_path(folder, name, seed)
    result = json.loads(path.read_text()) if path.exists() else None
    return result if result and result["made_with"] == made_with(settings) else None


def finish(this: Run, settings: Settings, experiment: Experiment, images_sha256: str) -> None:
    """Writes table and results."""
    this.set_results_aside()  # no page is to mix this table with an earlier one
    rows, common = [], of_images(settings)
    for name in settings.algorithms:
        results = [tested(this.folder, settings, name, seed) for seed in settings.seeds]
        paths = [this.folder / part(name, seed) / "history.csv" for seed in settings.seeds]
        histories = [read_csv(path) if path.exists() else [] for path in paths]
        row = {"algorithm": name, "title": ALGORITHMS[name].title}
        row |= summary([result["accuracy"] for result in results])
        row |= times(histories, settings.target_accuracy)
        rows.append(row | {"stopped": sum(bool(result["stopped"]) for result in results)})
    write_csv(this.folder / "comparison.csv", rows)
    record = {
        "title": f"{experiment.describe(common)}: algorithms compared",
        "data": experiment.data,
        "licence": experiment.licence,
        "images_sha256": images_sha256,
        "arguments": {name: ALGORITHMS[name].description(common) for name in settings.algorithms},
    }
    text = report.to_text(record | {"settings": this.settings, "results": rows})
    write_text(this.folder / "results.txt", text)
    this.finish(rows, **record)


if __name__ == "__main__":
    main()
