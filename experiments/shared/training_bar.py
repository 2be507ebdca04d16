"""How far a training is that prints nothing else."""

from typing import Any

import keras

from keras_maml.progress import progress


class TrainingBar(keras.callbacks.Callback):
    """Shows in a terminal how many iterations are done, and the time that remains.

    Args:
        iterations: Of the whole training, those of earlier processes included.
        name: What is trained.
    """

    def __init__(self, iterations: int, name: str) -> None:
        super().__init__()
        self._iterations = iterations
        self._name = name
        self._bar: Any = None

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Begins with what was done before."""
        done = self._done()
        self._bar = progress(None, self._iterations, self._name, "iterations", initial=done)

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Moves on."""
        self._bar.update(self._done() - self._bar.n)

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Takes the bar away."""
        self._bar.close()

    def _done(self) -> int:
        return int(self.model.optimizer.iterations)
