"""Images in memory, class after class."""

import collections
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_maml.episodes.arrays import check_classes, from_arrays

ALIGNMENT = 64
"""Bytes to which TensorFlow aligns its tensors."""


@dataclass(frozen=True)
class ImageClasses:
    """The images of some classes.

    Attributes:
        images: uint8 ``[N, H, W, C]``, class after class.
        names: Name of each class.
        counts: Number of images of each class; their sum is ``N``.

    Raises:
        ValueError: If two classes have the same name.

    Example:
        >>> data = ImageClasses(np.zeros([3, 8, 8, 1], "uint8"), ("cat", "dog"), (2, 1))
        >>> data.labels.tolist()
        ['cat', 'cat', 'dog']
    """

    images: np.ndarray
    names: tuple[str, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        """Checks the names: labels are made of them."""
        counted = collections.Counter(self.names)
        twice = [name for name, count in counted.items() if count > 1]
        if twice:
            raise ValueError(
                f"Classes must have different names, got {', '.join(twice[:5])} twice. Rename or "
                "join them."
            )

    @property
    def labels(self) -> np.ndarray:
        """The name of each image's class, ``[N]``."""
        return np.repeat(np.array(self.names), self.counts)

    def with_mirrored(self) -> "ImageClasses":
        """Returns these classes, and each once more with its images mirrored left to right.

        A mirrored class is another class: a "b" is a "d". The more classes there are to learn from,
        the better what is learned holds for new ones.

        Example:
            >>> data = ImageClasses(np.zeros([3, 8, 8, 1], "uint8"), ("cat", "dog"), (2, 1))
            >>> data.with_mirrored().names
            ('cat', 'dog', 'cat mirrored', 'dog mirrored')
        """
        count = len(self.images)
        images = aligned_empty([2 * count, *self.images.shape[1:]])
        images[:count], images[count:] = self.images, self.images[:, :, ::-1]
        names = (*self.names, *(f"{name} mirrored" for name in self.names))
        return ImageClasses(images, names, 2 * self.counts)

    def episodes(
        self, *, ways: int, shots: int, queries: int, where: str = "this set", **settings: Any
    ) -> tf.data.Dataset:
        """Episodes of these images, without a copy of them: they must not be changed any more.

        Images that are not aligned to 64 bytes, or that are read-only, are copied once.

        Args:
            ways: Classes per episode.
            shots: Support images per class.
            queries: Query images per class.
            where: Names what the classes come from, for the error if they do not suffice.
            **settings: Further ones as those of `from_arrays`.

        Returns:
            What `from_arrays` returns.

        Raises:
            ValueError: As `from_arrays` does.
        """
        sizes = {"ways": ways, "shots": shots, "queries": queries}
        check_classes(np.array(self.names), np.array(self.counts), **sizes, where=where)
        images, flags = self.images, self.images.flags
        if images.ctypes.data % ALIGNMENT == 0 and flags.c_contiguous and flags.writeable:
            images = tf.experimental.dlpack.from_dlpack(images.__dlpack__())
        return from_arrays(images, self.labels, **sizes, **settings)


def aligned_empty(shape: Sequence[int]) -> np.ndarray:
    """A uint8 array of any content, which TensorFlow can use without copying it.

    Args:
        shape: Its shape.

    Returns:
        uint8 of that shape, aligned to 64 bytes.

    Example:
        >>> aligned_empty([3, 5]).ctypes.data % 64
        0
    """
    size = int(np.prod(shape, dtype="int64"))
    memory = np.empty(size + ALIGNMENT, "uint8")
    first = -memory.ctypes.data % ALIGNMENT
    return memory[first : first + size].reshape(shape)
