"""What TensorBoard shows of adaptation."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf
from matplotlib.figure import Figure

from keras_maml import validation
from keras_maml.learners.annealing import DerivativeOrderAnnealing
from keras_maml.learners.backup import BackupAndRestore
from keras_maml.learners.maml import MAML
from keras_maml.learners.non_finite import StopOnNonFinite
from keras_maml.reporting import evaluation, plots

__all__ = [
    "AdaptationSummary",
    "BackupAndRestore",
    "DerivativeOrderAnnealing",
    "StopOnNonFinite",
]


class AdaptationSummary(keras.callbacks.Callback):
    """Writes loss and metrics after every inner step, and a picture, for TensorBoard.

    Also the graph of a meta-step. If the optimizer keeps a moving average of the weights
    (``use_ema=True``), that is what is shown, since `fit` ends with it. Goes
    beside `keras.callbacks.TensorBoard`, which writes the rest: loss and metrics before and after
    adaptation, and the norm of the meta-gradient.

    Args:
        log_dir: The folder of event files, the one given to `keras.callbacks.TensorBoard`.
        episodes: Validation episodes.
        tasks: How many of their tasks to evaluate.
        steps: The number of inner steps; by default the learner's `evaluation_steps`.
        figure: Draws the picture from the learner; by default none.
        every: Epochs between two summaries; the first and the last epoch have one in any case, so
            that a short run shows something, too.

    Raises:
        ValueError: ``tasks``, ``steps`` or ``every`` is out of range, or there are fewer episodes.

    Example:
        >>> import keras_maml, tempfile
        >>> validation = keras_maml.episodes.sinusoid(tasks=50, seed=1)
        >>> summary = AdaptationSummary(tempfile.mkdtemp(), validation, tasks=50, steps=5)
    """

    def __init__(
        self,
        log_dir: str | os.PathLike,
        episodes: tf.data.Dataset,
        *,
        tasks: int = 100,
        steps: int | None = None,
        figure: Callable[[MAML], Figure] | None = None,
        every: int = 1,
    ) -> None:
        super().__init__()
        validation.check_count("tasks", tasks, minimum=1)
        evaluation.check_enough(episodes, tasks)
        if steps is not None:
            validation.check_count("steps", steps)
        validation.check_count("every", every, minimum=1)
        self._log_dir = os.path.join(log_dir, "adaptation")
        self._episodes = episodes
        self._tasks = tasks
        self._steps = steps
        self._figure = figure
        self._every = every
        self._writer: tf.summary.SummaryWriter | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Opens the event file and writes the graph of a meta-step."""
        self._writer = tf.summary.create_file_writer(self._log_dir)
        self._seen = self._written = None
        support, query = next(iter(self._episodes))
        with self._writer.as_default():
            tf.summary.graph(self.model.meta_step_graph(support, query))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Evaluates and writes: after the first epoch and every few; the last one at the end."""
        self._seen = epoch
        if self._written is None or (epoch + 1) % self._every == 0:
            self._write(epoch)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Writes what the last epoch came to, if that is not there, and closes the event file."""
        if self._seen != self._written:  # only now is it known to have been the last
            self._write(self._seen)
        self._writer.close()

    def _write(self, epoch: int) -> None:
        learner, self._written = self.model, epoch
        with _averaged_weights(learner), self._writer.as_default(step=epoch):
            result = evaluation.evaluate(
                learner,
                self._episodes,
                tasks=self._tasks,
                steps=self._steps,
                batch_normalizations=[learner.batch_normalization],
            )
            for row in result.rows():
                if row["mean"] is not None:
                    name = f"{row['metric']} by inner step/step {row['step']:02d}"
                    tf.summary.scalar(name, row["mean"])
            if self._figure is not None:
                image = plots.to_array(self._figure(learner))
                tf.summary.image("adaptation", image[None])
        self._writer.flush()


@contextlib.contextmanager
def _averaged_weights(learner: MAML) -> Iterator[None]:
    """Lends a learner the moving average of its weights, if its optimizer keeps one."""
    weights = learner.get_weights()
    # Unlike `keras.callbacks.SwapEMAWeights`, which rounds, this leaves training as it was.
    learner.optimizer.finalize_variable_values(learner.trainable_variables)
    try:
        yield
    finally:
        learner.set_weights(weights)
