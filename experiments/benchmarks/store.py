"""Results that are kept measurement by measurement, so that a benchmark can be continued."""

import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any

from experiments.benchmarks import machine
from experiments.shared import runs
from keras_maml.files import write_text


class Store:
    """A results folder: ``settings.json``, ``results.json`` and ``results.txt``.

    Args:
        folder: The folder; created if need be.
        settings: A dataclass, what the figures depend on.
        table: Makes the text of ``results.txt`` from the records by key.
        data: Checksums of the data by name; more is measured on no others.
        overwrite: Whether what an earlier one of the same kind left is removed first.

    Raises:
        FileExistsError: The folder holds results of other settings, or something else.
        BlockingIOError: Another run is using the folder.
        ValueError: The data are not those that were measured on before.
    """

    def __init__(
        self,
        folder: str,
        settings: Any,
        table: Callable[[dict[str, dict]], str],
        data: dict[str, str] | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        self._run = runs.Run(folder, settings, data, overwrite=overwrite)
        self._table = table
        record = self._run.results
        self.records: dict[str, dict] = record["results"] if record else {}

    @property
    def path(self) -> pathlib.Path:
        """The table."""
        return self._run.folder / "results.txt"

    def measure(self, key: str, function: Callable[[], dict]) -> dict:
        """Returns a record, measured now if it is not there yet; written at once.

        Args:
            key: Names the record.
            function: Measures it.
        """
        if key not in self.records:
            print(f"{key} ...", flush=True)
            record = function()
            self.records[key] = record | {"commit": runs.COMMIT, "date": time.strftime("%Y-%m-%d")}
            self._run.finish(self.records, machine=machine.describe())
        write_text(self.path, self.text())
        return self.records[key]

    def text(self) -> str:
        """Returns the table, with what it was made with."""
        made = sorted({f"{r['date']} at commit {r['commit']}" for r in self.records.values()})
        about = machine.describe()
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        head = f"{about['cpu']}, {about['threads']} threads; {versions}; {'; '.join(made)}."
        return f"{head}\n\n{self._table(self.records)}\n"

    def shown(self) -> "Store":
        """Prints the table and where it is; returns itself."""
        print(self.text())
        print(f"Written to {self.path}")
        return self


def check_known(name: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Checks what is to be measured.

    Args:
        name: Of the option.
        given: What was asked for.
        known: What there is.

    Raises:
        ValueError: Something is not known.
    """
    known = list(known)
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"{name} must be some of {', '.join(known)}, got {unknown}.")
