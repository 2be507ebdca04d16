"""keras_maml with ``task_map="sequential"``: compiled, one task after another."""

import functools

from experiments.benchmarks.contenders import ours

prepare = functools.partial(ours.prepare, task_map="sequential")
