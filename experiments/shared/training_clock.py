"""How long the steps of training take, and an end of training after so many seconds of them."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

Row = Mapping[str, float]


class TrainingClock(keras.callbacks.Callback):
    """Measures the steps of training alone, and ends training when their time is used up.

    Neither validation nor checkpoints count. A step that begins with tracing and compiling counts
    as much as the other steps of its epoch on average, or as those of the epoch before. What is
    measured goes into the logs, from where `experiments.shared.checkpoint.Checkpoint` keeps it,
    also within an epoch: ``step_seconds``, the mean of an epoch's steps, and ``warming_up``, 1 for
    the first epoch of a process and else 0.

    Args:
        limit: Seconds after which training ends, also within an epoch; None sets no limit.

    Attributes:
        seconds: Of training so far, in all processes.
    """

    def __init__(self, limit: float | None = None) -> None:
        super().__init__()
        self.limit = limit
        self.seconds = 0.0
        self._before = 0.0  # the seconds before the epoch
        self._earlier = 0.0  # those of its steps in processes before
        self._epochs = 0  # that this process has finished
        self._durations: list[float] = []  # of the epoch's steps that were compiled before
        self._mean = 0.0
        self._program = None
        self._clock = 0.0

    @property
    def expired(self) -> bool:
        """Whether the time is used up."""
        return self.limit is not None and self.seconds >= self.limit

    def resume(self, history: Sequence[Row], steps: int, means: Row) -> None:
        """Takes over what processes before have measured.

        Args:
            history: A row per finished epoch.
            steps: Steps that are done of the next one.
            means: What their logs were.
        """
        self._before = training_seconds(history)[-1] if history else 0.0
        rows = [*history, means] if steps else history
        self._mean = rows[-1]["step_seconds"] if rows else 0.0
        self._earlier = steps * self._mean
        self.seconds = self._before + self._earlier

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begins an epoch."""
        self._durations = []

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts the clock."""
        self._clock = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Counts the step, and ends training if the time is used up."""
        duration = self._elapsed()
        program = self.model.train_function  # another one whenever the step is to be traced
        if program is self._program:
            self._durations.append(duration)
        self._program = program
        if self._durations:
            self._mean = float(np.mean(self._durations))
        self.seconds = self._before + self._earlier + (batch + 1) * self._mean
        self._log(logs)
        if self.expired:
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Ends the epoch."""
        self._log(logs)
        self._before, self._earlier = self.seconds, 0.0
        self._epochs += 1

    def _elapsed(self) -> float:
        return time.monotonic() - self._clock

    def _log(self, logs: dict[str, Any] | None) -> None:
        if logs is not None:
            logs |= {"step_seconds": self._mean, "warming_up": float(not self._epochs)}


def training_seconds(history: Sequence[Row]) -> np.ndarray:
    """Returns the seconds of training at the end of every epoch.

    Args:
        history: Rows with ``iterations``, those so far, and ``step_seconds``.
    """
    steps = np.diff([row["iterations"] for row in history], prepend=0.0)
    return np.cumsum(steps * [row["step_seconds"] for row in history])


def step_seconds(histories: Sequence[Sequence[Row]]) -> float | None:
    """Returns the median over epochs of the seconds per step, the first of a process left out.

    Args:
        histories: Those of one or several trainings; where all epochs were the first, they count.
    """
    rows = [row for history in histories for row in history]
    warm = [row for row in rows if not row["warming_up"]] or rows
    return float(np.median([row["step_seconds"] for row in warm])) if warm else None
