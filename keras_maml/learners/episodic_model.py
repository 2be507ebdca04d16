"""Keras models that are trained, evaluated and used on episodes."""

import copy
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_maml import validation
from keras_maml.algorithm.objective import Outcome
from keras_maml.execution import forms
from keras_maml.execution.functional import (
    examples,
    merge_tasks,
    with_masks,
)
from keras_maml.execution.workers import Workers
from keras_maml.learners import agreement, checks, inputs, specs
from keras_maml.learners.backup import BackupAndRestore
from keras_maml.learners.compiled_model import CompiledModel, spec_of
from keras_maml.learners.metrics import MetricsBefore, clone_metrics, stateless_loss
from keras_maml.learners.non_finite import StopOnNonFinite
from keras_maml.learners.settings import Setting
from keras_maml.learners.without_xla import without_xla_where_it_fails
from keras_maml.private_keras import (
    CompileMetrics,
    flatten_layers,
    no_automatic_dependency_tracking,
)

_log = logging.getLogger("keras_maml")


class EpisodicModel(CompiledModel):
    """A model around another model, whose `fit` takes episodes instead of batches.

    Checks what comes in, builds what is not built, and keeps the loss and the metrics of the
    query set before and after adaptation. Subclasses define `train_step`, `test_step` and
    `predict_step`.

    Args:
        model: Any `keras.Model`.
        **kwargs: Of `CompiledModel`.
    """

    workers = Setting(agreement.check_workers)

    def __init__(self, model: keras.Model, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        self.workers = None
        self._agreed = False  # whether workers have had the same weights
        self.support_spec = None
        self._metrics_before = None
        self._known = {}  # by specification: classes and support set of episodes built for
        self._ranks = None  # of the arrays of episodes that programs were traced for
        self._trained = None  # what was trainable when programs were traced
        self._loss_before = keras.metrics.Mean("loss_before")
        # Held while the model gets another number of classes, or programs are made for one.
        self.changing = threading.RLock()

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration, with the shapes of the support set once they are known."""
        spec = self.support_spec
        if spec is not None:
            spec = keras.tree.map_structure(
                lambda t: keras.KerasTensor(t.shape, t.dtype.name), spec
            )
        return {
            **super().get_config(),
            "support_spec": keras.saving.serialize_keras_object(spec),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict | None = None):
        """Builds the learner from `get_config`."""
        config = dict(config)
        spec = keras.saving.deserialize_keras_object(config.pop("support_spec", None))
        learner = super().from_config(config, custom_objects)
        if spec is not None:
            learner.support_spec = keras.tree.map_structure(
                lambda t: tf.TensorSpec(t.shape, t.dtype), keras.tree.lists_to_tuples(spec)
            )
        return learner

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """All metrics, those before adaptation included."""
        before = [] if self._metrics_before is None else [self._metrics_before]
        return super().metrics + before

    @no_automatic_dependency_tracking  # the metrics of an earlier call must not stay around
    def compile(
        self,
        *args: Any,
        jit_compile: bool = True,
        workers: Workers | None = None,
        **kwargs: Any,
    ) -> None:
        """Configures the learner as `keras.Model.compile` does, with XLA on by default.

        Args:
            *args: As in `keras.Model.compile`: optimizer, loss, loss_weights, metrics...
            jit_compile: Whether XLA compiles the training, test and predict steps.
            workers: The processes that train the learner together, each on its share of every
                meta-batch; None for this one alone. It is not saved: a learner that was loaded
                gets it by ``learner.workers = workers``.
            **kwargs: As in `keras.Model.compile`.

        Raises:
            NotImplementedError: The learner is built or compiled in the scope of a strategy of
                `tf.distribute` for several replicas.
        """
        checks.check_one_replica((self, self.model), "compile")
        if kwargs.get("run_eagerly"):
            jit_compile = False
        # Keras keeps the loss and the metrics of an earlier call that are not given again.
        self._compile_loss = self._compile_metrics = None
        self.workers, self._agreed = workers, False
        super().compile(*args, jit_compile=jit_compile, **kwargs)
        self._compiled_functions = {}
        self._known = {}
        self._ranks = None
        self._metrics_before = None
        if self._compile_metrics is not None:
            settings = self._compile_config.config
            self._metrics_before = MetricsBefore(
                settings["metrics"],
                settings["weighted_metrics"],
                getattr(self, "output_names", None),
            )

    @property
    def several_workers(self) -> Workers | None:
        """The workers, if there are others than this process."""
        return self.workers if self.workers is not None and self.workers.count > 1 else None

    @property
    def steps_per_execution(self) -> int:
        """How many steps one call takes, see `keras.Model.compile`; of several workers, one."""
        # TensorFlow fails to run an all-reduce in Keras's loop over steps.
        return 1 if self.several_workers else self._steps_per_execution

    @steps_per_execution.setter
    def steps_per_execution(self, steps: int) -> None:
        self._steps_per_execution = steps

    def agreed_before(self, caller: str) -> bool:
        """Returns whether workers go on with a method without comparing anything first.

        Args:
            caller: The name of the method. In steps of one batch each, one message a step is
                enough.
        """
        return self._agreed and caller.endswith("_on_batch")

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a loaded learner as it was when it was saved."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def compiler(self) -> Callable[[keras.Model], None]:
        """Returns what compiles other models as this one is compiled now."""
        config, optimizer = self._compile_config.config, self.optimizer
        config = {**config, "jit_compile": self.jit_compile}  # off once XLA has refused the model

        def compile_model(model: keras.Model) -> None:
            of_its_own = type(optimizer).from_config(optimizer.get_config())
            metrics = {n: clone_metrics(config[n]) for n in ("metrics", "weighted_metrics")}
            model.compile(**{**config, **metrics, "optimizer": of_its_own})

        return compile_model

    @agreement.of_all_workers
    def build_on(self, episodes: Any) -> None:
        """Checks episodes and builds model, metrics and optimizer for them, without training.

        Needed before `load_weights`, which fills only what is there.

        Args:
            episodes: As in `fit`.

        Raises:
            ValueError: The episodes are malformed, or the learner is not compiled.
        """
        self._prepare(episodes, None, "build_on")

    @agreement.of_all_workers
    @without_xla_where_it_fails
    def fit(
        self,
        x: Any = None,
        y: None = None,
        *,
        batch_size: int | None = None,
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: dict[int, float] | None = None,
        sample_weight: Any = None,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Meta-trains on episodes, as `keras.Model.fit` trains on batches.

        Args:
            x: A `tf.data.Dataset` or `keras.utils.PyDataset` of meta-batches, a generator of them,
                or arrays: one meta-batch ``((x_support, y_support), (x_query, y_query))``. A
                `PyDataset` is told where every pass over it begins and ends.
            y: Must be None: the targets are in the episodes.
            batch_size: Tasks per meta-batch, of arrays; by default all of them.
            callbacks: Any Keras callbacks. Training that meets a loss or meta-gradient that is
                not finite stops there with the last good weights and says at which step.
            validation_split: The share of the tasks of arrays to validate with: the last ones.
            validation_data: Episodes to validate with, of any kind that ``x`` may be.
            shuffle: Whether to shuffle the tasks of arrays that ``batch_size`` cuts up.
            class_weight: Weights of the examples of each class, in support and query sets. Where
                there are targets by position, as of pixels, a sparse loss or a last axis of size 1
                says that they are labels, and positions are weighted.
            sample_weight: Weights ``(support, query)`` of the examples of arrays. Weights may as
                well be a third entry of a support or query set.
            steps_per_epoch: As in `keras.Model.fit`; needed for data that do not end.
            validation_steps: As in `keras.Model.fit`.
            validation_batch_size: Tasks per meta-batch of validation; by default ``batch_size``.
            **kwargs: ``epochs``, ``initial_epoch``, ``verbose`` and ``validation_freq``.

        Returns:
            The `keras.callbacks.History`.

        Raises:
            ValueError: The episodes are malformed, or an argument has no meaning for data of their
                kind.
            FloatingPointError: The loss or the meta-gradient was not finite.
        """
        if self.several_workers:
            cut = batch_size is not None and shuffle
            for name, given in (("validation_split", validation_split), ("shuffle=True", cut)):
                if given:
                    raise ValueError(
                        f"fit on {self.workers.count} workers does not take {name} with arrays, "
                        "which every worker would apply to its share alone. Give each worker its "
                        "shares of the data to train and to validate with, and shuffle=False."
                    )
        if validation_split:
            if validation_data is not None:
                raise ValueError("Pass either validation_split or validation_data, not both.")
            x, validation_data = inputs.split_tasks(x, validation_split, sample_weight)
            sample_weight = None  # each task has its own now
        training = self._prepare(
            x,
            y,
            "fit",
            batch_size=batch_size,
            shuffle=shuffle,
            class_weight=class_weight,
            sample_weight=sample_weight,
        )
        _check_ends(training, steps_per_epoch, "fit", "steps_per_epoch")
        if validation_data is not None:
            of_arrays = isinstance(validation_data, (tuple, list))
            size = validation_batch_size or (batch_size if of_arrays else None)
            validation_data = self._prepare(
                validation_data, None, "validation_data", batch_size=size
            )
            _check_ends(validation_data, validation_steps, "validation_data", "validation_steps")
        first, last = self.own_callbacks()
        first = [*self._end_together(), *first]
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = callbacks.callbacks  # in a list of its own Keras calls all of them in turn
        callbacks = [*self._with_own(first, callbacks), *last, StopOnNonFinite()]
        try:
            with checks.input_errors():
                return super().fit(
                    training,
                    callbacks=callbacks,
                    validation_data=validation_data,
                    shuffle=False,  # Keras warns that it cannot shuffle a dataset
                    steps_per_epoch=steps_per_epoch,
                    validation_steps=validation_steps,
                    **kwargs,
                )
        finally:
            for callback in callbacks:
                if isinstance(callback, BackupAndRestore):
                    callback.release()

    @agreement.of_all_workers
    @without_xla_where_it_fails
    def evaluate(
        self,
        x: Any = None,
        y: None = None,
        batch_size: int | None = None,
        *,
        sample_weight: Any = None,
        class_weight: dict[int, float] | None = None,
        steps: int | None = None,
        return_dict: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Returns query loss and metrics before and after adaptation, over the episodes.

        Args:
            x: Episodes, as in `fit`.
            y: Must be None: the targets are in the episodes.
            batch_size: Tasks per meta-batch, of arrays.
            sample_weight: As in `fit`.
            class_weight: As in `fit`.
            steps: As in `keras.Model.evaluate`.
            return_dict: Whether to return the results by name.
            **kwargs: ``verbose`` and ``callbacks``.

        Returns:
            The results by name, or a list in the order of `metrics_names`.
        """
        if kwargs.get("_use_cached_eval_dataset"):  # inside fit, which has prepared them
            return super().evaluate(x, steps=steps, return_dict=return_dict, **kwargs)
        weights = {"sample_weight": sample_weight, "class_weight": class_weight}
        data = self._prepare(x, y, "evaluate", batch_size=batch_size, **weights)
        _check_ends(data, steps, "evaluate", "steps")
        kwargs["callbacks"] = self._with_own(self._end_together(), kwargs.get("callbacks"))
        with checks.input_errors():
            results = super().evaluate(data, steps=steps, return_dict=True, **kwargs)
        return results if return_dict else self._as_list(results)

    @agreement.of_all_workers
    @without_xla_where_it_fails
    def predict(
        self, x: Any, batch_size: int | None = None, *, steps: int | None = None, **kwargs: Any
    ) -> Any:
        """Returns the query predictions after adapting to each task's support set.

        Args:
            x: Episodes; the query sets need no targets: ``((x_support, y_support), (x_query,))``.
            batch_size: Tasks per meta-batch, of arrays.
            steps: As in `keras.Model.predict`.
            **kwargs: ``verbose`` and ``callbacks``.

        Returns:
            A NumPy array ``[tasks, queries, ...]``, or a nest of such.
        """
        data = self._prepare(x, None, "predict", batch_size=batch_size)
        _check_ends(data, steps, "predict", "steps")
        kwargs["callbacks"] = self._with_own(self._end_together(), kwargs.get("callbacks"))
        with checks.input_errors():
            return super().predict(data, steps=steps, **kwargs)

    @property
    def metrics_names(self) -> list[str]:
        """The names of what `evaluate` returns as a list; `train_on_batch` has one more."""
        return self._metrics_names(self.metrics)

    def _metrics_names(self, metrics: list[keras.metrics.Metric]) -> list[str]:
        names = []
        for metric in metrics:
            if isinstance(metric, MetricsBefore):
                names += [f"{one.name}_before" for one in metric.metrics]
            elif isinstance(metric, CompileMetrics):
                names += [one.name for one in metric.metrics]
            elif metric.name != "gradient_norm":
                names.append(metric.name)
        return names

    def _as_list(self, results: dict[str, Any]) -> list[Any]:
        names = self.metrics_names
        return [results[name] for name in (*names, *(results.keys() - {*names})) if name in results]

    @agreement.of_all_workers
    @without_xla_where_it_fails
    def train_on_batch(
        self,
        x: Any,
        y: None = None,
        sample_weight: Any = None,
        class_weight: dict[int, float] | None = None,
        *,
        return_dict: bool = False,
    ) -> Any:
        """Takes one meta-step, as `keras.Model.train_on_batch` takes a step.

        Args:
            x: One meta-batch as a nest of arrays, ``((x_support, y_support), (x_query, y_query))``.
            y: Must be None: the targets are in the episodes.
            sample_weight: As in `fit`.
            class_weight: As in `fit`.
            return_dict: Whether to return the results by name.

        Returns:
            The loss and the metrics of this meta-batch: a dict, or a list in the order of
            `metrics_names`, with ``gradient_norm`` as the last. If the loss or the meta-gradient
            is not finite, the loss says so and the weights stay as they are.

        Raises:
            ValueError: The meta-batch is malformed; nothing was trained.
        """
        weights = {"sample_weight": sample_weight, "class_weight": class_weight}
        batch = self._one_batch(x, y, "train_on_batch", **weights)
        self.make_train_function()
        return self._measured(self.train_function, batch, return_dict)

    @agreement.of_all_workers
    @without_xla_where_it_fails
    def test_on_batch(
        self, x: Any, y: None = None, sample_weight: Any = None, *, return_dict: bool = False
    ) -> Any:
        """Returns query loss and metrics of one meta-batch; see `train_on_batch`."""
        batch = self._one_batch(x, y, "test_on_batch", sample_weight=sample_weight)
        self.make_test_function()
        return self._measured(self.test_function, batch, return_dict)

    @agreement.of_all_workers
    @without_xla_where_it_fails
    def predict_on_batch(self, x: Any) -> Any:
        """Returns the query predictions for one meta-batch; see `predict`."""
        batch = self._one_batch(x, None, "predict_on_batch")
        self.make_predict_function()
        return keras.tree.map_structure(np.asarray, self.predict_function([*batch]))

    def _one_batch(self, x: Any, y: Any, caller: str, **how: Any) -> Iterator[Any]:
        if not isinstance(x, (tuple, list)):
            raise TypeError(
                f"{caller} takes one meta-batch of arrays, {validation.EPISODE}, got "
                f"{type(x).__name__}. Give its elements one by one, or call fit, evaluate or "
                "predict with all of them."
            )
        return iter(self._prepare(x, y, caller, **how))

    def _measured(self, function: Callable, batch: Iterator[Any], return_dict: bool) -> Any:
        self.reset_metrics()
        results = keras.tree.map_structure(lambda t: t.numpy().tolist(), function(batch))
        return results if return_dict else self._as_list(results)

    def _without_before(self, results: dict[str, Any]) -> dict[str, Any]:
        metrics = {} if self._metrics_before is None else self._metrics_before.result()
        names = {"loss_before", *metrics}
        return {name: value for name, value in results.items() if name not in names}

    def _update_metrics(self, before: Outcome | tuple[()], after: Outcome, query: Any) -> None:
        # A loss per task, so that a smaller last meta-batch counts as its tasks do.
        if before:
            self._loss_before.update_state(before.loss)
        if self._compile_loss is not None:
            for tracker, part in zip(self._compile_loss.metrics, after.by_output, strict=True):
                tracker.update_state(part)
        if self._compile_metrics is not None:
            _, y, sample_weight = map(merge_tasks, examples(query))
            for metrics, outcome in (
                (self._compile_metrics, after),
                (self._metrics_before, before),
            ):
                if outcome:
                    predictions, masks = merge_tasks((outcome.predictions, outcome.masks))
                    metrics.update_state(y, with_masks(predictions, masks), sample_weight)

    def _prepare(self, x: Any, y: Any, caller: str, **how: Any) -> tf.data.Dataset:
        """Checks episodes and builds whatever is not built; returns them as a dataset."""
        self._assert_compile_called(caller)
        checks.check_one_replica((self, self.model), caller)
        how["loss"] = self.loss
        dataset = inputs.meta_batches(x, y, caller=caller, **how)
        checks.check_episode_spec(dataset.element_spec)  # which may leave sizes open
        stream = not isinstance(x, tf.data.Dataset) or inputs.is_stream(x)
        with checks.input_errors():
            if isinstance(x, (tuple, list)):  # all of them, however they will be cut up
                whole = how | {"batch_size": None}
                episode = next(iter(inputs.meta_batches(x, y, caller=caller, **whole)))
            elif not stream:
                episode = next(iter(dataset.take(1)), None)
            elif self.built_by_values:
                dataset, episode = inputs.with_first(dataset)
            else:  # reading it would lose what was read, or take a way through Python
                episode = inputs.of_spec(dataset.element_spec, caller)
        if episode is None:
            raise ValueError(f"{caller} got a dataset without a single episode.")
        classes, vocabulary = self._check(episode, caller)
        if self.several_workers and not self.agreed_before(caller):
            read = isinstance(x, (tuple, list)) or not inputs.is_stream(dataset)
            first = episode if read else None
            agreement.agree(self, self.workers, dataset, first, caller)
            if not self._agreed and self._steps_per_execution != 1 and self.workers.index == 0:
                _log.warning(
                    "steps_per_execution=%s counts as 1 on %s workers, who send a message in every "
                    "step; without it, compile spares this message.",
                    self._steps_per_execution,
                    self.workers.count,
                )
            self._agreed = True
        if isinstance(x, (tuple, list)):
            return dataset
        return checks.checked(dataset, classes, vocabulary)

    def _check_arrays(self, support: Any, query: Any, caller: str) -> Any:
        """Checks arrays of episodes, builds whatever is not built; returns them as tensors."""
        self._assert_compile_called(caller)
        checks.check_one_replica((self, self.model), caller)
        episode = inputs.arrays((support, query))
        self._check(episode, caller)
        return episode

    def _check(self, episode: Any, caller: str) -> tuple[int | None, checks.Vocabulary]:
        """Checks a meta-batch and builds whatever is not built for it.

        Returns:
            The bounds of integer targets and of integer inputs, if there are any.
        """
        trained = self._trainable_state()
        if trained != self._trained:  # layers were frozen, or are not any more
            self._trained = trained
            self.forget_programs()
        spec = spec_of(episode)
        known = self._known.get(str(spec))
        if known is None:
            checks.check_episode_spec(spec)
            ranks = [array.shape.rank for array in keras.tree.flatten(spec)]
            if ranks != self._ranks:  # which a program for several would lose sight of
                self._ranks = ranks
                self.forget_programs()
        if self.support_spec is not None:
            for half in spec:
                specs.check_bytes(self.support_spec[0], half[0])
        without_targets = caller.startswith("predict") or caller == "build_on"
        if self._compile_loss is not None and not without_targets:
            checks.check_query_targets(caller, spec)
        if known is None:
            checks.check_inputs(self.model, episode, caller)
            task = keras.tree.map_structure(lambda tensor: tensor[0], episode)
            classes, vocabulary = self._build_for(task, episode)
            support_spec = specs.support_spec(spec[0], self.model)
            known = self._known[str(spec)] = classes, vocabulary, support_spec
        else:
            checks.check_values(episode, *known[:2])
        if caller in ("fit", "train_on_batch"):
            checks.check_trainable(self, caller)
            checks.check_averages(self.optimizer, self)
        classes, vocabulary, support_spec = known
        self.support_spec = specs.with_floats_of(self.support_spec, support_spec)
        return classes, vocabulary

    def _trainable_state(self) -> Any:
        """Returns what programs depend on of being trainable.

        Variables alone do not say it: batch normalisation may have none to train.
        """
        variables = [*self.trainable_variables, *self.model.trainable_variables]
        flags = [layer.trainable for layer in flatten_layers(self.model)]
        return [id(variable) for variable in variables], flags

    def _build_for(self, task: Any, episode: Any) -> tuple[int | None, checks.Vocabulary]:
        """Builds model, loss, metrics and optimizer on one task; returns what bounds integers."""
        x_query, y_query, weight = examples(task[1])
        checks.check_values(episode, None, checks.vocabulary_of(self.model))
        predictions, patch_bytes = forms.first_call(self, x_query)
        classes = checks.sparse_classes(self.loss, predictions)
        vocabulary = checks.vocabulary_of(self.model)  # known once the model is built
        checks.check_targets(episode, classes, predictions)
        checks.check_values(episode, classes, vocabulary)
        if patch_bytes > self.patch_bytes:
            self.patch_bytes = self.tasks.patch_bytes = patch_bytes
        if y_query is not None:
            stateless_loss(self._compile_loss, y_query, predictions, weight)
            for metrics in (self._compile_metrics, self._metrics_before):
                if metrics is not None and not metrics.built:
                    metrics.build(y_query, predictions)
            checks.check_metrics(self._compile_metrics)
        self.build_parts()
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        return classes, vocabulary

    @property
    def built_by_values(self) -> bool:
        """Whether a learner is built by the values of episodes, not by their shapes alone."""
        return False

    def build_parts(self) -> None:
        """Builds what a learner trains besides the model, once that is built."""

    def _with_own(self, own: list[keras.callbacks.Callback], given: Any) -> Any:
        """Adds callbacks to those that a method was given."""
        if isinstance(given, keras.callbacks.CallbackList):
            given = copy.copy(given)  # the caller's may be used again
            given.callbacks = [*own, *given.callbacks]
            given.set_model(self)
            return given
        given = given if isinstance(given, Sequence) else [given]
        return [*own, *(callback for callback in given if callback)]

    def _end_together(self) -> list[keras.callbacks.Callback]:
        workers = self.several_workers
        return [] if workers is None else [agreement.EndTogether(workers)]

    def own_callbacks(
        self,
    ) -> tuple[list[keras.callbacks.Callback], list[keras.callbacks.Callback]]:
        """Returns what `fit` calls before and after the callbacks that it is given."""
        return [], []


def _check_ends(dataset: tf.data.Dataset, steps: int | None, caller: str, argument: str) -> None:
    if not steps and dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            f"{caller} got an endless dataset, and would never finish. Pass {argument}, the "
            "number of meta-batches to take, or a dataset that ends."
        )
