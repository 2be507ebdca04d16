"""The family by name: each algorithm is MAML with other parts.

Every function takes the arguments of `keras_maml.MAML`, too, and parts that it does not fix may be
chosen freely: ``ANIL(model, update_rule=keras_maml.update_rules.PerLayerPerStep(0.1))``.
"""

from typing import Any

import keras

from keras_maml import layers
from keras_maml.algorithm import meta_gradients, query_losses, update_rules
from keras_maml.learners.maml import MAML
from keras_maml.private_keras import flatten_layers


def FirstOrderMAML(  # noqa: N802 - an algorithm's name
    model: keras.Model, inner_learning_rate: Any = None, **kwargs: Any
) -> MAML:
    """MAML whose meta-gradient takes the inner gradients for constants.

    Args:
        model: Any `keras.Model`.
        inner_learning_rate: As of `keras_maml.MAML`.
        **kwargs: Of `keras_maml.MAML`.

    Source: Finn, Abbeel, Levine, ICML 2017, section 5.2.

    Example:
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> FirstOrderMAML(model, inner_learning_rate=0.1).first_order
        True
    """
    return MAML(model, inner_learning_rate, meta_gradient="first_order", **kwargs)


def ANIL(  # noqa: N802
    model: keras.Model,
    inner_learning_rate: Any = None,
    *,
    adapted_layers: Any = "head",
    **kwargs: Any,
) -> MAML:
    """Almost no inner loop: only the last layer with weights is adapted.

        w <- w - alpha grad_w L_support(theta, w),    w the head; the body theta is meta-trained.

    Args:
        model: Any `keras.Model`.
        inner_learning_rate: As of `keras_maml.MAML`.
        adapted_layers: The head, where that is more or less than the last layer with weights.
        **kwargs: Of `keras_maml.MAML`. The authors' settings: one step with rate 0.1.

    Source: Raghu, Raghu, Bengio, Vinyals, Rapid Learning or Feature Reuse?, ICLR 2020.

    Example:
        >>> stack = [keras.Input((1,)), keras.layers.Dense(2), keras.layers.Dense(1)]
        >>> len(ANIL(keras.Sequential(stack)).partition().initial)
        2
    """
    return MAML(model, inner_learning_rate, adapted_layers=adapted_layers, **kwargs)


def BOIL(  # noqa: N802
    model: keras.Model,
    inner_learning_rate: Any = None,
    *,
    adapted_layers: Any = "body",
    **kwargs: Any,
) -> MAML:
    """Body only in the inner loop: all but the last layer with weights are adapted.

    Args:
        model: Any `keras.Model`.
        inner_learning_rate: As of `keras_maml.MAML`.
        adapted_layers: The body, where that is not all but the last layer with weights.
        **kwargs: Of `keras_maml.MAML`. The authors' settings: one step with rate 0.5.

    Source: Oh, Yoo, Kim, Yun, BOIL: Towards Representation Change for Few-Shot Learning, ICLR 2021.

    Example:
        >>> stack = [keras.Input((1,)), keras.layers.Dense(2), keras.layers.Dense(1)]
        >>> [tuple(weight.shape) for weight in BOIL(keras.Sequential(stack)).partition().initial]
        [(1, 2), (2,)]
    """
    return MAML(model, inner_learning_rate, adapted_layers=adapted_layers, **kwargs)


def MetaSGD(model: keras.Model, inner_learning_rate: float = 0.1, **kwargs: Any) -> MAML:  # noqa: N802
    """MAML with a learned rate for every parameter.

    Args:
        model: Any `keras.Model`.
        inner_learning_rate: All rates at first.
        **kwargs: Of `keras_maml.MAML`.

    Source: Li, Zhou, Chen, Li, Meta-SGD, 2017; see `keras_maml.update_rules.MetaSGD`.

    Example:
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> len(MetaSGD(model).trainable_variables)
        4
    """
    return MAML(model, update_rule=update_rules.MetaSGD(inner_learning_rate), **kwargs)


def MetaCurvature(model: keras.Model, inner_learning_rate: float = 0.1, **kwargs: Any) -> MAML:  # noqa: N802
    """MAML whose inner gradients go through a learned transform.

    Args:
        model: Any `keras.Model`.
        inner_learning_rate: The rate, which is not learned.
        **kwargs: Of `keras_maml.MAML`.

    Source: Park, Oliva, Meta-Curvature, NeurIPS 2019; see
    `keras_maml.update_rules.MetaCurvature`.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> len(MetaCurvature(model).trainable_variables)
        5
    """
    return MAML(model, update_rule=update_rules.MetaCurvature(inner_learning_rate), **kwargs)


def MAMLPlusPlus(  # noqa: N802
    model: keras.Model,
    inner_learning_rate: float = 0.1,
    inner_steps: int = 5,
    annealing_epochs: int = 15,
    per_step_batch_normalization: bool = True,
    **kwargs: Any,
) -> MAML:
    """MAML++: rates, scales and offsets of every step, and the losses after all steps at first.

    Of the paper's parts these are the ones that the authors' code has switched on. The others are
    Keras's: annealing of the derivative's order is `keras_maml.callbacks.DerivativeOrderAnnealing`,
    cosine annealing of the outer rate a `keras.optimizers.schedules.CosineDecay` in the optimizer.

    Args:
        model: Any `keras.Model`. Where it has batch normalisation, the learner has another model
            of the same layers, see `keras_maml.layers.per_step_batch_normalization`.
        inner_learning_rate: All rates at first.
        inner_steps: Inner steps in training, which have rates of their own.
        annealing_epochs: In how many epochs of ``fit`` the weight moves to the last step.
        per_step_batch_normalization: Whether batch normalisation has a scale and an offset for
            every inner step. False leaves the model as it is.
        **kwargs: Of `keras_maml.MAML`.

    Raises:
        ValueError: The model has batch normalisation and is neither sequential nor functional.

    Source: Antoniou, Edwards, Storkey, How to train your MAML, ICLR 2019; see
    `keras_maml.update_rules.PerLayerPerStep`, `keras_maml.query_losses.MultiStep` and
    `keras_maml.layers.PerStepBatchNormalization`.

    Example:
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> [tuple(rates.shape) for rates in MAMLPlusPlus(model).update_rule.trainable_variables]
        [(5,), (5,)]
    """
    steps = max(inner_steps, 1)
    if per_step_batch_normalization:
        model = layers.per_step_batch_normalization(model, steps)
    return MAML(
        model,
        update_rule=update_rules.PerLayerPerStep(inner_learning_rate, steps=steps),
        query_loss=query_losses.MultiStep(annealing_epochs),
        inner_steps=inner_steps,
        **kwargs,
    )


def Reptile(  # noqa: N802
    model: keras.Model,
    inner_learning_rate: Any = 0.001,
    inner_steps: int = 5,
    update_rule: update_rules.UpdateRule | None = None,
    **kwargs: Any,
) -> MAML:
    """Reptile: the outer step goes towards the mean of the adapted weights.

    Episodes may be support sets alone, ``((x, y),)``. Compile with SGD for the paper's outer step.

    Args:
        model: Any `keras.Model`.
        inner_learning_rate: The rate of the inner Adam.
        inner_steps: Inner steps in training.
        update_rule: By default Adam with ``beta_1=0``, as in the authors' code.
        **kwargs: Of `keras_maml.MAML`.

    Source: Nichol, Achiam, Schulman, On First-Order Meta-Learning Algorithms, 2018; see
    `keras_maml.meta_gradients.Reptile`.

    Example:
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> learner = Reptile(model)
        >>> learner.compile(keras.optimizers.SGD(0.5), "mse", jit_compile=False)
        >>> x = keras.random.normal((4, 10, 1))
        >>> history = learner.fit(((x, 2 * x),), verbose=0)
    """
    rule = (
        update_rules.Adam(inner_learning_rate, beta_1=0.0) if update_rule is None else update_rule
    )
    return MAML(model, update_rule=rule, inner_steps=inner_steps, meta_gradient="reptile", **kwargs)


def ImplicitMAML(  # noqa: N802
    model: keras.Model,
    inner_learning_rate: Any = 0.01,
    inner_steps: int = 16,
    regularization: float = 1.0,
    conjugate_gradient_steps: int = 5,
    damping: float = 1.0,
    **kwargs: Any,
) -> MAML:
    """iMAML: the gradient of the inner problem's solution, whatever way leads there.

    Args:
        model: Any `keras.Model`.
        inner_learning_rate: The rate of gradient descent on the proximal inner problem.
        inner_steps: Inner steps in training.
        regularization: How firmly the fast weights are held to where they begin, lambda.
        conjugate_gradient_steps: Steps to solve for the meta-gradient in.
        damping: Is added to the identity.
        **kwargs: Of `keras_maml.MAML`.

    Source: Rajeswaran, Finn, Kakade, Levine, Meta-Learning with Implicit Gradients, NeurIPS 2019;
    see `keras_maml.meta_gradients.Implicit`.

    Example:
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> ImplicitMAML(model, regularization=2.0).meta_gradient.regularization
        2.0
    """
    implicit = meta_gradients.Implicit(regularization, conjugate_gradient_steps, damping)
    if kwargs.get("update_rule") is None:
        kwargs["inner_learning_rate"] = inner_learning_rate
    return MAML(model, inner_steps=inner_steps, meta_gradient=implicit, **kwargs)


def CAVIA(model: keras.Model, inner_learning_rate: Any = 1.0, **kwargs: Any) -> MAML:  # noqa: N802
    """CAVIA: only context parameters are adapted, and only the rest is meta-trained.

    Args:
        model: A `keras.Model` with one or more `keras_maml.layers.ContextParameters`.
        inner_learning_rate: The rate.
        **kwargs: Of `keras_maml.MAML`. The authors' settings: two steps with rate 1.

    Raises:
        ValueError: The model has no context parameters.

    Source: Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson, Fast Context Adaptation via Meta-Learning,
    ICML 2019.

    Example:
        >>> from keras_maml.layers import ContextParameters
        >>> stack = [keras.Input((1,)), ContextParameters(4), keras.layers.Dense(1)]
        >>> learner = CAVIA(keras.Sequential(stack), inner_steps=2)
        >>> len(learner.partition().initial), len(learner.trainable_variables)
        (1, 2)
    """
    names = [
        layer.name for layer in flatten_layers(model) if isinstance(layer, layers.ContextParameters)
    ]
    if not names:
        raise ValueError("CAVIA adapts keras_maml.layers.ContextParameters: the model has none.")
    if kwargs.get("update_rule") is None:
        kwargs["inner_learning_rate"] = inner_learning_rate
    return MAML(model, adapted_layers=names, **kwargs)
