"""One task of meta-reinforcement learning: its losses as functions of a policy's weights.

The inner loss is that of the policy gradient; adaptation is the inner loop of supervised learning
(`keras_maml.algorithm.inner_loop`) with that loss, and with fresh transitions for every step.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_maml.algorithm.adapted_layers import partition, values_of
from keras_maml.algorithm.inner_loop import Carry, InnerLoop, Parameters
from keras_maml.algorithm.update_rules import UpdateRule
from keras_maml.execution.forms import Route
from keras_maml.execution.functional import Tensors, as_tensors, state_variables
from keras_maml.rl import distributions
from keras_maml.rl.advantages import Transitions, sums_since_start, weighted_mean
from keras_maml.rl.policy import DistributionFunction, diagonal_gaussian, model_outputs

INNER_LOSSES = ("log_likelihood", "likelihood_ratio", "dice")


@dataclasses.dataclass(frozen=True)
class PolicyObjective:
    """A policy's model and its losses, as functions of weights.

    Attributes:
        model: A built model from observations to distribution parameters.
        update_rule: The inner step, see `keras_maml.update_rules`.
        distribution: From the model's outputs to a distribution over actions.
        inner_loss: One of three with the same gradient and different second derivatives, through
            which the meta-gradient goes. ``"log_likelihood"``: REINFORCE as in MAML; even its
            expectation leaves out that other actions lead to other trajectories.
            ``"likelihood_ratio"``: the low-variance curvature of ProMP (Rothfuss et al. 2019,
            section 5), which counts that for the action of each step but not for those before it.
            ``"dice"``: counts it for all (Foerster et al. 2018, with the advantages of Farquhar et
            al. 2019), without bias and with the largest variance.
        route: How the trace will run, see `forms.differentiable_forms`.
        adapted_layers: What the inner loop adapts, see `keras_maml.MAML`.
    """

    model: keras.Model
    update_rule: UpdateRule
    distribution: DistributionFunction = diagonal_gaussian
    inner_loss: str = "log_likelihood"
    route: Route = "plain"
    adapted_layers: str | Sequence = "all"

    def variables(self) -> Parameters:
        """Returns the variables of model and update rule by what becomes of them."""
        return partition(self.model, self.adapted_layers, self.update_rule)

    def parameters(self, trained: Tensors | None = None) -> Parameters:
        """Returns the values of `variables`; those of `Parameters.trained` may be others."""
        values = values_of(self.variables())
        return values if trained is None else values.with_trained(trained)

    def outputs(self, parameters: Parameters, fast: Tensors, observations: Any) -> Any:
        """Returns the distribution parameters of every observation."""
        weights = self.variables().paired(parameters, fast)
        state = state_variables(self.model)
        states = [*zip(state, as_tensors(state), strict=True)]
        return model_outputs(self.model, weights, states, observations, self.route)

    def adaptation_loss(self, outputs: Any, transitions: Transitions, old: Any = None) -> tf.Tensor:
        """Returns the inner loss: minus the mean of log-likelihood times advantage.

        Args:
            outputs: Of the policy at hand.
            transitions: Of one task.
            old: What `outputs` was for the policy that drew the actions. None: that is the policy
                at hand.
        """
        drawn_from = self.distribution(outputs)
        log_likelihood = distributions.log_prob(drawn_from, transitions.actions)
        if self.inner_loss == "log_likelihood":
            return surrogate_loss(log_likelihood, transitions)
        drawn_with = log_likelihood
        if old is not None:
            drawn_with = distributions.log_prob(self.distribution(old), transitions.actions)
        change = log_likelihood - tf.stop_gradient(drawn_with)
        if self.inner_loss == "likelihood_ratio":
            return surrogate_loss(tf.exp(change), transitions)
        since_start = sums_since_start(change, transitions.times)
        return surrogate_loss(tf.exp(since_start) - tf.exp(since_start - change), transitions)

    def score(self, outputs: Any, transitions: Transitions) -> tf.Tensor:
        """Returns the logarithm of the probability of all actions that count."""
        likelihood = distributions.log_prob(self.distribution(outputs), transitions.actions)
        return tf.reduce_sum(likelihood * transitions.weights)

    def step(
        self, parameters: Parameters, carry: Carry, stage: Transitions, step: int | tf.Tensor
    ) -> Carry:
        """Takes one inner step.

        Args:
            parameters: Where adaptation began.
            carry: What the step before handed on.
            stage: The transitions of this step, drawn with the weights before it.
            step: Its number, counted from 0.
        """
        inner = InnerLoop(self.update_rule, steps=1)
        return inner.step(PolicyTask(self, [stage]), parameters, carry._replace(state=[]), step)

    def outputs_of_stages(
        self,
        parameters: Parameters,
        stages: Sequence[Transitions],
        *,
        old: Sequence | None = None,
        first_order: bool = False,
    ) -> list[Any]:
        """Returns the distribution parameters of every stage, the last one after adaptation.

        Args:
            parameters: Where adaptation begins.
            stages: The transitions of each inner step, and those drawn after the last.
            old: What this returned for the parameters that the stages were drawn with. None: those
                are the parameters at hand.
            first_order: Whether the inner gradients are constants.
        """
        inner = InnerLoop(self.update_rule, len(stages) - 1, first_order)
        task = PolicyTask(self, stages, old)
        return task.outcome(parameters, inner.adapt(task, parameters, state=[]))

    def divergence(self, old: Any, new: Any, weights: tf.Tensor) -> tf.Tensor:
        """Returns the mean KL divergence from an old policy to a new one over transitions."""
        divergences = distributions.kl_divergence(self.distribution(old), self.distribution(new))
        return weighted_mean(divergences, weights)

    def ratio(self, old: Any, new: Any, actions: tf.Tensor) -> tf.Tensor:
        """Returns the probability of actions under a new policy over that under an old one."""
        new_likelihood = distributions.log_prob(self.distribution(new), actions)
        return tf.exp(new_likelihood - distributions.log_prob(self.distribution(old), actions))


@dataclasses.dataclass(frozen=True)
class PolicyTask:
    """The transitions of one task; its state are the distribution parameters of earlier stages.

    Attributes:
        objective: The model and its losses.
        stages: The transitions of each inner step, and those drawn after the last.
        old: See `PolicyObjective.outputs_of_stages`.
    """

    objective: PolicyObjective
    stages: Sequence[Transitions]
    old: Sequence | None = None

    def inner_loss(
        self, parameters: Parameters, carry: Carry, step: int | tf.Tensor
    ) -> tuple[tf.Tensor, list[Any]]:
        """Returns the loss on a step's transitions, and the state after it."""
        outputs = self.outcome(parameters, carry)
        index = len(carry.state)
        old = None if self.old is None else self.old[index]
        return self.objective.adaptation_loss(outputs[-1], self.stages[index], old), outputs

    def outcome(self, parameters: Parameters, carry: Carry) -> list[Any]:
        """Returns the distribution parameters of every stage so far, that at hand included."""
        stage = self.stages[len(carry.state)]
        at_hand = self.objective.outputs(parameters, carry.fast, stage.observations)
        return [*carry.state, at_hand]


def surrogate_loss(ratio: tf.Tensor, transitions: Transitions) -> tf.Tensor:
    """Returns minus the mean of likelihood ratio times advantage (Schulman et al. 2015, eq. 14)."""
    return -weighted_mean(ratio * transitions.advantages, transitions.weights)
