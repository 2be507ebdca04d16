"""The gradient through the inner steps, and its first-order approximation."""

from typing import Any

import keras

from keras_maml.algorithm.inner_loop import InnerLoop, loss_gradients
from keras_maml.algorithm.meta_gradient import MetaGradient
from keras_maml.algorithm.rematerialization import rematerialized
from keras_maml.execution.functional import Tensors
from keras_maml.execution.linear import pack_gradient


@keras.saving.register_keras_serializable("keras_maml")
class Exact(MetaGradient):
    """The gradient through the inner steps, second derivatives included.

        d L_query(theta_S) / d theta,    theta_S the weights after S inner steps from theta.

    Args:
        rematerialize: Whether to compute the inner steps again for the meta-gradient instead of
            keeping them: the memory of one step for any number of steps. See
            `rematerialization`.

    Source: Finn, Abbeel, Levine, Model-Agnostic Meta-Learning, ICML 2017, section 2.2.
    """

    def __init__(self, rematerialize: bool = False) -> None:
        if rematerialize not in (False, True):
            raise ValueError(f"rematerialize must be one of (False, True), got {rematerialize!r}.")
        self.rematerialize = bool(rematerialize)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {"rematerialize": self.rematerialize}

    def __call__(
        self,
        run,
        make_task,
        rule,
        steps,
        parameters,
        states,
        episodes,
        *,
        measure_before,
        step_weights=None,
    ):
        """Adapts to each task and differentiates its outcome; see `MetaGradient`."""
        if not self.rematerialize:
            how = {"measure_before": measure_before, "step_weights": step_weights}
            return super().__call__(
                run, make_task, rule, steps, parameters, states, episodes, **how
            )
        inner = InnerLoop(rule, steps, self.first_order)

        def before_of(element: Any) -> Any:
            state, episode = element
            if not measure_before:
                return ()
            return make_task(*episode).outcome(parameters, inner.begin(parameters, state))

        before = run.map(before_of, (states, episodes))
        return before, *rematerialized(
            run, make_task, inner, parameters, states, episodes, step_weights
        )

    def of_task(self, run, inner, make_task, parameters, state, step_weights):
        """Adapts to one task and differentiates its outcome; see `MetaGradient`."""

        def adapted_loss(trained: Tensors) -> tuple[Any, Any]:
            begun = parameters.with_trained(trained)
            carry, outcome = inner.adapt_and_measure(make_task(), begun, state, step_weights)
            return outcome.loss, (outcome, carry.state)

        scale = getattr(make_task(), "meta_loss_scale", None)
        _, (outcome, after), gradients = loss_gradients(adapted_loss, parameters.trained, scale)
        if run.route == "compiled":
            gradients = [*map(pack_gradient, gradients)]
        return outcome, gradients, after


@keras.saving.register_keras_serializable("keras_maml")
class FirstOrder(Exact):
    """The gradient at the adapted weights, as if the inner gradients were constants.

    Cheaper, approximate. What an update rule learns still gets its gradient.

    Args:
        rematerialize: See `Exact`.

    Source: Finn, Abbeel, Levine, Model-Agnostic Meta-Learning, ICML 2017, section 5.2.
    """

    first_order = True
