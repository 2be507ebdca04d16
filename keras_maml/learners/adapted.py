"""The model that `MAML.adapt` returns."""

import os
import pathlib
import warnings
from typing import Any

import keras
import tensorflow as tf

from keras_maml.execution import forms
from keras_maml.execution.functional import is_seed
from keras_maml.files import whole
from keras_maml.learners.low_rank import LowRankFactors
from keras_maml.private_keras import inputs_of

HUB = "hf://"
"""How Keras's paths on the Hugging Face Hub begin."""


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

    def save(self, filepath: str | os.PathLike, overwrite: bool = True, **kwargs: Any) -> None:
        """Saves the model as `keras.Model.save` does: whole, or not at all.

        Args:
            filepath: A path that ends with ``.keras``; or ``hf://owner/name``, which Keras uploads
                to the Hugging Face Hub with the package huggingface_hub.
            overwrite: Whether to replace a file that is there.
            **kwargs: As in `keras.Model.save`.

        Raises:
            ValueError: The path has another ending: the model could not be loaded from such a file.
            FileExistsError: The file is there and not to be replaced.
        """
        if str(filepath).startswith(HUB):
            super().save(filepath, overwrite=overwrite, **kwargs)
            return
        filepath = pathlib.Path(filepath)
        if filepath.suffix != ".keras":
            raise ValueError(
                f"A {type(self).__name__} is saved to a file that ends with .keras, or to "
                f"{HUB}owner/name, got {str(filepath)!r}. For serving call export."
            )
        if filepath.exists() and not overwrite:
            raise FileExistsError(
                f"{filepath} exists: choose another name, or pass overwrite=True."
            )
        with whole(filepath) as temporary:
            super().save(temporary, overwrite=True, **kwargs)

    def save_weights(self, filepath: str | os.PathLike, overwrite: bool = True, **kwargs: Any):
        """Saves the weights as `keras.Model.save_weights` does; one file: whole, or not at all."""
        as_one = str(filepath).endswith(".weights.h5") and kwargs.get("max_shard_size") is None
        if not as_one or (pathlib.Path(filepath).exists() and not overwrite):
            return super().save_weights(filepath, overwrite, **kwargs)  # which explains, or asks
        with whole(filepath) as temporary:
            return super().save_weights(temporary, overwrite=True, **kwargs)

    def load_weights(self, filepath: Any, **kwargs: Any) -> None:
        """Loads weights as `keras.Model.load_weights` does, into a learner that is built.

        Raises:
            ValueError: The model is not built: there is nothing to load into.
        """
        if not self.model.built:
            raise ValueError(
                "The learner has no weights yet to load into: give the model a keras.Input, or "
                "call build_on with episodes before."
            )
        super().load_weights(filepath, **kwargs)

    def save_own_variables(self, store: dict[str, Any]) -> None:
        """Saves the random state of the layers, which Keras leaves out."""
        super().save_own_variables(store)
        for name, variable in self._seeds().items():
            store[name] = variable.numpy()

    def load_own_variables(self, store: dict[str, Any]) -> None:
        """Loads the random state of the layers."""
        seeds = self._seeds()
        names = set(store.keys())  # a store of Keras is no mapping
        super().load_own_variables({name: store[name] for name in names - seeds.keys()})
        for name, variable in seeds.items():
            if name in names:
                variable.assign(store[name][()])

    def _seeds(self) -> dict[str, keras.Variable]:
        seeds = filter(is_seed, self.model.non_trainable_variables)
        return {f"seed_{i}": variable for i, variable in enumerate(seeds)}


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
        self._warn_of_one_alone(keras.tree.flatten(x)[0].shape[0])
        return super().call(x, training)

    def _warn_of_one_alone(self, count: int | None) -> None:
        if count == 1 and "_warned" not in self.__dict__:
            self.__dict__["_warned"] = True
            warn_of_one_alone()

    def export(self, filepath: str | os.PathLike, **kwargs: Any) -> None:
        """Exports as `keras.Model.export` does; what the wrapped model takes, this one does."""
        if kwargs.get("input_signature") is None and inputs_of(self.model) is not None:
            kwargs["input_signature"] = [
                keras.tree.map_structure(
                    lambda t: keras.InputSpec(t.dtype, (None, *t.shape[1:]), name=t.name),
                    inputs_of(self.model),
                )
            ]
        super().export(filepath, **kwargs)

    def predict(self, x: Any, batch_size: int | None = None, **kwargs: Any) -> Any:
        """Predicts as `keras.Model.predict` does, all examples of arrays as one batch."""
        if not isinstance(x, tf.data.Dataset) and hasattr(keras.tree.flatten(x)[0], "shape"):
            batch_size = len(keras.tree.flatten(x)[0])
            self._warn_of_one_alone(batch_size)  # whose number is unknown in Keras's program
        return super().predict(x, batch_size=batch_size, **kwargs)


def warn_of_one_alone() -> None:
    """Warns that a transductive prediction of one example means little."""
    warnings.warn(
        "One example alone is normalised by its own statistics, so its prediction means "
        "little. Predict a whole query set at once, or adapt with "
        'batch_normalization="inductive", which takes the statistics of the support set.',
        stacklevel=3,
    )
