"""An exported learner adapts as `predict` does: in other processes and through other loaders."""

import json
import os
import pathlib
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from tensorflow.core.protobuf import saved_model_pb2

from keras_maml import MAML

CASES = zoo.CASES | {"small": zoo.SMALL}
SERVED = {
    "dense": {},
    "small, inductive": {"batch_normalization": "inductive"},
    "dictionary_inputs": {},
}
OTHERS = {"small": {}, "embedding": {}, "lstm": {}, "subclassed": {}}
# Runs every request twice in a process without our code: serving must not change the weights.
# TensorFlow imports Keras where it finds it, so here it finds none.
CLIENT = """
import json, sys
sys.modules["keras"] = None
import numpy as np, tensorflow as tf
folder = sys.argv[1]
arrays, answers, models = np.load(folder + "/requests.npz"), {}, {}
for number, (path, signature, names) in enumerate(json.load(open(folder + "/requests.json"))):
    if path not in models:
        models[path] = tf.saved_model.load(path).signatures
    inputs = {name: tf.constant(arrays[f"{number} {name}"]) for name in names}
    first, second = (models[path][signature](**inputs)["predictions"].numpy() for _ in range(2))
    assert np.array_equal(first, second)
    answers[str(number)] = first
assert not [name for name in sys.modules if name.startswith(("keras.", "keras_maml"))]
np.savez(folder + "/answers.npz", **answers)
"""
# TensorFlow's C API has the loader of TensorFlow Serving.
C_CLIENT = """
import ctypes, json, sys
import numpy as np
library, path, inputs, output, arrays, answer = json.loads(sys.argv[1])
c = ctypes.CDLL(library)
for name in "NewStatus NewGraph NewSessionOptions AllocateTensor TensorData Message".split():
    getattr(c, "TF_" + name).restype = ctypes.c_void_p
c.TF_LoadSessionFromSavedModel.restype = c.TF_GraphOperationByName.restype = ctypes.c_void_p
c.TF_Message.restype, c.TF_Dim.restype = ctypes.c_char_p, ctypes.c_int64
pointer = ctypes.c_void_p
class Output(ctypes.Structure):
    _fields_ = [("operation", pointer), ("index", ctypes.c_int)]
status, graph = pointer(c.TF_NewStatus()), pointer(c.TF_NewGraph())
def check():
    assert c.TF_GetCode(status) == 0, c.TF_Message(status)
tags = (ctypes.c_char_p * 1)(b"serve")
session = pointer(c.TF_LoadSessionFromSavedModel(
    pointer(c.TF_NewSessionOptions()), None, path.encode(), tags, 1, graph, None, status))
check()
def find(name):
    operation, index = name.split(":")
    return Output(c.TF_GraphOperationByName(graph, operation.encode()), int(index))
def tensor(array):
    shape = (ctypes.c_int64 * array.ndim)(*array.shape)
    code = {"float32": 1, "int32": 3}[array.dtype.name]
    result = pointer(c.TF_AllocateTensor(code, shape, array.ndim, ctypes.c_size_t(array.nbytes)))
    ctypes.memmove(c.TF_TensorData(result), array.tobytes(), array.nbytes)
    return result
arrays = np.load(arrays)
feeds = (Output * len(inputs))(*map(find, inputs.values()))
values = (pointer * len(inputs))(*(tensor(arrays[name]) for name in inputs))
fetch, fetched = (Output * 1)(find(output)), (pointer * 1)()
c.TF_SessionRun(session, None, feeds, values, len(inputs), fetch, fetched, 1, None, 0, None, status)
check()
result = pointer(fetched[0])
shape = [c.TF_Dim(result, axis) for axis in range(c.TF_NumDims(result))]
data = ctypes.string_at(c.TF_TensorData(result), 4 * int(np.prod(shape)))
np.save(answer, np.frombuffer(data, np.float32).reshape(shape))
assert "tensorflow" not in sys.modules
"""


def make_learner(case, *, fast=False, **settings):
    """What is fast to run takes long to compile: by default, the learner runs eagerly."""
    settings = {"inner_learning_rate": 0.3, "inner_steps": 2, "evaluation_steps": 3} | settings
    learner = MAML(case.build(), **settings)
    learner.compile("sgd", case.loss, run_eagerly=not fast)
    return learner


def flat(name, nest):
    if isinstance(nest, dict):
        return {f"{name}_{key}": array.numpy() for key, array in nest.items()}
    return {name: nest.numpy()}


def request(support, query):
    x, y = support
    return flat("x_support", x) | flat("y_support", y) | flat("x_query", query[0])


def task(index, nest):
    return keras.tree.map_structure(lambda array: array[index], nest)


def slice_of(index, nest):
    """A batch of one task."""
    return keras.tree.map_structure(lambda array: array[index : index + 1], nest)


def run(*command):
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def signature(path, name="adapt_and_predict"):
    return tf.saved_model.load(str(path)).signatures[name]


def call(path, inputs, name="adapt_and_predict"):
    function = signature(path, name)
    return function(**{key: tf.constant(value) for key, value in inputs.items()})["predictions"]


def ask(folder, cases):
    """What a process without our code answers, beside what the learner says: by case and kind."""
    requests, expected = [], []
    for name, settings in cases.items():
        keras.utils.set_random_seed(len(requests))
        case = CASES[name.split(",")[0]]
        learner = make_learner(case, fast=name == "dense", **settings)
        support, query = zoo.episodes(case)
        path = str(folder / name)

        def request_of(kind, inputs, value, signature="adapt_and_predict", name=name, path=path):
            requests.append((path, signature, inputs))
            expected.append(((name, kind), np.asarray(value)))

        predictions = learner.predict((support, query), verbose=0)
        # The names of all signatures are looked at below, in one export alone.
        every = {} if name == "dictionary_inputs" else {"signatures": ["adapt_and_predict"]}
        mode = learner.batch_normalization
        learner.export(path, batch_normalization=mode, **every, verbose=False)
        request_of("batch of tasks", request(support, query), predictions)
        one = request(slice_of(1, support), slice_of(1, query))
        request_of("one task", one, predictions[1:2])
        others = zoo.episodes(case, tasks=2, support=4, query=7, seed=1)
        request_of("other numbers", request(*others), learner.predict(others, verbose=0))
        adapted = learner.adapt(
            *task(1, support), steps=1, batch_normalization=learner.batch_normalization
        )
        request_of(
            "steps",
            one | {"steps": np.int32([1])},
            adapted(task(1, query[0]), training=False)[None],
            "adapt_and_predict_steps",
        )
        start = learner(task(1, query[0]))
        request_of("serving_default", flat("x", task(1, query[0])), start, "serving_default")
        if name != "small, inductive":  # whose queries are not normalised by their own statistics
            steps = {"steps": np.int32([0])}
            request_of("no steps", one | steps, start[None], "adapt_and_predict_steps")
    arrays = {f"{i} {k}": v for i, (*_, inputs) in enumerate(requests) for k, v in inputs.items()}
    np.savez(folder / "requests.npz", **arrays)
    listing = [(path, signature, list(inputs)) for path, signature, inputs in requests]
    (folder / "requests.json").write_text(json.dumps(listing))
    run(sys.executable, "-c", CLIENT, str(folder))
    results = np.load(folder / "answers.npz")
    pairs = {key: (results[str(i)], value) for i, (key, value) in enumerate(expected)}
    return types.SimpleNamespace(folder=folder, pairs=pairs, requests=requests)


@pytest.fixture(scope="module", name="answers")
def answers_of_the_served(tmp_path_factory):
    """See `ask`."""
    return ask(tmp_path_factory.mktemp("served"), SERVED)


KINDS = ("batch of tasks", "one task", "other numbers", "steps", "serving_default", "no steps")


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_without_our_code_answers_as_the_learner_does(answers, kind):
    cases = [name for name in SERVED if (name, kind) in answers.pairs]
    assert len(cases) >= len(SERVED) - 1
    for name in cases:
        answer, expected = answers.pairs[name, kind]
        np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_so_it_does_for_models_of_other_kinds(tmp_path):
    for key, (answer, expected) in ask(tmp_path, OTHERS).pairs.items():
        np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-5, err_msg=str(key))


def test_adaptation_changes_the_answers(answers):
    for name in SERVED:
        start, adapted = answers.pairs[name, "serving_default"], answers.pairs[name, "one task"]
        assert np.abs(start[0] - adapted[0][0]).max() > 1e-3


def test_saved_model_cli_runs_the_signatures(answers, tmp_path):
    path, _, inputs = answers.requests[0]
    inputs = inputs | {"steps": np.int32([3, 3, 3])}
    np.savez(tmp_path / "inputs.npz", **inputs)
    run(
        *(sys.executable, "-m", "tensorflow.python.tools.saved_model_cli", "run"),
        *("--dir", path, "--tag_set", "serve", "--signature_def", "adapt_and_predict_steps"),
        *("--inputs", ";".join(f"{name}={tmp_path}/inputs.npz[{name}]" for name in inputs)),
        *("--outdir", str(tmp_path)),
    )
    _, expected = answers.pairs["dense", "batch of tasks"]
    np.testing.assert_allclose(np.load(tmp_path / "predictions.npy"), expected, rtol=0, atol=1e-5)


def test_the_loader_of_tensorflow_serving_answers_as_the_learner_does(answers, tmp_path):
    library = next(pathlib.Path(tf.sysconfig.get_lib()).glob("libtensorflow_cc.*"), None)
    if library is None:
        pytest.skip("this build of TensorFlow has no libtensorflow_cc")
    path, name, inputs = next(r for r in answers.requests if r[0].endswith("/small, inductive"))
    definition = signature_definitions(path)[name]
    np.savez(tmp_path / "inputs.npz", **inputs)
    arguments = [
        str(library),
        path,
        {name: definition.inputs[name].name for name in inputs},
        definition.outputs["predictions"].name,
        str(tmp_path / "inputs.npz"),
        str(tmp_path / "answer.npy"),
    ]
    run(sys.executable, "-c", C_CLIENT, json.dumps(arguments))
    _, expected = answers.pairs["small, inductive", "batch of tasks"]
    np.testing.assert_allclose(np.load(tmp_path / "answer.npy"), expected, rtol=0, atol=1e-5)


def signature_definitions(path):
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString(pathlib.Path(path, "saved_model.pb").read_bytes())
    return saved.meta_graphs[0].signature_def


def test_signatures_have_clean_names(answers):
    definitions = signature_definitions(answers.folder / "dictionary_inputs")
    sides = {f"x_{half}_{side}" for half in ("support", "query") for side in ("left", "right")}
    inputs = {
        "serving_default": {"x_left", "x_right"},
        "adapt_and_predict": sides | {"y_support"},
        "adapt_and_predict_steps": sides | {"y_support", "steps"},
        "predict_with": {"x_left", "x_right", "weights"},
    }
    for name, expected in inputs.items():
        assert set(definitions[name].inputs) == expected
        assert set(definitions[name].outputs) == {"predictions"}
    assert set(definitions["adapt"].inputs) == {"x_support_left", "x_support_right", "y_support"}
    assert set(definitions["adapt"].outputs) == {"weights"}


# --- in this process -------------------------------------------------------------------------


@pytest.fixture
def dense():
    case = zoo.CASES["dense"]
    learner = make_learner(case)
    episode = zoo.episodes(case)
    learner.adapt(*task(0, episode[0]))
    return learner, episode


@pytest.mark.parametrize("name", [zoo.slow("dictionary_inputs"), "tuple_inputs", zoo.slow("small")])
def test_a_loaded_learner_can_be_exported_at_once(name, tmp_path):
    case = CASES[name]
    learner = make_learner(case)
    support, query = zoo.episodes(case)
    expected = learner.predict((support, query), verbose=0)
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    assert repr(loaded.support_spec) == repr(learner.support_spec)
    loaded.export(tmp_path / "1", batch_normalization="transductive", verbose=False)
    if name == "tuple_inputs":
        support, query = (
            (dict(zip("01", half[0], strict=True)), *half[1:]) for half in (support, query)
        )
    answer = call(tmp_path / "1", request(support, query))
    np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-5)


def test_several_outputs_are_named_and_dropout_is_off(tmp_path):
    inputs = keras.Input((3,))
    hidden = keras.layers.Dropout(0.5)(keras.layers.Dense(4, "tanh")(inputs))
    outputs = {"mean": keras.layers.Dense(1)(hidden), "class": keras.layers.Dense(3)(hidden)}
    learner = MAML(keras.Model(inputs, outputs), 0.3)
    losses = {"mean": "mse", "class": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
    learner.compile("sgd", losses, jit_compile=False)
    x = tf.random.normal((2, 4, 3))
    y = {"mean": x[..., :1], "class": tf.constant([[0, 1, 2, 0]] * 2)}
    expected = learner.predict(((x, y), (x,)), verbose=0)
    learner.export(tmp_path / "1", verbose=False)
    answer = signature(tmp_path / "1")(
        x_support=x, x_query=x, y_support_mean=y["mean"], y_support_class=y["class"]
    )
    assert set(answer) == {"mean", "class"}
    for name, value in answer.items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-5)


def test_lookup_tables_are_exported_with_the_model(tmp_path):
    stack = [
        keras.Input((3,), dtype="int64"),
        keras.layers.IntegerLookup(vocabulary=[10, 11, 12]),
        keras.layers.Embedding(4, 2),
        keras.layers.Flatten(),
        keras.layers.Dense(1),
    ]
    learner = MAML(keras.Sequential(stack), 0.3)
    learner.compile("sgd", "mse", jit_compile=False)
    x, y = tf.constant([[[10, 11, 12], [12, 99, 10]]], tf.int64), tf.ones((1, 2, 1))
    expected = learner.predict(((x, y), (x,)), verbose=0)
    learner.export(tmp_path / "1", verbose=False)
    answer = signature(tmp_path / "1")(x_support=x, y_support=y, x_query=x)["predictions"]
    np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-5)


def test_steps_of_the_export_and_of_each_task(dense, tmp_path, capsys):
    learner, (support, query) = dense
    learner.export(tmp_path / "1", steps=1, signatures=["adapt_and_predict"])
    assert capsys.readouterr().out.splitlines() == [
        f"Exported to {tmp_path / '1'}: serving_default(x), "
        "adapt_and_predict_steps(steps, x_query, x_support, y_support), "
        "adapt_and_predict(x_query, x_support, y_support)"
    ]

    def expected(index, steps):
        adapted = learner.adapt(
            *task(index, support), steps=steps, batch_normalization=learner.batch_normalization
        )
        return adapted(task(index, query[0]))

    inputs = request(support, query)
    answer = call(tmp_path / "1", inputs)
    np.testing.assert_allclose(answer[2], expected(2, 1), rtol=0, atol=1e-5)
    inputs["steps"] = np.int32([2, 0, 1])
    answer = call(tmp_path / "1", inputs, "adapt_and_predict_steps")
    for index, steps in enumerate([2, 0, 1]):
        np.testing.assert_allclose(answer[index], expected(index, steps), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A signature of an exported learner."""
    path = tmp_path_factory.mktemp("exported") / "1"
    case = zoo.CASES["dense"]
    learner = make_learner(case)
    learner.build_on(zoo.episodes(case))
    learner.export(path, signatures=["adapt_and_predict"], verbose=False)
    return signature(path, "adapt_and_predict_steps")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_query": (1, 2, 4)}, r"x_query must have the shape \[tasks, examples, 3\]"),
        ({"x_query": (5, 3)}, r"x_query must have the shape .* got\] \[5 3\]"),
        ({"x_support": (1, 1, 4, 3)}, r"x_support must have the shape .* \[1 1 4 3\]"),
        ({"x_support": (1, 0, 3), "y_support": (1, 0, 1)}, r"x_support must have the shape"),
        ({"y_support": (1, 4)}, r"y_support must have the shape .* got\] \[1 4\]"),
        ({"y_support": (1, 1, 1)}, "y_support must have as many tasks and examples as x_support"),
        ({"x_query": (2, 5, 3)}, "x_query must have as many tasks as x_support"),
        ({"steps": [-1]}, r"steps must be at least 0, got\] \[-1\]"),
        ({"steps": [1, 2]}, r"steps must have the shape \[tasks\], with as many tasks as x_supp"),
        ({"steps": 1}, r"steps must have the shape \[tasks\], .* got\] \[\]"),
    ],
)
def test_malformed_requests_say_what_is_wrong(exported, changes, message):
    inputs = {"x_support": (1, 4, 3), "y_support": (1, 4, 1), "x_query": (1, 5, 3)} | changes
    inputs = {name: np.ones(shape, np.float32) for name, shape in inputs.items() if name != "steps"}
    inputs["steps"] = np.int32(changes.get("steps", [1]))
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        exported(**{name: tf.constant(value) for name, value in inputs.items()})


def test_a_learner_that_cannot_be_exported_says_why(dense, tmp_path):
    learner = make_learner(zoo.CASES["dense"])
    with pytest.raises(ValueError, match="call fit, evaluate, build_on or adapt once before"):
        learner.export(tmp_path / "1")
    with pytest.raises(ValueError, match="call compile before"):
        MAML(zoo.CASES["dense"].build()).export(tmp_path / "1")
    with pytest.raises(ValueError, match="steps must be an integer of at least 0"):
        dense[0].export(tmp_path / "1", steps=-1)
    assert not list(tmp_path.iterdir())


ONE = {"signatures": ["adapt_and_predict"]}  # what is traced most quickly


def contents(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_exists_is_replaced_only_on_demand(dense, tmp_path):
    learner, (support, query) = dense
    path = tmp_path / "model" / "1"
    learner.export(path, steps=0, **ONE, verbose=False)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        learner.export(path)
    with pytest.raises(FileExistsError, match="not a SavedModel"):
        learner.export(path.parent, overwrite=True)
    assert contents(tmp_path) == before
    learner.export(path, overwrite=True, **ONE, verbose=False)
    expected = learner.predict((support, query), verbose=0)
    answer = call(path, request(support, query))
    np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-5)
    assert os.listdir(tmp_path) == ["model"] and os.listdir(path.parent) == ["1"]


def test_a_failure_half_way_leaves_nothing(dense, tmp_path, monkeypatch):
    learner, _ = dense
    learner.export(tmp_path / "1", **ONE, verbose=False)
    before = contents(tmp_path)

    def fail(module, folder, signatures, options):
        os.makedirs(folder)
        pathlib.Path(folder, "saved_model.pb").write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(tf.saved_model, "save", fail)
    for path in (tmp_path / "1", tmp_path / "new" / "folder" / "1"):
        with pytest.raises(OSError, match="disk full"):
            learner.export(path, overwrite=True, **ONE)
    assert contents(tmp_path) == before
    assert os.listdir(tmp_path) == ["1"]
