"""Episodes from tasks that exist: one per customer, device, person or sensor, of unequal sizes."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_maml.episodes.class_lists import check_split, split_classes
from keras_maml.episodes.examples import Examples, examples_of
from keras_maml.episodes.plain_arrays import check_distinct, check_range, decoded, plain_array
from keras_maml.episodes.sampling import choose, episode_dataset, require_positive, uniform
from keras_maml.episodes.task_arrays import joined, text_classes
from keras_maml.episodes.task_sources import read_folder, read_table


def from_tasks(
    data: Any,
    *,
    shots: int,
    queries: int,
    ordered: bool = False,
    window: int = 1,
    meta_batch_size: int,
    seed: int = 0,
    tasks: int | None = None,
    start: int = 0,
    shard: tuple[int, int] = (0, 1),
    **source: Any,
) -> tf.data.Dataset:
    """Episodes of one task each: ``shots`` examples to adapt with and ``queries`` others.

    Every task comes once before one comes again, in an order of the seed's: ``tasks`` as many as
    there are, and a test has seen all. Which of a task's examples are support and which query is
    drawn anew each time, from the seed and the number of the episode.

    Args:
        data: The tasks, see `load_tasks`.
        shots: Support examples of an episode.
        queries: Query examples.
        ordered: Whether an episode's examples are successive ones and the queries follow the
            support: for time series, where the future is to be learned from the past.
        window: How many successive rows make an example, ``[window, ...]``, with the target of the
            last one. Examples of an episode share no row, but with ``ordered``, where each begins
            a row after the one before: queries see inputs of the support, as the past is known,
            but no target that it has seen.
        meta_batch_size: Episodes per element, ``B`` below.
        seed: Any integer; each has its own episodes.
        tasks: How many episodes, a multiple of ``meta_batch_size``; ``None``: without end.
        start: Number of the first episode.
        shard: ``(worker, workers)``, see `sampling.episode_dataset`.
        **source: ``task``, ``target``, ``features``, ``split``, ``fractions``, ``split_seed``,
            ``leave_out``, ``dtype`` and ``scale`` of `load_tasks`.

    Returns:
        A dataset of ``((x_support, y_support), (x_query, y_query))``, arrays ``[B, shots, ...]``
        and ``[B, queries, ...]``; labels that are texts come as numbers, see `Tasks.classes`.

    Raises:
        ValueError: If a size is not positive, ``tasks`` is not a multiple of ``meta_batch_size``,
            a task has fewer than ``shots + queries`` examples, in windows that share no row
            ``(shots + queries) * window`` rows; and as `load_tasks` does.
        FileNotFoundError: As `load_tasks` does.

    Example:
        >>> sensors = [(np.ones([n, 3]), np.full([n, 1], float(n))) for n in (8, 12, 9)]
        >>> episodes = from_tasks(sensors, shots=5, queries=3, meta_batch_size=3, tasks=3)
        >>> (x_support, y_support), (x_query, y_query) = next(iter(episodes))
        >>> x_support.shape, sorted(y_query[:, 0, 0].numpy().tolist())
        (TensorShape([3, 5, 3]), [8.0, 9.0, 12.0])
    """
    return load_tasks(data, **source).episodes(
        shots=shots,
        queries=queries,
        ordered=ordered,
        window=window,
        seed=seed,
        meta_batch_size=meta_batch_size,
        tasks=tasks,
        start=start,
        shard=shard,
    )


def load_tasks(
    data: Any,
    *,
    task: str | None = None,
    target: str | Sequence[str] | None = None,
    features: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
    split: str | Sequence[Any] | None = None,
    fractions: Sequence[float] = (0.64, 0.16, 0.2),
    split_seed: int = 0,
    leave_out: Sequence[Any] = (),
    dtype: Any = None,
    scale: Any = None,
) -> "Tasks":
    """Loads tasks from any form in which people have them.

    Args:
        data: One of

            * a list of pairs ``(x, y)``, or a dictionary of them by name: ``x`` is an array
              ``[n, ...]``, a list of texts or a dictionary of these, ``y`` an array ``[n, ...]``
              of numbers or texts;
            * a data frame (of pandas, say), or a dictionary of columns, with ``task`` and
              ``target``;
            * the path of a folder with a CSV file per task, with ``target``.
        task: The column that names a row's task.
        target: The column to be predicted, or several, see `task_sources.pairs_of_columns`.
        features: The columns that it is predicted from; ``None``: all others.
        split: "train", "validation" or "test": the tasks are parted, never the examples of one;
            or the names of tasks (in a list without names their numbers); ``None``: all. The split
            is one of the list of names: with tasks added or removed it is another one.
        fractions: Shares of the tasks in the three splits, see `split_classes`.
        split_seed: Which tasks are in which split.
        leave_out: Names of tasks to do without; the others stay in the splits that they are in.
        dtype: See `examples.examples_of`, also for what becomes of ``x``, but that integers
            ``[n, T, d]`` are sequences rather than images. That is decided once, by the tasks of
            all splits but those left out.
        scale: Likewise.

    Returns:
        The tasks, in the order given; those of a table or folder are sorted by name.

    Raises:
        ValueError: If an argument is missing or too much, names no task or column, tasks differ in
            the shape of an example, or a value is missing, not finite, or out of the range of the
            dtype that it comes out as, or different ones come out as the same.
        FileNotFoundError: If there is no such folder.

    Example:
        >>> table = {"shop": ["n", "s"] * 5, "day": range(10), "sales": np.arange(10.0)}
        >>> shops = load_tasks(table, task="shop", target="sales", leave_out=["s"])
        >>> shops.names, shops.counts
        (('n',), (5,))
    """
    if split is not None:
        check_split(split, fractions)
    pairs = _pairs(data, task=task, target=target, features=features)
    classes = text_classes([pair[1] for pair in pairs.values()])
    left_out = {str(name) for name in leave_out}
    unknown = sorted(left_out - set(pairs))
    if unknown or left_out == set(pairs):
        trouble = f"has none named {unknown}" if unknown else "would have none left"
        raise ValueError(f"leave_out must name some of the tasks, but the data {trouble}.")
    kept = {name: pair for name, pair in pairs.items() if name not in left_out}
    chosen = set(pairs)
    if split is not None:
        # The split is one of all names: who leaves a task out must not shuffle the others.
        chosen = set(split_classes(list(pairs), split, fractions=fractions, seed=split_seed))
    names = tuple(name for name in kept if name in chosen)
    if not names:
        others = " beside those that are left out" if left_out else ""
        raise ValueError(
            f"split={split!r} with fractions={tuple(fractions)} holds none of the {len(pairs)} "
            f"tasks{others}. Choose other fractions, or name the tasks."
        )
    # What comes out is a matter of all tasks: it must not differ from split to split.
    x = joined({name: x for name, (x, _) in kept.items()}, "x")
    y = joined({name: y for name, (_, y) in kept.items()}, "y")
    if classes:
        y = np.searchsorted(np.array(classes), y)
    kind, advice = tf.int32, "Scale it, or pass it as floats: whole numbers are taken for labels."
    if y.dtype.kind == "f":
        kind, advice = tf.float32, "Scale it."
    check_range(y, kind, "y", advice=advice)
    if kind == tf.float32:
        check_distinct(y, "y")
    examples = examples_of(x, name="x", dtype=dtype, scale=scale, image_axes=(4,))
    sizes = [len(y) for _, y in kept.values()]
    rows = np.flatnonzero(np.repeat([name in chosen for name in kept], sizes))
    if len(rows) < len(y):
        examples = tf.nest.map_structure(lambda part: part.take(rows), examples)
    y = tf.convert_to_tensor(y[rows].astype(kind.as_numpy_dtype))
    return Tasks(examples, y, names, tuple(len(kept[name][1]) for name in names), classes)


@dataclasses.dataclass(frozen=True)
class Tasks:
    """Tasks in memory, one after another.

    Attributes:
        x: The inputs of all tasks, with what episodes make of them.
        y: The targets of all tasks, float32 or int32 ``[N, ...]``.
        names: Name of each task.
        counts: Number of examples of each task; their sum is ``N``.
        classes: What the labels stand for, if they were texts: label ``k`` is ``classes[k]``, the
            same in every split.
    """

    x: Examples | dict[str, Examples]
    y: tf.Tensor
    names: tuple[str, ...]
    counts: tuple[int, ...]
    classes: tuple[str, ...] = ()

    def episodes(
        self,
        *,
        shots: int,
        queries: int,
        ordered: bool = False,
        window: int = 1,
        seed: int = 0,
        **stream: Any,
    ) -> tf.data.Dataset:
        """Episodes of these tasks, see `from_tasks`.

        Beyond as many episodes as there are tasks the same tasks come again, with other examples:
        an interval over more episodes than tasks says how well the mean of these tasks is known,
        and nothing about other tasks.

        Args:
            shots: Support examples of an episode.
            queries: Query examples.
            ordered: Whether the queries follow the support, in successive examples.
            window: How many successive rows make an example; they share none unless ``ordered``.
            seed: Any integer; each has its own episodes.
            **stream: ``meta_batch_size``, ``tasks`` and ``start`` of `sampling.episode_dataset`.

        Returns:
            What `from_tasks` returns.

        Raises:
            ValueError: As `from_tasks` does.

        Example:
            >>> data = load_tasks([(["good", "bad"], ["+", "-"])])
            >>> episodes = data.episodes(shots=1, queries=1, meta_batch_size=1, tasks=1)
            >>> (x_support, y_support), _ = next(iter(episodes))
            >>> data.classes, x_support.dtype, y_support.shape
            (('+', '-'), tf.string, TensorShape([1, 1]))
        """
        require_positive(shots=shots, queries=queries, window=window)
        drawn = shots + queries
        # Successive windows begin a row after each other, others must leave room for each other.
        taken = window - 1 if ordered else drawn * (window - 1)
        places = np.array(self.counts, "int32") - taken
        self._check_sizes(shots, queries, window, drawn + taken)
        starts = np.cumsum(self.counts, dtype="int32") - np.array(self.counts, "int32")

        def make_batch(indices: tf.Tensor) -> tuple:
            chosen = take_turns(seed, indices, len(places))
            there = tf.gather(places, chosen)
            if ordered:
                free = tf.cast(there - drawn + 1, tf.float32)
                first = tf.cast(free * uniform(seed, indices, "first", ()), tf.int32)
                # A float32 can be rounded up to the number of places.
                first = tf.minimum(first, there - drawn)
                rank = first[:, None] + tf.range(drawn)
            else:
                rank = choose(
                    seed,
                    indices,
                    "examples",
                    (),
                    population=int(places.max()),
                    count=drawn,
                    available=there,
                )
                # Each window moves by the rows that those before it take: none share a row.
                rank += (window - 1) * tf.argsort(tf.argsort(rank))
            rows = tf.gather(starts, chosen)[:, None] + rank
            return self._examples(rows[:, :shots], window), self._examples(rows[:, shots:], window)

        return episode_dataset(make_batch, **stream)

    def _examples(self, rows: tf.Tensor, window: int) -> tuple[Any, tf.Tensor]:
        inputs = rows if window == 1 else rows[..., None] + tf.range(window)
        x = tf.nest.map_structure(lambda part: part.finish(tf.gather(part.values, inputs)), self.x)
        return x, tf.gather(self.y, rows + (window - 1))

    def _check_sizes(self, shots: int, queries: int, window: int, needed: int) -> None:
        small = [i for i, count in enumerate(self.counts) if count < needed]
        if small:
            listed = ", ".join(f"{self.names[i]} ({self.counts[i]})" for i in small[:5])
            windows = f", windows of {window} rows: {needed} rows" if window > 1 else ""
            raise ValueError(
                f"Every task needs at least shots + queries = {shots} + {queries} = "
                f"{shots + queries} examples{windows}, but {len(small)} of {len(self.counts)} have "
                f"fewer: {listed}{', ...' if len(small) > 5 else ''}. Use fewer shots or queries, "
                "or leave these tasks out with leave_out=[...]."
            )


def take_turns(seed: int, indices: tf.Tensor, count: int) -> tf.Tensor:
    """Which of several tasks an episode is of: all of them, shuffled, before one comes again.

    Args:
        seed: Any integer.
        indices: int64 ``[meta_batch]``, successive numbers of episodes.
        count: How many tasks there are.

    Returns:
        int32 ``[meta_batch]`` in ``0 .. count - 1``.

    Example:
        >>> turns = take_turns(0, tf.range(6, dtype=tf.int64), 3).numpy().tolist()
        >>> sorted(turns[:3]), sorted(turns[3:])
        ([0, 1, 2], [0, 1, 2])
    """
    rounds = indices // count
    # A meta-batch touches few rounds: each is shuffled once, not for every episode.
    touched = rounds[0] + tf.range(-(-(indices.shape[0] - 1) // count) + 1, dtype=tf.int64)
    orders = choose(seed, touched, "tasks", (), population=count, count=count)
    return tf.gather_nd(orders, tf.stack([rounds - rounds[0], indices % count], axis=1))


def _pairs(
    data: Any, *, task: str | None, target: Any, features: Any
) -> dict[str, tuple[Any, np.ndarray]]:
    """The pair ``(x, y)`` of every task by its name."""
    if isinstance(data, str | os.PathLike):
        _check_options("A folder", target=(target, True), task=(task, False))
        return read_folder(data, target=target, features=features)
    if hasattr(data, "columns") or (isinstance(data, Mapping) and task is not None):
        _check_options("A table", target=(target, True), task=(task, True))
        return read_table(data, task=task, target=target, features=features)
    _check_options(
        "A list of arrays", target=(target, False), task=(task, False), features=(features, False)
    )
    named = data.items() if isinstance(data, Mapping) else enumerate(data)
    pairs = {}
    for name, pair in named:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(
                "data must be a list of pairs (x, y), one per task, a table or a folder: got "
                f"{type(pair).__name__} for task {name}."
            )
        if str(name) in pairs:
            raise ValueError(f"Two tasks have the same name as text, {name}. Rename one.")
        x, y = pair
        y = decoded(plain_array(y, f"y of task {name}"))
        sizes = {len(part) for part in (x.values() if isinstance(x, Mapping) else [x])}
        if y.ndim == 0 or sizes != {len(y)}:
            raise ValueError(
                f"Task {name} must have one target per example, got {sorted(sizes)} examples in x "
                f"and targets of shape {list(y.shape)}."
            )
        pairs[str(name)] = (x, y)
    if not pairs:
        raise ValueError("data must hold at least one task, got none.")
    return pairs


def _check_options(what: str, **options: tuple[Any, bool]) -> None:
    for name, (value, needed) in options.items():
        if needed != (value is not None):
            advice = f"Give {name}=, the name of a column." if needed else f"Leave {name}= out."
            raise ValueError(f"{what} {'needs' if needed else 'has no'} {name}. {advice}")
