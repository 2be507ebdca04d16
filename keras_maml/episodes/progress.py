"""What a person sees while images are prepared: how many are done, and how long the rest takes."""

from collections.abc import Iterable
from typing import TypeVar

Item = TypeVar("Item")


def progress(
    items: Iterable[Item], total: int | None, doing: str = "Preparing images"
) -> Iterable[Item]:
    """Shows how many items were taken and the time that remains; nothing outside a terminal.

    ``TQDM_DISABLE=1`` in the environment turns it off, as every bar of tqdm.

    Args:
        items: The items.
        total: How many there are; ``None``: not known, so that no time remains.
        doing: What is being done.

    Returns:
        The items.

    Example:
        >>> list(progress("abc", total=3))
        ['a', 'b', 'c']
    """
    from tqdm.auto import tqdm

    return tqdm(items, total=total, desc=doing, unit=" images", disable=None, leave=False)
