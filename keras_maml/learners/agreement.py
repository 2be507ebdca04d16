"""What several workers agree on before they work: the call, the data, and where they start."""

import hashlib
import zlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_maml.execution.workers import Workers
from keras_maml.learners import joint_metrics


def check_workers(name: str, value: Any) -> None:
    """Raises TypeError unless a value is a `keras_maml.Workers` or None."""
    if value is not None and not isinstance(value, Workers):
        raise TypeError(f"{name} must be a keras_maml.Workers or None, got {value!r}.")


def agree(
    learner: keras.Model, workers: Workers, dataset: tf.data.Dataset, first: Any, caller: str
) -> None:
    """Compares what workers are about to do, and hands all of them the weights of worker 0.

    Args:
        learner: A built learner; afterwards its variables, and those of its optimizer, are the same
            on all workers.
        workers: Those who work.
        dataset: This worker's share of the data.
        first: Its first meta-batch; None if the data can be read once only.
        caller: What is called.

    Raises:
        ValueError: Workers call different methods, or with different numbers of meta-batches or
            tasks, or have different models; or several were given the same tasks.
        NotImplementedError: A metric cannot be added up over workers.
    """
    joint_metrics.check_additive(learner.metrics)
    weights = [*learner.variables, *learner.optimizer.variables]
    weights = [variable for variable in weights if "string" not in str(variable.dtype)]
    tasks = [array.shape[0] or -1 for array in tf.nest.flatten(dataset.element_spec)]
    workers.check_equal(
        the_method_that_they_call=zlib.crc32(caller.encode()),
        their_numbers_of_meta_batches=int(dataset.cardinality()),
        the_numbers_of_tasks_of_their_shares=max(tasks),
        the_numbers_of_weights_of_model_and_optimizer=sum(int(np.prod(v.shape)) for v in weights),
    )
    if first is not None:
        digests = workers.gather(tf.constant([_digest(first)], tf.float64)).numpy().tolist()
        if len(set(digests)) < workers.count:
            raise ValueError(
                f"{caller} got the same tasks on several of the {workers.count} workers, which "
                "would count them more than once. Give each worker its share: "
                "shard=workers.shard for data sets of keras_maml.episodes; of a data set of your "
                "own the part number workers.index of workers.count equal, successive parts of "
                "every meta-batch."
            )
    mine = workers.index == 0
    values = [tf.convert_to_tensor(variable) for variable in weights]
    values = workers.sum([value if mine else tf.zeros_like(value) for value in values])
    for variable, value in zip(weights, values, strict=True):
        if not mine:
            variable.assign(value)


def _digest(nest: Any) -> float:
    """Returns a number that is different for different arrays."""
    hashed = hashlib.blake2b(digest_size=6)
    for array in map(np.asarray, tf.nest.flatten(nest)):
        hashed.update(repr(array.tolist()).encode() if array.dtype == object else array.tobytes())
    return float(int.from_bytes(hashed.digest(), "little"))
