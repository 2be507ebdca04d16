"""Meta-gradients: how the outcome after adaptation is differentiated by what a meta-step trains."""

from typing import Any

import keras

from keras_maml.algorithm.exact import Exact, FirstOrder
from keras_maml.algorithm.implicit import Implicit
from keras_maml.algorithm.meta_gradient import MetaGradient
from keras_maml.algorithm.reptile import Reptile

__all__ = ["Exact", "FirstOrder", "Implicit", "MetaGradient", "Reptile", "get"]

NAMES = {"exact": Exact, "first_order": FirstOrder, "reptile": Reptile, "implicit": Implicit}


def get(identifier: Any) -> MetaGradient:
    """Returns the meta-gradient that a name, a config or an object stands for.

    Args:
        identifier: ``"exact"``, ``"first_order"``, ``"reptile"``, ``"implicit"``, a config, or a
            `MetaGradient`.

    Raises:
        ValueError: It is none of these.

    Example:
        >>> type(get("first_order")).__name__
        'FirstOrder'
    """
    if isinstance(identifier, dict):
        identifier = keras.saving.deserialize_keras_object(identifier)
    if isinstance(identifier, str) and identifier in NAMES:
        return NAMES[identifier]()
    if not isinstance(identifier, MetaGradient):
        raise ValueError(
            f"meta_gradient must be one of {tuple(NAMES)} or an object of "
            f"keras_maml.meta_gradients, got {identifier!r}."
        )
    return identifier
