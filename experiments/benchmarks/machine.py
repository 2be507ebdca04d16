"""The machine: what it is, and how fast it multiplies matrices."""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import pathlib
import statistics
import time

from experiments.benchmarks.worker import Worker
from keras_maml.execution.cores import count_cores

SIZE = 2048
LIBRARIES = ("tensorflow", "torch")
PACKAGES = ("tensorflow", "keras", "numpy", "tf-agents", "gymnasium", "mujoco")
PACKAGES += ("torch", "jax", "jaxlib")


def describe() -> dict[str, str | int | list[str] | dict[str, str]]:
    """Returns processor, number of processors, graphics cards, and the versions of packages."""
    models = []
    with contextlib.suppress(OSError):  # there is no such file on other systems than Linux
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cards = []
    for card in sorted(pathlib.Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = card.read_text().splitlines()
        cards += [line.partition(":")[2].strip() for line in lines if line.startswith("Model")]
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "cpu": models[0] if models else "unknown",
        **({"cards": cards} if cards else {}),
        "threads": count_cores(),
        "versions": versions,
    }


class MatrixProduct:
    """Products of square float32 matrices by one library.

    Args:
        library: ``"tensorflow"`` or ``"torch"``.
    """

    def __init__(self, library: str) -> None:
        module = importlib.import_module(library)
        matrix = module.ones((SIZE, SIZE), dtype=module.float32)
        if library == "torch" and module.cuda.is_available():
            matrix = matrix.cuda()
        # Reading one element waits for the product.
        self._multiply = lambda: float(module.matmul(matrix, matrix)[0, 0])
        self._multiply()

    def rates(self, repeats: int = 9) -> list[float]:
        """Returns floating-point operations per second of each of several products."""
        rates = []
        for _ in range(repeats):
            start = time.perf_counter()
            self._multiply()
            rates.append(2.0 * SIZE**3 / (time.perf_counter() - start))
        return rates


def sgemm_rates() -> dict[str, float]:
    """Measures float32 matrix products of 2048 x 2048 matrices.

    Returns:
        The median floating-point operations per second, by library that is installed.
    """
    rates = {}
    for library in LIBRARIES:
        if importlib.util.find_spec(library) is not None:
            with Worker("machine:MatrixProduct", library) as worker:
                rates[library] = statistics.median(worker.call("rates"))
    return rates
