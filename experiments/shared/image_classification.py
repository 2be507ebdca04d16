"""Few-shot image classification: what the experiments on Omniglot and mini-ImageNet share.

An experiment is a data set, a network, and a row of settings per line of the paper's table 1 with
the number published there (Finn et al. 2017, section 5.2 and appendix A.1). A run trains, takes
the checkpoint that is best on validation tasks, tests it, and writes into its folder, besides what
`experiments.shared.runs` lists::

    test_tasks.csv    accuracy and loss of every test task
    results.txt       the test as a table
    learner.keras     the learner, with its optimizer
    figures/          learning curves, accuracy over inner steps, test tasks, the hardest of them
    report.html       all of it on one page

What differs from the authors' code: losses are means and the rates higher for it (see the
settings); the inner loop adapts every weight, with the offsets of batch normalisation, which are
meta-trained only there.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from experiments.shared.checkpoint import Checkpoint, duration
from experiments.shared.command_line import run_command, values_of, with_defaults
from experiments.shared.image_settings import Experiment, Settings, Task, check, task_of
from experiments.shared.report import images as report
from experiments.shared.runs import Run, as_json, defaults_of, results_of
from keras_maml import MAML, Workers, callbacks, evaluation, plots, pretrained
from keras_maml.episodes import ImageClasses
from keras_maml.episodes.sampling import check_shard
from keras_maml.files import whole, write_csv, write_text
from keras_maml.words import counted

SPLITS = ("train", "validation", "test")
RESULTS = pathlib.Path(__file__).parents[1] / "results"  # of runs that have been published
STEPS = 10  # inner steps that a test follows
PICTURES = 3  # test tasks that are drawn, and hardest ones


@dataclasses.dataclass(frozen=True)
class Files:
    """Where things are."""

    data: str | None = None  # folder of the data set, if it has one; None: see above
    output: str | None = None  # folder of the run; None: runs/, named after the settings


def main(experiment: Experiment, description: str) -> None:
    """Runs an experiment as a command: ways, shots and network choose the defaults of the rest.

    Args:
        experiment: The experiment.
        description: What ``--help`` says.
    """
    run_command(
        experiment.name,
        description,
        lambda values, files, workers: run(
            experiment, Settings(**dataclasses.asdict(values)), files, workers
        ),
        with_defaults(experiment.defaults(values_of(Task))),
        Files,
        on_workers=True,
    )


def run(
    experiment: Experiment, settings: Settings, files: Files, workers: Workers | None = None
) -> dict[str, Any] | None:
    """Trains, tests and reports; or continues, or shows what is there.

    Args:
        experiment: The experiment.
        settings: All that the results depend on.
        files: Where data and results are.
        workers: The processes that train together, by default this one; worker 0 does the rest.

    Returns:
        The content of ``results.json``; None on other workers than the first.

    Raises:
        FileExistsError: The folder holds another run, or something else.
        BlockingIOError: Another run is using the folder.
        ValueError: The data set has no such episodes, a setting is out of range, or a run is to
            be continued with other images.
    """
    load = functools.cache(lambda split: experiment.load(files.data, split=split))
    mirrored = functools.cache(lambda: load("train").with_mirrored())
    make_episodes = functools.partial(
        episodes_of,
        lambda split: mirrored() if settings.mirrored_classes and split == "train" else load(split),
        experiment,
        settings,
    )
    folder = files.output or experiment.folder(settings)
    workers = workers or Workers()
    known = results_of(folder, as_json(settings), defaults_of(settings))
    if not workers.of_first(known is not None):
        # What cannot be run fails before anything is written.
        check(settings)
        check_shard(workers.shard, settings.meta_batch_size)
        if workers.count > 1 and settings.jitter:
            raise ValueError("jitter is for one process: leave it out, or start without workers.")
        if workers.index == 0:
            print(plan(experiment, settings, files), flush=True)
        keras.utils.set_random_seed(settings.seed)
        learner = make_learner(experiment, settings)
        if settings.initial_learner and not Checkpoint(pathlib.Path(folder)).steps_done(1):
            begin_with(learner, settings.initial_learner)
        make_episodes("test", queries=max(settings.test_queries))
        validation = make_episodes("validation", tasks=settings.validation_tasks)
        checksums = {split: checksum(load(split)) for split in SPLITS}
    else:
        checksums = None
    this = Run(folder, settings, checksums, workers)
    if not this.has_finished():
        learner.workers = workers
        history = train(this, learner, settings, make_episodes, validation)
    if not this.is_first:
        return None
    if this.results is None:
        test(this, learner, experiment, settings, make_episodes, history, checksums["test"])
    page = report.write(this.folder)
    print((this.folder / "results.txt").read_text(encoding="utf-8"))
    print(f"Results, learning curve and checkpoints: {this.folder}")
    print(f"Report: {page}")
    return this.results


def plan(experiment: Experiment, settings: Settings, files: Files) -> str:
    """Says what a command will do and about how long that takes."""
    run = pathlib.Path(experiment.folder(settings)).name
    path = RESULTS / run / "results.json"
    lines = [
        f"{experiment.describe(settings)}: {settings.iterations:,} meta-iterations of "
        f"{settings.meta_batch_size} tasks, then a test on {settings.test_tasks:,} tasks.",
        "How long that takes is said after every epoch.",
    ]
    if path.exists():
        known = json.loads(path.read_text())
        share = settings.iterations / known["settings"]["iterations"]
        seconds = 3600 * known["train_hours"] * share
        lines[-1] = (
            f"That takes about {duration(seconds)} where {run} of experiments/results was made, and"
            " is said anew after every epoch. Fewer: --iterations, a multiple of "
            f"{settings.epoch_iterations:,}."
        )
    if files.data is None and experiment.without_data:
        lines.append(f"Without --data, {experiment.without_data}")
    folder = files.output or experiment.folder(settings)
    lines.append(f"All goes to {folder}. Ctrl-C stops it, and the same command continues.")
    return "\n".join(lines)


def checksum(data: ImageClasses) -> str:
    """Returns the SHA-256 of images, class after class."""
    return hashlib.sha256(data.images).hexdigest()


def make_learner(experiment: Experiment, settings: Settings) -> MAML:
    """Returns the compiled learner of a run."""
    learner = MAML(
        experiment.make_network(settings),
        settings.inner_learning_rate,
        settings.inner_steps,
        settings.evaluation_steps,
        settings.first_order,
        settings.batch_normalization,
        measure_before=False,
    )
    compile_learner(learner, make_optimizer(settings))
    return learner


def make_optimizer(settings: Settings) -> keras.optimizers.Adam:
    """Returns the outer optimizer of a run."""
    return keras.optimizers.Adam(
        learning_rate(settings),
        clipvalue=settings.clip_gradient,
        use_ema=settings.ema_momentum is not None,
        ema_momentum=settings.ema_momentum or 0.0,
    )


def compile_learner(learner: MAML, optimizer: keras.optimizers.Optimizer) -> None:
    """Compiles a classifier that returns logits."""
    learner.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )


def begin_with(learner: MAML, name: str) -> None:
    """Gives a learner the weights of another.

    Args:
        learner: The learner.
        name: The folder of a run that has finished, or a pretrained learner of `keras_maml.load`.

    Raises:
        FileNotFoundError: There is neither.
        ValueError: Its network has other weights, or its file is damaged.
    """
    file = pathlib.Path(name, pretrained.LEARNER)
    begun = pretrained.read(file) if file.is_file() else pretrained.load(name)
    weights = begun.model.get_weights()
    theirs, ours = ([w.shape for w in found] for found in (weights, learner.model.get_weights()))
    if theirs != ours:
        raise ValueError(
            f"initial_learner must have a network like that of the run, with weights of shapes "
            f"{ours}; {name} has {theirs}."
        )
    learner.model.set_weights(weights)


def learning_rate(settings: Settings) -> float | keras.optimizers.schedules.CosineDecay:
    """Returns the outer learning rate: constant, or falling in the last iterations."""
    rate, cooldown = settings.learning_rate, settings.cooldown_iterations
    if not cooldown:
        return rate
    constant = settings.iterations - cooldown  # a warm-up from the rate to the rate
    return keras.optimizers.schedules.CosineDecay(
        rate, cooldown, warmup_target=rate, warmup_steps=constant
    )


def train(
    this: Run,
    learner: MAML,
    settings: Settings,
    make_episodes: Callable[..., tf.data.Dataset],
    validation: tf.data.Dataset,
) -> list[dict[str, float]]:
    """Trains, or continues; the learner ends as it was when it was best in validation."""
    shard = this.workers.shard
    picture = next(iter(validation))
    summary = callbacks.AdaptationSummary(
        this.folder / "tensorboard",
        validation,
        tasks=settings.validation_tasks,
        figure=lambda learner: plots.episode(learner, picture, most=3),
        every=10,
    )
    reports = [keras.callbacks.TensorBoard(this.folder / "tensorboard"), summary]
    averaging = [keras.callbacks.SwapEMAWeights()] if settings.ema_momentum else []
    history = this.train(
        learner,
        lambda seen: make_episodes("train", start=seen * settings.meta_batch_size, shard=shard),
        iterations=settings.iterations,
        epoch_iterations=settings.epoch_iterations,
        monitor="val_accuracy",
        validation_data=make_episodes("validation", tasks=settings.validation_tasks, shard=shard),
        callbacks=[*averaging, *(reports if this.is_first else [])],
        verbose=2,
    )
    learner.optimizer.finalize_variable_values(learner.trainable_variables)
    return history


def test(
    this: Run,
    learner: MAML,
    experiment: Experiment,
    settings: Settings,
    make_episodes: Callable[..., tf.data.Dataset],
    history: Sequence[Mapping[str, float]],
    images_sha256: str,
) -> None:
    """Tests the learner and writes everything but the page; the results last."""
    this.set_results_aside()  # no page is to mix this test with an earlier one
    rows, tasks, tables = [], [], []
    for queries in settings.test_queries:
        episodes = make_episodes("test", queries=queries)
        steps = max(STEPS, settings.evaluation_steps)
        result = evaluation.evaluate(learner, episodes, tasks=settings.test_tasks, steps=steps)
        rows += [{"queries": queries} | row for row in result.rows()]
        tasks += [{"queries": queries} | row for row in _task_rows(result, settings)]
        tables += [f"{counted(queries, 'query image')} per class", result.to_text(), ""]
    write_csv(this.folder / "test_tasks.csv", tasks)
    with whole(this.folder / pretrained.LEARNER) as temporary:
        learner.save(temporary)
    draw(this.folder / "figures", learner, settings, make_episodes, tasks)
    published = experiment.published.get(task_of(settings))
    if published:
        steps = experiment.row(settings).evaluation_steps
        published = dataclasses.asdict(published) | {"steps": steps}
    departures = experiment.departures(settings)
    record = {
        "title": experiment.describe(settings),
        "data": experiment.data,
        "licence": experiment.licence,
        "published": published,
        "images": experiment.images,
        "images_sha256": images_sha256,
        "departures": departures,
        "train_hours": round(history[-1]["seconds"] / 3600, 2),
        "iterations_of_best_epoch": float(learner.optimizer.iterations),
    }
    headline = report.headline(record | {"settings": this.settings, "results": rows})
    write_text(this.folder / "results.txt", "\n".join([headline, *departures, "", *tables]))
    this.finish(rows, **record)


def draw(
    folder: pathlib.Path,
    learner: MAML,
    settings: Settings,
    make_episodes: Callable[..., tf.data.Dataset],
    tasks: Sequence[Mapping[str, Any]],
) -> None:
    """Draws the first test tasks and the hardest ones, with the first number of queries."""
    folder.mkdir(exist_ok=True)
    episodes = make_episodes("test", queries=settings.test_queries[0], meta_batch_size=1)
    numbers = {"example": range(PICTURES), "hardest": [r["task"] for r in report.hardest(tasks)]}
    for kind, chosen in numbers.items():
        for rank, number in enumerate(chosen[:PICTURES]):
            figure = plots.episode(learner, next(iter(episodes.skip(number))), most=3)
            plots.save(figure, folder / f"{kind}-{rank + 1}.png")


def episodes_of(
    load: Callable[[str], ImageClasses],
    experiment: Experiment,
    settings: Settings,
    split: str,
    **options: Any,
) -> tf.data.Dataset:
    """Makes the episodes of a split; each split has a seed of its own.

    Args:
        load: From a split to its images.
        experiment: Whether classes are turned at random, and how images are redrawn.
        settings: Those of the run.
        split: One of `SPLITS`.
        **options: Take the place of the settings; see `keras_maml.episodes.from_arrays`.

    Raises:
        ValueError: The images are too few for such episodes.
    """
    seeds = {"train": settings.seed, "validation": settings.seed + 1, "test": settings.seed + 2}
    sizes = {
        name: getattr(settings, name) for name in ("ways", "shots", "queries", "meta_batch_size")
    }
    options = {"seed": seeds[split], "rotations": experiment.rotations} | sizes | options
    episodes = load(split).episodes(where=f"split={split!r}", **options)
    if not settings.jitter or split == "test":
        return episodes
    numbers = {name: options[name] for name in ("seed", "meta_batch_size")}
    return experiment.jitter.of_episodes(episodes, start=options.get("start", 0), **numbers)


def _task_rows(result: evaluation.Evaluation, settings: Settings) -> list[dict[str, float]]:
    """Returns a row per task, with the learner's own batch normalisation."""
    values, step = result.values[settings.batch_normalization], settings.evaluation_steps
    columns = {
        "accuracy_before": values["accuracy"][:, 0],
        "accuracy": values["accuracy"][:, step],
        "loss": values["loss"][:, step],
    }
    return [
        {"task": task} | {name: round(float(column[task]), 4) for name, column in columns.items()}
        for task in range(result.tasks)
    ]
