"""New speakers, from five recordings of each: time series of unequal lengths.

The recordings are the Japanese Vowels (Kudo, Toyama and Shimbo, 1999; UCI Machine Learning
Repository, CC BY 4.0): nine men say two vowels, as 12 coefficients of linear prediction per frame.
The package aeon ships them; its code is not used: ``pip install --no-deps aeon``. Three speakers
are new at a time, and six to learn from. Run ``python -m examples.speakers``.
"""

import importlib.util
import pathlib

import keras
import numpy as np
from matplotlib.figure import Figure

import keras_maml
from examples import recording

FRAMES = 16
"""Recordings have 7 to 29 frames; all are stretched to these."""


def recordings(path=None):
    """Arrays ``[N, FRAMES, 12]`` and the speakers ``[N]``, from files of aeon's format."""
    if path is None:
        found = importlib.util.find_spec("aeon")
        if found is None:
            raise ModuleNotFoundError("The recordings are missing: pip install --no-deps aeon")
        path = pathlib.Path(found.origin).parent / "datasets/data/JapaneseVowels"
    x, speakers = [], []
    for part in ("TRAIN", "TEST"):
        text = (pathlib.Path(path) / f"JapaneseVowels_{part}.ts").read_text()
        for line in text.split("@data")[1].split():
            *channels, speaker = line.split(":")
            values = np.array([channel.split(",") for channel in channels], float)
            places = np.linspace(0, values.shape[1] - 1, FRAMES)
            x.append([np.interp(places, range(values.shape[1]), channel) for channel in values])
            speakers.append(speaker)
    return np.swapaxes(np.array(x, "float32"), 1, 2), np.array(speakers)


def learner(ways, shape):
    """A linear classifier: six speakers are too few to learn a deeper one from.

    What is meta-learned is where it begins; the order of a task's speakers is random, so that
    no speaker can be learned by heart.
    """
    scores = keras.layers.Dense(ways, kernel_initializer="zeros")
    model = keras.Sequential([keras.Input(shape), keras.layers.Flatten(), scores])
    learner = keras_maml.MAML(model, 0.02, inner_steps=3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile(keras.optimizers.Adam(1e-4), loss, metrics=["accuracy"])
    return learner


def main(iterations=400, tasks=200, seed=0, folder="runs/speakers", data=None):
    """Meta-trains three times, each time without three of the speakers, and tests on those."""
    x, speakers = recordings(data)
    names, sizes = np.unique(speakers), {"ways": 3, "shots": 5, "seed": seed}
    curves, nearest = {}, {}
    for new in names.reshape(3, -1):
        keras.utils.set_random_seed(seed)
        old = ~np.isin(speakers, new)
        scaled = (x - x[old].mean((0, 1))) / x[old].std((0, 1))
        training = keras_maml.episodes.from_arrays(
            scaled[old], speakers[old], queries=5, meta_batch_size=8, **sizes
        )
        test = keras_maml.episodes.from_arrays(
            scaled[~old], speakers[~old], queries=15, meta_batch_size=20, tasks=tasks, **sizes
        )
        start = learner(len(new), x.shape[1:])
        start.fit(training, epochs=2, steps_per_epoch=max(1, iterations // 2), verbose=2)
        result = keras_maml.evaluation.evaluate(start, test, tasks=tasks)
        curves[" ".join(new)] = (
            100 * result.curve("accuracy"),
            100 * result.curve("accuracy", "ci95"),
        )
        nearest[" ".join(new)] = 100 * np.mean([nearest_mean(*task) for task in test.unbatch()])

    results = {
        "accuracy in %, by new speakers and step": {who: mean for who, (mean, _) in curves.items()},
        "95 % interval": {who: half_width for who, (_, half_width) in curves.items()},
        "nearest mean, in %": nearest,
    }
    figure = Figure((6, 4))
    axes = figure.subplots()
    for number, (who, (mean, half_width)) in enumerate(curves.items()):
        color = f"C{number}"
        axes.errorbar(range(len(mean)), mean, half_width, color=color, label=f"speakers {who}")
        axes.axhline(nearest[who], color=color, linestyle=":")
    axes.set(xlabel="inner steps", ylabel="accuracy in %; dotted: nearest mean", xticks=range(4))
    axes.set_title("three new speakers, five recordings of each")
    axes.legend()
    return recording.record(folder, figure, seed, results)


def nearest_mean(support, query):
    """The accuracy of a simple rule: the speaker whose five recordings have the closest mean."""
    (x, y), (new, truth) = keras.tree.map_structure(np.asarray, (support, query))
    means = np.stack([x[y == speaker].mean(0) for speaker in np.unique(y)])
    return np.mean(((new[:, None] - means) ** 2).sum((2, 3)).argmin(1) == truth)


if __name__ == "__main__":
    recording.run(main)
