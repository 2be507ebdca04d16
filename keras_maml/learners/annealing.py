"""Which order of derivatives an epoch takes."""

from typing import Any

import keras

from keras_maml import validation
from keras_maml.learners.parts import check_exact_or_first_order


class DerivativeOrderAnnealing(keras.callbacks.Callback):
    """Takes the first-order meta-gradient in the first epochs, then the exact one (MAML++'s DA).

    Epochs are those of `keras.Model.fit`: resume with ``initial_epoch``. The learner keeps what the
    last epoch has set.

    Args:
        epochs: In how many epochs inner gradients are constants.

    Raises:
        ValueError: ``epochs`` is not an integer of at least 0; or, when training begins, the
            learner's meta-gradient is neither exact nor first order.

    Source: Antoniou, Edwards, Storkey, How to train your MAML, ICLR 2019.

    Example:
        >>> import keras_maml
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> learner = keras_maml.MAML(model)
        >>> annealing = DerivativeOrderAnnealing(epochs=10)
        >>> annealing.set_model(learner)
        >>> annealing.on_epoch_begin(9)
        >>> learner.first_order
        True
        >>> annealing.on_epoch_begin(10)
        >>> learner.first_order
        False
    """

    def __init__(self, epochs: int) -> None:
        super().__init__()
        validation.check_count("epochs", epochs)
        self.epochs = int(epochs)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Refuses learners whose meta-gradient it would replace by another algorithm's."""
        check_exact_or_first_order("DerivativeOrderAnnealing", self.model.meta_gradient)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Chooses the meta-gradient of the epoch."""
        first_order = epoch < self.epochs
        if self.model.first_order != first_order:
            self.model.first_order = first_order
