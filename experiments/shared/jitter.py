"""Images as they could have been: drawn by another hand and pen, photographed in another light."""

import dataclasses
from collections.abc import Callable
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

PART = 0.75
"""Smallest part of a photograph's height and width that is kept; it fills the image."""
LIGHT = 0.3
"""Largest part by which it is made brighter or darker, and its contrast higher or lower."""
TINT = 0.1
"""Largest part by which each of its colours is made brighter or darker."""


@dataclasses.dataclass(frozen=True)
class Jitter:
    """A way to redraw images.

    Attributes:
        draws: How many numbers it takes for an image.
        redraw: From images, float32 ``[n, H, W, C]``, and numbers in ``[0, 1)``, float32
            ``[n, draws]``, to other images of the same shape.
    """

    draws: int
    redraw: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

    def __call__(self, images: tf.Tensor, seed: int, indices: tf.Tensor, stream: str) -> tf.Tensor:
        """Redraws images of episodes, each by itself.

        Args:
            images: float32 ``[B, n, H, W, C]``.
            seed: Any integer.
            indices: int64 ``[B]``, the numbers of the episodes.
            stream: Name of the draw; others are independent.

        Returns:
            float32 ``[B, n, H, W, C]``.
        """
        flat = tf.reshape(images, [-1, *images.shape[2:]])
        draws = uniform(seed, indices, stream, (images.shape[1], self.draws))
        return tf.reshape(self.redraw(flat, tf.reshape(draws, [-1, self.draws])), images.shape)

    def of_episodes(
        self, episodes: tf.data.Dataset, *, seed: int, meta_batch_size: int, start: int = 0
    ) -> tf.data.Dataset:
        """Redraws every image of episodes by itself, support and query alike.

        Args:
            episodes: Of ``((x_support, y_support), (x_query, y_query))``, ``x`` float32
                ``[B, n, H, W, C]``.
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
                (self(x_support, seed, indices, "jitter support"), y_support),
                (self(x_query, seed, indices, "jitter query"), y_query),
            )

        batches = episodes.enumerate().map(redrawn, num_parallel_calls=tf.data.AUTOTUNE)
        return batches.prefetch(tf.data.AUTOTUNE)


def _draw(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Shifts, turns and resizes drawings with ink 1 on paper 0, and draws with wider strokes."""
    turn, tall, wide, down, right, pen = tf.unstack(draws, axis=1)
    angle = (2 * turn - 1) * np.deg2rad(ANGLE)
    rows, columns = 1 + (2 * tall - 1) * SCALE, 1 + (2 * wide - 1) * SCALE
    moved = _mapped(
        images,
        columns=(columns * tf.cos(angle), -columns * tf.sin(angle)),
        rows=(rows * tf.sin(angle), rows * tf.cos(angle)),
        shift=((2 * right - 1) * SHIFT, (2 * down - 1) * SHIFT),
    )
    # A pen that is up to two pixels wider: part of the way to where a square of three would draw.
    wider = tf.nn.max_pool2d(moved, 3, 1, "SAME")
    return moved + pen[:, None, None, None] * (wider - moved)


def _photograph(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Takes a part of photographs in 0 .. 1, maybe mirrored, in another light."""
    mirror, size, down, right, bright, contrast = tf.unstack(draws[:, :6], axis=1)
    _, height, width, channels = images.shape
    part = 1 - size * (1 - PART)
    # What is left out of a side in pixels of the new image, half of it on either side.
    rest = (1 / part - 1) / 2
    none = tf.zeros_like(part)
    seen = _mapped(
        images,
        columns=(tf.where(mirror < 0.5, -part, part), none),
        rows=(none, part),
        shift=((2 * right - 1) * rest * (width - 1), (2 * down - 1) * rest * (height - 1)),
    )
    middle = tf.reduce_mean(seen, axis=[1, 2, 3], keepdims=True)
    seen = middle + _gain(contrast, LIGHT)[:, None, None, None] * (seen - middle)
    tints = _gain(draws[:, 6 : 6 + channels], TINT) * _gain(bright, LIGHT)[:, None]
    return tf.clip_by_value(seen * tints[:, None, None, :], 0.0, 1.0)


def _gain(draw: tf.Tensor, most: float) -> tf.Tensor:
    return 1 + (2 * draw - 1) * most


def _mapped(
    images: tf.Tensor,
    *,
    columns: tuple[tf.Tensor, tf.Tensor],
    rows: tuple[tf.Tensor, tf.Tensor],
    shift: tuple[tf.Tensor, tf.Tensor],
) -> tf.Tensor:
    """Moves pixels along an affine map around the middle of images, with 0 from outside.

    Args:
        images: float32 ``[n, H, W, C]``.
        columns: ``[n]`` each: how the column that a pixel comes from grows with the new image's
            column and with its row.
        rows: The same of the row.
        shift: ``[n]`` each: pixels to the right and down, in the new image.
    """
    _, height, width, _ = images.shape
    (a, b), (c, d), (right, down) = columns, rows, shift
    x, y = (width - 1) / 2, (height - 1) / 2
    moved_x, moved_y = x + right, y + down
    none = tf.zeros_like(a)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack(
            [a, b, x - a * moved_x - b * moved_y, c, d, y - c * moved_x - d * moved_y, none, none],
            axis=1,
        ),
        output_shape=[height, width],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )


DRAWINGS = Jitter(draws=6, redraw=_draw)
"""Shifted, turned, larger or smaller, with wider strokes: one channel, ink 1 on paper 0."""
PHOTOGRAPHS = Jitter(draws=9, redraw=_photograph)
"""A part of them, maybe mirrored, in another light: three channels in 0 .. 1."""
