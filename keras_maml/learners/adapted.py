"""The model that `MAML.adapt` returns."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_maml.execution import forms
from keras_maml.execution.functional import Tensors, as_tensors, forward, state_variables
from keras_maml.learners.low_rank import LowRankFactors
from keras_maml.private_keras import flatten_layers

# From tensors of all variables of a model and its inputs to its predictions.
Program = Callable[[Tensors, Any], Any]


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


def prediction_program(model: keras.Model, batch_normalization: str) -> Program:
    """Returns a program that adapted copies of a model share, for inputs of any number.

    Args:
        model: The model that they are copies of.
        batch_normalization: ``"inductive"`` or ``"transductive"``, see `keras_maml.MAML`.
    """
    state = {id(variable) for variable in state_variables(model)}
    variables = list(model.variables)

    def predict(values: Tensors, x: Any) -> Any:
        pairs = [*zip(variables, values, strict=True)]
        result = forward(
            model,
            [(variable, value) for variable, value in pairs if id(variable) not in state],
            [(variable, value) for variable, value in pairs if id(variable) in state],
            x,
            training=False,
            batch_statistics="stored" if batch_normalization == "inductive" else "batch",
        )
        return result.predictions

    return tf.function(predict, autograph=False, reduce_retracing=True)


def share_prediction(adapted: keras.Model, copy: keras.Model, program: Program) -> None:
    """Lets an adapted model predict arrays with a program that others have compiled before it.

    Keras would trace every new model anew.

    Args:
        adapted: The model; its `predict` changes.
        copy: It, or the copy that it wraps, with the variables that the program takes.
        program: See `prediction_program`.
    """
    own = adapted.predict

    def predict(x: Any, batch_size: int | None = None, verbose: Any = "auto", **kwargs: Any) -> Any:
        arrays = not isinstance(x, tf.data.Dataset) and all(
            isinstance(array, (np.ndarray, tf.Tensor)) for array in keras.tree.flatten(x)
        )
        if kwargs or verbose not in (0, "auto") or not arrays:
            return own(x, batch_size=batch_size, verbose=verbose, **kwargs)
        values, x = as_tensors(list(copy.variables)), as_tensors(x)
        count = len(keras.tree.flatten(x)[0])
        size = count if isinstance(adapted, TransductiveModel) else batch_size or 256
        parts = [
            program(values, keras.tree.map_structure(lambda t, i=i: t[i : i + size], x))
            for i in range(0, count, size)
        ]
        return keras.tree.map_structure(lambda *outputs: np.concatenate(outputs), *parts)

    vars(adapted)["predict"] = predict


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
