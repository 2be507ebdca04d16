"""From a learner and the support set of one task to a model of its own.

A copy of the wrapped model takes the fast weights, when it is needed: until then, all that a
learner adapts predict with one program, and from then on each as Keras does.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_maml.algorithm.inner_loop import InnerLoop
from keras_maml.execution import tracing
from keras_maml.execution.forms import batch_normalizations
from keras_maml.execution.functional import (
    Tensors,
    as_tensors,
    forward,
    is_step,
    state_variables,
)
from keras_maml.learners.adapted import TransductiveModel, warn_of_one_alone
from keras_maml.learners.deferred import deferred
from keras_maml.learners.specs import check_bytes
from keras_maml.private_keras import flatten_layers

# From tensors of all variables of a model and its inputs to its predictions.
Program = Callable[[Tensors, Any], Any]

# Of each layer: whether it is trainable, and how many classes it has if that may change.
Traits = list[tuple[bool, int | None]]


def prepared(
    learner: Any, support: Any, steps: int, batch_normalization: str
) -> Callable[[], keras.Model]:
    """Returns what adapts to one task; see `keras_maml.MAML.adapt`.

    All that it needs of the learner's model is taken now: this may have another number of classes,
    or others of its layers frozen, later.

    Args:
        learner: A compiled `keras_maml.MAML`, built for the support set.
        support: The support set ``(x, y)``, tensors ``[examples, ...]``, with sample weights as an
            optional third.
        steps: The number of inner steps.
        batch_normalization: How the model normalises, ``"inductive"`` or ``"transductive"``.

    Returns:
        A function that returns the adapted copy of the learner's model, compiled as the learner is.
    """
    model, inductive = learner.model, batch_normalization == "inductive"
    transductive = not inductive and bool(batch_normalizations(model))
    kind = TransductiveModel if transductive else type(model)
    partition, states, variables = learner.partition(), state_variables(model), model.variables
    traits, compile_model = _traits(model), learner.compiler()
    adapt = _adaptation(learner, support, tf.constant(steps, tf.int32))
    spec, program = _for_any_number(support[0]), None
    if not learner.run_eagerly and (transductive or _predicts_as_keras(kind)):
        program = learner.compiled_function(
            ("predict", batch_normalization, str(spec)),
            lambda: prediction_program(model, batch_normalization, spec),
        )

    def adapted_model() -> keras.Model:
        fast, state = adapt()
        pairs = [*zip(partition.initial, fast, strict=True)]
        pairs += [
            (variable, value)
            for variable, value in zip(states, state, strict=True)
            if inductive or is_step(variable)
        ]
        adapted = {id(variable): value for variable, value in pairs}
        values = [
            adapted[id(variable)] if id(variable) in adapted else tf.convert_to_tensor(variable)
            for variable in variables
        ]

        def make() -> keras.Model:
            copy = copy_with_values(model, support[0], values, traits)
            made = TransductiveModel(copy) if transductive else copy
            compile_model(made)
            return made

        ready = {}
        if program is not None:
            ready["predict"] = shared_predict(program, values, whole=transductive, spec=spec)
        return deferred(kind, make, ready)

    return adapted_model


def _predicts_as_keras(kind: type[keras.Model]) -> bool:
    """Whether a class leaves it to Keras how its models predict."""
    names = ("predict", "predict_step", "make_predict_function")
    return all(getattr(kind, name) is getattr(keras.Model, name) for name in names)


def _adaptation(
    learner: Any, support: Any, steps: tf.Tensor
) -> Callable[[], tuple[Tensors, Tensors]]:
    """Returns what computes the fast weights of one task and its state."""

    def adapt(support: Any, steps: tf.Tensor) -> tuple[Tensors, Tensors]:
        theta, task = learner.parameters(), learner.objective().task(support)
        state = as_tensors(state_variables(learner.model))
        carry = InnerLoop(learner.update_rule, steps).adapt(task, theta, state)
        carry = task.with_statistics(theta, carry)
        return carry.fast, carry.state

    if learner.run_eagerly:  # with the model as it is now
        results = adapt(support, steps)
        return lambda: results
    spec = _for_any_number(support)
    program = learner.compiled_function(
        ("adapt", str(spec)),
        lambda: tracing.function(adapt).get_concrete_function(spec, tf.TensorSpec([], tf.int32)),
    )
    return functools.partial(program, support, steps)


def _for_any_number(examples: Any) -> Any:
    """Returns the specifications of any number of examples like these."""
    return keras.tree.map_structure(
        lambda array: tf.TensorSpec([None, *array.shape[1:]], array.dtype), examples
    )


def prediction_program(model: keras.Model, batch_normalization: str, spec: Any) -> Program:
    """Returns a program that adapted copies of a model share, as the model is now.

    Args:
        model: The model that they are copies of.
        batch_normalization: ``"inductive"`` or ``"transductive"``, see `keras_maml.MAML`.
        spec: Specifications of the inputs.
    """
    state = {id(variable) for variable in state_variables(model)}
    variables = list(model.variables)

    def predict(values: Tensors, x: Any) -> Any:
        pairs = [*zip(variables, values, strict=True)]
        result = forward(
            model,
            [(variable, value) for variable, value in pairs if id(variable) not in state],
            [(variable, value) for variable, value in pairs if id(variable) in state],
            x,
            training=False,
            route="native",
            batch_statistics="stored" if batch_normalization == "inductive" else "batch",
        )
        return result.predictions

    specs = [tf.TensorSpec(variable.shape, variable.dtype) for variable in variables]
    return tracing.function(predict).get_concrete_function(specs, spec)


def shared_predict(program: Program, values: Tensors, *, whole: bool, spec: Any) -> Callable:
    """Returns a method `predict` for arrays with a program that others have compiled before.

    Keras would trace every new model anew.

    Args:
        program: See `prediction_program`.
        values: Of all variables.
        whole: Whether all examples are one batch.
        spec: Specifications of the inputs that the program takes; the model itself takes others.
    """
    warned = not whole

    def predict(
        self: keras.Model,
        x: Any,
        batch_size: int | None = None,
        verbose: Any = "auto",
        **kwargs: Any,
    ) -> Any:
        nonlocal warned
        arrays = not isinstance(x, tf.data.Dataset) and all(
            isinstance(array, (np.ndarray, tf.Tensor)) for array in keras.tree.flatten(x)
        )
        if arrays:
            tensors = keras.tree.lists_to_tuples(as_tensors(x))  # as support sets are
            check_bytes(spec, tensors)
        if kwargs or verbose not in (0, "auto") or not arrays or _for_any_number(tensors) != spec:
            own = type(self).predict
            return own(self, x, batch_size=batch_size, verbose=verbose, **kwargs)
        count = len(keras.tree.flatten(tensors)[0])
        size = count if whole else batch_size or 256
        if count == 1 and not warned:
            warned = True
            warn_of_one_alone()
        parts = [
            program(values, keras.tree.map_structure(lambda t, i=i: t[i : i + size], tensors))
            for i in range(0, count, size)
        ]
        return keras.tree.map_structure(lambda *outputs: np.concatenate(outputs), *parts)

    return predict


def _traits(model: keras.Model) -> Traits:
    return [
        (layer.trainable, layer.ways if hasattr(layer, "set_ways") else None)
        for layer in flatten_layers(model)
    ]


def copy_with_values(
    model: keras.Model, x: Any, values: Sequence[tf.Tensor], traits: Traits
) -> keras.Model:
    """Copies a model and gives the variables of the copy other values.

    Args:
        model: A built model.
        x: A few inputs, to build a subclassed model with.
        values: What the variables of the copy are to hold, in their order.
        traits: What its layers are to be, in their order.

    Returns:
        A model of the same class.

    Raises:
        ValueError: The model cannot be copied, because it is a subclass without `get_config`.
    """
    try:
        copy = keras.models.clone_model(model)
        if not copy.built:
            copy(x)
    except (NotImplementedError, TypeError) as error:
        raise ValueError(
            f"{type(model).__name__} cannot be copied: {error} Give it a get_config() that "
            "returns the arguments of its constructor."
        ) from error
    for layer, (trainable, ways) in zip(flatten_layers(copy), traits, strict=True):
        if ways is not None:
            layer.set_ways(ways)
        if layer.trainable != trainable:
            layer.trainable = trainable
    for variable, value in zip(copy.variables, values, strict=True):
        variable.assign(value)
    for ours, theirs in zip(flatten_layers(model), flatten_layers(copy), strict=True):
        if isinstance(theirs, (keras.layers.IntegerLookup, keras.layers.StringLookup)):
            _copy_vocabulary(ours, theirs)
        if isinstance(theirs, keras.layers.Normalization):
            theirs.finalize_state()  # it computes with constants made from its weights
    return copy


def _copy_vocabulary(ours: keras.layers.Layer, theirs: keras.layers.Layer) -> None:
    """Hands on a vocabulary that was learned from data: it is not among the weights."""
    if theirs.vocabulary_size() != ours.vocabulary_size():
        theirs.set_vocabulary(ours.get_vocabulary(include_special_tokens=False))
