"""The model that `MAML.adapt` returns."""

import warnings
from typing import Any

import keras
import tensorflow as tf

from keras_maml.execution import forms
from keras_maml.learners.low_rank import LowRankFactors


class WrappedModel(keras.Model):
    """A model around another one, which it saves with itself.

    Args:
        model: The model to wrap.
        **kwargs: Passed on to `keras.Model`.

    Raises:
        TypeError: ``model`` is not a `keras.Model`.
    """

    def __init__(self, model: keras.Model, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(model, keras.Model):
            raise TypeError(f"model must be a keras.Model, got {type(model).__name__}.")
        self.model = model
        self.trained_factors = LowRankFactors(model)  # named to be loaded after the model
        self.built = model.built

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Calls the wrapped model, normalising with the statistics of ``x``."""
        return forms.call_on_batch(self.model, x, training)

    @property
    def output_names(self) -> list[str]:
        """The names of the wrapped model's outputs, by which losses and metrics may be given."""
        return self.model.output_names

    def build(self, input_shape: Any = None) -> None:
        """Leaves it to the wrapped model to build itself, at its first call or when loaded."""
        self.built = True

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration, the wrapped model included."""
        return {**super().get_config(), "model": keras.saving.serialize_keras_object(self.model)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict | None = None):
        """Builds the model from `get_config`."""
        config = dict(config)
        model = keras.saving.deserialize_keras_object(config.pop("model"), custom_objects)
        return cls(model, **config)


@keras.saving.register_keras_serializable(package="keras_maml")
class TransductiveModel(WrappedModel):
    """Wraps a model so that batch normalisation always takes the batch at hand.

    Keras would use the moving statistics for prediction, which the paper's way of normalising
    does not have. A prediction depends on what it is made with: `predict` takes all examples as
    one batch, and one example alone is normalised by itself, which says nothing about it.
    Saves, loads and exports like any Keras model.
    """

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Calls the wrapped model, normalising with the statistics of ``x``."""
        if keras.tree.flatten(x)[0].shape[0] == 1 and "_warned" not in self.__dict__:
            self.__dict__["_warned"] = True
            warnings.warn(
                "One example alone is normalised by its own statistics, so its prediction means "
                "little. Predict a whole query set at once, or adapt with "
                'batch_normalization="inductive", which takes the statistics of the support set.',
                stacklevel=2,
            )
        return super().call(x, training)

    def predict(self, x: Any, batch_size: int | None = None, **kwargs: Any) -> Any:
        """Predicts as `keras.Model.predict` does, all examples of arrays as one batch."""
        if not isinstance(x, tf.data.Dataset) and hasattr(keras.tree.flatten(x)[0], "shape"):
            batch_size = len(keras.tree.flatten(x)[0])
        return super().predict(x, batch_size=batch_size, **kwargs)
