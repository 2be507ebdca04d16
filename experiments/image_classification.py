"""Few-shot image classification: what the experiments on Omniglot and mini-ImageNet share.

An experiment is a data set, a network, and a row of settings per line of the paper's table 1 with
the number published there (Finn et al. 2017, section 5.2 and appendix A.1). A run trains, takes
the checkpoint that is best on validation tasks, tests it, and writes into its folder, besides what
`experiments.runs` lists::

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
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import simple_parsing
import tensorflow as tf

from experiments.command_line import run_command, with_defaults
from experiments.report import images as report
from experiments.runs import Run, as_json, check_epochs, defaults_of, results_of
from keras_maml import MAML, callbacks, evaluation, plots
from keras_maml.episodes import ImageClasses
from keras_maml.files import whole, write_csv, write_text
from keras_maml.validation import check_count, check_positive

SPLITS = ("train", "validation", "test")
STEPS = 10  # inner steps that a test follows
PICTURES = 3  # test tasks that are drawn, and hardest ones


@dataclasses.dataclass(frozen=True)
class Task:
    """What makes a row of table 1."""

    ways: int = 5  # classes in an episode
    shots: int = 1  # support images per class
    convolutions: bool = simple_parsing.field(  # in the network, or dense layers alone
        default=True, negative_prefix="--no-"
    )
    first_order: bool = simple_parsing.field(  # stop the inner gradient
        default=False, negative_prefix="--no-"
    )


@dataclasses.dataclass(frozen=True)
class Settings(Task):
    """Settings of a run.

    The defaults of the class are those of Omniglot, 5-way 1-shot, those of a command of its row.
    The authors divide the sum of the losses of a support set by its shots alone; with a mean over
    all its examples the same step has a rate that is higher by the number of ways: 5 x 0.4.
    """

    queries: int = 1  # query images per class, in training and validation
    inner_learning_rate: float = 2.0  # for a mean over examples
    inner_steps: int = 1  # in training
    evaluation_steps: int = 3  # in validation, and in what a test is judged by
    batch_normalization: str = "transductive"  # or inductive
    filters: int = 64  # of each convolution
    meta_batch_size: int = 32  # tasks per meta-iteration
    learning_rate: float = 0.001  # of the outer Adam
    clip_gradient: float | None = None  # bound of each element of the meta-gradient
    iterations: int = 60_000  # meta-iterations
    cooldown_iterations: int = 0  # the last ones, in which the outer rate falls to 0 as a cosine
    epoch_iterations: int = 500  # between checkpoints
    validation_tasks: int = 320  # after every epoch
    test_tasks: int = 1_000  # in the end, for each of test_queries
    # Query images per class in the test, a table for each: the shots as the authors, 15 as others.
    test_queries: tuple[int, ...] = (1, 15)
    seed: int = 0  # of weights and episodes


@dataclasses.dataclass(frozen=True)
class Files:
    """Where things are."""

    data: str | None = None  # folder of the data set, if it has one; None: see above
    output: str | None = None  # folder of the run; None: runs/, named after the settings


@dataclasses.dataclass(frozen=True)
class Published:
    """A published accuracy, in 0 .. 1, and the half-width of its 95 % interval.

    It holds after as many inner steps as its row is judged by.
    """

    accuracy: float
    ci95: float
    source: str = "Finn et al. 2017, table 1"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A data set, how it is learned, and what is known about it.

    Attributes:
        name: The module's name in `experiments`, and the first word of run folders.
        title: What to call it.
        rows: Settings, one for each combination of `Task`.
        published: By the combinations that have a published number.
        make_network: Makes the model from settings.
        load: As `keras_maml.episodes.load_omniglot`: from a folder and a split to its images.
        data: What the test tasks are drawn from.
        licence: The licence of the data.
        images: What an image is, for who wants to use the learner.
        images_per_class: How many there are of each class.
        rotations: Whether classes are turned at random, as the paper does with Omniglot.
        clip: The bound of each element of the authors' meta-gradient, which is that of a sum over
            the query images divided by the shots; None: there is none.
    """

    name: str
    title: str
    rows: tuple[Settings, ...]
    published: Mapping[Task, Published]
    make_network: Callable[[Settings], keras.Model]
    load: Callable[..., ImageClasses]
    data: str
    licence: str
    images: str
    images_per_class: int
    rotations: bool = False
    clip: float | None = None

    def row(self, task: Task) -> Settings | None:
        """Returns the settings of a row, or None if there is no such row."""
        return next((row for row in self.rows if _task(row) == _task(task)), None)

    def defaults(self, task: Task) -> Settings:
        """Returns the settings of a row; where there is none, the nearest row's for other sizes."""
        if row := self.row(task):
            return row
        near = max(
            self.rows,
            key=lambda row: (
                row.first_order == task.first_order,
                row.ways == task.ways,
                row.convolutions == task.convolutions,
            ),
        )
        most = max(self.images_per_class - task.shots, 1)
        queries = min(task.shots if near.queries == near.shots else near.queries, most)
        tested = (min(count, most) for count in (task.shots, *near.test_queries[1:]))
        sizes = {"queries": queries, "test_queries": tuple(dict.fromkeys(tested))}
        if self.clip is not None and task.ways > 0 < queries:
            sizes["clip_gradient"] = clip_of_mean(self.clip, task.ways, task.shots, queries)
        return dataclasses.replace(near, **dataclasses.asdict(_task(task)), **sizes)

    def folder(self, settings: Settings) -> str:
        """Returns the folder in which a run of these settings goes by default."""
        parts = [self.name, f"{settings.ways}way", f"{settings.shots}shot"]
        parts += ["first-order"] * settings.first_order
        parts += ["no-convolutions"] * (not settings.convolutions)
        return "runs/" + "-".join(parts)

    def describe(self, settings: Settings) -> str:
        """Returns e.g. ``"Omniglot, 5-way 1-shot, first order"``."""
        parts = [self.title, f"{settings.ways}-way {settings.shots}-shot"]
        parts += ["first order"] * settings.first_order
        parts += ["without convolutions"] * (not settings.convolutions)
        return ", ".join(parts)

    def departures(self, settings: Settings) -> list[str]:
        """Says where settings are not those of the row, as far as training depends on them."""
        row = self.row(settings)
        no_row = ["no such row in the paper's table 1"] if self.published and row is None else []
        row = row or self.defaults(settings)
        free = ("epoch_iterations", "validation_tasks", "test_tasks", "test_queries", "seed")
        changed = [
            (field.name, getattr(settings, field.name), getattr(row, field.name))
            for field in dataclasses.fields(row)
            if field.name not in free
        ]
        return no_row + [
            f"cut short: {ours:,} of {theirs:,} iterations"
            if name == "iterations" and ours < theirs
            else f"{name} {ours} instead of {theirs}"
            for name, ours, theirs in changed
            if ours != theirs
        ]


def with_first_order(rows: Sequence[Settings], **changes: Any) -> tuple[Settings, ...]:
    """Returns rows, and each once more for first order.

    Args:
        rows: Settings of second order.
        **changes: What first order does otherwise.

    Example:
        >>> rows = with_first_order([Settings()], inner_learning_rate=0.4)
        >>> [(row.first_order, row.inner_learning_rate) for row in rows]
        [(False, 2.0), (True, 0.4)]
    """
    first_order = (dataclasses.replace(row, first_order=True, **changes) for row in rows)
    return (*rows, *first_order)


def _task(settings: Task) -> Task:
    names = (field.name for field in dataclasses.fields(Task))
    return Task(**{name: getattr(settings, name) for name in names})


def clip_of_mean(clip: float, ways: int, shots: int, queries: int) -> float:
    """Returns the bound of the gradient of a mean over all query images of an episode.

    Args:
        clip: The bound where the loss is a sum over them, divided by the shots, as the authors'.
        ways: Classes.
        shots: Support images per class.
        queries: Query images per class.

    Example:
        >>> clip_of_mean(10, ways=5, shots=1, queries=15) == 10 / 75
        True
    """
    return clip * shots / (ways * queries)


def main(experiment: Experiment, description: str) -> None:
    """Runs an experiment as a command: ways, shots and network choose the defaults of the rest.

    Args:
        experiment: The experiment.
        description: What ``--help`` says.
    """
    parser = simple_parsing.ArgumentParser(
        add_help=False, add_option_string_dash_variants=simple_parsing.DashVariant.DASH
    )
    parser.add_arguments(Task, "task")
    defaults = experiment.defaults(parser.parse_known_args()[0].task)
    run_command(
        experiment.name,
        description,
        lambda values, files: run(experiment, Settings(**dataclasses.asdict(values)), files),
        with_defaults(defaults),
        Files,
    )


def run(experiment: Experiment, settings: Settings, files: Files) -> dict[str, Any]:
    """Trains, tests and reports; or continues, or shows what is there.

    Args:
        experiment: The experiment.
        settings: All that the results depend on.
        files: Where data and results are.

    Returns:
        The content of ``results.json``.

    Raises:
        FileExistsError: The folder holds another run, or something else.
        BlockingIOError: Another run is using the folder.
        ValueError: The data set has no such episodes, a setting is out of range, or a run is to
            be continued with other images.
    """
    load = functools.cache(lambda split: experiment.load(files.data, split=split))
    make_episodes = functools.partial(_episodes, load, experiment.rotations, settings)
    folder = files.output or experiment.folder(settings)
    if results_of(folder, as_json(settings), defaults_of(settings)) is None:
        # What cannot be run fails before anything is written.
        check(settings)
        keras.utils.set_random_seed(settings.seed)
        learner = make_learner(experiment, settings)
        make_episodes("test", queries=max(settings.test_queries))
        validation = make_episodes("validation", tasks=settings.validation_tasks)
    this = Run(folder, settings)
    if this.results is None:
        this.keep_to_data({split: checksum(load(split)) for split in SPLITS})
        history = train(this, learner, settings, make_episodes, validation)
        test(this, learner, experiment, settings, make_episodes, history, load("test"))
    page = report.write(this.folder)
    print((this.folder / "results.txt").read_text(encoding="utf-8"))
    print(f"Results, learning curve and checkpoints: {this.folder}")
    print(f"Report: {page}")
    return this.results


def checksum(data: ImageClasses) -> str:
    """Returns the SHA-256 of images, class after class."""
    return hashlib.sha256(data.images).hexdigest()


def check(settings: Settings) -> None:
    """Raises ValueError where a setting is out of range, as far as nothing else checks it."""
    check_epochs(settings.iterations, settings.epoch_iterations)
    counts = ("ways", "shots", "queries", "inner_steps", "evaluation_steps", "filters")
    for name in (*counts, "meta_batch_size", "validation_tasks", "test_tasks"):
        check_count(name, getattr(settings, name), minimum=1)
    if settings.validation_tasks % settings.meta_batch_size:
        raise ValueError(
            "validation_tasks must be a multiple of meta_batch_size, "
            f"{settings.meta_batch_size}, got {settings.validation_tasks}."
        )
    check_positive("learning_rate", settings.learning_rate)
    check_positive("inner_learning_rate", settings.inner_learning_rate)
    check_count("cooldown_iterations", settings.cooldown_iterations)
    if settings.cooldown_iterations > settings.iterations:
        raise ValueError(
            f"cooldown_iterations must be at most iterations, {settings.iterations}, got "
            f"{settings.cooldown_iterations}."
        )
    if settings.clip_gradient is not None:
        check_positive("clip_gradient", settings.clip_gradient)
    if not settings.test_queries or len({*settings.test_queries}) < len(settings.test_queries):
        raise ValueError(
            "test_queries must be one number of query images or several different ones, got "
            f"{settings.test_queries}."
        )
    for queries in settings.test_queries:
        check_count("test_queries", queries, minimum=1)


def make_learner(experiment: Experiment, settings: Settings) -> MAML:
    """Returns the compiled learner of a run."""
    learner = MAML(
        experiment.make_network(settings),
        settings.inner_learning_rate,
        settings.inner_steps,
        settings.evaluation_steps,
        settings.first_order,
        settings.batch_normalization,
    )
    learner.compile(
        optimizer=keras.optimizers.Adam(learning_rate(settings), clipvalue=settings.clip_gradient),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return learner


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
    picture = next(iter(validation))
    summary = callbacks.AdaptationSummary(
        this.folder / "tensorboard",
        validation,
        tasks=settings.validation_tasks,
        figure=lambda learner: plots.episode(learner, picture, most=3),
        every=10,
    )
    return this.train(
        learner,
        lambda seen: make_episodes("train", start=seen * settings.meta_batch_size),
        iterations=settings.iterations,
        epoch_iterations=settings.epoch_iterations,
        monitor="val_accuracy",
        validation_data=validation,
        callbacks=[keras.callbacks.TensorBoard(this.folder / "tensorboard"), summary],
        verbose=2,
    )


def test(
    this: Run,
    learner: MAML,
    experiment: Experiment,
    settings: Settings,
    make_episodes: Callable[..., tf.data.Dataset],
    history: Sequence[Mapping[str, float]],
    data: ImageClasses,
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
        tables += [f"{report.count(queries, 'query image')} per class", result.to_text(), ""]
    write_csv(this.folder / "test_tasks.csv", tasks)
    with whole(this.folder / "learner.keras") as temporary:
        learner.save(temporary)
    draw(this.folder / "figures", learner, settings, make_episodes, tasks)
    published = experiment.published.get(_task(settings))
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
        "images_sha256": checksum(data),
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


def _episodes(
    load: Callable[[str], ImageClasses],
    rotations: bool,
    settings: Settings,
    split: str,
    **options: Any,
) -> tf.data.Dataset:
    """Makes the episodes of a split; each split has a seed of its own."""
    seeds = {"train": settings.seed, "validation": settings.seed + 1, "test": settings.seed + 2}
    sizes = {
        name: getattr(settings, name) for name in ("ways", "shots", "queries", "meta_batch_size")
    }
    options = {"seed": seeds[split], "rotations": rotations} | sizes | options
    return load(split).episodes(where=f"split={split!r}", **options)


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
