"""Continues a training that was ended, with one worker or several."""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import keras

from keras_maml import private_keras
from keras_maml.execution.workers import Workers
from keras_maml.files import lock, remove_leftovers, whole
from keras_maml.learners import agreement

_NAME = "epoch-{:06d}.weights.h5"


class BackupAndRestore(keras.callbacks.Callback):
    """Lets `fit` go on after the last finished epoch when an ended program is started again.

    Like Keras's callback of this name, with two differences. What is in the folder is whole,
    whenever the process is killed. And of several workers worker 0 alone writes and reads the
    folder; the others get from it what is there, and all compare epoch and checksum before they
    go on. With the same meta-batches in every epoch, weights and state of the optimizer become, bit
    for bit, those of a training of as many workers that was never ended.

    Data that do not end begin anew when the program does: give them ``start=`` by `epochs_done`.

    Args:
        folder: Where the state after the last epoch is kept; created if it is not there. Other
            trainings are kept out of it until this one has ended, however it does.
        delete: Whether to delete that state when training has come to its end.

    Raises:
        BlockingIOError: Another training uses the folder.

    Example:
        >>> import keras_maml, tempfile
        >>> learner = keras_maml.MAML(keras_maml.networks.sinusoid_regressor(seed=0))
        >>> learner.compile("adam", "mean_squared_error")
        >>> episodes = keras_maml.episodes.sinusoid(meta_batch_size=2, tasks=4)
        >>> backup = BackupAndRestore(tempfile.mkdtemp(), delete=False)
        >>> learner.fit(episodes, epochs=2, callbacks=[backup], verbose=0).epoch
        [0, 1]
        >>> learner.fit(episodes, epochs=3, callbacks=[backup], verbose=0).epoch
        [2]
    """

    def __init__(self, folder: str | os.PathLike, *, delete: bool = True) -> None:
        super().__init__()
        self._folder = pathlib.Path(folder)
        self._delete = delete
        self._unlock: Callable[[], None] | None = None

    def epochs_done(self, workers: Workers | None = None) -> int:
        """Returns after how many epochs `fit` will go on.

        Args:
            workers: Those who train; all of them have to call it.
        """
        numbers = [int(path.name[6:12]) for path in self._states()] if _is_first(workers) else []
        done = max(numbers, default=0)
        return done if workers is None else int(workers.of_first(done))

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Takes over the last state."""
        learner, workers = self.model, self.model.several_workers
        if _is_first(workers):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._unlock = lock(self._folder)
            remove_leftovers(self._folder)
        done = self.epochs_done(workers)
        if done and _is_first(workers):
            learner.load_weights(self._folder / _NAME.format(done))
        if done and workers is not None:
            agreement.hand_out(learner, workers)
            workers.check_equal(epochs_done=done, checksum_of_weights=agreement.checksum(learner))
        private_keras.begin_at(learner, done or None)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Keeps the state in the place of the one before."""
        if not _is_first(self.model.several_workers):
            return
        before = self._states()
        path = self._folder / _NAME.format(epoch + 1)
        self._folder.mkdir(parents=True, exist_ok=True)  # whoever may have removed it
        with whole(path) as temporary:
            self.model.save_weights(temporary, overwrite=True)
        for old in before:
            if old != path:
                old.unlink()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Deletes the state, if asked to."""
        private_keras.begin_at(self.model, None)
        if self._delete and _is_first(self.model.several_workers):
            for path in self._states():
                path.unlink()

    def release(self) -> None:
        """Lets other trainings use the folder; `fit` does so at its end, of whatever kind it is."""
        if self._unlock is not None:
            self._unlock()
            self._unlock = None

    def _states(self) -> list[pathlib.Path]:
        return [*self._folder.glob("epoch-*.weights.h5")]


def _is_first(workers: Workers | None) -> bool:
    return workers is None or workers.index == 0
