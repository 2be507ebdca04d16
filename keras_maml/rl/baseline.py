"""The linear feature baseline of Duan et al. 2016, fitted to each task by itself."""

import tensorflow as tf

RIDGE = 1e-5


def features(observations: tf.Tensor, times: tf.Tensor) -> tf.Tensor:
    """Returns the features of the baseline.

    Args:
        observations: Floating ``[..., size]``, clipped to -10 .. 10 here.
        times: Integers ``[...]``: the number of the step in its episode, from 0.

    Returns:
        float64 ``[..., 2 * size + 4]``: the clipped observation, its square, ``t/100``, its square
        and its cube, and 1.

    Source: Duan et al. 2016 (arXiv 1604.06778), section "Baseline"; Finn et al. 2017, appendix A.2.

    Example:
        >>> features(tf.constant([[2.0]]), tf.constant([50])).numpy().tolist()
        [[2.0, 4.0, 0.5, 0.25, 0.125, 1.0]]
    """
    x = tf.clip_by_value(tf.cast(observations, tf.float64), -10.0, 10.0)
    t = tf.cast(times, tf.float64)[..., None] / 100.0
    return tf.concat([x, x**2, t, t**2, t**3, tf.ones_like(t)], axis=-1)


def fit_predict(
    inputs: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor, ridge: float = RIDGE
) -> tf.Tensor:
    """Fits a linear function to each task by ridge regression and predicts the same points.

    Args:
        inputs: float64 ``[tasks, points, features]``.
        targets: Floating ``[tasks, points]``: the discounted returns.
        weights: Floating ``[tasks, points]``: 0 leaves a point out of the fit.
        ridge: Added to the diagonal of the normal equations.

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
