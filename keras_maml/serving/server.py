"""A server for one learner: TensorFlow Serving's predict API, and customers over a store.

- ``POST /v1/models/NAME:predict`` (also ``/versions/N:predict``): a signature of the learner, rows
  (``instances`` to ``predictions``) or columns (``inputs`` to ``outputs``). A row is a task.
- ``GET /v1/models/NAME`` and ``GET /v1/models/NAME/metadata``: its state and its signatures.
- ``GET /v1/customers``; ``POST /v1/customers/CUSTOMER/adapt`` with ``{"x": ..., "y": ...}``;
  ``POST /v1/customers/CUSTOMER/predict`` with ``{"x": ...}``; ``DELETE /v1/customers/CUSTOMER``.
- ``GET /healthz``; ``GET /metrics`` for Prometheus.

Needs the packages of the extra ``serving``: starlette, uvicorn and prometheus-client. The same
predictions by gRPC are in `keras_maml.serving.prediction_service`.

Source: TensorFlow Serving, "RESTful API".
"""

import asyncio
import concurrent.futures
import contextlib
import hmac
import json
import logging
import math
import signal
import threading
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np

try:
    import prometheus_client
    from starlette.applications import Starlette
    from starlette.convertors import Convertor, register_url_convertor
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
except ImportError as error:
    raise ImportError("The server needs: pip install 'keras-maml[serving]'.") from error

from keras_maml import validation
from keras_maml.serving.addresses import address, bind, is_loopback
from keras_maml.serving.personalization import (
    OtherLearnerError,
    Personalizer,
    UnknownCustomerError,
)

NAME = "learner"
"""What the model is called in paths."""
TIMEOUT = 60.0
"""How many seconds a request may take to arrive, and again to be computed."""
_SENDING_SECONDS = 10  # when the server is to stop, for answers to reach their clients
_SHARED = ("name", "max_bytes", "max_steps", "workers", "max_waiting")
_log = logging.getLogger("keras_maml")


class _RefusedError(Exception):
    """A request that is answered with a status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def create_app(
    personalizer: Personalizer,
    *,
    name: str = NAME,
    token: str | None = None,
    max_bytes: int = 2**24,
    max_steps: int = 1000,
    timeout: float = TIMEOUT,
    workers: int = 2,
    max_waiting: int = 64,
    lifespan: Callable | None = None,
) -> Starlette:
    """Makes the application.

    Args:
        personalizer: The learner and its customers.
        name: The name of the model in paths, without braces.
        token: What ``Authorization: Bearer TOKEN`` must say, in ASCII; None for no check.
            ``/healthz`` is open to all.
        max_bytes: How large the body of a request may be.
        max_steps: How many inner steps a request may ask for.
        timeout: How many seconds a request may take to arrive, and again to be computed. What has
            begun by then is not interrupted: a customer may be adapted to a request that was
            answered 504.
        workers: How many requests are computed at the same time.
        max_waiting: How many may be computed or wait; others are told to come again.
        lifespan: What runs beside the application, as Starlette takes it.

    Raises:
        ValueError: An argument is out of range.
    """
    for label, value in (
        ("max_bytes", max_bytes),
        ("workers", workers),
        ("max_steps", max_steps),
        ("max_waiting", max_waiting),
    ):
        validation.check_count(label, value, minimum=1)
    validation.check_positive("timeout", timeout)
    check_token(token)
    _check_name(name)
    limits = max_bytes, max_steps, timeout, workers, max_waiting
    service = _Service(personalizer, name, *limits)
    paths = f"/v1/models/{name}"  # as it is: what clients have quoted is unquoted before
    routes: list[tuple[str, str, Callable]] = [
        ("POST", f"{paths}:predict", service.predict),
        ("POST", paths + "/versions/{version:int}:predict", service.predict),
        ("GET", paths, service.status),
        ("GET", paths + "/versions/{version:int}", service.status),
        ("GET", f"{paths}/metadata", service.metadata),
        ("GET", "/v1/customers", service.customers),
        ("POST", "/v1/customers/{customer}/adapt", service.adapt),
        ("POST", "/v1/customers/{customer}/predict", service.predict_for),
        ("DELETE", "/v1/customers/{customer}", service.forget),
        ("GET", "/metrics", service.metrics),
    ]
    guarded = [
        Route(
            path.replace("{customer}", "{customer:customer}"),
            service.guarded(path, handler, token),
            methods=[method],
        )
        for method, path, handler in routes
    ]

    async def healthy(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def refused(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    return Starlette(
        routes=[*guarded, Route("/healthz", healthy)],
        exception_handlers={HTTPException: refused},
        lifespan=lifespan,
    )


def serve(
    personalizer: Personalizer,
    *,
    host: str = "127.0.0.1",
    port: int = 8501,
    grpc_port: int | None = None,
    token: str | None = None,
    timeout: float = TIMEOUT,
    **settings: Any,
) -> None:
    """Serves until the process gets SIGTERM or SIGINT; requests under way are answered first.

    Args:
        personalizer: The learner and its customers.
        host: The address to listen at.
        port: The port; 8501 is TensorFlow Serving's.
        grpc_port: The port of the gRPC service, of TensorFlow Serving 8500; None for no such.
        token: See `create_app`; needed unless the address is a loopback one.
        timeout: See `create_app`; who stops the server waits for requests as long as they may take.
        **settings: See `create_app`.

    Raises:
        ImportError: A package of the extra ``grpc`` is missing, and there is a port for it.
        OSError: The address cannot be listened at.
        ValueError: Others could reach the server, and there is no token; or an argument is out of
            range.
    """
    import uvicorn

    check(host, port, grpc_port, token, settings.get("name", NAME))
    beside = None
    if grpc_port is not None:
        from keras_maml.serving import prediction_service

        how = {"token": token} | {k: v for k, v in settings.items() if k in _SHARED}
        beside = prediction_service.create_server(personalizer, address(host, grpc_port), **how)

        @contextlib.asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            beside.start()
            yield
            await asyncio.to_thread(beside.stop(grace=grace).wait)

        settings = settings | {"lifespan": lifespan}
    app = create_app(personalizer, token=token, timeout=timeout, **settings)
    grace = math.ceil(2 * timeout) + _SENDING_SECONDS
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=grace)

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            if beside is not None:  # it takes no more requests, either
                beside.stop(grace=grace)
            super().handle_exit(sig, frame)

    server, sockets = Server(config), bind(host, port)
    with contextlib.suppress(KeyboardInterrupt), _sigterm_as_sigint():
        server.run(sockets)
        if not server.started:
            raise OSError("The server could not start; what is printed above says why.")


def check(host: str, port: int, grpc_port: int | None, token: str | None, name: str) -> None:
    """Raises what `serve` would, for who has a learner to load before."""
    _check_name(name)
    check_token(token)
    if token is None and not is_loopback(host):
        raise ValueError(
            f"At {host} others can reach the server and read, change and forget customers: give a "
            "token, or listen at 127.0.0.1."
        )
    if grpc_port == port:
        raise ValueError(f"REST and gRPC need a port each, got {port} for both.")
    for number in (port, grpc_port):
        if number is not None:
            for bound in bind(host, number):
                bound.close()
    if grpc_port is not None:
        from keras_maml.serving import prediction_service  # noqa: F401


def check_token(token: str | None) -> None:
    """Raises ValueError for a token that clients cannot send in a header or in metadata."""
    if token is None or (token.isascii() and token.isprintable() and token.strip() == token != ""):
        return
    raise ValueError(
        "A token must be printable ASCII without space around it, such as "
        "`openssl rand -hex 32` prints."
    )


def _check_name(name: str) -> None:
    if not name or set(name) & set("{}"):  # which would stand for any part of a path
        raise ValueError(f"A model's name must be some text without braces, got {name!r}.")


@contextlib.contextmanager
def _sigterm_as_sigint() -> Iterator[None]:
    """Lets SIGTERM raise KeyboardInterrupt, which uvicorn does after its graceful end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Customer(Convertor[str]):
    """A customer in a path: any text, also with the slashes and line breaks that clients quote."""

    regex = r"[\s\S]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("customer", _Customer())


class _Service:
    """Answers requests; what takes long is computed by threads."""

    def __init__(
        self,
        personalizer: Personalizer,
        name: str,
        max_bytes: int,
        max_steps: int,
        timeout: float,
        workers: int,
        max_waiting: int,
    ) -> None:
        self._personalizer, self._name = personalizer, name
        self._max_bytes, self._max_steps = max_bytes, max_steps
        self._timeout, self._max_waiting = timeout, max_waiting
        self._threads = concurrent.futures.ThreadPoolExecutor(workers, "keras_maml")
        self._waiting = 0
        self._registry = prometheus_client.CollectorRegistry()
        self._seconds = prometheus_client.Histogram(
            "keras_maml_request_seconds",
            "Requests, and how long they took",
            ["path", "status"],
            registry=self._registry,
        )
        waiting = prometheus_client.Gauge(
            "keras_maml_waiting", "Requests computed or waiting", registry=self._registry
        )
        waiting.set_function(lambda: self._waiting)

    def guarded(self, path: str, handler: Callable, token: str | None) -> Callable:
        """Wraps a handler: who may ask, how errors are told, what is counted."""

        async def endpoint(request: Request) -> Response:
            start = time.perf_counter()
            try:
                given = request.headers.get("authorization", "").encode()
                if token is not None and not hmac.compare_digest(given, f"Bearer {token}".encode()):
                    raise _RefusedError(401, "The token is missing or wrong.")
                _check_path(request.scope.get("raw_path") or b"")
                response = await handler(request)
            except (_RefusedError, ValueError, UnknownCustomerError) as error:
                response = JSONResponse({"error": str(error)}, _status(error))
            except ClientDisconnect:
                response = Response(status_code=499)  # which nobody will read
            except Exception:
                _log.exception("A request to %s failed.", path)
                response = JSONResponse({"error": "An error of the server's own."}, 500)
            seconds = time.perf_counter() - start
            self._seconds.labels(path, str(response.status_code)).observe(seconds)
            return response

        return endpoint

    # --- TensorFlow Serving's ------------------------------------------------------------------

    async def predict(self, request: Request) -> Response:
        """Calls a signature with rows or columns."""
        body = await self._body(request)
        signature = body.get("signature_name", "serving_default")
        if ("instances" in body) == ("inputs" in body):
            raise ValueError("Give either instances (rows) or inputs (columns).")
        opened = self._personalizer.opened
        if not isinstance(signature, str) or signature not in opened.signatures:
            raise ValueError(f"There is no signature {signature!r}.")
        names = list(opened.signatures[signature].structured_input_signature[1])
        rows = "instances" in body
        inputs = _columns(body["instances"], names) if rows else body["inputs"]
        if not isinstance(inputs, dict):
            if len(names) != 1:
                raise ValueError(f"inputs must be an object with {sorted(names)}.")
            inputs = {names[0]: inputs}
        check_steps(inputs, self._max_steps)
        outputs = await self._compute(opened.call, signature, inputs)
        if not rows:
            return self._answer({"outputs": _single(outputs)})
        count = len(body["instances"])
        if any(output.ndim == 0 or len(output) != count for output in outputs.values()):
            raise ValueError("The outputs have no row for each instance: use inputs (columns).")
        predictions = [_single({k: v[i] for k, v in outputs.items()}) for i in range(count)]
        return self._answer({"predictions": predictions})

    async def status(self, request: Request) -> Response:
        """Says that the one version there is can be asked."""
        status = {"error_code": "OK", "error_message": ""}
        version = {"version": "1", "state": "AVAILABLE", "status": status}
        return JSONResponse({"model_version_status": [version]})

    async def metadata(self, request: Request) -> Response:
        """Says what the signatures take."""
        signatures = {
            name: {
                "inputs": {
                    key: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}
                    for key, spec in function.structured_input_signature[1].items()
                },
                "outputs": sorted(function.structured_outputs),
            }
            for name, function in self._personalizer.opened.signatures.items()
        }
        return JSONResponse({"model_spec": {"name": self._name}, "metadata": signatures})

    # --- customers -----------------------------------------------------------------------------

    async def customers(self, request: Request) -> Response:
        """Lists the customers."""
        return self._answer({"customers": await self._compute(self._personalizer.customers)})

    async def adapt(self, request: Request) -> Response:
        """Adapts to a customer's examples."""
        x, y = _exactly(await self._body(request), "x", "y")
        customer = request.path_params["customer"]
        await self._compute(self._personalizer.adapt, customer, x, y)
        return self._answer({"customer": customer})

    async def predict_for(self, request: Request) -> Response:
        """Predicts with a customer's weights."""
        (x,) = _exactly(await self._body(request), "x")
        customer = request.path_params["customer"]
        outputs = await self._compute(self._personalizer.predict, customer, x)
        return self._answer({"predictions": outputs})

    async def forget(self, request: Request) -> Response:
        """Forgets a customer."""
        customer = request.path_params["customer"]
        if not await self._compute(self._personalizer.forget, customer):
            raise UnknownCustomerError(f"There is no customer {customer!r}.")
        return self._answer({"customer": customer})

    async def metrics(self, request: Request) -> Response:
        """Counts requests and seconds, in Prometheus's text format."""
        text = prometheus_client.generate_latest(self._registry)
        return Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    # --- inside --------------------------------------------------------------------------------

    async def _body(self, request: Request) -> dict[str, Any]:
        async def read() -> bytes:
            content = bytearray()
            async for chunk in request.stream():
                content += chunk
                if len(content) > self._max_bytes:
                    raise _RefusedError(413, f"The body is larger than {self._max_bytes} bytes.")
            return bytes(content)

        try:
            content = await asyncio.wait_for(read(), self._timeout)
        except TimeoutError as error:
            raise _RefusedError(408, "The request took too long to arrive.") from error
        try:
            body = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"The body is not JSON: {error}") from error
        if not isinstance(body, dict):
            raise ValueError("The body must be a JSON object.")
        return body

    async def _compute(self, function: Callable, *arguments: Any) -> Any:
        if self._waiting >= self._max_waiting:
            raise _RefusedError(503, "Too many requests are waiting: come again.")
        self._waiting += 1
        work = self._threads.submit(function, *arguments)
        future = asyncio.wrap_future(work)
        future.add_done_callback(self._done)
        try:
            return await asyncio.wait_for(asyncio.shield(future), self._timeout)
        except TimeoutError as error:
            raise _RefusedError(504, "The computation takes too long.") from error
        finally:
            # What nobody waits for any more never begins. What has begun cannot be interrupted: it
            # goes on, and counts as waiting until its end.
            work.cancel()

    def _done(self, future: asyncio.Future) -> None:
        self._waiting -= 1
        if not future.cancelled():
            future.exception()  # looked at, though nobody may wait for it any more

    def _answer(self, content: dict[str, Any]) -> Response:
        try:
            text = json.dumps(content, allow_nan=False, default=_as_lists)
        except ValueError as error:
            raise ValueError("The predictions are not finite: check the inputs.") from error
        return Response(text, media_type="application/json")


def check_steps(inputs: dict[str, Any], limit: int) -> None:
    """Raises ValueError if a request asks for so many inner steps that it would never end."""
    steps = inputs.get("steps")
    steps = steps.ravel() if isinstance(steps, np.ndarray) else steps
    for number in steps if isinstance(steps, (list, np.ndarray)) else ():
        if isinstance(number, (int, np.integer)) and number > limit:
            raise ValueError(f"steps may be at most {limit} here, got {number}.")


def _check_path(quoted: bytes) -> None:
    """Raises ValueError for a path that servers, which replace what they cannot read, mistake."""
    try:
        urllib.parse.unquote_to_bytes(quoted).decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"A path must be quoted in UTF-8, such as Ren%C3%A9, got {quoted.decode('latin-1')}."
        ) from error


def _status(error: Exception) -> int:
    if isinstance(error, _RefusedError):
        return error.status
    if isinstance(error, UnknownCustomerError):
        return 404
    return 409 if isinstance(error, OtherLearnerError) else 400


def _columns(instances: Any, names: list[str]) -> dict[str, list]:
    """Turns rows into columns."""
    if not isinstance(instances, list) or not instances:
        raise ValueError("instances must be a list with at least one row.")
    rows = instances
    if len(names) == 1:
        rows = [row if isinstance(row, dict) else {names[0]: row} for row in instances]
    if any(not isinstance(row, dict) or set(row) != set(names) for row in rows):
        raise ValueError(f"Every instance must be an object with {sorted(names)}.")
    return {name: [row[name] for row in rows] for name in names}


def _exactly(body: dict[str, Any], *names: str) -> list[Any]:
    if set(body) != set(names):
        raise ValueError(f"The body must have {sorted(names)}, got {sorted(body)}.")
    return [body[name] for name in names]


def _single(outputs: dict[str, np.ndarray]) -> Any:
    return next(iter(outputs.values())) if len(outputs) == 1 else outputs


def _as_lists(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON.")
