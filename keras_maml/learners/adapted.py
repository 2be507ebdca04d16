"""The model that `MAML.adapt` returns."""

from typing import Any

import keras

from keras_maml.execution import forms
from keras_maml.execution.functional import Tensors


@keras.saving.register_keras_serializable(package="keras_maml")
class TransductiveModel(keras.Model):
    """Wraps a model so that batch normalisation always takes the batch at hand.

    Keras would use the moving statistics for prediction, which the paper's way of normalising
    does not have. Saves, loads and exports like any Keras model.

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
        if forms.has_lent_forms(self.model):  # inside a learner, whose choice it is
            return self.model(x, training=training)
        with forms.differentiable_forms(self.model, route="plain", write_statistics=False):
            return self.model(x, training=training)

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


def copy_with_weights(
    model: keras.Model, x: Any, weights: Tensors, state: Tensors | None
) -> keras.Model:
    """Copies a model and gives the copy other weights.

    Args:
        model: A built model.
        x: A few inputs, to build a subclassed model with.
        weights: One tensor per trainable variable of the model.
        state: One tensor per non-trainable variable, or None to copy the model's own.

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
    values = {id(v): w for v, w in zip(model.trainable_variables, weights, strict=True)}
    if state is not None:
        values |= {id(v): s for v, s in zip(model.non_trainable_variables, state, strict=True)}
    for ours, theirs in zip(model.variables, copy.variables, strict=True):
        theirs.assign(values.get(id(ours), ours))
    for ours, theirs in zip(forms.flatten_layers(model), forms.flatten_layers(copy), strict=True):
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
