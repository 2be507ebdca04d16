"""Few-shot learning for Keras: Model-Agnostic Meta-Learning (Finn et al. 2017)."""

from keras_maml import callbacks, episodes, evaluation, networks, plots
from keras_maml.maml import MAML
from keras_maml.pretrained import load

__all__ = ["MAML", "callbacks", "episodes", "evaluation", "load", "networks", "plots"]
