"""Baselines: what a return is compared with before it becomes an advantage.

A baseline is a function ``(observations, times, returns, weights) -> values`` of the transitions of
all tasks, made of TensorFlow's operations, since the training step is compiled:

- ``observations``: ``[tasks, transitions, ...]``, or a nest of such;
- ``times``: int32 ``[tasks, transitions]``, the number of the step in its episode, from 0;
- ``returns``: float32 ``[tasks, transitions]``, discounted, from the step on;
- ``weights``: float32 ``[tasks, transitions]``, 0 for what is not to be counted;
- ``values``: floating ``[tasks, transitions]``.

It must be a function of each task by itself, or tasks would learn from each other's rewards.
"""

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

Baseline = Callable[[Any, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]

RIDGE = 1e-5
CONSTANT = 1e-6  # a feature that deviates less is the same everywhere
BASELINES = ("linear", "standardized", "time")
LARGEST = 500  # numbers in an observation: 1,004 features, whose normal equations are 8 MB a task


def find_baseline(baseline: str | Baseline | None) -> Baseline:
    """Returns the baseline of a name.

    Args:
        baseline: ``"linear"``: linear in the features of Duan et al. 2016, the paper's;
            ``"standardized"``: the same with a penalty that suits few rollouts; ``"time"``: a cubic
            function of the time in the episode; None: 0; or a function, see the module.

    Raises:
        ValueError: It is something else.

    Example:
        >>> times, returns = tf.constant([[0, 1]]), tf.constant([[3.0, 5.0]])
        >>> observations, weights = tf.zeros([1, 2, 64, 64, 3]), tf.ones([1, 2])
        >>> find_baseline(None)(observations, times, returns, weights).numpy().tolist()
        [[0.0, 0.0]]
        >>> half = find_baseline(lambda observations, times, returns, weights: 0.5 * returns)
        >>> half(observations, times, returns, weights).numpy().tolist()
        [[1.5, 2.5]]
    """
    if callable(baseline):
        return baseline
    if baseline is None:
        return none
    named = dict(zip(BASELINES, (linear, standardized, time_alone), strict=True))
    if not isinstance(baseline, str) or baseline not in named:
        raise ValueError(
            f"baseline must be one of {BASELINES}, None, or a function (observations, times, "
            f"returns, weights) -> values, got {baseline!r}."
        )
    return named[baseline]


def check_baseline(baseline: str | Baseline | None, observation_spec: Any) -> None:
    """Raises ValueError unless a baseline is one and bears observations of a spec.

    Args:
        baseline: See `find_baseline`.
        observation_spec: Of one environment: a nest with shapes.

    Example:
        >>> check_baseline("linear", tf.TensorSpec([64, 64, 3], tf.uint8))
        Traceback (most recent call last):
        ...
        ValueError: The linear baseline squares observations of 12288 numbers into 24580 features...
    """
    found = find_baseline(baseline)
    if found is baseline:
        _check_traceable(baseline, observation_spec)
    if found not in (linear, standardized):
        return
    size = sum(math.prod(spec.shape) for spec in tf.nest.flatten(observation_spec))
    if size > LARGEST:
        raise ValueError(
            f"The {found.__name__} baseline squares observations of {size} numbers into "
            f"{2 * size + 4} features, which is meant for vectors of at most {LARGEST}: with more "
            "features than transitions it predicts every return exactly and leaves no advantage. "
            "Choose baseline='time', None, or a function of your own."
        )


def _check_traceable(baseline: Baseline, observation_spec: Any) -> None:
    """Raises ValueError where a function takes NumPy's way with what has no values yet."""

    def symbolic(spec: Any) -> tf.TensorSpec:
        # Layers of the function's own, which may be without weights yet, get none of some size.
        return tf.TensorSpec([2, None, *spec.shape], spec.dtype)

    counts, numbers = (symbolic(tf.TensorSpec([], kind)) for kind in (tf.int32, tf.float32))
    arguments = tf.nest.map_structure(symbolic, observation_spec), counts, numbers, numbers
    try:
        tf.function(baseline, autograph=False).get_concrete_function(*arguments)
    except Exception as error:
        kinds = NotImplementedError | AttributeError
        if not (isinstance(error, kinds) and "symbolic" in str(error).lower()):
            return  # It may come from the sizes of this trial, and is told when there are others.
        raise ValueError(
            "A baseline must be made of TensorFlow's operations, not of NumPy's, as the training "
            f"step is compiled; got {getattr(baseline, '__name__', baseline)!r}, which raised: "
            f"{error}"
        ) from error


def linear(
    observations: Any, times: tf.Tensor, returns: tf.Tensor, weights: tf.Tensor
) -> tf.Tensor:
    """The paper's: ridge regression of the returns of each task on `features`.

    Raises:
        ValueError: Observations are too large, see `check_baseline`.

    Source: Duan et al. 2016 (arXiv 1604.06778), section "Baseline"; Finn et al. 2017, appendix A.2.
    """
    return fit_predict(_features_of("linear", observations, times), returns, weights)


def standardized(
    observations: Any,
    times: tf.Tensor,
    returns: tf.Tensor,
    weights: tf.Tensor,
    penalty: float = 1.0,
) -> tf.Tensor:
    """Ridge regression on `features`, each with mean 0 and deviation 1 in its task.

    The few episodes of a task have little more to say than there are features of a large
    observation. With the paper's tiny ridge the fit follows the noise of their returns and takes
    the signal out of the advantages; here a coefficient must be worth its size (docs/results.md).

    Args:
        observations: See the module.
        times: See the module.
        returns: See the module.
        weights: See the module.
        penalty: Of squared coefficients, for every point: 1 halves that of a lone feature.

    Raises:
        ValueError: Observations are too large, see `check_baseline`.

    Example:
        >>> x, times = tf.constant([[[1.0], [-1.0]]]), tf.constant([[0, 0]])
        >>> values = standardized(x, times, tf.constant([[3.0, 1.0]]), tf.ones([1, 2]))
        >>> values.numpy().round(3).tolist()
        [[2.5, 1.5]]

    Source: Hoerl and Kennard 1970, "Ridge regression", for the standardised form.
    """
    inputs = _features_of("standardized", observations, times)[..., :-1]  # but the 1
    shares = tf.cast(weights, tf.float64)[..., None]
    points = tf.reduce_sum(shares, 1, keepdims=True)
    count = tf.maximum(points, 1.0)

    def mean(x: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(x * shares, 1, keepdims=True) / count

    centred = inputs - mean(inputs)
    deviation = tf.sqrt(mean(centred**2))
    constant = deviation < CONSTANT  # rounding is no signal
    scaled = tf.where(constant, tf.zeros_like(centred), centred / tf.maximum(deviation, CONSTANT))
    targets = tf.cast(returns, tf.float64)[..., None]
    average = mean(targets)
    fitted = fit_predict(scaled, (targets - average)[..., 0], weights, penalty * count)
    return fitted + average[..., 0]


def time_alone(
    observations: Any, times: tf.Tensor, returns: tf.Tensor, weights: tf.Tensor
) -> tf.Tensor:
    """Ridge regression of the returns of each task on the cubic of time; bears any observation."""
    del observations
    nothing = tf.zeros([*times.shape, 0], tf.float64)
    return fit_predict(features(nothing, times), returns, weights)


def none(observations: Any, times: tf.Tensor, returns: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """0: advantages are the returns themselves, until they are standardised."""
    del observations, times, weights
    return tf.zeros_like(returns)


def features(observations: tf.Tensor, times: tf.Tensor) -> tf.Tensor:
    """Returns the features of the linear baseline.

    Args:
        observations: Floating ``[..., size]``, clipped to -10 .. 10 here.
        times: Integers ``[...]``: the number of the step in its episode, from 0.

    Returns:
        float64 ``[..., 2 * size + 4]``: the clipped observation, its square, ``t/100``, its square
        and its cube, and 1.

    Example:
        >>> features(tf.constant([[2.0]]), tf.constant([50])).numpy().tolist()
        [[2.0, 4.0, 0.5, 0.25, 0.125, 1.0]]
    """
    x = tf.clip_by_value(tf.cast(observations, tf.float64), -10.0, 10.0)
    t = tf.cast(times, tf.float64)[..., None] / 100.0
    return tf.concat([x, x**2, t, t**2, t**3, tf.ones_like(t)], axis=-1)


def _features_of(baseline: str, observations: Any, times: tf.Tensor) -> tf.Tensor:
    """Returns `features` of a nest of observations; raises where they are too large."""
    parts = tf.nest.flatten(observations)
    check_baseline(baseline, [tf.TensorSpec(part.shape[2:], part.dtype) for part in parts])
    flat = tf.concat(
        [tf.reshape(tf.cast(x, tf.float64), [*x.shape[:2], -1]) for x in parts], axis=-1
    )
    return features(flat, times)


def fit_predict(
    inputs: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor, ridge: float | tf.Tensor = RIDGE
) -> tf.Tensor:
    """Fits a linear function to each task by ridge regression and predicts the same points.

    Args:
        inputs: float64 ``[tasks, points, features]``.
        targets: Floating ``[tasks, points]``: the discounted returns.
        weights: Floating ``[tasks, points]``: 0 leaves a point out of the fit.
        ridge: Added to the diagonal of the normal equations: a number, or ``[tasks, 1, 1]``.

    Returns:
        float64 ``[tasks, points]``.

    Example:
        >>> x = tf.constant([[[1.0], [2.0]]], tf.float64)
        >>> fit_predict(x, tf.constant([[3.0, 6.0]]), tf.ones([1, 2])).numpy().round(3).tolist()
        [[3.0, 6.0]]
    """
    weighted = inputs * tf.cast(weights, tf.float64)[..., None]
    gram = tf.matmul(weighted, inputs, transpose_a=True)
    moments = tf.matmul(weighted, tf.cast(targets, tf.float64)[..., None], transpose_a=True)
    diagonal = ridge * tf.eye(inputs.shape[-1], dtype=tf.float64)
    coefficients = tf.linalg.cholesky_solve(tf.linalg.cholesky(gram + diagonal), moments)
    return tf.matmul(inputs, coefficients)[..., 0]
