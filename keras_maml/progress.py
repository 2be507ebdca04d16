"""What a person sees of what takes long: how much is done, and how long the rest takes."""

from collections.abc import Iterable
from typing import Any


def progress(
    items: Iterable | None,
    total: int | None,
    doing: str = "Preparing images",
    unit: str = "images",
    initial: int = 0,
) -> Any:
    """Shows how many items are done and the time that remains; nothing outside a terminal.

    What is done within a second is not shown. ``TQDM_DISABLE=1`` in the environment turns it off,
    as every bar of tqdm.

    Args:
        items: The items; ``None``: the bar's ``update`` tells how many more are done.
        total: How many there are; ``None``: not known, so that no time remains.
        doing: What is being done.
        unit: What the items are.
        initial: How many were done before.

    Returns:
        The items, as the bar, which ends with them: a context manager, too.

    Example:
        >>> list(progress("abc", total=3))
        ['a', 'b', 'c']
    """
    from tqdm import tqdm

    how: dict[str, Any] = {"disable": None, "leave": False, "delay": 1, "dynamic_ncols": True}
    return tqdm(items, doing, total, unit=f" {unit}", initial=initial, **how)
