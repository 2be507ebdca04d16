"""Decodes image files to uint8 and resizes them with a Lanczos filter."""

import functools
import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, ImageOps

from keras_maml.episodes.image_archives import ImageArchive
from keras_maml.validation import check_count

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
"""Files that `decode` reads, in lower case."""


def check_image_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Checks a size of images.

    Args:
        image_size: Height and width in pixels; one number for both.

    Returns:
        Height and width.

    Raises:
        ValueError: If it is neither.

    Example:
        >>> check_image_size(84)
        (84, 84)
    """
    size = (image_size,) * 2 if isinstance(image_size, int | np.integer) else image_size
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise ValueError(
            f"image_size must be a number of pixels or (height, width), got {image_size!r}."
        )
    for name, pixels in zip(("height", "width"), size, strict=True):
        check_count(f"The {name} in image_size", pixels, minimum=1)
    return int(size[0]), int(size[1])


def decode(content: bytes, *, channels: int, where: str) -> np.ndarray:
    """Decodes an image file: JPEG, PNG, BMP, WebP, TIFF or GIF, of several frames the first.

    Args:
        content: The file.
        channels: 1 for grey, 3 for colour; the image is converted. What is transparent becomes
            white, a photograph is turned as its camera noted (EXIF), 16 bits become 8.
        where: Names the file, for the error.

    Returns:
        uint8 ``[height, width, channels]``.

    Raises:
        ValueError: If the file is damaged or is no such image.

    Example:
        >>> import tensorflow as tf
        >>> png = tf.io.encode_png(np.zeros([4, 5, 1], "uint8")).numpy()
        >>> decode(png, channels=3, where="black.png").shape
        (4, 5, 3)
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if channels == 1:
                image.draft("L", None)  # a JPEG file holds the grey image as such
            upright = _of_bytes(ImageOps.exif_transpose(image))
            pixels = np.asarray(upright.convert("L" if channels == 1 else "RGB"))
    except Exception as error:  # A damaged image can raise nearly anything.
        trouble = str(error) or type(error).__name__
        raise ValueError(
            f"{where} is not a readable image: {trouble}. Replace or remove it."
        ) from error
    return pixels.reshape(*pixels.shape[:2], channels)


def _of_bytes(image: Image.Image) -> Image.Image:
    """Returns an image without transparency and with 8 bits per channel."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype("uint8"))
    if image.mode in ("I", "F"):
        raise ValueError("it has 32 bits per pixel and channel")
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


@functools.lru_cache(maxsize=256)
def lanczos_matrix(size: int, new_size: int) -> np.ndarray:
    """The matrix ``M`` for which ``M @ image @ M.T`` resizes a square image.

    Resizing is linear and separable; two small products are ten times faster than
    `tf.image.resize`, whose filter this is. Its float32 arithmetic rounds a few pixels otherwise
    on another processor. With weights that are multiples of 2^-20 every sum of products is exact
    in float64, in whatever order it is taken: the images are the same everywhere.

    Args:
        size: Height and width of the image.
        new_size: Height and width of the result.

    Returns:
        float64 ``[new_size, size]``: a Lanczos-3 filter, widened for antialiasing. Not to be
        changed: it is shared.

    Example:
        >>> lanczos_matrix(105, 28).sum(axis=1).round(4).tolist() == [1.0] * 28
        True
    """
    scale = size / new_size
    centers = (np.arange(new_size)[:, None] + 0.5) * scale
    x = (np.arange(size) + 0.5 - centers) / max(scale, 1)
    weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.round(weights * 2**20) / 2**20


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes an image with a Lanczos-3 filter, widened for antialiasing.

    Args:
        image: uint8 ``[height, width, channels]``.
        size: The new height and width; the aspect ratio is not kept. An image of this size is
            returned as it is.

    Returns:
        uint8 ``[*size, channels]``.

    Example:
        >>> resize(np.full([30, 40, 3], 7, "uint8"), (8, 9)).shape
        (8, 9, 3)
    """
    if image.shape[:2] == tuple(size):
        return image
    rows, columns = map(lanczos_matrix, image.shape[:2], size)
    resized = np.einsum("hwc,Ww->hWc", np.tensordot(rows, image, 1), columns, optimize=True)
    return np.round(np.clip(resized, 0, 255)).astype("uint8")


def read_classes(
    archive: ImageArchive,
    files: Mapping[str, Sequence[str]],
    *,
    size: tuple[int, int],
    channels: int,
) -> Iterator[tuple[str, np.ndarray]]:
    """Reads, decodes and resizes the images of some classes, one class at a time.

    Args:
        archive: Holds the images.
        files: The names of the images in the archive, by class.
        size: Height and width of the result.
        channels: 1 for grey, 3 for colour.

    Yields:
        Name of each class and its images, uint8 ``[n, *size, channels]``.

    Raises:
        ValueError: If a file is damaged or is no image.
    """

    def prepare(name: str, content: bytes) -> np.ndarray:
        where = f"{name} in {archive.path}"
        return resize(decode(content, channels=channels, where=where), size)

    with ThreadPoolExecutor() as pool:
        for name, members in files.items():
            yield name, np.stack(list(pool.map(prepare, members, archive.read(members))))
