"""Where customers' weights are kept: in memory, in a folder, or in one SQLite file.

A store maps names to bytes and knows nothing of learners.
"""

import contextlib
import errno
import hashlib
import os
import pathlib
import random
import sqlite3
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

MAX_NAME_BYTES = 80
_SUFFIX, _UNFINISHED = ".weights", ".unfinished"
_TABLE = "CREATE TABLE weights (name TEXT PRIMARY KEY, record BLOB NOT NULL)"
_PAGE_BYTES = 2**14
_PAUSE_SECONDS = 0.002  # at most, between two looks at a file that another process writes to


class Store(Protocol):
    """What a `Personalizer` needs of a store."""

    def put(self, records: Mapping[str, bytes]) -> None:
        """Keeps records; those that were there under the same names are replaced."""

    def get(self, names: Sequence[str]) -> list[bytes | None]:
        """Returns the record of each name, None where there is none."""

    def delete(self, name: str) -> bool:
        """Forgets a record; returns whether there was one."""

    def names(self) -> list[str]:
        """Returns all names, sorted."""


def check_name(name: str) -> None:
    """Raises ValueError unless ``name`` is text of 1 to 80 bytes in UTF-8."""
    if not isinstance(name, str) or not 1 <= len(name.encode()) <= MAX_NAME_BYTES:
        raise ValueError(
            f"A customer's name must be text of 1 to {MAX_NAME_BYTES} bytes in UTF-8, got {name!r}."
        )


class MemoryStore:
    """Keeps records as long as the process lives.

    Example:
        >>> store = MemoryStore()
        >>> store.put({"ada": b"1"})
        >>> store.get(["ada", "bob"]), store.delete("ada"), store.names()
        ([b'1', None], True, [])
    """

    def __init__(self) -> None:
        self._records: dict[str, bytes] = {}

    def put(self, records: Mapping[str, bytes]) -> None:
        """Keeps records."""
        self._records.update(records)

    def get(self, names: Sequence[str]) -> list[bytes | None]:
        """Returns the record of each name, or None."""
        return [self._records.get(name) for name in names]

    def delete(self, name: str) -> bool:
        """Forgets a record; returns whether there was one."""
        return self._records.pop(name, None) is not None

    def names(self) -> list[str]:
        """Returns all names, sorted."""
        return sorted(self._records)


class FolderStore:
    """Keeps a file for each name, each written whole or not at all.

    Args:
        path: The folder; it is created.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self._folder = pathlib.Path(path).absolute()
        self._folder.mkdir(parents=True, exist_ok=True)

    def _file(self, name: str) -> pathlib.Path:
        # A quoted name holds no separator, and with the suffix it is neither "." nor "..".
        return self._folder / (urllib.parse.quote(name, safe="") + _SUFFIX)

    def _beginning(self, name: str) -> str:
        """How the names of files begin that are being written, or were when a process died."""
        return f"{hashlib.sha256(name.encode()).hexdigest()[:32]}-"  # as short for every name

    def put(self, records: Mapping[str, bytes]) -> None:
        """Keeps records."""
        for name, record in records.items():
            # A name of its own for each writer, since two may write the same record.
            number, temporary = tempfile.mkstemp(
                dir=self._folder, prefix=self._beginning(name), suffix=_UNFINISHED
            )
            try:
                with open(number, "wb") as file:
                    file.write(record)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, self._file(name))
            except FileNotFoundError:
                if not self._folder.is_dir():
                    raise
                # else the name was forgotten meanwhile
            except BaseException:
                pathlib.Path(temporary).unlink(missing_ok=True)
                raise

    def get(self, names: Sequence[str]) -> list[bytes | None]:
        """Returns the record of each name, or None."""
        found: list[bytes | None] = []
        for name in names:
            record = None
            with _nothing_if_missing():
                record = self._file(name).read_bytes()
            found.append(record)
        return found

    def delete(self, name: str) -> bool:
        """Forgets a record, and what is unfinished of it; returns whether there was one."""
        for unfinished in self._folder.glob(f"{self._beginning(name)}*{_UNFINISHED}"):
            unfinished.unlink(missing_ok=True)
        with _nothing_if_missing():
            self._file(name).unlink()
            return True
        return False

    def names(self) -> list[str]:
        """Returns all names, sorted."""
        files = self._folder.glob(f"*{_SUFFIX}")
        return sorted(urllib.parse.unquote(file.name.removesuffix(_SUFFIX)) for file in files)


@contextlib.contextmanager
def _nothing_if_missing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # What is too long to be the name of a file was never kept either.
        if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG):
            raise


class SQLiteStore:
    """Keeps all records in one file, which several threads and processes may use.

    What `put` has returned from is in the file, also if the process is killed the moment after;
    of a `put` that was interrupted there is nothing.

    Args:
        path: The file, on a local disk; it is created, its folder is not.
        timeout: How many seconds to wait for other writers.

    Raises:
        OSError: The file cannot be opened or created, or is something else, such as the database
            of another program.
        ValueError: The path is one of those that are no files to SQLite.
    """

    def __init__(self, path: str | os.PathLike, timeout: float = 30.0) -> None:
        self._path, self._timeout = os.path.abspath(path), timeout
        self._local = threading.local()
        if os.fspath(path) in ("", ":memory:"):  # which are another database in each thread
            raise ValueError(
                f"{os.fspath(path)!r} is no file: name one, or take a MemoryStore, as "
                "keras-maml serve does without --store."
            )
        try:
            with self._transaction() as connection:
                schema = [sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master")]
                if not schema:
                    connection.execute(_TABLE)
                elif _TABLE not in schema:  # tools for backups may add tables of their own
                    raise sqlite3.DatabaseError("it is the database of another program")
        except sqlite3.Error as error:
            raise OSError(
                f"{self._path} cannot keep customers ({error}): pass a file that a store made, or "
                "the name of a new one in a folder that is there."
            ) from error

    @contextlib.contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
        # Connections must be carried neither to another thread nor over a fork.
        if getattr(self._local, "process", None) != os.getpid():
            connection = sqlite3.connect(self._path, timeout=self._timeout, isolation_level=None)
            # Of a new file: of two kilobytes a record, smaller pages would be half empty.
            pages = f"PRAGMA page_size={_PAGE_BYTES}"
            self._wait_for(connection, "PRAGMA synchronous=FULL", pages)
            self._local.connection, self._local.process = connection, os.getpid()
        connection = self._local.connection
        # Writers queue at the beginning: one that waits half-way would have to give up. Readers
        # lock the file only when they read.
        self._wait_for(connection, f"BEGIN {kind}", "SELECT 1 FROM sqlite_master LIMIT 1")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # SQLite itself has rolled back when the disk is full
                connection.execute("ROLLBACK")
            raise

    def _wait_for(self, connection: sqlite3.Connection, *statements: str) -> None:
        # SQLite itself looks ten times a second whether the file is free. Beside a process that
        # writes without a pause, which leaves it free for microseconds, that finds it never.
        end = time.monotonic() + self._timeout
        connection.execute("PRAGMA busy_timeout=0")
        try:
            while True:
                try:
                    for statement in statements:
                        connection.execute(statement).fetchone()
                    return
                except sqlite3.OperationalError as error:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                    if not busy or time.monotonic() > end:
                        raise
                time.sleep(random.uniform(0, _PAUSE_SECONDS))
        finally:
            connection.execute(f"PRAGMA busy_timeout={round(1000 * self._timeout)}")

    def put(self, records: Mapping[str, bytes]) -> None:
        """Keeps records: all of them, or none."""
        with self._transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO weights VALUES (?, ?)", records.items())

    def get(self, names: Sequence[str]) -> list[bytes | None]:
        """Returns the record of each name, or None; all as they were at one moment."""
        query = "SELECT record FROM weights WHERE name = ?"
        with self._transaction("DEFERRED") as connection:
            rows = [connection.execute(query, [name]).fetchone() for name in names]
        return [None if row is None else row[0] for row in rows]

    def delete(self, name: str) -> bool:
        """Forgets a record; returns whether there was one."""
        with self._transaction() as connection:
            return connection.execute("DELETE FROM weights WHERE name = ?", [name]).rowcount > 0

    def names(self) -> list[str]:
        """Returns all names, sorted."""
        with self._transaction("DEFERRED") as connection:
            return sorted(name for (name,) in connection.execute("SELECT name FROM weights"))
