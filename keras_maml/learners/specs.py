"""What a learner knows of support sets, and what is exported takes: shapes and dtypes."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_maml.learners.checks import embedded_sizes


def support_spec(support: Any, model: keras.Model) -> tuple[Any, Any]:
    """Returns what one support set of any size is like.

    Whole numbers count as floats where the model's inputs and outputs are such: that these
    examples have no fractions is chance.

    Args:
        support: Specifications ``(x, y)`` of arrays ``[tasks, examples, ...]``.
        model: A built model; one without symbolic inputs says nothing of dtypes.

    Returns:
        Specifications ``(x, y)`` of arrays ``[examples, ...]``.
    """

    def is_number(leaf: tf.TensorSpec, tensor: keras.KerasTensor) -> bool:
        # Bytes are meant to be such: pictures, in a quarter of the space.
        return leaf.dtype in (tf.int32, tf.int64) and not embedded_sizes(model, tensor)

    def is_value(leaf: tf.TensorSpec, tensor: keras.KerasTensor) -> bool:
        # The number of a class stands for a whole axis of outputs.
        return leaf.dtype.is_integer and _features(leaf.shape[1:]).is_compatible_with(
            _features(tensor.shape)
        )

    x, y, *_ = support
    return (
        _with_floats(x, getattr(model, "inputs", None), is_number),
        _with_floats(y, getattr(model, "outputs", None), is_value),
    )


def check_bytes(known: Any, x: Any) -> None:
    """Raises ValueError where inputs are bytes, and those that a learner has seen were floats.

    The functions of `keras_maml.episodes` divide bytes by 255, and nothing else does: to cast them
    here would make them 255 times as large as what the learner knows.

    Args:
        known: Specifications or tensors of the inputs that it has seen.
        x: Those of other inputs.
    """
    before, now = keras.tree.flatten(known), keras.tree.flatten(x)
    for old, new in zip(before, now, strict=False):  # another structure is found elsewhere
        if tf.as_dtype(old.dtype).is_floating and tf.as_dtype(new.dtype) == tf.uint8:
            raise ValueError(
                f"The inputs are uint8, and those that the learner has seen were {old.dtype.name}. "
                "Pass x / 255 if they came from keras_maml.episodes, which divides bytes by 255; "
                "or else x.astype('float32')."
            )


def with_floats_of(known: Any, spec: Any) -> Any:
    """Returns a specification, with floats for whole numbers where floats were known before."""
    before, now = keras.tree.flatten(known), keras.tree.flatten(spec)
    if len(before) != len(now):
        return spec
    merged = [
        tf.TensorSpec(new.shape, old.dtype)
        if new.dtype.is_integer and old.dtype.is_floating and len(new.shape) == len(old.shape)
        else new
        for old, new in zip(before, now, strict=True)
    ]
    return keras.tree.pack_sequence_as(spec, merged)


def _with_floats(nest: Any, tensors: Any, are_floats: Callable) -> Any:
    """Makes specifications of examples; tensors are the model's, if it says what they are."""
    leaves, tensors = keras.tree.flatten(nest), keras.tree.flatten(tensors or [])
    if len(leaves) != len(tensors):
        tensors = [None] * len(leaves)
    specs = []
    for leaf, tensor in zip(leaves, tensors, strict=True):
        floats = tensor is not None and "float" in tensor.dtype and are_floats(leaf, tensor)
        dtype = keras.config.floatx() if floats else leaf.dtype
        specs.append(tf.TensorSpec((None, *leaf.shape[2:]), dtype))
    return keras.tree.pack_sequence_as(nest, specs)


def _features(shape: Any) -> tf.TensorShape:
    """Returns the axes after the first, without a last one of size 1, which losses leave out."""
    shape = tf.TensorShape(shape)[1:]
    return shape[:-1] if shape.rank and shape[-1] == 1 else shape
