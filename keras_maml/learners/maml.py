"""MAML as a `keras.Model`."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import keras
import tensorflow as tf

from keras_maml import validation
from keras_maml.algorithm.exact import Exact
from keras_maml.algorithm.inner_loop import InnerLoop, Parameters, Task
from keras_maml.algorithm.objective import BATCH_NORMALIZATIONS, Outcome
from keras_maml.algorithm.update_rules import GradientDescent, UpdateRule
from keras_maml.execution import tracing
from keras_maml.execution.forms import has_recurrent_layers
from keras_maml.execution.functional import (
    Tensors,
    as_tensors,
    examples,
    is_seed,
    seed_shifts,
    state_variables,
    task_states,
    with_masks,
)
from keras_maml.execution.linear import sum_tasks, unpack_gradient
from keras_maml.execution.task_map import count_tasks, joined, map_sequentially
from keras_maml.execution.tasks import Run
from keras_maml.learners import adaptation, inputs, joint_metrics
from keras_maml.learners.metrics import stateless_result
from keras_maml.learners.parts import LearnerOfParts, meta_gradient_of
from keras_maml.learners.settings import Setting
from keras_maml.learners.without_xla import without_xla_where_it_fails


@keras.saving.register_keras_serializable(package="keras_maml")
class MAML(LearnerOfParts):
    """Learns an initialisation from which a few gradient steps solve a new task.

    An element of an episodes dataset is ``((x_support, y_support), (x_query, y_query))``, every
    array with a leading task axis: ``[tasks, examples, ...]``. x and y may be nests of arrays;
    a third entry in a pair is a sample weight.

    In ``fit`` and ``evaluate``, ``loss`` and the metrics are those of the query set after
    adaptation; ``loss_before`` and so on are those of the initialisation. Losses are means over
    examples and then over tasks. Dropout and other random layers are active in ``fit`` only.

    A setting that is changed after construction is in force from the next step on.

    Args:
        model: Any `keras.Model`. Layers with ``trainable=False`` stay fixed in both loops.
        inner_learning_rate: The rate alpha of the inner gradient steps, by default 0.1: a number,
            or a Keras learning rate schedule over the inner steps. Short for
            ``update_rule=GradientDescent(inner_learning_rate)``.
        inner_steps: Inner steps in training.
        evaluation_steps: Inner steps in `evaluate`, `predict`, `adapt` and the exported model;
            by default as many as in training.
        first_order: Stops the inner gradient (paper, section 5.2): cheaper, approximate. Short
            for ``meta_gradient="first_order"``.
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
            keeping them: the memory of one step for any number of steps. Short for
            ``meta_gradient=keras_maml.meta_gradients.Exact(rematerialize=True)``.
        measure_before: Whether `fit` measures the initialisation, too. False leaves
            ``loss_before`` and so on to `evaluate`, and spares training a pass over the query
            set that no gradient needs.
        update_rule: How an inner step turns gradients into fast weights: one of
            `keras_maml.update_rules`, or a rule of one's own.
        meta_gradient: ``"exact"``, ``"first_order"``, ``"reptile"``, ``"implicit"``, or one of
            `keras_maml.meta_gradients`.
        adapted_layers: What the inner loop adapts: ``"all"``, ``"head"`` (ANIL), ``"body"``
            (BOIL), or layers or their names. Other trainable layers are meta-trained only.
        query_loss: ``"last"``, the loss after the last inner step, or one of
            `keras_maml.query_losses`: then ``loss`` in `fit` is what that makes of all steps.
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

    # What writes a learner to a file or folder, by kind: added by the package, from a room above.
    exporters: ClassVar[dict[str, Callable[..., None]]] = {}

    inner_steps = Setting(validation.check_count)
    evaluation_steps = Setting(validation.check_count)
    measure_before = Setting(validation.check_flag)

    def __init__(
        self,
        model: keras.Model,
        inner_learning_rate: Any = None,
        inner_steps: int = 1,
        evaluation_steps: int | None = None,
        first_order: bool = False,
        batch_normalization: str = "transductive",
        task_map: str = "auto",
        task_chunk: int | None = None,
        rematerialize: bool = False,
        measure_before: bool = True,
        *,
        update_rule: UpdateRule | None = None,
        meta_gradient: Any = None,
        adapted_layers: str | Sequence = "all",
        query_loss: Any = "last",
        **kwargs: Any,
    ) -> None:
        super().__init__(model, task_map=task_map, task_chunk=task_chunk, **kwargs)
        self.inner_steps = inner_steps
        self.evaluation_steps = inner_steps if evaluation_steps is None else evaluation_steps
        self.batch_normalization = batch_normalization
        self.measure_before = measure_before
        self.adapted_layers = adapted_layers
        self.meta_gradient = meta_gradient_of(meta_gradient, first_order, rematerialize)
        if update_rule is not None and inner_learning_rate is not None:
            raise ValueError("Give either inner_learning_rate or update_rule, not both.")
        if update_rule is None:
            rate = 0.1 if inner_learning_rate is None else inner_learning_rate
            update_rule = GradientDescent(rate)
        self.update_rule = update_rule
        self.query_loss = query_loss
        self._gradient_norm = keras.metrics.Mean("gradient_norm")

    def get_config(self) -> dict[str, Any]:
        """Returns the learner's settings, the wrapped model included."""
        names = ("inner_steps", "evaluation_steps", "measure_before")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

    # --- the steps of training, evaluation and prediction ---------------------------------------

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Takes one meta-step, algorithm 2 of the paper: for all tasks adapt, then update."""

        def meta_step(run: Run, *episodes: Any) -> dict[str, tf.Tensor]:
            results = self._adapt_and_differentiate(run, episodes, self.measure_before)
            if run.workers is None:
                return run.program(self._update)(results, episodes[1])
            first = run.numbers(count_tasks(episodes))[:1]
            share, seeds = run.program(self._share)(results, episodes[1], first)
            total = run.workers.sum(share, tasks=count_tasks(episodes))
            return run.program(self._update_together)(*total, seeds)

        return self.run_step(meta_step, *data, workers=self.several_workers)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Adapts to each task and measures its query set before and after."""

        def test(run: Run, *episodes: Any) -> dict[str, tf.Tensor]:
            inner = self._inner_loop(run)

            def before_and_after(task: Task, theta: Parameters, state: Tensors) -> tuple:
                before = task.outcome(theta, inner.begin(theta, state))
                return before, task.outcome(theta, inner.adapt(task, theta, state))

            outcomes = self._map_tasks(run, before_and_after, episodes)
            if run.workers is None:
                return run.program(self._measure)(*outcomes, episodes[1])
            share = run.program(self._share_of_metrics)(*outcomes, episodes[1])
            total = run.workers.sum(share, tasks=count_tasks(episodes))
            return run.program(self._measure_together)(total)

        return self.run_step(test, *data, workers=self.several_workers)

    def predict_step(self, data: Any) -> Any:
        """Adapts to each task and predicts its query set."""

        def predict_all(run: Run, *episodes: Any) -> Any:
            inner = self._inner_loop(run)

            def predict(task: Task, theta: Parameters, state: Tensors) -> Any:
                x, _, _ = examples(task.query)
                return task.predict(theta, inner.adapt(task, theta, state), x).predictions

            predictions = self._map_tasks(run, predict, episodes)
            return predictions if run.workers is None else run.workers.gather(predictions)

        support, query = data
        x_query, _, _ = examples(query)
        return self.run_step(
            predict_all,
            support,
            (x_query,),
            workers=self.several_workers,
            # For one task, compiling costs more than hundreds of predictions save.
            jit_compile=keras.tree.flatten(x_query)[0].shape[0] != 1,
        )

    def _adapt_and_differentiate(self, run: Run, episodes: Any, measure_before: bool) -> Any:
        """Adapts to each task and differentiates the mean of their losses afterwards.

        Returns:
            For each slice of the meta-batch: the outcomes before, if they are measured, and after
            adaptation, the slice's share of the gradient by `Parameters.trained`, and its seeds.
        """
        theta, tasks = self.parameters(), count_tasks(episodes)
        objective = self.objective(training=True, route=run.route)
        rule, steps = self.update_rule, self.inner_steps
        last_only = self._last_only or not steps
        step_weights = None if last_only else self.query_loss.step_weights(steps)

        def of_slice(elements: Any) -> Any:
            before, after, gradients, states = self.meta_gradient(
                run,
                objective.task,
                rule,
                steps,
                theta,
                *elements,
                measure_before=measure_before,
                step_weights=step_weights,
            )
            shares = [
                unpack_gradient(sum_tasks(gradient), weight.shape)[None]
                / tf.cast(tasks, weight.dtype)
                for gradient, weight in zip(gradients, theta.trained, strict=True)
            ]
            # The rest of the state nobody needs, and the compiler leaves out.
            pairs = zip(objective.state_variables, states, strict=True)
            return before, after, shares, [state for variable, state in pairs if is_seed(variable)]

        return self._over_tasks(run, of_slice, episodes)

    def _update(self, results: list[Any], query: Any) -> dict[str, tf.Tensor]:
        """Updates weights, random seeds and metrics by the results of all slices."""
        before, after, gradients, states = self._joined(results)
        self._take_step(gradients, after.loss, [state[0] for state in states])
        self._update_metrics(before, after, query)
        return self._training_results()

    def _share(self, results: list[Any], query: Any, first: tf.Tensor) -> tuple[Any, Tensors]:
        """Computes what one of several workers adds to a meta-step.

        Args:
            results: Those of its tasks.
            query: Their query sets.
            first: The number of the first of them, ``[1]``.

        Returns:
            What is added up over the workers: gradients, the sum of the losses, the number of tasks
            and what the metrics count; and the next random seeds.
        """
        before, after, gradients, states = self._joined(results)
        gradients = [gradient / self.workers.count for gradient in gradients]
        counted = joint_metrics.counted(
            self.metrics, lambda: self._update_metrics(before, after, query)
        )
        tasks = tf.cast(tf.size(after.loss), after.loss.dtype)
        seeds = [state[0] - seed_shifts(first, state.dtype)[0] for state in states]
        return (gradients, tf.reduce_sum(after.loss), tasks, counted), seeds

    def _update_together(
        self,
        gradients: Tensors,
        loss: tf.Tensor,
        tasks: tf.Tensor,
        counted: Tensors,
        seeds: Tensors,
    ) -> dict[str, tf.Tensor]:
        """Updates all by the sums of `_share`, which are the same on all workers."""
        self._take_step(gradients, loss / tasks, seeds, tasks)
        joint_metrics.count(self.metrics, counted)
        return self._training_results()

    def _take_step(
        self, gradients: Tensors, loss: tf.Tensor, seeds: Tensors, tasks: tf.Tensor | None = None
    ) -> None:
        """Updates weights, random seeds, loss and gradient norm.

        Args:
            gradients: As `trainable_variables` are.
            loss: Of every task, ``[tasks]``; or their mean.
            seeds: The next ones.
            tasks: How many tasks ``loss`` is the mean of, if it is.
        """
        variables = filter(is_seed, state_variables(self.model))
        for variable, seed in zip(variables, seeds, strict=True):
            variable.assign(seed)
        norm = tf.linalg.global_norm([tf.cast(g, loss.dtype) for g in gradients])
        finite = tf.math.is_finite(norm)
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            # It leaves such a step out, and takes a smaller scale for the next.
            self._gradient_norm.update_state(tf.where(finite, norm, 0), tf.cast(finite, norm.dtype))
        else:
            # A gradient that is not finite shows in the loss, and nothing is learned after it.
            loss = tf.where(finite, loss, tf.cast(norm, loss.dtype))
            self._gradient_norm.update_state(norm)
        self._loss_tracker.update_state(loss, tasks)
        # An optimizer that scales losses, as for mixed float16, divides by that scale in apply.
        scaled = [self.optimizer.scale_loss(gradient) for gradient in gradients]
        tf.cond(
            tf.math.is_finite(self._loss_tracker.total),
            lambda: self.optimizer.apply(scaled, self.trainable_variables),
            lambda: None,
        )

    def _training_results(self) -> dict[str, tf.Tensor]:
        results = self.get_metrics_result()
        return results if self.measure_before else self._without_before(results)

    def _measure(self, before: Outcome, after: Outcome, query: Any) -> dict[str, tf.Tensor]:
        self._update_all_metrics(before, after, query)
        return self._test_results()

    def _share_of_metrics(self, before: Outcome, after: Outcome, query: Any) -> Tensors:
        """Computes what one of several workers adds to an evaluation."""
        return joint_metrics.counted(
            self.metrics, lambda: self._update_all_metrics(before, after, query)
        )

    def _measure_together(self, counted: Tensors) -> dict[str, tf.Tensor]:
        joint_metrics.count(self.metrics, counted)
        return self._test_results()

    def _update_all_metrics(self, before: Outcome, after: Outcome, query: Any) -> None:
        self._loss_tracker.update_state(after.loss)
        self._update_metrics(before, after, query)

    def _test_results(self) -> dict[str, tf.Tensor]:
        results = self.get_metrics_result()
        del results["gradient_norm"]
        return results

    # --- the family's own -------------------------------------------------------------------

    @without_xla_where_it_fails
    def meta_gradients(self, support: Any, query: Any) -> tuple[tf.Tensor, Tensors]:
        """Computes the meta-gradient; updates nothing.

        Args:
            support: The support sets ``(x, y)``, each array ``[tasks, examples, ...]``.
            query: The query sets, likewise.

        Returns:
            The mean query loss after adaptation, of the steps that `query_loss` says, and its
            gradient with respect to each of `trainable_variables`, as `meta_gradient` says.

        Raises:
            ValueError: The learner is not compiled, or the episode is malformed.
        """
        episode = self._check_arrays(support, query, "meta_gradients")

        def compute(run: Run, *episodes: Any) -> tuple[tf.Tensor, Tensors]:
            results = self._adapt_and_differentiate(run, episodes, False)
            _, after, gradients, _ = self._joined(results)
            return tf.reduce_mean(after.loss), gradients

        return self.call_compiled("meta_gradients", compute, *episode)

    def slow_to_compile(self, what: str) -> str:
        """Returns what to say of a step whose first call takes long, and what would be faster."""
        differentiates = what not in ("test step", "predict step")
        faster = []
        if differentiates and self.inner_steps > 1:
            faster.append(f"fewer inner steps than {self.inner_steps}")
        if has_recurrent_layers(self.model):
            faster.append("shorter sequences")
        if differentiates and type(self.meta_gradient) is Exact:
            faster.append("meta_gradient='first_order'")
        if self.jit_compile:
            faster.append("compile(jit_compile=False), whose steps take longer")
        return (
            f"{super().slow_to_compile(what)} Faster to compile: {'; '.join(faster) or 'nothing'}."
        )

    def meta_step_graph(self, support: Any, query: Any) -> tf.Graph:
        """Traces the adaptation and its meta-gradient, for TensorBoard's graph page.

        Args:
            support: The support sets ``(x, y)``, each array ``[tasks, examples, ...]``.
            query: The query sets, likewise.

        Returns:
            The graph.
        """

        def compute(run: Run, *episodes: Any) -> Any:
            return self._adapt_and_differentiate(run, episodes, False)

        function = tracing.function(functools.partial(self.run_step, compute))
        return function.get_concrete_function(*as_tensors((support, query))).graph

    def adapt(
        self,
        x_support: Any,
        y_support: Any,
        steps: int | None = None,
        *,
        batch_normalization: str = "inductive",
        sample_weight: Any = None,
        class_weight: dict[int, float] | None = None,
    ) -> keras.Model:
        """Adapts to one task; the learner itself does not change.

        Support sets of all sizes share a program, and so do the predictions of adapted models.
        Threads may adapt side by side, and while `fit` runs, to as many classes as it trains with.

        Args:
            x_support: The support inputs ``[examples, ...]``, or a nest of such.
            y_support: Their targets.
            steps: The number of inner steps; by default `evaluation_steps`.
            batch_normalization: How the model that is returned normalises. ``"inductive"``: by the
                statistics of the support set, so that the prediction for one example does not
                depend on others; whatever the learner was trained with. ``"transductive"``: by
                those of the batch at hand, as a transductive learner is evaluated.
            sample_weight: Weights of the examples, ``[examples]``.
            class_weight: Weights of the examples of each class, by number; see `fit`.

        Returns:
            A new model, compiled with the learner's loss and metrics: a copy of the wrapped model
            with the statistics of the support set in its batch normalisation; or that copy, wrapped
            so that it normalises transductively. The copy is made, in a tenth of a second, when
            more is asked of it than to `predict` arrays like those of the support set.

        Raises:
            ValueError: The learner is not compiled, or the support set is malformed. At the first
                use of the model: the wrapped model cannot be copied.
        """
        steps = self.evaluation_steps if steps is None else steps
        validation.check_count("steps", steps)
        validation.check_choice("batch_normalization", batch_normalization, BATCH_NORMALIZATIONS)
        support = inputs.support_set(x_support, y_support, sample_weight, class_weight, self.loss)
        with self.changing:
            self._check_arrays(support, support, "adapt")
            support = keras.tree.map_structure(lambda array: array[0], support)
            adapt = adaptation.prepared(self, support, steps, batch_normalization)
        return adapt()  # beside other threads

    @without_xla_where_it_fails
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
        episode = self._check_arrays(support, query, "trajectories")
        inner = InnerLoop(self.update_rule, steps)

        def metrics_of(task: Any) -> dict[str, tf.Tensor]:
            query, predictions, masks = task
            _, y, weight = examples(query)
            return map_sequentially(
                lambda of_step: stateless_result(
                    self._compile_metrics, y, with_masks(*of_step), weight
                ),
                (predictions, masks),
            )

        def compute(run: Run, *episodes: Any) -> dict[str, tf.Tensor]:
            def one(task: Task, theta: Parameters, state: Tensors) -> Outcome:
                return inner.trajectory(task, theta, state, unrolled=run.route == "vectorized")

            outcomes = self._map_tasks(run, one, episodes, batch_normalization)
            # Metrics come after, and one task after another: many of them do not vectorise.
            measure = functools.partial(map_sequentially, metrics_of)
            tasks = episodes[1], outcomes.predictions, outcomes.masks
            return {"loss": outcomes.loss} | run.program(measure)(tasks)

        key = "trajectories", batch_normalization, steps
        return self.call_compiled(key, compute, *episode)

    def citation(self) -> None:
        """Prints the BibTeX entries of what this learner uses."""
        from keras_maml.learners.citation import entries  # read when asked for

        print("\n\n".join(entries(self)))

    def export(self, filepath: str | os.PathLike, **settings: Any) -> None:
        """Writes a SavedModel for serving; see `keras_maml.serving.export.export`."""
        self.exporters["saved_model"](self, filepath, **settings)

    def export_litert(self, filepath: str | os.PathLike, **settings: Any) -> None:
        """Writes a file that adapts on a device; see `keras_maml.serving.on_device`."""
        self.exporters["litert"](self, filepath, **settings)

    def export_onnx(self, filepath: str | os.PathLike, **settings: Any) -> None:
        """Writes ONNX models that adapt; see `keras_maml.serving.onnx_export`."""
        self.exporters["onnx"](self, filepath, **settings)

    # --- inside -----------------------------------------------------------------------------

    def _inner_loop(self, run: Run) -> InnerLoop:
        """Returns the inner loop of evaluation, through which nothing differentiates."""
        steps = self.evaluation_steps
        # A loop is as fast as copies of a step and compiles sooner, but not for tasks at once.
        unrolled = steps < 2 or run.route == "vectorized"
        return InnerLoop(self.update_rule, steps if unrolled else tf.constant(steps, tf.int32))

    def _map_tasks(
        self,
        run: Run,
        function: Callable[[Task, Parameters, Tensors], Any],
        episodes: Any,
        batch_normalization: str | None = None,
    ) -> Any:
        """Maps ``function(task, parameters, the task's state)`` over the tasks."""
        theta = self.parameters()
        objective = self.objective(route=run.route, batch_normalization=batch_normalization)

        def one(element: Any) -> Any:
            state, episode = element
            return function(objective.task(*episode), theta, state)

        return joined(self._over_tasks(run, functools.partial(run.map, one), episodes))

    def _over_tasks(self, run: Run, of_slice: Callable[[Any], Any], episodes: Any) -> list[Any]:
        """Calls ``of_slice((states, episodes))`` for the slices of a meta-batch."""

        def of_numbers(elements: Any) -> Any:
            numbers, episodes = elements
            return of_slice((task_states(state_variables(self.model), numbers), episodes))

        return run.over_tasks(of_numbers, (run.numbers(count_tasks(episodes)), episodes))

    def _joined(self, results: list[Any]) -> Any:
        """Joins the results of slices, and adds up their shares, as `trainable_variables` are."""
        before, after, shares, states = zip(*results, strict=True)
        totals = [tf.add_n(of_weight) for of_weight in zip(*shares, strict=True)]
        # Without task_chunk there is but one share, and taking it is free.
        gradients = [t[0] if t.shape[0] == 1 else tf.reduce_sum(t, 0) for t in totals]
        pairs = zip(self.partition().trained, gradients, strict=True)
        by_variable = {id(variable): gradient for variable, gradient in pairs}
        gradients = [by_variable[id(variable)] for variable in self.trainable_variables]
        return *joined([*zip(before, after, strict=True)]), gradients, states[0]
