"""Files for devices adapt as the learner does, or name the layer that cannot."""

import functools
import itertools
import os
import subprocess
import venv
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from keras import layers

from keras_maml import MAML
from keras_maml.serving import on_device

# Runs where TensorFlow is not installed.
CLIENT = """
import json, sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter
path, arrays, answer = sys.argv[1:]
arrays = dict(np.load(arrays))
interpreter = Interpreter(path)
weights = interpreter.get_signature_runner("adapt")(
    x_support=arrays["x_support"], y_support=arrays["y_support"])["weights"]
predict = interpreter.get_signature_runner("predict_with")
np.save(answer, predict(x=arrays["x"], weights=weights)["predictions"])
assert "tensorflow" not in sys.modules
"""


def relu_convolution():
    stack = [
        keras.Input((6, 6, 2)),
        layers.Conv2D(3, 3, padding="same"),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.MaxPooling2D(2),
        layers.Conv2D(3, 2, activation="relu"),
        layers.Flatten(),
        layers.Dense(3, "softmax"),
    ]
    return keras.Sequential(stack)


def upsampling():
    """Refers to tensors that are no variables, and repeats rows and columns."""
    stack = [
        keras.Input((2, 2, 1)),
        layers.Normalization(mean=0.5, variance=4.0),
        layers.Dense(2),
        layers.UpSampling2D((2, 3)),
        layers.Flatten(),
        layers.Dense(3, "softmax"),
    ]
    return keras.Sequential(stack)


def activations():
    """What ONNX's formulas are for, and more classes than one axis."""
    kinds = ("tanh", "sigmoid", "softplus", "elu")
    stack = [(layers.Dense(4, kind), layers.UnitNormalization()) for kind in kinds]
    return keras.Sequential([keras.Input((2, 3)), *itertools.chain(*stack), layers.Dense(3)])


CASES = {name: zoo.CASES[name] for name in ("dense", "lstm", "attention")}
CASES["upsampling"] = zoo.Case(upsampling, (2, 2, 1), zoo.SPARSE)
CASES["relu_convolution"] = zoo.Case(relu_convolution, (6, 6, 2), zoo.SPARSE)


def make_learner(case, **settings):
    keras.utils.set_random_seed(2)
    learner = MAML(case.build(), 0.3, 2, batch_normalization="inductive", **settings)
    learner.compile("sgd", case.loss, run_eagerly=True)
    (x, y), (x_query, _) = zoo.episodes(case, tasks=1)
    expected = learner.predict(((x, y), (x_query,)), verbose=0)[0]
    arrays = {"x_support": x[0].numpy(), "y_support": y[0].numpy(), "x": x_query[0].numpy()}
    return learner, arrays, expected


def export(kind, learner, path, **how):
    getattr(learner, f"export_{kind}")(path, **({"support": 6, "query": 5} | how))


def opened(kind, path):
    """Returns the two functions that a file or folder holds, by name."""
    names = ("adapt", "predict_with")
    if kind == "litert":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the interpreter moves to another package
            interpreter = tf.lite.Interpreter(str(path))
        return {name: interpreter.get_signature_runner(name) for name in names}
    import onnxruntime

    def function(name):
        session = onnxruntime.InferenceSession(path / f"{name}.onnx")
        outputs = [output.name for output in session.get_outputs()]
        return lambda **inputs: dict(zip(outputs, session.run(outputs, inputs), strict=True))

    return {name: function(name) for name in names}


def run(kind, path, arrays):
    functions = opened(kind, path)
    support = {name: arrays[name] for name in ("x_support", "y_support")}
    weights = functions["adapt"](**support)["weights"]
    return functions["predict_with"](x=arrays["x"], weights=weights)["predictions"]


@pytest.fixture(params=["litert", "onnx"])
def kind(request):
    if request.param == "onnx":
        for package in ("tf2onnx", "onnxruntime"):
            pytest.importorskip(package, reason="needs the extra onnx")
    return request.param


@pytest.mark.parametrize(
    "name", ["dense", "upsampling", *map(zoo.slow, ("lstm", "attention", "relu_convolution"))]
)
def test_a_device_adapts_as_the_learner_does(kind, name, tmp_path):
    learner, arrays, expected = make_learner(CASES[name])
    before = learner(tf.constant(arrays["x"])).numpy()
    export(kind, learner, tmp_path / "a")
    answer = run(kind, tmp_path / "a", arrays)
    np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-4)
    assert np.abs(answer - before).max() > 1e-3
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.slow
def test_a_device_without_tensorflow_adapts_as_the_learner_does(tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    install = [python, "-m", "pip", "install", "--quiet", "ai-edge-litert>=2.3.0"]
    subprocess.run(install, env=environment, check=True)
    for name, case in CASES.items():
        learner, arrays, expected = make_learner(case)
        export("litert", learner, tmp_path / f"{name}.tflite")
        np.savez(tmp_path / "arrays.npz", **arrays)
        files = [str(tmp_path / file) for file in (f"{name}.tflite", "arrays.npz", "answer.npy")]
        subprocess.run([python, "-c", CLIENT, *files], env=environment, check=True)
        answer = np.load(tmp_path / "answer.npy")
        np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-4, err_msg=name)


def test_half_precision_is_smaller_and_nearly_the_same(tmp_path):
    stack = [layers.Dense(200, "tanh"), layers.Dense(60, "relu"), layers.Dense(1)]
    wide = zoo.Case(lambda: keras.Sequential([keras.Input((3,)), *stack]), (3,))
    learner, arrays, expected = make_learner(wide, adapted_layers="head")
    export("litert", learner, tmp_path / "a.tflite")
    export("litert", learner, tmp_path / "b.tflite", float16=True)
    sizes = [(tmp_path / f"{name}.tflite").stat().st_size for name in "ab"]
    assert sizes[1] < 0.75 * sizes[0]
    answer = run("litert", tmp_path / "b.tflite", arrays)
    np.testing.assert_allclose(answer, expected, rtol=0, atol=2e-2)


def test_a_layer_without_a_form_is_named_and_nothing_is_written(kind, tmp_path):
    activation, lacking = {"litert": ("elu", "EluGrad"), "onnx": ("selu", "SeluGrad")}[kind]
    stack = [
        keras.Input((3,)),
        layers.Dense(4, activation, name="curved"),
        layers.Dense(2, "relu", name="curved_1"),  # as TensorFlow may call what is of the first
        layers.Dense(1),
    ]
    learner, *_ = make_learner(zoo.Case(lambda: keras.Sequential(stack), (3,)))
    with pytest.raises(
        ValueError, match=rf"^Layer 'curved' cannot adapt on a device: .* {lacking}"
    ):
        export(kind, learner, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_lookup_table_has_no_form_on_devices_and_is_named(tmp_path):
    lookup = layers.IntegerLookup(
        vocabulary=[5, 6], output_mode="one_hot", num_oov_indices=1, name="lookup"
    )
    model = keras.Sequential([keras.Input((1,), dtype="int64"), lookup, layers.Dense(1)])
    learner = MAML(model, 0.1)
    learner.compile("sgd", "mean_squared_error", run_eagerly=True)
    learner.adapt(np.array([[5], [6]]), np.zeros([2, 1]))
    with pytest.raises(ValueError, match="^Layer 'lookup' cannot adapt on a device: .*HashTable"):
        export("litert", learner, tmp_path / "a", support=2)


def test_a_file_that_does_not_run_is_refused():
    learner, *_ = make_learner(CASES["dense"])
    device = on_device.DeviceFunctions(learner, "", 6, 5, None, None)

    def run(name, inputs):
        raise RuntimeError("failed to delegate SUM")

    with pytest.raises(ValueError, match=r"adapt does not run: failed to delegate SUM\. Nothing"):
        device.check(run, tolerance=1.0)


def test_a_file_that_computes_something_else_is_refused(kind, tmp_path, monkeypatch):
    learner, *_ = make_learner(CASES["dense"])
    other, *_ = make_learner(CASES["dense"])
    other.model.set_weights([weight + 0.1 for weight in learner.model.get_weights()])
    wrong = on_device.DeviceFunctions(other, "", 6, 5, None, None).functions()
    functions = on_device.DeviceFunctions.functions
    monkeypatch.setattr(
        on_device.DeviceFunctions,
        "functions",
        lambda self, route="portable": wrong if route == "portable" else functions(self, route),
    )
    with pytest.raises(ValueError, match="The converted adapt is wrong: its weights are up to"):
        export(kind, learner, tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("float16", [False, True])
@pytest.mark.parametrize("times", [0, -1], ids=["nothing", "the other way"])
def test_a_file_that_adapts_nothing_or_climbs_is_refused(times, float16):
    learner, *_ = make_learner(CASES["dense"], adapted_layers="head")
    learner.inner_learning_rate = 0.01
    device = on_device.DeviceFunctions(learner, "", 6, 5, None, None)
    right = device.functions("plain")
    initial = np.concatenate([np.ravel(v) for v in learner.partition().initial])

    def run(name, inputs, times=times):
        answers = right[name](**{key: tf.constant(value) for key, value in inputs.items()})
        answers = {key: value.numpy() for key, value in answers.items()}
        if name == "adapt":
            answers["weights"] = initial + times * (answers["weights"] - initial)
        return answers

    tolerance = on_device.FLOAT16_TOLERANCE if float16 else on_device.TOLERANCE
    with pytest.raises(ValueError, match="The converted adapt is wrong: its weights are up to"):
        device.check(run, tolerance, float16)
    device.check(functools.partial(run, times=1), tolerance, float16)


def test_files_are_compared_on_all_tokens_and_all_values_of_pixels():
    random = np.random.default_rng(0)
    for name, dtype, bound, largest in (
        ("x", tf.int32, 5, 4),
        ("x", tf.uint8, None, 255),
        ("y_support", tf.int32, None, 1),
        ("x", tf.int8, 50_000, 127),
    ):
        spec = tf.TensorSpec([9999], dtype)
        assert on_device._numbers(random, name, spec, bound).max() == largest


def test_weights_after_every_step(kind, tmp_path):
    learner, arrays, expected = make_learner(CASES["dense"])
    export(kind, learner, tmp_path / "a", every_step=True)
    functions = opened(kind, tmp_path / "a")
    support = {name: arrays[name] for name in ("x_support", "y_support")}
    weights = functions["adapt"](**support)["weights"]
    predict = functions["predict_with"]
    answers = [predict(x=arrays["x"], weights=row)["predictions"] for row in weights]
    once = learner.adapt(*support.values(), steps=1)
    for answer, right in zip(
        answers, (learner(arrays["x"]), once(arrays["x"]), expected), strict=True
    ):
        np.testing.assert_allclose(answer, right, rtol=0, atol=1e-4)


def test_what_exists_is_replaced_only_on_demand(kind, tmp_path):
    learner, *_ = make_learner(CASES["dense"])
    path = tmp_path / "a"
    if kind == "onnx":
        path.mkdir()
        path /= "adapt.onnx"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export(kind, learner, tmp_path / "a")
    assert path.read_bytes() == b"mine"
    export(kind, learner, tmp_path / "a", overwrite=True)
    assert set(opened(kind, tmp_path / "a")) == {"adapt", "predict_with"}


def test_a_folder_of_something_else_is_never_replaced(tmp_path):
    learner, *_ = make_learner(CASES["dense"])
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not a learner in ONNX"):
        export("onnx", learner, tmp_path, overwrite=True)
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.slow
def test_gradients_that_onnx_lacks_are_its_formulas(tmp_path):
    pytest.importorskip("tf2onnx", reason="needs the extra onnx")
    case = zoo.Case(activations, (2, 3))
    for loss in (
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        keras.losses.CategoricalCrossentropy(from_logits=True),
    ):
        sparse = "Sparse" in type(loss).__name__
        learner = MAML(case.build(), 0.3, 2)
        learner.compile("sgd", loss, run_eagerly=True)
        random = np.random.default_rng(0)
        x, y = random.normal(size=(6, 2, 3)).astype("float32"), random.integers(3, size=(6, 2))
        y = y.astype("int32") if sparse else np.eye(3, dtype="float32")[y]
        expected = learner.adapt(x, y)(x[:5])
        path = tmp_path / type(loss).__name__
        export("onnx", learner, path)
        answer = run("onnx", path, {"x_support": x, "y_support": y, "x": x[:5]})
        np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-5)
        assert np.abs(answer - learner(x[:5])).max() > 1e-3


@pytest.mark.slow
def test_no_large_constant_of_an_onnx_model_is_told_by_others(tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    pytest.importorskip("tf2onnx", reason="needs the extra onnx")
    stack = [layers.Conv2D(16, 3, padding="same"), layers.Flatten(), layers.Dense(3, "softmax")]
    model = keras.Sequential([keras.Input((9, 9, 4)), *stack])
    case = zoo.Case(lambda: model, (9, 9, 4), zoo.SPARSE)
    learner, arrays, expected = make_learner(case)
    export("onnx", learner, tmp_path / "a")
    answer = run("onnx", tmp_path / "a", arrays)
    np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-4)
    tensors = onnx.load(tmp_path / "a" / "adapt.onnx").graph.initializer
    large = [a for a in map(onnx.numpy_helper.to_array, tensors) if a.nbytes > 1000]
    assert len({a.tobytes() for a in large}) == len(large)
    assert not [a.shape for a in large if any(np.all(a == a.take([0], i)) for i in range(a.ndim))]
