"""Settings of few-shot image classification: rows of the paper's table 1, and what is known.

A command's ways, shots, network and order choose a row of its experiment; where there is none, the
nearest row's settings are scaled to the sizes.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import simple_parsing

from experiments.shared.jitter import DRAWINGS, Jitter
from experiments.shared.runs import check_epochs
from keras_maml.episodes import ImageClasses
from keras_maml.validation import check_count, check_positive


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
    # Momentum of the moving average of the weights, which is validated and tested instead of them.
    ema_momentum: float | None = None
    mirrored_classes: bool = simple_parsing.field(  # more classes to train with: mirrored ones
        default=False, negative_prefix="--no-"
    )
    jitter: bool = simple_parsing.field(  # redraw images in training and validation at random
        default=False, negative_prefix="--no-"
    )
    iterations: int = 60_000  # meta-iterations
    cooldown_iterations: int = 0  # the last ones, in which the outer rate falls to 0 as a cosine
    epoch_iterations: int = 500  # between checkpoints
    validation_tasks: int = 320  # after every epoch
    test_tasks: int = 1_000  # in the end, for each of test_queries
    # Query images per class in the test, a table for each: the shots as the authors, 15 as others.
    test_queries: tuple[int, ...] = (1, 15)
    seed: int = 0  # of weights and episodes
    # Whose weights training begins with: a pretrained learner, or the folder of a run.
    initial_learner: str | None = None


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
        without_data: What happens without ``--data``, for a person to know before it does.
        jitter: How images are redrawn where settings say so.
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
    without_data: str = ""
    jitter: Jitter = DRAWINGS
    clip: float | None = None

    def row(self, task: Task) -> Settings | None:
        """Returns the settings of a row, or None if there is no such row."""
        return next((row for row in self.rows if task_of(row) == task_of(task)), None)

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
        return dataclasses.replace(near, **dataclasses.asdict(task_of(task)), **sizes)

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
            _departure(name, ours, theirs) for name, ours, theirs in changed if ours != theirs
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


def _departure(name: str, ours: Any, theirs: Any) -> str:
    """Says how a setting differs from that of the row."""
    if name == "iterations" and ours < theirs:
        return f"cut short: {ours:,} of {theirs:,} iterations"
    if name == "initial_learner":
        return f"begun with the weights of {ours}, whose training comes on top"
    return f"{name} {ours} instead of {theirs}"


def task_of(settings: Task) -> Task:
    """Returns what makes the row of settings."""
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
    if settings.ema_momentum is not None and not 0 < settings.ema_momentum < 1:
        raise ValueError(
            f"ema_momentum must be above 0 and below 1, got {settings.ema_momentum}. Leave it out "
            "to average nothing."
        )
    if settings.initial_learner == "":
        raise ValueError(
            "initial_learner must be the name of a pretrained learner or the folder of a run, got "
            "an empty name. Leave it out to begin with random weights."
        )
    if not settings.test_queries or len({*settings.test_queries}) < len(settings.test_queries):
        raise ValueError(
            "test_queries must be one number of query images or several different ones, got "
            f"{settings.test_queries}."
        )
    for queries in settings.test_queries:
        check_count("test_queries", queries, minimum=1)
