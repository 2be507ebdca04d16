"""Few-shot classification of any image classification set of tensorflow_datasets."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tensorflow as tf

from keras_maml.episodes.arrays import check_square
from keras_maml.episodes.class_lists import check_split, named_split, split_classes
from keras_maml.episodes.image_archives import combined_identity, files_of_folder
from keras_maml.episodes.image_classes import ImageClasses
from keras_maml.episodes.image_files import check_image_size
from keras_maml.episodes.prepared_images import PreparedImages, unseeded
from keras_maml.episodes.sampling import check_stream, require_positive

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


def from_tfds(
    name: "str | tfds.core.DatasetBuilder",
    *,
    split: str | Sequence[str] = "train",
    fractions: Sequence[float] = (0.64, 0.16, 0.2),
    split_seed: int = 0,
    tfds_splits: Sequence[str] | None = None,
    image_size: int | tuple[int, int] | None = None,
    image_key: str | None = None,
    label_key: str | None = None,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    meta_batch_size: int = 4,
    seed: int = 0,
    tasks: int | None = None,
    start: int = 0,
    shard: tuple[int, int] = (0, 1),
    rotations: bool = False,
    data_dir: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> tf.data.Dataset:
    """Episodes of ``ways`` classes with ``shots + queries`` images of each.

    ``split`` parts the classes, whereas the splits of tensorflow_datasets part the images of every
    class: these are pooled. The images of the split stay in memory once, as uint8: N images of
    H x W pixels take ``N * H * W * channels`` bytes. Only those of an episode become float32.

    Args:
        name: See `load_tfds`.
        split: "train", "validation" or "test"; or the names of the classes.
        fractions: Shares of the classes in the three splits.
        split_seed: Which classes are in which split, see `split_classes`.
        tfds_splits: See `load_tfds`.
        image_size: See `load_tfds`.
        image_key: See `load_tfds`.
        label_key: See `load_tfds`.
        ways: Classes per episode.
        shots: Support images per class.
        queries: Query images per class.
        meta_batch_size: Episodes per element, ``B`` below.
        seed: Any integer; each has its own episodes.
        tasks: How many episodes, a multiple of ``meta_batch_size``; ``None``: without end.
        start: Number of the first episode.
        shard: ``(worker, workers)``, see `sampling.episode_dataset`.
        rotations: Whether each class of each episode is turned by a random multiple of 90 degrees.
        data_dir: See `load_tfds`.
        cache_dir: See `load_tfds`.

    Returns:
        A dataset as that of `from_arrays`, with images in ``[0, 1]``.

    Raises:
        ValueError: As `from_arrays`, `split_classes` and `load_tfds` do.

    Example:
        >>> episodes = from_tfds("cifar100", ways=5, shots=1)  # doctest: +SKIP
        >>> episodes = from_tfds("mnist", split=["0", "1", "2", "3", "4"])  # doctest: +SKIP
    """
    check_stream(meta_batch_size=meta_batch_size, tasks=tasks, start=start, shard=shard)
    require_positive(ways=ways, shots=shots, queries=queries)
    if rotations and image_size is not None:  # Before images are decoded, which takes long.
        check_square([None, *check_image_size(image_size), None])
    data = load_tfds(
        name,
        split=split,
        fractions=fractions,
        split_seed=split_seed,
        tfds_splits=tfds_splits,
        image_size=image_size,
        image_key=image_key,
        label_key=label_key,
        data_dir=data_dir,
        cache_dir=cache_dir,
    )
    return data.episodes(
        where=named_split(split, fractions),
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


def load_tfds(
    name: "str | tfds.core.DatasetBuilder",
    *,
    split: str | Sequence[str] = "train",
    fractions: Sequence[float] = (0.64, 0.16, 0.2),
    split_seed: int = 0,
    tfds_splits: Sequence[str] | None = None,
    image_size: int | tuple[int, int] | None = None,
    image_key: str | None = None,
    label_key: str | None = None,
    data_dir: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> ImageClasses:
    """Loads the classes of one split of a set of tensorflow_datasets.

    The first time, every image is decoded (and resized with a Lanczos-3 filter if a size is
    given), and the result is kept in ``cache_dir``, as large as it is in memory, for every later
    start; it is made again if it is damaged, and anew if names, sizes or times of the set's files
    have changed.

    Args:
        name: Name of the set, such as "cifar100" or "caltech101:3.0.1", or its builder.
        split: "train", "validation" or "test"; or the names of the classes. The split is one of
            the list of names: with classes added or removed it is another one.
        fractions: Shares of the classes in the three splits, see `split_classes`.
        split_seed: Which classes are in which split; the classes are shuffled with
            ``random.Random(split_seed)``.
        tfds_splits: Which splits of the set are pooled; ``None``: all. No two may hold the same
            images, as "small1" and "train" of "omniglot" do.
        image_size: Height and width in pixels, or one number for both. ``None``: as they are,
            which needs images of one size.
        image_key: Name of the image feature; ``None``: that of the set's supervised keys.
        label_key: Name of the label feature; likewise.
        data_dir: Where tensorflow_datasets keeps the set; ``None``: where it always does.
        cache_dir: Where to keep the decoded images; ``None``: ``$KERAS_MAML_CACHE``, or else
            ``~/.cache/keras_maml``.

    Returns:
        The classes of the split and their images.

    Raises:
        ValueError: If an argument is wrong, there is no such set, split or feature, or the images
            are not uint8, differ in size or channels or have not one label each, or more than a
            tenth of those of a split are in another one, too.
        FileNotFoundError: If tensorflow_datasets cannot fetch the set.

    Example:
        >>> load_tfds("cifar100").images.shape  # doctest: +SKIP
        (38400, 32, 32, 3)
    """
    check_split(split, fractions)
    size = None if image_size is None else check_image_size(image_size)
    import tensorflow_datasets as tfds

    from keras_maml.episodes.builders import TfdsClassesBuilder

    source = name
    if isinstance(name, str):
        try:
            source = tfds.builder(name, data_dir=data_dir)
        except tfds.core.DatasetNotFoundError as error:
            raise ValueError(
                f"tensorflow_datasets knows no data set {name!r}. See tfds.list_builders()."
            ) from error
        except AssertionError as error:  # a version or configuration that it does not know
            raise ValueError(
                f"tensorflow_datasets cannot build {name!r} ({error}). Name a version and a "
                "configuration that the set has, or none."
            ) from error
    keys = _keys(source, image_key, label_key)
    try:
        with unseeded():
            source.download_and_prepare()
    except NotImplementedError:
        pass  # So builders of folders say that they have nothing to prepare.
    except Exception as error:  # No network fails in many ways.
        raise FileNotFoundError(
            f"{source.name} could not be fetched with tensorflow_datasets "
            f"({type(error).__name__}: {error}). Prepare it in data_dir={source.data_dir}."
        ) from error
    splits = tuple(sorted(source.info.splits) if tfds_splits is None else tfds_splits)
    unknown = set(splits) - set(source.info.splits)
    if unknown or not splits or len({*splits}) < len(splits):
        raise ValueError(
            f"tfds_splits must name splits of {source.name}, {sorted(source.info.splits)}, each "
            f"once, got {list(splits)}."
        )
    # A set can be made again, under its name and version, from other images.
    contents = [source.info.splits[split].shard_lengths for split in splits]
    if os.path.isdir(source.data_dir):  # It may also be in a cloud.
        contents += sorted(files_of_folder(Path(source.data_dir)))
    prepared = PreparedImages(
        TfdsClassesBuilder,
        combined_identity(source.info.full_name, source.data_dir, splits, keys, size, *contents),
        cache_dir=cache_dir,
        settings={"source": source, "splits": splits, "keys": keys, "size": size},
    )
    names = list(prepared.class_sizes("pooled"))
    return prepared.read(
        "pooled", split_classes(names, split, fractions=fractions, seed=split_seed)
    )


def _keys(
    source: "tfds.core.DatasetBuilder", image_key: str | None, label_key: str | None
) -> tuple[str, str]:
    features, supervised = (
        dict(source.info.features.items()),
        source.info.supervised_keys or (None, None),
    )
    keys = image_key or supervised[0], label_key or supervised[1]
    image = features.get(keys[0])
    if keys[1] not in features or image is None or len(image.shape or ()) != 3:
        raise ValueError(
            f"{source.name} must have a feature of images and one of labels, got {keys}: name them "
            f"with image_key and label_key. Its features are {sorted(features)}."
        )
    if features[keys[1]].shape != ():
        raise ValueError(
            f"An image of {source.name} must have one label, but the feature {keys[1]!r} is "
            f"{features[keys[1]]}. Name a feature of single labels with label_key."
        )
    if image.dtype != "uint8":
        raise ValueError(f"The images of {source.name} must be uint8, got {image.dtype}.")
    return keys
