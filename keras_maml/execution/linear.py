"""Linear operators that know their transpose, and sums that the compiler runs fast.

MAML differentiates a gradient. Left to itself, automatic differentiation takes an operator made
of many small steps apart again in every order: the gradient of the gradient of nine stacked
slices is nine pads to full size and a sum. `linear_pair` ties an operator and its transpose
together, so that the gradient of either is one call of the other. `bilinear` does the same for an
operator of two tensors and its two gradients.

`matrix_product` is where convolutions by patches spend their time. XLA's CPU back end multiplies
with Eigen, which packs the right factor of a product a'dy, the kernel's gradient, slowly where it
is the wide one; transposed, dy'a, it is as fast as the other two products. XLA merges a
transposition into the product before it, which undoes that, unless something stands between them.
What comes out transposed has to be transposed back, number by number: a kernel's meta-gradient is
added up over the tasks as it comes, `pack_gradient`, and unpacked once.

`sum_positions` adds up a tensor over all axes but the last. XLA's CPU back end emits such a sum,
with whatever was fused into it, as one scalar chain per channel (or, when it is long, as a slow
window reduction). Cutting the positions into a few equal parts and adding these first gives it
independent elements to vectorise.

`sum_tasks` adds up what vectorised tasks return, such as their gradients of shared weights. The
gradient of a dense kernel is a product x'dy per task, and the sum of these is one product of all
tasks' examples, [inputs, tasks * examples] times [tasks * examples, outputs]; XLA does not see
that, and would write a kernel per task, add it to others and read it again. The exact meta-gradient
is a sum of such terms. Products with a vector stay as they are: XLA makes one loop of them and of
what their factors are computed from.

`before_bias` finds what a bias was added to. Normalisation takes the bias away again: its gradient
is then a long sum that comes to zero.

docs/speed.md has what each of them gains.
"""

import math
from collections.abc import Callable

import tensorflow as tf

from keras_maml.execution.placement import placement
from keras_maml.execution.tracing import custom_gradient

Operator = Callable[[tf.Tensor], tf.Tensor]
Product = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def linear_pair(forward: Operator, transpose: Operator) -> tuple[Operator, Operator]:
    """Ties a linear operator and its transpose together, to any order of derivative.

    Args:
        forward: A linear function from a tensor to a tensor.
        transpose: The transposed function.

    Returns:
        Both, each with the other as its gradient.

    Example:
        >>> first, back = linear_pair(lambda x: x[:1], lambda y: tf.pad(y, [(0, 1)]))
        >>> x = tf.constant([1.0, 2.0])
        >>> with tf.GradientTape() as tape:
        ...     tape.watch(x)
        ...     y = first(x)
        >>> tape.gradient(y, x).numpy().tolist()
        [1.0, 0.0]
    """

    @custom_gradient
    def apply(x: tf.Tensor):
        return forward(x), apply_transpose

    @custom_gradient
    def apply_transpose(y: tf.Tensor):
        return transpose(y), apply

    return apply, apply_transpose


def bilinear(outputs: Product, to_left: Product, to_right: Product) -> Product:
    """Ties a bilinear operator and its two gradients together, to any order of derivative.

    Args:
        outputs: The operator, ``(x, w) -> y``.
        to_left: The gradient of ``x``, ``(dy, w) -> dx``.
        to_right: The gradient of ``w``, ``(x, dy) -> dw``.

    Returns:
        The operator; its derivatives of any order are calls of the three.

    Example:
        >>> product = bilinear(*[lambda a, b: a * b] * 3)
        >>> float(product(tf.constant(2.0), tf.constant(3.0)))
        6.0
    """

    @custom_gradient
    def y(x: tf.Tensor, w: tf.Tensor):
        return outputs(x, w), lambda dy: (dx(dy, w), dw(x, dy))

    @custom_gradient
    def dx(dy: tf.Tensor, w: tf.Tensor):
        return to_left(dy, w), lambda g: (y(g, w), dw(g, dy))

    @custom_gradient
    def dw(x: tf.Tensor, dy: tf.Tensor):
        return to_right(x, dy), lambda g: (dx(dy, g), y(x, g))

    return y


def matrix_product(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Multiplies a tall matrix by a small one, with a fast gradient of the small one.

    Args:
        a: ``[rows, columns]``.
        b: ``[columns, outputs]``.

    Returns:
        ``[rows, outputs]``.

    Example:
        >>> matrix_product(tf.ones([2, 3]), tf.ones([3, 1])).numpy().tolist()
        [[3.0], [3.0]]
    """

    def to_right(a, dy):
        columns, outputs = a.shape[1], dy.shape[1]
        if None in (columns, outputs) or not _comes_transposed(columns, outputs):
            return tf.matmul(a, dy, transpose_a=True)
        transposed = tf.matmul(dy, a, transpose_a=True)
        # The same numbers; but XLA does not see that, and leaves the factors in their order.
        return tf.transpose(tf.where(tf.math.is_nan(transposed), transposed + 1, transposed))

    def to_left(dy, b):
        return tf.matmul(dy, b, transpose_b=True)

    return bilinear(tf.matmul, to_left, to_right)(a, b)


def pack_gradient(gradient: tf.Tensor) -> tf.Tensor:
    """Writes a kernel's gradient as it comes out of `matrix_product`, where it comes transposed.

    Args:
        gradient: ``[*window, channels, outputs]``.

    Returns:
        ``[outputs, columns]``; the tensor itself if it does not come transposed.

    Example:
        >>> [pack_gradient(tf.zeros(s)).shape.as_list() for s in ([3, 3, 2, 4], [9, 4])]
        [[4, 18], [9, 4]]
    """
    shape = gradient.shape
    if len(shape) < 3 or not _comes_transposed(math.prod(shape[:-1]), shape[-1]):
        return gradient
    return tf.transpose(tf.reshape(gradient, [-1, shape[-1]]))


def unpack_gradient(packed: tf.Tensor, shape: tf.TensorShape) -> tf.Tensor:
    """Returns the tensor of a shape of which `pack_gradient` made this one."""
    return packed if packed.shape.rank == shape.rank else tf.reshape(tf.transpose(packed), shape)


def _comes_transposed(columns: int, outputs: int) -> bool:
    return placement().turned_products and columns >= 2 * outputs


def sum_positions(x: tf.Tensor) -> tf.Tensor:
    """Sums over all axes but the last.

    Args:
        x: ``[..., channels]``.

    Returns:
        ``[channels]``.

    Example:
        >>> sum_positions(tf.ones([2, 3, 5])).numpy().tolist()
        [6.0, 6.0, 6.0, 6.0, 6.0]
    """

    def broadcast(total):
        return tf.broadcast_to(total, x.shape if None not in x.shape else tf.shape(x))

    return linear_pair(sum_in_parts, broadcast)[0](x)


def sum_in_parts(x: tf.Tensor) -> tf.Tensor:
    """`sum_positions` for where no gradient is taken of it: its own one is slow."""
    *positions, channels = x.shape
    if None in x.shape:
        return tf.reduce_sum(x, list(range(len(positions))))
    size = math.prod(positions)
    parts = next((n for n in placement().sum_parts if size % n == 0), 1)
    split = tf.reshape(x, [parts, size // parts, channels])
    return tf.reduce_sum(tf.add_n(tf.unstack(split)), 0)


def sum_tasks(x: tf.Tensor) -> tf.Tensor:
    """Sums over the first axis, without computing the terms of a sum of matrix products.

    Args:
        x: ``[tasks, ...]``. What made it is looked at in the graph where the function is called;
            eagerly, it is an ordinary sum.

    Returns:
        ``[...]``.

    Example:
        >>> sum_tasks(tf.ones([2, 3])).numpy().tolist()
        [2.0, 2.0, 2.0]
    """
    if tf.executing_eagerly() or not x.shape.is_fully_defined():
        return tf.reduce_sum(x, 0)
    operation, inputs = x.op.type, list(x.op.inputs)
    if operation in ("Identity", "IdentityN"):
        return sum_tasks(inputs[x.value_index])
    if operation in ("AddN", "AddV2") and all(term.shape == x.shape for term in inputs):
        return tf.add_n([sum_tasks(term) for term in inputs])
    if operation == "Reshape" and inputs[0].shape[:1] == x.shape[:1]:
        return tf.reshape(sum_tasks(inputs[0]), x.shape[1:])
    if _is_sum_of_outer_products(x):
        rows = [tf.reshape(factor, [-1, factor.shape[-1]]) for factor in inputs]
        return tf.matmul(*rows, transpose_a=True)
    return tf.reduce_sum(x, 0)


def _is_sum_of_outer_products(x: tf.Tensor) -> bool:
    """Whether x is a batch of products a'b of matrices that nobody else needs."""
    if x.op.type != "BatchMatMulV2" or len(x.consumers()) > 1 or 1 in x.shape[1:]:
        return False
    if len(x.shape) != 3:  # a weight with a batch axis of its own, which stays
        return False
    a, b = x.op.inputs
    same_rows = a.shape[:-1].is_fully_defined() and a.shape[:-1] == b.shape[:-1]
    return same_rows and x.op.get_attr("adj_x") and not x.op.get_attr("adj_y")


def add_bias(x: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Adds a bias ``[channels]`` to ``[..., channels]``, with a fast sum as its gradient."""

    def broadcast(bias):
        return tf.broadcast_to(bias, x.shape if None not in x.shape else tf.shape(x))

    return x + linear_pair(broadcast, sum_positions)[0](bias)


def before_bias(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Returns what a bias was added to, if the graph shows that one was.

    Args:
        x: ``[..., channels]``.

    Returns:
        The tensor before its bias was added, and the bias ``[channels]``; ``x`` and None if there
        is no bias, or eagerly, where there is no graph.

    Example:
        >>> @tf.function
        ... def difference(x, bias):
        ...     return add_bias(x, bias) - before_bias(add_bias(x, bias))[0]
        >>> difference(tf.zeros([2, 1]), tf.ones([1])).numpy().tolist()
        [[1.0], [1.0]]
    """
    if tf.executing_eagerly() or x.op.type not in ("AddV2", "BiasAdd"):
        return x, None
    if x.op.type == "BiasAdd" and x.op.get_attr("data_format") != b"NHWC":
        return x, None
    before, bias = x.op.inputs
    while bias.op.type in ("Identity", "IdentityN"):
        bias = bias.op.inputs[bias.value_index]
    if bias.op.type == "BroadcastTo":
        bias = bias.op.inputs[0]
    added = bias.shape.rank == 1 and before.shape.rank is not None and before.shape == x.shape
    return (before, bias) if added else (x, None)
