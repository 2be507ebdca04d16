"""JAX: the jitted meta-gradient of one task, called in a loop over tasks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.contenders.jax_networks import Arrays, task_functions, to_keras
from experiments.benchmarks.work import Work


def prepare(work: Work, weights: list, episodes: tuple) -> tuple[Callable[[], Any], Callable]:
    """See `experiments.benchmarks.contenders`."""
    jax.config.update("jax_enable_x64", weights[0].dtype == "float64")
    weights, data = jax.device_put((weights, episodes))
    tasks = [task for batch in zip(*data, strict=True) for task in zip(*batch, strict=True)]
    meta_gradient, trajectory = map(jax.jit, task_functions(work))

    @jax.jit
    def add(total: Arrays, values: Arrays) -> Arrays:
        return [t + v for t, v in zip(total, values, strict=True)]

    def step() -> Arrays:
        if work.evaluation:
            losses = [trajectory(weights, *task) for task in tasks]
            return jax.block_until_ready([jnp.stack(losses)])
        total = meta_gradient(weights, *tasks[0])
        for task in tasks[1:]:
            total = add(total, meta_gradient(weights, *task))
        return jax.block_until_ready([value / len(tasks) for value in total])

    return step, to_keras
