"""Keras models that are trained, evaluated and used on episodes."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.utils.tracking import no_automatic_dependency_tracking

from keras_maml import validation
from keras_maml.algorithm.meta_gradients import Outcome
from keras_maml.execution import compilation
from keras_maml.execution.functional import as_tensors, examples, is_seed, merge_tasks
from keras_maml.learners.adapted import TransductiveModel
from keras_maml.learners.metrics import MetricsBefore, clone_metrics, stateless_loss, with_masks
from keras_maml.learners.non_finite import StopOnNonFinite


class EpisodicModel(TransductiveModel):
    """A model around another model, whose `fit` takes episodes instead of batches.

    Checks what comes in, builds what is not built, and keeps the loss and the metrics of the
    query set before and after adaptation. Subclasses define `train_step`, `test_step` and
    `predict_step`.

    Args:
        model: Any `keras.Model`.
        **kwargs: Passed on to `keras.Model`.

    """

    def __init__(self, model: keras.Model, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        self.support_spec = None
        self._metrics_before = None
        self._compiled_functions = {}
        self._known = {}  # by specification: classes and support set of episodes built for
        self._loss_before = keras.metrics.Mean("loss_before")

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration, with the shapes of the support set once they are known."""
        spec = self.support_spec
        if spec is not None:
            spec = keras.tree.map_structure(
                lambda t: keras.KerasTensor(t.shape, t.dtype.name), spec
            )
        return {**super().get_config(), "support_spec": keras.saving.serialize_keras_object(spec)}

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
    def compile(self, *args: Any, jit_compile: bool = True, **kwargs: Any) -> None:
        """Configures the learner as `keras.Model.compile` does, with XLA on by default.

        Args:
            *args: As in `keras.Model.compile`: optimizer, loss, loss_weights, metrics...
            jit_compile: Whether XLA compiles the training, test and predict steps.
            **kwargs: As in `keras.Model.compile`.
        """
        if kwargs.get("run_eagerly"):
            jit_compile = False
        # Keras keeps the loss and the metrics of an earlier call that are not given again.
        self._compile_loss = self._compile_metrics = None
        super().compile(*args, jit_compile=jit_compile, **kwargs)
        self._compiled_functions = {}
        self._known = {}
        self._metrics_before = None
        if self._compile_metrics is not None:
            settings = self._compile_config.config
            self._metrics_before = MetricsBefore(settings["metrics"], settings["weighted_metrics"])

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a loaded learner as it was when it was saved."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def compile_arguments(self) -> dict[str, Any]:
        """Returns what another model is to be compiled with, to be measured as this one."""
        arguments = dict(self._compile_config.config)
        optimizer = self.optimizer
        arguments["optimizer"] = type(optimizer).from_config(optimizer.get_config())
        for name in ("metrics", "weighted_metrics"):
            arguments[name] = clone_metrics(arguments[name])
        return arguments

    def save_own_variables(self, store: dict[str, Any]) -> None:
        """Saves the random state of the layers, which Keras leaves out."""
        super().save_own_variables(store)
        for name, variable in self._seeds().items():
            store[name] = variable.numpy()

    def load_own_variables(self, store: dict[str, Any]) -> None:
        """Loads the random state of the layers."""
        seeds = self._seeds()
        names = set(store.keys())  # a store of Keras is no mapping
        super().load_own_variables({name: store[name] for name in names - seeds.keys()})
        for name, variable in seeds.items():
            if name in names:
                variable.assign(store[name][()])

    def _seeds(self) -> dict[str, keras.Variable]:
        seeds = filter(is_seed, self.model.non_trainable_variables)
        return {f"seed_{i}": variable for i, variable in enumerate(seeds)}

    def build_on(self, episodes: Any) -> None:
        """Checks episodes and builds model, metrics and optimizer for them, without training.

        Needed before `load_weights`, which fills only what is there.

        Args:
            episodes: As in `fit`.

        Raises:
            ValueError: The episodes are malformed, or the learner is not compiled.
        """
        self._check(episodes, "build_on")

    def fit(self, x: Any = None, y: None = None, *, callbacks: Any = None, **kwargs: Any) -> Any:
        """Meta-trains on episodes, as `keras.Model.fit` trains on batches.

        Args:
            x: A `tf.data.Dataset` of episodes, or one meta-batch as a nest of arrays.
            y: Must be None: the targets are in the episodes.
            callbacks: Any Keras callbacks. Training that meets a loss or meta-gradient that is
                not finite stops there with the last good weights and says at which step.
            **kwargs: ``epochs``, ``steps_per_epoch``, ``validation_data`` (episodes),
                ``validation_steps``, ``verbose`` and so on.

        Returns:
            The `keras.callbacks.History`.

        Raises:
            ValueError: The episodes are malformed; nothing was trained.
            FloatingPointError: The loss or the meta-gradient was not finite.
        """
        x = self._prepare(x, y, "fit")
        _check_ends(x, kwargs.get("steps_per_epoch"), "fit", "steps_per_epoch")
        if kwargs.get("validation_data") is not None:
            kwargs["validation_data"] = self._prepare(
                kwargs["validation_data"], None, "validation_data"
            )
            steps = kwargs.get("validation_steps")
            _check_ends(kwargs["validation_data"], steps, "validation_data", "validation_steps")
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            given = callbacks if isinstance(callbacks, Sequence) else [callbacks]
            callbacks = [*(callback for callback in given if callback), StopOnNonFinite()]
        kwargs.setdefault("shuffle", False)  # Keras warns that it cannot shuffle a dataset
        return super().fit(x, callbacks=callbacks, **kwargs)

    def evaluate(self, x: Any = None, y: None = None, **kwargs: Any) -> Any:
        """Returns query loss and metrics before and after adaptation, over the episodes."""
        if not kwargs.get("_use_cached_eval_dataset"):  # inside fit, which has prepared them
            x = self._prepare(x, y, "evaluate")
            _check_ends(x, kwargs.get("steps"), "evaluate", "steps")
        return super().evaluate(x, **kwargs)

    def predict(self, x: Any, **kwargs: Any) -> Any:
        """Returns the query predictions after adapting to each task's support set.

        Args:
            x: Episodes; the query sets need no targets: ``((x_support, y_support), (x_query,))``.
            **kwargs: As in `keras.Model.predict`.

        Returns:
            A NumPy array ``[tasks, queries, ...]``, or a nest of such.
        """
        x = self._prepare(x, None, "predict")
        _check_ends(x, kwargs.get("steps"), "predict", "steps")
        return super().predict(x, **kwargs)

    def train_on_batch(self, x: Any, y: None = None, *, return_dict: bool = False) -> Any:
        """Takes one meta-step, as `keras.Model.train_on_batch` takes a step.

        Args:
            x: One meta-batch as a nest of arrays, ``((x_support, y_support), (x_query, y_query))``.
            y: Must be None: the targets are in the episodes.
            return_dict: Whether to return the results by name.

        Returns:
            The loss and the metrics of this meta-batch: a dict, or a list as
            `keras.Model.train_on_batch` orders it. If the loss or the meta-gradient is not
            finite, the loss says so and the weights stay as they are.

        Raises:
            ValueError: The meta-batch is malformed; nothing was trained.
        """
        batch = self._one_batch(x, y, "train_on_batch")
        self.make_train_function()
        return self._measured(self.train_function, batch, return_dict)

    def test_on_batch(self, x: Any, y: None = None, *, return_dict: bool = False) -> Any:
        """Returns query loss and metrics of one meta-batch; see `train_on_batch`."""
        batch = self._one_batch(x, y, "test_on_batch")
        self.make_test_function()
        return self._measured(self.test_function, batch, return_dict)

    def predict_on_batch(self, x: Any) -> Any:
        """Returns the query predictions for one meta-batch; see `predict`."""
        batch = self._one_batch(x, None, "predict_on_batch")
        self.make_predict_function()
        return keras.tree.map_structure(np.asarray, self.predict_function([*batch]))

    def _one_batch(self, x: Any, y: Any, caller: str) -> Iterator[Any]:
        if isinstance(x, tf.data.Dataset):
            raise TypeError(
                f"{caller} takes one meta-batch of arrays, {validation.EPISODE}, got a dataset. "
                "Give its elements one by one, or call fit, evaluate or predict with all of them."
            )
        return iter(self._prepare(x, y, caller))

    def _measured(self, function: Callable, batch: Iterator[Any], return_dict: bool) -> Any:
        self.reset_metrics()
        results = keras.tree.map_structure(lambda t: t.numpy().tolist(), function(batch))
        return results if return_dict else self._flatten_metrics_in_order(results)

    def make_train_function(self, force: bool = False) -> None:
        """Makes what `fit` calls; see `keras_maml.execution.compilation` for how it is compiled."""
        with self._compiled_by_step():
            super().make_train_function(force)

    def make_test_function(self, force: bool = False) -> None:
        """Makes what `evaluate` calls, likewise."""
        with self._compiled_by_step():
            super().make_test_function(force)

    def make_predict_function(self, force: bool = False) -> None:
        """Makes what `predict` calls, likewise."""
        with self._compiled_by_step():
            super().make_predict_function(force)

    @contextlib.contextmanager
    def _compiled_by_step(self) -> Iterator[None]:
        """Keeps Keras from compiling a step as one program: a step may be several."""
        jit_compile, self.jit_compile = self.jit_compile, False
        try:
            yield
        finally:
            self.jit_compile = jit_compile

    def _without_before(self, results: dict[str, Any]) -> dict[str, Any]:
        metrics = {} if self._metrics_before is None else self._metrics_before.result()
        names = {"loss_before", *metrics}
        return {name: value for name, value in results.items() if name not in names}

    def _update_metrics(self, before: Outcome | tuple[()], after: Outcome, query: Any) -> None:
        # A loss per task, so that a smaller last meta-batch counts as its tasks do.
        if before:
            self._loss_before.update_state(before.loss)
        if self._compile_loss is not None:
            for tracker, part in zip(self._compile_loss.metrics, after.parts, strict=True):
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

    def _prepare(self, x: Any, y: Any, caller: str) -> tf.data.Dataset:
        """Checks episodes and builds whatever is not built; returns them as a dataset."""
        if y is not None:
            raise ValueError(
                f"{caller} takes episodes alone, {validation.EPISODE}: the targets are in them."
            )
        episode = self._check(x, caller)
        if isinstance(x, tf.data.Dataset):
            return x
        # A dataset would stack the entries of a list.
        return tf.data.Dataset.from_tensors(keras.tree.lists_to_tuples(episode))

    def _check(self, x: Any, caller: str) -> Any:
        """Checks episodes, builds whatever is not built; returns the first of them as tensors."""
        self._assert_compile_called(caller)
        if isinstance(x, tf.data.Dataset):
            validation.check_episode_spec(x.element_spec)  # which may leave sizes open
            episode = next(iter(x.take(1)), None)
            if episode is None:
                raise ValueError(f"{caller} got a dataset without a single episode.")
        elif isinstance(x, (tuple, list)):
            episode = as_tensors(x)
        else:
            raise TypeError(
                f"{caller} takes a tf.data.Dataset of episodes, {validation.EPISODE}, or one "
                f"such meta-batch of arrays, got {type(x).__name__}. Wrap a generator with "
                "tf.data.Dataset.from_generator."
            )
        spec = _spec_of(episode)
        known = self._known.get(str(spec))
        if known is None:
            validation.check_episode_spec(spec)
        without_targets = caller.startswith("predict") or caller == "build_on"
        if self._compile_loss is not None and not without_targets:
            validation.check_query_targets(caller, spec)
        if known is None:
            task = keras.tree.map_structure(lambda tensor: tensor[0], episode)
            classes = validation.sparse_classes(self.loss, self._build_for(task))
            support_spec = keras.tree.map_structure(
                lambda t: tf.TensorSpec((None, *t.shape[2:]), t.dtype), tuple(examples(spec[0])[:2])
            )
            known = self._known[str(spec)] = classes, support_spec
        classes, self.support_spec = known
        validation.check_values(episode, classes)
        return episode

    def _build_for(self, task: Any) -> Any:
        """Builds model, loss, metrics and optimizer on one task; returns its predictions."""
        x_query, y_query, weight = examples(task[1])
        with keras.StatelessScope():  # counters and seeds that a call would advance stay
            predictions = self(x_query)
        if y_query is not None:
            stateless_loss(self._compile_loss, y_query, predictions, weight)
            for metrics in (self._compile_metrics, self._metrics_before):
                if metrics is not None and not metrics.built:
                    metrics.build(y_query, predictions)
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        return predictions

    def _call(self, key: Any, function: Callable, *arguments: Any) -> Any:
        """Calls a function compiled as `compile` says, once per key and kind of arguments."""
        if self.run_eagerly:
            return function(*arguments)
        key = key, str(_spec_of(arguments))  # in less time than TensorFlow needs for it
        if key not in self._compiled_functions:
            compiled = tf.function(functools.partial(self._step, function), autograph=False)
            self._compiled_functions[key] = compiled.get_concrete_function(*arguments)
        return self._compiled_functions[key](*arguments)

    @property
    def _compiles(self) -> bool:
        return self.jit_compile and not self.run_eagerly

    def _step(self, function: Callable, *arguments: Any) -> Any:
        """Calls a step, compiled if `compile` says so."""
        if self._compiles:
            return compilation.compiled_step(function, *arguments)
        return function(*arguments)


def _check_ends(dataset: tf.data.Dataset, steps: int | None, caller: str, argument: str) -> None:
    if steps is None and dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            f"{caller} got an endless dataset, and would never finish. Pass {argument}, the "
            "number of meta-batches to take, or a dataset that ends."
        )


def _spec_of(episode: Any) -> Any:
    return keras.tree.map_structure(tf.TensorSpec.from_tensor, episode)
