"""Workers: processes that train one learner together, each on a share of every meta-batch.

Every worker runs the same program on tasks of its own. Nothing is shared but sums: one all-reduce
of one flat tensor in every meta-step, after which all workers take the same update. A strategy of
`tf.distribute` makes the connections and does nothing else: no learner is built or called in its
scope, so that Keras's losses, metrics and optimizers are those of one process.
"""

import contextlib
import functools
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context as _context

from keras_maml import validation
from keras_maml.execution import faults, tracing

_ROLES = ("chief", "worker")

SILENCE = 60
"""Seconds without a sign of life after which a worker counts as lost, and the others stop."""

LATENESS = 300
"""Seconds that one worker waits for the others where it has come to the end of an epoch."""


class Workers:
    """The processes that train a learner together, and this one's place among them.

    They are those of the environment variable ``TF_CONFIG``, as for
    `tf.distribute.MultiWorkerMirroredStrategy`. Without it, or with one process in it, this process
    is the only worker, and nothing changes. The connections are made at once, so that it returns
    when all workers are there. Make it before anything else uses TensorFlow, and only once.

    Attributes:
        index: The number of this worker, from 0.
        count: How many workers there are.

    Raises:
        ValueError: ``TF_CONFIG`` is not JSON of a cluster and this process's task in it, or names a
            role other than ``chief`` and ``worker``.
        RuntimeError: TensorFlow was used before, or the workers are connected already.
        NotImplementedError: This process has several devices.

    Example:
        >>> workers = Workers()
        >>> workers.index, workers.count
        (0, 1)
        >>> workers.all_reduce(tf.constant([1.0, 2.0])).numpy().tolist()
        [1.0, 2.0]
    """

    def __init__(self) -> None:
        config = os.environ.get("TF_CONFIG") or "{}"
        self.index, self.count = _place(config)
        self._addresses = _addresses(config)
        self._counted_on = True  # whether the others count on the next message of this worker
        self._depth = 0  # of calls that share their errors
        self._strategy = _connect() if self.count > 1 else None
        self._programs: dict[tuple, Callable] = {}  # by dtype and size of the message

    @property
    def shard(self) -> tuple[int, int]:
        """``(index, count)``, as the data sets of `keras_maml.episodes` take it."""
        return self.index, self.count

    def all_reduce(self, flat: tf.Tensor) -> tf.Tensor:
        """Adds up a tensor over all workers; every worker gets the sum.

        All workers have to call it, with tensors of one shape and dtype.

        Args:
            flat: ``[n]``, of float32, float64, int32 or int64.

        Returns:
            The sum ``[n]``.
        """
        if self._strategy is None:
            return flat
        key = flat.dtype, flat.shape[0]
        if key not in self._programs:
            # A concrete function: TensorFlow warns of several programs of one function.
            self._programs[key] = tracing.function(self._traced_all_reduce).get_concrete_function(
                tf.TensorSpec(flat.shape, flat.dtype)
            )
        return self._programs[key](flat)

    def sum(self, nest: Any, tasks: int | tf.Tensor | None = None) -> Any:
        """Adds up a nest of tensors over all workers, in one message.

        Args:
            nest: A nest of real tensors of any shapes, the same ones on all workers.
            tasks: How many tasks this worker had, if it has to be as many as others had.

        Returns:
            The nest of sums.

        Raises:
            InvalidArgumentError: Workers had different numbers of tasks; on all of them.
        """
        tensors = [tf.convert_to_tensor(tensor) for tensor in tf.nest.flatten(nest)]
        counts = tf.zeros([0]) if tasks is None else self._placed(tf.cast([tasks], tf.float32))
        message = [counts, *tensors]
        dtype = _common_dtype(message)
        flat = tf.concat([tf.reshape(tf.cast(t, dtype), [-1]) for t in message], 0)
        counted, *parts = tf.split(self.all_reduce(flat), [_size(t) for t in message])
        with tf.control_dependencies([] if tasks is None else [self._assert_equal(counted)]):
            sums = [
                tf.cast(tf.reshape(part, tf.shape(tensor)), tensor.dtype)
                for part, tensor in zip(parts, tensors, strict=True)
            ]
        for total, tensor in zip(sums, tensors, strict=True):
            total.set_shape(tensor.shape)
        return tf.nest.pack_sequence_as(nest, sums)

    def gather(self, nest: Any) -> Any:
        """Joins what workers have along the first axis, in their order, in two messages.

        Args:
            nest: A nest of tensors ``[tasks, ...]``, of the same shapes on all workers.

        Returns:
            The nest of tensors ``[count * tasks, ...]``.

        Raises:
            InvalidArgumentError: Workers had different numbers of tasks; on all of them.
        """
        tasks = tf.shape(tf.nest.flatten(nest)[0])[0]
        # Messages of different lengths would end the connection without a word of why.
        with tf.control_dependencies([self.sum(tf.zeros([1]), tasks=tasks)]):
            return self.sum(tf.nest.map_structure(self._placed, nest))

    def of_first(self, number: float) -> float:
        """Returns the number that worker 0 has.

        Args:
            number: Any finite number; of worker 0 it is the one that all get.

        Example:
            >>> Workers().of_first(3)
            3.0
        """
        if self.count == 1:
            return float(number)
        mine = float(number) if self.index == 0 else 0.0
        return float(self.sum(tf.constant([mine], tf.float64)).numpy()[0])

    def hand_out(self, variables: Sequence[Any]) -> None:
        """Gives all workers the values that variables of worker 0 have.

        Args:
            variables: Variables of numbers, of the same shapes and dtypes on all workers.
        """
        mine = [tf.convert_to_tensor(variable) for variable in variables]
        values = self.sum([v if self.index == 0 else tf.zeros_like(v) for v in mine])
        if self.index:
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)

    def mean(self, nest: Any) -> Any:
        """Returns the mean over workers of a nest of tensors, see `sum`."""
        return tf.nest.map_structure(lambda total: total / self.count, self.sum(nest))

    def check_equal(self, **facts: float | str) -> None:
        """Checks that all workers have the same numbers and texts.

        Args:
            **facts: Finite numbers or texts under the names of what they are; spaces are
                underscores.

        Raises:
            ValueError: Workers differ, on all of them.
        """
        mine = [zlib.crc32(f.encode()) if isinstance(f, str) else f for f in facts.values()]
        by_worker = self._rows(np.array(mine, "float64"))
        for (name, fact), values in zip(facts.items(), by_worker.T.tolist(), strict=True):
            if len(set(values)) > 1:
                if isinstance(fact, str):
                    values = self._texts(fact)
                raise faults.DisagreementError(
                    f"Workers differ in {name.replace('_', ' ')}: {values} for workers 0 to "
                    f"{self.count - 1}. All of them must run the same program on shares of the "
                    "same data."
                )

    @contextlib.contextmanager
    def sharing_errors(self, counted_on: bool) -> Iterator[None]:
        """Tells the other workers of an error in a block, and raises here what they tell.

        Args:
            counted_on: Whether they count on messages of the block from its beginning. Otherwise
                they do from `all_ready` on, and hear there of errors before it.

        Raises:
            WorkersError: Another worker has failed or is lost.
        """
        if self._depth or self.count == 1:
            yield
            return
        self._depth, self._counted_on = 1, counted_on
        try:
            yield
        # Of all workers at once; the last one is a loss that is not finite, which is their sum's.
        except (faults.WorkersError, faults.DisagreementError, FloatingPointError):
            raise
        except BaseException as error:
            why = faults.reason(error, self._addresses)
            if why is not None:
                faults.tell(why)
                raise faults.WorkersError(why) from error
            if self._counted_on or not isinstance(error, Exception):
                faults.tell(faults.said(self.index, error))
            else:
                with contextlib.suppress(tf.errors.OpError):  # the others have failed meanwhile
                    self._texts(faults.said(self.index, error))
            raise
        finally:
            self._depth = 0

    def all_ready(self) -> None:
        """Waits until all workers have checked what they are given.

        Raises:
            WorkersError: One has found an error; the connections can still be used.
        """
        if self.count == 1:
            return
        self._counted_on = True
        failures = [text for text in self._texts("") if text]
        if failures:
            raise faults.WorkersError("; ".join(failures))

    def all_fine(self, failure: FloatingPointError | None) -> None:
        """Raises on all workers if one of them has met a number that is not finite.

        Args:
            failure: What this one has met; None if all is well.

        Raises:
            FloatingPointError: One has.
        """
        text = "" if failure is None else f"Worker {self.index}: {failure}"
        failures = [text for text in self._texts(text) if text]
        if failures:
            raise FloatingPointError(" ".join(failures)) from failure

    def end_together(self, done: int) -> None:
        """Checks that all workers have come to the end of their meta-batches.

        Args:
            done: How many there were.

        Raises:
            WorkersError: Another worker has not, `LATENESS` seconds later; on all of them.
        """
        with faults.told_after(
            LATENESS,
            f"Worker {self.index} had no more meta-batches after {done}, and others had not come "
            f"to their end {LATENESS} s later. All workers need equally many.",
        ):
            self.check_equal(the_numbers_of_meta_batches=done)

    def _texts(self, text: str) -> list[str]:
        """Returns the texts of all workers."""
        mine = np.zeros(faults.LENGTH, "float32")
        letters = np.frombuffer(text.encode()[: faults.LENGTH], "uint8")
        mine[: len(letters)] = letters
        rows = self._rows(mine).astype("uint8")
        return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in rows]

    def _rows(self, row: np.ndarray) -> np.ndarray:
        """Returns the rows of all workers ``[count, ...]``, in one message."""
        return self.sum(self._placed(tf.constant(row[None]))).numpy()

    def _traced_all_reduce(self, flat: tf.Tensor) -> tf.Tensor:
        device = self._strategy.extended.worker_devices[0]

        def reduce(value: tf.Tensor) -> tf.Tensor:
            with tf.device(device):  # or the strategy does not know where the sum is to go
                value = tf.identity(value)
            return tf.distribute.get_replica_context().all_reduce("SUM", value)

        total = self._strategy.run(reduce, args=(flat,))
        return tf.ensure_shape(total, flat.shape)

    def _placed(self, tensor: tf.Tensor) -> tf.Tensor:
        """Puts what this worker has between zeros, which others have in its place."""
        before = self.index * tf.shape(tensor)[0]
        after = (self.count - 1 - self.index) * tf.shape(tensor)[0]
        others = [[0, 0]] * (tensor.shape.rank - 1)
        tasks = tensor.shape[0]
        shape = [None if tasks is None else self.count * tasks, *tensor.shape[1:]]
        return tf.ensure_shape(tf.pad(tensor, [[before, after], *others]), shape)

    def _assert_equal(self, counts: tf.Tensor) -> tf.Operation:
        says = (
            f"{validation.MARK_OF_ALL}The {self.count} workers had shares of different sizes in "
            "this meta-batch. Every worker needs as many tasks as the others: give each a "
            "contiguous share of every meta-batch, and leave out a last meta-batch that cannot be "
            "divided."
        )
        return tf.debugging.Assert(tf.reduce_all(counts == counts[0]), [says])


def count_workers() -> int:
    """Returns how many workers ``TF_CONFIG`` has, without connecting them.

    Example:
        >>> count_workers()
        1
    """
    return _place(os.environ.get("TF_CONFIG") or "{}")[1]


def _place(text: str) -> tuple[int, int]:
    """Returns the number of this process and how many there are, of the text of TF_CONFIG."""
    expected = '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}'
    try:
        config = json.loads(text)
        cluster = config.get("cluster", {})
        task = config.get("task", {"type": "worker", "index": 0}) if not cluster else config["task"]
        role, number = task["type"], int(task["index"])
        sizes = {name: len(cluster.get(name, [])) for name in _ROLES}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"TF_CONFIG must be {expected}, got {text!r}.") from error
    if role not in _ROLES or set(cluster) - {*_ROLES}:
        raise ValueError(
            f"TF_CONFIG may have the roles {_ROLES}, got the task {role!r} in a cluster of "
            f"{sorted(cluster)}. Evaluate on the workers: each takes its share."
        )
    if not cluster:
        return 0, 1
    if not 0 <= number < sizes[role]:
        raise ValueError(f"TF_CONFIG names task {number} of {sizes[role]} of type {role!r}.")
    return number + (sizes["chief"] if role == "worker" else 0), sum(sizes.values())


def _addresses(text: str) -> list[str]:
    """Returns the addresses of all processes, in the order of their numbers."""
    cluster = json.loads(text).get("cluster", {})
    return [address for role in _ROLES for address in cluster.get(role, [])]


def _connect() -> tf.distribute.Strategy:
    late = RuntimeError(
        "keras_maml.Workers() must be the first that uses TensorFlow in a process, since it "
        "connects the workers: move it to the top of the program, after the imports; and make it "
        "once only, without a strategy of tf.distribute beside it."
    )
    # TensorFlow does not refuse a second connection, at which earlier tensors are lost.
    if _context.context()._collective_leader is not None:
        raise late
    try:
        with _patient():
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        if "startup" not in str(error):
            raise
        raise late from error
    devices = strategy.extended.worker_devices
    if len(devices) > 1:
        raise NotImplementedError(
            f"A worker uses one device, and this process has {len(devices)}: {devices}. Start one "
            "process per device, each with CUDA_VISIBLE_DEVICES of its own."
        )
    return strategy


@contextlib.contextmanager
def _patient() -> Iterator[None]:
    """Lets workers be silent for longer than the ten seconds that the strategy allows.

    A busy machine does not hear from a worker that compiles for as long. There is no public way.
    """
    context = _context.context()
    context.configure_coordination_service = functools.partial(
        context.configure_coordination_service, heartbeat_timeout_in_ms=1000 * SILENCE
    )
    try:
        yield
    finally:
        del context.configure_coordination_service


def _common_dtype(tensors: list[tf.Tensor]) -> tf.DType:
    """Returns a dtype that holds the values of all, integers up to 2**53."""
    small = (tf.float32, tf.float16, tf.bfloat16)
    return tf.float32 if all(tensor.dtype in small for tensor in tensors) else tf.float64


def _size(tensor: tf.Tensor) -> Any:
    size = tensor.shape.num_elements()
    return tf.size(tensor) if size is None else size
