"""Files for devices adapt as the learner does, or name the layer that cannot."""

import os
import subprocess
import venv

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


CASES = {name: zoo.CASES[name] for name in ("dense", "lstm", "attention")}
CASES["relu_convolution"] = zoo.Case(relu_convolution, (6, 6, 2), zoo.SPARSE)


def make_learner(case, **settings):
    keras.utils.set_random_seed(2)
    learner = MAML(case.build(), 0.3, 2, batch_normalization="inductive", **settings)
    learner.compile("sgd", case.loss, run_eagerly=True)
    (x, y), (x_query, _) = zoo.episodes(case, tasks=1)
    expected = learner.predict(((x, y), (x_query,)), verbose=0)[0]
    arrays = {"x_support": x[0].numpy(), "y_support": y[0].numpy(), "x": x_query[0].numpy()}
    return learner, arrays, expected


def run(path, arrays):
    interpreter = tf.lite.Interpreter(str(path))
    support = {name: arrays[name] for name in ("x_support", "y_support")}
    weights = interpreter.get_signature_runner("adapt")(**support)["weights"]
    predict = interpreter.get_signature_runner("predict_with")
    return predict(x=arrays["x"], weights=weights)["predictions"]


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
@pytest.mark.parametrize(
    "name", ["dense", "lstm", zoo.slow("attention"), zoo.slow("relu_convolution")]
)
def test_a_device_adapts_as_the_learner_does(name, tmp_path):
    learner, arrays, expected = make_learner(CASES[name])
    before = learner(tf.constant(arrays["x"])).numpy()
    learner.export_litert(tmp_path / "a.tflite", support=6, query=5)
    answer = run(tmp_path / "a.tflite", arrays)
    np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-4)
    assert np.abs(answer - before).max() > 1e-3
    assert os.listdir(tmp_path).count("a.tflite") == 1


@pytest.mark.slow
def test_a_device_without_tensorflow_adapts_as_the_learner_does(tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    install = [python, "-m", "pip", "install", "--quiet", "ai-edge-litert>=2.3.0"]
    subprocess.run(install, env=environment, check=True)
    for name, case in CASES.items():
        learner, arrays, expected = make_learner(case)
        learner.export_litert(tmp_path / f"{name}.tflite", support=6, query=5)
        np.savez(tmp_path / "arrays.npz", **arrays)
        files = [str(tmp_path / file) for file in (f"{name}.tflite", "arrays.npz", "answer.npy")]
        subprocess.run([python, "-c", CLIENT, *files], env=environment, check=True)
        answer = np.load(tmp_path / "answer.npy")
        np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_half_precision_is_smaller_and_nearly_the_same(tmp_path):
    stack = [layers.Dense(200, "tanh"), layers.Dense(60, "relu"), layers.Dense(1)]
    wide = zoo.Case(lambda: keras.Sequential([keras.Input((3,)), *stack]), (3,))
    learner, arrays, expected = make_learner(wide, adapted_layers="head")
    learner.export_litert(tmp_path / "a.tflite", support=6, query=5)
    learner.export_litert(tmp_path / "b.tflite", support=6, query=5, float16=True)
    sizes = [(tmp_path / f"{name}.tflite").stat().st_size for name in "ab"]
    assert sizes[1] < 0.75 * sizes[0]
    answer = run(tmp_path / "b.tflite", arrays)
    np.testing.assert_allclose(answer, expected, rtol=0, atol=2e-2)


def test_a_layer_without_a_form_is_named_and_nothing_is_written(tmp_path):
    stack = [keras.Input((3,)), layers.Dense(4, "elu", name="curved"), layers.Dense(1)]
    learner, *_ = make_learner(zoo.Case(lambda: keras.Sequential(stack), (3,)))
    with pytest.raises(ValueError, match=r"'curved' cannot adapt on a device: .* EluGrad"):
        learner.export_litert(tmp_path / "a.tflite")
    assert not list(tmp_path.iterdir())


def test_a_file_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    learner, *_ = make_learner(CASES["dense"])
    other, *_ = make_learner(CASES["dense"])
    other.model.set_weights([weight + 0.1 for weight in learner.model.get_weights()])
    wrong = on_device.DeviceFunctions(other, "", 5, 1, None, None).functions()
    functions = on_device.DeviceFunctions.functions
    monkeypatch.setattr(
        on_device.DeviceFunctions,
        "functions",
        lambda self, route="portable": wrong if route == "portable" else functions(self, route),
    )
    with pytest.raises(ValueError, match="The converted adapt is wrong: its weights are up to"):
        learner.export_litert(tmp_path / "a.tflite")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_weights_after_every_step(tmp_path):
    learner, arrays, expected = make_learner(CASES["dense"])
    path = tmp_path / "a.tflite"
    learner.export_litert(path, support=6, query=5, every_step=True)
    interpreter = tf.lite.Interpreter(str(path))
    support = {name: arrays[name] for name in ("x_support", "y_support")}
    weights = interpreter.get_signature_runner("adapt")(**support)["weights"]
    predict = interpreter.get_signature_runner("predict_with")
    answers = [predict(x=arrays["x"], weights=row)["predictions"] for row in weights]
    once = learner.adapt(*support.values(), steps=1)
    for answer, right in zip(
        answers, (learner(arrays["x"]), once(arrays["x"]), expected), strict=True
    ):
        np.testing.assert_allclose(answer, right, rtol=0, atol=1e-4)


def test_what_exists_is_replaced_only_on_demand(tmp_path):
    learner, *_ = make_learner(CASES["dense"])
    (tmp_path / "a.tflite").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        learner.export_litert(tmp_path / "a.tflite")
    assert (tmp_path / "a.tflite").read_bytes() == b"mine"
    learner.export_litert(tmp_path / "a.tflite", overwrite=True)
    assert (tmp_path / "a.tflite").stat().st_size > 1000
