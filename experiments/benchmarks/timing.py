"""Measures a line: every contender in turn, so that all see the same machine."""

import contextlib
import math
import time
from typing import Any

import numpy as np

from experiments.benchmarks import comparison, machine, work
from experiments.benchmarks.contenders import ours
from experiments.benchmarks.work import Work
from experiments.benchmarks.worker import Worker, WorkerTimeout

TURN = 0.5  # seconds of timed steps in one turn of a contender, if a step is shorter


def initial_weights(line: Work) -> list[np.ndarray]:
    """Returns the initial weights, those of the Keras model."""
    return [variable.numpy() for variable in ours.build_network(line, seed=0).trainable_variables]


def measure(
    line: Work,
    contenders: tuple[str, ...],
    *,
    seconds: float,
    repeats: int,
    limit: float,
    options: dict[str, dict] | None = None,
) -> dict[str, Any]:
    """Times one line of work.

    Args:
        line: The line.
        contenders: Their names.
        seconds: The time of each.
        repeats: Timed steps of each at least.
        limit: Seconds after which a contender that has no first result is given up, and one that
            has not made all repeats is timed no longer.
        options: More arguments by contender.

    Returns:
        The ``arithmetic`` of a meta-step, ``sgemm`` rates, the ``bounds`` of the errors, and for
        each of the ``contenders`` its figures, or None if it was given up.

    Raises:
        ComparisonError: A contender computes something else.
    """
    weights, episodes = initial_weights(line), work.episodes(line)
    options = options or {}
    exact, bounds = comparison.reference(line, weights, episodes)
    small, few = comparison.first_tasks(line, episodes)
    exact_small, _ = comparison.reference(small, weights, few, draws=0)
    before = machine.sgemm_rates()
    figures: dict[str, Any] = {}
    workers: dict[str, Worker] = {}
    with contextlib.ExitStack() as stack:
        for name in contenders:
            try:
                in_float64 = _errors_in_float64(
                    name, small, weights, few, exact_small, options.get(name), limit
                )
                worker = stack.enter_context(Worker("session:Session", name))
                arguments = (line, weights, episodes, options.get(name))
                first, arrays = worker.call("start", *arguments, timeout=limit)
            except WorkerTimeout:
                figures[name] = None
                continue
            found = comparison.errors(arrays, exact)
            comparison.check(name, line, found, bounds, "float32")
            workers[name] = worker
            figures[name] = {
                "first_seconds": first,
                "loss": float(np.mean(arrays[0])),
                "float32_loss_error": found.loss,
                "float32_gradient_error": found.gradient,
                "float64_loss_error": in_float64.loss,
                "float64_gradient_error": in_float64.gradient,
            }
        timed = interleave(workers, seconds=seconds, repeats=repeats, limit=limit)
        for name, worker in workers.items():
            figures[name]["peak_gb"] = worker.call("peak_memory")
            figures[name]["peak_gb_of_steps"] = worker.call("peak_memory_of_steps")
            figures[name] |= summary(timed[name], line.batches)
    after = machine.sgemm_rates()
    return {
        "arithmetic": work.arithmetic(line),
        "sgemm": {name: [before[name], after[name]] for name in before},
        "bounds": {"loss": bounds.loss, "gradient": bounds.gradient},
        "contenders": figures,
    }


def _errors_in_float64(name, small, weights, few, exact, options, limit) -> comparison.Errors:
    with Worker("session:Session", name) as worker:
        data = (comparison.in_float64(weights), tuple(comparison.in_float64(few)))
        _, arrays = worker.call("start", small, *data, options, timeout=limit)
    found = comparison.errors(arrays, exact)
    allowed = comparison.Errors(comparison.EXACT, comparison.EXACT)
    comparison.check(name, small, found, allowed, "float64")
    return found


def interleave(
    workers: dict[str, Worker], *, seconds: float, repeats: int, limit: float = math.inf
) -> dict[str, list[float]]:
    """Times sessions in turn, until each has had its time and its number of steps.

    Args:
        workers: Sessions that have taken their first step.
        seconds: The time of each, its untimed steps included.
        repeats: Timed steps of each at least.
        limit: Seconds after which fewer steps must do.

    Returns:
        The seconds of each timed step.
    """
    times: dict[str, list[float]] = {name: [] for name in workers}
    spent = dict.fromkeys(workers, 0.0)
    turns = dict.fromkeys(workers, 1)
    while True:
        pending = [
            name
            for name in workers
            if spent[name] < seconds or (len(times[name]) < repeats and spent[name] < limit)
        ]
        if not pending:
            return times
        for name in pending:
            start = time.perf_counter()
            times[name] += workers[name].call("time", turns[name])
            spent[name] += time.perf_counter() - start
            turns[name] = int(np.clip(TURN / np.median(times[name]), 1, 50))


def summary(times: list[float], batches: int = 1) -> dict[str, float]:
    """Returns median and quartiles, in milliseconds per meta-batch, and the number of steps.

    Example:
        >>> summary([0.1, 0.2, 0.3])
        {'median_ms': 200.0, 'quartiles_ms': [150.0, 250.0], 'steps': 3}
    """
    low, median, high = (round(float(q), 6) for q in np.percentile(times, (25, 50, 75)) * 1e3)
    quartiles = [low / batches, high / batches]
    return {"median_ms": median / batches, "quartiles_ms": quartiles, "steps": len(times)}
