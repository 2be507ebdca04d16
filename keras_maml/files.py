"""Files and folders that are written whole or not at all, and tables of numbers in them."""

import contextlib
import csv
import itertools
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

TEMPORARY = "temporary."
"""How the name of a file begins that is being written, or was when its process was killed."""


@contextlib.contextmanager
def whole(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a name to write a file under, and renames it unless something fails.

    Args:
        path: The file; one that is there is replaced. Its suffix, by which libraries choose a
            format, is that of the name, too.

    Example:
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> with whole(folder / "a.txt") as temporary:
        ...     _ = temporary.write_text("all of it")
        >>> [path.name for path in folder.iterdir()]
        ['a.txt']
    """
    path = pathlib.Path(path)
    temporary = path.with_name(TEMPORARY + path.name)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike, replace: bool = True) -> Iterator[pathlib.Path]:
    """Yields a folder to be made and filled, and moves it into place unless something fails.

    Args:
        path: The folder; parents are created.
        replace: Whether to replace a folder that is there.

    Raises:
        OSError: The folder is there and not to be replaced.
    """
    path = pathlib.Path(path)
    # On the same disk, so that the move is atomic and who watches the parent never sees half a
    # folder; above the folders to create, so that a failure leaves none behind.
    above = next(parent for parent in path.absolute().parents if parent.exists())
    with tempfile.TemporaryDirectory(dir=above, prefix=f".{path.name}-") as staging:
        new, old = pathlib.Path(staging, "new"), pathlib.Path(staging, "old")
        yield new
        path.parent.mkdir(parents=True, exist_ok=True)
        if replace and path.exists():
            path.rename(old)
        try:
            new.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise


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
