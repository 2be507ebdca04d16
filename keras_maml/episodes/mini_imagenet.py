"""mini-ImageNet: few-shot classification of 100 classes of photographs, 600 of each."""

import os

import numpy as np
import tensorflow as tf

from keras_maml.episodes.arrays import check_classes
from keras_maml.episodes.class_lists import SPLITS
from keras_maml.episodes.image_classes import ImageClasses
from keras_maml.episodes.mini_imagenet_classes import CLASSES, IMAGES_PER_CLASS
from keras_maml.episodes.mini_imagenet_source import ADVICE, find_mini_imagenet
from keras_maml.episodes.prepared_images import PreparedImages, newest_key
from keras_maml.episodes.sampling import check_stream
from keras_maml.validation import check_choice


def mini_imagenet(
    folder: str | os.PathLike | None = None,
    *,
    split: str = "train",
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    meta_batch_size: int = 4,
    seed: int = 0,
    tasks: int | None = None,
    start: int = 0,
    shard: tuple[int, int] = (0, 1),
    cache_dir: str | os.PathLike | None = None,
) -> tf.data.Dataset:
    """Episodes of ``ways`` classes with ``shots + queries`` photographs of each.

    The images of the split stay in memory once, as uint8 (train 813 MB, validation 203 MB, test
    254 MB); only those of an episode become float32.

    Args:
        folder: See `load_mini_imagenet`.
        split: "train" (64 classes), "validation" (16) or "test" (20).
        ways: Classes per episode.
        shots: Support images per class.
        queries: Query images per class.
        meta_batch_size: Episodes per element, ``B`` below.
        seed: Any integer; each has its own episodes.
        tasks: How many episodes, a multiple of ``meta_batch_size``; ``None``: without end.
        start: Number of the first episode.
        shard: ``(worker, workers)``, see `sampling.episode_dataset`.
        cache_dir: See `load_mini_imagenet`.

    Returns:
        A dataset of ``((x_support, y_support), (x_query, y_query))``: ``x`` float32
        ``[B, ways * shots, 84, 84, 3]`` and ``[B, ways * queries, 84, 84, 3]`` in ``[0, 1]``, ``y``
        int32 ``[B, ways * shots]`` and ``[B, ways * queries]`` in ``0 .. ways - 1``.

    Raises:
        ValueError: If there is no such split, a size is not positive, ``tasks`` is not a multiple
            of ``meta_batch_size``, the split has fewer than ``ways`` classes, or
            ``shots + queries`` exceeds 600; and as `load_mini_imagenet` does.
        FileNotFoundError: As `load_mini_imagenet` does.

    Source: Vinyals et al. 2016 (arXiv 1606.04080); the split is that of Ravi and Larochelle,
    "Optimization as a model for few-shot learning", ICLR 2017.

    Example:
        >>> episodes = mini_imagenet("mini-imagenet", shots=5)  # doctest: +SKIP
        >>> (x_support, y_support), (x_query, y_query) = next(iter(episodes))  # doctest: +SKIP
        >>> x_query.shape  # doctest: +SKIP
        TensorShape([4, 75, 84, 84, 3])
    """
    # Checked before the data are read, which takes time.
    check_choice("split", split, SPLITS)
    check_stream(meta_batch_size=meta_batch_size, tasks=tasks, start=start, shard=shard)
    classes = np.array(CLASSES[split])
    sizes = np.full(len(classes), IMAGES_PER_CLASS)
    check_classes(classes, sizes, ways=ways, shots=shots, queries=queries, where=f"split={split!r}")

    data = load_mini_imagenet(folder, split=split, cache_dir=cache_dir)
    return data.episodes(
        ways=ways,
        shots=shots,
        queries=queries,
        meta_batch_size=meta_batch_size,
        seed=seed,
        tasks=tasks,
        start=start,
        shard=shard,
    )


def load_mini_imagenet(
    folder: str | os.PathLike | None = None,
    *,
    split: str = "train",
    cache_dir: str | os.PathLike | None = None,
) -> ImageClasses:
    """Loads the images of one split.

    The first time, all splits are decoded, which takes a minute or so and 2 GB of memory (pickles
    need more: each is read whole); images of other sizes are reduced to 84 x 84 pixels with a
    Lanczos-3 filter. tensorflow_datasets keeps the result in ``cache_dir`` (1.3 GB), with
    checksums, for every later start; it is made again if it is damaged, and beside it if the folder
    holds other data. There is no download: ImageNet's terms do not allow it.

    Args:
        folder: Holds the three splits in one of these forms: ``train``, ``val`` and ``test``, each
            a zip file or a folder, with a folder of images per class; the pickles
            ``mini-imagenet-cache-train.pkl``, ``-val.pkl`` and ``-test.pkl`` (read without running
            anything that they may contain); or the lists ``train.csv``, ``val.csv`` and
            ``test.csv`` of Ravi and Larochelle with the images in a folder ``images``.
            ``None``: what was prepared last, whatever folder it was made from.
        split: "train", "validation" or "test".
        cache_dir: Where to keep the prepared images; ``None``: ``$KERAS_MAML_CACHE``, or else
            ``~/.cache/keras_maml``.

    Returns:
        The classes of the split, sorted by name: 600 images of 84 x 84 pixels and 3 colours each.

    Raises:
        FileNotFoundError: If there is no such folder or a split is missing.
        ValueError: If there is no such split, a file is damaged, or the classes or the numbers of
            their images are not those of mini-ImageNet.

    Source: as `mini_imagenet`.

    Example:
        >>> load_mini_imagenet("mini-imagenet", split="test").images.shape  # doctest: +SKIP
        (12000, 84, 84, 3)
    """
    check_choice("split", split, SPLITS)
    if folder is not None:  # Checked first: nothing is imported or written if it is wrong.
        source = find_mini_imagenet(folder)
    from keras_maml.episodes.builders import MiniImagenetBuilder  # Imports tensorflow_datasets.

    key = newest_key(MiniImagenetBuilder, cache_dir) if folder is None else source.identity
    if key is None:
        raise FileNotFoundError(f"No mini-ImageNet was prepared yet: pass its folder. {ADVICE}")
    prepared = PreparedImages(MiniImagenetBuilder, key, cache_dir=cache_dir, manual_dir=folder)
    return prepared.read(split)
