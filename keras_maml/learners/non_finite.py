"""Stops training at a loss that is not finite."""

from typing import Any

import keras
import numpy as np


class StopOnNonFinite(keras.callbacks.Callback):
    """Stops training at the first loss or meta-gradient that is not finite.

    `MAML.fit` adds it by itself. The step is not taken, so the learner keeps the weights of the
    last good step. Beside `keras.callbacks.TerminateOnNaN` training ends without an error.

    Raises:
        FloatingPointError: Says at which step, and what usually helps.
    """

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Checks the running mean of the loss, which stays non-finite once it is."""
        loss = float((logs or {}).get("loss", 0.0))
        if np.isfinite(loss) or self.model.stop_training:
            return
        step = int(self.model.optimizer.iterations) + 1
        raise FloatingPointError(
            f"The loss or the meta-gradient was not finite at training step {step}; the learner "
            f"keeps the weights of step {step - 1}. Look for NaN in that meta-batch, lower "
            "inner_learning_rate or inner_steps, or give the optimizer a clipvalue or clipnorm."
        )
