"""PyTorch: `torch.func.vmap` over tasks of `torch.func.grad` of the adapted loss."""

from collections.abc import Callable
from typing import Any

import torch
from torch.func import grad, grad_and_value, vmap

from experiments.benchmarks.contenders.torch_networks import Tensors, from_keras, loss, to_keras
from experiments.benchmarks.work import Work


def prepare(work: Work, weights: list, episodes: tuple) -> tuple[Callable[[], Any], Callable]:
    """See `experiments.benchmarks.contenders`."""
    weights, data = from_keras(weights, episodes)

    def inner_step(weights: Tensors, x: torch.Tensor, y: torch.Tensor) -> Tensors:
        gradients = grad(lambda weights: loss(work, weights, x, y))(weights)
        if work.order == "first":
            gradients = [gradient.detach() for gradient in gradients]
        return [w - work.rate * g for w, g in zip(weights, gradients, strict=True)]

    def adapted_loss(weights, x_support, y_support, x_query, y_query):
        for _ in range(work.steps):
            weights = inner_step(weights, x_support, y_support)
        return loss(work, weights, x_query, y_query)

    def trajectory(weights, x_support, y_support, x_query, y_query):
        losses = [loss(work, weights, x_query, y_query)]
        for _ in range(work.steps):
            weights = inner_step(weights, x_support, y_support)
            losses.append(loss(work, weights, x_query, y_query))
        return torch.stack(losses)

    in_dims = (None, 0, 0, 0, 0)
    meta_gradient = vmap(grad_and_value(adapted_loss), in_dims)

    def step() -> Tensors:
        if work.evaluation:
            with torch.no_grad():
                return [vmap(trajectory, in_dims)(weights, *(a[0] for a in data))]
        total: Tensors = []
        for batch in zip(*data, strict=True):
            gradients, losses = meta_gradient(weights, *batch)
            values = [losses.mean(), *(gradient.mean(0) for gradient in gradients)]
            total = [t + v for t, v in zip(total, values, strict=True)] if total else values
        return [value / work.batches for value in total]

    return step, to_keras
