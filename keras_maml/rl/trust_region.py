"""Trust region policy optimisation (Schulman et al. 2015, arXiv 1502.05477, appendix C).

The step maximises a linear model of the objective subject to a quadratic model of the mean KL
divergence. Conjugate gradient solves for the direction with products of the KL's Hessian and a
vector; a line search then makes sure that the loss itself improves and the divergence itself keeps
within the limit.

The authors of MAML approximate the products by finite differences of gradients, to avoid third
derivatives. They are exact here, and need second derivatives only: where the divergence is zero so
is its gradient, and its Hessian with respect to the initial weights is J' M J, with J the Jacobian
of the distribution parameters (through the inner steps) and M the Hessian of the divergence with
respect to them, block-diagonal over transitions. J v is taken in forward mode, J' u in reverse
mode, which is faster than differentiating the divergence twice (docs/speed.md).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_maml import validation
from keras_maml.execution.functional import Tensors

Product = Callable[[Tensors], Tensors]


class Step(NamedTuple):
    """What an outer step did.

    Attributes:
        weights: The weights after it.
        loss: The loss at the weights after it.
        kl: Mean KL divergence from the policies before to those after it.
        accepted: bool: whether the weights changed.
        backtracks: int32: how often the line search shortened the step.
    """

    weights: Tensors
    loss: tf.Tensor
    kl: tf.Tensor
    accepted: tf.Tensor
    backtracks: tf.Tensor


@dataclasses.dataclass(frozen=True)
class TrustRegion:
    """The settings of a trust region step; the defaults are the authors' (protocol of MAML).

    Attributes:
        max_kl: The limit of the mean KL divergence of a step: a number, or one of Keras's schedules
            of the number of outer steps so far.
        damping: Added to the diagonal of the Hessian.
        iterations: Of conjugate gradient.
        residual_tolerance: Conjugate gradient stops below this squared residual.
        backtrack_ratio: By which the line search shortens a step.
        max_backtracks: How many steps it tries.
        momentum: Weight of the past in a moving average of gradients, for which the direction is
            sought, since a meta-gradient of a few rollouts is mostly noise. 0: every step has its
            own gradient, as the authors.
        min_gain_ratio: What share of the gain that the gradient promises a step must bring. 0: any
            gain will do, as for the authors.
        fisher_stride: The products with the Hessian take every so-many-th of the transitions, to be
            faster; gradient and line search take all (docs/speed.md).
    """

    max_kl: float | keras.optimizers.schedules.LearningRateSchedule = 0.01
    damping: float = 1e-5
    iterations: int = 10
    residual_tolerance: float = 1e-10
    backtrack_ratio: float = 0.8
    max_backtracks: int = 15
    momentum: float = 0.0
    min_gain_ratio: float = 0.0
    fisher_stride: int = 1

    def __post_init__(self) -> None:
        if not callable(self.max_kl):
            validation.check_positive("max_kl", self.max_kl)
        for name in ("damping", "residual_tolerance"):
            validation.check_number(name, getattr(self, name), lambda v: v >= 0, "at least 0")
        ratio, momentum = self.backtrack_ratio, self.momentum
        validation.check_number("backtrack_ratio", ratio, lambda v: 0 < v < 1, "in (0, 1)")
        validation.check_number("momentum", momentum, lambda v: 0 <= v < 1, "in [0, 1)")
        gain = self.min_gain_ratio
        validation.check_number("min_gain_ratio", gain, lambda v: 0 <= v < 1, "in [0, 1)")
        for name in ("iterations", "max_backtracks", "fisher_stride"):
            validation.check_count(name, getattr(self, name), minimum=1)

    def step(
        self,
        weights: Tensors,
        loss: tf.Tensor,
        gradient: Tensors,
        kl_hessian: Product,
        loss_and_kl: Callable[[Tensors], tuple[tf.Tensor, tf.Tensor]],
        number: int | tf.Tensor = 0,
    ) -> Step:
        """Takes one step.

        Args:
            weights: Where it starts.
            loss: The loss there.
            gradient: Its gradient there, or a moving average of it.
            kl_hessian: Multiplies the Hessian of the mean KL divergence with a vector.
            loss_and_kl: The loss and the divergence at other weights.
            number: How many outer steps there have been.

        Returns:
            The step; without change where no step of the line search is good, or anything is not
            finite.
        """
        direction, product = conjugate_gradient(
            lambda v: _add(kl_hessian(v), v, self.damping),
            gradient,
            iterations=self.iterations,
            residual_tolerance=self.residual_tolerance,
        )
        curvature = _dot(direction, product)
        max_kl = self.max_kl(number) if callable(self.max_kl) else self.max_kl
        max_kl = tf.cast(max_kl, loss.dtype)
        length = tf.sqrt(2.0 * max_kl / tf.maximum(curvature, 1e-8))
        change = [-length * d for d in direction]
        return line_search(
            weights,
            loss,
            change,
            loss_and_kl,
            max_kl=max_kl,
            ratio=self.backtrack_ratio,
            tries=self.max_backtracks,
            min_gain=-self.min_gain_ratio * _dot(gradient, change),
        )


def conjugate_gradient(
    product: Product, b: Tensors, *, iterations: int, residual_tolerance: float = 1e-10
) -> tuple[Tensors, Tensors]:
    """Solves ``A x = b`` for a positive definite matrix that is given by its products.

    Args:
        product: Maps ``v`` to ``A v``, lists of tensors of the shapes of ``b``.
        b: The right-hand side.
        iterations: The most to take.
        residual_tolerance: Stops when the squared norm of ``A x - b`` falls below.

    Returns:
        ``x``, and ``A x`` as the iteration knows it: ``b`` minus the residual.

    Source: Hestenes and Stiefel 1952.

    Example:
        >>> double = lambda v: [2.0 * v[0]]
        >>> (x,), (ax,) = conjugate_gradient(double, [tf.constant([2.0, 4.0])], iterations=2)
        >>> x.numpy().tolist(), ax.numpy().tolist()
        ([1.0, 2.0], [2.0, 4.0])
    """

    def unfinished(i: tf.Tensor, x: Tensors, r: Tensors, p: Tensors, rr: tf.Tensor) -> tf.Tensor:
        return (i < iterations) & (rr >= residual_tolerance)

    def improve(i: tf.Tensor, x: Tensors, r: Tensors, p: Tensors, rr: tf.Tensor) -> tuple:
        ap = product(p)
        step = rr / _dot(p, ap)
        r = _add(r, ap, -step)
        next_rr = _dot(r, r)
        return i + 1, _add(x, p, step), r, _add(r, p, next_rr / rr), next_rr

    zero = [tf.zeros_like(value) for value in b]
    start = (tf.constant(0), zero, list(b), list(b), _dot(b, b))
    _, x, residual, *_ = tf.while_loop(unfinished, improve, start, maximum_iterations=iterations)
    return x, _add(b, residual, -1.0)


def line_search(
    weights: Tensors,
    loss: tf.Tensor,
    change: Tensors,
    loss_and_kl: Callable[[Tensors], tuple[tf.Tensor, tf.Tensor]],
    *,
    max_kl: float | tf.Tensor,
    ratio: float,
    tries: int,
    min_gain: float | tf.Tensor = 0.0,
) -> Step:
    """Shortens a step until the loss improves and the divergence keeps within its limit.

    Args:
        weights: Where the step starts.
        loss: The loss there.
        change: The whole step.
        loss_and_kl: The loss and the mean KL divergence at other weights.
        max_kl: The limit.
        ratio: The factor of each shortening.
        tries: How many lengths to try.
        min_gain: By how much more than nothing the whole step must improve the loss; a shortened
            one by as much less.

    Returns:
        The first good step; no step if there is none.
    """
    # Weights that are not finite would be "no worse" in no comparison: they are never accepted.

    def unfinished(i: tf.Tensor, found: tf.Tensor, *_: Any) -> tf.Tensor:
        return (i < tries) & ~found

    def shorten(i: tf.Tensor, found: tf.Tensor, *_: Any) -> tuple:
        length = tf.cast(ratio, loss.dtype) ** tf.cast(i, loss.dtype)
        candidate = _add(weights, change, length)
        new_loss, kl = loss_and_kl(candidate)
        good = (new_loss < loss - length * min_gain) & (kl <= max_kl)
        return i + 1, good, candidate, new_loss, kl

    start = (tf.constant(0), tf.constant(False), list(weights), loss, tf.zeros_like(loss))
    tried, found, candidate, new_loss, kl = tf.while_loop(
        unfinished, shorten, start, maximum_iterations=tries
    )
    keep = lambda new, old: tf.where(found, new, old)  # noqa: E731
    return Step(
        [keep(new, old) for new, old in zip(candidate, weights, strict=True)],
        keep(new_loss, loss),
        keep(kl, tf.zeros_like(kl)),
        found,
        tried - tf.cast(found, tf.int32),
    )


def kl_hessian_product(
    outputs: Callable[[Tensors], Any],
    divergence: Callable[[Any, Any], tf.Tensor],
    weights: Tensors,
    vector: Tensors,
    forward_mode: bool = True,
) -> Tensors:
    """Multiplies the Hessian of a KL divergence, where the divergence is zero, with a vector.

    Args:
        outputs: From weights to distribution parameters, a nest of tensors.
        divergence: From the parameters of the old and of the new policy to a scalar.
        weights: Where to take the Hessian, of ``divergence(outputs(weights), outputs(x))`` with
            respect to ``x``.
        vector: Of the shapes of the weights.
        forward_mode: Whether the outputs can be differentiated in forward mode. If not, the
            gradient of a gradient does the same, slower.

    Returns:
        The product, of the shapes of the weights.

    Example:
        >>> square = lambda old, new: tf.reduce_sum((new - old) ** 2)  # Hessian 2
        >>> triple = lambda weights: 3.0 * weights[0]
        >>> x = [tf.constant(1.0)]
        >>> float(kl_hessian_product(triple, square, x, x)[0])
        18.0
    """
    push = _push if forward_mode else _push_by_gradients
    with tf.GradientTape(watch_accessed_variables=False, persistent=True) as tape:
        tape.watch(weights)
        nest, pushed = push(outputs, weights, vector, tape)
        new = tf.nest.flatten(nest)
    old = [tf.stop_gradient(value) for value in new]
    here = [tf.identity(value) for value in old]
    with tf.autodiff.ForwardAccumulator(here, pushed) as forward:
        with tf.GradientTape(watch_accessed_variables=False) as inner:
            inner.watch(here)
            value = divergence(*(tf.nest.pack_sequence_as(nest, values) for values in (old, here)))
        slope = inner.gradient(value, here, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        pulled = [_tangent(forward, value) for value in slope]
    products = tape.gradient(
        new, weights, output_gradients=pulled, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    return [tf.convert_to_tensor(product) for product in products]


def _push(
    outputs: Callable[[Tensors], Any], weights: Tensors, vector: Tensors, tape: tf.GradientTape
) -> tuple[Any, Tensors]:
    """Returns the outputs, and their Jacobian times a vector."""
    del tape
    with tf.autodiff.ForwardAccumulator(weights, vector) as forward:
        nest = outputs(weights)
        return nest, [_tangent(forward, value) for value in tf.nest.flatten(nest)]


def _push_by_gradients(
    outputs: Callable[[Tensors], Any], weights: Tensors, vector: Tensors, tape: tf.GradientTape
) -> tuple[Any, Tensors]:
    """The same: J'u is linear in u, and the gradient of (J'u)'v with respect to u is J v."""
    nest = outputs(weights)
    new = tf.nest.flatten(nest)
    zero = tf.UnconnectedGradients.ZERO
    with tf.GradientTape(watch_accessed_variables=False) as outer, tape.stop_recording():
        factors = [tf.zeros_like(value) for value in new]
        outer.watch(factors)
        pulled = tape.gradient(new, weights, factors, unconnected_gradients=zero)
    return nest, outer.gradient(pulled, factors, vector, unconnected_gradients=zero)


def _tangent(forward: tf.autodiff.ForwardAccumulator, value: tf.Tensor) -> tf.Tensor:
    return forward.jvp(value, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def _dot(a: Tensors, b: Tensors) -> tf.Tensor:
    return tf.add_n([tf.reduce_sum(x * y) for x, y in zip(a, b, strict=True)])


def _add(a: Tensors, b: Tensors, factor: float | tf.Tensor) -> Tensors:
    return [x + tf.cast(factor, y.dtype) * y for x, y in zip(a, b, strict=True)]
