"""Forms of Keras layers that vectorise over tasks and can be differentiated to any order.

MAML differentiates through a gradient, once per task, for many tasks at once. Some layers do
not survive that as they stand: the filter gradient of a convolution cannot be vectorised over
filters that differ between tasks, max-pooling has no second derivative there, a recurrent loop
hides its steps, an embedding's gradient is sparse, and random operations refuse a seed per
task. Worse, `tf.nn.moments` stops the gradient of the mean inside the variance: right for a
first derivative, silently wrong for a second one, and Keras's batch, group and layer
normalisation use it. And gradients do not see which weights a `tf.function` or a function with a
gradient of its own reads: see `tracing.transparent`.

A custom layer that bound the name itself (``from tensorflow.nn import moments``) keeps the wrong
one: call `tf.nn.moments` or `keras.ops.moments` through their modules. A layer that draws random
numbers needs a `keras.random.SeedGenerator` of its own, as in Keras; without, it draws the same
in every step.

`differentiable_forms` lends the layers of a model an equivalent form while a thread calls it. The
user's layers, their weights and their configuration stay as they are, and other threads that call
the same layers meanwhile get what they always do.

The mathematics is in `convolution` and `normalization`.
"""

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import keras
import tensorflow as tf

from keras_maml.execution import convolution
from keras_maml.execution.lending import Lent, lend, lending, unlent
from keras_maml.execution.linear import add_bias, before_bias, matrix_product
from keras_maml.execution.normalization import moments, standardize
from keras_maml.execution.random import hashed_uniform
from keras_maml.execution.recurrent_layers import recur
from keras_maml.execution.resizing import resize_layer, upsample
from keras_maml.execution.tracing import custom_gradient, transparent
from keras_maml.private_keras import flatten_layers

BatchStatistics = Literal["batch", "stored"]

# How a trace will run: vectorised over tasks, task by task but compiled by XLA, neither, on a
# device that knows few operations, and first derivatives only, or as Keras runs it.
Route = Literal["vectorized", "compiled", "plain", "portable", "native"]


@contextlib.contextmanager
def differentiable_forms(
    model: keras.Model,
    *,
    route: Route,
    batch_statistics: BatchStatistics = "batch",
    write_statistics: bool = True,
) -> Iterator[None]:
    """Lends a model's layers forms that MAML can differentiate, to this thread, for a while.

    Args:
        model: The model; nested models are included.
        route: How the trace will run. Convolutions differ: patches times a matrix, XLA's
            forward convolution, TensorFlow's own operations (see `convolution`). ``"native"``
            lends batch normalisation only: the others compute, and refuse, what they always do.
        batch_statistics: What trainable `BatchNormalization` layers normalise with: ``"batch"``
            takes the batch at hand, ``"stored"`` the layer's moving statistics. Frozen layers
            always use what they have stored.
        write_statistics: Whether ``"batch"`` makes the statistics of the batch the moving ones.
            Open a `keras.StatelessScope` around the call: they are written into the state that
            the scope hands on.
    """
    with lending, contextlib.ExitStack() as stack:
        stack.enter_context(transparent())
        stack.enter_context(lend(tf.nn, "moments", moments))
        if route == "portable":
            stack.enter_context(lend(tf.nn, "relu", _portable_relu))
            stack.enter_context(lend(tf, "repeat", _portable_repeat))
        for layer in flatten_layers(model):
            if _is_changed(layer):
                continue
            form = _form_of(layer, _FORMS_OF_ROUTES[route])
            if isinstance(layer, keras.layers.BatchNormalization):
                form = _bind(_normalize, layer, batch_statistics, write_statistics)
            if form is not None:
                stack.enter_context(lend(layer, "call", form))
        yield


def call_on_batch(
    model: keras.Model, x: Any, training: bool | None = None, route: Route = "native"
) -> Any:
    """Calls a model whose batch normalisation takes the batch at hand, in training or not.

    Inside `differentiable_forms`, whose choice that is, an ordinary call.

    Args:
        model: A model.
        x: Its inputs.
        training: Whether dropout and its like are active.
        route: See `differentiable_forms`.
    """
    borrowed = (vars(layer).get("call") for layer in batch_normalizations(model))
    if any(isinstance(call, Lent) and call.is_mine for call in borrowed):
        return model(x, training=training)
    with differentiable_forms(model, route=route, write_statistics=False):
        return model(x, training=training)


def batch_normalizations(model: keras.layers.Layer) -> list[keras.layers.BatchNormalization]:
    """Returns the trainable batch normalisation layers of a model or layer."""
    return [
        layer
        for layer in flatten_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]


def first_call(model: keras.Model, x: Any) -> tuple[Any, int]:
    """Calls a model, which builds it if it is not built; none of its variables changes.

    Args:
        model: A model.
        x: A few inputs ``[examples, ...]``, or a nest of such.

    Returns:
        The predictions, and how large the largest patches of a convolution are: bytes per example,
        0 without convolutions.
    """
    sizes = [0]
    with lending, contextlib.ExitStack() as stack, keras.StatelessScope():
        for layer in flatten_layers(model):
            if isinstance(layer, _CONVOLUTIONS):
                stack.enter_context(lend(layer, "call", _bind(_measure, layer, sizes)))
        predictions = call_on_batch(model, x, route="plain")
    return predictions, max(sizes)


def has_recurrent_layers(model: keras.Model) -> bool:
    """Whether a model has recurrent layers, whose form is a loop.

    Forward mode does not differentiate it, and tasks take turns where XLA compiles it.
    """
    return any(isinstance(layer, keras.layers.RNN) for layer in flatten_layers(model))


@contextlib.contextmanager
def recurrent_inputs(model: keras.Model) -> Iterator[dict[str, int | None]]:
    """Finds how many steps the recurrent layers of a model see while it is called.

    Args:
        model: A model; nested models are included.

    Yields:
        The length of the last sequence of each recurrent layer that was called, by its name.
    """
    lengths: dict[str, int | None] = {}
    with lending, contextlib.ExitStack() as stack:
        for layer in flatten_layers(model):
            if isinstance(layer, keras.layers.RNN):
                stack.enter_context(lend(layer, "call", _bind(_count_steps, layer, lengths)))
        yield lengths


def _count_steps(layer, lengths, *args, **kwargs):
    sequences, *_ = _given(layer, args, kwargs).arguments.values()
    lengths[layer.name] = keras.tree.flatten(sequences)[0].shape[1]
    return type(layer).call(layer, *args, **kwargs)


def _measure(layer, sizes, *args, **kwargs):
    outputs = type(layer).call(layer, *args, **kwargs)
    kernel = getattr(layer, "kernel", None)  # which a subclass may build under another name
    if kernel is not None:
        first = keras.tree.flatten(outputs)[0]
        positions = math.prod(first.shape[1:]) // layer.filters
        sizes.append(positions * math.prod(kernel.shape[:-1]) * first.dtype.size)
    return outputs


def _given(layer: keras.layers.Layer, args: Any, kwargs: Any) -> inspect.BoundArguments:
    """Returns what a layer is given, by the names of its own call: a subclass may have others."""
    own = functools.partial(type(layer).call, layer)
    return inspect.signature(own).bind(*args, **kwargs)


def _form_of(layer: keras.layers.Layer, forms: dict[type, Callable]) -> Callable | None:
    for ancestor in type(layer).__mro__:
        if ancestor in forms:
            return _bind(forms[ancestor], layer) if _computes_as(layer, ancestor) else None
    return None


def _computes_as(layer: keras.layers.Layer, ancestor: type) -> bool:
    """Whether a layer has no method of its own for what it computes, which it knows better."""
    return all(
        getattr(type(layer), name, None) is getattr(ancestor, name, None) for name in _METHODS
    )


def _is_changed(layer: keras.layers.Layer) -> bool:
    """Whether this one layer has been given another method for what it computes."""
    own = ((name, unlent(vars(layer).get(name))) for name in _METHODS)
    return any(
        method is not None
        and getattr(method, "__func__", method) is not getattr(type(layer), name, None)
        for name, method in own
    )


def _changed(layer: keras.layers.Layer, **attributes: Any) -> keras.layers.Layer:
    """Returns a layer with the same variables and other attributes, for one call."""
    changed = object.__new__(type(layer))
    vars(changed).update(vars(layer) | attributes)
    return changed


def _bind(function: Callable, layer: keras.layers.Layer, *bound: Any) -> Callable:
    return lambda *args, **kwargs: function(layer, *bound, *args, **kwargs)


# --- normalisation ---------------------------------------------------------------------------


def _normalize(layer, batch_statistics, write, *args, **kwargs):
    on_batch = batch_statistics == "batch"
    ours = _computes_as(layer, keras.layers.BatchNormalization) and not layer.renorm
    given = _given(layer, args, kwargs)
    masked = given.arguments.get("mask") is not None
    if masked or not (on_batch and ours and layer.trainable):
        # Whatever the phase: the way of normalising is the learner's choice.
        _set_training(given, on_batch)
        # Keras writes momentum * moving + (1 - momentum) * batch.
        momentum = 0.0 if write else 1.0
        layer = _changed(layer, momentum=momentum, renorm_momentum=momentum)
        return type(layer).call(layer, *given.args, **given.kwargs)
    inputs = given.arguments["inputs"]
    x = keras.ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
    axis = layer.axis % len(x.shape)
    axes = [i for i in range(len(x.shape)) if i != axis]
    last = axis == len(x.shape) - 1
    x, bias = before_bias(x) if last else (x, None)  # the mean takes the bias away again
    if write:
        mean, variance = moments(x, axes)
        layer.moving_mean.assign(mean if bias is None else mean + bias)
        layer.moving_variance.assign(variance)
    outputs, _ = standardize(x, axes, layer.epsilon)
    by_channel = [-1 if i == axis else 1 for i in range(len(x.shape))]
    if layer.scale:
        outputs *= tf.reshape(tf.cast(layer.gamma, x.dtype), by_channel)
    if layer.center:
        beta = tf.cast(layer.beta, x.dtype)
        outputs = add_bias(outputs, beta) if last else outputs + tf.reshape(beta, by_channel)
    return tf.cast(outputs, layer.compute_dtype)


def _set_training(given: inspect.BoundArguments, training: bool) -> None:
    """Sets the phase of a call that takes it, by name or among others."""
    parameters = given.signature.parameters
    if "training" in parameters:
        given.arguments["training"] = training
        return
    for name in (name for name, one in parameters.items() if one.kind is one.VAR_KEYWORD):
        given.arguments[name] = given.arguments.get(name, {}) | {"training": training}


# --- convolution and pooling --------------------------------------------------------------------


def _finish(layer: keras.layers.Layer, outputs: tf.Tensor) -> tf.Tensor:
    """Adds the bias to channels-last outputs."""
    return add_bias(outputs, tf.convert_to_tensor(layer.bias)) if layer.use_bias else outputs


def _activate(layer: keras.layers.Layer, outputs: tf.Tensor) -> tf.Tensor:
    return outputs if layer.activation is None else layer.activation(outputs)


def _convolve_at_once(layer, inputs):
    def convolve(inputs, kernel, padding):
        return convolution.by_patches(inputs, kernel, layer.strides, padding, layer.dilation_rate)

    return _convolve(layer, inputs, convolve)


def _convolve_in_turns(layer, inputs):
    native = isinstance(layer, keras.layers.Conv2D) and set(layer.strides) == {1}

    def convolve(inputs, kernel, padding):
        if native:
            return convolution.natively(inputs, kernel, padding, layer.dilation_rate)
        how = layer.strides, padding, layer.dilation_rate
        return convolution.by_patches(inputs, kernel, *how, product=matrix_product)

    return _convolve(layer, inputs, convolve)


def _convolve(layer, inputs, convolve):
    kernel = tf.convert_to_tensor(layer.kernel)

    def function(inputs):
        padding = layer.padding
        if padding == "causal":
            left = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
            inputs, padding = tf.pad(inputs, [(0, 0), (left, 0), (0, 0)]), "valid"
        if layer.groups == 1:
            return _finish(layer, convolve(inputs, kernel, padding))
        groups = (tf.split(tensor, layer.groups, -1) for tensor in (inputs, kernel))
        parts = [convolve(*pair, padding) for pair in zip(*groups, strict=True)]
        return _finish(layer, tf.concat(parts, -1))

    return _activate(layer, convolution.channels_last(layer.data_format, inputs, function))


def _convolve_depthwise(layer, inputs):
    kernel = tf.convert_to_tensor(layer.kernel)

    def function(inputs):
        slices = convolution.Windows(
            inputs.shape[1:-1], layer.kernel_size, layer.strides, layer.padding, layer.dilation_rate
        ).taps(inputs)
        weights = tf.reshape(kernel, [len(slices), *kernel.shape[-2:]])
        outputs = sum(tap[..., None] * weights[i] for i, tap in enumerate(slices))
        shape = [-1 if size is None else size for size in outputs.shape[:-2]]
        return _finish(layer, tf.reshape(outputs, [*shape, math.prod(kernel.shape[-2:])]))

    return _activate(layer, convolution.channels_last(layer.data_format, inputs, function))


def _pool(layer, inputs):
    if None in inputs.shape[1:]:  # slices need sizes, Keras's own pooling does not
        return type(layer).call(layer, inputs)
    pool = convolution.max_pool if layer.pool_mode == "max" else convolution.average_pool

    def function(inputs):
        return pool(inputs, layer.pool_size, layer.strides, layer.padding)

    return convolution.channels_last(layer.data_format, inputs, function)


# --- the rest ----------------------------------------------------------------------------------


def _embed(layer, inputs):
    # A product with one-hot rows: its gradient is dense and it vectorises over tasks.
    table = tf.convert_to_tensor(layer.embeddings)
    one_hot = tf.one_hot(tf.cast(inputs, tf.int32), layer.input_dim, dtype=table.dtype)
    return tf.cast(tf.tensordot(one_hot, table, 1), layer.compute_dtype)


def _drop(layer, inputs, training=False):
    if not training or layer.rate == 0:
        return inputs
    shape = inputs.shape if inputs.shape.is_fully_defined() else tf.shape(inputs)
    if isinstance(layer, _SPATIAL_DROPOUTS):
        channels = -1 if getattr(layer, "data_format", "channels_last") == "channels_last" else 1
        kept_axes = (0, channels % len(inputs.shape))
        shape = [shape[i] if i in kept_axes else 1 for i in range(len(inputs.shape))]
    elif layer.noise_shape is not None:
        shape = [shape[i] if n is None else n for i, n in enumerate(layer.noise_shape)]
    keep = hashed_uniform(layer.seed_generator.next(), shape) >= layer.rate
    return tf.where(keep, inputs / tf.constant(1 - layer.rate, inputs.dtype), tf.zeros_like(inputs))


@custom_gradient
def _portable_relu(features, name=None):
    # LiteRT has no operation for the gradient of TensorFlow's own.
    del name
    outputs = tf.maximum(features, tf.zeros((), features.dtype))
    return outputs, lambda upstream: tf.where(outputs > 0, upstream, tf.zeros_like(upstream))


_repeat = tf.repeat


def _portable_repeat(input, repeats, axis=None, name=None):
    # TensorFlow's gradient sums over twice as many axes as there are, LiteRT over six at most.
    if not isinstance(repeats, int) or axis is None or not input.shape.is_fully_defined():
        return _repeat(input, repeats, axis, name)
    axis %= input.shape.rank
    apart = [*input.shape[: axis + 1], repeats, *input.shape[axis + 1 :]]

    @custom_gradient
    def repeat(x):
        return _repeat(x, repeats, axis, name), lambda upstream: tf.reduce_sum(
            tf.reshape(upstream, apart), axis + 1
        )

    return repeat(input)


_SPATIAL_DROPOUTS = (
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
)
_RECURRENT = (
    keras.layers.LSTM,
    keras.layers.GRU,
    keras.layers.SimpleRNN,
    keras.layers.RNN,
)
_FORMS: dict[type, Callable] = {
    keras.layers.Embedding: _embed,
    keras.layers.Dropout: _drop,
    **dict.fromkeys(_SPATIAL_DROPOUTS, _drop),
    **dict.fromkeys(_RECURRENT, recur),
    keras.layers.UpSampling2D: upsample,
    keras.layers.Resizing: resize_layer,
    keras.layers.MaxPooling1D: _pool,
    keras.layers.MaxPooling2D: _pool,
    keras.layers.MaxPooling3D: _pool,
    keras.layers.AveragePooling1D: _pool,
    keras.layers.AveragePooling2D: _pool,
    keras.layers.AveragePooling3D: _pool,
}
# The methods that Keras's calls compute by.
_METHODS = (
    "call",
    "convolution_op",
    "inner_loop",
    "transform_images",
    "_transform_images",
    "_resize_images",
    "_get_noise_shape",
    "_moments",
)
_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_CONVOLVE_DEPTHWISE: dict[type, Callable] = dict.fromkeys(_DEPTHWISE, _convolve_depthwise)
_FORMS_OF_ROUTES = {
    "vectorized": _FORMS | dict.fromkeys(_CONVOLUTIONS, _convolve_at_once) | _CONVOLVE_DEPTHWISE,
    "compiled": _FORMS | dict.fromkeys(_CONVOLUTIONS, _convolve_in_turns) | _CONVOLVE_DEPTHWISE,
    "plain": _FORMS,
    # LiteRT converts a native convolution with a computed kernel to one that is wrong.
    "portable": _FORMS
    | dict.fromkeys(_CONVOLUTIONS, _convolve_at_once)
    | _CONVOLVE_DEPTHWISE
    | dict.fromkeys(_RECURRENT, functools.partial(recur, unroll=True)),
    "native": {},
}
