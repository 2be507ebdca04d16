"""gRPC answers as REST does."""

import socket
import types

import grpc
import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo

from keras_maml import MAML
from keras_maml.serving.personalization import Personalizer

pytest.importorskip("starlette", reason="needs the extra serving")
pytest.importorskip("tensorflow_serving", reason="needs the extra grpc")

from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from keras_maml.serving import prediction_service


@pytest.fixture(scope="module")
def served():
    keras.utils.set_random_seed(0)
    case = zoo.CASES["dense"]
    learner = MAML(case.build(), 0.2, 2)
    learner.compile("sgd", case.loss, run_eagerly=True)
    (x, y), (x_query, y_query) = zoo.episodes(case)
    expected = learner.predict(((x, y), (x_query, y_query)), verbose=0)
    inputs = {"x_support": x, "y_support": y, "x_query": x_query}
    server = prediction_service.create_server(
        Personalizer(learner), "127.0.0.1:0", token="secret", max_bytes=10_000
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel), inputs, expected
    server.stop(0).wait()


TOKEN = (("authorization", "Bearer secret"),)


def request(inputs, signature="adapt_and_predict", name="learner"):
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = name, signature
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    return request


def test_predictions_and_metadata(served):
    stub, inputs, expected = served
    answer = stub.Predict(request(inputs), timeout=60, metadata=TOKEN)
    found = tf.make_ndarray(answer.outputs["predictions"])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    ask = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    ask.model_spec.name = "learner"
    metadata = stub.GetModelMetadata(ask, timeout=60, metadata=TOKEN).metadata["signature_def"]
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert metadata.Unpack(signatures)
    shape = signatures.signature_def["adapt"].inputs["x_support"].tensor_shape.dim
    assert [dimension.size for dimension in shape] == [-1, -1, 3]


def test_what_is_wrong_is_the_clients_fault_and_says_why(served):
    stub, inputs, _ = served
    huge = request(inputs)
    huge.inputs["x_query"].tensor_shape.dim[0].size = 2**40  # of a few bytes
    broken = request(inputs)
    broken.inputs["x_query"].tensor_content = b"123"
    cases = [
        (request(inputs, "fly"), TOKEN, "INVALID_ARGUMENT", "There is no signature 'fly'"),
        (request(inputs, name="other"), TOKEN, "NOT_FOUND", "There is no model 'other'"),
        (request(inputs), (), "UNAUTHENTICATED", "token is missing"),
        (request({"x_query": 1.0}), TOKEN, "INVALID_ARGUMENT", "adapt_and_predict takes"),
        (huge, TOKEN, "INVALID_ARGUMENT", "too large"),
        (broken, TOKEN, "INVALID_ARGUMENT", "x_query is not a tensor"),
        (
            request(inputs | {"steps": np.int32([5000] * 3)}, "adapt_and_predict_steps"),
            TOKEN,
            "INVALID_ARGUMENT",
            "steps may be at most 1000",
        ),
        (
            request(inputs | {"steps": np.int32(2)}, "adapt_and_predict_steps"),
            TOKEN,
            "INVALID_ARGUMENT",
            "steps must have 1 axes",
        ),
    ]
    for message, metadata, code, text in cases:
        with pytest.raises(grpc.RpcError, match=text) as caught:
            stub.Predict(message, timeout=60, metadata=metadata)
        assert caught.value.code().name == code


def test_an_address_that_is_taken_and_a_token_that_cannot_be_sent_are_refused():
    personalizer = types.SimpleNamespace(opened=None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match=f"cannot listen at {where}"):
            prediction_service.create_server(personalizer, where)
    with pytest.raises(ValueError, match="must be printable ASCII"):
        prediction_service.create_server(personalizer, "127.0.0.1:0", token="schlüssel")
