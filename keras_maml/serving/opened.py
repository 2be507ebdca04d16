"""A learner or a SavedModel, opened: signatures that take arrays and say what does not fit."""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_maml.learners.maml import MAML
from keras_maml.learners.specs import check_bytes
from keras_maml.serving.export import FACTS, check_ready, warn_of_single_queries
from keras_maml.serving.fast_weights import ServedLearner
from keras_maml.serving.traces import Tracer


@dataclasses.dataclass(frozen=True)
class Opened:
    """Signatures and what is known of the learner behind them.

    Attributes:
        signatures: The functions by name.
        checksum: Which learner it is, see `ServedLearner.checksum`.
        size: How many numbers the weights of a customer have.
    """

    signatures: Mapping[str, Any]
    checksum: str
    size: int

    def call(self, name: str, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Calls a signature.

        Args:
            name: Its name.
            inputs: Arrays, or nested lists of numbers, by the names of the signature's inputs.

        Returns:
            Arrays by the names of its outputs.

        Raises:
            ValueError: There is no such signature, or the inputs do not fit it.
        """
        if name not in self.signatures:
            known = ", ".join(sorted(self.signatures))
            raise ValueError(f"There is no signature {name!r}. There are: {known}.")
        function = self.signatures[name]
        specs = function.structured_input_signature[1]
        if set(inputs) != set(specs):
            raise ValueError(f"{name} takes {sorted(specs)}, got {sorted(inputs)}.")
        tensors = {key: _tensor(key, inputs[key], spec) for key, spec in specs.items()}
        try:
            answers = function(**tensors)
        except tf.errors.InvalidArgumentError as error:
            raise ValueError(_first_line(error.message)) from error
        return {key: answer.numpy() for key, answer in answers.items()}


def open_learner(
    source: MAML | str | os.PathLike,
    *,
    steps: int | None = None,
    batch_normalization: str | None = None,
) -> Opened:
    """Opens a learner as it is now, or a SavedModel that `export` wrote.

    Args:
        source: A compiled learner that has seen an episode, or the folder of a SavedModel.
        steps: The inner steps, by default `evaluation_steps`; of a SavedModel they are fixed.
        batch_normalization: See `export`; of a SavedModel it is fixed.

    Raises:
        ValueError: The source is neither, or lacks what is needed; or an argument is out of range.

    Warns:
        UserWarning: Queries are normalised by each other, unasked; see `export`.
    """
    if isinstance(source, MAML):
        check_ready(source, "A served learner")
        served = ServedLearner(source, batch_normalization)
        tracer = Tracer(served, source.evaluation_steps if steps is None else steps)
        if batch_normalization is None and served.depends_on_other_queries:
            warn_of_single_queries(stacklevel=4)
        # The values of now in the place of variables, which training would change later.
        values = [(variable, tf.convert_to_tensor(variable)) for variable in source.variables]
        with keras.StatelessScope(state_mapping=values):
            signatures = tracer.of_any_size()
        return Opened(signatures, served.checksum(), served.size)
    if steps is not None or batch_normalization is not None:
        raise ValueError("The steps and the normalisation of a SavedModel are those it has.")
    facts = pathlib.Path(source, "assets.extra", FACTS)
    if not facts.is_file():
        raise ValueError(
            f"{source} is not a SavedModel of learner.export: {facts} is missing. Export it again."
        )
    facts = json.loads(facts.read_text())
    if facts.get("warn_of_single_queries"):
        warn_of_single_queries(stacklevel=4, todo="Export it with")
    signatures = tf.saved_model.load(os.fspath(source)).signatures
    return Opened(signatures, facts["checksum"], facts["weights"])


def _tensor(name: str, value: Any, spec: tf.TensorSpec) -> tf.Tensor:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} is not an array: its rows differ in length.") from error
    dtype = spec.dtype.as_numpy_dtype
    if spec.dtype.is_integer:
        limits = np.iinfo(dtype)
        fits = array.dtype.kind in "iu"
        fits = fits and (not array.size or limits.min <= array.min() <= array.max() <= limits.max)
        expected = f"whole numbers of {spec.dtype.name}"
    elif spec.dtype.is_floating:
        with np.errstate(over="ignore"):  # found by isfinite
            fits = array.dtype.kind in "iuf" and np.isfinite(array.astype(dtype)).all()
        expected = "finite numbers"
        if name.startswith("x"):
            check_bytes(spec, array)
    elif spec.dtype == tf.string:
        texts = array.ravel().tolist() if array.dtype.kind in "USO" else [None]
        fits, expected = all(isinstance(text, (str, bytes)) for text in texts), "text"
    else:
        fits, expected = array.dtype == dtype, spec.dtype.name
    if not fits:
        raise ValueError(
            f"{name} must hold {expected}, got an array of {array.dtype} that does not."
        )
    if array.ndim != spec.shape.rank:
        raise ValueError(f"{name} must have {spec.shape.rank} axes, got the shape {array.shape}.")
    return tf.constant(array if spec.dtype == tf.string else array.astype(dtype), spec.dtype)


def _first_line(message: str) -> str:
    """Returns the line of TensorFlow's message that says what was wrong."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    found = re.findall("assertion failed.*", message)
    return (found or lines or ["The request does not fit the model."])[0][:500]
