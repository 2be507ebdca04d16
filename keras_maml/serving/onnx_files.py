"""ONNX files that adapt: two graphs of standard operations, for runtimes such as onnxruntime.

Needs the packages of the extra ``onnx``: tf2onnx and onnxruntime.
"""

import os
import pathlib
from typing import Any

import numpy as np

from keras_maml.files import whole_folder
from keras_maml.learners.maml import MAML
from keras_maml.serving.on_device import DeviceFunctions

OPSET = 17
TOLERANCE = 1e-4
"""How far a file's numbers may be from TensorFlow's, in parts of the largest or of 1."""


def export_onnx(
    learner: MAML,
    folder: str | os.PathLike,
    *,
    support: int = 5,
    query: int = 1,
    steps: int | None = None,
    batch_normalization: str | None = None,
    overwrite: bool = False,
) -> None:
    """Writes ``adapt.onnx`` and ``predict_with.onnx`` into a folder, both or neither.

    Inputs and outputs are those of `keras_maml.serving.on_device.export_litert`.

    Args:
        learner: A compiled learner that has seen an episode.
        folder: The folder to write.
        support: The number of support examples.
        query: The number of queries.
        steps: The inner steps; by default `evaluation_steps`.
        batch_normalization: ``"transductive"`` or ``"inductive"``; by default the learner's.
        overwrite: Whether to replace a folder that is already there.

    Raises:
        FileExistsError: ``folder`` exists; it is left as it is.
        ImportError: The packages of the extra ``onnx`` are missing.
        ValueError: An argument is out of range; or a layer has no form in ONNX; or a file does
            not compute what TensorFlow does. Nothing is written.

    Warns:
        UserWarning: Queries are normalised by each other; see `export`.

    Example:
        >>> learner.export_onnx("line")  # doctest: +SKIP
    """
    try:
        import onnxruntime
        import tf2onnx
    except ImportError as error:
        raise ImportError("export_onnx needs: pip install 'keras-maml[onnx]'.") from error
    folder = pathlib.Path(folder)
    if folder.exists() and not overwrite:
        raise FileExistsError(f"{folder} exists: pass overwrite=True to replace it.")
    device = DeviceFunctions(learner, "export_onnx", support, query, steps, batch_normalization)
    models = {}
    for name, function in device.functions().items():
        try:
            models[name] = _converted(function, tf2onnx).SerializeToString()
        except Exception as error:  # of several kinds
            raise ValueError(device.explained("ONNX", [], str(error))) from error
    sessions = {
        name: onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        for name, model in models.items()
    }

    def run(name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = [output.name for output in sessions[name].get_outputs()]
        return dict(zip(outputs, sessions[name].run(outputs, inputs), strict=True))

    device.check(run, TOLERANCE)
    with whole_folder(folder, replace=overwrite) as new:
        new.mkdir()
        for name, model in models.items():
            (new / f"{name}.onnx").write_bytes(model)


def _converted(function: Any, tf2onnx: Any) -> Any:
    """Converts a traced function; its inputs and outputs keep their names."""
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    frozen = convert_variables_to_constants_v2(function)
    inputs = {tensor.name: tensor.op.name for tensor in frozen.inputs}
    names = sorted(function.structured_outputs)
    outputs = {tensor.name: name for tensor, name in zip(frozen.outputs, names, strict=True)}
    model, _ = tf2onnx.convert.from_graph_def(
        frozen.graph.as_graph_def(),
        input_names=list(inputs),
        output_names=list(outputs),
        opset=OPSET,
        tensors_to_rename=inputs | outputs,
    )
    return model
