"""Benchmarks: all contenders compute the same, and what does not is found out."""

import dataclasses
import functools
import importlib.util
import json

import numpy as np
import pytest

from experiments.benchmarks import (
    adaptation,
    algorithms,
    comparison,
    contenders,
    customers,
    devices,
    episodes,
    fit,
    load,
    meta_step,
    report,
    serving,
    store,
    timing,
    work,
)
from experiments.benchmarks.worker import Worker, WorkerError, WorkerTimeout
from keras_maml import MAML

SINUSOID = work.Work(
    "s", "tiny sinusoid", dataclasses.replace(work.SINUSOID, filters=5), 2, 4, 3, 2, 0.1, batches=2
)
OMNIGLOT = work.Work(
    "o",
    "tiny Omniglot",
    work.Network("omniglot", (9, 9, 1), filters=3, layers=4),
    tasks=2,
    shots=2,
    queries=3,
    steps=1,
    rate=0.1,
    ways=3,
)
MINI_IMAGENET = dataclasses.replace(
    OMNIGLOT,
    line="m",
    title="tiny mini-ImageNet",
    network=work.Network("mini_imagenet", (17, 17, 3), filters=3, layers=4),
)
FAST = [SINUSOID, OMNIGLOT, MINI_IMAGENET]
SLOW = [
    dataclasses.replace(line, order=order, steps=2)
    for line in FAST
    for order in ("second", "first", "evaluation")
    if not (line is SINUSOID and order == "evaluation")
]
OTHERS = [name for name in contenders.CONTENDERS if name != comparison.REFERENCE]


def cases():
    """Every contender on every line; what takes ten seconds to trace or to compile is slow."""
    for name in OTHERS:
        for line in FAST:
            ways = name.startswith("keras_maml ")  # of ours, which other tests compare
            slow = ways or (line is not SINUSOID and not name.startswith("PyTorch"))
            marks = [pytest.mark.slow] if slow else []
            yield pytest.param(name, line, id=f"{name}-{line.line}", marks=marks)
        for line in SLOW:
            case = f"{name}-{line.line}-{line.order}-2-steps"
            yield pytest.param(name, line, id=case, marks=pytest.mark.slow)


def in_float64(line):
    weights = comparison.in_float64(timing.initial_weights(line))
    # Random numbers instead of zeros and of the small initial values, so that all is exercised.
    random = np.random.default_rng(1)
    weights = [weight + random.normal(0, 0.3, weight.shape) for weight in weights]
    return weights, tuple(comparison.in_float64(work.episodes(line)))


def compute(name, line, weights, episodes):
    step, arrays = contenders.load(name).prepare(line, weights, episodes)
    return arrays(step())


@pytest.fixture
def float64_jax():
    yield
    if importlib.util.find_spec("jax"):
        import jax

        jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize("name,line", list(cases()))
def test_a_contender_computes_what_the_reference_does(
    name, line, float64, float64_jax, request, monkeypatch
):
    package = contenders.CONTENDERS[name][1]
    pytest.importorskip(package, reason=f"the extra 'bench' is not installed: {package}")
    if not request.node.get_closest_marker("slow"):  # XLA takes its time to compile
        compile_learner = MAML.compile
        monkeypatch.setattr(
            MAML, "compile", functools.partialmethod(compile_learner, jit_compile=False)
        )
    weights, episodes = in_float64(line)
    exact = compute(comparison.REFERENCE, line, weights, episodes)
    found = comparison.errors(compute(name, line, weights, episodes), exact)
    assert found.loss < 1e-11 and found.gradient < 1e-10


def test_first_order_is_something_else():
    weights, episodes = in_float64(SINUSOID)
    first = dataclasses.replace(SINUSOID, order="first")
    second = compute(comparison.REFERENCE, SINUSOID, weights, episodes)
    found = comparison.errors(compute(comparison.REFERENCE, first, weights, episodes), second)
    assert found.loss < 1e-14 and found.gradient > 1e-3


def test_the_arithmetic_is_that_of_a_count_by_hand():
    # One input, two hidden layers of 5, one output: 5, 25 and 5 multiply-adds a point.
    assert list(work.products(SINUSOID)) == [10.0, 50.0, 10.0]
    support = 2 * 4 * (10 * (2 + 2) + 60 * (3 + 6))  # 2 steps of 4 points
    query = 3 * (10 * 2 + 60 * 3)
    assert work.arithmetic(SINUSOID) == 2 * (support + query)  # 2 tasks
    first = dataclasses.replace(SINUSOID, order="first")
    assert work.arithmetic(first) == 2 * (2 * 4 * (10 * 2 + 60 * 3) + query)
    evaluation = dataclasses.replace(SINUSOID, order="evaluation")
    assert work.arithmetic(evaluation) == 2 * (2 * 4 * (10 * 2 + 60 * 3) + 3 * 3 * 70)


def test_the_products_are_those_of_the_networks():
    # 9x9 -> 5x5 -> 3x3 -> 2x2 -> 1x1 at stride 2; 9 taps, 3 filters.
    convolutions = [25 * 9 * 1 * 3, 9 * 9 * 3 * 3, 4 * 9 * 3 * 3, 1 * 9 * 3 * 3]
    assert list(work.products(OMNIGLOT)) == [2.0 * n for n in (*convolutions, 3 * 3)]
    # 17x17 -> 8x8 -> 4x4 -> 2x2 -> 1x1 by pooling.
    convolutions = [289 * 9 * 3 * 3, 64 * 81, 16 * 81, 4 * 81]
    assert list(work.products(MINI_IMAGENET)) == [2.0 * n for n in (*convolutions, 3 * 3)]


class PerturbedReference:
    """A session whose meta-gradient is a little off; takes the place of a contender's."""

    def __init__(self, name):
        self.name = name

    def start(self, line, weights, episodes, options=None):
        loss, *gradients = compute(comparison.REFERENCE, line, weights, episodes)
        return 0.0, [loss, gradients[0] * 1.2, *gradients[1:]]


class Local:
    """A worker in this process."""

    def __init__(self, target, *args):
        self.subject = PerturbedReference(*args)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def call(self, method, *args, timeout=None):
        return getattr(self.subject, method)(*args)


def test_a_contender_that_is_off_fails_the_benchmark(monkeypatch):
    weights, episodes = in_float64(SINUSOID)
    exact = compute(comparison.REFERENCE, SINUSOID, weights, episodes)
    monkeypatch.setattr(comparison, "reference", lambda *_, **__: (exact, comparison.Errors(1, 1)))
    monkeypatch.setattr(timing.machine, "sgemm_rates", dict)
    monkeypatch.setattr(timing, "initial_weights", lambda line: weights)
    monkeypatch.setattr(timing.work, "episodes", lambda line: episodes)
    monkeypatch.setattr(timing, "Worker", Local)
    with pytest.raises(
        comparison.ComparisonError, match=r"PyTorch loop differs on line s second \(tiny sinusoid"
    ):
        timing.measure(SINUSOID, ("PyTorch loop",), seconds=0, repeats=1, limit=60)


@pytest.mark.parametrize("wrong", [np.nan, 1.1])
def test_errors_beyond_the_bound_are_refused(wrong):
    exact = [np.array(2.0), np.array([3.0, 4.0])]
    bound = comparison.Errors(1e-6, 1e-6)
    close = [np.array(2.000001), np.array([3.0, 4.000001])]
    comparison.check("mine", OMNIGLOT, comparison.errors(close, exact), bound, "float32")
    for i, name in enumerate(("loss", "gradient")):
        arrays = list(exact)
        arrays[i] = arrays[i] * wrong
        message = f"mine differs on line o second.*error of its {name} in float32 is"
        with pytest.raises(comparison.ComparisonError, match=message):
            comparison.check("mine", OMNIGLOT, comparison.errors(arrays, exact), bound, "float32")


def test_a_missing_package_is_said_before_any_work(tmp_path, monkeypatch):
    selection = meta_step.Selection(output=str(tmp_path / "run"))
    ours = meta_step.Settings(contenders=("keras_maml",))
    with pytest.raises(ValueError, match="no contender 'Chainer'"):
        meta_step.run(meta_step.Settings(contenders=("Chainer",)), selection)
    with pytest.raises(ValueError, match="no line '9'"):
        meta_step.run(ours, dataclasses.replace(selection, lines=("9",)))
    with pytest.raises(ValueError, match="no table 'chairs'"):
        meta_step.run(ours, dataclasses.replace(selection, tables=("chairs",)))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jax" else 1)
    with pytest.raises(ImportError, match=r"jax not installed(?s:.*)pip install '.\[bench\]'"):
        meta_step.run(meta_step.Settings(), selection)
    assert not list(tmp_path.iterdir())


FIGURES = {
    "median_ms": 10.0,
    "quartiles_ms": [9.0, 11.0],
    "steps": 5,
    "first_seconds": 1.0,
    "peak_gb": 1.0,
    "peak_gb_of_steps": 0.5,
    **{
        f"{dtype}_{what}_error": 1e-7
        for dtype in ("float32", "float64")
        for what in ("loss", "gradient")
    },
}


def fake_record(line, settings):
    del settings
    return {
        "line": line.line,
        "title": line.title,
        "order": line.order,
        "tasks": line.tasks,
        "limit": 60.0,
        "arithmetic": 1e9,
        "sgemm": {"torch": [1e11, 3e11]},
        "bounds": {"loss": 1e-5, "gradient": 1e-5},
        "contenders": {
            "keras_maml": FIGURES,
            "PyTorch loop": FIGURES | {"median_ms": 25.0},
            "JAX vmap": None,
        },
    }


@pytest.fixture
def measured(monkeypatch):
    """Replaces the measurement by a fake; returns the keys of what was measured."""
    keys = []

    def measure(line, settings):
        if keys and keys[-1] == "interrupt":
            raise KeyboardInterrupt
        keys.append(line.key)
        return fake_record(line, settings)

    monkeypatch.setattr(meta_step, "_measure_line", measure)
    return keys


def select(tmp_path, *lines, **options):
    return meta_step.Selection(
        lines=lines, orders=("second",), output=str(tmp_path / "run"), **options
    )


SETTINGS = meta_step.Settings(contenders=("keras_maml", "TensorFlow map_fn"))


def test_a_finished_line_is_kept_and_the_same_command_continues(tmp_path, measured, capsys):
    meta_step.run(SETTINGS, select(tmp_path, "2"))
    measured.append("interrupt")
    with pytest.raises(KeyboardInterrupt):
        meta_step.run(SETTINGS, select(tmp_path, "2,3"))
    measured.clear()
    meta_step.run(SETTINGS, select(tmp_path, "2", "3,5"))
    assert measured == ["3 second", "5 second"]
    saved = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(saved["results"]) == {"2 second", "3 second", "5 second"}
    assert saved["machine"]["versions"]["tensorflow"] and saved["command"]
    capsys.readouterr()
    before = (tmp_path / "run" / "results.json").read_bytes()
    meta_step.run(SETTINGS, select(tmp_path, "2,3,5"))
    assert (tmp_path / "run" / "results.json").read_bytes() == before
    assert "2.50" in capsys.readouterr().out  # the ratio, 25 ms / 10 ms


def test_results_are_not_overwritten_unless_asked_to(tmp_path, measured):
    meta_step.run(SETTINGS, select(tmp_path, "2"))
    before = (tmp_path / "run" / "results.json").read_bytes()
    others = dataclasses.replace(SETTINGS, seconds=1.0)
    with pytest.raises(FileExistsError, match="other settings .*seconds: 10.0 there, 1.0 asked"):
        meta_step.run(others, select(tmp_path, "3"))
    assert (tmp_path / "run" / "results.json").read_bytes() == before
    meta_step.run(others, select(tmp_path, "3", overwrite=True))
    saved = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(saved["results"]) == {"3 second"} and saved["settings"]["seconds"] == 1.0


def test_the_table_has_share_and_ratio_and_says_who_was_given_up():
    record = fake_record(work.select(("2",), ("second",))[0], SETTINGS)
    text = report.tables({"2 second": record})
    # 1 GFLOP in 10 ms at 200 GFLOP/s.
    assert "50.0 %" in text and "2.50" in text and "> 60 s to the first result, timed or" in text


def test_a_worker_reports_errors_and_death_and_is_ended_in_time():
    with Worker("work:Network", "omniglot", (9, 9, 1), 3, 4) as worker:
        assert worker.call("__getattribute__", "filters") == 3
        with pytest.raises(WorkerError, match="Network omniglot: (?s:.*)AttributeError"):
            worker.call("no_such_method")
        assert worker.call("__getattribute__", "layers") == 4
    with (
        Worker("machine:MatrixProduct", "tensorflow") as worker,
        pytest.raises(WorkerTimeout, match="MatrixProduct tensorflow: no result after 0 s"),
    ):
        worker.call("rates", 10**6, timeout=0.2)


def test_the_store_says_what_it_was_made_with(tmp_path):
    kept = store.Store(str(tmp_path / "run"), SETTINGS, lambda records: "table")
    kept.measure("a", lambda: {"value": 1})
    assert "threads" in kept.text() and kept.text().endswith("table\n")
    assert kept.path.read_text() == kept.text()


def test_overwriting_removes_all_that_a_store_of_its_kind_left(tmp_path):
    kept = store.Store(str(tmp_path), SETTINGS, lambda records: "table")
    for key in ("a", "b"):
        kept.measure(key, lambda: {"value": 1})
    (tmp_path / "results-1.json").write_text("{}")
    others = dataclasses.replace(SETTINGS, seconds=1.0)
    with pytest.raises(BlockingIOError, match="in use by another run"):
        store.Store(str(tmp_path), others, str, overwrite=True)
    assert json.loads((tmp_path / "results.json").read_text())["results"].keys() == {"a", "b"}
    del kept
    assert not store.Store(str(tmp_path), others, str, overwrite=True).records
    assert {path.name for path in tmp_path.iterdir()} == {"settings.json", "starts.json"}
    assert len(json.loads((tmp_path / "starts.json").read_text())) == 1


@pytest.mark.parametrize("foreign", ["checkpoints", "epochs", "settings.json, .*"])
def test_overwriting_leaves_what_is_no_store_of_its_kind(tmp_path, foreign):
    store.Store(str(tmp_path), SETTINGS, str)
    path = tmp_path / "settings.json"
    if foreign == "checkpoints":
        (tmp_path / foreign).mkdir()
    elif foreign != "epochs":
        path.write_text("{")
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | {foreign: 70}))
    before = {path.name: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match=rf"\({foreign}\), and is not overwritten. Choose"):
        store.Store(str(tmp_path), SETTINGS, str, overwrite=True)
    after = {path.name: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()}
    assert after == before


def test_the_pipelines_are_timed_beside_the_steps(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(episodes, "PIPELINES", episodes.PIPELINES[:1])
    settings = episodes.Settings(seconds=0.1, step_ms=1e6)
    kept = episodes.run(settings, episodes.Files(str(tmp_path / "run")))
    (record,) = kept.records.values()
    assert 0 < record["median_ms"] < 1e3 and record["step_ms"] == 1e6
    assert "sinusoid, 25 tasks" in capsys.readouterr().out


def test_the_times_of_steps_are_read_from_the_results_of_meta_step(tmp_path, measured):
    meta_step.run(SETTINGS, select(tmp_path, "2"))
    settings = episodes.Settings(meta_step=str(tmp_path / "run"))
    assert episodes.step_times(settings) == {"2 second": 10.0}
    assert episodes.step_times(episodes.Settings(meta_step=str(tmp_path / "none"))) == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (algorithms.Settings(algorithms=("mamba",)), r"some of maml, .*, got \['mamba'\]"),
        (algorithms.Settings(lines=("1",)), "trainings of classifiers"),
        (algorithms.Settings(lines=("7a",)), "trainings of classifiers"),
    ],
)
def test_what_cannot_be_compared_is_said_before_any_work(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        algorithms.run(settings, algorithms.Files(str(tmp_path / "run")))
    with pytest.raises(ValueError, match="must be trainings"):
        fit.run(fit.Settings(lines=("7a",)), fit.Files(str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_adapting_is_timed_by_its_parts():
    record = adaptation.measure(adaptation.Settings(calls=3, steps=1), "without convolutions")
    assert len(record["adapt_ms"]) == len(record["predict_ms"]) == 3
    assert len(record["first_of_a_size_ms"]) == len(adaptation.SIZES) - 1
    assert f"{np.median(record['adapt_ms']):.1f}" in adaptation.table({"dense": record})


@pytest.mark.slow
def test_algorithms_are_timed_in_turns():
    settings = algorithms.Settings(algorithms=("maml", "anil"), seconds=0.1)
    record = algorithms.measure(OMNIGLOT, settings)
    text = algorithms.table({"2": record})
    *_, speed, memory = text.splitlines()[2].split()
    assert speed == "1.00" and float(memory) > 0 and "anil" in text


@pytest.mark.slow
def test_fit_is_timed_beside_the_meta_step():
    line = dataclasses.replace(SINUSOID, batches=3)
    record = fit.measure(line, fit.Settings(seconds=0.1))
    assert list(record["ways"]) == ["loss and meta-gradient", "fit", "fit, steps_per_execution=3"]
    assert all(0 < way["median_ms"] < 1e4 for way in record["ways"].values())
    assert len(fit.table({"1": record}).splitlines()) == 5


@pytest.mark.slow
def test_served_learners_are_compared_and_timed():
    torch = importlib.util.find_spec("torch") is not None
    settings = serving.Settings(seconds=0.01, repeats=1, torch=torch)
    record = serving.measure(settings, OMNIGLOT, clients=2)
    assert len(record["contenders"]) == 6 + torch
    text = serving.table({"2 tasks, 2 clients": record})
    assert "fixed sizes, XLA, C loader" in text and "requests/s" in text


def test_what_a_served_benchmark_lacks_is_said_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="PyTorch is not installed: .* or pass --no-torch"):
        serving.run(serving.Settings(), serving.Selection(output=str(tmp_path / "run")))
    with pytest.raises(ValueError, match=r"some of sinusoid, .*, got \['parrot'\]"):
        selection = devices.Selection(learners=("parrot",), output=str(tmp_path / "run"))
        devices.run(devices.Settings(), selection)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_files_for_devices_are_compared_and_timed():
    pytest.importorskip("tf2onnx", reason="needs the extra onnx")
    record = devices.measure("sinusoid", devices.Settings(seconds=0.01, repeats=1))
    errors = {name: figures["error"] for name, figures in record["contenders"].items()}
    assert len(errors) == 3 and max(errors.values()) < 1e-2
    assert errors["LiteRT"] < 1e-5 and errors["ONNX Runtime"] < 1e-5
    lines = devices.table({"sinusoid": record}).splitlines()
    assert lines[2].split()[:2] == ["sinusoid", "LiteRT"]


@pytest.mark.slow
def test_ten_thousand_customers_adapt_in_one_call_in_bounded_memory():
    record = customers.measure(customers.Settings(predictions=5000))
    assert record["customers"] == 10_000
    half = record["precisions"]["float16"]
    assert half["record_bytes"] < half["file_bytes"] < 2000
    assert half["same"] > 0.99
    for figures in record["precisions"].values():
        assert figures["predictions"] / figures["predict_seconds"] > 1000
        assert figures["adapt_megabytes"] < 500 and figures["predict_megabytes"] < 500
    assert "10,000" in customers.table({"customers": record})


@pytest.mark.slow
def test_a_server_under_load_answers_right_and_does_not_grow():
    pytest.importorskip("uvicorn", reason="needs the extra serving")
    record = load.measure(load.Settings())
    assert record["wrong"] == 0 and record["requests"] > 500
    before, after = record["megabytes"]
    assert after < before + 30
    assert "0 wrong" in load.table({"8 clients": record})
