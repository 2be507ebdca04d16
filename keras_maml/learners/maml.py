"""MAML as a `keras.Model`."""

import functools
import itertools
import os
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_maml import validation
from keras_maml.algorithm import rematerialization
from keras_maml.algorithm.meta_gradients import (
    BATCH_NORMALIZATIONS,
    Objective,
    Outcome,
    meta_gradient,
    trajectory,
)
from keras_maml.algorithm.update_rules import GradientDescent
from keras_maml.execution import compilation, forms
from keras_maml.execution.functional import (
    Tensors,
    as_tensors,
    examples,
    is_seed,
    task_states,
)
from keras_maml.execution.linear import sum_tasks, turned, turned_back
from keras_maml.execution.task_map import TaskMap, count_tasks, joined, map_sequentially
from keras_maml.learners.adapted import TransductiveModel, copy_with_weights
from keras_maml.learners.episodic_model import EpisodicModel
from keras_maml.learners.metrics import stateless_loss, stateless_result, with_masks
from keras_maml.serving import export as exporting


@keras.saving.register_keras_serializable(package="keras_maml")
class MAML(EpisodicModel):
    """Learns an initialisation from which a few gradient steps solve a new task.

    An element of an episodes dataset is ``((x_support, y_support), (x_query, y_query))``, every
    array with a leading task axis: ``[tasks, examples, ...]``. x and y may be nests of arrays;
    a third entry in a pair is a sample weight.

    In ``fit`` and ``evaluate``, ``loss`` and the metrics are those of the query set after
    adaptation; ``loss_before`` and so on are those of the initialisation. Losses are means over
    examples and then over tasks. Dropout and other random layers are active in ``fit`` only.
    State other than batch statistics and random seeds (such as a counter that a layer keeps in
    a non-trainable variable) is read and never changed.

    Args:
        model: Any `keras.Model`. Layers with ``trainable=False`` stay fixed in both loops.
        inner_learning_rate: The rate alpha of the inner gradient steps.
        inner_steps: Inner steps in training.
        evaluation_steps: Inner steps in `evaluate`, `predict`, `adapt` and the exported model;
            by default as many as in training.
        first_order: Stops the inner gradient (paper, section 5.2): cheaper, approximate.
        batch_normalization: ``"transductive"``, as in the paper: support and query set are each
            normalised by their own statistics. ``"inductive"``: the query set is normalised by
            the statistics of the support set, so that a prediction does not depend on which
            other queries it is made with.
        task_map: ``"auto"`` runs all tasks of a meta-batch at once where the layers allow it;
            ``"vectorized"`` insists on it; ``"sequential"`` takes one after another.
            ``"auto"`` also takes one after another where that is faster: convolutions of more
            than a few small images. Then every core has a task of its own, if XLA compiles the
            step; see `keras_maml.execution.compilation`.
        task_chunk: How many tasks of a meta-batch are in memory at once; None for all, or for as
            many as there are cores where tasks run one after another. The gradients of the
            chunks add up to the same meta-gradient.
        rematerialize: Whether to compute the inner steps again for the meta-gradient instead of
            keeping them: the memory of one step for any number of steps. See
            `keras_maml.algorithm.rematerialization`.
        measure_before: Whether `fit` measures the initialisation, too. False leaves
            ``loss_before`` and so on to `evaluate`, and spares training a pass over the query
            set that no gradient needs.
        **kwargs: Passed on to `keras.Model`, such as ``name``.

    Raises:
        TypeError: ``model`` is not a `keras.Model`.
        ValueError: A setting is out of range.

    Source:
        Finn, Abbeel, Levine, Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks,
        ICML 2017, algorithms 1 and 2.

    Example:
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> learner = MAML(model, inner_learning_rate=0.1)
        >>> learner.compile(optimizer="adam", loss="mean_squared_error")
        >>> x = tf.random.normal([4, 10, 1])
        >>> episodes = tf.data.Dataset.from_tensors(((x, 2 * x), (x, 2 * x)))
        >>> history = learner.fit(episodes, verbose=0)
        >>> sorted(history.history)
        ['gradient_norm', 'loss', 'loss_before']
    """

    def __init__(
        self,
        model: keras.Model,
        inner_learning_rate: float = 0.01,
        inner_steps: int = 1,
        evaluation_steps: int | None = None,
        first_order: bool = False,
        batch_normalization: str = "transductive",
        task_map: str = "auto",
        task_chunk: int | None = None,
        rematerialize: bool = False,
        measure_before: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        if evaluation_steps is None:
            evaluation_steps = inner_steps
        validation.check_count("inner_steps", inner_steps)
        validation.check_count("evaluation_steps", evaluation_steps)
        if task_chunk is not None:
            validation.check_count("task_chunk", task_chunk, minimum=1)
        validation.check_choice("rematerialize", rematerialize, (False, True))
        validation.check_choice("measure_before", measure_before, (False, True))
        validation.check_choice("batch_normalization", batch_normalization, BATCH_NORMALIZATIONS)
        self.inner_learning_rate = inner_learning_rate
        self.inner_steps = inner_steps
        self.evaluation_steps = evaluation_steps
        self.first_order = first_order
        self.batch_normalization = batch_normalization
        self.update_rule = GradientDescent(inner_learning_rate)
        self.task_map = TaskMap(task_map)
        self.task_chunk = task_chunk
        self.rematerialize = rematerialize
        self.measure_before = measure_before
        self._gradient_norm = keras.metrics.Mean("gradient_norm")

    def get_config(self) -> dict[str, Any]:
        """Returns the learner's settings, the wrapped model included."""
        return {
            **super().get_config(),
            "inner_learning_rate": self.inner_learning_rate,
            "inner_steps": self.inner_steps,
            "evaluation_steps": self.evaluation_steps,
            "first_order": self.first_order,
            "batch_normalization": self.batch_normalization,
            "task_map": self.task_map.mode,
            "task_chunk": self.task_chunk,
            "rematerialize": self.rematerialize,
            "measure_before": self.measure_before,
        }

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Takes one meta-step: the inner loop under a tape, the optimizer on its gradient."""
        return self._step(self._train_step, data)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Adapts to each task and measures its query set before and after."""
        return self._step(self._test_step, data)

    def predict_step(self, data: Any) -> Any:
        """Adapts to each task and predicts its query set."""
        return self._step(self._predict_step, data)

    # --- the family's own -------------------------------------------------------------------

    def meta_gradients(self, support: Any, query: Any) -> tuple[tf.Tensor, Tensors]:
        """Computes the meta-gradient; updates nothing.

        Args:
            support: The support sets ``(x, y)``, each array ``[tasks, examples, ...]``.
            query: The query sets, likewise.

        Returns:
            The mean query loss after adaptation, and its gradient with respect to each of
            `trainable_variables`: exact, or as `first_order` says.

        Raises:
            ValueError: The learner is not compiled, or the episode is malformed.
        """
        episode = self._check((support, query), "meta_gradients")

        def compute(support: Any, query: Any) -> tuple[tf.Tensor, Tensors]:
            _, after, gradients, _ = _joined(self._meta_step(support, query, False))
            return tf.reduce_mean(after.loss), gradients

        return self._call("meta_gradients", compute, *episode)

    def meta_step_graph(self, support: Any, query: Any) -> tf.Graph:
        """Traces the adaptation and its meta-gradient, for TensorBoard's graph page.

        Args:
            support: The support sets ``(x, y)``, each array ``[tasks, examples, ...]``.
            query: The query sets, likewise.

        Returns:
            The graph.
        """
        function = tf.function(self._meta_step, autograph=False)
        return function.get_concrete_function(*as_tensors((support, query)), False).graph

    def adapt(self, x_support: Any, y_support: Any, steps: int | None = None) -> keras.Model:
        """Adapts to one task; the learner itself does not change.

        Args:
            x_support: The support inputs ``[examples, ...]``, or a nest of such.
            y_support: Their targets.
            steps: The number of inner steps; by default `evaluation_steps`.

        Returns:
            A new model, compiled with the learner's loss and metrics. If the learner normalises
            transductively and the model has batch normalisation, it is wrapped so that it goes
            on doing so; otherwise it is a plain copy of the wrapped model, with the statistics
            of the support set in its batch normalisation.

        Raises:
            ValueError: The learner is not compiled, or the support set is malformed.
        """
        steps = self.evaluation_steps if steps is None else steps
        validation.check_count("steps", steps)
        support = as_tensors((x_support, y_support))
        batch = keras.tree.map_structure(lambda tensor: tensor[None], support)
        self._check((batch, batch), "adapt")

        def compute(batch: Any) -> tuple[Tensors, Tensors]:
            def one(objective: Objective, weights: Tensors, state: Tensors, support: Any) -> Any:
                weights, state = objective.adapt(weights, state, support, steps=steps)
                x_support, _, _ = examples(support)
                return weights, objective.state_with_statistics(weights, state, x_support)

            return self._map_tasks(one, batch)

        weights, state = self._call(("adapt", steps), compute, batch)
        weights, state = keras.tree.map_structure(lambda value: value[0], (weights, state))
        transductive = self.batch_normalization == "transductive"
        adapted = copy_with_weights(
            self.model, support[0], weights, None if transductive else state
        )
        if transductive and forms.batch_normalizations(adapted):
            adapted = TransductiveModel(adapted)
        adapted.compile(**self.compile_arguments())
        return adapted

    def trajectories(
        self, support: Any, query: Any, *, steps: int, batch_normalization: str | None = None
    ) -> dict[str, tf.Tensor]:
        """Measures the query set of every task before adaptation and after each inner step.

        Args:
            support: The support sets, each array ``[tasks, examples, ...]``.
            query: The query sets, likewise.
            steps: The number of inner steps.
            batch_normalization: Overrides the learner's own choice.

        Returns:
            ``loss`` and the compiled metrics by name, each ``[tasks, steps + 1]``.

        Raises:
            ValueError: The learner is not compiled, or the episode is malformed.
        """
        episode = self._check((support, query), "trajectories")

        def one(objective: Objective, weights: Tensors, state: Tensors, episode: Any) -> Outcome:
            return trajectory(objective, weights, state, *episode, steps=steps)

        def metrics_of(task: Any) -> dict[str, tf.Tensor]:
            query, predictions, masks = task
            _, y, weight = examples(query)
            return map_sequentially(
                lambda of_step: stateless_result(
                    self._compile_metrics, y, with_masks(*of_step), weight
                ),
                (predictions, masks),
            )

        def compute(support: Any, query: Any) -> dict[str, tf.Tensor]:
            outcomes = self._map_tasks(one, (support, query), batch_normalization)
            # Metrics come after, and one task after another: many of them do not vectorise.
            measure = functools.partial(map_sequentially, metrics_of)
            tasks = query, outcomes.predictions, outcomes.masks
            metrics = compilation.program(measure)(tasks)
            return {"loss": outcomes.loss} | metrics

        key = "trajectories", batch_normalization, steps
        return self._call(key, compute, *episode)

    def export(self, filepath: str | os.PathLike, **kwargs: Any) -> None:
        """Writes a SavedModel for serving; see `keras_maml.serving.export.export`."""
        exporting.export(self, filepath, **kwargs)

    # --- inside -----------------------------------------------------------------------------

    def _train_step(self, data: Any) -> dict[str, tf.Tensor]:
        support, query = data
        parts = self._meta_step(support, query, self.measure_before)
        return compilation.program(self._apply)(parts, query)

    def _apply(self, parts: list[Any], query: Any) -> dict[str, tf.Tensor]:
        """Updates weights, random seeds and metrics by the results of `_meta_step`."""
        before, after, gradients, states = _joined(parts)
        for seed, state in zip(filter(is_seed, self.non_trainable_variables), states, strict=True):
            seed.assign(state[0])
        norm = tf.linalg.global_norm([tf.cast(g, after.loss.dtype) for g in gradients])
        # A gradient that is not finite shows in the loss, and nothing is learned after it.
        loss = tf.where(tf.math.is_finite(norm), after.loss, tf.cast(norm, after.loss.dtype))
        self._loss_tracker.update_state(loss)
        # An optimizer that scales losses, as for mixed float16, divides by that scale in apply.
        scaled = [self.optimizer.scale_loss(gradient) for gradient in gradients]
        tf.cond(
            tf.math.is_finite(self._loss_tracker.total),
            lambda: self.optimizer.apply(scaled, self.trainable_variables),
            lambda: None,
        )
        self._gradient_norm.update_state(norm)
        self._update_metrics(before, after, query)
        results = self.get_metrics_result()
        return results if self.measure_before else self._without_before(results)

    def _test_step(self, data: Any) -> dict[str, tf.Tensor]:
        support, query = data

        def one(objective: Objective, weights: Tensors, state: Tensors, episode: Any) -> Any:
            before = objective.query_outcome(weights, state, *episode)
            fast, state = objective.adapt(weights, state, episode[0], steps=self.evaluation_steps)
            return before, objective.query_outcome(fast, state, *episode)

        before, after = self._map_tasks(one, (support, query))
        return compilation.program(self._measure)(before, after, query)

    def _measure(self, before: Outcome, after: Outcome, query: Any) -> dict[str, tf.Tensor]:
        self._loss_tracker.update_state(after.loss)
        self._update_metrics(before, after, query)
        results = self.get_metrics_result()
        del results["gradient_norm"]
        return results

    def _predict_step(self, data: Any) -> Any:
        support, query = data

        def one(objective: Objective, weights: Tensors, state: Tensors, data: Any) -> Any:
            support, x_query = data
            weights, state = objective.adapt(weights, state, support, steps=self.evaluation_steps)
            x_support, _, _ = examples(support)
            return objective.query_forward(weights, state, x_support, x_query).predictions

        return self._map_tasks(one, (support, examples(query)[0]))

    def _meta_step(self, support: Any, query: Any, measure_before: bool) -> list[Any]:
        """Returns the results of the parts of a meta-batch, for `_joined`."""
        weights, settings = self._initial_weights(), {"training": True}
        seeds = [*map(is_seed, self.non_trainable_variables)]
        tasks = count_tasks(support)
        how = {"steps": self.inner_steps, "first_order": self.first_order}

        def before_only(objective: Objective, weights: Tensors, element: Any) -> Any:
            if not measure_before:
                return ()
            state, episode = element
            return objective.query_outcome(weights, state, *episode)

        def before_and_after(objective: Objective, weights: Tensors, element: Any) -> Any:
            state, episode = element
            before = before_only(objective, weights, element)
            after, gradients, state = meta_gradient(objective, weights, state, *episode, **how)
            if objective.route == "compiled":
                gradients = [*map(turned, gradients)]
            return before, (after, gradients, state)

        def of_chunk(elements: Any) -> Any:
            run = functools.partial(self._run_tasks, **settings)
            if not self.rematerialize:
                return run(before_and_after, weights, elements, summed)
            states, episode = elements
            before = run(before_only, weights, elements)
            after = rematerialization.meta_gradients(run, weights, states, *episode, **how)
            return summed((before, after))

        def summed(results: Any) -> Any:
            before, (after, gradients, states) = results
            shares = [
                turned_back(sum_tasks(gradient), weight.shape)[None] / tf.cast(tasks, weight.dtype)
                for gradient, weight in zip(gradients, weights, strict=True)
            ]
            # The rest of the state nobody needs, and the compiler leaves out.
            return before, after, shares, [*itertools.compress(states, seeds)]

        return self._over_tasks(of_chunk, (support, query))

    def _map_tasks(
        self,
        function: Callable[[Objective, Tensors, Tensors, Any], Any],
        data: Any,
        batch_normalization: str | None = None,
    ) -> Any:
        """Maps ``function(objective, weights, state, one task's data)`` over the tasks."""

        def one(objective: Objective, weights: Tensors, element: Any) -> Any:
            return function(objective, weights, *element)

        weights = self._initial_weights()
        how = {"batch_normalization": batch_normalization}

        return joined(
            self._over_tasks(lambda elements: self._run_tasks(one, weights, elements, **how), data)
        )

    def _over_tasks(self, of_chunk: Callable[[Any], Any], data: Any) -> list[Any]:
        """Calls ``of_chunk((states, data))`` for the parts of a meta-batch; returns the results."""

        def of_part(elements: Any) -> Any:
            numbers, data = elements
            return of_chunk((task_states(self.model, numbers), data))

        elements = (tf.range(count_tasks(data)), data)
        return compilation.over_tasks(of_part, elements, self.task_chunk)

    def _run_tasks(
        self,
        function: Callable[[Objective, Any, Any], Any],
        shared: Any,
        elements: Any,
        finish: Callable[[Any], Any] = lambda results: results,
        **settings: Any,
    ) -> Any:
        """Maps ``function(objective, shared, one task's element)`` over the tasks."""

        def one(shared: Any, element: Any, vectorized: bool) -> Any:
            return function(
                self.objective(route=self._route(vectorized), **settings), shared, element
            )

        self.task_map.layer_names = [layer.name for layer in forms.flatten_layers(self.model)]
        return self.task_map(one, shared, elements, finish)

    def _route(self, vectorized: bool) -> forms.Route:
        return "vectorized" if vectorized else "compiled" if self._compiles else "plain"

    def _initial_weights(self) -> Tensors:
        return as_tensors(list(self.model.trainable_variables))

    def objective(
        self,
        *,
        training: bool = False,
        route: forms.Route = "plain",
        batch_normalization: str | None = None,
    ) -> Objective:
        """Returns the losses of one task, as functions of the weights."""
        return Objective(
            self.model,
            functools.partial(stateless_loss, self._compile_loss),
            self.update_rule,
            batch_normalization or self.batch_normalization,
            training,
            route,
        )


def _joined(parts: list[Any]) -> Any:
    """Joins the results of the parts of a meta-batch, and adds up their shares of gradients."""
    before, after, shares, states = zip(*parts, strict=True)
    totals = [tf.add_n(of_weight) for of_weight in zip(*shares, strict=True)]
    # Without task_chunk there is but one share, and taking it is free.
    gradients = [t[0] if t.shape[0] == 1 else tf.reduce_sum(t, 0) for t in totals]
    return *joined([*zip(before, after, strict=True)]), gradients, states[0]
