"""The algorithms of the family as a comparison takes them: network, settings, optimizer, episodes.

The settings of a comparison are the same for all: batch normalisation, inner steps and rate, the
outer Adam and its rate. Where an algorithm departs from them, `ALGORITHMS` says why. Rates are for
losses that are means over examples.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from experiments.shared.image_classification import compile_learner, make_optimizer
from experiments.shared.image_settings import Settings
from keras_maml import (
    ANIL,
    BOIL,
    CAVIA,
    MAML,
    FirstOrderMAML,
    ImplicitMAML,
    MAMLPlusPlus,
    MetaCurvature,
    MetaSGD,
    Reptile,
)
from keras_maml.layers import ContextParameters

CONTEXT = 100  # parameters


def with_context(network: keras.Sequential, units: int = CONTEXT) -> keras.Model:
    """Returns a network whose third block, or the last of fewer, is told which task it is.

    After its normalisation every feature has a scale and a shift that are linear in the context
    (FiLM). They begin as 1 and 0: the network is then what it was.

    Args:
        network: A sequential model with batch normalisation; its layers become the other's.
        units: Context parameters.

    Raises:
        ValueError: The network has no batch normalisation.

    Source: Zintgraf et al., CAVIA, ICML 2019, appendix on mini-ImageNet.

    Example:
        >>> from keras_maml import networks
        >>> with_context(networks.omniglot_classifier(ways=5)).output_shape
        (None, 5)
    """
    normalizing = [x for x in network.layers if isinstance(x, keras.layers.BatchNormalization)]
    if not normalizing:
        raise ValueError(f"{network.name} has no batch normalisation to put a context behind.")
    told = normalizing[:3][-1]
    inputs = keras.Input(network.input_shape[1:])
    context = ContextParameters(units, concatenate=False)(inputs)
    x = inputs
    for layer in network.layers:
        x = layer(x)
        if layer is told:
            features = x.shape[-1]
            shape = (*[1] * (len(x.shape) - 2), features)
            scale = keras.layers.Dense(features, bias_initializer="ones")(context)
            shift = keras.layers.Dense(features)(context)
            x = keras.layers.Multiply()([x, keras.layers.Reshape(shape)(scale)])
            x = keras.layers.Add()([x, keras.layers.Reshape(shape)(shift)])
    return keras.Model(inputs, x, name=f"{network.name}_with_context")


def in_precision(policy: str, network: keras.Sequential) -> keras.Model:
    """Returns a network that computes in half precision, but for its last layer.

    Args:
        network: A sequential model.
        policy: ``"mixed_bfloat16"`` or ``"mixed_float16"``: weights stay in float32.

    Example:
        >>> from keras_maml import networks
        >>> model = in_precision("mixed_float16", networks.omniglot_classifier(ways=5))
        >>> model.layers[0].compute_dtype, model.layers[-1].compute_dtype
        ('float16', 'float32')
    """

    def in_half(layer: keras.layers.Layer) -> keras.layers.Layer:
        dtype = "float32" if layer is network.layers[-1] else policy
        return type(layer).from_config(layer.get_config() | {"dtype": dtype})

    model = keras.models.clone_model(network, clone_function=in_half)
    model.set_weights(network.get_weights())
    return model


def scaled(settings: Settings) -> keras.optimizers.Optimizer:
    """Returns the outer optimizer with a dynamic scale of the loss."""
    return keras.optimizers.LossScaleOptimizer(make_optimizer(settings))


def joined(support: Any, query: Any) -> tuple:
    """Returns an episode that is a support set alone, of all its examples."""
    return (tuple(tf.concat(pair, axis=1) for pair in zip(support, query, strict=True)),)


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """How an algorithm of the family is compared.

    Attributes:
        title: What to call it.
        make: Its constructor.
        departures: From the settings to arguments of its own.
        network: Makes its network of that of the others.
        optimizer: From the settings to the outer optimizer.
        episodes: Makes its training episodes of those of the others; None leaves them as they are.
        note: Says what network or episodes differ in.
    """

    title: str
    make: Callable[..., MAML]
    departures: Callable[[Settings], Mapping[str, Any]] = lambda settings: {}
    network: Callable[[keras.Sequential], keras.Model] = lambda network: network
    optimizer: Callable[[Settings], keras.optimizers.Optimizer] = make_optimizer
    episodes: Callable[..., tuple] | None = None
    note: str = ""

    def arguments(self, settings: Settings) -> dict[str, Any]:
        """Returns the arguments of its constructor."""
        names = ("inner_learning_rate", "inner_steps", "evaluation_steps", "batch_normalization")
        return {name: getattr(settings, name) for name in names} | self.departures(settings)

    def description(self, settings: Settings) -> dict[str, Any]:
        """Returns what it has of its own, for a table: arguments, outer optimizer, note."""
        optimizer = self.optimizer(settings)
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        outer = f"{type(optimizer).__name__} {float(optimizer.learning_rate):g}"
        return self.arguments(settings) | {"outer optimizer": outer, "note": self.note}

    def make_learner(self, network: keras.Sequential, settings: Settings) -> MAML:
        """Returns its compiled learner.

        Args:
            network: The network that all are compared with.
            settings: Those that all have in common.
        """
        arguments = self.arguments(settings)
        learner = self.make(self.network(network), measure_before=False, **arguments)
        compile_learner(learner, self.optimizer(settings))
        return learner

    def training_episodes(self, episodes: tf.data.Dataset) -> tf.data.Dataset:
        """Returns what it trains on, made of the episodes that all train on."""
        return episodes if self.episodes is None else episodes.map(self.episodes)


ALGORITHMS = {
    "maml": Algorithm("MAML", MAML),
    # With the rate of second order it comes to rest where a step saturates, on Omniglot at 83 %;
    # with a fifth, which the rows of experiments.omniglot have, it does not.
    "first-order": Algorithm(
        "first-order MAML",
        FirstOrderMAML,
        lambda settings: {"inner_learning_rate": settings.inner_learning_rate / 5},
    ),
    # Raghu et al. 2020 and Oh et al. 2021 compare with the rate and the steps that MAML has.
    "anil": Algorithm("ANIL", ANIL),
    "boil": Algorithm("BOIL", BOIL),
    # Where these begin they are MAML. (Li et al. 2017 draw the first rates, below 0.1.)
    "meta-sgd": Algorithm("Meta-SGD", MetaSGD),
    "meta-curvature": Algorithm("Meta-Curvature", MetaCurvature),
    # Antoniou et al. 2019: five steps whose rates begin at 0.1, also on Omniglot.
    "maml++": Algorithm(
        "MAML++",
        MAMLPlusPlus,
        lambda settings: {"inner_learning_rate": 0.1, "inner_steps": 5, "evaluation_steps": 5},
    ),
    # Nichol et al. 2018: inner Adam without momentum, 5 steps in training, outer steps of 1 (there
    # they shorten to the end, which equal time does not know). Tests take 50 steps of 0.001 there
    # and 10 of 0.005 here, since the steps of a test are compiled one by one. Reptile does not
    # divide an episode, and learns from all its images.
    "reptile": Algorithm(
        "Reptile",
        Reptile,
        lambda settings: {"inner_learning_rate": 0.005, "inner_steps": 5, "evaluation_steps": 10},
        optimizer=lambda settings: keras.optimizers.SGD(1.0),
        episodes=joined,
        note="learns from all images of an episode as one support set",
    ),
    # Rajeswaran et al. 2019 take 16 steps and 5 of conjugate gradients on Omniglot, 5-way. Here the
    # inner solution is about as far away as MAML's steps lead: lambda is 1 / (their rates' sum).
    "imaml": Algorithm(
        "iMAML",
        ImplicitMAML,
        lambda settings: {
            "inner_learning_rate": settings.inner_learning_rate * settings.inner_steps / 8,
            "inner_steps": 16,
            "evaluation_steps": 16,
            "regularization": 1 / (settings.inner_learning_rate * settings.inner_steps),
        },
    ),
    # Zintgraf et al. 2019, mini-ImageNet: two steps of rate 1, 100 context parameters.
    "cavia": Algorithm(
        "CAVIA",
        CAVIA,
        lambda settings: {"inner_learning_rate": 1.0, "inner_steps": 2, "evaluation_steps": 2},
        network=with_context,
        note=f"its network has {CONTEXT} context parameters",
    ),
}
FAMILY = tuple(ALGORITHMS)

# MAML with layers in half precision, beside MAML.
ALGORITHMS |= {
    "maml-bfloat16": Algorithm(
        "MAML, mixed_bfloat16", MAML, network=functools.partial(in_precision, "mixed_bfloat16")
    ),
    "maml-float16": Algorithm(
        "MAML, mixed_float16",
        MAML,
        network=functools.partial(in_precision, "mixed_float16"),
        optimizer=scaled,
        note="its loss is scaled, as far as the gradients allow",
    ),
}
