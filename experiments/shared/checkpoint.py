"""Checkpoints of a run: the last epoch, the best one, and where Ctrl-C ended the process."""

import json
import math
import pathlib
import time
from typing import Any

import keras

from experiments.shared.interruption import INTERRUPTION
from keras_maml.files import read_csv, whole, write_csv, write_json


class Checkpoint(keras.callbacks.Callback):
    """Saves the state and the history after every epoch; keeps the best and the last.

    After Ctrl-C it saves the state within the epoch and ends training with KeyboardInterrupt.

    Args:
        folder: Where ``checkpoints/`` and ``history.csv`` go.
        monitor: The metric whose highest value makes the best epoch, the one with the lowest
            ``val_loss`` if there are several; None keeps no best.

    Attributes:
        history: A row per finished epoch.
        steps: How many steps of the epoch were done before the process, or `fit`, began.
        means: The means of the logs over these steps, and their seconds.
    """

    def __init__(self, folder: pathlib.Path, monitor: str | None = None) -> None:
        super().__init__()
        self.folder = folder / "checkpoints"
        self.best_path = self.folder / "best.weights.h5"
        self.history: list[dict[str, float]] = []
        self.steps = 0
        self.means: dict[str, float] = {}
        self._history_path = folder / "history.csv"
        self._part_path = self.folder / "part.json"
        self._monitor = monitor
        self._clock = time.monotonic()

    def restore(self, learner: keras.Model) -> int:
        """Loads the last state, if there is one, and returns the number of finished epochs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        done, part = self.epochs_done(), self._part()
        if done:
            self.history = read_csv(self._history_path)[:done]
        if part:
            self.steps, self.means = part["steps"], part["means"]
            learner.load_weights(self.folder / part["state"])
        elif done:
            learner.load_weights(self._state(done))
        return done

    def epochs_done(self) -> int:
        """Returns the number of finished epochs."""
        names = (path.name for path in self.folder.glob("epoch-*.weights.h5"))
        return max((int(name.split("-")[1].split(".")[0]) for name in names), default=0)

    def steps_done(self, epoch_steps: int) -> int:
        """Returns the number of finished steps, also within an epoch.

        Args:
            epoch_steps: How many there are in an epoch.
        """
        part = self._part() or {"steps": 0}
        return self.epochs_done() * epoch_steps + part["steps"]

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Starts the clock."""
        self._clock = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Saves the state if a person wants the process to end, unless the epoch ends here."""
        INTERRUPTION.unsaved()
        if INTERRUPTION.requested() and batch + 1 < self.params["steps"]:
            self._save_part(batch + 1, logs or {})
            INTERRUPTION.saved()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Writes the history, then the state: a state always has its history."""
        before = self.history[-1]["seconds"] if self.history else 0.0
        row = {"epoch": float(epoch + 1), "iterations": float(self.model.optimizer.iterations)}
        row |= self._means((self.params or {}).get("steps"), logs or {})
        seconds = self._seconds()
        self.history.append(row | {"seconds": before + seconds})
        steps, self.steps, self.means = self.steps, 0, {}
        write_csv(self._history_path, self.history)
        if self._monitor:
            scores = [self._score(row) for row in self.history]
            if len(scores) == 1 or scores[-1] > max(scores[:-1]):
                self._save(self.best_path)
        old = [*self.folder.glob("epoch-*.weights.h5"), *self.folder.glob("part-*.weights.h5")]
        self._save(self._state(epoch + 1))
        for path in (*old, self._part_path):
            path.unlink(missing_ok=True)
        rest = (self.params or {}).get("epochs", 0) - epoch - 1
        if rest > 0 and self.params.get("verbose") == 2 and not steps:
            print(f"About {duration(rest * seconds)} of training remain.", flush=True)
        INTERRUPTION.saved()

    def _score(self, row: dict[str, float]) -> tuple[float, ...]:
        """What is highest of the best epoch; a number that is none (NaN) is worse than any."""
        score = (row[self._monitor], -row.get("val_loss", 0.0))
        return tuple(-math.inf if math.isnan(number) else number for number in score)

    def _means(self, steps: int | None, logs: dict[str, float]) -> dict[str, float]:
        """The means over an epoch of which the last steps were done in this process."""
        share = self.steps / (self.steps + steps) if self.steps else 0.0
        means = {}
        for name, value in logs.items():
            # What is measured at the end of an epoch was not measured within it.
            earlier = self.means.get(name, value)
            means[name] = float(share * earlier + (1 - share) * value) if share else float(value)
        return means

    def _seconds(self) -> float:
        now = time.monotonic()
        seconds, self._clock = now - self._clock + self.means.get("seconds", 0.0), now
        return seconds

    def _part(self) -> dict[str, Any] | None:
        """What is known of a state within an epoch, unless that epoch has ended."""
        part = json.loads(self._part_path.read_text()) if self._part_path.exists() else None
        return part if part and part["epochs"] == self.epochs_done() else None

    def _save_part(self, steps: int, logs: dict[str, float]) -> None:
        epochs, done = self.epochs_done(), self.steps + steps
        path = self.folder / f"part-{epochs:06d}-{done:06d}.weights.h5"
        old = [*self.folder.glob("part-*.weights.h5")]
        self._save(path)
        means = self._means(steps, logs) | {"seconds": self._seconds()}
        content = {"epochs": epochs, "steps": done, "state": path.name, "means": means}
        write_json(self._part_path, content)
        for other in old:
            if other != path:
                other.unlink()

    def _state(self, epoch: int) -> pathlib.Path:
        return self.folder / f"epoch-{epoch:06d}.weights.h5"

    def _save(self, path: pathlib.Path) -> None:
        with whole(path) as temporary:
            self.model.save_weights(temporary, overwrite=True)


def duration(seconds: float) -> str:
    """Writes a time as a person would say it.

    Example:
        >>> [duration(s) for s in (50, 90, 5400, 36_000)]
        ['50 seconds', '2 minutes', '1.5 hours', '10.0 hours']
    """
    if seconds < 60:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 3600 else f"{seconds / 3600:.1f} hours"
