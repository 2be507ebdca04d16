"""What few-shot learners are compared with: a network that is trained on all classes at once.

    python -m experiments.baselines --data FOLDER
    python -m experiments.baselines --glyphs

A network learns to tell all training classes of mini-ImageNet apart (FOLDER as for
`experiments.mini_imagenet`), or those of glyphs, which need no data. It then meets new classes in
two ways, which have no meta-learning (Ravi and Larochelle 2017, section 5; their figures are in
table 1 of Finn et al. 2017, too):

    nearest neighbour   a query has the class of the support image whose features, the input of the
                        last layer, have the largest cosine with its own; normalised by the
                        averages of training
    fine-tuning         a new last layer, then gradient steps on the support images in all layers;
                        their size and number are those that are best on validation tasks

The network is that of the epoch whose neighbours were best on validation tasks.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import simple_parsing
import tabulate
import tensorflow as tf

from experiments import glyphs, mini_imagenet
from experiments.shared.command_line import run_command
from experiments.shared.image_classification import SPLITS, checksum, compile_learner, episodes_of
from experiments.shared.image_settings import Experiment, Task
from experiments.shared.runs import Run, as_json, check_epochs, results_of
from keras_maml import MAML, evaluation
from keras_maml.algorithm.objective import BATCH_NORMALIZATIONS
from keras_maml.episodes import ImageClasses
from keras_maml.files import write_text
from keras_maml.progress import progress
from keras_maml.validation import check_choice, check_count, check_positive, check_several

Tasks = Callable[..., tf.data.Dataset]  # makes the episodes of a split
NEIGHBOUR, FINE_TUNING = "nearest neighbour", "fine-tuning"
# On mini-ImageNet, by method, ways and shots: accuracy and half of its 95 % interval.
PUBLISHED = {
    (NEIGHBOUR, 5, 1): (0.4108, 0.0070),
    (NEIGHBOUR, 5, 5): (0.5104, 0.0065),
    (FINE_TUNING, 5, 1): (0.2886, 0.0054),
    (FINE_TUNING, 5, 5): (0.4979, 0.0079),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the results depend on."""

    glyphs: bool = simple_parsing.field(  # classify glyphs, which need no data, or mini-ImageNet
        default=False, negative_prefix="--no-"
    )
    filters: int = 32  # of each convolution
    batch_size: int = 64  # images
    learning_rate: float = 0.001  # of Adam
    iterations: int = 12_000  # batches
    epoch_iterations: int = 600  # between checkpoints
    ways: int = 5  # classes of a task
    validation_tasks: int = 200  # after every epoch, of one shot
    test_shots: tuple[int, ...] = (1, 5)  # support images per class
    test_queries: int = 15  # query images per class, in validation, too
    test_tasks: int = 1_000  # for each number of shots
    test_steps: int = 10  # of fine-tuning, at most
    test_rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)  # of fine-tuning, to choose from
    test_tuning_tasks: int = 100  # validation tasks to choose them on
    test_batch_normalization: str = "transductive"  # or inductive, in fine-tuning
    seed: int = 0  # of weights, batches and tasks


@dataclasses.dataclass(frozen=True)
class Files:
    """Where things are."""

    data: str | None = None  # folder of mini-ImageNet; None: it was prepared before
    output: str = "runs/baselines"  # folder of the run


def experiment_of(settings: Settings) -> Experiment:
    """Returns the experiment whose data and network are taken."""
    return glyphs.EXPERIMENT if settings.glyphs else mini_imagenet.EXPERIMENT


def check(settings: Settings) -> None:
    """Raises ValueError where settings are out of range."""
    check_epochs(settings.iterations, settings.epoch_iterations)
    counts = ("filters", "batch_size", "validation_tasks", "test_tasks", "test_steps")
    for name in (*counts, "test_queries", "test_tuning_tasks"):
        check_count(name, getattr(settings, name), minimum=1)
    check_count("ways", settings.ways, minimum=2)
    check_positive("learning_rate", settings.learning_rate)
    mode = settings.test_batch_normalization
    check_choice("test_batch_normalization", mode, BATCH_NORMALIZATIONS)
    check_several("test_shots", settings.test_shots, functools.partial(check_count, minimum=1))
    check_several("test_rates", settings.test_rates, check_positive)


def check_data(settings: Settings, data: dict[str, ImageClasses], tasks_of: Tasks) -> None:
    """Raises ValueError where the images are too few for the batches or for the tasks."""
    count = len(data["train"].images)
    if settings.batch_size > count:
        raise ValueError(
            f"batch_size must be at most the number of training images, {count}, got "
            f"{settings.batch_size}."
        )
    for split in ("validation", "test"):
        for shots in {1, *settings.test_shots}:
            tasks_of(split, shots=shots)


def run(settings: Settings, files: Files) -> dict[str, Any]:
    """Trains, tests and reports; or continues, or shows what is there."""
    known = results_of(files.output, as_json(settings))
    if known is None:
        check(settings)
        experiment = experiment_of(settings)
        data = {split: experiment.load(files.data, split=split) for split in SPLITS}
        row = dataclasses.replace(
            experiment.defaults(Task(settings.ways, 1)),
            queries=settings.test_queries,
            meta_batch_size=1,
            seed=settings.seed,
        )
        tasks_of = functools.partial(episodes_of, data.__getitem__, experiment, row)
        check_data(settings, data, tasks_of)
        this = Run(files.output, settings, {split: checksum(data[split]) for split in SPLITS})
        known = this.results or measure(this, settings, experiment, data["train"], tasks_of)
    print(table(known))
    print(f"Results and checkpoints: {files.output}")
    return known


def measure(
    this: Run, settings: Settings, experiment: Experiment, data: ImageClasses, tasks_of: Tasks
) -> dict[str, Any]:
    """Trains the network, tests both methods, and writes the results.

    Args:
        this: The run.
        settings: Those of the run.
        experiment: Whose network is taken.
        data: The training classes.
        tasks_of: Makes the episodes of a split.
    """
    keras.utils.set_random_seed(settings.seed)
    network = make_network(settings, experiment, len(data.names))
    network.compile(
        keras.optimizers.Adam(settings.learning_rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    validation = tasks_of("validation").take(settings.validation_tasks)

    def measure_neighbours(epoch: int, logs: dict[str, float]) -> None:
        logs["val_accuracy"] = float(neighbours(network, validation).mean())

    history = this.train(
        network,
        lambda seen: batches(data, settings, seen),
        iterations=settings.iterations,
        epoch_iterations=settings.epoch_iterations,
        monitor="val_accuracy",
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=measure_neighbours)],
        shuffle=False,  # they are
        verbose=2,
    )
    rows = []
    for shots in settings.test_shots:
        tasks = tasks_of("test", shots=shots).take(settings.test_tasks)
        found = neighbours(network, tasks, f"{NEIGHBOUR}, {shots} shots")
        rows.append({"method": NEIGHBOUR, "shots": shots, **summary(found)})
        rows.append(
            fine_tune(network, settings, experiment, functools.partial(tasks_of, shots=shots))
        )
    best = max(history, key=lambda row: row["val_accuracy"])
    record = {
        "data": experiment.data,
        "licence": experiment.licence,
        "images": experiment.images,
        "train_hours": round(history[-1]["seconds"] / 3600, 2),
        "iterations_of_best_epoch": best["iterations"],
        "validation_accuracy_of_best_epoch": best["val_accuracy"],
    }
    write_text(this.folder / "results.txt", table({"settings": this.settings, "results": rows}))
    return this.finish(rows, **record)


def make_network(settings: Settings, experiment: Experiment, ways: int) -> keras.Model:
    """Returns the network of the experiment with so many outputs."""
    row = experiment.defaults(Task(settings.ways, 1))
    changes = {"ways": ways, "filters": settings.filters, "seed": settings.seed}
    return experiment.make_network(dataclasses.replace(row, **changes))


def batches(data: ImageClasses, settings: Settings, seen: int) -> tf.data.Dataset:
    """Returns batches of images and the numbers of their classes, without end.

    Every epoch has another order of all images; those that make no whole batch are left out. A
    batch depends on seed and number alone.

    Args:
        data: The images.
        settings: Batch size and seed.
        seen: The number of batches to leave out.
    """
    images, count = tf.convert_to_tensor(data.images), len(data.images)
    in_epoch = count // settings.batch_size
    labels = tf.repeat(tf.range(len(data.counts)), data.counts)

    def batch(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        epoch, place = number // in_epoch, number % in_epoch
        places = place * settings.batch_size + tf.range(settings.batch_size, dtype=tf.int64)
        seed = tf.stack([tf.constant(settings.seed, tf.int64), epoch])
        chosen = tf.random.experimental.index_shuffle(places, tf.cast(seed, tf.uint32), count - 1)
        return tf.cast(tf.gather(images, chosen), tf.float32) / 255.0, tf.gather(labels, chosen)

    numbers = tf.data.Dataset.range(seen, np.iinfo(np.int64).max)
    return numbers.map(batch, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def neighbours(network: keras.Model, tasks: tf.data.Dataset, name: str | None = None) -> np.ndarray:
    """Returns the accuracy of the nearest neighbour in every task.

    Args:
        network: A classifier; features are the input of its last layer.
        tasks: Episodes ``((x_support, y_support), (x_query, y_query))``.
        name: Of a progress bar; None: there is none.
    """
    features = keras.Model(network.inputs, network.layers[-1].input)

    @tf.function
    def of_batch(support: Any, query: Any) -> tf.Tensor:
        (x, labels), (x_query, expected) = support, query
        units = [
            tf.map_fn(lambda x: tf.math.l2_normalize(features(x, training=False), -1), images)
            for images in (x, x_query)
        ]
        nearest = tf.argmax(tf.matmul(units[1], units[0], transpose_b=True), -1)
        found = tf.gather(labels, nearest, batch_dims=1)
        return tf.reduce_mean(tf.cast(found == expected, tf.float32), -1)

    accuracies = []
    shown = tasks if name is None else progress(tasks, int(tasks.cardinality()), name, "tasks")
    for support, query in shown:
        accuracies.append(of_batch(support, query).numpy())
    return np.concatenate(accuracies)


def fine_tune(
    network: keras.Model,
    settings: Settings,
    experiment: Experiment,
    tasks_of: Tasks,
) -> dict[str, Any]:
    """Returns what the steps that are best on validation tasks reach on test tasks."""
    fresh = make_network(settings, experiment, settings.ways)
    for layer, trained in zip(fresh.layers[:-1], network.layers[:-1], strict=True):
        layer.set_weights(trained.get_weights())

    shots = int(tasks_of("test").element_spec[0][1].shape[-1]) // settings.ways
    learners = {}
    for rate in settings.test_rates:
        learners[rate] = MAML(fresh, rate, inner_steps=0, evaluation_steps=settings.test_steps)
        compile_learner(learners[rate], keras.optimizers.Adam())

    mode = settings.test_batch_normalization

    def accuracies(rate: float, split: str, tasks: int) -> np.ndarray:
        found = evaluation.evaluate(
            learners[rate],
            tasks_of(split),
            tasks=tasks,
            steps=settings.test_steps,
            batch_normalizations=[mode],
        )
        return found.values[mode]["accuracy"]

    means = {
        rate: accuracies(rate, "validation", settings.test_tuning_tasks).mean(0)
        for rate in learners
    }
    rate = max(means, key=lambda rate: means[rate].max())
    step = int(means[rate].argmax())
    return {
        "method": FINE_TUNING,
        "shots": shots,
        "batch_normalization": mode,
        "rate": rate,
        "step": step,
        **summary(accuracies(rate, "test", settings.test_tasks)[:, step]),
    }


def summary(accuracies: np.ndarray) -> dict[str, Any]:
    """Returns the mean over tasks, half of its 95 % interval, and the number of tasks.

    Of one task there is no interval: None.
    """
    found = evaluation.summary(accuracies)
    return {"mean": found["mean"], "ci95": found["ci95"], "tasks": len(accuracies)}


def table(record: dict[str, Any]) -> str:
    """Returns the results as a table, beside the published ones."""
    lines, ways = [], record["settings"]["ways"]
    for row in record["results"]:
        published = None
        if not record["settings"]["glyphs"]:
            published = PUBLISHED.get((row["method"], ways, row["shots"]))
        title = row["method"]
        if "rate" in row:
            title += f", {row['batch_normalization']}, {row['step']} steps of {row['rate']:g}"
        cells = [percent(row["mean"], row["ci95"]), percent(*published) if published else ""]
        lines.append([f"{ways}-way {row['shots']}-shot", title, *cells])
    return tabulate.tabulate(lines, ["task", "method", "accuracy", "published"]) + "\n"


def percent(mean: float, ci95: float | None) -> str:
    """Writes an accuracy with half of its 95 % interval, if there is one."""
    return f"{mean:.2%}" if ci95 is None else f"{mean:.2%} ± {ci95:.2%}"


if __name__ == "__main__":
    run_command("baselines", __doc__, run, Settings, Files)
