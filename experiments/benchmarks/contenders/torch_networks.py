"""The networks and the inner loop in PyTorch, as functions of a list of weights."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (as everybody does)

from experiments.benchmarks.work import Work, same_padding

Tensors = list[torch.Tensor]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def forward(work: Work, weights: Tensors, x: torch.Tensor) -> torch.Tensor:
    """Returns logits ``[examples, ways]``, or predictions ``[examples, 1]``, of a network."""
    *hidden, kernel, bias = weights
    if work.network.kind == "sinusoid":
        for i in range(0, len(hidden), 2):
            x = F.relu(x @ hidden[i] + hidden[i + 1])
        return x @ kernel + bias
    for i in range(0, len(hidden), 3):
        x = _block(work, hidden[i : i + 3], x)
    if work.network.kind == "omniglot":
        return x.mean((2, 3)) @ kernel + bias
    return x.permute(0, 2, 3, 1).flatten(1) @ kernel + bias  # in the order of Keras's Flatten


def _block(work: Work, weights: Tensors, x: torch.Tensor) -> torch.Tensor:
    kernel, bias, offset = weights
    if work.network.kind == "omniglot":
        rows, columns = same_padding(x.shape[2], 3, 2), same_padding(x.shape[3], 3, 2)
        x = F.conv2d(F.pad(x, (*columns, *rows)), kernel, bias, stride=2)
    else:
        x = F.conv2d(x, kernel, bias, padding=1)
    scale = torch.ones_like(offset)  # without it the second derivative raises an error
    x = F.relu(F.batch_norm(x, None, None, scale, offset, training=True, eps=1e-3))
    return x if work.network.kind == "omniglot" else F.max_pool2d(x, 2)


def loss(work: Work, weights: Tensors, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Returns the mean loss over examples."""
    predictions = forward(work, weights, x)
    if work.network.kind == "sinusoid":
        return F.mse_loss(predictions, y)
    return F.cross_entropy(predictions, y)


def from_keras(weights: list[np.ndarray], episodes: tuple[np.ndarray, ...]) -> tuple[Tensors, Any]:
    """Converts weights and data to PyTorch's layout: NCHW images, OIHW kernels, int64 labels."""

    def convert(array: np.ndarray, permutation: tuple[int, ...] | None) -> torch.Tensor:
        tensor = torch.from_numpy(array.astype("int64") if array.dtype.kind == "i" else array)
        tensor = tensor.permute(permutation).contiguous() if permutation else tensor
        return tensor.to(DEVICE)

    kernels = [convert(w, (3, 2, 0, 1) if w.ndim == 4 else None) for w in weights]
    data = [convert(a, (0, 1, 2, 5, 3, 4) if a.ndim == 6 else None) for a in episodes]
    return kernels, data


def to_keras(output: Any) -> list[np.ndarray]:
    """Converts the loss and gradients, or the losses of an evaluation, to Keras's layout."""
    values = [value.detach().cpu() for value in output]
    return [(v.permute(2, 3, 1, 0) if v.ndim == 4 else v).numpy() for v in values]
