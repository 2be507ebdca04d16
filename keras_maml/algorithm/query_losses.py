"""Query losses: which of the fast weights, after which steps, a meta-step measures.

A query loss is a Keras layer, so that what it counts is saved and restored with the learner.
"""

from typing import Any

import keras
import tensorflow as tf

from keras_maml import validation


class QueryLoss(keras.layers.Layer):
    """The base of query losses: weights for the loss after each inner step.

    Attributes:
        last_only: Whether only the last step counts from now on, so that a meta-step need not
            compute the losses before.
    """

    last_only = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.built = True

    def step_weights(self, steps: int) -> tf.Tensor | None:
        """Returns the weight of the query loss after each step.

        Args:
            steps: The number of inner steps, at least 1.

        Returns:
            A tensor ``[steps]``; None where only the last step counts.
        """
        raise NotImplementedError(f"{type(self).__name__} must define step_weights.")

    def end_epoch(self) -> None:
        """Is called by ``fit`` at the end of every epoch, before its callbacks are."""


@keras.saving.register_keras_serializable("keras_maml")
class LastStep(QueryLoss):
    """The loss after the last inner step (Finn et al. 2017, algorithm 2).

    Args:
        **kwargs: Of `keras.layers.Layer`.

    Example:
        >>> print(LastStep().step_weights(5))
        None
    """

    last_only = True

    def step_weights(self, steps: int) -> None:
        """Returns None."""


@keras.saving.register_keras_serializable("keras_maml")
class MultiStep(QueryLoss):
    """The losses after all inner steps, annealed to that after the last (MAML++'s MSL).

        sum_i v_i L_query(theta_i),    in epoch e < E, with S steps:
        v_i = max(1 / S - e / (S E), 0.03 / S)                            for i < S
        v_S = min(1 / S + e (S - 1) / (S E), 1 - (S - 1) 0.03 / S)

    and from epoch E on the last step alone. ``fit`` counts the epochs: the count is a variable
    that is saved with the learner, so that training resumes where it stopped.

    Args:
        epochs: E; 0 begins with the last step alone.
        **kwargs: Of `keras.layers.Layer`.

    Raises:
        ValueError: ``epochs`` is not an integer of at least 0.

    Source: Antoniou, Edwards, Storkey, How to train your MAML, ICLR 2019; the annealing
    is that of the authors' code.

    Example:
        >>> loss = MultiStep(epochs=10)
        >>> [round(float(v), 2) for v in loss.step_weights(5)]
        [0.2, 0.2, 0.2, 0.2, 0.2]
        >>> loss.epoch.assign(5)
        <...>
        >>> [round(float(v), 2) for v in loss.step_weights(5)]
        [0.1, 0.1, 0.1, 0.1, 0.6]
    """

    def __init__(self, epochs: int = 15, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        validation.check_count("epochs", epochs)
        self._epochs = int(epochs)
        self.epoch = self.add_weight(
            shape=(), initializer="zeros", dtype="float32", trainable=False, name="epoch"
        )

    @property
    def last_only(self) -> bool:
        """Whether annealing is over."""
        return int(self.epoch.numpy()) >= self._epochs

    def step_weights(self, steps: int) -> tf.Tensor:
        """Returns the weights of this epoch."""
        dtype = keras.config.floatx()
        last = tf.one_hot(steps - 1, steps, dtype=dtype)
        if not self._epochs:
            return last
        epoch = tf.cast(self.epoch, dtype)
        decay = epoch / (steps * self._epochs)
        others = tf.maximum(1 / steps - decay, 0.03 / steps)
        final = tf.minimum(1 / steps + (steps - 1) * decay, 1 - (steps - 1) * 0.03 / steps)
        annealed = last * final + (1 - last) * others
        return tf.where(self.epoch < self._epochs, annealed, last)

    def end_epoch(self) -> None:
        """Counts the epoch."""
        self.epoch.assign_add(1)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "epochs": self._epochs}


def get(identifier: Any) -> QueryLoss:
    """Returns the query loss that a name or an object stands for.

    Args:
        identifier: ``"last"``, or a `QueryLoss`.

    Raises:
        ValueError: It is neither.

    Example:
        >>> type(get("last")).__name__
        'LastStep'
    """
    if isinstance(identifier, str) and identifier == "last":
        return LastStep()
    if not isinstance(identifier, QueryLoss):
        raise ValueError(
            'query_loss must be "last" or an object of keras_maml.query_losses, got '
            f"{identifier!r}."
        )
    return identifier
