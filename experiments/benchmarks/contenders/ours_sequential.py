"""keras_maml with ``task_map="sequential"``: compiled, one task after another."""

from collections.abc import Callable
from typing import Any

from experiments.benchmarks.contenders import ours
from experiments.benchmarks.work import Work


def prepare(
    work: Work, weights: list, episodes: tuple, **options: Any
) -> tuple[Callable[[], Any], Callable]:
    """See `experiments.benchmarks.contenders`."""
    return ours.prepare(work, weights, episodes, task_map="sequential", **options)
