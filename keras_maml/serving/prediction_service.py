"""TensorFlow Serving's gRPC PredictionService for one learner: Predict and GetModelMetadata.

Needs the packages of the extras ``serving`` and ``grpc``.

Source: TensorFlow Serving, prediction_service.proto.
"""

import concurrent.futures
import hmac
import logging
import math
from collections.abc import Callable
from typing import Any

import grpc
import tensorflow as tf

try:
    from tensorflow_serving.apis import (
        get_model_metadata_pb2,
        predict_pb2,
        prediction_service_pb2_grpc,
    )
except ImportError as error:
    raise ImportError("gRPC needs: pip install 'keras-maml[serving,grpc]'.") from error
from tensorflow.core.protobuf import meta_graph_pb2

from keras_maml.serving.personalization import Personalizer
from keras_maml.serving.server import check_steps, check_token

_log = logging.getLogger("keras_maml")


class _Refused(Exception):  # noqa: N818  it is a status, not a mistake of ours
    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def create_server(
    personalizer: Personalizer,
    address: str,
    *,
    name: str = "learner",
    token: str | None = None,
    max_bytes: int = 2**24,
    max_steps: int = 1000,
    workers: int = 2,
    max_waiting: int = 64,
) -> grpc.Server:
    """Makes a server, which `start` lets answer.

    Args:
        personalizer: The learner.
        address: Where to listen, such as ``127.0.0.1:8500`` or ``[::1]:8500``.
        name: The name of the model in requests.
        token: What the metadata ``authorization`` must say: ``Bearer TOKEN``; None for no check.
        max_bytes: How large a request may be, and each of its tensors.
        max_steps: How many inner steps a request may ask for.
        workers: How many requests are computed at the same time.
        max_waiting: How many may be computed or wait.

    Raises:
        OSError: The address cannot be listened at.
        ValueError: The token could not be sent.
    """
    check_token(token)
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(workers, "keras_maml_grpc"),
        options=[("grpc.max_receive_message_length", max_bytes), ("grpc.so_reuseport", 0)],
        maximum_concurrent_rpcs=max_waiting,
    )
    service = _PredictionService(personalizer, name, token, max_bytes, max_steps)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"A server cannot listen at {address}: choose another port.") from error
    return server


class _PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers requests."""

    def __init__(
        self,
        personalizer: Personalizer,
        name: str,
        token: str | None,
        max_bytes: int,
        max_steps: int,
    ) -> None:
        self._opened, self._name, self._token = personalizer.opened, name, token
        self._max_bytes, self._max_steps = max_bytes, max_steps

    def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Calls a signature."""

        def predict() -> Any:
            inputs = {name: self._array(name, proto) for name, proto in request.inputs.items()}
            check_steps(inputs, self._max_steps)
            signature = request.model_spec.signature_name or "serving_default"
            outputs = self._opened.call(signature, inputs)
            unknown = set(request.output_filter) - set(outputs)
            if unknown:
                raise ValueError(f"There is no output {min(unknown)!r}: {sorted(outputs)}.")
            response = predict_pb2.PredictResponse()
            response.model_spec.name = self._name
            response.model_spec.signature_name = signature
            for name in request.output_filter or outputs:
                response.outputs[name].CopyFrom(tf.make_tensor_proto(outputs[name]))
            return response

        return self._answer(predict, request, context)

    def GetModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Says what the signatures take and give."""

        def describe() -> Any:
            if list(request.metadata_field) != ["signature_def"]:
                raise ValueError("metadata_field must be signature_def, and nothing else.")
            signatures = get_model_metadata_pb2.SignatureDefMap()
            for name, function in self._opened.signatures.items():
                definition = signatures.signature_def[name]
                definition.method_name = "tensorflow/serving/predict"
                for key, spec in function.structured_input_signature[1].items():
                    definition.inputs[key].CopyFrom(_tensor_info(spec))
                for key, spec in function.structured_outputs.items():
                    definition.outputs[key].CopyFrom(_tensor_info(spec))
            response = get_model_metadata_pb2.GetModelMetadataResponse()
            response.model_spec.name = self._name
            response.metadata["signature_def"].Pack(signatures)
            return response

        return self._answer(describe, request, context)

    def _answer(
        self, function: Callable[[], Any], request: Any, context: grpc.ServicerContext
    ) -> Any:
        try:
            self._check(request.model_spec.name, context)
            return function()
        except _Refused as error:
            code, message = error.code, str(error)
        except ValueError as error:
            code, message = grpc.StatusCode.INVALID_ARGUMENT, str(error)
        except Exception:
            _log.exception("A request failed.")
            code, message = grpc.StatusCode.INTERNAL, "An error of the server's own."
        context.abort(code, message)

    def _check(self, name: str, context: grpc.ServicerContext) -> None:
        given = dict(context.invocation_metadata()).get("authorization", "")
        if self._token is not None and not hmac.compare_digest(
            str(given).encode(), f"Bearer {self._token}".encode()
        ):
            raise _Refused(grpc.StatusCode.UNAUTHENTICATED, "The token is missing or wrong.")
        if name != self._name:
            raise _Refused(
                grpc.StatusCode.NOT_FOUND, f"There is no model {name!r}, but {self._name!r}."
            )

    def _array(self, name: str, proto: Any) -> Any:
        # One value stands for all of a tensor: a few bytes may ask for a great deal of memory.
        sizes = [dimension.size for dimension in proto.tensor_shape.dim]
        if any(size < 0 for size in sizes) or 8 * math.prod(sizes) > self._max_bytes:
            raise ValueError(f"{name} has the shape {sizes}, which is not one or too large.")
        try:
            return tf.make_ndarray(proto)
        except Exception as error:  # a malformed tensor raises nearly anything
            raise ValueError(f"{name} is not a tensor: {error}") from error


def _tensor_info(spec: Any) -> Any:
    shape = spec.shape.as_proto()
    return meta_graph_pb2.TensorInfo(dtype=spec.dtype.as_datatype_enum, tensor_shape=shape)
