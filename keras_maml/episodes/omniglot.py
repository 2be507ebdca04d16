"""Omniglot: few-shot classification of 1623 handwritten characters from 50 alphabets."""

import itertools
import os
import random
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_maml.episodes.arrays import check_classes
from keras_maml.episodes.image_classes import ImageClasses
from keras_maml.episodes.omniglot_source import (
    OFFICIAL,
    OmniglotArchives,
    find_archives,
    warn_unless_official,
)
from keras_maml.episodes.prepared_images import PreparedImages, newest_key
from keras_maml.episodes.sampling import check_stream
from keras_maml.validation import check_choice

SPLITS = {"train": 1100, "validation": 100, "test": 423}
"""Number of characters of each split."""


def omniglot(
    folder: str | os.PathLike | None = None,
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
    rotations: bool = True,
    cache_dir: str | os.PathLike | None = None,
) -> tf.data.Dataset:
    """Episodes of ``ways`` characters with ``shots + queries`` drawings of each.

    The characters are split without regard to their alphabets: of the sorted names, shuffled with
    ``random.Random(1)``, the first 1100 are for training, the next 100 for validation and the last
    423 for testing.

    Args:
        folder: See `load_omniglot`.
        split: "train", "validation" or "test".
        ways: Characters per episode.
        shots: Support drawings per character.
        queries: Query drawings per character.
        meta_batch_size: Episodes per element, ``B`` below.
        seed: Any integer; each has its own episodes.
        tasks: How many episodes, a multiple of ``meta_batch_size``; ``None``: without end.
        start: Number of the first episode.
        shard: ``(worker, workers)``, see `sampling.episode_dataset`.
        rotations: Whether each character of each episode is turned by a random multiple of 90
            degrees; the paper does so in training and in testing.
        cache_dir: See `load_omniglot`.

    Returns:
        A dataset of ``((x_support, y_support), (x_query, y_query))``: ``x`` float32
        ``[B, ways * shots, 28, 28, 1]`` and ``[B, ways * queries, 28, 28, 1]`` with ink 1 on paper
        0, ``y`` int32 ``[B, ways * shots]`` and ``[B, ways * queries]`` in ``0 .. ways - 1``.

    Raises:
        ValueError: If there is no such split, a size is not positive, ``tasks`` is not a multiple
            of ``meta_batch_size``, the split has fewer than ``ways`` characters, or
            ``shots + queries`` exceeds 20; and as `load_omniglot` does.
        FileNotFoundError: As `load_omniglot` does.

    Source: Lake, Salakhutdinov and Tenenbaum, Science 350 (2015); Finn, Abbeel and Levine 2017
    (arXiv 1703.03400), section 5.2 and appendix A.1.

    Example:
        >>> episodes = omniglot(ways=5, shots=1, queries=15, tasks=64)  # doctest: +SKIP
        >>> (x_support, y_support), (x_query, y_query) = next(iter(episodes))  # doctest: +SKIP
        >>> x_query.shape  # doctest: +SKIP
        TensorShape([32, 75, 28, 28, 1])
    """
    # Checked before the data are read, which may mean a download.
    check_choice("split", split, tuple(SPLITS))
    check_stream(meta_batch_size=meta_batch_size, tasks=tasks, start=start, shard=shard)
    sizes = np.full(SPLITS[split], OFFICIAL.drawings)
    check_classes(
        np.arange(SPLITS[split]),
        sizes,
        ways=ways,
        shots=shots,
        queries=queries,
        where=f"split={split!r}",
    )

    data = load_omniglot(folder, split=split, cache_dir=cache_dir)
    return data.episodes(
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


def load_omniglot(
    folder: str | os.PathLike | None = None,
    *,
    split: str | None = "train",
    cache_dir: str | os.PathLike | None = None,
) -> ImageClasses:
    """Loads the images of one split, reduced to 28 x 28 pixels.

    The drawings (105 x 105, black on white) are inverted and reduced with a Lanczos-3 filter,
    widened for antialiasing. tensorflow_datasets keeps the result in ``cache_dir`` (25 MB), with
    checksums, for every later start; it is made again if it is damaged. Other archives get another
    place there.

    Args:
        folder: Holds the official archives ``images_background.zip`` and
            ``images_evaluation.zip``, or the folders that they unpack to. ``None``: what was
            prepared last, whatever folder it was made from, or else a download, with checksums, by
            tensorflow_datasets.
        split: "train", "validation" or "test", see `omniglot`; ``None``: all characters.
        cache_dir: Where to keep the prepared images; ``None``: ``$KERAS_MAML_CACHE``, or else
            ``~/.cache/keras_maml``.

    Returns:
        The characters of the split, in shuffled order (or all 1623, sorted by name, 25 MB): 20
        drawings of 28 x 28 pixels each, ink 255 on paper 0. The drawings of a character have no
        particular order, but the same for any packing.

    Raises:
        FileNotFoundError: If an archive is missing from ``folder``, or the download fails.
        ValueError: If there is no such split, or an archive is damaged, incomplete or another one.

    Source: Lake, Salakhutdinov and Tenenbaum, "Human-level concept learning through probabilistic
    program induction", Science 350 (2015).

    Example:
        >>> load_omniglot("downloads", split="test").images.shape  # doctest: +SKIP
        (8460, 28, 28, 1)
    """
    if split is not None:
        check_choice("split", split, tuple(SPLITS))
    if folder is not None:  # Checked first: nothing is imported or written if it is wrong.
        archives = OmniglotArchives(find_archives(folder, OFFICIAL), OFFICIAL)
    from keras_maml.episodes.builders import OmniglotBuilder  # Imports tensorflow_datasets.

    if folder is None:
        key = newest_key(OmniglotBuilder, cache_dir) or "omniglot_downloaded"
    else:
        key = archives.identity
    prepared = PreparedImages(
        OmniglotBuilder,
        key,
        cache_dir=cache_dir,
        manual_dir=folder,
        settings={"edition": OFFICIAL},
    )
    warn_unless_official(prepared.sha256, OFFICIAL)
    names = list(prepared.class_sizes("pooled"))
    return prepared.read("pooled", names if split is None else split_characters(names, split))


def split_characters(names: Sequence[str], split: str) -> list[str]:
    """The characters of one split, whatever their alphabets.

    The sorted names are shuffled with ``random.Random(1)``; the first 1100 are the training split,
    the next 100 the validation split, the last 423 the test split.

    Args:
        names: Names of all characters.
        split: "train", "validation" or "test".

    Returns:
        The names of the split, in the shuffled order.

    Source: the protocol of Finn, Abbeel and Levine 2017 (arXiv 1703.03400), section 5.2, with their
    1200 training characters parted as in their code.

    Example:
        >>> split_characters([f"{i:04d}" for i in range(1623)], "train")[:4]
        ['0713', '1081', '1577', '0509']
    """
    shuffled = sorted(names)
    random.Random(1).shuffle(shuffled)
    first = sum(SPLITS[name] for name in itertools.takewhile(lambda name: name != split, SPLITS))
    return shuffled[first : first + SPLITS[split]]
