"""Reads the drawings of Omniglot from the official archives."""

import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_maml.episodes.class_lists import check_class_list
from keras_maml.episodes.image_archives import ImageArchive, combined_identity, find_archive
from keras_maml.episodes.image_files import decode, lanczos_matrix
from keras_maml.episodes.omniglot_alphabets import ALPHABETS
from keras_maml.progress import progress

logger = logging.getLogger(__name__)

IMAGE_SIZE = 28
DOWNLOADS = {
    "images_background": (
        "https://github.com/brendenlake/omniglot/raw/master/python/images_background.zip",
        9_464_212,
        "ad41ab679c8b5d90b271ef46be6987cc81211774a695c29dcc5367b2b26ee640",
    ),
    "images_evaluation": (
        "https://github.com/brendenlake/omniglot/raw/master/python/images_evaluation.zip",
        6_462_886,
        "1f61a8f3366785b057fc117d9228e78a16e3d976c8953b2a10fcc74cf0609cee",
    ),
}
"""Address, size in bytes and SHA-256 of each archive."""

DOWNLOAD_ADVICE = (
    "Download images_background.zip and images_evaluation.zip from "
    "https://github.com/brendenlake/omniglot/tree/master/python into one folder and pass that."
)
Drawing = tuple[str, np.ndarray]
"""Name of the character (``"Alphabet/character01"``), ink: bool ``[size, size]``."""


@dataclass(frozen=True)
class Edition:
    """What a complete data set consists of.

    Attributes:
        characters: Names of the characters in each archive, by its name.
        drawings: Drawings of each character.
        size: Height and width of a drawing in its file, in pixels.
        sha256: Checksum of all drawings, see `assemble`; ``None``: not known.
    """

    characters: Mapping[str, Sequence[str]]
    drawings: int
    size: int
    sha256: str | None


OFFICIAL = Edition(
    characters={
        archive: [
            f"{alphabet}/character{i:02d}"
            for alphabet, count in alphabets.items()
            for i in range(1, count + 1)
        ]
        for archive, alphabets in ALPHABETS.items()
    },
    drawings=20,
    size=105,
    sha256="e4cfc0de26ff2462ba5f149eafe31c1541b5c9109222198c771593c9b41ee5a8",
)


class OmniglotArchives:
    """The two archives, packed or unpacked.

    The characters and the numbers of their drawings are checked at once, from the archives'
    directories; the drawings are read when asked for.

    Args:
        paths: Zip file or folder of each archive, by the archive's name.
        edition: What must be there.

    Attributes:
        identity: Checksum of the paths and contents.

    Raises:
        ValueError: If an archive is damaged, is another one, or is incomplete.
    """

    def __init__(self, paths: Mapping[str, str | os.PathLike], edition: Edition) -> None:
        """Lists and checks the archives."""
        self._edition = edition
        self._archives = [
            ImageArchive(paths[name], levels=3, suffixes=[".png"]) for name in edition.characters
        ]
        for archive, names in zip(self._archives, edition.characters.values(), strict=True):
            check_class_list(
                {name: len(files) for name, files in archive.by_folder().items()},
                names,
                each=edition.drawings,
                where=str(archive.path),
                advice=DOWNLOAD_ADVICE,
            )
        self.identity = combined_identity(*(archive.identity for archive in self._archives))

    def drawings(self) -> Iterator[Drawing]:
        """Reads every drawing.

        Yields:
            Each drawing, archive by archive.

        Raises:
            ValueError: If a file is damaged or is not an image of the right size.
        """
        size = self._edition.size
        for archive in self._archives:
            files = zip(archive.names, archive.read(), strict=True)
            doing = f"Reading {archive.path.name}"
            for name, content in progress(files, len(archive.names), doing):
                where = f"{name} in {archive.path}"
                pixels = decode(content, channels=1, where=where)
                if pixels.shape != (size, size, 1):
                    raise ValueError(
                        f"{where} has {pixels.shape[0]} x {pixels.shape[1]} pixels, expected "
                        f"{size} x {size}. Use the original archives."
                    )
                yield name.rpartition("/")[0], pixels[..., 0] < 128


def find_archives(folder: str | os.PathLike, edition: Edition) -> dict[str, Path]:
    """Finds the archives, packed or unpacked, in a folder.

    Args:
        folder: Holds ``images_background.zip`` and ``images_evaluation.zip``, or the folders that
            they unpack to.
        edition: What must be there.

    Returns:
        Their paths by name.

    Raises:
        FileNotFoundError: If an archive is missing.
    """
    return {name: find_archive(folder, name, advice=DOWNLOAD_ADVICE) for name in edition.characters}


def assemble(drawings: Iterable[Drawing], edition: Edition) -> tuple[list[str], np.ndarray, str]:
    """Orders drawings by character and reduces them to 28 x 28 pixels.

    The drawings of a character are put in the order of their pixels, so that the result, and every
    episode made of it, is the same for any source.

    Args:
        drawings: All drawings of all characters, in any order.
        edition: What must be there.

    Returns:
        Sorted names ``[characters]``, uint8 ``[characters, drawings, 28, 28]`` with ink 255 on
        paper 0, reduced with a Lanczos-3 filter widened for antialiasing, and the SHA-256 of names
        and drawings, see `warn_unless_official`.
    """
    packed = defaultdict(list)
    for name, ink in drawings:
        packed[name].append(np.packbits(ink).tobytes())
    names, digest, shape = sorted(packed), hashlib.sha256(), (-1, edition.size, edition.size)
    images = np.empty([len(names), edition.drawings, IMAGE_SIZE, IMAGE_SIZE], "uint8")
    filters = lanczos_matrix(edition.size, IMAGE_SIZE)
    for i, name in enumerate(names):
        content = b"".join(sorted(packed[name]))
        digest.update(name.encode() + content)
        rows = np.frombuffer(content, "uint8").reshape(edition.drawings, -1)
        ink = np.unpackbits(rows, axis=1, count=edition.size**2).reshape(shape)
        images[i] = np.round(255 * np.clip(filters @ ink @ filters.T, 0, 1))
    return names, images, digest.hexdigest()


def warn_unless_official(sha256: str | None, edition: Edition) -> None:
    """Warns of drawings that are not those of the edition.

    Args:
        sha256: Their checksum; ``None``: they were prepared before it was kept.
        edition: What they should be.
    """
    if None not in (sha256, edition.sha256) and sha256 != edition.sha256:
        logger.warning(
            "These drawings are not the official ones of Omniglot (checksum %s, expected %s): "
            "results cannot be compared with published ones.",
            sha256,
            edition.sha256,
        )
