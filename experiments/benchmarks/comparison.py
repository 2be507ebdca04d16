"""Whether the contenders compute the same: their errors against float64, and the bounds.

Two checks are made of each contender before its times count.

*In float64*, on two tasks of the line: it must agree with the reference to `EXACT`. Rounding in
float64 (2^-53 an operation) leaves errors of about 1e-14; a derivative that is missing or a
padding on the wrong side leaves errors above 1e-3. So this shows that the same function is
computed.

*In float32*, on all tasks, the result of the very program that is timed: its error must not exceed
what rounding can do. A meta-gradient is not a continuous function: rectifiers and max-pooling
have kinks, millions of them in a meta-batch, and an input that rounding carries across one
changes the gradient by a finite amount. No bound of the form "so many times the float32 epsilon"
holds then; instead the bound is measured. The reference is repeated in float64 with every weight
and every input multiplied by 1 + d, d uniform in +-`PERTURBATION`, and the bound is the greatest
change among `DRAWS` draws, but at least `FLOOR`. A perturbation of 2^-18 is 64 float32 roundings
of each number: where no kink is crossed, the measured errors are those of 4 to 8.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments.benchmarks.work import Work
from experiments.benchmarks.worker import Worker

REFERENCE = "TensorFlow map_fn"  # the contender whose code, in float64, is the reference
EXACT = 1e-9
PERTURBATION = 2.0**-18
DRAWS = 4
FLOOR = 256 * 2.0**-24  # a sum of n terms, one after another, adds about sqrt(n) roundings

Arrays = list[np.ndarray]


class ComparisonError(AssertionError):
    """A contender computes something else."""


@dataclasses.dataclass(frozen=True)
class Errors:
    """Errors relative to a reference.

    Attributes:
        loss: The greatest error of a loss, divided by the greatest loss.
        gradient: The norm of the error of the meta-gradient, all weights together, divided by
            the norm of the meta-gradient; 0 for an evaluation, which has none.
    """

    loss: float
    gradient: float


def errors(arrays: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> Errors:
    """Compares losses and gradients, see `contenders`, with a reference.

    Example:
        >>> errors([np.array(2.0), np.array([3.0, 4.5])], [np.array(2.0), np.array([3.0, 4.0])])
        Errors(loss=0.0, gradient=0.1)
    """
    loss, *gradients = (np.asarray(array, "float64") for array in arrays)
    true_loss, *true_gradients = (np.asarray(array, "float64") for array in reference)
    difference = [a - b for a, b in zip(gradients, true_gradients, strict=True)]
    return Errors(
        float(np.max(np.abs(loss - true_loss)) / np.max(np.abs(true_loss))),
        _norm(difference) / _norm(true_gradients) if gradients else 0.0,
    )


def check(contender: str, work: Work, found: Errors, bound: Errors, dtype: str) -> None:
    """Raises unless the errors are within the bounds.

    Raises:
        ComparisonError: They are not, or something is not finite; the message names the
            contender, the line, the error and the bound.
    """
    for name, error in dataclasses.asdict(found).items():
        limit = getattr(bound, name)
        if not error <= limit:  # also if it is not a number
            raise ComparisonError(
                f"{contender} differs on line {work.key} ({work.title}): the relative error of "
                f"its {name} in {dtype} is {error:.1e}, and {limit:.1e} is allowed."
            )


def reference(
    work: Work, weights: Arrays, episodes: tuple, draws: int = DRAWS
) -> tuple[Arrays, Errors]:
    """Returns the float64 reference of a line, and the bounds of float32, as the module says.

    Args:
        work: The line.
        weights: The initial weights.
        episodes: The data.
        draws: How many perturbations; without any, the bounds are `FLOOR`.
    """
    weights, episodes = in_float64(weights), tuple(in_float64(episodes))
    with Worker("session:Session", REFERENCE) as worker:
        _, exact = worker.call("start", work, weights, episodes)
        changes = []
        for seed in range(draws):
            random = np.random.default_rng(seed)
            moved = [_perturbed(weight, random) for weight in weights]
            data = tuple(_perturbed(array, random) for array in episodes)
            changes.append(errors(worker.call("start", work, moved, data)[1], exact))
    return exact, Errors(
        max([FLOOR, *(change.loss for change in changes)]),
        max([FLOOR, *(change.gradient for change in changes)]),
    )


def _perturbed(array: np.ndarray, random: np.random.Generator) -> np.ndarray:
    if array.dtype.kind != "f":
        return array
    return array * (1 + random.uniform(-PERTURBATION, PERTURBATION, array.shape))


def result(contender: str, work: Work, weights: Arrays, episodes: tuple) -> Arrays:
    """Returns what a contender computes, in a process of its own."""
    with Worker("session:Session", contender) as worker:
        return worker.call("start", work, weights, episodes)[1]


def first_tasks(
    work: Work, episodes: tuple[np.ndarray, ...], tasks: int = 2
) -> tuple[Work, tuple[np.ndarray, ...]]:
    """Returns a line with fewer tasks and meta-batches, and its data."""
    batches = min(work.batches, tasks)
    smaller = dataclasses.replace(work, tasks=tasks, batches=batches)
    return smaller, tuple(array[:batches, :tasks] for array in episodes)


def in_float64(arrays: Sequence[np.ndarray]) -> Arrays:
    """Converts floating arrays to float64; labels stay integers."""
    return [a.astype("float64") if a.dtype.kind == "f" else a for a in arrays]


def _norm(arrays: Sequence[np.ndarray]) -> float:
    return float(np.sqrt(sum(np.sum(np.square(array)) for array in arrays)))
