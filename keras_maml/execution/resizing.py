"""Resizing of images as a linear operator that can be differentiated to any order.

Resizing with any of the usual kernels is linear and separable: rows and columns are each
multiplied by a small matrix of weights, y = R x C'. Its gradient multiplies by the transposed
matrices, R' dy C, and the gradient of that is the resizing again: a `linear_pair`. TensorFlow has
no second derivative of its own operations: that of the bilinear one is silently zero, those of the
others are errors. Products with matrices also vectorise over tasks and compile, which the
operations for bicubic and Lanczos kernels do not.

The matrices are what TensorFlow makes of unit vectors, so the numbers are TensorFlow's. Theirs are
as exact as float32 is, whatever the type of the images, as in `tf.image.resize`.
"""

import functools
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_maml.execution.convolution import channels_last
from keras_maml.execution.linear import linear_pair


def resize(
    images: tf.Tensor, size: tuple[int, int], method: str = "bilinear", antialias: bool = False
) -> tf.Tensor:
    """Resizes images as `tf.image.resize` does, exact to any order of derivative.

    Args:
        images: ``[..., height, width, channels]``, floating, of known height and width.
        size: The new height and width.
        method: ``"nearest"``, ``"bilinear"``, ``"bicubic"``, ``"area"``, ``"lanczos3"`` or any
            other method of `tf.image.resize`.
        antialias: Whether the kernel is widened where the image gets smaller.

    Returns:
        ``[..., *size, channels]``, in the dtype of the images.

    Raises:
        NotImplementedError: The height or width is unknown.

    Example:
        >>> resize(tf.constant([[[1.0], [3.0]]]), (1, 4)).numpy().ravel().tolist()
        [1.0, 1.5, 2.5, 3.0]
    """
    height, width = images.shape[-3:-1]
    if None in (height, width):
        raise NotImplementedError(
            "the height or width of images to be resized is unknown; give the model a fixed size"
        )
    rows = tf.constant(interpolation_matrix(height, size[0], method, antialias), images.dtype)
    columns = tf.constant(interpolation_matrix(width, size[1], method, antialias), images.dtype)
    return linear_pair(
        lambda x: _along_both(x, rows, columns),
        lambda y: _along_both(y, tf.transpose(rows), tf.transpose(columns)),
    )[0](images)


@functools.lru_cache(maxsize=256)
def interpolation_matrix(before: int, after: int, method: str, antialias: bool) -> np.ndarray:
    """Returns the weights ``[after, before]`` by which `tf.image.resize` resizes a line."""
    with tf.init_scope():
        units = tf.eye(before)[:, :, None, None]  # of each an image of one column
        return tf.image.resize(units, (after, 1), method, antialias=antialias).numpy()[:, :, 0, 0].T


def _along_both(x: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    x = tf.einsum("oh,...hwc->...owc", rows, x)
    return tf.einsum("ow,...hwc->...hoc", columns, x)


def upsample(layer: keras.layers.UpSampling2D, inputs: tf.Tensor) -> tf.Tensor:
    """Computes ``layer(inputs)``, exact to any order."""
    if layer.interpolation == "nearest":  # of repeated rows and columns
        return type(layer).call(layer, inputs)

    def function(images: tf.Tensor) -> tf.Tensor:
        height, width = images.shape[1:3]
        if None in (height, width):
            return resize(images, (0, 0))  # which says what to do
        size = height * layer.size[0], width * layer.size[1]
        return resize(images, size, layer.interpolation)

    return channels_last(layer.data_format, inputs, function)


def resize_layer(layer: keras.layers.Resizing, data: Any, *args: Any, **kwargs: Any) -> Any:
    """Computes ``layer(data)``, exact to any order where it stretches floating images."""
    stretches = not (layer.crop_to_aspect_ratio or layer.pad_to_aspect_ratio)
    images = tf.is_tensor(data) and data.dtype.is_floating and data.shape.rank >= 3
    if not (images and stretches):
        return type(layer).call(layer, data, *args, **kwargs)

    def function(images: tf.Tensor) -> tf.Tensor:
        if None in images.shape[-3:-1]:
            return type(layer).call(layer, images, *args, **kwargs)
        return resize(images, (layer.height, layer.width), layer.interpolation, layer.antialias)

    return channels_last(layer.data_format, data, function)
