"""Recurrences as loops that can be differentiated to any order, and that XLA compiles quickly.

A recurrence is

    p_t = a_(t-1) U,    (carry_t, outputs_t) = step(carry_(t-1), p_t, inputs_t),

where a is the first part of the carry: for an LSTM, a = h, carry = (h, c), inputs = x W + b. Its
gradient is a recurrence of the same kind that runs the other way, with U' for U: the gradient of
p_(t+1) is what is multiplied, and the step is the vector-Jacobian product of the step. So one
definition gives the derivatives of any order, each a loop of a single step. Unrolled, the program
grows by the number of time steps times that of inner steps, and more so by each order.

Left to itself, TensorFlow differentiates a loop into one that keeps every intermediate result on
a stack of unknown size: it does not vectorise over tasks. Here only the carries and the products
are kept; what a step computes from them, number by number, is computed again. No product is: that
is why p has a place of its own. And the gradient of U, a sum over time of products a'dp, is one
product of all time steps after the loop.

Source: Werbos, Backpropagation through time: what it does and how to do it, Proceedings of the
IEEE 78, 1990, for the first derivative; the closure under differentiation is ours.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from keras_maml.execution.linear import linear_pair
from keras_maml.execution.tracing import custom_gradient
from keras_maml.execution.vectorized_loops import NAME

Tensors = list[tf.Tensor]

# From (carry, product, inputs, constants) to (carry, outputs, terms of sums over time).
_Step = Callable[[Tensors, tf.Tensor | None, Tensors, Tensors], tuple[Tensors, Tensors, Tensors]]

Step = Callable[[Tensors, tf.Tensor | None, Tensors, Tensors], Tensors]


def recurrence(
    step: Step,
    carry: Sequence[tf.Tensor],
    inputs: Sequence[tf.Tensor],
    constants: Sequence[tf.Tensor] = (),
    matrix: tf.Tensor | None = None,
) -> tuple[Tensors, Tensors]:
    """Runs a recurrence; its derivatives of any order are recurrences again.

    Args:
        step: Maps ``(carry, product, inputs, constants)`` of a time step to the next carry, of
            the same shapes and dtypes. Gradients reach nothing else: a weight that it uses must
            be among the constants. It is called several times, and must be a pure function.
        carry: What is handed from one step to the next: floating tensors.
        inputs: What differs from step to step, ``[time, ...]``, of any dtype.
        constants: What does not, of any dtype.
        matrix: If given, ``product`` is ``carry[0] @ matrix``, else None. ``[..., n, m]`` for
            a first carry of ``[..., examples, n]``.

    Returns:
        The last carry, and the carries after every step, ``[time, ...]``.

    Example:
        >>> decay = lambda carry, product, inputs, constants: [product + inputs[0]]
        >>> _, (sums,) = recurrence(decay, [tf.zeros([1, 1])], [tf.ones([3, 1, 1])],
        ...                         matrix=tf.constant([[0.5]]))
        >>> sums[:, 0, 0].numpy().tolist()
        [1.0, 1.5, 1.75]
    """

    def without_outputs(*arguments):
        return step(*arguments), [], []

    loop = _Loop(without_outputs, (), reverse=False)
    return loop.after(*loop(list(carry), list(inputs), list(constants), matrix)[:2])


def unrolled(
    step: Step,
    carry: Sequence[tf.Tensor],
    inputs: Sequence[tf.Tensor],
    constants: Sequence[tf.Tensor] = (),
    matrix: tf.Tensor | None = None,
) -> tuple[Tensors, Tensors]:
    """Computes `recurrence` one operation after another, for short sequences of known length."""
    carry, constants, carries = list(carry), list(constants), []
    for values in zip(*map(tf.unstack, inputs), strict=True):
        product = None if matrix is None else tf.matmul(carry[0], matrix)
        carry = step(carry, product, list(values), constants)
        carries.append(carry)
    return carry, [tf.stack(values) for values in zip(*carries, strict=True)]


class _Loop:
    """A recurrence with outputs of every step and sums over the steps, each differentiable.

    Args:
        step: Maps ``(carry, product, inputs, constants)`` to ``(carry, outputs, terms)``.
        outputs: For each output, a tensor or specification of its shape and dtype.
        reverse: Whether it runs from the last time step to the first.
    """

    def __init__(self, step: _Step, outputs: Sequence, *, reverse: bool) -> None:
        self.step, self.outputs, self.reverse = step, list(outputs), reverse

    def __call__(
        self,
        carry: Tensors,
        inputs: Tensors,
        constants: Tensors,
        matrix: tf.Tensor | None,
        sums: Tensors = (),
    ) -> tuple[Tensors, Tensors, Tensors, Tensors]:
        """Returns the last carry, the carries before every step, the outputs and the sums.

        With a matrix, the first of the outputs are the products. ``sums`` holds a tensor of the
        shape of each.
        """
        operands = [carry, inputs, constants, [] if matrix is None else [matrix]]
        sums = [tf.stop_gradient(value) for value in sums]
        kept = []

        @custom_gradient
        def run(*flat):
            # Unless nobody watches what goes in, TensorFlow differentiates the loop by itself, too.
            results = self._run(*_split(map(tf.stop_gradient, flat), operands), sums)
            flat_results = tuple(tensor for part in results for tensor in part)
            shapes.extend(results)

            def gradient(*upstream):
                # The results that the caller sees, not those in here: only through them does the
                # next order of derivative find its way back to this loop.
                return self._pull_back(
                    _split(flat, operands),
                    _split(kept, results),
                    _split(upstream, results),
                )

            return flat_results, gradient

        shapes: list[Tensors] = []
        kept.extend(run(*(tensor for part in operands for tensor in part)))
        return tuple(_split(kept, shapes))

    def after(self, last: Tensors, before: Tensors) -> tuple[Tensors, Tensors]:
        """Returns the last carry and the carries after every step, from those before it."""
        shift = _earlier if self.reverse else _later
        return last, [
            shift(b) + _at_the_end(a, b, self.reverse) for a, b in zip(last, before, strict=True)
        ]

    def _run(self, carry, inputs, constants, matrix, sums):
        matrix = matrix[0] if matrix else None
        times = _length(inputs[0])
        outputs = self.outputs
        if matrix is not None:
            shape = [*carry[0].shape[:-1], matrix.shape[-1]]
            outputs = [tf.TensorSpec(shape, matrix.dtype), *outputs]
        stacks = [tf.TensorArray(t.dtype, times, element_shape=t.shape) for t in (*carry, *outputs)]

        def turn(number, carry, sums, stacks):
            at = times - 1 - number if self.reverse else number
            product = None if matrix is None else tf.matmul(carry[0], matrix)
            following, results, terms = self.step(
                carry, product, [tf.gather(t, at) for t in inputs], constants
            )
            if product is not None:
                results = [product, *results]
            values = [*carry, *results]
            stacks = [stack.write(at, value) for stack, value in zip(stacks, values, strict=True)]
            sums = [total + term for total, term in zip(sums, terms, strict=True)]
            return number + 1, following, sums, stacks

        _, last, sums, stacks = tf.while_loop(
            lambda number, *_: number < times,
            turn,
            (tf.constant(0), list(carry), [tf.zeros_like(value) for value in sums], stacks),
            name=NAME,
        )
        stacked = [stack.stack() for stack in stacks]
        return last, stacked[: len(carry)], stacked[len(carry) :], sums

    def _pull_back(self, operands, results, upstream):
        """The gradient: a loop the other way, over what this one has kept."""
        _, inputs, constants, matrix = operands
        matrix = matrix[0] if matrix else None
        _, carries, outputs, _ = results
        to_last, to_carries, to_outputs, to_sums = upstream
        products = [] if matrix is None else outputs[:1]
        steady = [i for i, t in enumerate(constants) if t.dtype.is_floating]
        moving = [i for i, t in enumerate(inputs) if t.dtype.is_floating]
        parts = [carries, products, inputs, to_carries, to_outputs], [constants, to_sums]

        def step(gradients, through_matrix, inputs, constants):
            carry, product, inputs, to_carry, to_outputs = _split(inputs, parts[0])
            constants, to_sums = _split(constants, parts[1])
            to_following = gradients
            if product:
                to_following = [gradients[1] + through_matrix, *gradients[2:]]
            sources = [carry, product, [inputs[i] for i in moving], [constants[i] for i in steady]]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(sources)
                following, outputs, terms = self.step(
                    carry, product[0] if product else None, inputs, constants
                )
            to_carry_too, to_product, to_inputs, to_constants = tape.gradient(
                [*following, *product, *outputs, *terms],
                sources,
                [*to_following, *to_outputs, *to_sums],
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
            to_carry = [a + b for a, b in zip(to_carry, to_carry_too, strict=True)]
            return [*to_product, *to_carry], to_inputs, to_constants

        specs = [tf.TensorSpec(inputs[i].shape[1:], inputs[i].dtype) for i in moving]
        loop = _Loop(step, specs, reverse=not self.reverse)
        first = [tf.zeros_like(p[0]) for p in products] + list(to_last)
        last, before, to_inputs, to_constants = loop(
            first,
            [tensor for part in parts[0] for tensor in part],
            [tensor for part in parts[1] for tensor in part],
            None if matrix is None else tf.linalg.matrix_transpose(matrix),
            sums=[constants[i] for i in steady],
        )
        to_matrix = []
        if matrix is not None:
            _, (to_products, *_) = loop.after(last[:1], before[:1])
            to_matrix = [_sum_of_products(carries[0], to_products)]
            through_matrix = tf.matmul(last[0], matrix, transpose_b=True)
            last = [last[1] + through_matrix, *last[2:]]
            to_inputs = to_inputs[1:]  # the first are products
        return (
            *last,
            *_spread(to_inputs, moving, len(inputs)),
            *_spread(to_constants, steady, len(constants)),
            *to_matrix,
        )


def _pad(values: tf.Tensor, before: int | tf.Tensor, after: int | tf.Tensor) -> tf.Tensor:
    return tf.pad(values, [(before, after), *[(0, 0)] * (values.shape.rank - 1)])


# What stands at the next time step, or at the one before; 0 at the end. Slices would do, but in a
# program for XLA their derivatives of third order are missing.
_later, _earlier = linear_pair(lambda x: _pad(x[1:], 0, 1), lambda y: _pad(y[:-1], 1, 0))


def _at_the_end(value: tf.Tensor, like: tf.Tensor, reverse: bool) -> tf.Tensor:
    """Puts a value at the last time step of zeros, or at the first."""
    others = _length(like) - 1
    if reverse:
        return linear_pair(lambda x: _pad(x[None], 0, others), lambda y: y[0])[0](value)
    return linear_pair(lambda x: _pad(x[None], others, 0), lambda y: y[-1])[0](value)


def _sum_of_products(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Sums a'b over the time steps, ``[time, ..., examples, n]``."""
    batch = "xyz"[: a.shape.rank - 3]
    return tf.einsum(f"t{batch}ei,t{batch}ej->{batch}ij", a, b)


def _length(inputs: tf.Tensor) -> int | tf.Tensor:
    return tf.shape(inputs)[0] if inputs.shape[0] is None else inputs.shape[0]


def _split(flat: Sequence, parts: Sequence[Sequence]) -> list[list]:
    """Cuts a flat sequence into lists as long as those given."""
    remaining = iter(flat)
    return [[next(remaining) for _ in part] for part in parts]


def _spread(values: Sequence, places: Sequence[int], length: int) -> list:
    """Puts values in their places of a list that holds None elsewhere."""
    found = dict(zip(places, values, strict=True))
    return [found.get(i) for i in range(length)]
