"""The meta-objective: the mean over tasks of what the adapted policies make of their transitions.

As a function of what the outer step trains, `Parameters.trained`: every evaluation adapts again,
with the transitions that were drawn once. Tasks run one after another, which is faster here than
all at once: one task's activations stay in the cache (docs/speed.md).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from keras_maml.algorithm.inner_loop import loss_gradients
from keras_maml.execution import tracing
from keras_maml.execution.forms import has_recurrent_layers
from keras_maml.execution.functional import Tensors
from keras_maml.execution.task_map import map_sequentially
from keras_maml.execution.workers import Workers
from keras_maml.rl.advantages import Transitions
from keras_maml.rl.policy_gradient import PolicyObjective, surrogate_loss
from keras_maml.rl.trust_region import kl_hessian_product

Loss = Callable[[tf.Tensor, Transitions], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class MetaObjective:
    """Loss, divergence and their derivatives with respect to what is trained.

    Attributes:
        objective: The losses of one task.
        stages: The transitions ``[tasks, ...]`` of each inner step, and those drawn after the last.
        old: The distribution parameters of every stage under the weights they were drawn with;
            see `outputs`.
        first_order: Whether the inner gradients are constants.
        loss: From likelihood ratios and transitions to the loss of a task.
        inner_kl_penalty: Weight of the divergences of the stages before the last (ProMP).
        workers: Those who have as many tasks each; means are over the tasks of all of them.
        jit_compile: Whether XLA compiles what is between their messages, which it cannot.
        credits: ``[tasks]``: how well each task ended, for which its rollouts before that get the
            credit (E-MAML), see `credits_of`; an empty tuple: they get none.
    """

    objective: PolicyObjective
    stages: Sequence[Transitions]
    old: Any = None
    first_order: bool = False
    loss: Loss = surrogate_loss
    inner_kl_penalty: float = 0.0
    workers: Workers | None = None
    jit_compile: bool = False
    credits: Any = ()

    def outputs(self, weights: Tensors) -> Any:
        """Returns the distribution parameters of every task and stage."""
        return self._program(
            lambda: map_sequentially(lambda stages: self._outputs(weights, stages), self.stages)
        )

    def loss_and_gradient(self, weights: Tensors) -> tuple[tf.Tensor, Tensors]:
        """Returns the loss and the meta-gradient."""

        def of_task(element: Any) -> tuple[tf.Tensor, Tensors]:
            loss, _, gradient = loss_gradients(lambda w: self._loss_and_kl(w, *element), weights)
            return loss, gradient

        return self._mean_over_tasks(of_task)

    def loss_and_kl(self, weights: Tensors) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the loss and the mean KL divergence from the old adapted policies."""
        return self._mean_over_tasks(lambda element: self._loss_and_kl(weights, *element))

    def kl_hessian(self, weights: Tensors, vector: Tensors, stride: int = 1) -> Tensors:
        """Multiplies the Hessian of the mean KL divergence at the old weights with a vector.

        Args:
            weights: The old ones.
            vector: Of their shapes.
            stride: Adaptation and mean take every so-many-th of the transitions. With DiCE, which
                couples the steps of an episode, adaptation takes all.
        """

        def of_task(element: Any) -> Tensors:
            (*before, last), *_ = element
            last = share_of(last, stride)
            if self.objective.inner_loss != "dice":
                before = [share_of(stage, stride) for stage in before]
            stages = [*before, last]
            return kl_hessian_product(
                lambda w: self._outputs(w, stages)[-1],
                lambda old, new: self.objective.divergence(old, new, last.weights),
                weights,
                vector,
                forward_mode=not has_recurrent_layers(self.objective.model),
            )

        return self._mean_over_tasks(of_task)

    def _outputs(
        self, weights: Tensors, stages: Sequence[Transitions], old: Sequence | None = None
    ) -> list[Any]:
        parameters, first_order = self.objective.parameters(weights), self.first_order
        return self.objective.outputs_of_stages(
            parameters, stages, old=old, first_order=first_order
        )

    def _loss_and_kl(
        self, weights: Tensors, stages: Sequence[Transitions], old: Any, credit: Any
    ) -> tuple[tf.Tensor, tf.Tensor]:
        new = self._outputs(weights, stages, old)
        divergences = [
            self.objective.divergence(*parameters, stage.weights)
            for *parameters, stage in zip(old, new, stages, strict=True)
        ]
        loss = self.loss(self.objective.ratio(old[-1], new[-1], stages[-1].actions), stages[-1])
        if self.inner_kl_penalty and divergences[:-1]:
            loss += self.inner_kl_penalty * tf.add_n(divergences[:-1])
        if tf.is_tensor(credit) and divergences[:-1]:
            scores = map(self.objective.score, new[:-1], stages[:-1])
            loss -= credit * tf.add_n(list(scores))
        return loss, divergences[-1]

    def _mean_over_tasks(self, of_task: Callable[[Any], Any]) -> Any:
        def mean() -> Any:
            results = map_sequentially(of_task, (list(self.stages), self.old, self.credits))
            return tf.nest.map_structure(lambda x: tf.reduce_mean(x, axis=0), results)

        of_this_worker = self._program(mean)
        return of_this_worker if self.workers is None else self.workers.mean(of_this_worker)

    def _program(self, compute: Callable[[], Any]) -> Any:
        """Computes something, in a program of its own where the step cannot be one."""
        if self.workers is None:
            return compute()
        return tracing.function(compute, jit_compile=self.jit_compile)()


def share_of(transitions: Transitions, stride: int) -> Transitions:
    """Returns every so-many-th of the transitions of a task.

    Args:
        transitions: ``[transitions, ...]``.
        stride: How many make one.
    """
    of_each = transitions._replace(performance=())  # that is of the task
    return tf.nest.map_structure(lambda x: x[::stride], of_each)


def credits_of(performance: tf.Tensor, workers: Workers | None = None) -> tf.Tensor:
    """Returns how well each task ended, compared with the mean of the others.

    The others know nothing of a task's rollouts, so comparing with them makes no bias.

    Args:
        performance: ``[tasks]``, of `Transitions` after adaptation.
        workers: Those who have as many tasks each, if there are several.

    Returns:
        ``[tasks]``; of a single task as it is.

    Source: Stadie et al. 2018 (arXiv 1803.01118), for the term that they belong to.

    Example:
        >>> credits_of(tf.constant([1.0, 2.0, 6.0])).numpy().tolist()
        [-3.0, -1.5, 4.5]
    """
    tasks, mean = performance.shape[0], tf.reduce_mean(performance)
    if workers is not None:
        tasks, mean = tasks * workers.count, workers.mean(mean)
    return performance if tasks == 1 else (performance - mean) * (tasks / (tasks - 1))
