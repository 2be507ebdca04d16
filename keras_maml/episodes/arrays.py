"""Few-shot classification episodes from an array of images, or of any examples, and labels."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_maml.episodes.examples import Examples, count_examples, examples_of
from keras_maml.episodes.plain_arrays import decoded, plain_array
from keras_maml.episodes.sampling import choose, episode_dataset, require_positive, uniform


def from_arrays(
    images: Any,
    labels: Any,
    *,
    ways: int,
    shots: int,
    queries: int,
    meta_batch_size: int,
    seed: int = 0,
    tasks: int | None = None,
    start: int = 0,
    shard: tuple[int, int] = (0, 1),
    rotations: bool = False,
    dtype: str | Mapping[str, str] | None = None,
    scale: float | Mapping[str, float] | None = None,
) -> tf.data.Dataset:
    """Episodes of ``ways`` classes with ``shots + queries`` different examples of each.

    Classes and examples are drawn without replacement, so support and query share no example.
    Class ``k`` of an episode is a random class: its label says nothing about the class. Examples
    stand in the order of their labels. With the same seed, fewer shots see the same classes.

    Args:
        images: ``[N, ...]``, numbers or texts: images ``[N, H, W, C]`` or ``[N, H, W]``, feature
            vectors ``[N, d]``, token ids ``[N, T]``, texts ``[N]``; or a dictionary of such arrays
            by the names of a model's inputs. One copy is kept in memory, in this dtype; a tensor
            is kept itself.
        labels: ``[N]`` or ``[N, 1]``, integers or texts; or one-hot ``[N, classes]``. Classes may
            differ in size.
        ways: Classes per episode.
        shots: Support examples per class.
        queries: Query examples per class.
        meta_batch_size: Episodes per element, ``B`` below.
        seed: Any integer; each has its own episodes.
        tasks: How many episodes, a multiple of ``meta_batch_size``; ``None``: without end.
        start: Number of the first episode.
        shard: ``(worker, workers)``, see `sampling.episode_dataset`.
        rotations: Whether each class of each episode is turned counter-clockwise by a random
            multiple of 90 degrees, the same for all its examples (needs square images).
        dtype: Of the examples that come out, if they are numbers; ``None``: float32, but integers
            ``[N, T]`` other than uint8 are taken for token ids and stay what they are. Several
            arrays can have one each, by name.
        scale: Factor applied after the cast; ``None``: 1/255 for uint8 and for images of other
            integers that are all in 0..255, otherwise 1, see `examples.examples_of`. Give it for
            integers other than uint8, so that splits that are calls of their own agree.

    Returns:
        A dataset of ``((x_support, y_support), (x_query, y_query))``: ``x`` (a dictionary if
        ``images`` is one) ``[B, ways * shots, ...]`` and ``[B, ways * queries, ...]``, ``y`` int32
        ``[B, ways * shots]`` and ``[B, ways * queries]`` in ``0 .. ways - 1``.

    Raises:
        ValueError: If a size is not positive, ``tasks`` is not a multiple of ``meta_batch_size``,
            images and labels differ in length, a label is missing, an image is not finite, there
            are fewer classes than ``ways``, a class has fewer than ``shots + queries`` examples,
            ``rotations`` is asked for what is not a square image, or as `examples.examples_of`
            does.

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
    parts = examples_of(images, dtype=dtype, scale=scale)
    classes, counts, members = _group(count_examples(parts), labels)
    check_classes(classes, counts, ways=ways, shots=shots, queries=queries)
    if rotations:
        # Other inputs beside the images stay as they are.
        images = [part for part in tf.nest.flatten(parts) if part.is_image]
        for part in images or tf.nest.flatten(parts)[:1]:
            check_square(part.values.shape)

    starts = np.cumsum(counts, dtype="int32") - counts
    same_size = counts.min() == counts.max()

    def examples(rows: tf.Tensor, turns: tf.Tensor | None) -> tuple[Any, tf.Tensor]:
        def taken(part: Examples) -> tf.Tensor:
            x = tf.gather(part.values, rows)
            if turns is not None and part.is_image:
                x = rotate(x, turns)
            return part.finish(
                tf.reshape(x, [rows.shape[0], ways * rows.shape[2], *part.values.shape[1:]])
            )

        x = tf.nest.map_structure(taken, parts)
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

    return episode_dataset(
        make_batch, meta_batch_size=meta_batch_size, tasks=tasks, start=start, shard=shard
    )


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


def _group(examples: int, labels: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classes, their int32 sizes, and the int32 numbers of the examples, class after class."""
    labels = class_labels(labels)
    if len(labels) != examples:
        raise ValueError(
            f"There must be one label per example, got {examples} examples in images and "
            f"{len(labels)} labels."
        )
    classes, class_of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return classes, counts.astype("int32"), np.argsort(class_of, kind="stable").astype("int32")


def class_labels(labels: Any) -> np.ndarray:
    """Labels in any of the forms in which people have them, as one per example.

    Args:
        labels: ``[N]`` or ``[N, 1]``, integers or texts; or one-hot ``[N, classes]``: 1 in the
            column of the class, 0 elsewhere.

    Returns:
        ``[N]``; of one-hot labels the int64 numbers of the columns.

    Raises:
        ValueError: If they have another form, or some are missing.

    Example:
        >>> class_labels([[0.0, 1.0], [1.0, 0.0]]).tolist(), class_labels([["a"], ["b"]]).tolist()
        ([1, 0], ['a', 'b'])
    """
    labels = decoded(plain_array(labels, "labels"))
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    elif labels.ndim == 2 and labels.dtype.kind in "biuf":
        one_hot = np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all()
        if one_hot:
            return labels.argmax(axis=1)
    if labels.ndim != 1:
        raise ValueError(
            f"labels must be [N] or [N, 1], a class per example, or one-hot [N, classes] with one "
            f"1 in each row, got shape {list(labels.shape)} and dtype {labels.dtype}. Pass the "
            "class of each example."
        )
    missing = np.flatnonzero(~np.isfinite(labels)) if labels.dtype.kind == "f" else []
    if len(missing):
        raise ValueError(
            f"Every example must have a label, but {len(missing)} have NaN or infinity; the first "
            f"is labels[{missing[0]}]. Fill in or remove them."
        )
    return labels


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


def check_square(shape: Sequence[int | None]) -> None:
    """Checks that images can be turned.

    Args:
        shape: Of the images, ``[N, H, W, C]`` or ``[N, H, W]``.

    Raises:
        ValueError: If they are no square images.

    Example:
        >>> check_square([60, 28, 28, 1])
    """
    if len(shape) not in (3, 4) or shape[1] != shape[2]:
        raise ValueError(
            f"rotations=True needs square images, [N, H, W, C] or [N, H, W] with H = W: got shape "
            f"{list(shape)}. Crop or resize the images, or use rotations=False."
        )
