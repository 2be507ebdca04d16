"""Few-shot regression on sine waves of random amplitude and phase."""

import math

import numpy as np
import tensorflow as tf

from keras_maml.episodes.sampling import episode_dataset, require_positive, uniform

AMPLITUDE_RANGE = (0.1, 5.0)
PHASE_RANGE = (0.0, math.pi)
INPUT_RANGE = (-5.0, 5.0)


def sinusoid(
    *,
    shots: int = 10,
    queries: int = 10,
    meta_batch_size: int = 25,
    seed: int = 0,
    tasks: int | None = None,
    start: int = 0,
    shard: tuple[int, int] = (0, 1),
    amplitude_range: tuple[float, float] = AMPLITUDE_RANGE,
    phase_range: tuple[float, float] = PHASE_RANGE,
    input_range: tuple[float, float] = INPUT_RANGE,
    oracle: bool = False,
) -> tf.data.Dataset:
    """Episodes of the regression ``y = A sin(x - phi)``, one ``(A, phi)`` per episode.

    ``A``, ``phi`` and every ``x`` are uniform in their ranges. A seed has the same waves whatever
    the numbers of points.

    Args:
        shots: Support points per episode.
        queries: Query points per episode.
        meta_batch_size: Episodes per element, ``B`` below.
        seed: Any integer; each has its own episodes.
        tasks: How many episodes, a multiple of ``meta_batch_size``; ``None``: without end.
        start: Number of the first episode.
        shard: ``(worker, workers)``, see `sampling.episode_dataset`.
        amplitude_range: Lowest and highest ``A``.
        phase_range: Lowest and highest ``phi``, in radians.
        input_range: Lowest and highest ``x``, in radians.
        oracle: Whether an input is ``[x, A, phi]`` instead of ``[x]``: what a learner could do
            that knew the task (the paper's upper bound).

    Returns:
        A dataset of ``((x_support, y_support), (x_query, y_query))``, all float32: inputs
        ``[B, shots, 1]`` and ``[B, queries, 1]`` (3 instead of 1 for the oracle), targets
        ``[B, shots, 1]`` and ``[B, queries, 1]``.

    Raises:
        ValueError: If a size is not positive, ``tasks`` is not a multiple of ``meta_batch_size``,
            or a range is not two finite numbers in order.

    Source: Finn, Abbeel and Levine 2017 (arXiv 1703.03400), section 5.1.

    Example:
        >>> episodes = sinusoid(shots=5, queries=10, meta_batch_size=4, seed=1, tasks=8)
        >>> (x_support, y_support), (x_query, y_query) = next(iter(episodes))
        >>> x_support.shape, y_query.shape
        (TensorShape([4, 5, 1]), TensorShape([4, 10, 1]))
    """
    require_positive(shots=shots, queries=queries)
    _check_range("amplitude_range", amplitude_range)
    _check_range("phase_range", phase_range)
    _check_range("input_range", input_range)

    def make_batch(indices: tf.Tensor) -> tuple:
        amplitude, phase = sinusoid_parameters(
            seed=seed, indices=indices, amplitude_range=amplitude_range, phase_range=phase_range
        )
        amplitude, phase = amplitude[:, None, None], phase[:, None, None]
        x = _between(input_range, uniform(seed, indices, "inputs", (shots + queries, 1)))
        # In float64, because the last bit of a float32 sine depends on its place in the tensor
        # (vector or scalar instructions), and so on the meta-batch size.
        angle = tf.cast(x, tf.float64) - tf.cast(phase, tf.float64)
        y = amplitude * tf.cast(tf.sin(angle), tf.float32)
        if oracle:
            x = tf.concat([x, amplitude + tf.zeros_like(x), phase + tf.zeros_like(x)], axis=-1)
        return (x[:, :shots], y[:, :shots]), (x[:, shots:], y[:, shots:])

    return episode_dataset(
        make_batch, meta_batch_size=meta_batch_size, tasks=tasks, start=start, shard=shard
    )


def sinusoid_parameters(
    *,
    seed: int,
    indices: tf.Tensor | np.ndarray,
    amplitude_range: tuple[float, float] = AMPLITUDE_RANGE,
    phase_range: tuple[float, float] = PHASE_RANGE,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The amplitude and the phase of episodes of `sinusoid`, for plots and checks.

    Args:
        seed: The seed given to `sinusoid`.
        indices: int64 ``[n]``, numbers of episodes.
        amplitude_range: The range given to `sinusoid`.
        phase_range: The range given to `sinusoid`, in radians.

    Returns:
        ``(amplitude, phase)``, float32 ``[n]`` each.

    Example:
        >>> amplitude, phase = sinusoid_parameters(seed=0, indices=np.arange(3))
        >>> amplitude.shape
        TensorShape([3])
    """
    draws = uniform(seed, tf.convert_to_tensor(indices, tf.int64), "parameters", (2,))
    return _between(amplitude_range, draws[:, 0]), _between(phase_range, draws[:, 1])


def _between(bounds: tuple[float, float], fraction: tf.Tensor) -> tf.Tensor:
    low, high = bounds
    return low + (high - low) * fraction


def _check_range(name: str, bounds: tuple[float, float]) -> None:
    if len(bounds) != 2 or not np.all(np.isfinite(bounds)) or bounds[0] > bounds[1]:
        raise ValueError(
            f"{name} must be two finite numbers (lowest, highest) with lowest <= highest, "
            f"got {bounds!r}."
        )
