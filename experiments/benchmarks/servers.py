"""Contenders of `serving`: what answers requests, each in a process of its own."""

import abc
import concurrent.futures
import ctypes
import importlib.util
import pathlib
import time
from typing import Any

import numpy as np

from experiments.benchmarks.work import Work

Arrays = dict[str, np.ndarray]


class Server(abc.ABC):
    """Answers one request again and again, for several clients at a time.

    Args:
        clients: How many.
    """

    def __init__(self, clients: int) -> None:
        self._clients = clients
        self._threads = concurrent.futures.ThreadPoolExecutor(clients)

    @abc.abstractmethod
    def request(self, _: int = 0) -> np.ndarray:
        """Answers the request."""

    def first(self) -> tuple[float, np.ndarray]:
        """Returns the seconds of the first request, and its answer ``[tasks, queries, ways]``."""
        start = time.perf_counter()
        answer = self.request()
        return time.perf_counter() - start, answer

    def time(self, rounds: int) -> list[float]:
        """Returns the seconds of rounds of one request of each client, after an untimed one."""
        seconds = []
        for _ in range(rounds + 1):
            start = time.perf_counter()
            list(self._threads.map(self.request, range(self._clients)))
            seconds.append(time.perf_counter() - start)
        return seconds[1:]


class PythonLoader(Server):
    """A SavedModel loaded by TensorFlow's Python.

    Args:
        path: Its folder.
        signature: The name of the signature.
        inputs: The request.
        clients: See `Server`.
    """

    def __init__(self, path: str, signature: str, inputs: Arrays, clients: int) -> None:
        import tensorflow as tf

        super().__init__(clients)
        self._model = tf.saved_model.load(path)
        self._function = self._model.signatures[signature]
        self._inputs = {name: tf.constant(array) for name, array in inputs.items()}

    def request(self, _: int = 0) -> np.ndarray:
        """Answers the request."""
        return self._function(**self._inputs)["predictions"].numpy()


class _Output(ctypes.Structure):
    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


class CLoader(Server):
    """A SavedModel loaded by TensorFlow's C API, as TensorFlow Serving does.

    Args:
        path: Its folder.
        signature: The name of the signature.
        inputs: The request, of float32 and int32.
        clients: See `Server`.
    """

    def __init__(self, path: str, signature: str, inputs: Arrays, clients: int) -> None:
        super().__init__(clients)
        names, output = _names_of_tensors(path, signature)
        library = importlib.util.find_spec("tensorflow").submodule_search_locations[0]
        self._c = c = ctypes.CDLL(str(next(pathlib.Path(library).glob("libtensorflow_cc.*"))))
        pointers = "NewStatus NewGraph NewSessionOptions AllocateTensor TensorData"
        for name in pointers.split():
            getattr(c, f"TF_{name}").restype = ctypes.c_void_p
        c.TF_LoadSessionFromSavedModel.restype = c.TF_GraphOperationByName.restype = ctypes.c_void_p
        c.TF_Message.restype, c.TF_Dim.restype = ctypes.c_char_p, ctypes.c_int64
        status, graph = self._status(), ctypes.c_void_p(c.TF_NewGraph())
        options = ctypes.c_void_p(c.TF_NewSessionOptions())
        tags = (ctypes.c_char_p * 1)(b"serve")
        self._session = ctypes.c_void_p(
            c.TF_LoadSessionFromSavedModel(
                options, None, path.encode(), tags, 1, graph, None, status
            )
        )
        self._check(status)

        def find(name: str) -> _Output:
            operation, index = name.split(":")
            return _Output(c.TF_GraphOperationByName(graph, operation.encode()), int(index))

        self._feeds = (_Output * len(inputs))(*(find(names[name]) for name in inputs))
        self._fetches = (_Output * 1)(find(output))
        self._inputs = [*inputs.values()]

    def request(self, _: int = 0) -> np.ndarray:
        """Answers the request."""
        c, count, status = self._c, len(self._inputs), self._status()
        values = (ctypes.c_void_p * count)(*map(self._tensor, self._inputs))
        fetched = (ctypes.c_void_p * 1)()
        what = self._feeds, values, count, self._fetches, fetched, 1
        c.TF_SessionRun(self._session, None, *what, None, 0, None, status)
        self._check(status)
        answer = ctypes.c_void_p(fetched[0])
        shape = [c.TF_Dim(answer, axis) for axis in range(c.TF_NumDims(answer))]
        content = ctypes.string_at(c.TF_TensorData(answer), 4 * int(np.prod(shape)))
        for tensor in (*map(ctypes.c_void_p, values), answer):
            c.TF_DeleteTensor(tensor)
        c.TF_DeleteStatus(status)
        return np.frombuffer(content, np.float32).reshape(shape)

    def _status(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self._c.TF_NewStatus())

    def _check(self, status: ctypes.c_void_p) -> None:
        if self._c.TF_GetCode(status):
            raise RuntimeError(self._c.TF_Message(status).decode())

    def _tensor(self, array: np.ndarray) -> int:
        shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        code = {"float32": 1, "int32": 3}[array.dtype.name]
        size = ctypes.c_size_t(array.nbytes)
        tensor = self._c.TF_AllocateTensor(code, shape, array.ndim, size)
        data = self._c.TF_TensorData(ctypes.c_void_p(tensor))
        ctypes.memmove(ctypes.c_void_p(data), array.tobytes(), array.nbytes)
        return tensor


class TorchLoop(Server):
    """PyTorch: one task after another.

    Args:
        work: What a request asks for.
        weights: The initial weights in Keras's order and layout.
        episodes: The data, see `work.episodes`.
        clients: See `Server`.
    """

    def __init__(self, work: Work, weights: list, episodes: tuple, clients: int) -> None:
        from experiments.benchmarks.contenders import torch_networks

        super().__init__(clients)
        self._work, self._networks = work, torch_networks
        self._weights, data = torch_networks.from_keras(weights, episodes)
        self._data = [array[0] for array in data[:3]]

    def request(self, _: int = 0) -> np.ndarray:
        """Answers the request."""
        tasks = zip(*self._data, strict=True)
        return np.stack([self._predict(*task) for task in tasks])

    def _predict(self, x_support: Any, y_support: Any, x_query: Any) -> np.ndarray:
        import torch

        fast = self._weights
        for _ in range(self._work.steps):
            fast = [weight.detach().requires_grad_() for weight in fast]
            loss = self._networks.loss(self._work, fast, x_support, y_support)
            gradients = torch.autograd.grad(loss, fast)
            with torch.no_grad():
                rate = self._work.rate
                fast = [w - rate * g for w, g in zip(fast, gradients, strict=True)]
        with torch.no_grad():
            return self._networks.forward(self._work, fast, x_query).numpy()


def _names_of_tensors(path: str, signature: str) -> tuple[dict[str, str], str]:
    """Returns the tensors of the inputs by name, and that of the predictions."""
    from tensorflow.core.protobuf import saved_model_pb2

    content = pathlib.Path(path, "saved_model.pb").read_bytes()
    saved = saved_model_pb2.SavedModel.FromString(content)
    definition = saved.meta_graphs[0].signature_def[signature]
    inputs = {name: info.name for name, info in definition.inputs.items()}
    return inputs, definition.outputs["predictions"].name
