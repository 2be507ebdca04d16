"""Derivatives that TensorFlow lacks: given where they have a closed form, refused elsewhere.

The exact meta-gradient differentiates a gradient. For some operations TensorFlow knows the first
derivative only. Most of them raise a `LookupError` that names no layer; but some are declared to
have none, and what depends on them is silently taken for constant: `tf.image.resize`'s bilinear
gradient, `tf.image.hsv_to_rgb`, the gradients of fake quantisation.

Importing this module registers, with TensorFlow,

- the derivative itself where it is easy: ways of resizing and cropping images (linear: the gradient
  of the transpose is the operation again), what XLA makes of a slice's gradient (likewise),
  softsign, local response normalisation;
- an error for the rest, `MissingDerivative`, in which `naming_layers` has the layer named. For
  operations that TensorFlow declares constant (bilinear resizing's gradient, `hsv_to_rgb`: the tape
  does not even keep their inputs) it is raised only while `naming_layers` is open, so that nothing
  changes for programs that take no meta-gradient. Keras's resizing layers have an exact form.

The tape itself calls what is registered, and only where a gradient flows: in every function and
loop that is differentiated, eagerly or not, and at no cost where nothing is missing.
"""

import contextlib
import contextvars
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops as _xla
from tensorflow.python.framework import op_def_registry as _op_defs
from tensorflow.python.framework import ops as _ops

from keras_maml.execution.resizing import interpolation_matrix

_layers: contextvars.ContextVar[Sequence[str] | None] = contextvars.ContextVar(
    "the names of the layers that are differentiated", default=None
)


class MissingDerivative(NotImplementedError, LookupError):  # noqa: N818
    """TensorFlow lacks a derivative that the meta-gradient needs."""


@contextlib.contextmanager
def naming_layers(names: Sequence[str]) -> Iterator[None]:
    """Lets missing derivatives be refused by the name of the layer that needs them.

    Args:
        names: The names of all layers of the model.

    Raises:
        MissingDerivative: A gradient is taken through an operation that has none.

    Example:
        >>> with naming_layers(["hue"]), tf.GradientTape() as tape:
        ...     x = tf.ones([1, 1, 3])
        ...     tape.watch(x)
        ...     y = tf.image.adjust_hue(x, 0.1)
        ...     tape.gradient(y, x)
        Traceback (most recent call last):
        keras_maml.execution.derivatives.MissingDerivative: TensorFlow has no derivative of ...
    """
    token = _layers.set(tuple(names))
    try:
        yield
    except MissingDerivative:
        raise
    except LookupError as error:
        found = re.search(r"gradient registry has no entry for: (\w+)", str(error))
        if found is None:
            raise
        raise MissingDerivative(_message(found[1], "")) from error
    finally:
        _layers.reset(token)


def _message(operation: str, scope: str) -> str:
    names = _layers.get() or ()
    parts = (re.sub(r"_\d+$", "", p) if p not in names else p for p in reversed(scope.split("/")))
    layer = next((f" in layer '{part}'" for part in parts if part in names), "")
    if operation.endswith(_GRADIENTS):
        return (
            f"TensorFlow has no second derivative of what {operation} is the gradient of{layer}; "
            "the exact meta-gradient needs it. Pass first_order=True, or use another operation."
        )
    return (
        f"TensorFlow has no derivative of {operation}{layer}, so nothing before it can be trained. "
        "Use another operation, or none that is to be trained before it."
    )


_GRADIENTS = ("Grad", "Gradient", "GradImage", "GradBoxes", "BackpropInput", "Backprop", "GradA")


def _refuse(operation: str, declared_constant: bool) -> Callable:
    def gradient(op: Any, *upstream: Any) -> list:
        if declared_constant and _layers.get() is None:
            return [None] * len(_op_defs.get(operation).input_arg)
        raise MissingDerivative(_message(operation, _scope_of(op)))

    return gradient


def _scope_of(op: Any) -> str:
    return tf.get_current_name_scope() or getattr(op, "name", "")  # eagerly it has none


def _of_composition(composition: Callable) -> Callable:
    """The gradient of an operation that equals a function made of differentiable ones."""

    def gradient(op: Any, *upstream: tf.Tensor) -> list:
        inputs = [tf.identity(value) for value in op.inputs]
        floating = [value for value in inputs if value.dtype.is_floating]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(floating)
            outputs = composition(op, *inputs)
        found = iter(tape.gradient(outputs, floating, upstream[0]))
        return [next(found) if value.dtype.is_floating else None for value in inputs]

    return gradient


# --- resizing and cropping: the gradient of the transpose is the operation ----------------------


def _size(images: tf.Tensor) -> Any:
    size = images.shape[1:3]
    return size if size.is_fully_defined() else tf.shape(images)[1:3]


def _resizing(operation: Callable) -> Callable:
    def gradient(op: Any, upstream: tf.Tensor) -> list:
        grads = op.inputs[0]
        attributes = {name: op.get_attr(name) for name in ("align_corners", "half_pixel_centers")}
        again = operation(images=upstream, size=_size(grads), **attributes)
        return [tf.cast(again, grads.dtype), None]

    return gradient


def _scale_and_translate(op: Any, upstream: tf.Tensor) -> list:
    grads, _, scale, translation = op.inputs
    again = tf.raw_ops.ScaleAndTranslate(
        images=upstream,
        size=_size(grads),
        scale=scale,
        translation=translation,
        kernel_type=op.get_attr("kernel_type"),
        antialias=op.get_attr("antialias"),
    )
    return [tf.cast(again, grads.dtype), None, None, None]


def _crop_and_resize(op: Any, upstream: tf.Tensor) -> list:
    grads, boxes, box_ind, _ = op.inputs
    again = tf.raw_ops.CropAndResize(
        image=upstream,
        boxes=boxes,
        box_ind=box_ind,
        crop_size=_size(grads),
        method=op.get_attr("method"),
    )
    to_boxes = tf.raw_ops.CropAndResizeGradBoxes(
        grads=grads, image=upstream, boxes=boxes, box_ind=box_ind
    )
    return [again, to_boxes, None, None]


def _resize_area(op: Any, upstream: tf.Tensor) -> list:
    images, size = op.inputs
    size = tf.get_static_value(size)
    if op.get_attr("align_corners") or size is None or None in images.shape[1:3]:
        raise MissingDerivative(_message("ResizeArea", _scope_of(op)))
    rows, columns = (
        tf.constant(interpolation_matrix(before, int(after), "area", False), upstream.dtype)
        for before, after in zip(images.shape[1:3], size, strict=True)
    )
    back = tf.einsum("oh,pw,bopc->bhwc", rows, columns, upstream)
    return [tf.cast(back, images.dtype), None]


def _dynamic_update_slice(op: Any, upstream: tf.Tensor) -> list:
    _, update, begin = op.inputs
    kept = _xla.xla_dynamic_update_slice(upstream, tf.zeros_like(update), begin)
    return [kept, tf.slice(upstream, begin, tf.shape(update)), None]


# --- what is made of differentiable operations ---------------------------------------------------


def _softsign_gradient(op: Any, upstream: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    return upstream / tf.square(1 + tf.abs(x))


def _normalize_locally(op: Any, x: tf.Tensor) -> tf.Tensor:
    radius, channels = op.get_attr("depth_radius"), x.shape[-1]
    band = abs(tf.range(channels)[:, None] - tf.range(channels)[None]) <= radius
    sums = tf.tensordot(tf.square(x), tf.cast(band, x.dtype), 1)
    return x * (op.get_attr("bias") + op.get_attr("alpha") * sums) ** -op.get_attr("beta")


def _local_normalization_gradient(op: Any, upstream: tf.Tensor, x: tf.Tensor, _: tf.Tensor) -> Any:
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = _normalize_locally(op, x)
    return tape.gradient(y, x, upstream)


_DERIVATIVES = {
    "ResizeBicubicGrad": _resizing(tf.raw_ops.ResizeBicubic),
    "ResizeNearestNeighborGrad": _resizing(tf.raw_ops.ResizeNearestNeighbor),
    "ScaleAndTranslateGrad": _scale_and_translate,
    "CropAndResizeGradImage": _crop_and_resize,
    "ResizeArea": _resize_area,
    "XlaDynamicUpdateSlice": _dynamic_update_slice,  # which a slice's gradient is in XLA
    "SoftsignGrad": _of_composition(_softsign_gradient),
    "LRNGrad": _of_composition(_local_normalization_gradient),
}
_REFUSED = (
    *("AdjustContrastv2", "AdjustHue", "AdjustSaturation", "CropAndResizeGradBoxes"),
    *("Dilation2DBackpropInput", "FractionalMaxPoolGrad", "FractionalAvgPoolGrad"),
    *("IgammaGradA", "MaxPoolGradWithArgmax", "SparseSegmentMeanGrad", "CudnnRNNBackprop"),
    # Declared to be constant, which they are not.
    *(
        "ResizeBilinearGrad",
        "HSVToRGB",
        "DrawBoundingBoxes",
        "ExtractGlimpse",
        "FakeQuantWithMinMaxArgsGradient",
        "LinSpace",
    ),
    *("FakeQuantWithMinMaxVarsGradient", "FakeQuantWithMinMaxVarsPerChannelGradient", "OneHot"),
    *("RandomShuffle", "SparseAddGrad", "XlaVariadicReduce"),
)


def _register() -> None:
    registry = _ops._gradient_registry
    for name in (*_DERIVATIVES, *_REFUSED):
        try:
            known, missing = registry.lookup(name), False
        except LookupError:
            known, missing = None, True
        if known is None:
            gradient = _DERIVATIVES.get(name) if missing else None
            gradient = gradient or _refuse(name, declared_constant=not missing)
            if missing:
                tf.RegisterGradient(name)(gradient)
            else:  # there is no public way to take back that an operation is constant
                registry._registry[name]["type"] = gradient


_register()
