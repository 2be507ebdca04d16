"""What suits the device that computes: one table, with a column for each kind of device.

The processor's column was found by measuring (docs/speed.md). The graphics card's was chosen by
reason, and nothing in it was timed on one: there tasks run at once, in one program, for a card is
kept busy by large operations; convolutions of tasks in turns are TensorFlow's own, which XLA hands
to cuDNN and which have derivatives of any order; and what helps XLA's CPU back end alone, such as
writing gradients as forward convolutions, is left out.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Literal

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Placement:
    """The choices that depend on the device.

    Attributes:
        device: Its kind, as TensorFlow calls it.
        task_patches: Tasks with larger patches of a convolution take turns, for they are faster in
            the cache; bytes, None for no limit.
        all_patches: Tasks take turns if the patches of all of them together are larger, for they
            have to fit into memory; bytes, None for no limit.
        loops_in_turns: Whether tasks of recurrent layers take turns where XLA compiles them.
        turns: How the layers of tasks in turns are traced where XLA compiles them, see
            `forms.differentiable_forms`.
        slices: Whether tasks in turns are several calls of a program, one or more for each core.
        min_slice: From how many bytes of input on each of these calls keeps to one core.
        max_terms: Terms of a sum, taps times channels, that are added up faster than convolved.
        sum_parts: How many parts a sum over positions is cut into: the first of these that divides
            it evenly. The more, the less is left to sum up; but 16 are read slower.
        turned_products: Whether the gradient of a matrix that is far wider than high is computed
            transposed.
    """

    device: str
    task_patches: int | None
    all_patches: int | None
    loops_in_turns: bool
    turns: Literal["compiled", "plain"]
    slices: bool
    min_slice: int
    max_terms: int
    sum_parts: tuple[int, ...]
    turned_products: bool

    def take_turns(self, examples: int | None, patch_bytes: int, tasks: int | None) -> bool:
        """Returns whether tasks take turns because of their patches, as far as is known.

        Args:
            examples: How many examples a forward pass of a task has; None if that is open.
            patch_bytes: How large the largest patches of one example are.
            tasks: How many tasks there are at once; None if that is open.
        """
        of_task = None if examples is None else examples * patch_bytes
        of_all = None if of_task is None or tasks is None else of_task * tasks
        limits = (of_task, self.task_patches), (of_all, self.all_patches)
        return any(None not in (size, limit) and size > limit for size, limit in limits)


PROCESSOR = Placement(
    device="CPU",
    task_patches=2**16,
    all_patches=None,
    loops_in_turns=True,
    turns="compiled",
    slices=True,
    min_slice=3 * 2**18,
    max_terms=64,
    sum_parts=(8, 4, 5, 6, 7, 3, 2),
    turned_products=True,
)
GRAPHICS_CARD = Placement(
    device="GPU",
    task_patches=None,
    all_patches=2**30,
    loops_in_turns=False,
    turns="plain",
    slices=False,
    min_slice=0,
    max_terms=0,
    sum_parts=(),
    turned_products=False,
)
TABLE = {column.device: column for column in (PROCESSOR, GRAPHICS_CARD)}

_chosen: contextvars.ContextVar[Placement | None] = contextvars.ContextVar("chosen", default=None)


def placement() -> Placement:
    """Returns the column of the device that TensorFlow places operations on.

    Example:
        >>> placement().device in TABLE
        True
    """
    chosen = _chosen.get()
    if chosen is not None:
        return chosen
    return TABLE["GPU" if tf.config.list_logical_devices("GPU") else "CPU"]


@contextlib.contextmanager
def using(column: Placement) -> Iterator[None]:
    """Traces as for another device, or with other choices, in this thread.

    Args:
        column: What to take in the place of the device's own column.

    Example:
        >>> with using(GRAPHICS_CARD):
        ...     placement().device
        'GPU'
    """
    token = _chosen.set(column)
    try:
        yield
    finally:
        _chosen.reset(token)
