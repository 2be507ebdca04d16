"""The server answers as the learner does, and whatever a client sends, it is never its fault."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.parse

import keras
import numpy as np
import pytest
import zoo

from keras_maml import MAML
from keras_maml.serving.personalization import Personalizer

pytest.importorskip("starlette", reason="needs the extra serving")
pytest.importorskip("httpx", reason="starlette's test client needs httpx")
pytest.importorskip("hypothesis")

import hypothesis
from hypothesis import strategies as st
from starlette.testclient import TestClient

from keras_maml import cli
from keras_maml.serving import addresses, personalization, server
from keras_maml.serving.stores import SQLiteStore


@pytest.fixture(scope="module")
def learner():
    keras.utils.set_random_seed(0)
    case = zoo.CASES["dense"]
    learner = MAML(case.build(), 0.2, 2)
    learner.compile("sgd", case.loss, run_eagerly=True)
    learner.predict(zoo.episodes(case), verbose=0)
    return learner


@pytest.fixture(scope="module")
def personalizer(learner):
    return Personalizer(learner)


@pytest.fixture
def client(personalizer):
    return TestClient(server.create_app(personalizer), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def episode(learner):
    (x, y), (x_query, y_query) = zoo.episodes(zoo.CASES["dense"])
    expected = learner.predict(((x, y), (x_query, y_query)), verbose=0)
    columns = {"x_support": x, "y_support": y, "x_query": x_query}
    return {name: value.numpy().tolist() for name, value in columns.items()}, expected


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def ask(client, **body):
    return client.post("/v1/models/learner:predict", json=body)


def test_rows_and_columns_are_answered_as_tensorflow_serving_does(client, episode):
    columns, expected = episode
    answer = ask(client, signature_name="adapt_and_predict", inputs=columns)
    np.testing.assert_allclose(answer.json()["outputs"], expected, rtol=0, atol=1e-5)
    rows = [{name: value[i] for name, value in columns.items()} for i in range(3)]
    answer = client.post(
        "/v1/models/learner/versions/1:predict",
        json={"signature_name": "adapt_and_predict", "instances": rows},
    )
    np.testing.assert_allclose(answer.json()["predictions"], expected, rtol=0, atol=1e-5)
    x = columns["x_query"][0]
    by_row, by_column = ask(client, instances=x).json(), ask(client, inputs=x).json()
    assert by_row["predictions"] == by_column["outputs"]
    assert len(by_row["predictions"]) == 5


def test_customers_adapt_predict_and_are_forgotten(client, episode):
    columns, expected = episode
    for name, i in (("ada", 0), ("b%20ob", 1)):
        body = {"x": columns["x_support"][i], "y": columns["y_support"][i]}
        assert client.post(f"/v1/customers/{name}/adapt", json=body).status_code == 200
    for name, i in (("ada", 0), ("b%20ob", 1)):
        answer = client.post(f"/v1/customers/{name}/predict", json={"x": columns["x_query"][i]})
        np.testing.assert_allclose(answer.json()["predictions"], expected[i], rtol=0, atol=1e-5)
    assert client.get("/v1/customers").json() == {"customers": ["ada", "b ob"]}
    assert client.delete("/v1/customers/ada").status_code == 200
    assert client.delete("/v1/customers/ada").status_code == 404
    answer = client.post("/v1/customers/ada/predict", json={"x": columns["x_query"][0]})
    assert answer.status_code == 404 and "call adapt before" in answer.json()["error"]
    client.delete("/v1/customers/b%20ob")


MALFORMED = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff",
    b"[" * 100_000,
    b"{}",
    b'{"instances": [], "inputs": []}',
    b'{"instances": []}',
    b'{"instances": 3}',
    b'{"instances": [[1, 2]]}',
    b'{"instances": [[1, 2, "a"]]}',
    b'{"instances": [[1, 2, null]]}',
    b'{"instances": [[1, 2, NaN]]}',
    b'{"instances": [[1, 2, 1e400]]}',
    b'{"instances": [[1, 2, 3], [1, 2]]}',
    b'{"instances": [{"y": [1, 2, 3]}]}',
    b'{"inputs": {"x": {"a": 1}}}',
    b'{"inputs": 123456789012345678901234567890}',
    b'{"signature_name": 3, "inputs": 1}',
    b'{"signature_name": ["a"], "inputs": 1}',
    b'{"signature_name": "fly", "inputs": 1}',
    b'{"signature_name": "adapt", "inputs": [[[1, 2, 3]]]}',
    b'{"signature_name": "adapt_steps", "inputs": {"x_support": [[[1, 2, 3]]],'
    b' "y_support": [[[1]]], "steps": [1001]}}',
    b'{"signature_name": "predict_with", "inputs": {"x": [[[1, 2, 3]]], "weights": [[1]]}}',
]


@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
@pytest.mark.parametrize("path", ["models/learner:predict", "customers/a/adapt"])
def test_malformed_requests_are_the_clients_fault_and_say_why(client, path, body):
    answer = client.post(f"/v1/{path}", content=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["x", "y", "x_support", "weights", "a"]), inner)
    ),
    max_leaves=8,
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "signature_name": st.sampled_from(["adapt", "adapt_steps", "predict_with"]) | JSON,
        "instances": JSON,
        "inputs": JSON,
        "x": JSON,
        "y": JSON,
    },
)
PATHS = ("models/learner:predict", "customers/a/adapt", "customers/a/predict")


@hypothesis.settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(path=st.sampled_from(PATHS), body=BODIES)
def test_whatever_is_sent_the_server_is_not_at_fault(client, path, body):
    answer = client.post(f"/v1/{path}", content=json.dumps(body))
    assert answer.status_code in (200, 400, 404), answer.text
    assert client.get("/healthz").status_code == 200


def test_what_is_too_large_too_much_or_not_allowed_is_refused(personalizer, capsys):
    app = server.create_app(personalizer, token="secret", max_bytes=100)
    client = TestClient(app, raise_server_exceptions=False)
    assert client.get("/healthz").json() == {"status": "ok"}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "sécret"}):
        headers = {name: value.encode() for name, value in headers.items()}
        assert client.get("/v1/customers", headers=headers).status_code == 401
    client.headers["Authorization"] = "Bearer secret"
    assert client.get("/v1/customers").status_code == 200
    large = client.post("/v1/models/learner:predict", content=b"1" * 101)
    assert large.status_code == 413 and "larger than 100 bytes" in large.json()["error"]
    missing = client.get("/v1/models/other")
    assert missing.status_code == 404 and missing.json() == {"error": "Not Found"}
    assert client.get("/v1/models/learner:predict").status_code == 405
    with pytest.raises(ValueError, match="give a token"):
        server.serve(personalizer, host="0.0.0.0")
    # Said before a learner is loaded, which takes its time: there is none.
    assert cli.main(["serve", "nothing", "--host", "0.0.0.0"]) == 1
    assert "give a token" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["team/ada", "bob/predict", "/", "é", "\N{REPLACEMENT CHARACTER}", "ada\n", "ada\nlovelace"],
)
def test_a_customer_that_python_keeps_can_be_asked_and_forgotten(client, personalizer, name):
    x, y = [[1.0, 2.0, 3.0]], [[1.0]]
    personalizer.adapt("ada", x, y)  # whom nobody asks for
    personalizer.adapt(name, x, y)
    customer = f"/v1/customers/{urllib.parse.quote(name, safe='')}"
    answer = client.post(f"{customer}/predict", json={"x": x})
    np.testing.assert_allclose(answer.json()["predictions"], personalizer.predict(name, x), 1e-6)
    assert client.post(f"{customer}/adapt", json={"x": x, "y": y}).json() == {"customer": name}
    assert client.delete(customer).status_code == 200
    assert client.delete(customer).status_code == 404
    assert personalizer.forget("ada")


@pytest.mark.parametrize("quoted", ["Ren%E9", "%ff", "%C3"])
def test_a_name_that_is_not_quoted_in_utf_8_is_nobodys(client, quoted):
    body = {"x": [[1.0, 2.0, 3.0]]}
    customer = f"/v1/customers/{quoted}"
    before = client.get("/v1/customers").json()
    for answer in (
        client.post(f"{customer}/adapt", json=body | {"y": [[1.0]]}),
        client.post(f"{customer}/predict", json=body),
        client.delete(customer),
    ):
        assert answer.status_code == 400
        assert "must be quoted in UTF-8" in answer.json()["error"]
    assert client.get("/v1/customers").json() == before


@pytest.mark.parametrize("name", ["my learner", "größe", "50%", "a?b#c"])
def test_a_model_may_have_any_name_that_clients_can_quote(personalizer, name):
    client = TestClient(server.create_app(personalizer, name=name))
    path = f"/v1/models/{urllib.parse.quote(name)}"
    assert client.get(f"{path}/metadata").json()["model_spec"]["name"] == name
    assert client.get(path).status_code == 200
    assert client.get(f"{path}/versions/1").status_code == 200
    body = {"instances": [[0.0, 1.0, 2.0]]}
    assert client.post(f"{path}:predict", json=body).status_code == 200
    assert client.get("/v1/models/other").status_code == 404


@pytest.mark.parametrize(
    ("path", "expected"), [("sine/1", "sine"), ("sine/v1.5", "v1.5"), ("sine/a.keras", "a")]
)
def test_a_model_is_called_by_its_file_or_the_folder_of_its_versions(
    tmp_path, monkeypatch, path, expected
):
    folder = tmp_path / path
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").touch()
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(personalization, "Personalizer", lambda *_, **__: None)
    served = []
    monkeypatch.setattr(server, "serve", lambda _, **settings: served.append(settings["name"]))
    assert cli.main(["serve", folder.name]) == 0
    assert served == [expected]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "TAKEN"], "A server cannot listen at 127.0.0.1:TAKEN"),
        (["--port", "FREE", "--grpc-port", "TAKEN"], "A server cannot listen at 127.0.0.1:TAKEN"),
        (["--grpc-port", "8501"], "a port each, got 8501 for both"),
        (["--token-file", "umlaut"], "A token must be printable ASCII"),
        (["--token-file", "empty"], "A token must be printable ASCII"),
        (["--token-file", "good", "--host", "192.0.2.1"], "cannot listen at 192.0.2.1:8501"),
        (["--name", "a{b}"], "without braces, got 'a{b}'"),
        (["--name", ""], "some text"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_is_loaded(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    for name, token in (("umlaut", "schlüssel"), ("empty", "\n"), ("good", "secret\n")):
        (tmp_path / name).write_text(token, encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = {"TAKEN": str(taken.getsockname()[1]), "FREE": free_port()}
        arguments = [ports.get(argument, argument) for argument in arguments]
        assert cli.main(["serve", "nothing", "--store", "customers.sqlite", *arguments]) == 1
    assert message.replace("TAKEN", ports["TAKEN"]) in capsys.readouterr().err
    assert not (tmp_path / "customers.sqlite").exists()


def test_a_server_that_stops_waits_as_long_as_requests_may_take(personalizer, monkeypatch):
    uvicorn = pytest.importorskip("uvicorn", reason="needs the extra serving")
    waits = []

    def run(self, sockets):
        waits.append(self.config.timeout_graceful_shutdown)
        for opened in sockets:
            opened.close()
        signal.raise_signal(signal.SIGTERM)  # as uvicorn does at its end

    monkeypatch.setattr(uvicorn.Server, "run", run)
    before = signal.getsignal(signal.SIGTERM)
    for timeout in (server.TIMEOUT, 300):
        server.serve(personalizer, port=0, timeout=timeout)
    assert signal.getsignal(signal.SIGTERM) is before
    # To arrive, and to be computed.
    assert waits[0] >= 2 * server.TIMEOUT and waits[1] >= 600


def test_a_server_that_could_not_start_says_so(personalizer, monkeypatch):
    uvicorn = pytest.importorskip("uvicorn", reason="needs the extra serving")

    def run(self, sockets):
        for opened in sockets:
            opened.close()

    monkeypatch.setattr(uvicorn.Server, "run", run)
    with pytest.raises(OSError, match="could not start"):
        server.serve(personalizer, port=0)


def test_addresses_that_the_system_lacks_are_left_out(monkeypatch):
    def found(host, port, type):
        names = {"both": ["192.0.2.1", "127.0.0.1", "127.0.0.2"], "none": ["192.0.2.1"]}[host]
        return [(socket.AF_INET, type, 6, "", (name, port)) for name in names]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    sockets = addresses.bind("both", 0)
    names, ports = zip(*(bound.getsockname() for bound in sockets), strict=True)
    for bound in sockets:
        bound.close()
    assert names == ("127.0.0.1", "127.0.0.2") and len(set(ports)) == 1
    with pytest.raises(OSError, match="cannot listen at none:0 .*choose another port"):
        addresses.bind("none", 0)


def test_a_computation_that_hangs_blocks_nobody_for_ever(personalizer):
    app = server.create_app(personalizer, timeout=0.05, workers=1, max_waiting=1)
    client = TestClient(app, raise_server_exceptions=False)
    release = threading.Event()

    class Hanging:
        def names(self):
            release.wait()
            return []

    store, personalizer.store = personalizer.store, Hanging()
    try:
        assert client.get("/v1/customers").status_code == 504
        assert client.get("/v1/customers").status_code == 503
        assert client.get("/healthz").status_code == 200
    finally:
        release.set()
        personalizer.store = store


def test_what_was_refused_before_it_began_never_runs(personalizer):
    app = server.create_app(personalizer, timeout=0.05, workers=1)
    release, calls = threading.Event(), []

    class Slow:
        def names(self):
            calls.append("names")
            release.wait()
            return []

        def delete(self, name):
            calls.append(name)
            return True

    store, personalizer.store = personalizer.store, Slow()
    try:
        with TestClient(app) as client:
            assert client.get("/v1/customers").status_code == 504  # goes on
            assert client.delete("/v1/customers/ada").status_code == 504  # waits for it
            release.set()
            while client.delete("/v1/customers/bob").status_code != 200:
                pass
    finally:
        release.set()
        personalizer.store = store
    assert "names" in calls and "bob" in calls and "ada" not in calls


def test_errors_of_the_servers_own_tell_nothing_and_all_is_counted(personalizer):
    client = TestClient(server.create_app(personalizer), raise_server_exceptions=False)
    store, personalizer.store = personalizer.store, None
    try:
        answer = client.get("/v1/customers")
    finally:
        personalizer.store = store
    assert answer.status_code == 500 and answer.json() == {"error": "An error of the server's own."}
    client.get("/v1/customers")
    client.get("/v1/customers")
    text = client.get("/metrics").text
    for status, count in ((500, 1), (200, 2)):
        line = (
            f'keras_maml_request_seconds_count{{path="/v1/customers",status="{status}"}} {count}.0'
        )
        assert line in text.splitlines()


def test_state_and_signatures_can_be_asked(client):
    status = client.get("/v1/models/learner").json()["model_version_status"]
    assert status[0]["state"] == "AVAILABLE"
    metadata = client.get("/v1/models/learner/metadata").json()["metadata"]
    assert metadata["adapt"]["inputs"]["x_support"]["shape"] == [None, None, 3]


@contextlib.contextmanager
def running(*arguments):
    """Yields a client of a server in a process of its own, and that process."""
    import httpx

    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "keras_maml", "serve", *arguments, "--port", port],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    transport = httpx.HTTPTransport(retries=12)  # with growing pauses, until it listens
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(transport=transport, base_url=url, timeout=60) as client:
            yield client, process
    finally:
        process.kill()
        process.wait()


def test_the_server_listens_answers_and_stops_when_told(learner, tmp_path):
    pytest.importorskip("uvicorn", reason="needs the extra serving")
    learner.export(tmp_path / "line" / "1", verbose=False)
    arguments = [str(tmp_path / "line" / "1"), "--store", str(tmp_path / "customers.sqlite")]
    with running(*arguments) as (client, process):
        answer = client.post("/v1/models/line:predict", json={"instances": [[0.0, 1.0, 2.0]]})
        assert answer.json()["predictions"]
        body = {"x": [[1.0, 2.0, 3.0]], "y": [[1.0]]}
        assert client.post("/v1/customers/ada/adapt", json=body).status_code == 200
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert "Traceback" not in errors
        assert process.returncode == 0
    assert SQLiteStore(tmp_path / "customers.sqlite").names() == ["ada"]
