"""Low-rank factors of a model's layers (LoRA, Hu et al. 2021, 2106.09685), kept in its files.

Keras saves a layer with `enable_lora` as the sum of its kernel and the product of the factors, and
loads the factors as zeros: the predictions are right, but the gradient of two factors that are both
zero is zero for ever, and a learner that adapts them adapts nothing any more.
"""

from typing import Any

import keras
import numpy as np

from keras_maml.private_keras import KerasSaveable, flatten_layers

NAMES = ("kernel", "embeddings")  # of what Keras adds the product of two factors to


class LowRankFactors(KerasSaveable):
    """Saves and loads the factors of a model beside what Keras does with them.

    Keras has to come to it after the model, in the order of the names of attributes.

    Args:
        model: The model whose layers have the factors, or not.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model

    def _obj_type(self) -> str:
        return "Layer"

    def save_own_variables(self, store: Any) -> None:
        """Saves factors, and what they are added to."""
        for name, variable in self._variables().items():
            store[name] = np.asarray(variable)

    def load_own_variables(self, store: Any) -> None:
        """Loads them; a file of before has none, and leaves the model as Keras loads it."""
        variables = self._variables()
        for name in set(store.keys()) & variables.keys():
            variables[name].assign(store[name])

    def _variables(self) -> dict[str, keras.Variable]:
        layers = [x for x in flatten_layers(self._model) if getattr(x, "lora_enabled", False)]
        return {
            f"{i}_{attribute}": getattr(layer, attribute)
            for i, layer in enumerate(layers)
            for name in NAMES
            for attribute in (f"_{name}", f"lora_{name}_a", f"lora_{name}_b")
            if hasattr(layer, attribute)
        }
