"""Random numbers that do not depend on how the operation that draws them is executed."""

from collections.abc import Sequence

import tensorflow as tf


def hashed_uniform(seed: tf.Tensor, shape: Sequence[int] | tf.Tensor) -> tf.Tensor:
    """Uniform numbers that are the same vectorised or not, compiled or not.

    Every element is a hash of the seed and of its own position (SplitMix64's finaliser; Steele,
    Lea and Flood 2014), so the numbers do not depend on how the operation is executed.

    Args:
        seed: Two integers, the state of a `keras.random.SeedGenerator`.
        shape: The shape of the result.

    Returns:
        float32 numbers in [0, 1).
    """
    words = tf.cast(tf.cast(seed, tf.uint32), tf.uint64)
    key = _mix(_mix(words[0] + _GOLDEN) ^ (words[1] + _GOLDEN))
    size = tf.reduce_prod(shape)
    position = tf.cast(tf.range(size), tf.uint64)
    bits = tf.bitwise.right_shift(_mix(key + position * _GOLDEN), tf.constant(40, tf.uint64))
    return tf.reshape(tf.cast(tf.cast(bits, tf.int32), tf.float32) * 2.0**-24, shape)


_GOLDEN = 0x9E3779B97F4A7C15


def _mix(z: tf.Tensor) -> tf.Tensor:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ tf.bitwise.right_shift(z, tf.constant(shift, tf.uint64))) * factor
    return z ^ tf.bitwise.right_shift(z, tf.constant(31, tf.uint64))
