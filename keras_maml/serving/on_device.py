"""LiteRT files that adapt on a phone, in a browser or on a small board, without a server.

Forward pass and gradients of all inner steps become one graph of LiteRT's own operations, for
fixed numbers of examples. The converter may turn a graph into a wrong one without complaint, so
every file is run and compared with TensorFlow before it is kept.
"""

import dataclasses
import os
import pathlib
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_maml import validation
from keras_maml.execution import tracing
from keras_maml.execution.forms import Route
from keras_maml.execution.lending import lend, lending
from keras_maml.execution.tasks import Run
from keras_maml.files import whole
from keras_maml.learners.maml import MAML
from keras_maml.private_keras import flatten_layers
from keras_maml.serving.export import check_ready, module_of, warn_of_single_queries
from keras_maml.serving.fast_weights import ServedLearner
from keras_maml.serving.signatures import Specs, named, named_outputs, plain
from keras_maml.serving.traces import bounds_of, build_loss

TOLERANCE = 1e-3
"""How far a file's numbers may be from TensorFlow's, in parts of the largest or of 1."""
FLOAT16_TOLERANCE = 2e-2
"""The same for weights that are kept as float16, which have three digits."""
MOVED = 10
"""How many times as far, in parts of what moved, adapted weights may be: steps add errors up."""
ULPS = 4
"""How many units in the last place a step may round a weight by."""
_HINT = (
    "Nothing was written. Some layer is converted to something else; try the export with fewer "
    "layers to find it."
)
_MARK = "-layer"
"""Ends the scope of a layer while its operations are looked for."""


def export_litert(
    learner: MAML,
    filepath: str | os.PathLike,
    *,
    support: int = 5,
    query: int = 1,
    steps: int | None = None,
    batch_normalization: str | None = None,
    every_step: bool = False,
    float16: bool = False,
    overwrite: bool = False,
) -> None:
    """Writes a ``.tflite`` file with two signatures, of builtin operations only.

    - ``adapt``: ``x_support [support, ...]`` and ``y_support [support, ...]`` to ``weights [n]``;
      with ``every_step`` to ``weights [steps + 1, n]``, from which a row is picked to predict with.
    - ``predict_with``: ``x [query, ...]`` and ``weights [n]`` to ``predictions [query, ...]``.

    Names of nested inputs and outputs are those of `keras_maml.serving.export.export`.

    Args:
        learner: A compiled learner that has seen an episode.
        filepath: The file to write; its folder exists.
        support: The number of support examples.
        query: The number of queries.
        steps: The inner steps; by default `evaluation_steps`.
        batch_normalization: ``"transductive"`` or ``"inductive"``; by default the learner's.
        every_step: Whether ``adapt`` gives the weights before adaptation and after every step,
            instead of the last alone.
        float16: Whether to keep the learner's weights as float16: a little over half the size.
        overwrite: Whether to replace a file that is already there.

    Raises:
        FileExistsError: ``filepath`` exists; it is left as it is.
        ValueError: An argument is out of range; or a layer has no form on devices, which the
            message names; or the file does not run, or not compute what TensorFlow does. Nothing is
            written.

    Warns:
        UserWarning: Queries are normalised by each other; see `export`.

    Example:
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> learner = MAML(model, inner_learning_rate=0.1)
        >>> learner.compile(optimizer="adam", loss="mean_squared_error")
        >>> x = tf.random.normal([5, 1])
        >>> adapted = learner.adapt(x, 2 * x)
        >>> learner.export_litert("line.tflite")  # doctest: +SKIP
    """
    validation.check_flag("every_step", every_step)
    validation.check_flag("float16", float16)
    filepath = pathlib.Path(filepath)
    if filepath.exists() and not overwrite:
        raise FileExistsError(f"{filepath} exists: pass overwrite=True to replace it.")
    device = DeviceFunctions(
        learner, "export_litert", support, query, steps, batch_normalization, every_step
    )
    content = _converted(device, float16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the interpreter moves to another package
        interpreter = tf.lite.Interpreter(model_content=content)
    device.check(
        lambda name, inputs: interpreter.get_signature_runner(name)(**inputs),
        FLOAT16_TOLERANCE if float16 else TOLERANCE,
        float16,
    )
    with whole(filepath) as temporary:
        temporary.write_bytes(content)


def _converted(device: "DeviceFunctions", float16: bool) -> bytes:
    functions = device.functions()
    module = module_of(device.learner, functions)
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, functions)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, list(functions))
        if float16:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        try:
            return converter.convert()
        except Exception as error:  # of several kinds
            found = re.findall(r"'?tf\.(\w+)'? op is neither", str(error))
            raise ValueError(device.explained("LiteRT", found, str(error))) from error


@dataclasses.dataclass(frozen=True)
class _OneTask(Run):
    """Runs the one task there is, without a loop or an axis around it."""

    def map(self, function: Callable[[Any], Any], elements: Any) -> Any:
        results = function(tf.nest.map_structure(lambda t: t[0], elements))
        return tf.nest.map_structure(lambda t: t[None], results)


class DeviceFunctions:
    """A learner as two functions of fixed shapes, for one task, to be converted.

    Args:
        learner: A compiled learner that has seen an episode.
        caller: Who converts, for messages.
        support: The number of support examples.
        query: The number of queries.
        steps: The inner steps; by default `evaluation_steps`.
        batch_normalization: See `keras_maml.serving.export.export`.
        every_step: See `export_litert`.

    Raises:
        ValueError: An argument is out of range, or the learner is not ready.
    """

    def __init__(
        self,
        learner: MAML,
        caller: str,
        support: int,
        query: int,
        steps: int | None,
        batch_normalization: str | None,
        every_step: bool = False,
    ) -> None:
        validation.check_count("support", support, minimum=1)
        validation.check_count("query", query, minimum=1)
        self._steps = learner.evaluation_steps if steps is None else steps
        validation.check_count("steps", self._steps)
        self._every_step = every_step
        self._served = served = ServedLearner(learner, batch_normalization)
        check_ready(learner, caller)
        self._bounds = bounds_of(learner, build_loss(learner))
        if batch_normalization is None and served.depends_on_other_queries:
            warn_of_single_queries(stacklevel=5)
        self._spec = x, y = plain(learner.support_spec)
        self._support = _of_size(named("x_support", x) | named("y_support", y), support)
        self._x = _of_size(named("x", x), query)
        weights = {"weights": tf.TensorSpec([served.size], served.dtype, "weights")}
        self._query = self._x | weights

    @property
    def learner(self) -> MAML:
        """The learner."""
        return self._served.learner

    def functions(self, route: Route = "portable") -> dict[str, Any]:
        """Traces ``adapt`` and ``predict_with``, by default of operations that devices have."""
        served, run = self._served, _OneTask(route)

        def adapt(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            values = [inputs[name][None] for name in self._support]
            support = keras.tree.pack_sequence_as(self._spec, values)
            return {"weights": served.adapt(support, self._steps, run, self._every_step)[0]}

        def predict_with(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            weights, *values = [inputs[name][None] for name in ("weights", *self._x)]
            x = keras.tree.pack_sequence_as(self._spec[0], values)
            outputs = named_outputs(served.predict_with(weights, x, run))
            return {name: output[0] for name, output in outputs.items()}

        return {
            "adapt": tracing.function(adapt).get_concrete_function(**self._support),
            "predict_with": tracing.function(predict_with).get_concrete_function(**self._query),
        }

    def explained(self, target: str, operations: Sequence[str], message: str) -> str:
        """Says which layer cannot be converted.

        Args:
            target: What has no form for it.
            operations: The kinds of operations, as far as the converter names them.
            message: What it says.
        """
        inner = flatten_layers(self.learner.model)[1:]
        layers = dict.fromkeys(layer.name for layer in inner)
        scope = tf.name_scope

        def marked(name: str, *args: Any, **kwargs: Any) -> Any:
            return scope(f"{name}{_MARK}" if name in layers else name, *args, **kwargs)

        # Operations are called as the layers are that they come from, the innermost last:
        # "gradient_tape/sequential/dense_1/EluGrad". TensorFlow numbers scopes, Keras the names of
        # layers; the mark tells the numbers apart.
        with lending, lend(tf, "name_scope", marked):
            functions = self.functions()
        found = {
            scopes[-1]
            for function in functions.values()
            for name, kind in _operations(function.graph.as_graph_def())
            if kind in operations and (scopes := re.findall(rf"([^/]+){_MARK}(?:_\d+)?/", name))
        }
        named_layers = [name for name in layers if name in found]
        where = f"Layer {', '.join(map(repr, named_layers))}" if named_layers else "The model"
        what = ", ".join(sorted(set(operations))) or message.strip().splitlines()[-1][:300]
        return (
            f"{where} cannot adapt on a device: {target} has no form for {what}. Take another "
            "layer or activation there (relu, tanh and sigmoid have one), or adapt other layers "
            "only."
        )

    def check(
        self,
        run: Callable[[str, dict[str, np.ndarray]], Mapping[str, np.ndarray]],
        tolerance: float,
        float16: bool = False,
    ) -> None:
        """Raises ValueError unless what was converted runs, and computes what TensorFlow does.

        Args:
            run: Calls a converted function, by name, with inputs by name; returns its outputs.
            tolerance: How far predictions may be from TensorFlow's, in parts of the largest or of
                1, and a tenth of how far weights may be, in parts of how far the farthest moves.
            float16: Whether what was converted keeps the learner's weights as float16.
        """
        random = np.random.default_rng(0)
        support, query = (
            {name: _numbers(random, name, spec, self._bounds.get(name)) for name, spec in s.items()}
            for s in (self._support, self._x)
        )
        right = self.functions("plain")
        weights = right["adapt"](**_tensors(support))["weights"].numpy()
        last = weights[-1] if self._every_step else weights
        for name, inputs in (("adapt", support), ("predict_with", query | {"weights": last})):
            try:
                ours = run(name, inputs)
            except Exception as error:  # of several kinds
                message = str(error).strip().rstrip(".")[:300]
                raise ValueError(
                    f"The converted {name} does not run: {message}. {_HINT}"
                ) from error
            for output, value in right[name](**_tensors(inputs)).items():
                theirs = value.numpy()
                allowed = tolerance * max(1.0, np.abs(theirs).max())
                if name == "adapt":
                    allowed = self._allowed(theirs, MOVED * tolerance, float16)
                _compare(name, output, ours[output], theirs, allowed)

    def _allowed(self, theirs: np.ndarray, tolerance: float, float16: bool) -> np.ndarray:
        """Returns how far each number of a vector may be from TensorFlow's.

        By how far weights move, and not by how large they are: what adapts nothing is as near.
        """
        initial = [keras.ops.convert_to_numpy(v).ravel() for v in self._served.variables]
        weights = sum(map(np.size, initial[: len(self.learner.partition().initial)]))
        initial, allowed = np.concatenate(initial), np.empty(self._served.size)
        rounding = ULPS * max(1, self._steps) * np.finfo(theirs.dtype).eps
        for part in (slice(weights), slice(weights, None)):  # and what layers keep
            before, after = initial[part], theirs[..., part]
            moved, largest = (np.abs(a).max(initial=0) for a in (after - before, after))
            allowed[part] = tolerance * moved + rounding * largest
            if float16:
                allowed[part] += np.finfo(np.float16).eps * np.abs(before).max(initial=0)
        return allowed


def _operations(graph: Any) -> Iterator[tuple[str, str]]:
    """Yields names and kinds of all operations, those in functions included."""
    for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
        yield from ((node.name, node.op) for node in nodes)


def _tensors(arrays: dict[str, np.ndarray]) -> dict[str, tf.Tensor]:
    return {name: tf.constant(array) for name, array in arrays.items()}


def _of_size(specs: Specs, size: int) -> Specs:
    return {
        name: tf.TensorSpec([size, *spec.shape[1:]], spec.dtype, name)
        for name, spec in specs.items()
    }


def _numbers(
    random: np.random.Generator, name: str, spec: tf.TensorSpec, bound: int | None
) -> np.ndarray:
    """Draws an input: whole numbers of all that there are, or 0 and 1 if that is not known."""
    if spec.dtype.is_integer:
        if bound is None:
            bound = 256 if name.startswith("x") and spec.dtype == tf.uint8 else 2  # images
        bound = min(bound, spec.dtype.max + 1)  # a vocabulary may be larger than the numbers go
        return random.integers(bound, size=spec.shape).astype(spec.dtype.as_numpy_dtype)
    numbers = random.random(spec.shape)
    if spec.dtype == tf.string:
        return numbers.astype(bytes).astype(object)
    return numbers.astype(spec.dtype.as_numpy_dtype)


def _compare(
    signature: str, output: str, ours: np.ndarray, theirs: np.ndarray, allowed: Any
) -> None:
    error = np.abs(ours - theirs)
    if not (error <= allowed).all():  # also if it is not a number
        raise ValueError(
            f"The converted {signature} is wrong: its {output} are up to {error.max():.2g} away "
            f"from TensorFlow's. {_HINT}"
        )
