"""Image files in a zip archive or in the folder that it unpacks to, behind the same class."""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, OSError)
"""What zipfile raises at damaged, encrypted or strangely compressed archives."""
OF_SYSTEMS = ("thumbs.db", "desktop.ini")
"""What Windows adds to folders, in lower case."""


def find_archive(folder: str | os.PathLike, name: str, *, advice: str) -> Path:
    """Finds ``name.zip``, or the unpacked folder ``name``.

    Args:
        folder: Where to look.
        name: Name of the archive, without suffix.
        advice: What to do if it is missing, for the error.

    Returns:
        Path of the zip file, or else of the unpacked folder.

    Raises:
        FileNotFoundError: If neither is there.

    Example:
        >>> find_archive("nowhere", "train", advice="Download it.")
        Traceback (most recent call last):
        ...
        FileNotFoundError: Expected train.zip or the unpacked folder train in nowhere, which does \
not exist. Download it.
    """
    folder = Path(folder).expanduser()
    for path in (folder / f"{name}.zip", folder / name):
        if path.exists():
            return path
    trouble = "found neither" if folder.is_dir() else "which does not exist"
    raise FileNotFoundError(
        f"Expected {name}.zip or the unpacked folder {name} in {folder}, {trouble}. {advice}"
    )


class ImageArchive:
    """The images of a zip file or of a folder, listed at once and read when asked for.

    The images must lie at the same depth below one folder, whose name does not matter. Hidden
    files and other suffixes are passed over, as is what macOS adds to archives. Links are followed.
    Nothing is ever unpacked to disk.

    Args:
        path: A zip file or a folder.
        levels: Number of parts of an image's path that count: 2 for ``"dog/1.png"``.
        suffixes: Suffixes of image files, in lower case.

    Attributes:
        path: The zip file or the folder.
        names: Sorted paths of the images, ``levels`` parts each.
        identity: Checksum of names and contents (for a folder: of where it is, and of sizes and
            times of change, so that not every file must be read).

    Raises:
        ValueError: If the zip file cannot be read, holds a path out of itself or a file twice, the
            name of a folder of images cannot be written in UTF-8, or there are no images or images
            below several folders.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "animals.zip")
        >>> with zipfile.ZipFile(path, "w") as file:
        ...     file.writestr("animals/dog/1.png", b"pixels")
        >>> archive = ImageArchive(path, levels=2, suffixes=[".png"])
        >>> archive.names, list(archive.read())
        (('dog/1.png',), [b'pixels'])
    """

    def __init__(self, path: str | os.PathLike, *, levels: int, suffixes: Sequence[str]) -> None:
        """Lists the images."""
        self.path = Path(path)
        files = files_of_folder(self.path) if self.path.is_dir() else _files_of_zip(self.path)
        members: dict[str, str] = {}
        roots: dict[str, str] = {}
        # Two folders can agree in all sizes and times, as those of unpacked archives may.
        digest = hashlib.sha256(_bytes(str(self.path.resolve()) if self.path.is_dir() else ""))
        for member, fingerprint in sorted(files):
            parts = PurePosixPath(member).parts
            if not _is_image(parts, levels, suffixes):
                continue
            name = "/".join(parts[-levels:])
            roots.setdefault("/".join(parts[:-levels]), member)
            if len(roots) > 1:
                raise ValueError(
                    f"The images of {self.path} must lie at the same depth below one folder, but "
                    f"{' and '.join(sorted(roots.values()))} do not. Move or remove the ones that "
                    f"do not belong."
                )
            if name in members:
                raise ValueError(f"{self.path} holds {member} twice. Remove one.")
            folder = name.rpartition("/")[0]
            if folder.encode(errors="ignore").decode() != folder:
                raise ValueError(
                    f"The folder of {member!r} in {self.path} has a name that is not UTF-8. Rename "
                    "it: it is the name of a class."
                )
            members[name] = member
            digest.update(_bytes(f"{name} {fingerprint}\n"))
        if not members:
            pattern = "/".join(["*"] * levels)
            found = f"its first file is {min(files)[0]}" if files else "it is empty"
            raise ValueError(
                f"{self.path} holds no images {pattern} with suffix {', '.join(suffixes)}; {found}."
                f" It seems to be another archive."
            )
        self.names = tuple(sorted(members))
        self.identity = digest.hexdigest()
        self._members = members
        paths = (PurePosixPath(member).parts for member, _ in files)
        self._beside = [p for p in paths if len(p) >= levels and "/".join(p[:-levels]) in roots]
        self._levels = levels

    def read(self, names: Iterable[str] | None = None) -> Iterator[bytes]:
        """Reads image files.

        Args:
            names: Which ones, in the order wanted; ``None``: all.

        Yields:
            The content of each file.

        Raises:
            ValueError: If a member of the zip file is damaged.
        """
        names = self.names if names is None else names
        if self.path.is_dir():
            for name in names:
                yield (self.path / self._members[name]).read_bytes()
            return
        with zipfile.ZipFile(self.path) as file:
            for name in names:
                try:
                    content = file.read(self._members[name])
                except DAMAGE as error:
                    raise _damaged(self.path, error) from error
                yield content

    def by_folder(self) -> dict[str, list[str]]:
        """The names of the images by the folder that they lie in, both sorted."""
        folders: dict[str, list[str]] = {}
        for name in self.names:
            folders.setdefault(name.rpartition("/")[0], []).append(name)
        return folders

    def left_out(self) -> list[str]:
        """The files beside the images that are no images as far as their suffixes say, sorted."""
        names = ("/".join(parts[-self._levels :]) for parts in self._beside if _counts(parts))
        return sorted(set(names) - set(self.names))

    def other_folders(self) -> dict[str, str]:
        """The first file of each folder that lies beside those of `by_folder` without an image."""
        there, others = self.by_folder(), {}
        for parts in sorted(self._beside):
            folder = "/".join(parts[-self._levels : -1])
            if folder not in there and _counts(parts):
                others.setdefault(folder, parts[-1])
        return others


def combined_identity(*parts: object) -> str:
    """One checksum of several identities and settings.

    Args:
        *parts: Anything with a telling ``str``.

    Returns:
        16 hexadecimal digits.

    Example:
        >>> combined_identity("archive", 84) == combined_identity("archive", 28)
        False
    """
    return hashlib.sha256(_bytes("\n".join(map(str, parts)))).hexdigest()[:16]


def files_of_folder(
    folder: Path, above: str = "", ancestors: tuple[tuple[int, int], ...] = ()
) -> list[tuple[str, str]]:
    """Lists the files below a folder; links are followed, but not into a folder around them.

    Args:
        folder: Where to look. Hidden files and folders are passed over.
        above: What the names begin with.
        ancestors: The folders around it.

    Returns:
        The name of each file, with what changes when the file does: its size and time.

    Raises:
        ValueError: If a link leads nowhere.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "1.png").write_bytes(b"pixels")
        >>> [name for name, fingerprint in files_of_folder(folder)]
        ['1.png']
    """
    status = folder.stat()
    identity = status.st_dev, status.st_ino
    if identity in ancestors:
        return []
    files = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = above + entry.name
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                files += files_of_folder(Path(entry), f"{name}/", (*ancestors, identity))
                continue
            try:
                status = entry.stat()
            except FileNotFoundError as error:
                raise ValueError(
                    f"{entry.path} is a link to a file that is not there. Remove or mend it."
                ) from error
            files.append((name, f"{status.st_size}-{status.st_mtime_ns}"))
    return files


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or what macOS adds to archives.

    Example:
        >>> is_hidden("._dog.png"), is_hidden("dog.png")
        (True, False)
    """
    return name.startswith(".") or name == "__MACOSX"


def _files_of_zip(path: Path) -> list[tuple[str, str]]:
    with path.open("rb") as file:
        if file.read(2) not in (b"PK", b""):
            raise ValueError(f"{path} is no folder and no zip file. Pass one of these.")
    try:
        with zipfile.ZipFile(path) as file:
            members = [info for info in file.infolist() if not info.is_dir()]
    except DAMAGE as error:
        raise _damaged(path, error) from error
    for info in members:
        if info.filename.startswith("/") or ".." in PurePosixPath(info.filename).parts:
            raise ValueError(
                f"{path} holds {info.filename}, a path out of the archive. Do not use this file."
            )
    return [(info.filename, f"{info.file_size}-{info.CRC:08x}") for info in members]


def _is_image(parts: tuple[str, ...], levels: int, suffixes: Sequence[str]) -> bool:
    hidden = any(map(is_hidden, parts))
    return len(parts) >= levels and not hidden and Path(parts[-1]).suffix.lower() in suffixes


def _counts(parts: Sequence[str]) -> bool:
    """Whether a person has put a file there, rather than a system."""
    return not any(map(is_hidden, parts)) and parts[-1].lower() not in OF_SYSTEMS


def _bytes(text: str) -> bytes:
    """UTF-8, or whatever bytes the name of a file has instead."""
    return text.encode(errors="surrogateescape")


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is truncated or damaged ({error}). Download it again.")
