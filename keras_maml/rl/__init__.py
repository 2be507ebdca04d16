"""Meta-reinforcement learning with TF-Agents (Finn et al. 2017, section 5.3).

Importing this package makes ``tf.keras`` Keras 2, which TF-Agents needs; ``import keras`` stays
Keras 3. It needs the extra ``rl``, and robots ``mujoco`` beside it.
"""

from keras_maml.rl.legacy_keras import use_legacy_keras

use_legacy_keras()  # before anything below imports TF-Agents

# ruff: noqa: E402, I001
from keras_maml.rl import environments, plots
from keras_maml.rl.action_statistics import ActionStatistics, action_statistics, clipped_share
from keras_maml.rl.distributions import (
    categorical,
    diagonal_gaussian,
    multi_categorical,
    parts,
    squashed_gaussian,
)
from keras_maml.rl.evaluation import evaluate
from keras_maml.rl.meta_policy_gradient import MetaLossInfo, MetaPolicyGradientAgent
from keras_maml.rl.policy import TaskPolicy, gaussian_policy
from keras_maml.rl.proximal import Proximal
from keras_maml.rl.sampling import Sampler, episode_returns, meta_iteration, tensor_specs
from keras_maml.rl.training import train
from keras_maml.rl.trust_region import TrustRegion

__all__ = [
    "ActionStatistics",
    "MetaLossInfo",
    "MetaPolicyGradientAgent",
    "Proximal",
    "Sampler",
    "TaskPolicy",
    "TrustRegion",
    "action_statistics",
    "categorical",
    "clipped_share",
    "diagonal_gaussian",
    "environments",
    "episode_returns",
    "evaluate",
    "gaussian_policy",
    "meta_iteration",
    "multi_categorical",
    "parts",
    "plots",
    "squashed_gaussian",
    "tensor_specs",
    "train",
]
