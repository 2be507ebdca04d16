"""What adaptation leaves behind, as one vector for each task: all that a prediction needs later.

A customer is a vector: the fast weights of what the inner loop moves (of ANIL the head alone), the
inner step where layers take it, and, if the query is normalised inductively, the batch statistics
of the support set. All else is the learner's and the same for everybody.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Set
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_maml import validation
from keras_maml.algorithm.inner_loop import Carry, InnerLoop, Parameters
from keras_maml.algorithm.objective import BATCH_NORMALIZATIONS
from keras_maml.execution.forms import Route, batch_normalizations
from keras_maml.execution.functional import (
    as_tensors,
    is_seed,
    is_step,
    state_variables,
    task_states,
)
from keras_maml.execution.task_map import count_tasks, joined
from keras_maml.execution.tasks import Run
from keras_maml.learners.inputs import are_labels
from keras_maml.learners.maml import MAML
from keras_maml.private_keras import flatten_layers

IN_TURNS = Run()

# More inner steps become a loop: the graph of as many copies would be large, and slow to make.
MAX_UNROLLED_STEPS = 10


@dataclasses.dataclass(frozen=True)
class ServedLearner:
    """A learner as functions of many tasks, for programs that run outside of `MAML.predict`.

    Attributes:
        learner: A compiled learner that has seen an episode.
        batch_normalization: ``"transductive"`` or ``"inductive"``; None for the learner's own.

    Raises:
        ValueError: There is no such normalisation.

    Example:
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> learner = MAML(model, inner_learning_rate=0.1)
        >>> learner.compile(optimizer="adam", loss="mean_squared_error")
        >>> x = tf.random.normal([4, 10, 1])
        >>> adapted = learner.adapt(x[0], 2 * x[0])
        >>> served = ServedLearner(learner)
        >>> weights = served.adapt((x, 2 * x), steps=1)
        >>> weights.shape, served.size
        (TensorShape([4, 2]), 2)
        >>> served.predict_with(weights, x).shape
        TensorShape([4, 10, 1])
    """

    learner: MAML
    batch_normalization: str | None = None

    def __post_init__(self) -> None:
        if self.batch_normalization is not None:
            how = "batch_normalization", self.batch_normalization, BATCH_NORMALIZATIONS
            validation.check_choice(*how)

    @property
    def normalization(self) -> str:
        """``"transductive"`` or ``"inductive"``."""
        return self.batch_normalization or self.learner.batch_normalization

    @property
    def depends_on_other_queries(self) -> bool:
        """Whether a prediction changes with the queries that it is made together with."""
        return self.normalization == "transductive" and bool(
            batch_normalizations(self.learner.model)
        )

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables of which a vector holds a task's own values, in its order."""
        inductive = self.normalization == "inductive"
        state = [v for v in state_variables(self.learner.model) if not is_seed(v)]
        return [*self.learner.partition().initial, *(v for v in state if inductive or is_step(v))]

    @property
    def size(self) -> int:
        """How many numbers a vector has."""
        return sum(int(np.prod(v.shape)) for v in self.variables)

    @property
    def dtype(self) -> str:
        """The dtype of a vector: float32, or float64 if any of the variables is."""
        wide = any(keras.backend.standardize_dtype(v.dtype) == "float64" for v in self.variables)
        return "float64" if wide else "float32"

    def checksum(self) -> str:
        """Returns what identifies the learner: vectors of one with another are meaningless.

        Weights, where they are, what layers are set to, vocabularies, and how the query is
        normalised count; names, initializers, optimizer and the number of steps do not, and seeds
        of the user's own layers alone, whose constants may come from them. Nor does code, of
        lambdas and of layers of the user's own: it has no form that lasts.
        """
        digest = hashlib.sha256(self.normalization.encode())
        adapted = {id(variable) for variable in self.variables}
        for layer in flatten_layers(self.learner.model):
            digest.update(json.dumps(_facts(layer), sort_keys=True, default=_plain).encode())
        statistics = {id(variable) for variable in state_variables(self.learner.model)}
        for variable in self.learner.model.variables:
            digest.update(f"{variable.shape}{variable.dtype}{id(variable) in adapted}".encode())
            if id(variable) not in statistics:  # which no prediction reads
                digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable)).tobytes())
        return digest.hexdigest()[:32]

    def adapt(
        self,
        support: Any,
        steps: int | tf.Tensor,
        run: Run = IN_TURNS,
        every_step: bool = False,
    ) -> tf.Tensor:
        """Adapts to every task.

        Args:
            support: ``(x, y)``, nests of tensors ``[tasks, examples, ...]``.
            steps: The number of inner steps; a tensor ``[tasks]`` if each task has its own.
            run: How the tasks run; by default one after another.
            every_step: Whether to return the vectors before adaptation and after every step;
                then the number of steps is no tensor.

        Returns:
            ``[tasks, size]``, a vector for each task; or ``[tasks, steps + 1, size]``.
        """

        def one(task: Any, theta: Any, carry: Carry) -> tf.Tensor:
            return self._pack(self._with_statistics(task, theta, carry))

        return self._after_adaptation(one, support, (), steps, run, every_step)

    def adapt_and_predict(
        self,
        support: Any,
        x_query: Any,
        steps: int | tf.Tensor,
        run: Run = IN_TURNS,
    ) -> Any:
        """Adapts to every task and predicts its queries, as `MAML.predict_step` does.

        Args:
            support: ``(x, y)``, nests of tensors ``[tasks, examples, ...]``.
            x_query: A nest of tensors ``[tasks, queries, ...]``.
            steps: See `adapt`.
            run: See `adapt`.

        Returns:
            The predictions, ``[tasks, queries, ...]`` or a nest of such.
        """

        def one(task: Any, theta: Any, carry: Carry, x: Any) -> Any:
            return task.predict(theta, carry, x).predictions

        return self._after_adaptation(one, support, (x_query,), steps, run)

    def predict_with(
        self,
        weights: tf.Tensor,
        x: Any,
        run: Run = IN_TURNS,
    ) -> Any:
        """Predicts with what `adapt` returned.

        Args:
            weights: ``[tasks, size]``.
            x: A nest of tensors ``[tasks, queries, ...]``.
            run: See `adapt`.

        Returns:
            The predictions, ``[tasks, queries, ...]`` or a nest of such.
        """
        theta, objective = self.learner.parameters(), self._objective(run.route)
        batch_statistics = "batch" if self.normalization == "transductive" else "stored"

        def one(element: Any) -> Any:
            vector, x = element
            carry = self._unpack(vector)
            result = objective.forward(theta, carry, x, batch_statistics=batch_statistics)
            return result.predictions

        return _over_tasks(run, one, (weights, x))

    def _after_adaptation(self, function, support, rest, steps, run, every_step=False):
        """Maps ``function(task, parameters, carry, *rest)`` over adapted tasks."""
        learner, objective = self.learner, self._objective(run.route)
        own_steps = tf.is_tensor(steps)
        if not own_steps and not every_step and steps > MAX_UNROLLED_STEPS:
            steps = tf.constant(steps, tf.int32)

        def one(element: Any) -> Any:
            state, support, rest, of_task = element
            inner = InnerLoop(learner.update_rule, of_task[0] if own_steps else steps)
            task = objective.task(support)
            theta = self._for_classes_of(support)

            def measure(theta: Any, carry: Carry) -> Any:
                return function(task, theta, carry, *rest)

            if every_step:
                return inner.trajectory(task, theta, state, unrolled=True, measure=measure)
            return measure(theta, inner.adapt(task, theta, state))

        states = task_states(state_variables(learner.model), tf.range(count_tasks(support)))
        elements = states, support, rest, (steps,) if own_steps else ()
        return _over_tasks(run, one, elements)

    def _for_classes_of(self, support: Any) -> Parameters:
        """Returns the learner's parameters, with heads of any number of classes for these.

        A request may have fewer classes than the head was exported with.
        """
        theta, (_, y, *_) = self.learner.parameters(), support
        if not are_labels(y, axes=1):
            return theta
        own = {
            id(variable): value
            for layer in flatten_layers(self.learner.model)
            if hasattr(layer, "values_for")
            for variable, value in zip(
                layer.task_variables,
                layer.values_for(tf.cast(tf.reduce_max(y), tf.int32) + 1),
                strict=True,
            )
        }
        pairs = zip(self.learner.partition().initial, theta.initial, strict=True)
        return theta._replace(initial=[own.get(id(v), value) for v, value in pairs])

    def _objective(self, route: Route) -> Any:
        return self.learner.objective(route=route, batch_normalization=self.normalization)

    def _with_statistics(self, task: Any, theta: Any, carry: Carry) -> Carry:
        if self.normalization == "transductive":
            return carry
        return task.with_statistics(theta, carry)

    def _pack(self, carry: Carry) -> tf.Tensor:
        moved = [*self.learner.partition().initial, *state_variables(self.learner.model)]
        values = dict(zip(map(id, moved), [*carry.fast, *carry.state], strict=True))
        parts = [tf.reshape(values[id(variable)], [-1]) for variable in self.variables]
        return tf.concat([tf.cast(part, self.dtype) for part in parts], 0)

    def _unpack(self, vector: tf.Tensor) -> Carry:
        variables = self.variables
        parts = tf.split(vector, [int(np.prod(v.shape)) for v in variables])
        values = {
            id(v): tf.cast(tf.reshape(part, v.shape), v.dtype)
            for v, part in zip(variables, parts, strict=True)
        }
        state = state_variables(self.learner.model)
        others = zip(state, as_tensors(list(state)), strict=True)
        fast = [values[id(v)] for v in self.learner.partition().initial]
        return Carry(fast, state=[values.get(id(v), default) for v, default in others])


_NO_FACTS = {"name", "code", "build_config", "build_input_shape"}
_NO_FACTS_OF_OURS = _NO_FACTS | {"seed"}  # of dropout, of initializers: no prediction reads it
_OURS = ("keras", "keras_maml")
_VOCABULARY = {"vocabulary", "vocabulary_size"}  # of the constructor: adapt gives another


def _facts(layer: keras.layers.Layer) -> list[Any]:
    """Returns what a layer computes by, but for its variables."""
    try:
        config = layer.get_config()
    # A subclass that cannot be saved, or a model with a layer set to what Keras cannot write: the
    # layers count by themselves.
    except (NotImplementedError, TypeError):
        config = {}
    without = _NO_FACTS_OF_OURS if _is_ours(type(layer).__module__) else _NO_FACTS
    facts = [type(layer).__name__, _without_names(config, {}, without)]
    if hasattr(layer, "get_vocabulary"):
        facts += [layer.get_vocabulary(), getattr(layer, "idf_weights_const", None)]
    return facts


def _is_ours(module: Any) -> bool:
    return str(module).split(".")[0] in _OURS


def _without_names(config: Any, numbers: dict[str, int], without: Set[str]) -> Any:
    """Returns a configuration without what may differ between equal layers.

    Args:
        config: What `get_config` returned, or a part of it.
        numbers: What takes the place of names where a model says which layer follows which.
        without: What else is left out, by its key.
    """
    if isinstance(config, (list, tuple)):
        return [_without_names(part, numbers, without) for part in config]
    if not isinstance(config, dict):
        return config
    if _is_ours(config.get("module")):  # an object of Keras's among the settings of another's
        without = _NO_FACTS_OF_OURS
    if "output_layers" in config:
        numbers = {layer["name"]: number for number, layer in enumerate(config["layers"])}
    facts = {}
    for key, value in config.items():
        if key == "dtype":  # whose name is what it is
            facts[key] = value
        elif key in ("keras_history", "input_layers", "output_layers"):
            facts[key] = _numbered(value, numbers)
        elif key not in without | _VOCABULARY and not str(key).endswith("_initializer"):
            facts[str(key)] = _without_names(value, numbers, without)
    return facts


def _numbered(places: Any, numbers: dict[str, int]) -> Any:
    """Replaces the names of layers in places, ``[name, call, output]`` or a nest of such."""
    return keras.tree.map_structure(
        lambda part: numbers.get(part, part) if isinstance(part, str) else part, places
    )


def _plain(value: Any) -> Any:
    """Returns what JSON can hold of a setting: what arrays and sets hold, otherwise its name."""
    if isinstance(value, (np.ndarray, np.generic, tf.Tensor)):
        return np.asarray(value).tolist()
    if isinstance(value, Set):
        return sorted(map(repr, value))
    return getattr(value, "__name__", type(value).__name__)


def _over_tasks(run: Run, function: Callable[[Any], Any], elements: Any) -> Any:
    return joined(run.over_tasks(functools.partial(run.map, function), elements))
