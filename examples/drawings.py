"""A neural field that draws a picture it has never seen, after two inner steps.

A network from coordinates to ink is a picture. Meta-learning finds weights from which two gradient
steps on half of the pixels draw the whole (Tancik et al., Learned Initializations for Optimizing
Coordinate-Based Neural Representations, CVPR 2021). Run ``python -m examples.drawings``.
"""

import keras
import numpy as np
from matplotlib.figure import Figure

import keras_maml
from examples import recording

SIZE = 28
GRID = np.stack(np.meshgrid(*2 * [np.linspace(-1, 1, SIZE)], indexing="ij"), -1).reshape(-1, 2)


def pictures(split):
    """A task per drawing, of glyphs that no other split has: coordinates, and the ink there."""
    images = keras_maml.episodes.load_glyphs(split).images / np.float32(255)
    return [(GRID, picture.reshape(-1, 1)) for picture in images]


def field(seed):
    """Random Fourier features, which make fine detail easy, and two hidden layers."""
    waves = keras.layers.Dense(
        256,
        activation=keras.ops.sin,
        kernel_initializer=keras.initializers.RandomNormal(stddev=5, seed=seed),
        bias_initializer=keras.initializers.RandomUniform(-np.pi, np.pi, seed=seed),
        trainable=False,
    )
    hidden = [keras.layers.Dense(64, "relu") for _ in range(2)]
    return keras.Sequential([keras.Input((2,)), waves, *hidden, keras.layers.Dense(1, "sigmoid")])


def main(iterations=500, tasks=80, seed=0, folder="runs/drawings"):
    """Meta-trains on 64 glyphs and draws others."""
    keras.utils.set_random_seed(seed)
    half = {"shots": SIZE**2 // 2, "queries": SIZE**2 // 2, "seed": seed}
    training = keras_maml.episodes.from_tasks(pictures("train"), meta_batch_size=4, **half)
    test = keras_maml.episodes.from_tasks(pictures("test"), meta_batch_size=8, tasks=tasks, **half)
    learner = keras_maml.MetaSGD(field(seed), 0.1, inner_steps=2)
    learner.compile(keras.optimizers.Adam(1e-3), "mean_squared_error")
    untrained = keras_maml.MAML(field(seed), 0.1, inner_steps=2)
    untrained.compile(loss="mean_squared_error")
    learner.fit(training, epochs=10, steps_per_epoch=max(1, iterations // 10), verbose=2)

    evaluate = keras_maml.evaluation.evaluate
    errors = {
        "meta-learned, by step": evaluate(learner, test, tasks=tasks).curve("loss"),
        "untrained, by step": evaluate(untrained, test, tasks=tasks).curve("loss"),
    }
    shown = {
        "half of its pixels": None,
        "before adaptation": (learner, 0),
        "after 1 step": (learner, 1),
        "after 2 steps": (learner, 2),
        "the picture": None,
        "untrained, 2 steps": (untrained, 2),
    }
    figure = Figure((9, 6))
    axes = figure.subplots(4, len(shown), subplot_kw={"xticks": [], "yticks": []})
    seen = np.random.default_rng(seed).permutation(SIZE**2)[: SIZE**2 // 2]
    for row, (x, y) in zip(axes, pictures("test")[::100], strict=True):
        for axis, (title, what) in zip(row, shown.items(), strict=True):
            ink = y
            if title == "half of its pixels":
                ink = np.full_like(y, np.nan)
                ink[seen] = y[seen]
            if what:
                start, steps = what
                ink = start.adapt(x[seen], y[seen], steps=steps).predict(x, verbose=0)
            axis.imshow(ink.reshape(SIZE, SIZE), cmap="gray_r", vmin=0, vmax=1)
            axis.set_facecolor("lightsteelblue")
            if row is axes[0]:
                axis.set_title(title, fontsize=9)
    return recording.record(folder, figure, seed, errors)


if __name__ == "__main__":
    recording.run(main)
