"""The model that `MAML.adapt` returns."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_maml.execution import forms
from keras_maml.private_keras import flatten_layers


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
    does not have. Saves, loads and exports like any Keras model.
    """


def copy_with_values(
    model: keras.Model, x: Any, values: Sequence[tuple[keras.Variable, tf.Tensor]]
) -> keras.Model:
    """Copies a model and gives some variables of the copy other values.

    Args:
        model: A built model.
        x: A few inputs, to build a subclassed model with.
        values: Variables of the model, and what those of the copy are to hold.

    Returns:
        A model of the same class; the layers that were frozen are.

    Raises:
        ValueError: The model cannot be copied, because it is a subclass without `get_config`.
    """
    try:
        copy = keras.models.clone_model(model)
        if not copy.built:
            copy(x)
    except (NotImplementedError, TypeError) as error:
        raise ValueError(
            f"{type(model).__name__} cannot be copied: {error} Give it a get_config() that "
            "returns the arguments of its constructor."
        ) from error
    others = {id(variable): value for variable, value in values}
    for ours, theirs in zip(model.variables, copy.variables, strict=True):
        theirs.assign(others.get(id(ours), ours))
    for ours, theirs in zip(flatten_layers(model), flatten_layers(copy), strict=True):
        if theirs.trainable != ours.trainable:
            theirs.trainable = ours.trainable
        if isinstance(theirs, (keras.layers.IntegerLookup, keras.layers.StringLookup)):
            _copy_vocabulary(ours, theirs)
        if isinstance(theirs, keras.layers.Normalization):
            theirs.finalize_state()  # it computes with constants made from its weights
    return copy


def _copy_vocabulary(ours: keras.layers.Layer, theirs: keras.layers.Layer) -> None:
    """Hands on a vocabulary that was learned from data: it is not among the weights."""
    if theirs.vocabulary_size() != ours.vocabulary_size():
        theirs.set_vocabulary(ours.get_vocabulary(include_special_tokens=False))
