"""Decodes image files to uint8 and resizes them with a Lanczos filter."""

import collections
import contextlib
import functools
import io
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_maml.episodes.image_archives import ImageArchive
from keras_maml.execution.cores import count_cores
from keras_maml.progress import progress
from keras_maml.validation import check_count

if TYPE_CHECKING:  # Who only makes episodes needs no image library.
    from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
"""Files that `decode` reads, in lower case."""
MARGIN = 3
"""How many times the size asked for an image keeps, per side, before the last, exact resizing."""
LARGE = 2**27
"""Bytes of pixels from which images are decoded, or resized, one at a time."""
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # of EXIF: the tag, and turned by 90 degrees

_large = threading.Lock()


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


def decode(
    content: bytes, *, channels: int, where: str, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Decodes an image file: JPEG, PNG, BMP, WebP, TIFF or GIF, of several frames the first.

    An image that is to become much smaller need not be decoded in full: a JPEG file is decoded at
    a half, a quarter or an eighth of its size, and pixels of any file are then averaged by boxes.
    At least `MARGIN` times the size asked for is left, so that the filter of `resize` makes the
    difference. Images that large are rarely seen apart from those resized in one go (by less than
    one of 255 steps in the mean, for photographs), and take a seventh of the time.

    Args:
        content: The file.
        channels: 1 for grey, 3 for colour; the image is converted. What is transparent becomes
            white, a photograph is turned as its camera noted (EXIF), 16 bits become 8.
        where: Names the file, for the error.
        size: Height and width to which the image will be resized; ``None``: it is decoded in full.

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
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            upright = _of_bytes(_upright(image, "L" if channels == 1 else "RGB", size))
            pixels = np.asarray(upright.convert("L" if channels == 1 else "RGB"))
    except Exception as error:  # A damaged image can raise nearly anything.
        trouble = str(error) or type(error).__name__
        raise ValueError(
            f"{where} is not a readable image: {trouble}. Replace or remove it."
        ) from error
    return pixels.reshape(*pixels.shape[:2], channels)


def _in_turn(size: int) -> contextlib.AbstractContextManager:
    """Lets one thread at a time do what takes many bytes."""
    return _large if size > LARGE else contextlib.nullcontext()


def _upright(image: "Image.Image", mode: str, size: tuple[int, int] | None) -> "Image.Image":
    """Decodes an image, as far as a later size needs it, and turns it as its camera noted."""
    from PIL import ImageOps

    least = size and (MARGIN * size[1], MARGIN * size[0])  # width and height
    whole, box = image.width * image.height, None
    is_jpeg = image.format in ("JPEG", "MPO")
    if is_jpeg:
        if least and image.getexif().get(ORIENTATION) in SIDEWAYS:
            least = least[::-1]
        # What the file holds in grey need not be converted. Of an eighth of 1001 pixels the last
        # one is only partly there: the box says how far.
        _, box = image.draft("L" if mode == "L" else None, least) or (None, None)
        if not image.info.get("progressive"):  # which is in memory as a whole in any case
            whole = image.width * image.height
    with _in_turn(4 * whole):
        image.load()
        if is_jpeg and least:
            image = _reduced(image, least, box)
        ImageOps.exif_transpose(image, in_place=True)
        # Other files are decoded to find out how they lie.
        return image if is_jpeg or not least else _reduced(image, least)


def _reduced(
    image: "Image.Image", least: tuple[int, int], box: Sequence[float] | None = None
) -> "Image.Image":
    """Averages pixels so that about `least` of them are left, never fewer, per direction."""
    from PIL import Image

    box = box or (0, 0, *image.size)
    counts = [max(1, int(there) // kept) for there, kept in zip(box[2:], least, strict=True)]
    size = tuple(int(there // count) for there, count in zip(box[2:], counts, strict=True))
    if size == image.size:
        return image
    if image.mode.startswith("I;16"):
        image = _of_bytes(image)
    elif image.mode in ("1", "P", "PA"):  # numbers of colours have no mean
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    return image.resize(size, Image.Resampling.BOX, box)


def _of_bytes(image: "Image.Image") -> "Image.Image":
    """Returns an image without transparency and with 8 bits per channel."""
    from PIL import Image

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
    with _in_turn(image.size * rows.itemsize):
        resized = np.einsum("hwc,Ww->hWc", np.tensordot(rows, image, 1), columns, optimize=True)
    return np.round(np.clip(resized, 0, 255)).astype("uint8")


def read_classes(
    archive: ImageArchive,
    files: Mapping[str, Sequence[str]],
    *,
    size: tuple[int, int],
    channels: int,
    exact: bool = False,
) -> Iterator[tuple[str, np.ndarray]]:
    """Reads, decodes and resizes the images of some classes, one class at a time.

    Whatever the number and the size of the files, only those that the cores are busy with are in
    memory, besides the results of a class.

    Args:
        archive: Holds the images.
        files: The names of the images in the archive, by class.
        size: Height and width of the result.
        channels: 1 for grey, 3 for colour.
        exact: Whether large images are decoded in full before they are resized, see `decode`.

    Yields:
        Name of each class and its images, uint8 ``[n, *size, channels]``.

    Raises:
        ValueError: If a file is damaged or is no image.
    """
    names = [name for members in files.values() for name in members]

    def prepare(name: str, content: bytes) -> np.ndarray:
        where, most = f"{name} in {archive.path}", None if exact else size
        return resize(decode(content, channels=channels, where=where, size=most), size)

    images = in_order(prepare, zip(names, archive.read(names), strict=True), count_cores())
    images = iter(progress(images, len(names)))
    for name, members in files.items():
        yield name, np.stack([next(images) for _ in members])


def in_order(function: Callable, items: Iterable[tuple], workers: int) -> Iterator[Any]:
    """Calls a function in several threads, and takes no more items than they need.

    Args:
        function: The function.
        items: The arguments of each call.
        workers: How many threads there are.

    Yields:
        What the function returns, in the order of the items.

    Example:
        >>> list(in_order(pow, [(2, 3), (3, 2)], workers=2))
        [8, 9]
    """
    waiting: collections.deque = collections.deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append(pool.submit(function, *item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
