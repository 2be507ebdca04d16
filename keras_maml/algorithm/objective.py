"""One episode as a task: its losses as functions of weights."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_maml.algorithm.inner_loop import Carry, Parameters
from keras_maml.execution.forms import BatchStatistics, Route, differentiable_forms
from keras_maml.execution.functional import (
    Forward,
    Tensors,
    at_step,
    examples,
    forward,
    masks_of,
)
from keras_maml.execution.memo import Memo

BATCH_NORMALIZATIONS = ("transductive", "inductive")


class Outcome(NamedTuple):
    """What a set of weights makes of a query set.

    Attributes:
        loss: The scalar total loss.
        by_output: The scalar losses of a model with several outputs, in the order of its outputs.
        predictions: The model's outputs, ``[queries, ...]`` or a nest of such.
        masks: The Keras masks of those of the outputs that have one, by their number.
    """

    loss: tf.Tensor
    by_output: Tensors
    predictions: Any
    masks: dict[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Objective:
    """A model and its loss, as functions of weights.

    Attributes:
        model: A built model.
        variables: Its variables, in the places that `Parameters` gives their values.
        state_variables: Those of which each task has its own, see `functional.state_variables`.
        loss: Maps ``(y, predictions, sample_weight, weights)`` to ``(scalar loss, losses by
            output)``; weights are pairs of variables and what takes their place.
        batch_normalization: ``"transductive"``: the query set is normalised by its own
            statistics; ``"inductive"``: by those of the support set under the same weights.
        training: Whether dropout and its like are active.
        route: How the trace will run, see `forms.differentiable_forms`.
        regularization: lambda of a proximal term lambda / 2 ||fast - initial||^2 of the inner loss.
        loss_scale: Maps an inner loss to what it is multiplied by while it is differentiated, for
            layers that compute in half precision; None for nothing.
        meta_loss_scale: What the loss after adaptation is multiplied by, likewise.
    """

    model: keras.Model
    variables: Parameters
    state_variables: Sequence[keras.Variable]
    loss: Callable[[Any, Any, Any, Any], tuple[tf.Tensor, Tensors]]
    batch_normalization: str = "transductive"
    training: bool = False
    route: Route = "plain"
    regularization: float = 0.0
    loss_scale: Callable[[tf.Tensor], tf.Tensor] | None = None
    meta_loss_scale: tf.Tensor | None = None

    def task(self, support: Any, query: Any = None) -> "EpisodeTask":
        """Returns an episode as a task."""
        body = [*self.variables.shared, *self.variables.frozen]
        return EpisodeTask(self, support, query, Memo(self.variables.initial) if body else None)

    def forward(
        self,
        parameters: Parameters,
        carry: Carry,
        x: Any,
        *,
        batch_statistics: BatchStatistics = "batch",
        write_statistics: bool = False,
        memo: Memo | None = None,
    ) -> Forward:
        """Runs the model with fast weights; see `functional.forward`."""
        return forward(
            self.model,
            self.variables.paired(parameters, carry.fast),
            [*zip(self.state_variables, carry.state, strict=True)],
            x,
            training=self.training,
            route=self.route,
            batch_statistics=batch_statistics,
            write_statistics=write_statistics,
            memo=memo,
        )

    def losses(
        self, parameters: Parameters, carry: Carry, y: Any, predictions: Any, sample_weight: Any
    ) -> tuple[tf.Tensor, Tensors]:
        """Returns the loss of predictions; it may read the weights, or call the model again."""
        weights = self.variables.paired(parameters, carry.fast)
        with differentiable_forms(self.model, route=self.route, write_statistics=False):
            return self.loss(y, predictions, sample_weight, weights)


@dataclasses.dataclass(frozen=True)
class EpisodeTask:
    """An episode: adapt to the support set, be measured by the query set.

    Attributes:
        objective: The model and its loss.
        support: ``(x, y)``, arrays ``[examples, ...]``, with sample weights as an optional third.
        query: Likewise; None where only adaptation is asked for.
        memo: What layers that are not adapted have computed, where there are any.
    """

    objective: Objective
    support: Any
    query: Any = None
    memo: Memo | None = None

    @property
    def loss_scale(self) -> Callable[[tf.Tensor], tf.Tensor] | None:
        """See `Objective.loss_scale`."""
        return self.objective.loss_scale

    @property
    def meta_loss_scale(self) -> tf.Tensor | None:
        """See `Objective.meta_loss_scale`."""
        return self.objective.meta_loss_scale

    def inner_loss(
        self, parameters: Parameters, carry: Carry, step: int | tf.Tensor
    ) -> tuple[tf.Tensor, Tensors]:
        """Returns the loss on the support set and the state after it."""
        x, y, sample_weight = examples(self.support)
        state = at_step(self.objective.state_variables, carry.state, step)
        carry = carry._replace(state=state)  # which what is measured after the step keeps
        result = self.objective.forward(parameters, carry, x, memo=self.memo)
        loss, _ = self.objective.losses(parameters, carry, y, result.predictions, sample_weight)
        loss, weight = _total(loss, result.losses), self.objective.regularization
        if weight:
            pairs = zip(carry.fast, parameters.initial, strict=True)
            squares = [tf.reduce_sum((fast - initial) ** 2) for fast, initial in pairs]
            loss += weight / 2 * tf.cast(tf.add_n(squares), loss.dtype)
        return loss, result.state

    def before_loop(self, parameters: Parameters, carry: Carry) -> None:
        """Computes what all turns of a loop over steps would compute alike, where there is any."""
        if self.memo is not None:
            self.inner_loss(parameters, carry, 0)
            self.memo.open()

    def outcome(self, parameters: Parameters, carry: Carry) -> Outcome:
        """Returns the loss and the predictions on the query set."""
        x, y, sample_weight = examples(self.query)
        result = self.predict(parameters, carry, x)
        loss, by_output = self.objective.losses(
            parameters, carry, y, result.predictions, sample_weight
        )
        masks = masks_of(result.predictions)
        return Outcome(_total(loss, result.losses), by_output, result.predictions, masks)

    def predict(self, parameters: Parameters, carry: Carry, x: Any) -> Forward:
        """Runs the model on query inputs, normalised as `Objective.batch_normalization` says."""
        if self.objective.batch_normalization == "transductive":
            return self.objective.forward(parameters, carry, x, memo=self.memo)
        carry = self.with_statistics(parameters, carry)
        how = {"batch_statistics": "stored", "memo": self.memo}
        return self.objective.forward(parameters, carry, x, **how)

    def with_statistics(self, parameters: Parameters, carry: Carry) -> Carry:
        """Puts the batch statistics of the support set into the state."""
        x, _, _ = examples(self.support)
        how = {"write_statistics": True, "memo": self.memo}
        result = self.objective.forward(parameters, carry, x, **how)
        return carry._replace(state=result.state)


def _total(loss: tf.Tensor | None, additional: Tensors) -> tf.Tensor:
    losses = ([] if loss is None else [loss]) + [tf.reduce_sum(value) for value in additional]
    if not losses:
        raise ValueError(
            "There is no loss to adapt by: compile the learner with a loss, or let the model add "
            "one (add_loss)."
        )
    return tf.add_n([tf.cast(value, losses[0].dtype) for value in losses])
