"""How many processor cores this process may use."""

import math
import os
import pathlib
from collections.abc import Iterator


def available_cores() -> set[int]:
    """The numbers of the cores that this process may run on.

    Returns:
        What the system has assigned to the process; where it assigns none (macOS, Windows), all.

    Example:
        >>> len(available_cores()) >= 1
        True
    """
    assigned = getattr(os, "sched_getaffinity", None)
    return set(assigned(0)) if assigned else set(range(os.cpu_count() or 1))


def count_cores(root: str | os.PathLike = "/") -> int:
    """Counts the cores that this process can keep busy.

    They are those that it may run on, but not more than its control group has processor time for:
    a container with ``docker run --cpus 2`` sees all cores of the machine, and more than two busy
    threads only wait for each other. A part of a core counts as one.

    Args:
        root: Where ``proc`` and ``sys`` are.

    Returns:
        At least 1.

    Example:
        >>> 1 <= count_cores() <= os.cpu_count()
        True
    """
    quotas = [len(available_cores()), *_quotas(pathlib.Path(root))]
    return max(1, math.ceil(min(quotas)))


def _quotas(root: pathlib.Path) -> Iterator[float]:
    """The processor time, in cores, of the control groups that this process is in."""
    mounted = root / "sys" / "fs" / "cgroup"
    # Lines such as "0::/user/job" and, in the first version, "4:cpu,cpuacct:/user/job".
    for line in _read(root / "proc" / "self" / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0":
            for folder in _groups(mounted, group):
                yield from _share(_read(folder / "cpu.max").split())
        elif "cpu" in controllers.split(","):
            for name in dict.fromkeys((controllers, "cpu", "cpu,cpuacct")):
                for folder in _groups(mounted / name, group):
                    files = (folder / f"cpu.cfs_{file}_us" for file in ("quota", "period"))
                    yield from _share([word for file in files for word in _read(file).split()])


def _groups(mounted: pathlib.Path, group: str) -> Iterator[pathlib.Path]:
    """A group and those around it, as far as they can be seen from inside a container."""
    folder = pathlib.PurePosixPath(group.lstrip("/"))
    for part in (folder, *folder.parents):
        yield mounted / part


def _share(words: list[str]) -> Iterator[float]:
    """Reads microseconds of processor time and the period for which they are; "max": no limit."""
    if len(words) == 2 and all(word.isdigit() and int(word) for word in words):
        yield int(words[0]) / int(words[1])


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text()
    except OSError:  # There are no such groups, or they are not for us to see.
        return ""
