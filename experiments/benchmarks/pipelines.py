"""Episode pipelines at work in a process of their own."""

import dataclasses
import time

import numpy as np
import tensorflow as tf

from keras_maml import episodes

CLASSES, EXAMPLES = 64, 100  # of procedurally generated images, the size of a training split
CHARACTERS, DRAWINGS = 1100, 20


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """One line of the table.

    Attributes:
        title: What a reader calls it.
        key: The line and order of `meta_step` whose step it feeds.
        source: ``"sinusoid"``, ``"omniglot"`` or ``"mini_imagenet"``.
        tasks: Tasks in a meta-batch.
        ways: Classes of a task.
        shots: Support examples per class.
        queries: Query examples per class.
    """

    title: str
    key: str
    source: str
    tasks: int
    ways: int
    shots: int
    queries: int

    def dataset(self, data: str | None) -> tf.data.Dataset:
        """Returns the episodes, endless.

        Args:
            data: The folder of the Omniglot archives; None draws images of random numbers.
        """
        sizes = {"shots": self.shots, "queries": self.queries, "meta_batch_size": self.tasks}
        if self.source == "sinusoid":
            return episodes.sinusoid(**sizes)
        sizes["ways"] = self.ways
        if self.source == "omniglot" and data is not None:
            return episodes.omniglot(data, **sizes)
        omniglot = self.source == "omniglot"
        shape = (28, 28, 1) if omniglot else (84, 84, 3)
        classes, each = (CHARACTERS, DRAWINGS) if omniglot else (CLASSES, EXAMPLES)
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (classes * each, *shape), dtype="uint8")
        labels = np.repeat(np.arange(classes), each)
        # As for Omniglot itself, characters are turned.
        return episodes.from_arrays(images, labels, rotations=omniglot, **sizes)


class Rate:
    """Draws from a pipeline.

    Args:
        pipeline: The pipeline.
        data: See `Pipeline.dataset`.
    """

    def __init__(self, pipeline: Pipeline, data: str | None) -> None:
        self._iterator = iter(pipeline.dataset(data))
        for _ in range(10):  # tracing, and the buffer of what is prepared in advance
            next(self._iterator)

    def times(self, seconds: float) -> list[float]:
        """Returns the seconds per meta-batch in consecutive tenths of a period.

        Args:
            seconds: The length of the period.
        """
        times = []
        for _ in range(10):
            count, start = 0, time.perf_counter()
            while not count or time.perf_counter() - start < seconds / 10:
                next(self._iterator)
                count += 1
            times.append((time.perf_counter() - start) / count)
        return times
