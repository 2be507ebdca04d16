"""Texts of a new kind, from five of each: which module does this sentence document?

The texts are the docstrings of Python's own library, so there is nothing to download. The classes
of a task are five modules, and those of the test are modules whose docstrings were never seen.
Words have an embedding, which is shared by all tasks; the layer above it adapts. Run ``python -m
examples.documentation``.
"""

import ast
import pathlib
import sysconfig

import keras
import numpy as np

import keras_maml
from examples import recording

WORDS, LENGTH = 1500, 16
"""The size of the vocabulary, and the words of a text that are read."""


def docstrings(fewest=20):
    """The first paragraphs of documented functions and classes, and the modules they are from."""
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    texts, modules = [], []
    for file in sorted(library.rglob("*.py")):
        module = file.relative_to(library).parts[0].removesuffix(".py")
        if module in ("site-packages", "test", "idlelib", "lib2to3") or "test" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and (
                text := ast.get_docstring(node)
            ):
                texts.append(text.split("\n\n")[0])
                modules.append(module)
    texts, first = np.unique(texts, return_index=True)
    modules = np.array(modules)[first]
    names, counts = np.unique(modules, return_counts=True)
    many = np.isin(modules, names[counts >= fewest])
    return texts[many], modules[many]


def main(iterations=200, tasks=400, seed=0, folder="runs/documentation"):
    """Meta-trains on 70 % of the modules, and tells the others apart."""
    keras.utils.set_random_seed(seed)
    texts, modules = docstrings()
    known = keras_maml.episodes.split_classes(
        np.unique(modules), "train", fractions=(0.7, 0, 0.3), seed=seed
    )
    old = np.isin(modules, known)
    words = keras.layers.TextVectorization(WORDS, output_sequence_length=LENGTH)
    words.adapt(texts[old])
    tokens = np.asarray(words(texts))
    sizes = {"ways": 5, "shots": 5, "queries": 3, "seed": seed}
    training = keras_maml.episodes.from_arrays(
        tokens[old], modules[old], meta_batch_size=8, **sizes
    )
    test = keras_maml.episodes.from_arrays(
        tokens[~old], modules[~old], meta_batch_size=20, tasks=tasks, **sizes
    )

    layers = [
        # Random directions for the words, which training changes a little.
        keras.layers.Embedding(
            WORDS, 128, keras.initializers.RandomNormal(0.0, 1.0), mask_zero=True
        ),
        keras.layers.GlobalAveragePooling1D(),
        keras.layers.UnitNormalization(),
        keras_maml.layers.SharedHead(5),  # all classes begin alike
    ]
    model = keras.Sequential([keras.Input((LENGTH,), dtype="int32"), *layers])
    # Texts of length one: a step of this size is about as long as a score.
    learner = keras_maml.ANIL(model, inner_learning_rate=20.0, inner_steps=3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
    learner.fit(training, epochs=10, steps_per_epoch=max(1, iterations // 10), verbose=2)

    result = keras_maml.evaluation.evaluate(learner, test, tasks=tasks)
    counted = [shared_words(*map(np.asarray, (*support, *query))) for support, query in test]
    results = {
        "modules": {"old": len(known), "new": len(np.unique(modules)) - len(known)},
        "accuracy by step": result.curve("accuracy"),
        "95 % interval": result.curve("accuracy", "ci95"),
        "most words in common": np.mean(counted),
    }
    curves = {"meta-learned": (result.curve("accuracy"), result.curve("accuracy", "ci95"))}
    title = f"five of {results['modules']['new']} new modules, five texts of each"
    figure = keras_maml.plots.accuracy_over_steps(curves, title=title)
    figure.axes[0].axhline(
        100 * np.mean(counted), color="C1", linestyle=":", label="most words in common"
    )
    figure.axes[0].legend()
    return recording.record(folder, figure, seed, results)


def shared_words(x_support, y_support, x_query, y_query):
    """Accuracy of a simple rule: the class whose words the text shares most, rare ones first."""

    def counts(x):  # [B, n, LENGTH] to [B, n, WORDS], without padding and unknown words
        bags = np.stack([(x == word).any(-1) for word in np.unique(x) if word > 1], -1)
        return bags * np.log(1 + bags.shape[0] * bags.shape[1] / bags.sum((0, 1)))

    bags = counts(np.concatenate([x_support, x_query], 1))
    support, query = np.split(bags, [x_support.shape[1]], 1)
    classes = support.reshape(len(support), 5, -1, support.shape[-1]).mean(2)  # in order of labels
    classes /= np.linalg.norm(classes, axis=-1, keepdims=True)
    return np.mean((query @ np.swapaxes(classes, 1, 2)).argmax(-1) == y_query)


if __name__ == "__main__":
    recording.run(main)
