"""Random numbers and the dataset builder shared by every source of episodes.

Episode ``i`` of a seed is a pure function of ``(seed, i)``. It does not depend on the
meta-batch size, on where the stream started, or on how many workers build it, so a run resumes at
step ``n`` with ``start = n * meta_batch_size`` and sees what it would have seen.

The numbers are those of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014), whose ``k``-th output is a function of the state and of ``k`` alone. Each
pair ``(seed, stream)`` is hashed to a state; an episode that draws ``n`` numbers from a stream owns
outputs ``i * n`` to ``(i + 1) * n - 1``. Episodes of a stream therefore never share an output, and
streams overlap only if two 64-bit hashes fall close together.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_maml.validation import check_count

WEYL_INCREMENT = 0x9E3779B97F4A7C15
"""SplitMix64 adds this to its state before each output (2**64 divided by the golden ratio)."""
# Bytes of a meta-batch. Larger ones, whose steps take long beside making them, are made one by one:
# several at once would be most of the memory of a training.
LARGEST_AHEAD = 2**28


def splitmix64(state: tf.Tensor) -> tf.Tensor:
    """Turns states into outputs of SplitMix64.

    The function is a bijection of the 64-bit integers: different states give different outputs.

    Args:
        state: uint64, any shape. Output ``k = 0, 1, ...`` of a generator seeded with ``s`` is that
            of the state ``s + (k + 1) * WEYL_INCREMENT``, modulo 2**64.

    Returns:
        uint64 of the same shape.

    Source: Steele, Lea and Flood 2014, figure 16 (with the constants of Stafford's "Mix13").

    Example:
        >>> hex(splitmix64(tf.constant(WEYL_INCREMENT, tf.uint64)).numpy())
        '0xe220a8397b1dcdaf'
    """
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = _xor_shift(state, shift) * tf.constant(factor, tf.uint64)
    return _xor_shift(state, 31)


def _xor_shift(state: tf.Tensor, shift: int) -> tf.Tensor:
    shifted = tf.bitwise.right_shift(state, tf.constant(shift, tf.uint64))
    return tf.bitwise.bitwise_xor(state, shifted)


def random_bits(
    seed: int, episode_index: tf.Tensor, stream: str, shape: Sequence[int]
) -> tf.Tensor:
    """Draws 64 random bits per entry for each episode.

    Args:
        seed: Any integer, also negative or beyond 64 bits.
        episode_index: int64 ``[meta_batch]``, the numbers of the episodes.
        stream: Name of the draw. Draws with different names are independent.
        shape: Shape of one episode's draw; an episode's numbers are a function of the shape too.

    Returns:
        uint64 ``[meta_batch, *shape]``.

    Example:
        >>> random_bits(0, tf.range(4, dtype=tf.int64), "inputs", (2, 3)).shape
        TensorShape([4, 2, 3])
    """
    if not isinstance(seed, int | np.integer):
        raise ValueError(f"seed must be an integer, got {seed!r}.")
    key = hashlib.blake2b(f"{int(seed)}/{stream}".encode(), digest_size=8).digest()
    size = math.prod(shape)
    # State of output k = i * size + j: its part in j is a constant, its part in i one product.
    within = int.from_bytes(key, "little") + np.arange(1, size + 1, dtype=np.uint64) * np.uint64(
        WEYL_INCREMENT
    )
    stride = tf.constant(size * WEYL_INCREMENT % 2**64, tf.uint64)
    state = tf.cast(episode_index, tf.uint64)[:, None] * stride + tf.constant(within)
    return tf.reshape(splitmix64(state), [episode_index.shape[0], *shape])


def uniform(seed: int, episode_index: tf.Tensor, stream: str, shape: Sequence[int]) -> tf.Tensor:
    """Draws uniform numbers for each episode.

    Args:
        seed: Any integer.
        episode_index: int64 ``[meta_batch]``, the numbers of the episodes.
        stream: Name of the draw. Draws with different names are independent.
        shape: Shape of one episode's draw.

    Returns:
        float32 ``[meta_batch, *shape]`` in ``[0, 1)``, multiples of 2**-24.

    Example:
        >>> draws = uniform(0, tf.constant([7, 8], tf.int64), "phase", (3,))
        >>> again = uniform(0, tf.constant([8, 9], tf.int64), "phase", (3,))
        >>> bool(tf.reduce_all(draws[1] == again[0]))
        True
    """
    bits = random_bits(seed, episode_index, stream, shape)
    # 24 bits are what float32 holds exactly: rounding can never give 1.
    high = tf.bitwise.right_shift(bits, tf.constant(40, tf.uint64))
    return tf.cast(high, tf.float32) * 2.0**-24


def choose(
    seed: int,
    episode_index: tf.Tensor,
    stream: str,
    shape: Sequence[int],
    *,
    population: int,
    count: int,
    available: tf.Tensor | None = None,
) -> tf.Tensor:
    """Draws without replacement, in random order.

    Every member of the population gets a random key; the largest keys win. With the same seed, a
    smaller ``count`` gives the first entries of a larger one.

    Args:
        seed: Any integer.
        episode_index: int64 ``[meta_batch]``, the numbers of the episodes.
        stream: Name of the draw. Draws with different names are independent.
        shape: How many independent choices one episode makes, as a shape.
        population: Size of the population.
        count: How many members each choice takes, at most ``population``.
        available: int32 ``[meta_batch, *shape]``; where given, a choice is made among the first
            ``available`` members only. At least ``count`` everywhere.

    Returns:
        int32 ``[meta_batch, *shape, count]``, all different along the last axis.

    Example:
        >>> cards = choose(0, tf.range(2, dtype=tf.int64), "cards", (), population=52, count=52)
        >>> sorted(cards[0].numpy().tolist()) == list(range(52))
        True
    """
    bits = random_bits(seed, episode_index, stream, (*shape, population))
    # 63 bits: keys as good as never tie, and -1 is free to mark what must not be chosen.
    keys = tf.bitcast(tf.bitwise.right_shift(bits, tf.constant(1, tf.uint64)), tf.int64)
    if available is not None:
        keys = tf.where(
            tf.range(population) < available[..., None], keys, tf.constant(-1, tf.int64)
        )
    return tf.math.top_k(keys, count).indices


def require_positive(**sizes: int) -> None:
    """Checks that every size is an integer of at least 1.

    Args:
        **sizes: The values under the names the caller knows them by.

    Raises:
        ValueError: If one is not.

    Example:
        >>> require_positive(ways=5, shots=0)
        Traceback (most recent call last):
        ...
        ValueError: shots must be an integer of at least 1, got 0.
    """
    for name, value in sizes.items():
        check_count(name, value, minimum=1)


def check_stream(
    *, meta_batch_size: int, tasks: int | None, start: int, shard: tuple[int, int] = (0, 1)
) -> None:
    """Checks the arguments that say which episodes a dataset holds.

    Args:
        meta_batch_size: Episodes per element.
        tasks: How many episodes; ``None``: without end.
        start: Number of the first episode.
        shard: ``(worker, workers)``.

    Raises:
        ValueError: If a size is not positive, ``start`` is negative, ``tasks`` is not a multiple
            of ``meta_batch_size``, that is none of ``workers``, or there is no such worker.

    Example:
        >>> check_stream(meta_batch_size=4, tasks=8, start=0)
    """
    require_positive(meta_batch_size=meta_batch_size)
    check_count("start", start)
    check_shard(shard, meta_batch_size)
    if tasks is None:
        return
    require_positive(tasks=tasks)
    if tasks % meta_batch_size:
        nearest = math.ceil(tasks / meta_batch_size) * meta_batch_size
        raise ValueError(
            f"tasks must be a multiple of meta_batch_size, so that every meta-batch has the same "
            f"shape (XLA compiles once): got tasks={tasks} and meta_batch_size={meta_batch_size}. "
            f"Use tasks={nearest}, or a meta_batch_size that divides {tasks}."
        )


def check_shard(shard: tuple[int, int], meta_batch_size: int) -> None:
    """Checks which share of every meta-batch a data set is to hold.

    Args:
        shard: ``(worker, workers)``: the share of one worker, of several.
        meta_batch_size: Episodes per meta-batch, those of all workers.

    Raises:
        ValueError: If it is no pair, there is no such worker, or shares would not be equal.

    Example:
        >>> check_shard((2, 4), meta_batch_size=32)
    """
    if not isinstance(shard, (tuple, list)) or len(shard) != 2:
        raise ValueError(
            f"shard must be (worker, workers), such as keras_maml.Workers().shard, got {shard!r}."
        )
    worker, workers = shard
    check_count("shard[1], the number of workers,", workers, minimum=1)
    check_count("shard[0], the number of this worker,", worker)
    if worker >= workers:
        raise ValueError(
            f"shard=(worker, workers) counts workers from 0, got worker {worker} of {workers}."
        )
    if meta_batch_size % workers:
        nearest = math.ceil(meta_batch_size / workers) * workers
        raise ValueError(
            f"meta_batch_size, the episodes of all workers together, must be a multiple of their "
            f"number, so that every worker has as many: got {meta_batch_size} for {workers} "
            f"workers. Use meta_batch_size={nearest}, or a number of workers that divides "
            f"{meta_batch_size}."
        )


def episode_dataset(
    make_batch: Callable[[tf.Tensor], Any],
    *,
    meta_batch_size: int,
    tasks: int | None = None,
    start: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """Builds a dataset of meta-batches from a function of the episode numbers.

    Args:
        make_batch: Maps int64 ``[meta_batch_size]``, the numbers of the episodes, to one element
            ``((x_support, y_support), (x_query, y_query))`` whose arrays have the leading axis
            ``meta_batch_size``. It is traced once; give its arrays static shapes, as XLA needs.
        meta_batch_size: Tasks per element.
        tasks: How many episodes the dataset holds, a multiple of ``meta_batch_size``. ``None``:
            the dataset never ends.
        start: Number of the first episode.
        shard: ``(worker, workers)``: of ``workers`` equal parts of every meta-batch, which follow
            each other in the order of the episodes, the one that the data set holds, with
            ``meta_batch_size / workers`` tasks; no episode of others is made. By default all.

    Returns:
        A dataset of ``tasks / meta_batch_size`` elements (its cardinality), in the order of the
        episodes.

    Raises:
        ValueError: If a size is not positive, ``start`` is negative, ``tasks`` is not a multiple
            of ``meta_batch_size``, that is none of ``workers``, or there is no such worker.

    Example:
        >>> batches = episode_dataset(lambda i: 10 * i, meta_batch_size=2, tasks=4, start=6)
        >>> [batch.numpy().tolist() for batch in batches]
        [[60, 70], [80, 90]]
        >>> share = episode_dataset(lambda i: 10 * i, meta_batch_size=2, tasks=4, shard=(1, 2))
        >>> [batch.numpy().tolist() for batch in share]
        [[10], [30]]
    """
    check_stream(meta_batch_size=meta_batch_size, tasks=tasks, start=start, shard=shard)
    worker, workers = shard
    share = meta_batch_size // workers
    if tasks is None:
        firsts = tf.data.Dataset.counter(start, meta_batch_size)
    else:
        firsts = tf.data.Dataset.range(start, start + tasks, meta_batch_size)

    @tf.autograph.experimental.do_not_convert  # Errors of make_batch keep their own traceback.
    def batch_from(first: tf.Tensor) -> Any:
        return make_batch(first + worker * share + tf.range(share, dtype=tf.int64))

    # The default rewriting gains nothing here, and would copy the images that make_batch holds.
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    batches = firsts.map(batch_from, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    if _bytes_of(batches.element_spec) > LARGEST_AHEAD:
        return firsts.map(batch_from).with_options(options)
    return batches.prefetch(tf.data.AUTOTUNE).with_options(options)


def _bytes_of(spec: Any) -> int:
    """Returns how large an element is, as far as its shapes are known."""
    arrays = [array for array in tf.nest.flatten(spec) if array.shape.is_fully_defined()]
    return sum(array.dtype.size * array.shape.num_elements() for array in arrays)
