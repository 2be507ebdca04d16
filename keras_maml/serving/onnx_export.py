"""ONNX models that adapt wherever ONNX Runtime runs: other languages, accelerators, browsers.

As in `keras_maml.serving.on_device`, forward pass and gradients of all inner steps are one graph
for fixed numbers of examples, which is run and compared with TensorFlow before it is kept.

tf2onnx knows the operations of networks and few of those in which their gradients are written;
these are given to it here as formulas.
"""

import contextlib
import functools
import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from keras_maml import validation
from keras_maml.execution import tracing
from keras_maml.files import whole_folder
from keras_maml.learners.maml import MAML
from keras_maml.serving.export import check_destination
from keras_maml.serving.on_device import DeviceFunctions

FILES = {"adapt": "adapt.onnx", "predict_with": "predict_with.onnx"}
OPSET = 17
"""The version of ONNX's operations that is asked for: of 2022, so that older runtimes have it."""
MIN_BYTES = 1000
"""Of a constant for which it is seen whether others tell it."""
TOLERANCE = 1e-4
"""How far a model's numbers may be from TensorFlow's, in parts of the largest or of 1."""


def export_onnx(
    learner: MAML,
    filepath: str | os.PathLike,
    *,
    support: int = 5,
    query: int = 1,
    steps: int | None = None,
    batch_normalization: str | None = None,
    every_step: bool = False,
    overwrite: bool = False,
) -> None:
    """Writes a folder of two ONNX models, ``adapt.onnx`` and ``predict_with.onnx``.

    - ``adapt``: ``x_support [support, ...]`` and ``y_support [support, ...]`` to ``weights [n]``;
      with ``every_step`` to ``weights [steps + 1, n]``, from which a row is picked to predict with.
    - ``predict_with``: ``x [query, ...]`` and ``weights [n]`` to ``predictions [query, ...]``.

    Names of nested inputs and outputs are those of `keras_maml.serving.export.export`.

    They are two files since an ONNX model is one function: it has no signatures, and runtimes want
    all inputs of a model at every call. Each file is complete, so that a device which only
    predicts needs ``predict_with.onnx`` alone. What the inner loop does not move stands in both:
    with ``adapted_layers="head"`` the body, otherwise next to nothing.

    Needs the packages of the extra ``onnx``: tf2onnx, onnx and onnxruntime.

    Args:
        learner: A compiled learner that has seen an episode.
        filepath: The folder to write. Missing parents are created.
        support: The number of support examples.
        query: The number of queries.
        steps: The inner steps; by default `evaluation_steps`.
        batch_normalization: ``"transductive"`` or ``"inductive"``; by default the learner's.
        every_step: Whether ``adapt`` gives the weights before adaptation and after every step,
            instead of the last alone.
        overwrite: Whether to replace such a folder that is already there.

    Raises:
        FileExistsError: ``filepath`` exists; it is left as it is.
        ImportError: The extra is not installed.
        ValueError: An argument is out of range; or a layer has no form in ONNX, which the message
            names; or a model does not run, or not compute what TensorFlow does. Nothing is written.

    Warns:
        UserWarning: Queries are normalised by each other; see `export`.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> learner = MAML(model, inner_learning_rate=0.1)
        >>> learner.compile(optimizer="adam", loss="mean_squared_error")
        >>> x = keras.random.normal([5, 1])
        >>> adapted = learner.adapt(x, 2 * x)
        >>> learner.export_onnx("line")  # doctest: +SKIP
    """
    validation.check_flag("every_step", every_step)
    filepath = pathlib.Path(filepath)
    check_destination(filepath, overwrite, "a learner in ONNX", FILES["adapt"])
    try:
        import onnxruntime
        import tf2onnx  # noqa: F401
    except ImportError as error:
        raise ImportError("export_onnx needs: pip install 'keras-maml[onnx]'.") from error
    device = DeviceFunctions(
        learner, "export_onnx", support, query, steps, batch_normalization, every_step
    )
    models, sessions = {}, {}
    with _quiet():
        for name, function in device.functions().items():
            models[name] = content = _converted(function)
            try:
                sessions[name] = onnxruntime.InferenceSession(
                    content, providers=["CPUExecutionProvider"]
                )
            except Exception as error:  # of several kinds
                lacking = r"(?:No Op registered|Could not find an implementation) for (\w+)"
                found = re.findall(lacking, str(error))
                raise ValueError(device.explained("ONNX", found, str(error))) from error

    def run(name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = [output.name for output in sessions[name].get_outputs()]
        return dict(zip(outputs, sessions[name].run(outputs, inputs), strict=True))

    device.check(run, TOLERANCE)
    with whole_folder(filepath, replace=overwrite) as folder:
        folder.mkdir()
        for name, content in models.items():
            (folder / FILES[name]).write_bytes(content)


def _converted(function: Any) -> bytes:
    """Converts a traced function; operations without a form stay in the model as they are."""
    import tf2onnx.convert
    from tensorflow.python.framework import convert_to_constants

    handlers = {kind: (functools.partial(_replace, f), []) for kind, f in _FORMULAS.items()}
    specs = function.structured_input_signature[1]
    # tf2onnx makes inputs of tensors that a function refers to, such as a layer's statistics.
    frozen = convert_to_constants.convert_variables_to_constants_v2(
        function, lower_control_flow=False, aggressive_inlining=True
    )

    def by_position(*values: Any) -> Any:  # as tf2onnx passes them
        return tf.nest.pack_sequence_as(function.structured_outputs, frozen(*values))

    model, _ = tf2onnx.convert.from_function(
        tracing.function(by_position),
        list(specs.values()),
        opset=OPSET,
        custom_op_handlers=handlers,
    )
    _store_once(model.graph)
    return model.SerializeToString()


def _store_once(graph: Any) -> None:
    """Keeps no constant that others tell: tf2onnx broadcasts and reshapes them beforehand."""
    from onnx import helper, numpy_helper

    kept: dict[tuple[str, bytes], str] = {}  # the names of constants by content
    constants, nodes = [], []

    def keep(array: np.ndarray, name: str) -> str:
        constants.append(numpy_helper.from_array(array, name))
        return name

    for tensor in graph.initializer:
        whole = part = numpy_helper.to_array(tensor)
        if whole.nbytes < MIN_BYTES:
            constants.append(tensor)
            continue
        for axis in range(whole.ndim):
            first = part.take([0], axis)
            part = first if np.array_equal(part, np.broadcast_to(first, part.shape)) else part
        key = part.dtype.str, part.tobytes()
        if part.size == whole.size and key not in kept:
            constants.append(tensor)
            kept[key] = tensor.name
            continue
        if key not in kept:
            kept[key] = keep(part, f"{tensor.name}/part")
        name = kept[key]
        for operation, shape, result in (
            ("Reshape", part.shape, f"{tensor.name}/reshaped"),
            ("Expand", whole.shape, tensor.name),
        ):
            sizes = keep(np.array(shape, np.int64), f"{result}/shape")
            nodes.append(helper.make_node(operation, [name, sizes], [result], f"{result}/make"))
            name = result
    nodes += graph.node
    for field, content in ((graph.initializer, constants), (graph.node, nodes)):
        del field[:]
        field.extend(content)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences tf2onnx, which logs what is then raised here with the layer's name."""
    logger = logging.getLogger("tf2onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


# --- operations of gradients ----------------------------------------------------------------------


class _Tensor:
    """A tensor of an ONNX graph, to write formulas with."""

    def __init__(self, graph: Any, name: str) -> None:
        self.graph, self.name = graph, name

    def made(self, operation: str, *others: Any, **attributes: Any) -> "_Tensor":
        """Applies an operation to this tensor and others; numbers become tensors of its dtype."""
        names = [self.name, *(self._name_of(other) for other in others)]
        node = self.graph.make_node(operation, names, attr=attributes)
        return _Tensor(self.graph, node.output[0])

    def constant(self, value: Any, dtype: Any = None) -> "_Tensor":
        """Returns a constant, by default of this tensor's dtype."""
        from tf2onnx import utils

        dtype = dtype or utils.map_onnx_to_numpy_type(self.graph.get_dtype(self.name))
        node = self.graph.make_const(utils.make_name("constant"), np.array(value, dtype))
        return _Tensor(self.graph, node.output[0])

    def _name_of(self, other: Any) -> str:
        return (other if isinstance(other, _Tensor) else self.constant(other)).name

    def __add__(self, other: Any) -> "_Tensor":
        return self.made("Add", other)

    def __sub__(self, other: Any) -> "_Tensor":
        return self.made("Sub", other)

    def __mul__(self, other: Any) -> "_Tensor":
        return self.made("Mul", other)

    def __truediv__(self, other: Any) -> "_Tensor":
        return self.made("Div", other)


def _sum_but_last(upstream: _Tensor) -> _Tensor:
    axes = range(len(upstream.graph.get_shape(upstream.name)) - 1)
    return upstream.made("ReduceSum", upstream.constant(list(axes), np.int64), keepdims=0)


def _elu_gradient(upstream: _Tensor, outputs: _Tensor) -> _Tensor:
    return outputs.made("Less", 0).made("Where", upstream * (outputs + 1), upstream)


def _sparse_cross_entropy(logits: _Tensor, labels: _Tensor) -> tuple[_Tensor, _Tensor]:
    classes = logits.graph.get_shape(logits.name)[-1]
    depth, values = logits.constant(classes, np.int64), logits.constant([0, 1])
    return _cross_entropy(logits, labels.made("OneHot", depth, values, axis=-1))


def _cross_entropy(logits: _Tensor, labels: _Tensor) -> tuple[_Tensor, _Tensor]:
    """Returns the losses, and their gradient: the operation has both as outputs."""
    products = labels * logits.made("LogSoftmax", axis=-1)
    axes = logits.constant([-1], np.int64)
    losses = products.made("ReduceSum", axes, keepdims=0).made("Neg")
    return losses, logits.made("Softmax", axis=-1) - labels


# Of TensorFlow's gradients of activations some take the outputs, others the inputs, and either may
# come first.
_FORMULAS: dict[str, Callable[..., Any]] = {
    "BiasAddGrad": _sum_but_last,
    "TanhGrad": lambda y, upstream: upstream - upstream * y * y,
    "SigmoidGrad": lambda y, upstream: upstream * (y - y * y),
    "SoftplusGrad": lambda upstream, x: upstream * x.made("Sigmoid"),
    "EluGrad": _elu_gradient,
    "SqrtGrad": lambda y, upstream: upstream * 0.5 / y,
    "RsqrtGrad": lambda y, upstream: upstream * -0.5 * y * y * y,
    "ReciprocalGrad": lambda y, upstream: upstream * -1 * y * y,
    "SoftmaxCrossEntropyWithLogits": _cross_entropy,
    "SparseSoftmaxCrossEntropyWithLogits": _sparse_cross_entropy,
}


def _replace(
    formula: Callable[..., Any], graph: Any, node: Any, name: str, arguments: list
) -> None:
    """Puts a formula in the place of an operation: what tf2onnx calls a handler."""
    del name, arguments
    results = formula(*(_Tensor(graph, given) for given in node.input))
    outputs, shapes, dtypes = list(node.output), node.output_shapes, node.output_dtypes
    graph.remove_node(node.name)
    results = results if isinstance(results, tuple) else (results,)
    for result, output, shape, dtype in zip(results, outputs, shapes, dtypes, strict=True):
        # The tensor gets the name by which others know it.
        known = {"outputs": [output], "shapes": [shape], "dtypes": [dtype]}
        graph.make_node("Identity", [result.name], **known)
