"""What a meta-gradient is: how an adapted task says where the next meta-step should go."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_maml.algorithm.inner_loop import InnerLoop, Parameters, Task
from keras_maml.algorithm.update_rule import UpdateRule
from keras_maml.execution.functional import Tensors
from keras_maml.execution.tasks import Run


class MetaGradient:
    """The base of meta-gradients: settings, and how they are saved.

    A meta-gradient of one's own defines `of_task`, which sees one task at a time.

    Attributes:
        first_order: Whether the inner gradients are constants.
        regularization: lambda of a term lambda / 2 ||theta' - theta||^2 that holds the fast weights
            theta' to where they begin, part of the inner loss wherever a learner adapts.
        needs_query: Whether it has a use for query sets.
    """

    first_order = False
    regularization = 0.0
    needs_query = True

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute; a setting once, since compiled steps have taken its value."""
        if name in vars(self) and name in self.get_config():
            raise AttributeError(
                f"{name} is a setting of the meta-gradient, and these do not change: give the "
                f"learner another {type(self).__name__}."
            )
        super().__setattr__(name, value)

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
        step_weights: tf.Tensor | None = None,
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
            step_weights: What the loss after each step counts, ``[steps]``; None where only that
                after the last step does. See `keras_maml.query_losses`.

        Returns:
            For each task, with a leading task axis: the outcome before adaptation, or an empty
            tuple if that is not measured; the outcome after adaptation; the gradients
            of its loss by ``parameters.trained`` (as `linear.pack_gradient` writes them, or as
            they are), and the state after the last step.
        """
        inner = InnerLoop(rule, steps, self.first_order)

        def one(element: Any) -> tuple[Any, Any, Tensors, Any]:
            state, episode = element
            before = ()
            if measure_before:
                before = make_task(*episode).outcome(parameters, inner.begin(parameters, state))

            def fresh() -> Task:
                return make_task(*episode)

            return before, *self.of_task(run, inner, fresh, parameters, state, step_weights)

        return run.map(one, (states, episodes))

    def of_task(
        self,
        run: Run,
        inner: InnerLoop,
        make_task: Callable[[], Task],
        parameters: Parameters,
        state: Any,
        step_weights: tf.Tensor | None,
    ) -> tuple[Any, Tensors, Any]:
        """Adapts to one task and differentiates its outcome.

        Args:
            run: How the tasks run.
            inner: The inner loop.
            make_task: Makes the task. A task remembers what layers have computed: each tape whose
                gradients go beyond the fast weights needs one of its own, made under it.
            parameters: Where it begins.
            state: The task's first state.
            step_weights: See `__call__`.

        Returns:
            The outcome after adaptation, the gradients by ``parameters.trained``, and the state
            after the last step.
        """
        raise NotImplementedError(f"{type(self).__name__} must define of_task.")

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "MetaGradient":
        """Makes the object from `get_config`."""
        return cls(**config)

    def _refuse(
        self, parameters: Parameters, step_weights: tf.Tensor | None, *, shared: bool
    ) -> None:
        """Raises ValueError for parts that this meta-gradient gives no gradient to."""
        name = type(self).__name__
        if parameters.rule:
            raise ValueError(
                f"The meta-gradient {name} has no gradient for what an update rule learns: give "
                "the learner an update rule without variables, such as GradientDescent or Adam."
            )
        if parameters.shared and not shared:
            raise ValueError(
                f"The meta-gradient {name} has no gradient for layers that are not adapted: adapt "
                "all layers, or give the others trainable=False."
            )
        if step_weights is not None:
            raise ValueError(
                f'The meta-gradient {name} measures the last step only: give query_loss="last".'
            )
