"""The signatures of a learner, traced: functions of named tensors, without state of their own."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_maml import validation
from keras_maml.algorithm.inner_loop import Carry
from keras_maml.execution import tracing
from keras_maml.execution.functional import as_tensors, state_variables
from keras_maml.execution.tasks import Run, RunOfAnySize
from keras_maml.learners import checks
from keras_maml.learners.maml import MAML
from keras_maml.serving.fast_weights import IN_TURNS, ServedLearner
from keras_maml.serving.signatures import (
    Specs,
    checked,
    checked_vectors,
    in_range,
    named,
    named_outputs,
    plain,
    unchecked,
    with_open_sizes,
    with_tasks,
)

SIGNATURES = ("adapt_and_predict", "adapt", "predict_with")

Inputs = dict[str, tf.Tensor]
Function = tf.types.experimental.ConcreteFunction


class Tracer:
    """Traces the signatures of a learner.

    Args:
        served: The learner.
        steps: The inner steps of signatures that do not ask for them.

    Attributes:
        requests: An example of a request for each signature traced so far.

    Raises:
        ValueError: ``steps`` is not an integer of at least 0.

    Example:
        >>> from keras_maml import MAML
        >>> learner = MAML(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
        >>> learner.compile(loss="mean_squared_error")
        >>> adapted = learner.adapt(tf.ones([5, 2]), tf.ones([5, 1]))
        >>> tracer = Tracer(ServedLearner(learner), steps=1)
        >>> sorted(tracer.of_any_size(["predict_with"]))
        ['predict_with', 'serving_default']
        >>> {name: array.shape for name, array in tracer.requests["predict_with"].items()}
        {'x': (1, 1, 2), 'weights': (1, 3)}
    """

    def __init__(self, served: ServedLearner, steps: int) -> None:
        validation.check_count("steps", steps)
        self.served, self.steps = served, int(steps)
        self.requests: dict[str, dict[str, np.ndarray]] = {}
        learner = served.learner
        self._bounds = bounds_of(learner, build_loss(learner))
        self._seen = plain(learner.support_spec)
        self._open = with_open_sizes(learner.model, *self._seen)

    def of_any_size(self, signatures: Sequence[str] = SIGNATURES) -> dict[str, Function]:
        """Traces signatures for any number of tasks, examples and queries.

        Args:
            signatures: Which; ``serving_default`` is always there.

        Returns:
            The functions by name; those that adapt have one more each, with the number of steps.
        """
        served, functions = self.served, {}
        specs, examples = self._specs(self._open), self._specs(self._seen, 1, 1, 1)
        at_once = IN_TURNS if served.learner.task_map == "sequential" else RunOfAnySize()

        def predict(inputs: Inputs) -> Inputs:
            theta = served.learner.parameters()
            state = as_tensors(state_variables(served.learner.model))
            carry = Carry(theta.initial, state=state)
            x = self._x(specs["default"], inputs)
            return named_outputs(served.learner.objective().forward(theta, carry, x).predictions)

        def adapt_and_predict_steps(inputs: Inputs) -> Inputs:
            inputs = self._with_steps(checked(inputs, specs["support"], specs["query"]))
            support, x_query = self._support(inputs), self._x(specs["query"], inputs)
            return named_outputs(served.adapt_and_predict(support, x_query, inputs["steps"]))

        # A call of the other signature, whose graph the SavedModel then holds once.
        def adapt_and_predict(inputs: Inputs) -> Inputs:
            tasks = tf.shape(next(iter(inputs.values())))[:1]
            call = functions["adapt_and_predict_steps"]
            return call(**inputs, steps=tf.fill(tasks, self.steps))

        def adapt(inputs: Inputs) -> Inputs:
            support = self._support(checked(inputs, specs["support"]))
            return {"weights": served.adapt(support, self.steps, at_once)}

        def adapt_steps(inputs: Inputs) -> Inputs:
            inputs = self._with_steps(checked(inputs, specs["support"]))
            return {"weights": served.adapt(self._support(inputs), inputs["steps"])}

        def predict_with(inputs: Inputs) -> Inputs:
            inputs = checked(inputs, specs["x"])
            weights = checked_vectors(inputs, "weights", next(iter(specs["x"])), served.size)
            return named_outputs(served.predict_with(weights, self._x(specs["x"], inputs), at_once))

        wanted = [("serving_default", predict, ["default"])]
        if "adapt_and_predict" in signatures:
            kinds = ["support", "query"]
            wanted += [
                ("adapt_and_predict_steps", adapt_and_predict_steps, [*kinds, "steps"]),
                ("adapt_and_predict", adapt_and_predict, kinds),
            ]
        if "adapt" in signatures:
            wanted.append(("adapt", adapt, ["support"]))
            wanted.append(("adapt_steps", adapt_steps, ["support", "steps"]))
        if "predict_with" in signatures:
            wanted.append(("predict_with", predict_with, ["x", "weights"]))
        for name, function, kinds in wanted:
            inputs = functools.reduce(operator.or_, [specs[kind] for kind in kinds])
            example = functools.reduce(operator.or_, [examples[kind] for kind in kinds])
            functions[name] = self._trace(name, function, inputs, example)
        return functions

    def of_fixed_sizes(
        self, signatures: Sequence[str], sizes: tuple[int, int, int], jit_compile: bool
    ) -> dict[str, Function]:
        """Traces signatures in which tasks run as in training: at once unless turns are faster.

        Args:
            signatures: Which.
            sizes: The numbers of tasks, support examples and queries.
            jit_compile: Whether XLA compiles them.

        Returns:
            The functions, by names such as ``adapt_1x5``.
        """
        served, (tasks, examples, queries) = self.served, sizes
        specs = self._specs(self._seen, *sizes)

        def adapt_and_predict(run: Run, inputs: Inputs) -> Inputs:
            parts = self._support(inputs), self._x(specs["query"], inputs)
            return named_outputs(served.adapt_and_predict(*parts, self.steps, run))

        def adapt(run: Run, inputs: Inputs) -> Inputs:
            return {"weights": served.adapt(self._support(inputs), self.steps, run)}

        def predict_with(run: Run, inputs: Inputs) -> Inputs:
            x = self._x(specs["x"], inputs)
            return named_outputs(served.predict_with(inputs["weights"], x, run))

        kinds = {
            "adapt_and_predict": (adapt_and_predict, specs["support"] | specs["query"], sizes),
            "adapt": (adapt, specs["support"], (tasks, examples)),
            "predict_with": (predict_with, specs["x"] | specs["weights"], (tasks, queries)),
        }
        functions = {}
        for kind in signatures:
            step, inputs, numbers = kinds[kind]
            function = functools.partial(
                self._compiled, step, inputs, jit_compile, max(numbers[1:])
            )
            name = f"{kind}_{'x'.join(map(str, numbers))}"
            functions[name] = self._trace(name, function, inputs, inputs)
        return functions

    def _compiled(
        self, step: Callable, specs: Specs, jit_compile: bool, examples: int, inputs: Inputs
    ) -> Inputs:
        # A program that XLA compiles has no room for messages: shapes are checked before.
        hidden = unchecked(inputs)
        inputs = {name: tf.ensure_shape(hidden[name], specs[name].shape) for name in specs}
        tasks = self.served.learner.tasks
        return tasks.call(step, inputs, jit_compile=jit_compile, examples=examples)

    def _specs(
        self,
        spec: Any,
        tasks: int | None = None,
        examples: int | None = None,
        queries: int | None = None,
    ) -> dict[str, Specs]:
        """Returns the specifications of all inputs, by the kind of input and by name."""
        x, y = spec
        served = self.served
        support = named("x_support", x) | named("y_support", y)
        default = {
            name: tf.TensorSpec([queries, *spec.shape[1:]], spec.dtype)
            for name, spec in named("x", x).items()
        }
        return {
            "default": default,
            "support": with_tasks(support, tasks, examples),
            "query": with_tasks(named("x_query", x), tasks, queries),
            "x": with_tasks(named("x", x), tasks, queries),
            "weights": {"weights": tf.TensorSpec([tasks, served.size], served.dtype)},
            "steps": {"steps": tf.TensorSpec([tasks], tf.int32)},
        }

    def _with_steps(self, inputs: Inputs) -> Inputs:
        steps = checked_vectors(inputs, "steps", next(iter(self._specs(self._seen)["support"])))
        message = ["steps must be at least 0, got", steps]
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(steps >= 0), message)]):
            return inputs | {"steps": tf.identity(steps)}

    def _support(self, inputs: Inputs) -> Any:
        names = self._specs(self._seen)["support"]
        return keras.tree.pack_sequence_as(self._seen, [inputs[name] for name in names])

    def _x(self, names: Specs, inputs: Inputs) -> Any:
        return keras.tree.pack_sequence_as(self._seen[0], [inputs[name] for name in names])

    def _trace(self, name: str, function: Callable, specs: Specs, examples: Specs) -> Function:
        self.requests[name] = {
            key: np.full(
                spec.shape, b"" if spec.dtype == tf.string else 0, spec.dtype.as_numpy_dtype
            )
            for key, spec in examples.items()
        }
        call = tracing.function(lambda **inputs: function(in_range(inputs, self._bounds)))
        return call.get_concrete_function(**specs)


def bounds_of(learner: MAML, predictions: Any) -> dict[str, int]:
    """Returns what the classes and the tokens of a request must be below, by the input's name.

    Args:
        learner: A compiled learner that has seen an episode.
        predictions: Those of an example, which say how many classes there are.
    """
    x, _ = plain(learner.support_spec)
    sizes = [size for *_, size in checks.embedded(x, checks.vocabulary_of(learner.model))]
    bounds = {"y_support": checks.sparse_classes(learner.loss, predictions)}
    for name in ("x_support", "x_query", "x"):
        bounds |= named(name, keras.tree.pack_sequence_as(x, sizes))
    return {name: bound for name, bound in bounds.items() if bound is not None}


def build_loss(learner: MAML) -> Any:
    """Lets Keras build the loss, which it does at the first call, and not inside a graph.

    Returns:
        Predictions of the example that it is built with.
    """
    x, y = keras.tree.map_structure(
        lambda spec: tf.zeros((1, *spec.shape[1:]), spec.dtype), plain(learner.support_spec)
    )
    theta, state = learner.parameters(), as_tensors(state_variables(learner.model))
    objective = learner.objective()
    carry = Carry(theta.initial, state=state)
    predictions = objective.forward(theta, carry, x).predictions
    objective.losses(theta, carry, y, predictions, None)
    return predictions
