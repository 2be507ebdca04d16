"""One task of meta-reinforcement learning: its losses as functions of a policy's weights.

The inner loss is that of the policy gradient; adaptation is the inner loop of supervised learning
(`keras_maml.algorithm.inner_loop`) with that loss, and with fresh transitions for every step.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_maml.algorithm import inner_loop
from keras_maml.execution.forms import Route
from keras_maml.execution.functional import Tensors, as_tensors
from keras_maml.rl.advantages import Transitions, weighted_mean
from keras_maml.rl.policy import DistributionFunction, diagonal_gaussian, model_outputs

INNER_LOSSES = ("log_likelihood", "likelihood_ratio")


@dataclasses.dataclass(frozen=True)
class PolicyObjective:
    """The losses of one task.

    Attributes:
        model: A built model from observations to distribution parameters.
        update_rule: The inner step, see `keras_maml.algorithm.update_rules`.
        distribution: From the model's outputs to a distribution over actions.
        inner_loss: ``"log_likelihood"``: REINFORCE as in MAML; ``"likelihood_ratio"``: the same
            gradient, but a second derivative of lower variance (ProMP, Rothfuss et al. 2019,
            section 5).
        route: How the trace will run, see `keras_maml.execution.forms.differentiable_forms`.
    """

    model: keras.Model
    update_rule: inner_loop.UpdateRule
    distribution: DistributionFunction = diagonal_gaussian
    inner_loss: str = "log_likelihood"
    route: Route = "plain"

    def outputs(self, weights: Tensors, observations: Any) -> Any:
        """Returns the distribution parameters of every observation."""
        state = as_tensors(list(self.model.non_trainable_variables))
        return model_outputs(self.model, weights, state, observations, self.route)

    def adaptation_loss(self, outputs: Any, transitions: Transitions) -> tf.Tensor:
        """Returns the inner loss: minus the mean of log-likelihood times advantage."""
        log_likelihood = self.distribution(outputs).log_prob(transitions.actions)
        if self.inner_loss == "likelihood_ratio":
            # The weights at hand are those that the actions were drawn with.
            ratio = tf.exp(log_likelihood - tf.stop_gradient(log_likelihood))
            return surrogate_loss(ratio, transitions)
        return surrogate_loss(log_likelihood, transitions)

    def adapt(
        self,
        weights: Tensors,
        stages: Sequence[Transitions],
        *,
        first_order: bool = False,
        first_step: int = 0,
    ) -> tuple[Tensors, list[Any]]:
        """Takes one inner step per stage.

        Args:
            weights: The initial weights.
            stages: The transitions of each step, drawn with the weights before it.
            first_order: See `keras_maml.algorithm.inner_loop.inner_step`.
            first_step: The number of the first of these steps, for the update rule.

        Returns:
            The fast weights, and the distribution parameters of every stage.
        """

        def loss(weights: Tensors, outputs: list[Any]) -> tuple[tf.Tensor, list[Any]]:
            stage = stages[len(outputs)]
            outputs = [*outputs, self.outputs(weights, stage.observations)]
            return self.adaptation_loss(outputs[-1], stage), outputs

        return inner_loop.adapt(
            loss,
            weights,
            [],
            steps=len(stages),
            update_rule=lambda weights, gradients, step: self.update_rule(
                weights, gradients, first_step + step
            ),
            first_order=first_order,
        )

    def outputs_of_stages(
        self, weights: Tensors, stages: Sequence[Transitions], *, first_order: bool = False
    ) -> list[Any]:
        """Returns the distribution parameters of every stage, the last one after adaptation.

        Args:
            weights: The initial weights.
            stages: The transitions of each inner step, and those drawn after the last.
            first_order: See `keras_maml.algorithm.inner_loop.inner_step`.
        """
        weights, outputs = self.adapt(weights, stages[:-1], first_order=first_order)
        return [*outputs, self.outputs(weights, stages[-1].observations)]

    def divergence(self, old: Any, new: Any, weights: tf.Tensor) -> tf.Tensor:
        """Returns the mean KL divergence from an old policy to a new one over transitions."""
        divergences = self.distribution(old).kl_divergence(self.distribution(new))
        return weighted_mean(divergences, weights)

    def ratio(self, old: Any, new: Any, actions: tf.Tensor) -> tf.Tensor:
        """Returns the probability of actions under a new policy over that under an old one."""
        new_likelihood = self.distribution(new).log_prob(actions)
        return tf.exp(new_likelihood - self.distribution(old).log_prob(actions))


def surrogate_loss(ratio: tf.Tensor, transitions: Transitions) -> tf.Tensor:
    """Returns minus the mean of likelihood ratio times advantage (Schulman et al. 2015, eq. 14)."""
    return -weighted_mean(ratio * transitions.advantages, transitions.weights)
