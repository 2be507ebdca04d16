"""A frozen network of keras.applications, whose head adapts to new classes.

``--weights imagenet`` downloads weights, as Keras does. Without, the backbone first learns to name
the 64 training glyphs, as any classifier would. Either way it is frozen then, and meta-learning
finds the head from which a few steps tell new glyphs apart. Run ``python -m examples.backbone``.
"""

import keras
import numpy as np
from keras import ops

import keras_maml
from examples import recording

WAYS = 5


def backbone_of(weights, epochs, seed):
    """A MobileNet from drawings ``[28, 28, 1]`` to 256 features, trained and frozen."""
    drawing = keras.Input((28, 28, 1))
    network = keras.applications.MobileNet(
        (32, 32, 3), alpha=0.25, include_top=False, pooling="avg", weights=weights
    )
    larger = keras.layers.Resizing(32, 32)(1 - 2 * drawing)  # to -1 .. 1, dark on bright
    backbone = keras.Model(drawing, network(ops.repeat(larger, 3, axis=-1)))
    if weights is None:
        glyphs = keras_maml.episodes.load_glyphs("train")
        labels = np.repeat(np.arange(len(glyphs.names)), glyphs.counts)
        classifier = keras.Sequential([backbone, keras.layers.Dense(len(glyphs.names))])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        classifier.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
        classifier.fit(glyphs.images / np.float32(255), labels, epochs=epochs, verbose=2)
    backbone.trainable = False
    return backbone


def main(iterations=500, epochs=30, tasks=200, seed=0, folder="runs/backbone", weights=None):
    """Freezes a backbone, meta-trains a head on it, and tells new glyphs apart."""
    keras.utils.set_random_seed(seed)
    backbone = backbone_of(weights, epochs, seed)
    # All classes begin alike: on features of length one, the first step then finds the examples
    # that are most alike, and what is meta-learned is where the next ones lead.
    head = keras_maml.layers.SharedHead(WAYS)
    model = keras.Sequential([backbone, keras.layers.UnitNormalization(), head])
    learner = keras_maml.ANIL(model, inner_learning_rate=20.0, inner_steps=5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    sizes = {"ways": WAYS, "shots": 1, "queries": 5, "seed": seed}
    training = keras_maml.episodes.glyphs(split="train", meta_batch_size=8, **sizes)
    validation, test = (
        keras_maml.episodes.glyphs(split=split, meta_batch_size=20, tasks=tasks, **sizes)
        for split in ("validation", "test")
    )
    learner.fit(
        training,
        validation_data=validation,
        epochs=5,
        steps_per_epoch=max(1, iterations // 5),
        verbose=2,
    )

    result = keras_maml.evaluation.evaluate(
        learner, test, tasks=tasks, batch_normalizations=[learner.batch_normalization]
    )
    nearest = [nearest_example(backbone, *support, *query) for support, query in test]
    results = {
        "weights": weights or "the training glyphs",
        "accuracy by step": result.curve("accuracy"),
        "95 % interval": result.curve("accuracy", "ci95"),
        "nearest example, same features": np.mean(nearest),
    }
    figure = keras_maml.plots.episode(learner, next(iter(test)), most=2)
    return recording.record(folder, figure, seed, results)


def nearest_example(backbone, x_support, y_support, x_query, y_query):
    """The accuracy of the class whose one example has the most similar features."""

    def features(images):
        found = backbone.predict(ops.reshape(images, (-1, 28, 28, 1)), verbose=0)
        return ops.normalize(np.reshape(found, (*images.shape[:2], -1)))

    similar = ops.matmul(features(x_query), ops.transpose(features(x_support), (0, 2, 1)))
    chosen = ops.take_along_axis(y_support, ops.argmax(similar, -1), axis=1)
    return np.mean(chosen == y_query)


if __name__ == "__main__":
    recording.run(main)
