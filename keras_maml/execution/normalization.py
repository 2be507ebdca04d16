"""Moments and standardisation, exact and cheap to any order of derivative.

`tf.nn.moments` stops the gradient of the mean inside the variance: right for a first derivative,
silently wrong for a second one. `moments` is exact.

`standardize` is the core of batch normalisation. Its gradient, with means over a batch of n and
y = (x - mean) r, r = 1 / sqrt(variance + epsilon), is

    dx = r (dy - mean(dy) - y (mean(dy y) + r dr / n)),

and the gradient of that, in closed form too, needs three more means. Automatic differentiation of
the plain formula takes about twice as many sums, and sums are what the compiler cannot fuse.

Source: Ioffe, Szegedy, Batch Normalization, ICML 2015, section 3; the derivatives are ours.
"""

import math
from collections.abc import Sequence

import tensorflow as tf

from keras_maml.execution.linear import Operator, sum_in_parts, sum_positions
from keras_maml.execution.tracing import custom_gradient


def moments(
    x: tf.Tensor,
    axes: int | Sequence[int],
    shift: None = None,
    keepdims: bool = False,
    name: str | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and variance along axes, with the signature of `tf.nn.moments`, exact to any order.

    Args:
        x: Floating tensor.
        axes: The axes to reduce.
        shift: Unused, as in `tf.nn.moments`.
        keepdims: Whether the reduced axes stay, with length 1.
        name: Unused.

    Returns:
        The mean and the (biased) variance, in the dtype of ``x``.
    """
    del shift, name
    axes = [axes] if isinstance(axes, int) else list(axes)
    x = tf.convert_to_tensor(x)  # which may be a weight
    dtype = x.dtype
    if dtype == tf.float16:  # whose sums would overflow
        x = tf.cast(x, tf.float32)
    mean = _mean(x, axes, sum_positions)
    variance = _mean(tf.square(x - mean), axes, sum_positions)
    if keepdims:
        mean, variance = _with_all_axes(mean, x), _with_all_axes(variance, x)
    elif len(mean.shape) == len(x.shape):
        mean, variance = tf.squeeze(mean, axes), tf.squeeze(variance, axes)
    return tf.cast(mean, dtype), tf.cast(variance, dtype)


def standardize(x: tf.Tensor, axes: Sequence[int], epsilon: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Subtracts the mean and divides by the standard deviation.

    Args:
        x: Floating tensor.
        axes: The axes that mean and variance are taken over.
        epsilon: Added to the variance.

    Returns:
        The result, shaped as ``x``, and the rate 1 / sqrt(variance + epsilon) it was multiplied
        with, in which the reduced axes have length 1.

    Example:
        >>> y, rate = standardize(tf.constant([[1.0], [3.0]]), axes=[0], epsilon=0.0)
        >>> y.numpy().tolist(), rate.numpy().tolist()
        ([[-1.0], [1.0]], [[1.0]])
    """
    sizes = [x.shape[axis] for axis in axes]
    if None in sizes:
        size = tf.cast(tf.reduce_prod(tf.gather(tf.shape(x), axes)), x.dtype)
    else:
        size = float(math.prod(sizes))

    def mean(t):  # nothing here is differentiated automatically below third order
        return _mean(t, axes, sum_in_parts)

    @custom_gradient
    def forward(x):
        centered = x - mean(x)
        rate = tf.math.rsqrt(mean(tf.square(centered)) + tf.constant(epsilon, x.dtype))

        def gradient(dy, drate):
            # Called again for its own gradient; the compiler computes it once, and what flows back
            # from here and from the results stays apart: added up first, it runs slower
            # (docs/speed.md).
            return backward(*forward(x), dy, drate / size)

        return (centered * rate, _with_all_axes(rate, x)), gradient

    @custom_gradient
    def backward(y, rate, dy, drate):
        dy_mean, slope = mean(dy), mean(dy * y) + rate * drate

        def gradient(g):
            g_mean, gy_mean, gdy_mean = mean(g), mean(g * y), mean(g * dy)
            to_y = -rate * (g * slope + dy * gy_mean)
            to_rate = size * (gdy_mean - g_mean * dy_mean - gy_mean * (slope + rate * drate))
            to_dy = rate * (g - g_mean - y * gy_mean)
            to_drate = -size * tf.square(rate) * gy_mean
            return to_y, to_rate, to_dy, to_drate

        return rate * (dy - dy_mean - y * slope), gradient

    return forward(x)


def _mean(x: tf.Tensor, axes: Sequence[int], total: Operator) -> tf.Tensor:
    """The mean along axes, which broadcasts against x: they have length 1, or are left out."""
    leading = list(range(len(x.shape) - 1))
    if sorted(axis % len(x.shape) for axis in axes) != leading or None in x.shape:
        return tf.reduce_mean(x, axes, keepdims=True)
    return total(x) / tf.constant(math.prod(x.shape[:-1]), x.dtype)


def _with_all_axes(mean: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    left_out = len(x.shape) - len(mean.shape)
    return tf.reshape(mean, [1] * left_out + [-1]) if left_out else mean
