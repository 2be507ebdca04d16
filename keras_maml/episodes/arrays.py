"""Few-shot classification episodes from an array of images, or of any examples, and labels."""

import numpy as np
import tensorflow as tf

from keras_maml.episodes.sampling import choose, episode_dataset, require_positive, uniform


def from_arrays(
    images: np.ndarray | tf.Tensor,
    labels: np.ndarray,
    *,
    ways: int,
    shots: int,
    queries: int,
    meta_batch_size: int,
    seed: int = 0,
    tasks: int | None = None,
    start: int = 0,
    rotations: bool = False,
    dtype: str = "float32",
    scale: float | None = None,
) -> tf.data.Dataset:
    """Episodes of ``ways`` classes with ``shots + queries`` different examples of each.

    Classes and examples are drawn without replacement, so support and query share no example.
    Class ``k`` of an episode is a random class: its label says nothing about the class. Examples
    stand in the order of their labels. With the same seed, fewer shots see the same classes.

    Args:
        images: ``[N, ...]``, any numeric dtype: images ``[N, H, W, C]`` or ``[N, H, W]``, feature
            vectors ``[N, d]``. One copy is kept in memory, in this dtype; a tensor is kept itself.
        labels: ``[N]``, integers or strings. Classes may differ in size.
        ways: Classes per episode.
        shots: Support examples per class.
        queries: Query examples per class.
        meta_batch_size: Episodes per element, ``B`` below.
        seed: Any integer; each has its own episodes.
        tasks: How many episodes, a multiple of ``meta_batch_size``; ``None``: without end.
        start: Number of the first episode.
        rotations: Whether each class of each episode is turned counter-clockwise by a random
            multiple of 90 degrees, the same for all its examples (needs square images).
        dtype: Floating dtype of the examples that come out.
        scale: Factor applied after the cast; ``None``: 1/255 for uint8, otherwise 1.

    Returns:
        A dataset of ``((x_support, y_support), (x_query, y_query))``: ``x`` of ``dtype``
        ``[B, ways * shots, ...]`` and ``[B, ways * queries, ...]``, ``y`` int32
        ``[B, ways * shots]`` and ``[B, ways * queries]`` in ``0 .. ways - 1``.

    Raises:
        ValueError: If a size is not positive, ``tasks`` is not a multiple of ``meta_batch_size``,
            images and labels differ in length, an image is not finite, there are fewer classes
            than ``ways``, a class has fewer than ``shots + queries`` examples, ``rotations`` is
            asked for what is not a square image, or ``dtype`` is not floating.

    Source: Vinyals et al. 2016 (arXiv 1606.04080), section 4.1; rotations: Finn, Abbeel and Levine
    2017 (arXiv 1703.03400), section 5.2.

    Example:
        >>> images = np.zeros([60, 28, 28, 1], "uint8")
        >>> labels = np.repeat(["a", "b", "c"], 20)
        >>> episodes = from_arrays(
        ...     images, labels, ways=2, shots=1, queries=5, meta_batch_size=4, tasks=8
        ... )
        >>> (x_support, y_support), (x_query, y_query) = next(iter(episodes))
        >>> x_query.shape, y_query.shape
        (TensorShape([4, 10, 28, 28, 1]), TensorShape([4, 10]))
    """
    given, images, labels = images, np.asarray(images), np.asarray(labels)
    classes, counts, members = _group(images, labels)
    check_classes(classes, counts, ways=ways, shots=shots, queries=queries)
    _check_images(images, rotations=rotations)
    dtype = tf.as_dtype(dtype)
    if not dtype.is_floating:
        raise ValueError(f"dtype must be a floating dtype such as 'float32', got {dtype.name!r}.")
    if scale is None:
        scale = 1 / 255 if images.dtype == np.uint8 else 1.0

    starts = np.cumsum(counts, dtype="int32") - counts
    # An eager tensor is captured by reference: a constant in the graph would be copied into it
    # and could not exceed 2 GB.
    pixels = tf.convert_to_tensor(given if tf.is_tensor(given) else images)
    same_size = counts.min() == counts.max()

    def examples(rows: tf.Tensor, turns: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        x = tf.gather(pixels, rows)
        if turns is not None:
            x = rotate(x, turns)
        x = tf.cast(tf.reshape(x, [rows.shape[0], ways * rows.shape[2], *pixels.shape[1:]]), dtype)
        if scale != 1:
            x *= tf.cast(scale, dtype)
        y = np.tile(np.repeat(np.arange(ways, dtype="int32"), rows.shape[2]), [rows.shape[0], 1])
        return x, tf.constant(y)

    def make_batch(indices: tf.Tensor) -> tuple:
        chosen = choose(seed, indices, "classes", (), population=len(counts), count=ways)
        rank = choose(
            seed,
            indices,
            "examples",
            (ways,),
            population=int(counts.max()),
            count=shots + queries,
            available=None if same_size else tf.gather(counts, chosen),
        )
        rows = tf.gather(members, tf.gather(starts, chosen)[..., None] + rank)
        turns = None
        if rotations:
            turns = tf.cast(4 * uniform(seed, indices, "rotations", (ways,)), tf.int32)
        # Split the small row numbers, not the images made of them: that saves a copy.
        return examples(rows[..., :shots], turns), examples(rows[..., shots:], turns)

    return episode_dataset(make_batch, meta_batch_size=meta_batch_size, tasks=tasks, start=start)


def rotate(images: tf.Tensor, turns: tf.Tensor) -> tf.Tensor:
    """Turns images counter-clockwise by multiples of 90 degrees, as `numpy.rot90` does.

    Args:
        images: Any dtype, ``[meta_batch, ways, n, size, size]``, with or without channels at the
            end.
        turns: int32 ``[meta_batch, ways]`` in 0 .. 3, shared by the ``n`` images.

    Returns:
        The turned images, of the same shape and dtype.

    Example:
        >>> image = tf.reshape([[1, 2], [3, 4]], [1, 1, 1, 2, 2])
        >>> rotate(image, tf.constant([[1]]))[0, 0, 0].numpy().tolist()
        [[2, 4], [1, 3]]
    """
    rows, columns = 2, 3
    per_class = tf.reshape(images, [-1, *images.shape[2:]])
    flipped_axes = ((), (rows,), (rows, columns), (columns,))
    # Each group of classes is turned by itself: selecting between four turned copies of
    # everything takes three times as long.
    groups = tf.dynamic_partition(tf.range(per_class.shape[0]), tf.reshape(turns, [-1]), 4)
    turned = []
    for quarter_turns, group in enumerate(groups):
        x = tf.gather(per_class, group)
        if quarter_turns % 2:
            x = tf.transpose(x, [0, 1, columns, rows, *range(4, per_class.shape.rank)])
        turned.append(tf.reverse(x, flipped_axes[quarter_turns]) if quarter_turns else x)
    return tf.reshape(tf.dynamic_stitch(groups, turned), images.shape)


def _group(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classes, their int32 sizes, and the int32 numbers of the examples, class after class."""
    if labels.ndim != 1 or images.ndim < 2 or len(images) != len(labels):
        raise ValueError(
            f"images must be [N, ...] and labels [N], one label per image: got images of shape "
            f"{list(images.shape)} and labels of shape {list(labels.shape)}."
        )
    classes, class_of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return classes, counts.astype("int32"), np.argsort(class_of, kind="stable").astype("int32")


def check_classes(
    classes: np.ndarray,
    counts: np.ndarray,
    *,
    ways: int,
    shots: int,
    queries: int,
    where: str = "labels",
) -> None:
    """Checks that episodes can be drawn from classes.

    Args:
        classes: ``[classes]``, their names, for the error.
        counts: int ``[classes]``, how many examples each has.
        ways: Classes per episode.
        shots: Support examples per class.
        queries: Query examples per class.
        where: Names what the classes come from, for the error.

    Raises:
        ValueError: If a size is not positive, there are fewer classes than ``ways``, or a class
            has fewer than ``shots + queries`` examples.

    Example:
        >>> check_classes(np.array(["a"]), np.array([9]), ways=1, shots=1, queries=8)
    """
    require_positive(ways=ways, shots=shots, queries=queries)
    if len(classes) < ways:
        raise ValueError(
            f"An episode of ways={ways} needs at least {ways} classes, but {where} has "
            f"{len(classes)}. Use fewer ways or more classes."
        )
    small = np.flatnonzero(counts < shots + queries)
    if small.size:
        listed = ", ".join(f"{classes[i]} ({counts[i]})" for i in small[:5])
        raise ValueError(
            f"Every class needs at least shots + queries = {shots} + {queries} = "
            f"{shots + queries} examples, but {small.size} of {len(classes)} classes have fewer: "
            f"{listed}{', ...' if small.size > 5 else ''}. Use fewer shots or queries, or leave "
            f"these classes out."
        )


def _check_images(images: np.ndarray, *, rotations: bool) -> None:
    if not (np.issubdtype(images.dtype, np.number) or images.dtype == bool):
        raise ValueError(f"images must be numbers, got dtype {images.dtype}.")
    if np.issubdtype(images.dtype, np.inexact) and not np.isfinite(images).all():
        bad = np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(axis=1))
        raise ValueError(
            f"images must be finite, but {len(bad)} of {len(images)} hold NaN or infinity; the "
            f"first is images[{bad[0]}]. Repair or remove them."
        )
    if rotations and (images.ndim not in (3, 4) or images.shape[1] != images.shape[2]):
        raise ValueError(
            f"rotations=True needs square images, [N, H, W, C] or [N, H, W] with H = W: got shape "
            f"{list(images.shape)}. Crop or resize the images, or use rotations=False."
        )
