"""Warm-up requests: what TensorFlow Serving runs once before it calls a model ready.

The first call of a signature prepares its graph, and a compiled one is compiled then. The requests
are PredictionLog messages of TensorFlow Serving in a file of records. Its package of messages is
not needed for a handful of nested fields, which are written here as they are on the wire.
"""

import os
import pathlib
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

FILE = "tf_serving_warmup_requests"


def write(folder: str | os.PathLike, requests: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Writes warm-up requests into a SavedModel.

    Args:
        folder: The folder of the SavedModel.
        requests: The inputs by name, for each signature by name.

    Source:
        TensorFlow Serving, "SavedModel Warmup": prediction_log.proto, predict.proto, model.proto.
    """
    extra = pathlib.Path(folder) / "assets.extra"
    extra.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(extra / FILE)) as writer:
        for signature, inputs in requests.items():
            writer.write(_prediction_log(signature, inputs))


def _prediction_log(signature: str, inputs: Mapping[str, np.ndarray]) -> bytes:
    # ModelSpec.signature_name = 3; PredictRequest.model_spec = 1, .inputs = 2 (a map: key 1,
    # value 2); PredictLog.request = 1; PredictionLog.predict_log = 6.
    request = _field(1, _field(3, signature.encode()))
    for name, array in inputs.items():
        tensor = tf.make_tensor_proto(array).SerializeToString()
        request += _field(2, _field(1, name.encode()) + _field(2, tensor))
    return _field(6, _field(1, request))


def _field(number: int, content: bytes) -> bytes:
    """Encodes a length-delimited field of a protocol buffer."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])
