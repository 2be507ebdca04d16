"""SavedModels that adapt where they are served, without Python.

The signatures take one task, ``[examples, ...]``, or a batch of tasks, ``[tasks, examples, ...]``:
their inputs have no fixed rank, and a missing task axis is added on the way in and taken off on
the way out. Tasks and inner steps are loops of plain TensorFlow operations.

The number of inner steps has a signature of its own: a SavedModel can give an input a default
value, but Python's loader refuses a request that leaves such an input out (TensorFlow 2.21).
"""

import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_maml import validation
from keras_maml.algorithm.inner_loop import Carry, InnerLoop
from keras_maml.execution.functional import as_tensors, state_variables, task_states
from keras_maml.execution.task_map import map_sequentially
from keras_maml.files import whole_folder
from keras_maml.learners.maml import MAML
from keras_maml.private_keras import flatten_layers

Specs = dict[str, tf.TensorSpec]


def export(
    learner: MAML,
    filepath: str | os.PathLike,
    *,
    steps: int | None = None,
    overwrite: bool = False,
    verbose: bool = True,
) -> None:
    """Writes a SavedModel for TensorFlow Serving: whole, or not at all.

    Its signatures, with the shapes of one task; a batch of tasks has one more leading axis,
    the tasks, on every input and output:

    - ``serving_default``: ``x [examples, ...]`` to the predictions of the meta-learned
      initialisation, as ``learner(x)``: batch normalisation takes the batch at hand. (This
      signature alone takes no task axis.)
    - ``adapt_and_predict``: ``x_support [examples, ...]``, ``y_support [examples, ...]`` and
      ``x_query [queries, ...]`` to the predictions for the queries after adaptation, as
      `learner.predict`.
    - ``adapt_and_predict_steps``: the same, and ``steps``, the number of inner steps: an int32
      scalar, or one number per task; 0 is the initialisation.

    The numbers of examples, queries and tasks are free; the shape and dtype of one example are
    those of the last episodes that the learner has seen. Nested inputs and targets are flattened
    to names such as ``x_support_left`` or ``x_support_0``. A single output is called
    ``predictions``; a dictionary of outputs keeps its keys; others are ``predictions_0`` and so
    on. Support examples have equal weights. Malformed requests fail with a message that says
    what was expected.

    Args:
        learner: A compiled learner that has seen an episode.
        filepath: The folder to write, on a local disk. TensorFlow Serving expects its last part
            to be a version number. Missing parents are created.
        steps: The inner steps of ``adapt_and_predict``; by default `evaluation_steps`.
        overwrite: Whether to replace a SavedModel that is already there.
        verbose: Whether to print where the SavedModel is and what its signatures take.

    Raises:
        FileExistsError: ``filepath`` exists; it is left as it is.
        ValueError: The learner is not compiled, has not seen an episode, or ``steps`` is not a
            number of steps.

    Example:
        >>> import tempfile
        >>> from keras_maml.learners.maml import MAML
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> learner = MAML(model, inner_learning_rate=0.1)
        >>> learner.compile(optimizer="adam", loss="mean_squared_error")
        >>> x = tf.random.normal([10, 1])
        >>> adapted = learner.adapt(x, 2 * x)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     learner.export(folder + "/line/1", verbose=False)
        ...     served = tf.saved_model.load(folder + "/line/1")
        >>> signature = served.signatures["adapt_and_predict"]
        >>> answer = signature(x_support=x, y_support=2 * x, x_query=tf.constant([[0.5], [3.0]]))
        >>> answer["predictions"].shape
        TensorShape([2, 1])

        A batch of four tasks, and another number of steps:

        >>> tasks = tf.random.normal([4, 5, 1])
        >>> signature = served.signatures["adapt_and_predict_steps"]
        >>> answer = signature(
        ...     x_support=tasks, y_support=3 * tasks, x_query=tasks, steps=tf.constant(2)
        ... )
        >>> answer["predictions"].shape
        TensorShape([4, 5, 1])
    """
    steps = learner.evaluation_steps if steps is None else steps
    validation.check_count("steps", steps)
    filepath = pathlib.Path(filepath)
    _check_destination(filepath, overwrite)
    if not learner.compiled:
        raise ValueError("export needs the loss of the inner steps: call compile before.")
    if learner.support_spec is None:
        raise ValueError(
            "export needs the shape and dtype of the support set, which the learner does not know "
            "yet: call fit, evaluate, build_on or adapt once before, or load a learner saved after "
            "that."
        )
    signatures = _signatures(learner, steps)
    module = tf.Module()
    variables = [v for signature in signatures.values() for v in signature.variables]
    module.served_variables = list({id(v): v for v in variables}.values())
    # Layers may hold resources other than variables, such as lookup tables. Not the whole model:
    # if it was compiled itself, its optimizer would be saved with it.
    module.layers = [
        layer for layer in flatten_layers(learner.model) if not isinstance(layer, keras.Model)
    ]
    with whole_folder(filepath, replace=overwrite) as folder:
        tf.saved_model.save(module, str(folder), signatures)
    if verbose:
        calls = [
            f"{name}({', '.join(sorted(signature.structured_input_signature[1]))})"
            for name, signature in signatures.items()
        ]
        print(f"Exported to {filepath}: {', '.join(calls)}")


# --- signatures ------------------------------------------------------------------------------


def _signatures(learner: MAML, steps: int) -> dict[str, tf.types.experimental.ConcreteFunction]:
    """Traces the signatures: functions of named tensors, without state of their own."""
    x_spec, y_spec = _plain(learner.support_spec)
    support = _named("x_support", x_spec) | _named("y_support", y_spec)
    query = _named("x_query", x_spec)
    _build_loss(learner)

    def predict(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        x = keras.tree.pack_sequence_as(x_spec, [inputs[name] for name in _named("x", x_spec)])
        theta = learner.parameters()
        state = as_tensors(state_variables(learner.model))
        result = learner.objective().forward(theta, Carry(theta.initial, state=state), x)
        return _outputs(result.predictions)

    def adapt_and_predict_steps(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        sets, axes = _with_task_axis(support, query, inputs)
        parts = keras.tree.pack_sequence_as((x_spec, y_spec, x_spec), list(sets.values()))
        predictions = _outputs(_predict_tasks(learner, inputs["steps"], *parts))
        return {
            name: tf.reshape(output, tf.concat([axes, tf.shape(output)[2:]], 0))
            for name, output in predictions.items()
        }

    # A call of the other signature, whose graph the SavedModel then holds once.
    def adapt_and_predict(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return with_steps(**inputs, steps=tf.constant(steps, tf.int32))

    sets = {name: tf.TensorSpec(None, spec.dtype) for name, spec in (support | query).items()}
    with_steps = _trace(adapt_and_predict_steps, sets | {"steps": tf.TensorSpec(None, tf.int32)})
    return {
        "serving_default": _trace(predict, _named("x", x_spec)),
        "adapt_and_predict": _trace(adapt_and_predict, sets),
        "adapt_and_predict_steps": with_steps,
    }


def _trace(function: Callable, specs: Specs) -> tf.types.experimental.ConcreteFunction:
    return tf.function(function, autograph=False).get_concrete_function(**specs)


def _predict_tasks(
    learner: MAML, steps: tf.Tensor, x_support: Any, y_support: Any, x_query: Any
) -> Any:
    """Adapts to each task and predicts its queries, as `MAML.predict_step` does."""
    theta, objective = learner.parameters(), learner.objective()
    tasks = tf.shape(keras.tree.flatten(x_query)[0])[0]
    valid = tf.debugging.Assert(tf.reduce_all(steps >= 0), ["steps must be at least 0, got", steps])
    with tf.control_dependencies([valid]):
        steps = tf.broadcast_to(steps, [tasks])

    def one(element: Any) -> Any:
        state, steps, support, x_query = element
        task = objective.task(support)
        carry = InnerLoop(learner.update_rule, steps).adapt(task, theta, state)
        return task.predict(theta, carry, x_query).predictions

    states = task_states(state_variables(learner.model), tf.range(tasks))
    return map_sequentially(one, (states, steps, (x_support, y_support), x_query))


def _build_loss(learner: MAML) -> None:
    """Lets Keras build the loss, which it does at the first call, and not inside a graph."""
    example = keras.tree.map_structure(
        lambda spec: tf.zeros((1, *spec.shape[1:]), spec.dtype), _plain(learner.support_spec)
    )
    theta, state = learner.parameters(), as_tensors(state_variables(learner.model))
    learner.objective().task(example).inner_loss(theta, Carry(theta.initial, state=state), 0)


def _named(name: str, nest: Any) -> dict[str, Any]:
    """Flattens inputs to names such as ``x_query_left``."""
    named = {}
    for path, leaf in keras.tree.flatten_with_path(nest):
        key = re.sub(r"\W", "_", "_".join(map(str, (name, *path))))
        if key in named:
            raise ValueError(f"Two inputs would both be called {key!r}: give them other names.")
        named[key] = leaf
    return named


def _outputs(predictions: Any) -> dict[str, tf.Tensor]:
    """Flattens predictions to names; a dictionary keeps its keys."""
    return {
        "_".join(map(str, path if isinstance(predictions, dict) else ("predictions", *path))): leaf
        for path, leaf in keras.tree.flatten_with_path(predictions)
    }


def _plain(nest: Any) -> Any:
    """Replaces the containers by which Keras tracks attributes, which models do not expect."""
    if isinstance(nest, dict):
        return {key: _plain(value) for key, value in nest.items()}
    return tuple(map(_plain, nest)) if isinstance(nest, (tuple, list)) else nest


# --- shapes ----------------------------------------------------------------------------------


def _with_task_axis(
    support: Specs, query: Specs, inputs: dict[str, tf.Tensor]
) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """Gives all inputs a task axis; fails if they do not fit each other.

    Returns:
        The inputs, ``[tasks, examples, ...]``, and the leading axes that the queries came with:
        ``[queries]`` or ``[tasks, queries]``.
    """
    specs = support | query
    axes = {name: _leading_axes(name, inputs[name], specs[name]) for name in specs}
    sizes = {name: tf.concat([[1], axes[name]], 0)[-2:] for name in specs}
    first_support, first_query = next(iter(support)), next(iter(query))

    def same(name: str, other: str, what: str, ours: tf.Tensor, theirs: tf.Tensor) -> tf.Operation:
        message = f"{name} must have as many {what} as {other}, got"
        return tf.debugging.Assert(tf.reduce_all(ours == theirs), [message, ours, "and", theirs])

    checks = [
        same(name, first, "tasks and examples", sizes[name], sizes[first])
        for names, first in ((support, first_support), (query, first_query))
        for name in names
        if name != first
    ]
    tasks = [sizes[name][0] for name in (first_query, first_support)]
    checks.append(same(first_query, first_support, "tasks", *tasks))
    with tf.control_dependencies(checks):
        sets = {}
        for name, spec in specs.items():
            shape = tf.concat([sizes[name], spec.shape[1:]], 0)
            sets[name] = tf.ensure_shape(
                tf.reshape(inputs[name], shape), [None, None, *spec.shape[1:]]
            )
    return sets, axes[first_query]


def _leading_axes(name: str, tensor: tf.Tensor, spec: tf.TensorSpec) -> tf.Tensor:
    """Returns the sizes before the feature axes: ``[examples]`` or ``[tasks, examples]``."""
    features = spec.shape[1:].as_list()
    shape = tf.shape(tensor)
    count = tf.rank(tensor) - len(features)
    fits = ((count == 1) | (count == 2)) & tf.reduce_all(shape > 0)
    fits &= tf.reduce_all(shape[count:] == tf.constant(features, tf.int32))
    inner = "".join(f", {size}" for size in features)
    message = f"{name} must have the shape [examples{inner}] or [tasks, examples{inner}], got"
    with tf.control_dependencies([tf.debugging.Assert(fits, [message, shape], summarize=9)]):
        return tf.identity(shape[:count])


# --- files -----------------------------------------------------------------------------------


def _check_destination(filepath: pathlib.Path, overwrite: bool) -> None:
    if not os.path.lexists(filepath) or (filepath.is_dir() and not any(filepath.iterdir())):
        return
    if not (filepath / "saved_model.pb").is_file():
        raise FileExistsError(
            f"{filepath} exists and is not a SavedModel: choose another folder, such as "
            f"{filepath / '1'}."
        )
    if not overwrite:
        raise FileExistsError(
            f"{filepath} already holds a SavedModel: choose another folder (the next version "
            "number), or pass overwrite=True to replace it."
        )
