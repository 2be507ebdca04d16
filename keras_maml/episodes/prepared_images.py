"""Image sets that are prepared once, by tensorflow_datasets, and trusted only as far as checked."""

import contextlib
import logging
import os
import random
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_maml.episodes.image_classes import ImageClasses
from keras_maml.files import flush

if TYPE_CHECKING:  # Importing it imports tensorflow_datasets.
    from keras_maml.episodes.class_builder import ImageClassesBuilder

logger = logging.getLogger(__name__)

INCOMPLETE = "incomplete."
"""How the names of folders begin in which images are being prepared."""


def cache_folder(cache_dir: str | os.PathLike | None = None) -> Path:
    """The folder for prepared data.

    Args:
        cache_dir: The folder; ``None``: ``$KERAS_MAML_CACHE``, or else ``~/.cache/keras_maml``.

    Returns:
        The folder, which need not exist.

    Example:
        >>> cache_folder("prepared").name
        'prepared'
    """
    chosen = cache_dir or os.environ.get("KERAS_MAML_CACHE") or "~/.cache/keras_maml"
    return Path(chosen).expanduser()


class PreparedImages:
    """What a builder has prepared in ``<cache>/<key>``, or prepares there now.

    The key is the identity of the source and of the settings: other images are another folder, and
    nothing is ever replaced unless it is damaged, which costs one line in the log; what is damaged
    stays until it could be made again. Images are prepared in a folder beside, which is then
    renamed, so that no other process ever sees half of it; if two prepare the same, the first one
    counts. If the cache cannot be written to, a temporary folder does, which costs a warning.

    Args:
        builder_class: The builder.
        key: Names the folder.
        cache_dir: See `cache_folder`.
        manual_dir: The user's folder, for the builder; ``None``: there is none.
        settings: Further arguments of the builder.

    Raises:
        ValueError: As the builder does, if the source is not what it should be.
        FileNotFoundError: As the builder does.
    """

    def __init__(
        self,
        builder_class: "type[ImageClassesBuilder]",
        key: str,
        *,
        cache_dir: str | os.PathLike | None = None,
        manual_dir: str | os.PathLike | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Opens what is there, or prepares."""
        self._make = lambda data_dir: builder_class(data_dir=str(data_dir), **(settings or {}))
        self._place = builder_place(builder_class)
        self._data_dir, self._manual_dir = cache_folder(cache_dir) / key, manual_dir
        self._is_damaged = False
        self._builder = self._open() or self._prepare()

    def class_sizes(self, split: str) -> dict[str, int]:
        """How many images each class of a split has, sorted by name."""
        return self._builder.class_sizes(split)

    @property
    def sha256(self) -> str | None:
        """The checksum of the source, if the builder keeps one."""
        return self._builder.info.metadata.get("sha256")

    def read(self, split: str, names: Sequence[str] | None = None) -> ImageClasses:
        """Reads classes of a split; prepares again if that finds damage.

        Args:
            split: Name of the split.
            names: Which classes, in the order wanted; ``None``: all, sorted.

        Returns:
            Their images, in one array.
        """
        names = tuple(self.class_sizes(split) if names is None else names)
        try:
            return self._builder.read_classes(split, names)
        except MemoryError:
            raise
        except Exception as error:  # Damage shows in many ways: TensorFlow's, the system's, ours.
            self._note_damage(error)
        self._builder = self._prepare()
        return self._builder.read_classes(split, names)

    def _open(self) -> "ImageClassesBuilder | None":
        if not (self._data_dir / self._place).exists():
            return None
        try:
            builder = self._make(self._data_dir)
            if not all(builder.class_sizes(split) for split in builder.info.splits or [""]):
                raise ValueError("it names no classes.")
        except Exception as error:  # As above.
            self._note_damage(error)
            return None
        return builder

    def _note_damage(self, error: Exception) -> None:
        reason = str(error).partition("\n")[0] or type(error).__name__
        logger.warning("Preparing %s again: %s", self._data_dir, reason)
        self._is_damaged = True

    def _prepare(self) -> "ImageClassesBuilder":
        import tensorflow_datasets as tfds

        self._data_dir = self._writable(self._data_dir)
        place, downloads = self._data_dir / self._place, self._data_dir / "downloads"
        config = tfds.download.DownloadConfig(
            manual_dir=self._manual_dir, force_checksums_validation=True
        )
        print(f"Preparing images, once: they are kept in {self._data_dir}.", file=sys.stderr)
        try:
            with _folder_beside(place) as beside, unseeded(), bars_as_before():
                builder = self._make(beside)
                builder.download_and_prepare(download_dir=str(downloads), download_config=config)
                flush(beside / self._place)
                if self._is_damaged and place.exists():
                    place.rename(beside / "damaged")
                (beside / self._place).rename(place)
        except OSError:
            if self._is_damaged or not place.exists():
                raise
            # Another process was faster, and its folder cannot be renamed over. It is the same.
        finally:
            _remove_empty(place.parent, downloads / "extracted")
        self._is_damaged = False
        return self._make(self._data_dir)

    def _writable(self, folder: Path) -> Path:
        """The folder, or a temporary one that goes when this object does."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError as error:
            logger.warning("The images are prepared for this time only: %s", str(error))
        temporary = Path(tempfile.mkdtemp(prefix="keras_maml_"))
        weakref.finalize(self, shutil.rmtree, temporary, ignore_errors=True)
        return temporary


def builder_place(builder_class: "type[ImageClassesBuilder]") -> Path:
    """Where in its data folder a builder prepares: ``name/version``."""
    return Path(builder_class.name, str(builder_class.VERSION))


def newest_key(
    builder_class: "type[ImageClassesBuilder]", cache_dir: str | os.PathLike | None = None
) -> str | None:
    """The key under which a builder prepared last, whatever the source; ``None``: it never did."""
    place = builder_place(builder_class)
    found = list(cache_folder(cache_dir).glob(f"*/{place}"))
    return max(found, key=lambda path: path.stat().st_mtime).parents[1].name if found else None


@contextlib.contextmanager
def _folder_beside(place: Path) -> Iterator[Path]:
    """Makes a folder beside another; it is removed in the end, or by the next call if killed."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        # Where folders cannot be locked, what killed processes left stays.
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            descriptor = os.open(place.parent, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            with contextlib.suppress(BlockingIOError):  # Another process prepares there now.
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for left in place.parent.glob(f"{INCOMPLETE}*"):
                    shutil.rmtree(left, ignore_errors=True)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        beside = tempfile.TemporaryDirectory(prefix=INCOMPLETE, dir=place.parent)
        yield Path(stack.enter_context(beside))


@contextlib.contextmanager
def unseeded() -> Iterator[None]:
    """Draws from `random` with a seed of its own, and then goes on as if nothing had been drawn.

    tfds names its temporary folders by `random`. Two processes with the same seed would choose the
    same one, and what a process draws later would depend on whether it had prepared.
    """
    state = random.getstate()
    random.seed()
    try:
        yield
    finally:
        random.setstate(state)


@contextlib.contextmanager
def bars_as_before() -> Iterator[None]:
    """Shows progress bars of tfds afterwards if they were shown before."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils import tqdm_utils

    shown = not isinstance(tqdm_utils.tqdm(disable=True), tqdm_utils.EmptyTqdm)
    try:
        yield
    finally:
        tfds.display_progress_bar(shown)


def _remove_empty(*folders: Path) -> None:
    """Removes each folder, and then those around it, as long as they are empty."""
    for folder in folders:
        for path in (folder, *folder.parents):
            try:
                path.rmdir()
            except OSError:
                break
