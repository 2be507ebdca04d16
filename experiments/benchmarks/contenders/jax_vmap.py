"""JAX: `jit(vmap(grad))`; several meta-batches run in one `lax.map`."""

from collections.abc import Callable
from typing import Any

import jax

from experiments.benchmarks.contenders.jax_networks import Arrays, task_functions, to_keras
from experiments.benchmarks.work import Work


def prepare(work: Work, weights: list, episodes: tuple) -> tuple[Callable[[], Any], Callable]:
    """See `experiments.benchmarks.contenders`."""
    jax.config.update("jax_enable_x64", weights[0].dtype == "float64")
    weights, data = jax.device_put((weights, episodes))
    meta_gradient, trajectory = task_functions(work)

    def over_tasks(function: Callable, weights: Arrays, batch: tuple) -> Any:
        return jax.vmap(function, (None, 0, 0, 0, 0))(weights, *batch)

    def mean(values: Arrays) -> Arrays:
        return [value.mean(0) for value in values]

    @jax.jit
    def compute(weights: Arrays, data: tuple) -> Arrays:
        first = tuple(array[0] for array in data)
        if work.evaluation:
            return [over_tasks(trajectory, weights, first)]
        if work.batches == 1:
            return mean(over_tasks(meta_gradient, weights, first))
        return mean(
            jax.lax.map(lambda batch: mean(over_tasks(meta_gradient, weights, batch)), data)
        )

    return lambda: jax.block_until_ready(compute(weights, data)), to_keras
