"""The same meta-gradient without keeping the inner steps.

Differentiating through n inner steps at once keeps the activations of all of them. Here only what
each step begins with is kept, and the gradient is pulled back from the last step to the first,
each step being computed again for it:

    g <- (d step_s(theta_s) / d theta_s)^T g,    for gradient descent  g <- g - alpha H(theta_s) g.

Memory beyond one step grows by the fast weights alone, compile time not at all: both loops are
one compiled step each. The price is that each step's gradient is computed twice (docs/speed.md).

Source: Finn, Abbeel, Levine, ICML 2017, section 2.2, for the gradient; Griewank and Walther,
Evaluating Derivatives, 2008, chapter 12, for the trade.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_maml.algorithm.inner_loop import Carry, InnerLoop, Parameters, Task, unscaled
from keras_maml.execution.functional import Tensors
from keras_maml.execution.task_map import count_tasks
from keras_maml.execution.tasks import Run

MakeTask = Callable[[Any, Any], Task]


def rematerialized(
    run: Run,
    make_task: MakeTask,
    inner: InnerLoop,
    parameters: Parameters,
    states: Any,
    episodes: Any,
    step_weights: tf.Tensor | None = None,
) -> tuple[Any, Tensors, Any]:
    """Differentiates every task's outcome after adaptation, one step at a time.

    Arguments and results are those of `keras_maml.meta_gradients.MetaGradient`, with the inner
    loop in the place of rule and steps.
    """
    every_step = step_weights is not None and inner.steps > 0
    tasks = count_tasks(episodes)
    scale = getattr(make_task(*episodes), "meta_loss_scale", None)  # of all tasks alike

    def from_loss(loss: tf.Tensor) -> tf.Tensor:
        return tf.ones_like(loss) * tf.cast(1 if scale is None else scale, loss.dtype)

    begun = inner.begin(parameters)
    of_task = tf.nest.map_structure(lambda t: tf.repeat(t[None], tasks, 0), begun)
    first = of_task._replace(state=states)
    kept = [_array(inner.steps, value) for value in tf.nest.flatten(first)]

    def adapt(step: tf.Tensor, carry: Carry, kept: list) -> tuple:
        values = tf.nest.flatten(carry)
        kept = [array.write(step, value) for array, value in zip(kept, values, strict=True)]

        def one(element: Any) -> Carry:
            carry, episode = element
            return inner.step(make_task(*episode), parameters, carry, step)

        return step + 1, run.map(one, (carry, episodes)), kept

    _, last, kept = tf.while_loop(
        lambda step, *_: step < inner.steps, adapt, (tf.constant(0), first, kept)
    )

    def measure(element: Any) -> tuple[Any, Tensors, Tensors]:
        carry, episode = element
        weight = step_weights[-1] if every_step else None
        pull, outcome = _differentiable(
            lambda parameters, carry: _outcome(make_task(*episode), parameters, carry, weight),
            parameters,
            carry,
        )
        return outcome, *pull([outcome.loss], [from_loss(outcome.loss)])

    outcome, gradients, constants = run.map(measure, (last, episodes))
    # What counts of the loss before each step: that before the first one never does.
    weights_before = tf.concat([[0], step_weights[:-1]], 0) if every_step else None

    def back(step: tf.Tensor, loss: tf.Tensor, gradients: Tensors, constants: Tensors) -> tuple:
        values = [array.read(step) for array in kept]
        carries = tf.nest.pack_sequence_as(first, values)

        def one(element: Any) -> tuple[Tensors, Tensors, Tensors]:
            carry, episode, gradients = element

            def function(parameters: Parameters, carry: Carry) -> tuple[Carry, Tensors]:
                task = make_task(*episode)
                losses = []
                if every_step:
                    weight = weights_before[step]
                    losses = [_outcome(task, parameters, carry, weight).loss]
                return inner.step(task, parameters, carry, step), losses

            pull, (after, losses) = _differentiable(function, parameters, carry)
            pulled = pull([*_moving(after), *losses], [*gradients, *map(from_loss, losses)])
            return losses, *pulled

        losses, gradients, more = run.map(one, (carries, episodes, gradients))
        loss = tf.add_n([loss, *losses])
        return step - 1, loss, gradients, [a + b for a, b in zip(constants, more, strict=True)]

    begun = tf.constant(inner.steps - 1), outcome.loss, gradients, constants
    _, loss, gradients, constants = tf.while_loop(lambda step, *_: step >= 0, back, begun)
    outcome = outcome._replace(loss=loss)
    gradients = _from_the_start(run, inner, parameters, gradients, constants)
    return outcome, unscaled(gradients, scale), last.state


def _from_the_start(
    run: Run, inner: InnerLoop, parameters: Parameters, gradients: Tensors, constants: Tensors
) -> Tensors:
    """Pulls the gradients of the first carry back to the parameters, through the first slots."""
    fast = gradients[: len(parameters.initial)]
    if len(gradients) == len(fast):
        return [*fast, *constants]

    def one(gradients: Tensors) -> Tensors:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(parameters.trained)
            moving = _moving(inner.begin(parameters))
        return _gradient(tape, moving, parameters.trained, gradients)

    pulled = run.map(one, gradients)
    initial, others = pulled[: len(fast)], pulled[len(fast) :]
    return [*initial, *(a + b for a, b in zip(constants, others, strict=True))]


def _outcome(task: Task, parameters: Parameters, carry: Carry, weight: tf.Tensor | None) -> Any:
    """Returns the outcome of fast weights, with a weight on its loss."""
    outcome = task.outcome(parameters, carry)
    if weight is None:
        return outcome
    return outcome._replace(loss=outcome.loss * tf.cast(weight, outcome.loss.dtype))


def _differentiable(
    function: Callable[[Parameters, Carry], Any], parameters: Parameters, carry: Carry
) -> tuple[Callable, Any]:
    """Calls a function of parameters and a carry, and returns how to pull gradients back.

    Returns:
        ``pull(results, gradients)``, which gives the gradients of what moves in the carry and of
        the parameters that stay the same in all steps; and what the function returned.
    """
    moving = _moving(carry)
    constants = [*parameters.shared, *parameters.rule]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([*moving, *constants])
        results = function(parameters, carry)

    def pull(results: Tensors, gradients: Tensors | None) -> tuple[Tensors, Tensors]:
        pulled = _gradient(tape, results, [*moving, *constants], gradients)
        return pulled[: len(moving)], pulled[len(moving) :]

    return pull, results


def _moving(carry: Carry) -> Tensors:
    """Returns what a gradient flows through from step to step: fast weights, and slots."""
    return [*carry.fast, *(slot for slot in tf.nest.flatten(carry.slots) if slot.dtype.is_floating)]


def _gradient(
    tape: tf.GradientTape, targets: Tensors, sources: Tensors, gradients: Tensors | None
) -> Tensors:
    zero = tf.UnconnectedGradients.ZERO
    pulled = tape.gradient(targets, sources, gradients, unconnected_gradients=zero)
    return [tf.convert_to_tensor(gradient) for gradient in pulled]


def _array(size: int, value: tf.Tensor) -> tf.TensorArray:
    return tf.TensorArray(value.dtype, size=size, element_shape=value.shape, clear_after_read=False)
