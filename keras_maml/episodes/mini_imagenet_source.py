"""Finds mini-ImageNet in a folder, in any of the forms in which people have it."""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np

from keras_maml.episodes.array_pickle import read_arrays
from keras_maml.episodes.class_lists import check_class_list
from keras_maml.episodes.image_archives import ImageArchive, combined_identity, find_archive
from keras_maml.episodes.image_files import SUFFIXES, read_classes
from keras_maml.episodes.mini_imagenet_classes import CLASSES, IMAGE_SIZE, IMAGES_PER_CLASS

FILES = {"train": "train", "validation": "val", "test": "test"}
"""What each split is called in the names of files."""

FORMS = (
    "train, val and test as zip files or folders with a folder of images per class; "
    "mini-imagenet-cache-train.pkl, -val.pkl and -test.pkl; "
    "or train.csv, val.csv and test.csv with the images in the folder images"
)
ADVICE = f"A folder with mini-ImageNet holds {FORMS}."
Classes = Iterator[tuple[str, np.ndarray]]


class MiniImagenetSource(Protocol):
    """A form in which the data were found, with the classes of every split already checked."""

    patterns: ClassVar[tuple[str, ...]]
    """What a split's file can be called."""

    identity: str
    """Checksum of what was found."""

    def splits(self) -> Mapping[str, Classes]:
        """Reads, for each split, every class with its images, uint8 ``[600, 84, 84, 3]``."""


class ClassFolders:
    """A zip file or folder per split, with a folder of images per class."""

    patterns = ("{}.zip", "{}")

    def __init__(self, folder: Path) -> None:
        """Lists the images and checks the classes."""
        self._archives = {}
        for split, name in FILES.items():
            path = find_archive(folder, name, advice=ADVICE)
            archive = ImageArchive(path, levels=2, suffixes=SUFFIXES)
            counts = {name: len(files) for name, files in archive.by_folder().items()}
            check_split(split, counts, where=str(path))
            self._archives[split] = archive
        self.identity = combined_identity(*(a.identity for a in self._archives.values()))

    def splits(self) -> Mapping[str, Classes]:
        """See the protocol."""
        return {
            split: _read(archive, archive.by_folder()) for split, archive in self._archives.items()
        }


class CachePickles:
    """The pickles ``mini-imagenet-cache-*.pkl``: an array of images, their numbers by class.

    The pickles are opened only when they are read. One at a time is in memory, 0.8 GB for training.
    """

    patterns = ("mini-imagenet-cache-{}.pkl",)

    def __init__(self, folder: Path) -> None:
        """Notes the files."""
        self._paths = {
            split: _require(folder / f"mini-imagenet-cache-{name}.pkl")
            for split, name in FILES.items()
        }
        stats = [path.stat() for path in self._paths.values()]
        changes = ((s.st_size, s.st_mtime_ns) for s in stats)
        self.identity = combined_identity(folder.resolve(), *changes)

    def splits(self) -> Mapping[str, Classes]:
        """See the protocol."""
        return {split: self._classes(split, path) for split, path in self._paths.items()}

    def _classes(self, split: str, path: Path) -> Classes:
        content = read_arrays(path)
        try:
            images, members = np.asarray(content["image_data"]), content["class_dict"]
            rows = {_text(name): np.asarray(numbers, int) for name, numbers in members.items()}
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{path} must hold 'image_data', an array of images, and 'class_dict', the numbers "
                f"of the images of each class, but has no such entries ({error!r})."
            ) from error
        shape = (IMAGE_SIZE, IMAGE_SIZE, 3)
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            raise ValueError(
                f"'image_data' in {path} must be uint8 [images, {', '.join(map(str, shape))}], got "
                f"{images.dtype} {list(images.shape)}."
            )
        check_split(split, {name: len(set(r.tolist())) for name, r in rows.items()}, str(path))
        used = np.concatenate(list(rows.values()))
        if len(set(used.tolist())) != len(used) or used.min() < 0 or used.max() >= len(images):
            raise ValueError(
                f"'class_dict' in {path} must give each class images of its own, numbered from 0 "
                f"to {len(images) - 1}."
            )
        for name in sorted(rows):
            yield name, images[rows[name]]


class CsvLists:
    """The lists of Ravi and Larochelle, ``filename,label``, beside a folder of all images."""

    patterns = ("{}.csv",)

    def __init__(self, folder: Path) -> None:
        """Reads the lists, checks the classes and that every image is there."""
        self._archive = ImageArchive(
            find_archive(folder, "images", advice=ADVICE), levels=1, suffixes=SUFFIXES
        )
        there, lists = set(self._archive.names), []
        owner: dict[str, str] = {}  # the list that an image is in
        self._files = {}
        for split, name in FILES.items():
            path = _require(folder / f"{name}.csv")
            self._files[split] = _read_list(path)
            counts = {label: len(set(names)) for label, names in self._files[split].items()}
            check_split(split, counts, where=str(path))
            listed = [name for names in self._files[split].values() for name in names]
            for name in listed:
                if name in owner:
                    raise ValueError(
                        f"{path} lists {name}, which is in {owner[name]} already. Correct the "
                        "lists: an image belongs to one class."
                    )
                owner[name] = path.name
            missing = sorted(set(listed) - there)
            if missing:
                raise ValueError(
                    f"{len(missing)} images listed in {path} are not in {self._archive.path}; the "
                    f"first is {missing[0]}. Complete the folder."
                )
            lists.append(path.read_text())
        self.identity = combined_identity(self._archive.identity, *lists)

    def splits(self) -> Mapping[str, Classes]:
        """See the protocol."""
        return {split: _read(self._archive, files) for split, files in self._files.items()}


def find_mini_imagenet(folder: str | os.PathLike) -> MiniImagenetSource:
    """Finds mini-ImageNet in a folder and checks its classes by name.

    Args:
        folder: Holds the data in one of the forms that `FORMS` lists.

    Returns:
        The form in which all splits are there.

    Raises:
        FileNotFoundError: If there is no such folder, or no form is complete.
        ValueError: If an archive is damaged, or classes or numbers of images are wrong.

    Example:
        >>> find_mini_imagenet("nowhere")
        Traceback (most recent call last):
        ...
        FileNotFoundError: The folder nowhere does not exist. A folder with mini-ImageNet holds ...
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"The folder {folder} does not exist. {ADVICE}")
    # The form of which most is there is the one that is meant.
    form = max((ClassFolders, CachePickles, CsvLists), key=lambda form: _files_there(form, folder))
    if not _files_there(form, folder):
        raise FileNotFoundError(f"Found no mini-ImageNet in {folder}. {ADVICE}")
    return form(folder)


def _files_there(form: type[MiniImagenetSource], folder: Path) -> int:
    patterns = [[pattern.format(name) for pattern in form.patterns] for name in FILES.values()]
    return sum(any((folder / name).exists() for name in names) for names in patterns)


def check_split(split: str, counts: Mapping[str, int], where: str) -> None:
    """Raises ValueError unless a split has its classes, by name, with 600 images each."""
    check_class_list(
        counts,
        CLASSES[split],
        each=IMAGES_PER_CLASS,
        where=where,
        advice=f"These must be the {split} classes of Ravi and Larochelle's split.",
    )


def _read(archive: ImageArchive, files: Mapping[str, Sequence[str]]) -> Classes:
    return read_classes(archive, files, size=(IMAGE_SIZE, IMAGE_SIZE), channels=3, exact=True)


def _read_list(path: Path) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        if not {"filename", "label"} <= set(rows.fieldnames or ()):
            raise ValueError(
                f"{path} must begin with the line filename,label, got {rows.fieldnames}."
            )
        for row in rows:
            files.setdefault(row["label"], []).append(row["filename"])
    return dict(sorted(files.items()))


def _require(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"Expected {path}, which does not exist. {ADVICE}")
    return path


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
