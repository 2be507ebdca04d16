"""Few-shot classification of your own images: a folder with a folder per class."""

import collections
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_maml.episodes.arrays import check_classes, check_square
from keras_maml.episodes.class_lists import check_split, named_split, split_classes
from keras_maml.episodes.image_archives import ImageArchive, combined_identity
from keras_maml.episodes.image_classes import ImageClasses
from keras_maml.episodes.image_files import SUFFIXES, check_image_size
from keras_maml.episodes.prepared_images import PreparedImages
from keras_maml.episodes.sampling import check_stream, require_positive

logger = logging.getLogger(__name__)


def image_folder(
    path: str | os.PathLike,
    *,
    image_size: int | tuple[int, int],
    channels: int = 3,
    split: str | Sequence[str] = "train",
    fractions: Sequence[float] = (0.64, 0.16, 0.2),
    split_seed: int = 0,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    meta_batch_size: int = 4,
    seed: int = 0,
    tasks: int | None = None,
    start: int = 0,
    shard: tuple[int, int] = (0, 1),
    rotations: bool = False,
    cache_dir: str | os.PathLike | None = None,
) -> tf.data.Dataset:
    """Episodes of ``ways`` classes with ``shots + queries`` images of each.

    The images of the split stay in memory once, as uint8: N images of H x W pixels take
    ``N * H * W * channels`` bytes. Only those of an episode become float32.

    Args:
        path: See `load_image_folder`.
        image_size: See `load_image_folder`.
        channels: See `load_image_folder`.
        split: "train", "validation" or "test"; or the names of the classes.
        fractions: Shares of the classes in the three splits.
        split_seed: Which classes are in which split, see `split_classes`.
        ways: Classes per episode.
        shots: Support images per class.
        queries: Query images per class.
        meta_batch_size: Episodes per element, ``B`` below.
        seed: Any integer; each has its own episodes.
        tasks: How many episodes, a multiple of ``meta_batch_size``; ``None``: without end.
        start: Number of the first episode.
        shard: ``(worker, workers)``, see `sampling.episode_dataset`.
        rotations: Whether each class of each episode is turned by a random multiple of 90 degrees.
        cache_dir: See `load_image_folder`.

    Returns:
        A dataset as that of `from_arrays`, with images in ``[0, 1]``.

    Raises:
        ValueError: As `from_arrays`, `split_classes` and `load_image_folder` do.
        FileNotFoundError: If there is no such folder.

    Example:
        >>> episodes = image_folder("photos", image_size=84, ways=5)  # doctest: +SKIP
    """
    check_stream(meta_batch_size=meta_batch_size, tasks=tasks, start=start, shard=shard)
    require_positive(ways=ways, shots=shots, queries=queries)
    size, where = check_image_size(image_size), named_split(split, fractions)
    archive, names = _listed(path, channels, split, fractions, split_seed)
    # Before images are decoded, which takes long.
    if rotations:
        check_square([None, *size, channels])
    files = archive.by_folder()
    counts = np.array([len(files[name]) for name in names])
    check_classes(np.array(names), counts, ways=ways, shots=shots, queries=queries, where=where)
    return _read(archive, names, size, channels, cache_dir).episodes(
        where=where,
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


def load_image_folder(
    path: str | os.PathLike,
    *,
    image_size: int | tuple[int, int],
    channels: int = 3,
    split: str | Sequence[str] = "train",
    fractions: Sequence[float] = (0.64, 0.16, 0.2),
    split_seed: int = 0,
    cache_dir: str | os.PathLike | None = None,
) -> ImageClasses:
    """Loads the images of one split of a folder.

    The first time, every image is decoded and resized with a Lanczos-3 filter; of images that are
    several times as large, boxes of pixels are averaged before, see `image_files.decode`.
    tensorflow_datasets keeps the result in ``cache_dir``, as large as it is in memory, for every
    later start; it is made again if it is damaged, and anew if names, sizes or times of the files
    have changed.

    Args:
        path: A folder, or a zip file, with a folder of JPEG, PNG, BMP, GIF, WebP or TIFF files per
            class. The name of the folder is that of the class. Hidden files and empty folders are
            passed over, and so are files of other kinds (HEIC, text), which costs a warning that
            names them; links are followed.
        image_size: Height and width in pixels, or one number for both. Images are stretched to it.
        channels: 3 for colour or 1 for grey; images are converted.
        split: "train", "validation" or "test"; or the names of the classes. The split is one of
            the list of names: with folders added or removed it is another one.
        fractions: Shares of the classes in the three splits, see `split_classes`.
        split_seed: Which classes are in which split; the classes are shuffled with
            ``random.Random(split_seed)``.
        cache_dir: Where to keep the prepared images; ``None``: ``$KERAS_MAML_CACHE``, or else
            ``~/.cache/keras_maml``.

    Returns:
        The classes of the split and their images.

    Raises:
        FileNotFoundError: If there is no such folder or file.
        ValueError: If an argument is wrong, an image cannot be read, or there are none.

    Example:
        >>> load_image_folder("photos", image_size=84).images.shape  # doctest: +SKIP
        (3840, 84, 84, 3)
    """
    size = check_image_size(image_size)
    archive, names = _listed(path, channels, split, fractions, split_seed)
    return _read(archive, names, size, channels, cache_dir)


def _listed(
    path: str | os.PathLike,
    channels: int,
    split: str | Sequence[str],
    fractions: Sequence[float],
    split_seed: int,
) -> tuple[ImageArchive, list[str]]:
    """The images that there are, and the classes of the split."""
    check_split(split, fractions)
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (colour), got {channels!r}.")
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"Expected a folder (or zip file) of classes, but {path} is none.")
    archive = ImageArchive(path, levels=2, suffixes=SUFFIXES)
    for name, file in archive.other_folders().items():
        raise ValueError(
            f"The folder {name} in {path} holds no image with suffix {', '.join(SUFFIXES)}; its "
            f"first file is {file}. Convert its images, or remove it: each folder is a class."
        )
    _warn_of_files_left_out(archive)
    names = list(archive.by_folder())
    return archive, split_classes(names, split, fractions=fractions, seed=split_seed)


def _read(
    archive: ImageArchive,
    names: Sequence[str],
    size: tuple[int, int],
    channels: int,
    cache_dir: str | os.PathLike | None,
) -> ImageClasses:
    """The images of some classes, prepared now or before."""
    from keras_maml.episodes.builders import ImageFolderBuilder  # Imports tensorflow_datasets.

    prepared = PreparedImages(
        ImageFolderBuilder,
        combined_identity(archive.identity, size, channels),
        cache_dir=cache_dir,
        settings={"archive": archive, "size": size, "channels": channels},
    )
    return prepared.read("pooled", names)


def _warn_of_files_left_out(archive: ImageArchive) -> None:
    left_out = archive.left_out()
    if left_out:
        kinds = collections.Counter(Path(name).suffix.lower() or "no suffix" for name in left_out)
        counts = ", ".join(f"{count} with {kind}" for kind, count in kinds.most_common(5))
        logger.warning(
            "%d files in %s are left out, since only %s are read: %s; the first is %s. Convert "
            "those that are images, e.g. to JPEG.",
            len(left_out),
            archive.path,
            ", ".join(SUFFIXES),
            counts,
            left_out[0],
        )
