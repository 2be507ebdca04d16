"""Convolution and pooling that can be differentiated to any order, fast, task by task or at once.

A convolution is bilinear, so its derivatives of any order are made of three maps: the outputs
(x, w) -> y, the input's gradient (dy, w) -> dx and the kernel's gradient (x, dy) -> dw. Two forms
of them, each the faster one where it is used:

`by_patches` multiplies a matrix of patches (what each tap of the window sees, side by side) by
the kernel as a matrix. It vectorises over tasks with a kernel each, as one batched product, and
suits small images. The patches and their transpose are one `linear_pair`. What is gained by one
large product is lost again where the tensors of all tasks together leave the cache, and taking
turns compiles faster: see `placement`.

`natively` uses XLA's own convolution for all three maps. It needs no patches, which for an
unstrided 3x3 window are nine times the image. It does not vectorise over kernels. XLA's CPU back
end has a fast path for ordinary forward convolutions only, and inside loops it does not bring
others into that form, so the two gradients are written as forward ones: that of the input with the
kernel flipped, that of the kernel with examples and channels exchanged.

An image's few channels are a case of their own: XLA gathers its windows number by number, and
transposing the gradient of the outputs, ten times the image, costs more than multiplying with it.
The outputs are there a sum of shifted images times a row of the kernel each, which XLA makes one
vectorised loop of, and the kernel's gradient takes dy as it lies in memory.

docs/speed.md has the figures behind each choice, and those of Winograd's minimal filtering.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_maml.execution.linear import Product, bilinear, linear_pair
from keras_maml.execution.placement import placement
from keras_maml.execution.tracing import custom_gradient


class Windows:
    """Where the taps of a sliding window lie in a channels-last tensor.

    Args:
        sizes: The spatial sizes of the tensor.
        window: The size of the window along each spatial axis.
        strides: Its strides.
        padding: ``"valid"`` or ``"same"`` (any case), as in TensorFlow.
        dilation: The distance between taps; 1 if None.

    Raises:
        NotImplementedError: A spatial size is unknown.
    """

    def __init__(
        self,
        sizes: Sequence[int | None],
        window: Sequence[int],
        strides: Sequence[int],
        padding: str,
        dilation: Sequence[int] | None = None,
    ) -> None:
        if None in sizes:
            raise NotImplementedError(
                "the spatial size of the input is unknown: XLA needs it. Give the model or the "
                "episodes a fixed size, or compile the learner with jit_compile=False"
            )
        dilation = tuple(dilation or (1,) * len(window))
        reach = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
        self.pads = [(0, 0)] * len(window)
        if padding.lower() == "same":
            outputs = [math.ceil(n / s) for n, s in zip(sizes, strides, strict=True)]
            totals = [
                max((o - 1) * s + r - n, 0)
                for o, s, r, n in zip(outputs, strides, reach, sizes, strict=True)
            ]
            self.pads = [(t // 2, t - t // 2) for t in totals]
        else:
            outputs = [(n - r) // s + 1 for n, r, s in zip(sizes, reach, strides, strict=True)]
        self.sizes = sizes
        self.strides = tuple(strides)
        self.slices = []  # of the padded tensor, in row-major order of taps
        for tap in itertools.product(*(range(k) for k in window)):
            begin = [t * d for t, d in zip(tap, dilation, strict=True)]
            end = [
                first + (o - 1) * s + 1 for first, o, s in zip(begin, outputs, strides, strict=True)
            ]
            self.slices.append(_slice(begin, end))

    def taps(self, inputs: tf.Tensor, pad_value: float = 0.0) -> list[tf.Tensor]:
        """Slices a tensor into what each tap sees.

        Args:
            inputs: ``[batch, *spatial, channels]``.
            pad_value: What ``"same"`` pads with.

        Returns:
            One tensor ``[batch, *output spatial, channels]`` per tap, in row-major order of taps.
        """
        inputs = _pad(inputs, self.pads, pad_value)
        strides = tf.constant([1, *self.strides, 1])  # one for all taps: nodes cost time to trace
        return [
            tf.raw_ops.StridedSlice(input=inputs, strides=strides, **where) for where in self.slices
        ]

    def spread(self, parts: Sequence[tf.Tensor]) -> tf.Tensor:
        """Adds up what each tap would have seen where it would have seen it.

        The transpose of `taps`. With strides, positions that have the same remainder see the same
        few taps: each of these phases is added up by itself, without gaps, and then they are
        interleaved. One sum of all taps, each with zeros between its positions, is slower
        (docs/speed.md).
        """
        padded = [
            n + before + after for n, (before, after) in zip(self.sizes, self.pads, strict=True)
        ]
        lengths = [math.ceil(n / s) for n, s in zip(padded, self.strides, strict=True)]
        terms = {phase: [] for phase in itertools.product(*map(range, self.strides))}
        for part, where in zip(parts, self.slices, strict=True):
            shifts, phase = zip(*map(divmod, where["begin"][1:-1], self.strides), strict=True)
            ends = zip(lengths, shifts, part.shape[1:-1], strict=True)
            rest = [length - shift - size for length, shift, size in ends]
            terms[phase].append(_pad(part, zip(shifts, rest, strict=True)))
        some = next(filter(None, terms.values()))[0]
        phases = [tf.add_n(found or [tf.zeros_like(some)]) for found in terms.values()]
        for axis, stride in reversed([*enumerate(self.strides, 1)]):
            together = range(0, len(phases), stride)
            phases = [_interleaved(phases[i : i + stride], axis) for i in together]
        (total,) = phases
        begin = [before for before, _ in self.pads]
        end = [first + n for first, n in zip(begin, self.sizes, strict=True)]
        if not any(begin) and list(total.shape[1:-1]) == end:
            return total
        once = [1] * len(total.shape)
        return tf.raw_ops.StridedSlice(input=total, strides=once, **_slice(begin, end))


def _pad(x: tf.Tensor, pads: Iterable[tuple[int, int]], value: float = 0.0) -> tf.Tensor:
    """Pads the spatial axes."""
    pads = [*pads]
    if not any(map(any, pads)):
        return x
    pads = [(0, 0), *pads, (0, 0)]
    padded = tf.pad(x, pads)  # with nothing but zeros: vectorised, TensorFlow forgets the value
    if value == 0:
        return padded
    inside = np.pad(np.ones([1, *x.shape[1:-1], 1], bool), pads)
    return tf.where(inside, padded, tf.constant(value, x.dtype))


def _interleaved(parts: Sequence[tf.Tensor], axis: int) -> tf.Tensor:
    """Joins tensors along an axis so that their entries alternate."""
    if len(parts) == 1:
        return parts[0]
    shape = [-1 if size is None else size for size in parts[0].shape]
    shape[axis] *= len(parts)
    return tf.reshape(tf.stack(parts, axis + 1), shape)


def _slice(begin: Sequence[int], end: Sequence[int]) -> dict[str, Any]:
    """Returns the bounds for `StridedSlice` along the spatial axes, the others whole."""
    outer = 1 | 1 << (len(begin) + 1)
    return {
        "begin": [0, *begin, 0],
        "end": [0, *end, 0],
        "begin_mask": outer,
        "end_mask": outer,
    }


# --- convolution -----------------------------------------------------------------------------


def by_patches(
    inputs: tf.Tensor,
    kernel: tf.Tensor,
    strides: Sequence[int],
    padding: str,
    dilation: Sequence[int] | None = None,
    product: Product = tf.matmul,
) -> tf.Tensor:
    """Convolves by patches times a matrix, in one, two, three or more dimensions.

    Args:
        inputs: ``[batch, *spatial, channels]``.
        kernel: ``[*window, channels, filters]``.
        strides: The strides along the spatial axes.
        padding: ``"valid"`` or ``"same"``.
        dilation: The dilation rates; 1 if None.
        product: Multiplies matrices; `linear.matrix_product` where tasks take turns.

    Returns:
        ``[batch, *output spatial, filters]``.
    """
    *window, _, filters = kernel.shape

    windows = Windows(inputs.shape[1:-1], window, strides, padding, dilation)

    def forward(x: tf.Tensor) -> tf.Tensor:
        return tf.concat(windows.taps(x), -1)

    def transpose(patches: tf.Tensor) -> tf.Tensor:
        return windows.spread(tf.split(patches, len(windows.slices), -1))

    patches = linear_pair(forward, transpose)[0](inputs)
    shape = [-1 if size is None else size for size in patches.shape[:-1]]
    rows = tf.reshape(patches, [-1, patches.shape[-1]])
    return tf.reshape(product(rows, tf.reshape(kernel, [-1, filters])), [*shape, filters])


def natively(
    inputs: tf.Tensor, kernel: tf.Tensor, padding: str, dilation: Sequence[int] = (1, 1)
) -> tf.Tensor:
    """Convolves in two dimensions, without strides, without patches.

    Args:
        inputs: ``[batch, height, width, channels]``.
        kernel: ``[*window, channels, filters]``.
        padding: ``"valid"`` or ``"same"``.
        dilation: The dilation rates.

    Returns:
        ``[batch, *output spatial, filters]``.
    """
    window = kernel.shape[:2]
    windows = Windows(inputs.shape[1:-1], window, (1, 1), padding, dilation)
    pads = [(0, 0), *windows.pads, (0, 0)]
    reach = [(k - 1) * d for k, d in zip(window, dilation, strict=True)]
    flipped_pads = [(r - b, r - a) for r, (b, a) in zip(reach, windows.pads, strict=True)]
    flipped_pads = [(0, 0), *flipped_pads, (0, 0)]
    few = math.prod(kernel.shape[:-1]) <= placement().max_terms

    def outputs(x, w):
        if few:
            return _sum_of_taps(windows.taps(x), w)
        return tf.nn.conv2d(x, w, 1, pads, dilations=dilation)

    def to_inputs(dy, w):
        flipped = tf.transpose(tf.reverse(w, [0, 1]), [0, 1, 3, 2])
        return tf.nn.conv2d(dy, flipped, 1, flipped_pads, dilations=dilation)

    def to_kernel(x, dy):
        if few:
            return _kernel_by_columns(_pad(x, windows.pads), dy, window, dilation)
        # The channels are examples here, and the examples channels.
        x_images, dy_kernel = tf.transpose(x, [3, 1, 2, 0]), tf.transpose(dy, [1, 2, 0, 3])
        dw = tf.nn.conv2d(x_images, dy_kernel, list(dilation), pads)
        return tf.transpose(dw, [1, 2, 0, 3])

    return bilinear(outputs, to_inputs, to_kernel)(inputs, kernel)


def _sum_of_taps(taps: Sequence[tf.Tensor], w: tf.Tensor) -> tf.Tensor:
    """Multiplies what each tap sees by its part of the kernel and adds up, channel by channel."""
    *_, channels, filters = w.shape
    parts = tf.unstack(tf.reshape(w, [len(taps) * channels, filters]))
    seen = [tf.split(tap, channels, -1) for tap in taps]
    terms = [x * part for x, part in zip(itertools.chain(*seen), parts, strict=True)]
    return sum(sum(terms[i : i + channels]) for i in range(0, len(terms), channels))


def _kernel_by_columns(
    x: tf.Tensor, dy: tf.Tensor, window: Sequence[int], dilation: Sequence[int]
) -> tf.Tensor:
    """The kernel's gradient, from padded inputs, with dy as it lies in memory.

    dy is the kernel here. It slides over examples and rows, and its columns are the channels; what
    a column of taps sees of a channel of x is an example.
    """
    firsts = range(0, window[1] * dilation[1], dilation[1])
    columns = [x[:, :, first : first + dy.shape[2]] for first in firsts]
    images = tf.concat([tf.transpose(column, [3, 0, 1, 2]) for column in columns], 0)
    dw = tf.nn.conv2d(images, dy, [1, dilation[0]], "VALID")
    dw = tf.reshape(dw, [window[1], x.shape[-1], window[0], dy.shape[-1]])
    return tf.transpose(dw, [2, 0, 1, 3])


# --- pooling ---------------------------------------------------------------------------------


def max_pool(
    inputs: tf.Tensor, window: Sequence[int], strides: Sequence[int], padding: str
) -> tf.Tensor:
    """Takes the maximum of each window; its gradient goes to the first entry that has it.

    Args:
        inputs: ``[batch, *spatial, channels]``.
        window: The size of the window along each spatial axis.
        strides: Its strides.
        padding: ``"valid"`` or ``"same"``.

    Returns:
        ``[batch, *output spatial, channels]``.
    """
    disjoint = tuple(window) == tuple(strides) and padding.lower() == "valid"
    disjoint = disjoint and len(window) < 3  # without XLA, TensorFlow broadcasts few axes
    windows = Windows(inputs.shape[1:-1], window, strides, padding)

    first, *others = windows.taps(tf.stop_gradient(inputs), inputs.dtype.min)
    best, chosen = first, tf.zeros(tf.shape(first), tf.int32)
    for number, entry in enumerate(others, 1):
        chosen = tf.where(entry > best, number, chosen)
        best = tf.maximum(best, entry)

    # With the choice made, the rest is linear: its gradient spreads, and that of spreading selects.
    def select(x: tf.Tensor) -> tf.Tensor:
        numbered = enumerate(windows.taps(x))
        return tf.add_n([tf.where(chosen == i, part, tf.zeros_like(part)) for i, part in numbered])

    def spread(y: tf.Tensor) -> tf.Tensor:
        if disjoint:
            return _spread_disjoint(y, chosen, window, inputs)
        numbers = range(len(windows.slices))
        return windows.spread([tf.where(chosen == i, y, tf.zeros_like(y)) for i in numbers])

    _, spread_linearly = linear_pair(select, spread)

    @custom_gradient
    def pool(x: tf.Tensor):
        del x
        return tf.identity(best), spread_linearly

    return pool(inputs)


def _spread_disjoint(
    y: tf.Tensor, chosen: tf.Tensor, window: Sequence[int], inputs: tf.Tensor
) -> tf.Tensor:
    """Writes each value to the chosen entry of its window, in one pass: windows do not overlap."""
    rank = len(window)
    blocks = [axis for i in range(rank) for axis in (y.shape[1 + i], 1)]
    number = tf.reshape(tf.range(math.prod(window)), [*window])
    number = tf.reshape(number, [1, *(n for size in window for n in (1, size)), 1])
    tiled = [-1, *blocks, y.shape[-1]]
    values = tf.where(tf.reshape(chosen, tiled) == number, tf.reshape(y, tiled), 0)
    covered = [size * n for size, n in zip(y.shape[1:-1], window, strict=True)]
    values = tf.reshape(values, [-1, *covered, y.shape[-1]])
    rest = [(0, n - c) for n, c in zip(inputs.shape[1:-1], covered, strict=True)]
    return _pad(values, rest)


def average_pool(
    inputs: tf.Tensor, window: Sequence[int], strides: Sequence[int], padding: str
) -> tf.Tensor:
    """Takes the mean of each window, of what lies inside the image; arguments as `max_pool`."""
    windows = Windows(inputs.shape[1:-1], window, strides, padding)
    inside = windows.taps(tf.ones_like(inputs[:1, ..., :1]))
    return tf.add_n(windows.taps(inputs)) / tf.add_n(inside)


def channels_last(data_format: str, inputs: tf.Tensor, function) -> tf.Tensor:
    """Applies a function of channels-last tensors to inputs of any data format of Keras."""
    if data_format == "channels_last":
        return function(inputs)
    rank = len(inputs.shape)
    outputs = function(tf.transpose(inputs, [0, *range(2, rank), 1]))
    return tf.transpose(outputs, [0, rank - 1, *range(1, rank - 1)])
