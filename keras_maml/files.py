"""Files and folders that are written whole or not at all, and tables of numbers in them.

Whoever reads a file sees what was there before or all of what comes after it, whatever happens
meanwhile: an error, a full disk, a kill, a power cut, another process that writes the same file.
For that it is written under a name of its own in the same folder, brought to the disk, and renamed;
the file that was there stays until then.
"""

import contextlib
import csv
import ctypes
import itertools
import json
import os
import pathlib
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TEMPORARY = "temporary."
"""How the name of a file begins that is being written, or was when its process was killed."""
MAX_NAME_BYTES = 255
"""How long the name of a file may be, for the usual file systems."""
DIGITS = 12
"""Random hexadecimal digits that follow, so that no two writers choose the same name."""

AT_WORKING_FOLDER, EXCHANGE = -100, 2  # of Linux's renameat2


@contextlib.contextmanager
def whole(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a name to write a file under, and renames it unless something fails.

    The name is that of no other file, whoever else writes this one: the last to finish counts. A
    library that is given it must have closed the file when the block ends.

    Args:
        path: The file; one that is there is replaced, and its mode kept, and where it is a link,
            the file that it points to. Its name, by which libraries choose a format, ends the name
            yielded, without its beginning if that would be too long.

    Raises:
        FileNotFoundError: The folder is not there, or nothing was written under the name.
        OSError: What the writing raises, such as that the disk is full: the old file is as it was.

    Example:
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> with whole(folder / "a.txt") as temporary:
        ...     _ = temporary.write_text("all of it")
        >>> [path.name for path in folder.iterdir()]
        ['a.txt']
    """
    path = pathlib.Path(path)
    path = path.resolve() if path.is_symlink() else path
    beginning = f"{TEMPORARY}{uuid.uuid4().hex[:DIGITS]}."
    temporary = path.with_name(beginning + _end(path.name, MAX_NAME_BYTES - len(beginning)))
    try:
        yield temporary
        flush(temporary)
        if path.exists():
            shutil.copymode(path, temporary)
        temporary.replace(path)
        flush(path.parent, below=False)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike, replace: bool = True) -> Iterator[pathlib.Path]:
    """Yields a folder to be made and filled, and moves it into place unless something fails.

    Linux exchanges a folder for another in one step. Elsewhere the old one is renamed, then the
    new one: a process that is killed in between leaves the old one beside, in a hidden folder.

    Args:
        path: The folder, or a link to it; parents are created, and the mode is kept.
        replace: Whether to replace a folder that is there.

    Raises:
        FileNotFoundError: It is a link to what is not there.
        OSError: The folder is there and not to be replaced, or what the writing raises.

    Example:
        >>> folder = pathlib.Path(tempfile.mkdtemp(), "model")
        >>> with whole_folder(folder) as new:
        ...     new.mkdir()
        >>> folder.is_dir()
        True
    """
    path = pathlib.Path(path)
    if path.is_symlink():
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is a link to {os.readlink(path)}, which is not there: remove the link, or "
                "choose another folder."
            )
        path = path.resolve()
    # On the same disk, so that the move is atomic and who watches the parent never sees half a
    # folder; above the folders to create, so that a failure leaves none behind.
    above = next(parent for parent in path.absolute().parents if parent.exists())
    with tempfile.TemporaryDirectory(dir=above, prefix=f".{_end(path.name, 200)}-") as staging:
        new, old = pathlib.Path(staging, "new"), pathlib.Path(staging, "old")
        yield new
        flush(new)
        if path.exists():
            shutil.copymode(path, new)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (replace and path.exists() and exchange(new, path)):
            if replace and path.exists():
                path.rename(old)
            try:
                new.rename(path)
            except OSError:
                if old.exists():
                    old.rename(path)
                raise
        flush(path.parent, below=False)


def _end(name: str, size: int) -> str:
    """Returns the end of a name, of at most so many bytes."""
    while len(os.fsencode(name)) > size:
        name = name[1:]
    return name


def flush(path: str | os.PathLike, below: bool = True) -> None:
    """Brings a file, or a folder, from the system's memory to the disk.

    A file that is renamed before it is on the disk can be empty after a power cut.

    Args:
        path: The file or folder.
        below: Whether everything in a folder is meant, too.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: The disk is full or damaged: what was written is lost.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        for entry in path.iterdir() if below else ():
            if not entry.is_symlink():
                flush(entry)
        if os.name == "nt":  # Windows opens no folders
            return
    flags = os.O_RDWR if os.name == "nt" else os.O_RDONLY
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some network disks cannot do it with folders
            raise
    finally:
        os.close(descriptor)


def exchange(first: str | os.PathLike, second: str | os.PathLike) -> bool:
    """Swaps two files or folders of one disk in one step, so that neither is ever missing.

    Args:
        first: One of them.
        second: The other.

    Returns:
        Whether they were swapped; not every system and disk can.

    Example:
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for name in "ab":
        ...     _ = (folder / name).write_text(name)
        >>> ("b" if exchange(folder / "a", folder / "b") else "a") == (folder / "a").read_text()
        True
    """
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    names = (AT_WORKING_FOLDER, os.fsencode(first)), (AT_WORKING_FOLDER, os.fsencode(second))
    return rename is not None and rename(*names[0], *names[1], EXCHANGE) == 0


def lock(folder: str | os.PathLike) -> Callable[[], None]:
    """Keeps a folder from other runs.

    The system forgets the lock when the process ends, however it does, and nothing is left in the
    folder. Systems (Windows) and disks (NFS) that lock no folders keep nobody out.

    Args:
        folder: A folder that is there.

    Returns:
        A function that gives the folder free.

    Raises:
        BlockingIOError: Another run is using the folder, in this process or another.

    Example:
        >>> folder = tempfile.mkdtemp()
        >>> unlock = lock(folder)
        >>> lock(folder)
        Traceback (most recent call last):
        ...
        BlockingIOError: ... is in use by another run. Wait until it has ended, or choose another...
        >>> unlock()
        >>> lock(folder)()
    """
    if fcntl is None:
        return lambda: None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise BlockingIOError(
            f"{folder} is in use by another run. Wait until it has ended, or choose another folder."
        ) from None
    except OSError:  # no locks here
        pass

    def unlock() -> None:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # of processes forked meanwhile, too
        os.close(descriptor)

    return unlock


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Removes what was being written with `whole` in a folder or below when processes were killed.

    Args:
        folder: A folder in which no other process is writing.
    """
    for path in pathlib.Path(folder).rglob(f"{TEMPORARY}{'[0-9a-f]' * DIGITS}.*"):
        path.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes text in UTF-8."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes JSON."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_csv(path: str | os.PathLike, rows: Sequence[Mapping[str, float]]) -> None:
    """Writes a table with a header, the names in any of the rows; what a row lacks is empty."""
    names = dict.fromkeys(itertools.chain.from_iterable(rows))
    with whole(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(names))
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: str | os.PathLike) -> list[dict[str, float]]:
    """Reads a table of numbers that `write_csv` has written."""
    with pathlib.Path(path).open(newline="") as file:
        return [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]
