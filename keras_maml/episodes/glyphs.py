"""Few-shot classification of drawn glyphs: a small set of handwriting that needs no data."""

import functools

import numpy as np
import tensorflow as tf

from keras_maml.episodes.arrays import check_classes
from keras_maml.episodes.class_lists import SPLITS
from keras_maml.episodes.image_classes import ImageClasses, aligned_empty
from keras_maml.episodes.sampling import check_stream, uniform
from keras_maml.validation import check_choice

SIZE = 28
"""Height and width of a drawing, in pixels."""
DRAWINGS = 20
CLASSES = {"train": range(0, 64), "validation": range(64, 80), "test": range(80, 100)}
"""Numbers of the glyphs in each split."""

STROKES = 4
"""Most strokes of a glyph."""
POINTS = 4
"""Points through which a stroke passes."""
SAMPLES = 32
"""Dots from which a stroke is drawn."""


def glyphs(
    *,
    split: str = "train",
    ways: int = 5,
    shots: int = 1,
    queries: int = 1,
    meta_batch_size: int = 32,
    seed: int = 0,
    tasks: int | None = None,
    start: int = 0,
    shard: tuple[int, int] = (0, 1),
    rotations: bool = False,
) -> tf.data.Dataset:
    """Episodes of ``ways`` glyphs with ``shots + queries`` drawings of each.

    The glyphs are 100 made-up characters of two to four strokes; every drawing bends, turns and
    shifts them as a hand does. They are for tests, demonstrations and first experiments: training
    takes seconds, and no file is read. The images of a split take at most 1 MB.

    Args:
        split: "train" (64 glyphs), "validation" (16) or "test" (20).
        ways: Glyphs per episode.
        shots: Support drawings per glyph.
        queries: Query drawings per glyph.
        meta_batch_size: Episodes per element, ``B`` below.
        seed: Any integer; each has its own episodes, of the same drawings.
        tasks: How many episodes, a multiple of ``meta_batch_size``; ``None``: without end.
        start: Number of the first episode.
        shard: ``(worker, workers)``, see `sampling.episode_dataset`.
        rotations: Whether each glyph of each episode is turned by a random multiple of 90 degrees.

    Returns:
        A dataset of ``((x_support, y_support), (x_query, y_query))``: ``x`` float32
        ``[B, ways * shots, 28, 28, 1]`` and ``[B, ways * queries, 28, 28, 1]`` with ink 1 on paper
        0, ``y`` int32 ``[B, ways * shots]`` and ``[B, ways * queries]`` in ``0 .. ways - 1``.

    Raises:
        ValueError: If there is no such split, a size is not positive, ``tasks`` is not a multiple
            of ``meta_batch_size``, the split has fewer than ``ways`` glyphs, or
            ``shots + queries`` exceeds 20.

    Example:
        >>> episodes = glyphs(ways=5, shots=1, queries=5, meta_batch_size=4, tasks=4)
        >>> (x_support, y_support), (x_query, y_query) = next(iter(episodes))
        >>> x_support.shape, x_query.shape
        (TensorShape([4, 5, 28, 28, 1]), TensorShape([4, 25, 28, 28, 1]))
    """
    check_choice("split", split, SPLITS)
    check_stream(meta_batch_size=meta_batch_size, tasks=tasks, start=start, shard=shard)
    numbers = np.array(CLASSES[split])
    sizes = np.full(len(numbers), DRAWINGS)
    check_classes(numbers, sizes, ways=ways, shots=shots, queries=queries, where=f"split={split!r}")
    return load_glyphs(split).episodes(
        ways=ways,
        shots=shots,
        queries=queries,
        meta_batch_size=meta_batch_size,
        seed=seed,
        tasks=tasks,
        start=start,
        shard=shard,
        rotations=rotations,
    )


@functools.lru_cache
def load_glyphs(split: str = "train") -> ImageClasses:
    """Draws the glyphs of a split, 20 times each.

    Args:
        split: "train", "validation" or "test".

    Returns:
        The glyphs, uint8 ``[20 * glyphs, 28, 28, 1]`` with ink 255 on paper 0; not to be changed:
        they are drawn once.

    Raises:
        ValueError: If there is no such split.

    Example:
        >>> data = load_glyphs("validation")
        >>> data.images.shape, data.names[0]
        ((320, 28, 28, 1), 'glyph64')
    """
    check_choice("split", split, SPLITS)
    numbers = CLASSES[split]
    images = aligned_empty([len(numbers), DRAWINGS, SIZE, SIZE, 1])
    for image, number in zip(images, numbers, strict=True):
        image[..., 0] = draw_glyph(number, np.arange(DRAWINGS))
    names = tuple(f"glyph{number:02d}" for number in numbers)
    return ImageClasses(images.reshape(-1, SIZE, SIZE, 1), names, (DRAWINGS,) * len(names))


def draw_glyph(number: int, drawings: np.ndarray) -> np.ndarray:
    """Draws a glyph by hand, as it were: a function of its number and that of the drawing alone.

    Args:
        number: Which glyph: any integer.
        drawings: int ``[n]``: which drawings of it, from 0.

    Returns:
        uint8 ``[n, 28, 28]`` with ink 255 on paper 0.

    Example:
        >>> several = draw_glyph(7, np.arange(3))
        >>> bool((several[2] == draw_glyph(7, np.array([2]))[0]).all())
        True
    """
    indices = tf.constant(drawings, tf.int64)

    def between(low: float, high: float, what: str, shape: tuple[int, ...]) -> np.ndarray:
        draws = uniform(number, indices, f"glyph {what}", shape).numpy().astype("float64")
        return low + (high - low) * draws

    strokes = glyph_strokes(number)
    count = len(strokes)
    # A hand misses every point a little, and a whole stroke in the same way.
    points = strokes + between(-0.035, 0.035, "points", (count, POINTS, 2))
    points += between(-0.025, 0.025, "strokes", (count, 1, 2))
    angle = between(-0.16, 0.16, "angle", (1, 1))
    scale = between(0.85, 1.1, "scale", (1, 1, 2))
    slant = between(-0.15, 0.15, "slant", (1, 1))
    x, y = np.moveaxis((points - 0.5) * scale, -1, 0)
    x = x + slant * y
    turned = np.stack(
        [np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y]
    )
    curves = np.moveaxis(turned, 0, -1) + 0.5 + between(-0.04, 0.04, "shift", (1, 1, 2))
    dots = SIZE * np.einsum("tp,nspc->nstc", _spline(), curves).reshape(len(drawings), -1, 2)

    centres = np.arange(SIZE) + 0.5
    across = (centres - dots[..., :1]) ** 2  # [n, dots, SIZE]
    down = (centres - dots[..., 1:]) ** 2
    nearest = (down[..., :, None] + across[..., None, :]).min(axis=1)
    pen = between(0.85, 1.15, "pen", (1, 1))  # radius of the pen, in pixels
    return np.round(255 * np.clip(pen + 0.5 - np.sqrt(nearest), 0, 1)).astype("uint8")


def glyph_strokes(number: int) -> np.ndarray:
    """The strokes of a glyph before any hand has drawn it.

    A stroke goes on in steps of one length, each turning from the last, so that strokes are lines,
    hooks and loops. About every second one starts at a point of the stroke before it.

    Args:
        number: Which glyph.

    Returns:
        float64 ``[strokes, 4, 2]``: points (x, y) in the unit square, through which each of the
        two to four strokes passes.

    Example:
        >>> glyph_strokes(0).shape[1:]
        (4, 2)
    """
    draws = uniform(number, tf.constant([0], tf.int64), "glyph", (STROKES, POINTS + 4)).numpy()[0]
    draws = draws.astype("float64")
    count = 2 + int((STROKES - 1) * draws[0, -1])
    start, heading = draws[:, :2], 2 * np.pi * draws[:, 2]
    turns = np.cumsum((draws[:, 3:6] - 0.5) * 3.6, axis=1)
    lengths = 0.16 + 0.2 * draws[:, 6:7]
    angles = heading[:, None] + turns
    steps = lengths[..., None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    points = np.zeros([STROKES, POINTS, 2])
    points[:, 1:] = np.cumsum(steps, axis=1)
    for i in range(STROKES):
        joined = i and draws[i, -1] < 0.5
        points[i] += points[i - 1, int(POINTS * start[i, 0])] if joined else start[i]
    points = points[:count]
    # The whole is made to fill its square.
    low, high = points.min(axis=(0, 1)), points.max(axis=(0, 1))
    return 0.16 + 0.68 * (points - low) / np.maximum(high - low, 0.45)


def _spline() -> np.ndarray:
    """Weights ``[SAMPLES, POINTS]`` of points of a cubic curve through all four points."""
    t = np.linspace(0, 1, SAMPLES)
    knots = np.linspace(0, 1, POINTS)
    basis = [
        np.prod([(t - other) / (own - other) for other in knots if other != own], axis=0)
        for own in knots
    ]
    return np.stack(basis, axis=1)
