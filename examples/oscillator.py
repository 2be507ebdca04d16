"""The course of a differential equation with unknown parameters, from eight measurements.

A mass on a spring, ``u'' + c u' + k u = 0`` with ``u(0) = 1`` and ``u'(0) = 0``: each damping c and
stiffness k is a task. The network learns what all of these curves have in common, without seeing
the equation; eight points with noise then say which of them it is. Run ``python -m
examples.oscillator``.
"""

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

import keras_maml
from examples import recording
from keras_maml.words import counted

END, NOISE, POINTS = 6.0, 0.02, 8
DAMPING, STIFFNESS = (0.2, 1.0), (1.0, 5.0)


def solution(time, c, k):
    """The displacement, for weak damping (c squared below 4 k)."""
    frequency = tf.sqrt(k - c**2 / 4)
    wave = tf.cos(frequency * time) + c / (2 * frequency) * tf.sin(frequency * time)
    return tf.exp(-c * time / 2) * wave


def measurements(seed, queries=32, **stream):
    """Episodes whose tasks are oscillators: times, and displacements with noise."""

    def make(indices):
        def draw(what, shape, low, high):
            uniform = keras_maml.episodes.uniform(seed, indices, what, shape)
            return low + (high - low) * uniform

        c, k = draw("c", (1, 1), *DAMPING), draw("k", (1, 1), *STIFFNESS)
        time = draw("times", (POINTS + queries, 1), 0, END)
        u = solution(time, c, k)
        measured = u + draw("noise", (POINTS + queries, 1), -NOISE, NOISE)
        support = time[:, :POINTS], measured[:, :POINTS]
        return support, (time[:, POINTS:], u[:, POINTS:])

    return keras_maml.episodes.episode_dataset(make, **stream)


def main(iterations=2500, tasks=500, seed=0, folder="runs/oscillator"):
    """Meta-trains on oscillators and draws the courses of new ones."""
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(64, "tanh") for _ in range(3)]
    model = keras.Sequential([keras.Input((1,)), *layers, keras.layers.Dense(1)])
    learner = keras_maml.MetaSGD(model, 0.01, inner_steps=5)
    rate = keras.optimizers.schedules.CosineDecay(1e-3, iterations)
    learner.compile(keras.optimizers.Adam(rate, clipnorm=1.0), "mean_squared_error")
    training = measurements(seed, meta_batch_size=16, tasks=None, start=0)
    learner.fit(training, epochs=10, steps_per_epoch=max(1, iterations // 10), verbose=2)
    test = measurements(seed + 1, meta_batch_size=100, tasks=tasks, start=0)
    result = keras_maml.evaluation.evaluate(learner, test, tasks=tasks)
    results = {
        "squared error by step": result.curve("loss"),
        "95 % interval": result.curve("loss", "ci95"),
    }

    figure = Figure((9, 3.2))
    time = np.linspace(0, END, 100, dtype="float32")[:, None]
    points = np.random.default_rng(seed).uniform(0, END, [POINTS, 1]).astype("float32")
    parameters = [(0.3, 1.5), (0.9, 3.0), (0.4, 4.5)]
    for axis, (c, k) in zip(figure.subplots(1, 3, sharey=True), parameters, strict=True):
        measured = solution(points, c, k).numpy()
        for steps in (0, 1, 5):
            adapted = learner.adapt(points, measured, steps=steps)
            label = f"after {counted(steps, 'step')}" if steps else "before adaptation"
            axis.plot(time, adapted.predict(time, verbose=0), label=label)
        axis.plot(time, solution(time, c, k), "k:", label="solution")
        axis.plot(points, measured, "k^", markersize=4)
        axis.set(title=f"c = {c}, k = {k}", xlabel="time")
    axis.legend(fontsize=7)
    return recording.record(folder, figure, seed, results)


if __name__ == "__main__":
    recording.run(main)
