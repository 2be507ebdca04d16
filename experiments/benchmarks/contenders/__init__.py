"""The contenders: one module each, all with the same function ``prepare``.

``prepare(work, weights, episodes)`` takes a line, the initial weights in Keras's order and layout
and the arrays of `work.episodes`; it returns ``(step, arrays)``. ``step()`` does the work; what is
timed is this call alone, with `waiting` for a graphics card where there is one. ``arrays(step())``
turns what it returns into NumPy arrays in Keras's layout: the mean query loss and the meta-gradient
of each weight, or for an evaluation the losses ``[tasks, steps + 1]``. With several meta-batches,
both are the means over them. Weights come in groups of three per convolution (kernel, bias, offset
of the batch normalisation), or of two per dense layer.
"""

import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType

# What the table calls each, its module, and the package it needs.
CONTENDERS = {
    "keras_maml": ("ours", "tensorflow"),
    "keras_maml sequential": ("ours_sequential", "tensorflow"),
    "keras_maml vectorized": ("ours_vectorized", "tensorflow"),
    "PyTorch vmap": ("torch_vmap", "torch"),
    "PyTorch loop": ("torch_loop", "torch"),
    "JAX vmap": ("jax_vmap", "jax"),
    "JAX loop": ("jax_loop", "jax"),
    "TensorFlow map_fn": ("tensorflow_map_fn", "tensorflow"),
}
OURS = "keras_maml"


def waiting(name: str) -> Callable[[], object]:
    """Returns what waits until a contender's graphics cards have done what they were told."""
    package = CONTENDERS[name][1]
    if package == "torch":
        import torch

        return torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    if package == "tensorflow":
        import tensorflow as tf

        cards = tf.config.list_logical_devices("GPU")
        return tf.test.experimental.sync_devices if cards else lambda: None
    return lambda: None  # JAX's steps wait themselves


def load(name: str) -> ModuleType:
    """Imports a contender's module."""
    return importlib.import_module(f"{__name__}.{CONTENDERS[name][0]}")


def require(names: tuple[str, ...]) -> None:
    """Checks that there are such contenders and that their packages are installed.

    Raises:
        ValueError: There is no such contender.
        ImportError: A package is missing; the message says how to install it.
    """
    for name in names:
        if name not in CONTENDERS:
            raise ValueError(f"There is no contender {name!r}; there are {', '.join(CONTENDERS)}.")
    packages = sorted({CONTENDERS[name][1] for name in names})
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"{' and '.join(missing)} not installed. The contenders need the extra 'bench':\n"
            "    python -m pip install '.[bench]'\n"
            "or leave those contenders out with --contenders."
        )
