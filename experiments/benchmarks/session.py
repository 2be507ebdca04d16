"""A contender at work in its own process: first result, timed steps, memory."""

import time
from typing import Any

import numpy as np

from experiments.benchmarks import contenders, memory
from experiments.benchmarks.work import Work


class Session:
    """One contender.

    Args:
        contender: Its name in `contenders.CONTENDERS`.
    """

    def __init__(self, contender: str) -> None:
        self._module = contenders.load(contender)
        self._wait = contenders.waiting(contender)
        self._step: Any = None
        self._resident = 0.0

    def start(
        self, work: Work, weights: list, episodes: tuple, options: dict[str, Any] | None = None
    ) -> tuple[float, list[np.ndarray]]:
        """Takes the first step.

        Args:
            work: The line.
            weights: The initial weights.
            episodes: The data, see `work.episodes`.
            options: More arguments of the contender's ``prepare``.

        Returns:
            The seconds to the first result, tracing and compilation included and imports not,
            and what `contenders` says the arrays are.
        """
        self._resident = memory.megabytes()
        memory.reset_peak()
        start = time.perf_counter()
        self._step, arrays = self._module.prepare(work, weights, episodes, **(options or {}))
        output = self._step()
        self._wait()
        seconds = time.perf_counter() - start
        return seconds, arrays(output)

    def time(self, repeats: int) -> list[float]:
        """Takes one step untimed, since another process ran before, then timed ones.

        Args:
            repeats: How many timed steps.

        Returns:
            The seconds of each.
        """
        self._step()
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            self._step()
            self._wait()
            seconds.append(time.perf_counter() - start)
        return seconds

    def peak_memory(self) -> float:
        """Returns the peak of the resident size minus that before the first step, in GB."""
        return (memory.megabytes("peak") - self._resident) / 1e3

    def peak_memory_of_steps(self) -> float:
        """Returns the same of a step alone, after what compiling needed has been given back."""
        memory.reset_peak()
        self._step()
        return self.peak_memory()
