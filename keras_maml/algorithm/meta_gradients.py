"""Meta-gradients: how the outcome after adaptation is differentiated by what a meta-step trains.

Source: Finn, Abbeel, Levine, Model-Agnostic Meta-Learning, ICML 2017, sections 2.2 and 5.2.
"""

from collections.abc import Callable
from typing import Any

import keras

from keras_maml.algorithm.inner_loop import InnerLoop, Parameters, Task, loss_gradients
from keras_maml.algorithm.rematerialization import rematerialized
from keras_maml.algorithm.update_rules import UpdateRule
from keras_maml.execution.functional import Tensors
from keras_maml.execution.linear import pack_gradient
from keras_maml.execution.tasks import Run


class MetaGradient:
    """The base of meta-gradients: settings, and how they are saved."""

    first_order = False

    def __call__(
        self,
        run: Run,
        make_task: Callable[[Any, Any], Task],
        rule: UpdateRule,
        steps: int,
        parameters: Parameters,
        states: Any,
        episodes: Any,
        *,
        measure_before: bool,
    ) -> tuple[Any, Any, Tensors, Any]:
        """Adapts to each task and differentiates its outcome.

        Args:
            run: How the tasks run.
            make_task: Makes a task of a support and a query set.
            rule: The update rule.
            steps: The number of inner steps.
            parameters: Where all tasks begin.
            states: The state of each task, ``[tasks, ...]``.
            episodes: The support and query sets, ``[tasks, ...]``.
            measure_before: Whether to measure the initialisation, too.

        Returns:
            For each task, with a leading task axis: the outcome before adaptation, or an empty
            tuple if that is not measured; the outcome after adaptation; the gradients
            of its loss by ``parameters.trained`` (as `linear.pack_gradient` writes them, or as
            they are), and the state after the last step.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__.")

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "MetaGradient":
        """Makes the object from `get_config`."""
        return cls(**config)


@keras.saving.register_keras_serializable("keras_maml")
class Exact(MetaGradient):
    """The gradient through the inner steps, second derivatives included (paper, section 2.2).

    Args:
        rematerialize: Whether to compute the inner steps again for the meta-gradient instead of
            keeping them: the memory of one step for any number of steps. See
            `rematerialization`.
    """

    def __init__(self, rematerialize: bool = False) -> None:
        if rematerialize not in (False, True):
            raise ValueError(f"rematerialize must be one of (False, True), got {rematerialize!r}.")
        self.rematerialize = bool(rematerialize)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {"rematerialize": self.rematerialize}

    def __call__(
        self, run, make_task, rule, steps, parameters, states, episodes, *, measure_before
    ):
        """Adapts to each task and differentiates its outcome; see `MetaGradient`."""
        inner = InnerLoop(rule, steps, self.first_order)

        def before_of(element: Any) -> Any:
            state, episode = element
            if not measure_before:
                return ()
            return make_task(*episode).outcome(parameters, inner.begin(parameters, state))

        if self.rematerialize:
            before = run.map(before_of, (states, episodes))
            return before, *rematerialized(run, make_task, inner, parameters, states, episodes)

        def one(element: Any) -> tuple[Any, Any, Tensors, Any]:
            state, episode = element
            task = make_task(*episode)
            before = before_of(element)

            def adapted_loss(trained: Tensors) -> tuple[Any, Any]:
                begun = parameters.with_trained(trained)
                carry = inner.adapt(task, begun, state)
                outcome = task.outcome(begun, carry)
                return outcome.loss, (outcome, carry.state)

            _, (outcome, after), gradients = loss_gradients(adapted_loss, parameters.trained)
            if run.route == "compiled":
                gradients = [*map(pack_gradient, gradients)]
            return before, outcome, gradients, after

        return run.map(one, (states, episodes))


@keras.saving.register_keras_serializable("keras_maml")
class FirstOrder(Exact):
    """The gradient at the adapted weights, as if the inner gradients were constants.

    Cheaper, approximate (paper, section 5.2). What an update rule learns still gets its gradient.

    Args:
        rematerialize: See `Exact`.
    """

    first_order = True


def get(identifier: Any) -> MetaGradient:
    """Returns the meta-gradient that a name, a config or an object stands for.

    Args:
        identifier: ``"exact"``, ``"first_order"``, a config, or a `MetaGradient`.

    Raises:
        ValueError: It is none of these.

    Example:
        >>> type(get("first_order")).__name__
        'FirstOrder'
    """
    if isinstance(identifier, dict):
        identifier = keras.saving.deserialize_keras_object(identifier)
    if isinstance(identifier, str) and identifier in NAMES:
        return NAMES[identifier]()
    if not isinstance(identifier, MetaGradient):
        raise ValueError(
            f"meta_gradient must be one of {tuple(NAMES)} or an object of "
            f"keras_maml.meta_gradients, got {identifier!r}."
        )
    return identifier


NAMES = {"exact": Exact, "first_order": FirstOrder}
