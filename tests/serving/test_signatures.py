"""What the signatures promise servers: tasks stay apart, sizes stay free, weights are kept."""

import dataclasses
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from tensorflow.core.framework import tensor_pb2

from keras_maml import MAML
from keras_maml.execution.placement import PROCESSOR, using
from keras_maml.layers import SharedHead
from keras_maml.serving import warmup
from keras_maml.serving.fast_weights import ServedLearner
from keras_maml.serving.personalization import Personalizer
from keras_maml.serving.traces import Tracer

CASES = {
    "dense": {},
    "small": {"batch_normalization": "inductive"},
    "normalization": {"batch_normalization": "inductive", "adapted_layers": "head"},
    "dictionary_inputs": {"adapted_layers": "body"},
    "dropout": {},
}


def make_learner(name, **settings):
    keras.utils.set_random_seed(1)
    case = zoo.SMALL if name == "small" else zoo.CASES[name]
    settings = {"inner_learning_rate": 0.3, "evaluation_steps": 2} | settings
    learner = MAML(case.build(), **settings)
    learner.compile("sgd", case.loss, run_eagerly=True)
    support, query = zoo.episodes(case)
    expected = np.asarray(learner.predict((support, query), verbose=0))
    return learner, support, query[0], expected


def inputs_of(name, nest):
    if isinstance(nest, dict):
        return {f"{name}_{key}": value for key, value in nest.items()}
    return {name: nest}


def load(learner, folder, **settings):
    learner.export(folder / "1", verbose=False, **settings)
    return tf.saved_model.load(str(folder / "1")).signatures


@pytest.mark.parametrize("name", ["dense", *map(zoo.slow, [*CASES][1:])])
def test_weights_kept_and_used_later_predict_as_the_learner_does(name, tmp_path):
    learner, (x, y), x_query, expected = make_learner(name, **CASES[name])
    signatures = load(learner, tmp_path)
    support = inputs_of("x_support", x) | inputs_of("y_support", y)
    weights = signatures["adapt"](**support)["weights"]
    fast = sum(int(np.prod(variable.shape)) for variable in learner.partition().initial)
    statistics = {"small": 4, "normalization": 12}.get(name, 0)  # means and variances
    assert weights.shape == (3, fast + statistics)
    answer = signatures["predict_with"](weights=weights, **inputs_of("x", x_query))["predictions"]
    np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-5)
    steps = signatures["adapt_steps"](**support, steps=tf.constant([2, 0, 2]))["weights"]
    np.testing.assert_allclose(steps[::2], weights[::2], rtol=0, atol=1e-5)
    assert np.abs(steps[1] - weights[1]).max() > 1e-4


def test_requests_joined_by_a_batching_server_stay_two_tasks(tmp_path):
    learner, (x, y), x_query, expected = make_learner("dense")
    signatures = load(learner, tmp_path, signatures=["adapt_and_predict"])
    requests = [
        {"x_support": x[i : i + 1], "y_support": y[i : i + 1], "x_query": x_query[i : i + 1]}
        for i in range(2)
    ]
    # As TensorFlow Serving's batcher does: along the first axis, to be cut there again.
    joined = {name: tf.concat([request[name] for request in requests], 0) for name in requests[0]}
    answer = signatures["adapt_and_predict"](**joined)["predictions"]
    np.testing.assert_allclose(answer, expected[:2], rtol=0, atol=1e-5)
    # Without the task axis, joining would mix the examples of both: that is refused.
    flat = {name: tf.concat([r[name][0] for r in requests], 0) for name in requests[0]}
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"must have the shape \[tasks, exam"):
        signatures["adapt_and_predict"](**flat)


def test_sizes_that_the_model_leaves_open_are_free_in_requests(tmp_path):
    inputs = keras.Input((None, 2))
    outputs = keras.layers.Dense(1)(keras.layers.Dense(3, "tanh")(inputs))
    learner = MAML(keras.Model(inputs, outputs), 0.3)
    learner.compile("sgd", "mse", run_eagerly=True)
    draw = np.random.default_rng(0).standard_normal
    learner.adapt(draw((4, 5, 2), "float32"), draw((4, 5, 1), "float32"))
    x, y = draw((2, 4, 7, 2), "float32"), draw((2, 4, 7, 1), "float32")
    signatures = load(learner, tmp_path, signatures=["adapt", "predict_with"])
    specs = signatures["adapt"].structured_input_signature[1]
    assert specs["x_support"].shape.as_list() == [None, None, None, 2]
    assert specs["y_support"].shape.as_list() == [None, None, None, 1]
    weights = signatures["adapt"](x_support=x, y_support=y)["weights"]
    short = x[:, :3, :6]
    answer = signatures["predict_with"](x=tf.constant(short), weights=weights)["predictions"]
    for index in range(2):
        expected = learner.adapt(x[index], y[index])(short[index])
        np.testing.assert_allclose(answer[index], expected, rtol=0, atol=1e-5)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"\[tasks, examples, any, 2\]"):
        signatures["predict_with"](x=tf.zeros((1, 2, 3, 4)), weights=weights)


@pytest.mark.parametrize("jit_compile", [zoo.slow(False), True])
@pytest.mark.parametrize("name", ["dense", zoo.slow("small")])
def test_signatures_of_fixed_shapes_answer_the_same(name, jit_compile, tmp_path):
    learner, (x, y), x_query, expected = make_learner(name, batch_normalization="inductive")
    signatures = load(learner, tmp_path, shapes=[(3, 6, 5)], jit_compile=jit_compile)
    answer = signatures["adapt_and_predict_3x6x5"](x_support=x, y_support=y, x_query=x_query)
    np.testing.assert_allclose(answer["predictions"], expected, rtol=0, atol=1e-5)
    weights = signatures["adapt_3x6"](x_support=x, y_support=y)["weights"]
    answer = signatures["predict_with_3x5"](x=x_query, weights=weights)["predictions"]
    np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-5)
    with pytest.raises(tf.errors.InvalidArgumentError):
        signatures["adapt_3x6"](x_support=x[:, :4], y_support=y[:, :4])


@pytest.mark.slow
def test_tasks_with_large_patches_take_turns_in_signatures_of_fixed_shapes(tmp_path):
    with using(dataclasses.replace(PROCESSOR, task_patches=0)):
        learner, (x, y), x_query, expected = make_learner("small", batch_normalization="inductive")
        assert not learner.tasks.run_at_once(5)
        signatures = load(learner, tmp_path, shapes=[(3, 6, 5)], jit_compile=True)
    answer = signatures["adapt_and_predict_3x6x5"](x_support=x, y_support=y, x_query=x_query)
    np.testing.assert_allclose(answer["predictions"], expected, rtol=0, atol=1e-5)


def test_the_export_can_normalise_otherwise_than_the_learner(tmp_path):
    learner, (x, y), x_query, _ = make_learner("small")
    inductive, *_, expected = make_learner("small", batch_normalization="inductive")
    inductive.model.set_weights(learner.model.get_weights())
    expected = np.asarray(inductive.predict(((x, y), (x_query,)), verbose=0))
    signatures = load(learner, tmp_path, batch_normalization="inductive")
    answer = signatures["adapt_and_predict"](x_support=x, y_support=y, x_query=x_query)
    np.testing.assert_allclose(answer["predictions"], expected, rtol=0, atol=1e-5)
    weights = signatures["adapt"](x_support=x, y_support=y)["weights"]
    one = [
        signatures["predict_with"](x=x_query[:, i : i + 1], weights=weights)["predictions"]
        for i in range(5)
    ]
    np.testing.assert_allclose(np.concatenate(one, 1), expected, rtol=0, atol=1e-5)


def test_a_transductive_learner_served_one_query_at_a_time_is_warned_of(tmp_path):
    learner, *_ = make_learner("small")
    with pytest.warns(UserWarning, match='batch_normalization="inductive"') as caught:
        learner.export(tmp_path / "1", signatures=["predict_with"], verbose=False)
    assert caught[0].filename == __file__
    # Said so, or without single predictions: no warning, which would be an error here.
    settings = {"signatures": ["predict_with"], "batch_normalization": "transductive"}
    learner.export(tmp_path / "2", **settings, verbose=False)
    learner.export(tmp_path / "3", signatures=["adapt_and_predict"], verbose=False)


def test_warm_up_requests_are_right_and_run(tmp_path):
    learner, *_ = make_learner("dictionary_inputs")
    signatures = load(learner, tmp_path, shapes=[(2, 4, 3)])
    path = tmp_path / "1" / "assets.extra" / warmup.FILE
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
    warmed = set()
    for record in records:
        request = fields(fields(fields(record)[6][0])[1][0])
        name = fields(request[1][0])[3][0].decode()
        inputs = {}
        for entry in map(fields, request[2]):
            proto = tensor_pb2.TensorProto.FromString(entry[2][0])
            inputs[entry[1][0].decode()] = tf.constant(tf.make_ndarray(proto))
        signatures[name](**inputs)
        warmed.add(name)
    assert warmed == set(signatures)


def fields(message):
    """Decodes the length-delimited fields of a protocol buffer, by number."""
    found, at = {}, 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key, size = varint(), varint()
        assert key & 7 == 2
        found.setdefault(key >> 3, []).append(message[at : at + size])
        at += size
    return found


@pytest.mark.slow  # a process of its own
def test_loading_prints_no_warnings(tmp_path):
    learner, *_ = make_learner("small", batch_normalization="inductive")
    learner.export(tmp_path / "1", verbose=False)
    code = (  # warnings of the import are TensorFlow's own
        "import sys, warnings, tensorflow as tf; warnings.simplefilter('error', UserWarning); "
        "tf.saved_model.load(sys.argv[1])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "1")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "custom gradient" not in result.stdout + result.stderr
    assert "WARNING:tensorflow" not in result.stderr


def test_a_checksum_tells_learners_apart_and_knows_them_again(tmp_path):
    learner, *_ = make_learner("small", batch_normalization="inductive")
    checksum = ServedLearner(learner).checksum()
    learner.export(tmp_path / "1", verbose=False)
    facts = json.loads((tmp_path / "1" / "assets.extra" / "keras_maml.json").read_text())
    assert facts["checksum"] == checksum and facts["weights"] == ServedLearner(learner).size
    learner.save(tmp_path / "a.keras")
    again = keras.models.load_model(tmp_path / "a.keras")
    assert ServedLearner(again).checksum() == checksum
    assert ServedLearner(learner, "transductive").checksum() != checksum
    again.adapted_layers = "head"
    assert ServedLearner(again).checksum() != checksum
    learner.model.trainable_variables[0].assign_add(
        1e-6 * tf.ones_like(learner.model.trainable_variables[0])
    )
    assert ServedLearner(learner).checksum() != checksum


def learner_of(*layers, x, y, loss="mse"):
    learner = MAML(keras.Sequential([*layers]), 0.1, evaluation_steps=1)
    learner.compile("sgd", loss, jit_compile=False)
    learner.adapt(x, y)
    return learner


def scaled(scale=1, activation="tanh", names=(None, None)):
    return [
        keras.Input((2,)),
        keras.layers.Rescaling(scale, name=names[0]),
        keras.layers.Dense(1, activation, kernel_initializer="ones", name=names[1]),
    ]


def of_words(vocabulary):
    return [
        keras.Input((1,), dtype="string"),
        keras.layers.StringLookup(vocabulary=vocabulary),
        keras.layers.Embedding(3, 1, embeddings_initializer="ones"),
        keras.layers.Flatten(),
    ]


def test_a_checksum_tells_what_layers_are_set_to_and_not_what_they_are_called():
    ones, words = np.ones((2, 1), "float32"), np.array([["a"], ["b"]])

    def checksum(stack, x):
        return ServedLearner(learner_of(*stack, x=x, y=ones)).checksum()

    numbers = np.ones((2, 2), "float32")
    checksums = [
        checksum(scaled(), numbers),
        checksum(scaled(scale=3), numbers),
        checksum(scaled(activation="relu"), numbers),
        checksum(of_words(["a", "b"]), words),
        checksum(of_words(["b", "a"]), words),
    ]
    assert len(set(checksums)) == len(checksums)
    assert checksum(scaled(names=("first", "second")), numbers) == checksums[0]
    adapted = keras.layers.StringLookup()
    adapted.adapt(["a", "a", "b"])  # the most frequent first
    stack = of_words(["a", "b"])
    assert checksum([stack[0], adapted, *stack[2:]], words) == checksums[3]


def test_a_checksum_tells_which_layer_follows_which():
    def checksum(names, of_first):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((2,))
        first, second = (keras.layers.Dense(2, name=name)(inputs) for name in names)
        outputs = keras.layers.Subtract()([first if of_first else second, second + 2 * first])
        learner = MAML(keras.Model(inputs, outputs))
        learner.compile("sgd", "mse")
        return ServedLearner(learner).checksum()

    expected = checksum((None, None), of_first=True)
    assert checksum(("b", "a"), of_first=True) == expected
    assert checksum((None, None), of_first=False) != expected


class Unsaved(keras.Model):
    def __init__(self, function):
        super().__init__()
        self.dense = keras.layers.Dense(1, activation=function)

    def call(self, x):
        return self.dense(x)


def test_a_model_that_cannot_be_saved_has_a_checksum_of_its_layers():
    x, y = np.ones((2, 2), "float32"), np.ones((2, 1), "float32")
    checksums = []
    for function in (keras.ops.tanh, keras.ops.relu, keras.ops.tanh):
        keras.utils.set_random_seed(0)
        learner = MAML(Unsaved(function))
        learner.compile("sgd", "mse", jit_compile=False)
        learner.adapt(x, y)
        checksums.append(ServedLearner(learner).checksum())
    assert checksums[0] == checksums[2] != checksums[1]


def test_tokens_that_are_not_embedded_are_refused_in_every_signature(tmp_path):
    stack = [keras.Input((2,), dtype="int32"), keras.layers.Embedding(5, 1), keras.layers.Flatten()]
    x, y = np.array([[[0, 4], [1, 2]]], "int32"), np.ones((1, 2, 2), "float32")
    learner = learner_of(*stack, x=x[0], y=y[0])
    signatures = load(learner, tmp_path, shapes=[(1, 2, 2)])
    weights = signatures["adapt"](x_support=x, y_support=y)["weights"]
    right = {"x_support": x, "x_query": x, "x": x, "y_support": y, "weights": weights}
    for name, function in signatures.items():
        inputs = {
            key: tf.constant([1]) if key == "steps" else right[key]
            for key in function.structured_input_signature[1]
        }
        if name == "serving_default":
            inputs = {"x": x[0]}
        function(**inputs)
        for key in inputs.keys() & {"x", "x_support", "x_query"}:
            for token in (5, -3):
                wrong = inputs | {key: tf.constant(np.where(inputs[key] == 4, token, inputs[key]))}
                with pytest.raises(
                    tf.errors.InvalidArgumentError, match=f"{key} must hold integers in 0..4"
                ):
                    function(**wrong)


def test_tokens_that_are_not_embedded_are_refused_among_several_inputs():
    inputs = {name: keras.Input((), name=name, dtype="int32") for name in ("one", "two")}
    embedded = keras.layers.Embedding(5, 1)(inputs["one"])
    model = keras.Model(inputs, embedded + keras.ops.cast(inputs["two"], "float32")[:, None])
    learner = MAML(model)
    learner.compile("sgd", "mse", jit_compile=False)
    x = {name: np.array([0, 4], "int32") for name in inputs}
    learner.adapt(x, np.ones((2, 1)))
    predict = Tracer(ServedLearner(learner), steps=1).of_any_size(["adapt"])["serving_default"]
    predict(x_one=x["one"], x_two=x["two"] + 5)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"x_one must hold integers in 0..4"):
        predict(x_one=x["one"] + 1, x_two=x["two"])


def test_classes_that_there_are_not_are_refused_also_by_what_xla_compiles(tmp_path):
    x, y = np.eye(3, dtype="float32"), np.arange(3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner = learner_of(keras.Input((3,)), keras.layers.Dense(3), x=x, y=y, loss=loss)
    settings = {"signatures": ["adapt"], "shapes": [(1, 3, 1)], "jit_compile": True}
    signatures = load(learner, tmp_path, **settings)
    for name in ("adapt", "adapt_1x3"):
        weights = signatures[name](x_support=x[None], y_support=y[None])["weights"]
        assert np.isfinite(weights).all()
        with pytest.raises(tf.errors.InvalidArgumentError, match="y_support must hold integers"):
            wrong = tf.constant([[0, 1, 9]], tf.int64)
            signatures[name](x_support=x[None], y_support=wrong)


@pytest.mark.parametrize("dtype", ["uint8", zoo.slow("int64")])
def test_heads_of_any_number_of_classes_are_served_for_labels_of_any_width(dtype, tmp_path):
    x, y = np.eye(3, dtype="float32"), np.arange(3).astype(dtype)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner = learner_of(keras.Input((3,)), SharedHead(3), x=x, y=y, loss=loss)
    signatures = load(learner, tmp_path, signatures=["adapt_and_predict"])
    answer = signatures["adapt_and_predict"](x_support=x[None], y_support=y[None], x_query=x[None])[
        "predictions"
    ]
    expected = learner.adapt(x, y)(x)
    np.testing.assert_allclose(answer[0], expected, rtol=0, atol=1e-5)
    answer = signatures["adapt_and_predict"](
        x_support=x[None, :2], y_support=y[None, :2], x_query=x[None]
    )["predictions"]
    expected = learner.adapt(x[:2], y[:2])(x)  # which has two classes
    np.testing.assert_allclose(answer[0, :, :2], expected, rtol=0, atol=1e-5)


def test_texts_are_served(tmp_path):
    x, y = np.array([["a"], ["b"], ["c"]]), np.array([[1.0], [2.0], [3.0]], "float32")
    learner = learner_of(*of_words(["a", "b"]), x=x, y=y)
    load(learner, tmp_path, signatures=["adapt", "predict_with"])
    served = Personalizer(tmp_path / "1")
    served.adapt("ada", x, y)
    expected = learner.adapt(x, y).predict(tf.constant(x), verbose=0)
    np.testing.assert_allclose(served.predict("ada", x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": -1}, "steps must be an integer of at least 0, got -1"),
        ({"signatures": ["adapt", "fly"]}, "signatures must be one of .* got 'fly'"),
        ({"batch_normalization": "none"}, "batch_normalization must be one of"),
        ({"shapes": [(1, 5)]}, r"shapes must hold triples \(tasks, support, query\)"),
        ({"shapes": [(1, 0, 5)]}, "support in shapes must be an integer of at least 1"),
        ({"jit_compile": True}, "pass shapes, such as"),
    ],
)
def test_settings_out_of_range_say_what_to_do(settings, message, tmp_path):
    learner, *_ = make_learner("dense")
    with pytest.raises(ValueError, match=message):
        learner.export(tmp_path / "1", **settings)
    assert not list(tmp_path.iterdir())
