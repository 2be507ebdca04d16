"""What is timed: lines of work, their data, and the arithmetic they need.

Imports no framework, so that every contender's process can use it.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

ORDERS = ("second", "first")
EVALUATION = "evaluation"


@dataclasses.dataclass(frozen=True)
class Network:
    """One of the networks of `keras_maml.networks`.

    Attributes:
        kind: ``"sinusoid"``, ``"omniglot"`` or ``"mini_imagenet"``.
        image_shape: The shape of one input.
        filters: The filters of each convolution, or the units of each hidden layer.
        layers: The number of convolutions, or of hidden layers.
    """

    kind: str
    image_shape: tuple[int, ...]
    filters: int
    layers: int


SINUSOID = Network("sinusoid", (1,), filters=40, layers=2)
OMNIGLOT = Network("omniglot", (28, 28, 1), filters=64, layers=4)
MINI_IMAGENET = Network("mini_imagenet", (84, 84, 3), filters=32, layers=4)


@dataclasses.dataclass(frozen=True)
class Work:
    """One line of the table in one order.

    Attributes:
        line: Its number in the table.
        title: What a reader calls it.
        network: The network.
        tasks: Tasks in a meta-batch.
        shots: Support examples per class.
        queries: Query examples per class.
        steps: Inner steps.
        rate: The inner learning rate.
        ways: Classes of a task; 1 for regression.
        batches: Meta-batches in one call: more than one where a single step is so short that
            calling it from Python would be what is measured.
        order: ``"second"``: the exact meta-gradient; ``"first"``: the inner gradient stopped;
            ``"evaluation"``: no meta-gradient, the query loss after each of 0 .. ``steps`` steps.
    """

    line: str
    title: str
    network: Network
    tasks: int
    shots: int
    queries: int
    steps: int
    rate: float
    ways: int = 1
    batches: int = 1
    order: str = "second"

    @property
    def key(self) -> str:
        """Names the measurement: line and order."""
        return f"{self.line} {self.order}"

    @property
    def evaluation(self) -> bool:
        """Whether there is no meta-gradient."""
        return self.order == EVALUATION


LINES = (
    Work("1", "sinusoid, 10 points", SINUSOID, 25, 10, 10, 1, 0.01, batches=200),
    Work("2", "Omniglot 5-way 1-shot, 1 query", OMNIGLOT, 32, 1, 1, 1, 0.4, ways=5),
    Work("3", "Omniglot 5-way 1-shot, 15 queries", OMNIGLOT, 32, 1, 15, 1, 0.4, ways=5),
    Work("4", "Omniglot 20-way 1-shot, 1 query", OMNIGLOT, 16, 1, 1, 5, 0.1, ways=20),
    Work("5", "mini-ImageNet 5-way 1-shot, 15 queries", MINI_IMAGENET, 4, 1, 15, 5, 0.01, ways=5),
    Work("6", "mini-ImageNet 5-way 5-shot, 15 queries", MINI_IMAGENET, 2, 5, 15, 5, 0.01, ways=5),
    Work(
        "7a",
        "evaluation, Omniglot 20-way 1-shot, 1 query",
        OMNIGLOT,
        16,
        1,
        1,
        10,
        0.1,
        ways=20,
        order=EVALUATION,
    ),
    Work(
        "7b",
        "evaluation, mini-ImageNet 5-way 1-shot, 15 queries",
        MINI_IMAGENET,
        4,
        1,
        15,
        10,
        0.01,
        ways=5,
        order=EVALUATION,
    ),
)


def select(lines: tuple[str, ...], orders: tuple[str, ...]) -> list[Work]:
    """Returns the lines asked for, each in each order; evaluation has none.

    Args:
        lines: Numbers of lines; ``"7"`` stands for ``"7a"`` and ``"7b"``.
        orders: ``"second"``, ``"first"`` or both.

    Raises:
        ValueError: There is no such line or order.

    Example:
        >>> [work.key for work in select(("2", "7a"), ("second", "first"))]
        ['2 second', '2 first', '7a evaluation']
    """
    known = {work.line for work in LINES}
    for line in lines:
        if line not in known and line != "7":
            raise ValueError(f"There is no line {line!r}; lines are {', '.join(sorted(known))}.")
    for order in orders:
        if order not in ORDERS:
            raise ValueError(f"There is no order {order!r}; orders are {', '.join(ORDERS)}.")
    selected = []
    for work in LINES:
        if work.line in lines or work.line.rstrip("ab") in lines:
            own = [work.order] if work.evaluation else orders
            selected += [dataclasses.replace(work, order=order) for order in own]
    return selected


def episodes(work: Work, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Returns the data of a line.

    Args:
        work: The line.
        seed: Seeds the examples.

    Returns:
        ``(x_support, y_support, x_query, y_query)``: inputs float32 ``[batches, tasks, examples,
        *image_shape]``, an image in [0, 1] being half the pattern of its class and half noise;
        labels int32 ``[batches, tasks, examples]``; for regression targets float32 ``[batches,
        tasks, examples, 1]``, sine waves.
    """
    random = np.random.default_rng(seed)
    leading = (work.batches, work.tasks)
    arrays: list[np.ndarray] = []
    if work.network.kind == "sinusoid":
        amplitude = random.uniform(0.1, 5.0, (*leading, 1, 1))
        phase = random.uniform(0.0, np.pi, (*leading, 1, 1))
        for points in (work.shots, work.queries):
            x = random.uniform(-5.0, 5.0, (*leading, points, 1))
            arrays += [x.astype("float32"), (amplitude * np.sin(x - phase)).astype("float32")]
        return tuple(arrays)
    patterns = random.random((*leading, work.ways, *work.network.image_shape), "float32")
    for each in (work.shots, work.queries):
        x = np.repeat(patterns, each, axis=len(leading))
        x = (x + random.random(x.shape, "float32")) / 2
        y = np.repeat(np.arange(work.ways, dtype="int32"), each)
        arrays += [x, np.broadcast_to(y, (*leading, len(y))).copy()]
    return tuple(arrays)


def products(work: Work) -> Iterator[float]:
    """Yields the operations of each layer's product for one example, in the direct form.

    Twice the multiply-adds of convolutions and dense layers; nothing else is counted. Padding
    counts as if it were image: the border of a convolution is not subtracted.
    """
    network = work.network
    if network is SINUSOID or network.kind == "sinusoid":
        widths = [*network.image_shape, *[network.filters] * network.layers, 1]
        yield from (2.0 * a * b for a, b in zip(widths, widths[1:], strict=False))
        return
    height, width, channels = network.image_shape
    for _ in range(network.layers):
        if network.kind == "omniglot":
            height, width = math.ceil(height / 2), math.ceil(width / 2)
        yield 2.0 * height * width * 9 * channels * network.filters
        channels = network.filters
        if network.kind == "mini_imagenet":
            height, width = height // 2, width // 2
    features = channels if network.kind == "omniglot" else height * width * channels
    yield 2.0 * features * work.ways


def arithmetic(work: Work) -> float:
    """Returns the floating-point operations of one meta-step, or of one evaluation.

    A forward pass takes one unit per layer and image: the layer's product. A gradient adds two:
    one product for the gradient of the weights, one for that of the input, which the first
    layer has no need of. The exact meta-gradient differentiates each of these three products of
    a support image with respect to its two factors: six units more per inner step; in the first
    layer, whose input is no function of the weights, two (the forward product and that of the
    weights' gradient, each with respect to the one factor that varies).
    """
    first, *others = products(work)
    forward = first + sum(others)
    gradient = 2 * first + 3 * sum(others)
    support, query = work.ways * work.shots, work.ways * work.queries
    if work.evaluation:
        return work.tasks * (work.steps * support * gradient + (work.steps + 1) * query * forward)
    extra = 2 * first + 6 * sum(others) if work.order == "second" else 0.0
    return work.tasks * (work.steps * support * (gradient + extra) + query * gradient)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Returns TensorFlow's ``SAME`` padding along an axis: the odd one goes to the end.

    Example:
        >>> same_padding(28, 3, 2), same_padding(7, 3, 2), same_padding(84, 3, 1)
        ((0, 1), (1, 1), (1, 1))
    """
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2
