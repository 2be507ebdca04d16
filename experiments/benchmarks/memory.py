"""The memory of a process, as Linux counts it."""

import pathlib
from typing import Literal


def megabytes(kind: Literal["resident", "peak"] = "resident", process: int | None = None) -> float:
    """Returns how much memory a process has, or has had at most since it began or `reset_peak`.

    Args:
        kind: Which of the two.
        process: Its number; by default this one.

    Raises:
        OSError: There is no such process, or the system is not Linux.
    """
    field = {"resident": "VmRSS", "peak": "VmHWM"}[kind]
    path = pathlib.Path("/proc", "self" if process is None else str(process), "status")
    for line in path.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"{path} has no {field}: memory is measured on Linux only.")


def reset_peak() -> None:
    """Lets the peak of this process begin anew."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")
