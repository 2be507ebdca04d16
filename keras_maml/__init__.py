"""Few-shot learning for Keras: Model-Agnostic Meta-Learning (Finn et al. 2017)."""

import importlib
from typing import TYPE_CHECKING, Any

from keras_maml import episodes, layers, networks
from keras_maml.execution.workers import Workers
from keras_maml.learners.family import (
    ANIL,
    BOIL,
    CAVIA,
    FirstOrderMAML,
    ImplicitMAML,
    MAMLPlusPlus,
    MetaCurvature,
    MetaSGD,
    Reptile,
)
from keras_maml.learners.maml import MAML
from keras_maml.serving.export import export
from keras_maml.serving.on_device import export_litert
from keras_maml.serving.onnx_export import export_onnx
from keras_maml.serving.pretrained import load
from keras_maml.version import __version__

if TYPE_CHECKING:
    from keras_maml.algorithm import meta_gradients, query_losses, update_rules
    from keras_maml.reporting import callbacks, evaluation, plots
    from keras_maml.serving import pretrained

__all__ = [
    "ANIL",
    "BOIL",
    "CAVIA",
    "FirstOrderMAML",
    "ImplicitMAML",
    "MAML",
    "MAMLPlusPlus",
    "MetaCurvature",
    "MetaSGD",
    "Reptile",
    "Workers",
    "__version__",
    "callbacks",
    "episodes",
    "evaluation",
    "layers",
    "load",
    "meta_gradients",
    "networks",
    "plots",
    "pretrained",
    "query_losses",
    "update_rules",
]

# Learners are exported by a room above theirs, which they do not import.
MAML.exporters.update(saved_model=export, litert=export_litert, onnx=export_onnx)

# Public names of modules that stand in rooms. They are imported when they are used: figures and
# tables bring in packages that training does without.
_MODULES = {
    "callbacks": "reporting",
    "evaluation": "reporting",
    "meta_gradients": "algorithm",
    "plots": "reporting",
    "pretrained": "serving",
    "query_losses": "algorithm",
    "update_rules": "algorithm",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"keras_maml.{_MODULES[name]}.{name}")
    raise AttributeError(f"module 'keras_maml' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
