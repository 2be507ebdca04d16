"""PyTorch: a loop over tasks with `autograd.grad(create_graph=True)`.

What learn2learn and higher do: the meta-gradients of the tasks are accumulated, and the graph of
a task is freed before the next one.
"""

from collections.abc import Callable
from typing import Any

import torch

from experiments.benchmarks.contenders.torch_networks import Tensors, from_keras, loss, to_keras
from experiments.benchmarks.work import Work


def prepare(work: Work, weights: list, episodes: tuple) -> tuple[Callable[[], Any], Callable]:
    """See `experiments.benchmarks.contenders`."""
    weights, data = from_keras(weights, episodes)
    weights = [weight.requires_grad_() for weight in weights]

    def inner_step(fast: Tensors, x: torch.Tensor, y: torch.Tensor) -> Tensors:
        second_order = work.order == "second"
        gradients = torch.autograd.grad(loss(work, fast, x, y), fast, create_graph=second_order)
        return [w - work.rate * g for w, g in zip(fast, gradients, strict=True)]

    def meta_gradient(x_support, y_support, x_query, y_query) -> Tensors:
        fast = weights
        for _ in range(work.steps):
            fast = inner_step(fast, x_support, y_support)
        query_loss = loss(work, fast, x_query, y_query)
        return [query_loss.detach(), *torch.autograd.grad(query_loss, weights)]

    def trajectory(x_support, y_support, x_query, y_query) -> torch.Tensor:
        fast, losses = weights, []
        for step in range(work.steps + 1):
            with torch.no_grad():
                losses.append(loss(work, fast, x_query, y_query))
            if step < work.steps:
                fast = inner_step([w.detach().requires_grad_() for w in fast], x_support, y_support)
        return torch.stack(losses)

    def step() -> Tensors:
        if work.evaluation:
            tasks = zip(*(array[0] for array in data), strict=True)
            return [torch.stack([trajectory(*task) for task in tasks])]
        total: Tensors = []
        for batch in zip(*data, strict=True):
            for task in zip(*batch, strict=True):
                values = meta_gradient(*task)
                if total:
                    for accumulated, value in zip(total, values, strict=True):
                        accumulated += value
                else:
                    total = list(values)
        return [value / (work.batches * work.tasks) for value in total]

    return step, to_keras
