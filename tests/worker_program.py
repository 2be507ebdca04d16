"""What every process of the tests of workers runs: `python worker_program.py results case ...`."""

import pathlib
import pickle
import sys
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_maml

MODELS = {
    "dense": lambda: [
        keras.Input((1,)),
        layers.Dense(16, "tanh"),
        layers.BatchNormalization(),
        layers.Dropout(0.5, seed=4),
        layers.Dense(1),
    ],
    "convolution": lambda: [
        keras.Input((8, 8, 1)),
        layers.Conv2D(4, 3, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.Activation("softplus"),
        layers.Dropout(0.3, seed=2),
        layers.AveragePooling2D(2),
        layers.Flatten(),
        layers.Dense(3),
    ],
}

# Arguments of the optimizer, of the learner and of compile.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "dense": ("dense", {"use_ema": True, "clipnorm": 0.5}, {}, {}),
    "in turns": ("convolution", {}, {"task_map": "sequential"}, {}),
    "at once": ("convolution", {"clipnorm": 0.05}, {"task_map": "vectorized"}, {}),
    "global_clipnorm": ("dense", {"global_clipnorm": 0.1}, {}, {}),
    "ema": ("dense", {"use_ema": True, "weight_decay": 0.01}, {"measure_before": False}, {}),
    "several steps": ("dense", {}, {"inner_steps": 3}, {}),
    "accumulation": ("dense", {"gradient_accumulation_steps": 2}, {"inner_steps": 1}, {}),
    "scaled": ("dense", {"loss_scale_factor": 8.0}, {"first_order": True}, {}),
    "chunks": ("convolution", {}, {"task_chunk": 1, "rematerialize": True}, {}),
    "without xla": ("convolution", {}, {}, {"jit_compile": False}),
    "eager": ("dense", {}, {}, {"run_eagerly": True}),
    "two steps a call": ("dense", {}, {}, {"steps_per_execution": 2}),
}


def run(case: str, workers: keras_maml.Workers | None, shard: tuple[int, int]) -> dict[str, Any]:
    """Trains, evaluates and predicts; returns weights, history and what was measured."""
    kind, of_optimizer, of_learner, of_compile = CASES[case]
    # Only worker 0 has the weights of one process to begin with.
    keras.utils.set_random_seed(7 + shard[0])
    model = keras.Sequential(MODELS[kind]())
    learner = keras_maml.MAML(model, inner_learning_rate=0.02, **of_learner)
    classifies = kind == "convolution"
    learner.compile(
        keras.optimizers.Adam(0.01, **of_optimizer),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        if classifies
        else "mean_squared_error",
        metrics=["accuracy"] if classifies else ["mean_absolute_error"],
        workers=workers,
        **of_compile,
    )
    if classifies:
        images = np.random.default_rng(0).normal(size=(60, 8, 8, 1)).astype("float32")
        labels = np.repeat(np.arange(6), 10)

        def episodes(**how: Any) -> Any:
            return keras_maml.episodes.from_arrays(
                images, labels, ways=3, shots=1, queries=3, meta_batch_size=4, shard=shard, **how
            )
    else:

        def episodes(**how: Any) -> Any:
            return keras_maml.episodes.sinusoid(meta_batch_size=4, shard=shard, **how)

    history = learner.fit(
        episodes(tasks=40),
        epochs=2,
        validation_data=episodes(tasks=8, seed=3),
        verbose=0,
    )
    batch = next(iter(episodes(tasks=4, seed=5)))
    return {
        "history": history.history,
        "weights": learner.get_weights(),
        "evaluate": learner.evaluate(episodes(tasks=12, seed=1), verbose=0, return_dict=True),
        "predict": learner.predict(episodes(tasks=12, seed=2), verbose=0),
        "train_on_batch": [learner.train_on_batch(batch), learner.train_on_batch(batch)],
        "test_on_batch": learner.test_on_batch(batch),
        "predict_on_batch": learner.predict_on_batch(batch),
        "weights afterwards": learner.get_weights(),
        "state of the optimizer": [v.numpy() for v in learner.optimizer.variables],
    }


def wrong(workers: keras_maml.Workers) -> dict[str, Any]:
    """Gives workers data that do not fit together; prints what they are told."""
    learner = keras_maml.MAML(keras.Sequential(MODELS["dense"]()))
    learner.compile("sgd", loss="mean_squared_error", workers=workers)
    sinusoid, shard = keras_maml.episodes.sinusoid, workers.shard
    more = 1 + workers.index
    arrays = next(iter(sinusoid(meta_batch_size=4, shard=shard)))
    uneven = tf.data.Dataset.from_tensor_slices(
        keras.tree.map_structure(lambda a: tf.concat([a, a[:more]], 0), arrays)
    ).batch(2)
    broken = keras.tree.map_structure(
        lambda a: tf.stack([a, a * (np.nan if workers.index == 1 else 1.0)]), arrays
    )
    broken = tf.data.Dataset.from_tensor_slices(broken)
    learner.build_on(sinusoid(meta_batch_size=4, tasks=4, shard=shard))
    for train in (
        lambda: learner.fit(sinusoid(meta_batch_size=4, tasks=8)),
        lambda: learner.fit(sinusoid(meta_batch_size=2, tasks=4 + 2 * more, shard=shard)),
        lambda: learner.fit(sinusoid(meta_batch_size=2 * more, tasks=12 * more, shard=shard)),
        lambda: learner.fit(arrays, batch_size=1),
        lambda: learner.fit(arrays, validation_split=0.5),
        lambda: learner.fit(broken, verbose=0),
        lambda: learner.fit(uneven, verbose=0),
        lambda: learner.predict(uneven, verbose=0),
    ):
        try:
            train()
            print("was not refused")
        except (ValueError, FloatingPointError) as error:
            print(error)
    return {"weights": learner.get_weights()}


if __name__ == "__main__":
    all_workers = keras_maml.Workers()
    folder, *cases = sys.argv[1:]
    results = {
        case: wrong(all_workers) if case == "wrong" else run(case, all_workers, all_workers.shard)
        for case in cases
    }
    path = pathlib.Path(folder) / f"{all_workers.index}.pickle"
    path.write_bytes(pickle.dumps(results))
