"""iMAML: the gradient of a solution does not depend on the way there."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_maml import validation
from keras_maml.algorithm.meta_gradient import MetaGradient
from keras_maml.execution.functional import Tensors


@keras.saving.register_keras_serializable("keras_maml")
class Implicit(MetaGradient):
    """The gradient of a proximal inner problem's solution (iMAML).

    The inner loop, in training and wherever else the learner adapts, minimises

        L_support(theta') + lambda / 2 ||theta' - theta||^2,

    and the meta-gradient g solves, by conjugate gradients with products with the Hessian H of
    L_support at theta',

        (I + H / lambda) g = grad L_query(theta').

    Layers that are not adapted, with weights phi, get the gradient of the solution, too:
    d L_query / d phi - (1 / lambda) d (g . grad L_support) / d phi. No derivative goes through the
    inner steps, so memory does not grow with them. The gradient is exact where the inner loop has
    converged, the conjugate gradients have, and there is no damping.

    Args:
        regularization: lambda, above 0. The smaller, the more inner steps are needed.
        conjugate_gradient_steps: How many steps to solve for g in.
        damping: Is added to the identity, at least 0. The authors' code adds 1, and 10 to lambda in
            this equation.

    Raises:
        ValueError: A setting is out of range.

    Source: Rajeswaran, Finn, Kakade, Levine, Meta-Learning with Implicit Gradients, NeurIPS 2019,
    equation 4 for the inner problem. (The authors' code takes plain steps and one of the proximal
    term alone at the end.)

    Example:
        >>> Implicit(regularization=2.0).get_config()["conjugate_gradient_steps"]
        5
    """

    def __init__(
        self,
        regularization: float = 1.0,
        conjugate_gradient_steps: int = 5,
        damping: float = 1.0,
    ) -> None:
        validation.check_positive("regularization", regularization)
        validation.check_count("conjugate_gradient_steps", conjugate_gradient_steps, minimum=1)
        at_least_0 = "a finite number of at least 0"
        validation.check_number("damping", damping, lambda number: number >= 0, at_least_0)
        self.regularization = regularization
        self.conjugate_gradient_steps = int(conjugate_gradient_steps)
        self.damping = damping

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        names = ("regularization", "conjugate_gradient_steps", "damping")
        return {name: getattr(self, name) for name in names}

    def of_task(self, run, inner, make_task, parameters, state, step_weights):
        """Adapts to one task and solves for its gradient; see `MetaGradient`."""
        self._refuse(parameters, step_weights, shared=True)
        zero = {"unconnected_gradients": tf.UnconnectedGradients.ZERO}
        carry = inner.adapt(make_task(), parameters, state)
        watched = [*carry.fast, *parameters.shared]
        count = len(carry.fast)

        with tf.GradientTape(watch_accessed_variables=False) as outer:
            outer.watch(watched)
            outcome = make_task().outcome(parameters, carry)
        gradients = outer.gradient(outcome.loss, watched, **zero)

        with tf.GradientTape(watch_accessed_variables=False, persistent=True) as second:
            second.watch(watched)
            with tf.GradientTape(watch_accessed_variables=False) as first:
                first.watch(carry.fast)
                loss, _ = make_task().inner_loss(parameters, carry, inner.steps)
            slope = first.gradient(loss, carry.fast, **zero)

        def times(vector: Tensors) -> Tensors:
            # The inner loss has the proximal term: its Hessian is H + lambda I.
            products = second.gradient(slope, carry.fast, vector, **zero)
            pairs = zip(products, vector, strict=True)
            return [product / self.regularization + self.damping * v for product, v in pairs]

        solution = conjugate_gradients(times, gradients[:count], self.conjugate_gradient_steps)
        mixed = second.gradient(slope, parameters.shared, solution, **zero)
        pairs = zip(gradients[count:], mixed, strict=True)
        return (
            outcome,
            [*solution, *(direct - one / self.regularization for direct, one in pairs)],
            carry.state,
        )


def conjugate_gradients(times: Callable[[Tensors], Tensors], right: Tensors, steps: int) -> Tensors:
    """Solves A x = b for a symmetric, positive definite A.

    Args:
        times: Multiplies a vector, given as a list of tensors, by A.
        right: b, likewise.
        steps: How many steps; as many as dimensions solve it exactly.

    Returns:
        x.

    Source: Hestenes, Stiefel, Methods of conjugate gradients for solving linear systems, 1952.

    Example:
        >>> solve = conjugate_gradients(lambda x: [2 * x[0]], [tf.constant([4.0, 6.0])], 1)
        >>> solve[0].numpy().tolist()
        [2.0, 3.0]
    """

    def dot(a: Tensors, b: Tensors) -> tf.Tensor:
        return tf.add_n([tf.reduce_sum(x * y) for x, y in zip(a, b, strict=True)])

    def shifted(a: Tensors, rate: tf.Tensor, b: Tensors) -> Tensors:
        return [x + rate * y for x, y in zip(a, b, strict=True)]

    solution = [tf.zeros_like(b) for b in right]
    residual = direction = right
    square = dot(residual, residual)
    for _ in range(steps):
        product = times(direction)
        # 0 / 0 once it is solved: then nothing moves any more.
        rate = tf.math.divide_no_nan(square, dot(direction, product))
        solution = shifted(solution, rate, direction)
        residual = shifted(residual, -rate, product)
        last, square = square, dot(residual, residual)
        direction = shifted(residual, tf.math.divide_no_nan(square, last), direction)
    return solution
