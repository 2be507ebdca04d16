"""What several workers agree on before they work: the call, the data, and where they start."""

import functools
import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf

from keras_maml.execution.faults import DisagreementError
from keras_maml.execution.workers import Workers
from keras_maml.learners import joint_metrics

Method = TypeVar("Method", bound=Callable)


def check_workers(name: str, value: Any) -> None:
    """Raises TypeError unless a value is a `keras_maml.Workers` or None."""
    if value is not None and not isinstance(value, Workers):
        raise TypeError(f"{name} must be a keras_maml.Workers or None, got {value!r}.")


def of_all_workers(method: Method) -> Method:
    """Makes a method of a learner end on all workers when it fails on one of them.

    Args:
        method: A method of an `EpisodicModel` that all of them call.
    """

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        workers = self.several_workers
        if workers is None:
            return method(self, *args, **kwargs)
        with workers.sharing_errors(self.agreed_before(method.__name__)):
            return method(self, *args, **kwargs)

    return call


class EndTogether(keras.callbacks.Callback):
    """Sees that all workers come to the end of an epoch, evaluation or prediction at once."""

    def __init__(self, workers: Workers) -> None:
        super().__init__()
        self._workers = workers
        self._done = 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Counts meta-batches."""
        self._done = batch + 1

    def on_epoch_end(self, *_: Any, **logs: Any) -> None:
        """Waits for the others, unless nothing was done since the last time."""
        if self._done:
            self._workers.end_together(self._done)
        self._done = 0

    on_test_batch_end = on_predict_batch_end = on_train_batch_end
    on_test_begin = on_test_end = on_predict_end = on_epoch_end


def agree(
    learner: keras.Model, workers: Workers, dataset: tf.data.Dataset, first: Any, caller: str
) -> None:
    """Compares what workers are about to do, and hands all of them the weights of worker 0.

    Args:
        learner: A built learner; afterwards its variables, and those of its optimizer, are the same
            on all workers.
        workers: Those who work.
        dataset: This worker's share of the data.
        first: Its first meta-batch, of arrays all tasks; None if the data can be read once only.
        caller: What is called.

    Raises:
        ValueError: Workers call different methods, or with episodes of different shapes or
            different numbers of meta-batches or tasks, or have different models; or several were
            given the same tasks.
        WorkersError: Another worker has found an error in what it was given.
        NotImplementedError: A metric cannot be added up over workers.
    """
    joint_metrics.check_additive(learner.metrics)
    weights = _weights(learner)
    arrays = tf.nest.flatten(dataset.element_spec)
    given = arrays if first is None else tf.nest.flatten(first)
    workers.all_ready()
    workers.check_equal(
        the_method_that_they_call=caller,
        their_numbers_of_meta_batches=int(dataset.cardinality()),
        the_numbers_of_tasks_of_their_shares=max(array.shape[0] or -1 for array in given),
        the_shapes_of_their_tasks=", ".join(f"{a.dtype.name}{a.shape[1:]}" for a in arrays),
        the_numbers_of_weights_of_model_and_optimizer=sum(int(np.prod(v.shape)) for v in weights),
    )
    if first is not None:
        digests = workers.gather(tf.constant([_digest(first)], tf.float64)).numpy().tolist()
        if len(set(digests)) < workers.count:
            raise DisagreementError(
                f"{caller} got the same tasks on several of the {workers.count} workers, which "
                "would count them more than once. Give each worker its share: "
                "shard=workers.shard for data sets of keras_maml.episodes; of a data set of your "
                "own the part number workers.index of workers.count equal, successive parts of "
                "every meta-batch."
            )
    hand_out(learner, workers)


def hand_out(learner: keras.Model, workers: Workers) -> None:
    """Hands all workers the weights of worker 0, those of the optimizer included."""
    workers.hand_out(_weights(learner))


def checksum(learner: keras.Model) -> float:
    """Returns a number that is the same for the same weights."""
    return _digest([variable.numpy() for variable in _weights(learner)])


def _weights(learner: keras.Model) -> list[keras.Variable]:
    weights = [*learner.variables, *learner.optimizer.variables]
    return [variable for variable in weights if "string" not in str(variable.dtype)]


def _digest(nest: Any) -> float:
    """Returns a number that is different for different arrays."""
    hashed = hashlib.blake2b(digest_size=6)
    for array in map(np.asarray, tf.nest.flatten(nest)):
        hashed.update(repr(array.tolist()).encode() if array.dtype == object else array.tobytes())
    return float(int.from_bytes(hashed.digest(), "little"))
