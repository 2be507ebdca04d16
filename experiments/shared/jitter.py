"""Drawings as other hands and pens would draw them: shifted, turned, larger, with wider strokes."""

from typing import Any

import numpy as np
import tensorflow as tf

from keras_maml.episodes.sampling import uniform

SHIFT = 3.0
"""Most pixels by which a drawing is moved, in each direction."""
ANGLE = 10.0
"""Most degrees by which it is turned."""
SCALE = 0.15
"""Largest part by which it is made higher or lower, wider or narrower."""


def jittered(
    episodes: tf.data.Dataset, *, seed: int, meta_batch_size: int, start: int = 0
) -> tf.data.Dataset:
    """Redraws every image of episodes by itself, support and query alike.

    Args:
        episodes: Of ``((x_support, y_support), (x_query, y_query))``, ``x`` float32
            ``[B, n, H, W, 1]`` with ink 1 on paper 0.
        seed: Any integer. Image i of episode j of a seed is always redrawn in the same way.
        meta_batch_size: ``B``.
        start: The number of the first episode.

    Returns:
        The same episodes with other images, of the same shapes.
    """

    def redrawn(number: tf.Tensor, batch: Any) -> Any:
        indices = start + meta_batch_size * number + tf.range(meta_batch_size, dtype=tf.int64)
        (x_support, y_support), (x_query, y_query) = batch
        return (
            (redraw(x_support, seed, indices, "jitter support"), y_support),
            (redraw(x_query, seed, indices, "jitter query"), y_query),
        )

    batches = episodes.enumerate().map(redrawn, num_parallel_calls=tf.data.AUTOTUNE)
    return batches.prefetch(tf.data.AUTOTUNE)


def redraw(images: tf.Tensor, seed: int, indices: tf.Tensor, stream: str) -> tf.Tensor:
    """Redraws images of episodes.

    Args:
        images: float32 ``[B, n, H, W, 1]``.
        seed: Any integer.
        indices: int64 ``[B]``, the numbers of the episodes.
        stream: Name of the draw; others are independent.

    Returns:
        float32 ``[B, n, H, W, 1]``.
    """
    _, count, height, width, _ = images.shape
    flat = tf.reshape(images, [-1, height, width, 1])
    draws = tf.reshape(uniform(seed, indices, stream, (count, 6)), [-1, 6])
    turn, tall, wide, down, right, pen = tf.unstack(draws, axis=1)
    angle = (2 * turn - 1) * np.deg2rad(ANGLE)
    # Where a pixel of the new image comes from, around the middle of both.
    rows, columns = 1 + (2 * tall - 1) * SCALE, 1 + (2 * wide - 1) * SCALE
    a, b = columns * tf.cos(angle), -columns * tf.sin(angle)
    c, d = rows * tf.sin(angle), rows * tf.cos(angle)
    x, y = (width - 1) / 2, (height - 1) / 2
    moved_x, moved_y = x + (2 * right - 1) * SHIFT, y + (2 * down - 1) * SHIFT
    none = tf.zeros_like(a)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=flat,
        transforms=tf.stack(
            [a, b, x - a * moved_x - b * moved_y, c, d, y - c * moved_x - d * moved_y, none, none],
            axis=1,
        ),
        output_shape=[height, width],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    # A pen that is up to two pixels wider: part of the way to where a square of three would draw.
    wider = tf.nn.max_pool2d(moved, 3, 1, "SAME")
    return tf.reshape(moved + pen[:, None, None, None] * (wider - moved), images.shape)
