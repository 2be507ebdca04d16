"""Outer steps of an optimizer: plain ones, and ProMP's (Rothfuss et al. 2019, 1810.06784)."""

import dataclasses
import functools

import keras
import tensorflow as tf

from keras_maml import validation
from keras_maml.private_keras import scales_losses
from keras_maml.rl.advantages import Transitions, weighted_mean
from keras_maml.rl.meta_objective import MetaObjective
from keras_maml.rl.trust_region import Step


@dataclasses.dataclass(frozen=True)
class Proximal:
    """The settings of an outer step by several steps of Adam on the clipped loss.

    The defaults are ProMP's. Its inner loss is ``inner_loss="likelihood_ratio"`` of the agent.

    Attributes:
        clip: The likelihood ratio counts up to ``1 - clip`` and ``1 + clip``.
        learning_rate: Of Adam.
        epochs: Steps of Adam on the same transitions.
        inner_kl_penalty: Weight of the KL divergence of the policies before the last inner step.
    """

    clip: float = 0.3
    learning_rate: float = 1e-3
    epochs: int = 5
    inner_kl_penalty: float = 5e-4

    def __post_init__(self) -> None:
        validation.check_number("clip", self.clip, lambda v: 0 < v < 1, "in (0, 1)")
        validation.check_positive("learning_rate", self.learning_rate)
        penalty = self.inner_kl_penalty
        validation.check_number("inner_kl_penalty", penalty, lambda v: v >= 0, "at least 0")
        validation.check_count("epochs", self.epochs, minimum=1)

    def make_optimizer(self) -> keras.optimizers.Optimizer:
        """Returns the optimizer whose state an agent keeps."""
        return keras.optimizers.Adam(self.learning_rate)

    def step(
        self,
        meta_objective: MetaObjective,
        variables: list[keras.Variable],
        optimizer: keras.optimizers.Optimizer,
    ) -> Step:
        """Takes the steps of one outer step, on the variables.

        Args:
            meta_objective: Its loss is replaced by the clipped one.
            variables: The initial weights; they change.
            optimizer: See `make_optimizer`.

        Returns:
            What was done; nothing where anything is not finite.
        """
        clipped = dataclasses.replace(
            meta_objective,
            loss=functools.partial(clipped_surrogate_loss, clip=self.clip),
            inner_kl_penalty=self.inner_kl_penalty,
        )
        return descend(clipped, variables, optimizer, self.epochs)


def own_optimizer(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Returns a new optimizer with the settings of a user's, which keeps its own state.

    Raises:
        ValueError: It is one whose results are not in the weights that policies act with, or that
            expects losses to be scaled.
    """
    if optimizer.use_ema and not optimizer.ema_overwrite_frequency:
        raise ValueError(
            "An outer optimizer with use_ema=True keeps the averages of weights beside them, and "
            "policies would not act with them. Pass ema_overwrite_frequency= as well, the number "
            "of steps after which the weights become their averages, or leave use_ema out."
        )
    if scales_losses(optimizer):
        raise ValueError(
            "An outer optimizer that scales losses, a LossScaleOptimizer or one with a "
            "loss_scale_factor, would divide gradients of losses that are not scaled: agents "
            "compute in float32, which does not need it. Pass the optimizer without."
        )
    own = type(optimizer).from_config(optimizer.get_config())
    # What `exclude_from_weight_decay` has been told is in no config.
    excluded = {k: v for k, v in vars(optimizer).items() if k.startswith("_exclude_from_weight")}
    for name, value in excluded.items():
        setattr(own, name, value)
    return own


def descend(
    meta_objective: MetaObjective,
    variables: list[keras.Variable],
    optimizer: keras.optimizers.Optimizer,
    epochs: int = 1,
) -> Step:
    """Takes steps of an optimizer on the same transitions.

    Args:
        meta_objective: Its loss goes down.
        variables: The initial weights; they change.
        optimizer: Built on them.
        epochs: How many steps.

    Returns:
        What was done; nothing where anything is not finite.
    """
    state = [*variables, *optimizer.variables]
    before = [tf.identity(variable.value) for variable in state]

    def epoch(i: tf.Tensor) -> tf.Tensor:
        weights = [tf.convert_to_tensor(variable) for variable in variables]
        _, gradient = meta_objective.loss_and_gradient(weights)
        optimizer.apply_gradients(zip(gradient, variables, strict=True))
        return i + 1

    tf.while_loop(lambda i: i < epochs, epoch, [tf.constant(0)])
    weights = [tf.convert_to_tensor(variable) for variable in variables]
    loss, kl = meta_objective.loss_and_kl(weights)
    finite = tf.math.is_finite(loss) & tf.math.is_finite(kl)
    for variable, old in zip(state, before, strict=True):
        variable.assign(tf.where(finite, variable.value, old))
    return Step(weights, loss, kl, finite, tf.constant(0))


def clipped_surrogate_loss(ratio: tf.Tensor, transitions: Transitions, clip: float) -> tf.Tensor:
    """Returns the loss of proximal policy optimisation (Schulman et al. 2017, equation 7).

    Args:
        ratio: ``[transitions]``, the likelihood ratios.
        transitions: Of one task.
        clip: See `Proximal`.
    """
    clipped = tf.clip_by_value(ratio, 1.0 - clip, 1.0 + clip)
    advantages = transitions.advantages
    return -weighted_mean(tf.minimum(ratio * advantages, clipped * advantages), transitions.weights)
