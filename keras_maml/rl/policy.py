"""Policies: a Keras model from observations to the parameters of a distribution over actions."""

import contextlib
import math
import operator
import os
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from tf_agents.policies import policy_saver, tf_policy
from tf_agents.trajectories import policy_step, time_step

from keras_maml import validation
from keras_maml.execution.forms import Route
from keras_maml.execution.functional import (
    Tensors,
    as_tensors,
    forward,
    state_variables,
    task_states,
)
from keras_maml.execution.tasks import Run, Tasks
from keras_maml.files import whole_folder
from keras_maml.rl import distributions
from keras_maml.rl.distributions import DistributionFunction, categorical, diagonal_gaussian

__all__ = [
    "DistributionFunction",
    "TaskPolicy",
    "categorical",
    "diagonal_gaussian",
    "gaussian_policy",
    "model_outputs",
    "seed_words",
]


def gaussian_policy(
    observation_size: int,
    action_size: int,
    units: Sequence[int] = (100, 100),
    *,
    activation: str = "relu",
    initial_std: float = 1.0,
    min_std: float = 1e-6,
    seed: int | None = None,
) -> keras.Model:
    """Returns the paper's policy: a mean from a multi-layer perceptron, a free deviation.

    Args:
        observation_size: Entries of an observation.
        action_size: Entries of an action.
        units: Widths of the hidden layers.
        activation: Of the hidden layers.
        initial_std: Standard deviation of every action at first. Its logarithm is a weight that
            does not depend on the observation, and is adapted like the others.
        min_std: Smaller deviations count as this.
        seed: Seeds the initial weights (Glorot uniform; biases are zero).

    Returns:
        A model from ``[batch, observation_size]`` to ``{"mean": [batch, action_size], "log_std":
        [batch, action_size]}``, what `diagonal_gaussian` takes.

    Raises:
        ValueError: A size is not positive, or the deviations are not 0 < min_std <= initial_std.

    Source: Finn et al. 2017, section 5.3 and appendix A.2.

    Example:
        >>> model = gaussian_policy(20, 6)
        >>> model.count_params(), sorted(model(tf.zeros([3, 20])))
        (12812, ['log_std', 'mean'])
    """
    for name, size in (("observation_size", observation_size), ("action_size", action_size)):
        validation.check_count(name, size, minimum=1)
    validation.check_positive("min_std", min_std)
    validation.check_number(
        "initial_std", initial_std, lambda std: std >= min_std, f"at least min_std, {min_std!r}"
    )

    def dense(index: int, width: int, activation: str | None) -> keras.layers.Layer:
        own_seed = None if seed is None else 1000 * seed + index
        return keras.layers.Dense(
            width, activation, kernel_initializer=keras.initializers.GlorotUniform(own_seed)
        )

    x = inputs = keras.Input((observation_size,))
    for index, width in enumerate(units):
        x = dense(index, width, activation)(x)
    mean = dense(len(units), action_size, None)(x)
    log_std = StateIndependent(math.log(initial_std), math.log(min_std), name="log_std")(mean)
    return keras.Model(inputs, {"mean": mean, "log_std": log_std}, name="gaussian_policy")


@keras.saving.register_keras_serializable("keras_maml")
class StateIndependent(keras.layers.Layer):
    """A trained vector, the same for every input, of the size of the input's last axis.

    Args:
        initial: Every entry at first.
        minimum: Smaller entries count as this.
        **kwargs: Of `keras.layers.Layer`.
    """

    def __init__(self, initial: float = 0.0, minimum: float = -math.inf, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.initial, self.minimum = initial, minimum

    def build(self, input_shape: tuple) -> None:
        """Makes the vector."""
        self.vector = self.add_weight(
            shape=(input_shape[-1],), initializer=keras.initializers.Constant(self.initial)
        )

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns ``[batch, size]``."""
        vector = keras.ops.maximum(self.vector, self.minimum)
        return keras.ops.broadcast_to(vector, keras.ops.shape(inputs))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the layer."""
        return super().get_config() | {"initial": self.initial, "minimum": self.minimum}


class TaskPolicy(tf_policy.TFPolicy):
    """A policy for a batch of environments in which each task has weights of its own.

    The environments of a task stand side by side: of a batch of ``B``, the first ``B / tasks``
    act with the weights of task 0, and so on. Actions are drawn from a stream of random numbers
    that `seed_actions` sets, so that the same seed gives the same actions.

    Args:
        time_step_spec: TF-Agents' spec of the environment's time steps.
        action_spec: TF-Agents' spec of the actions.
        model: A built model from observations to distribution parameters. Its weights are copied.
        tasks: The number of tasks.
        distribution: From the model's outputs to a distribution over actions, or a nest of them
            like the actions, see `keras_maml.rl.distributions`.
        greedy: Whether to take the mode of the distribution instead of a draw.
        adapted: Those trainable variables of the model of which each task has its own; by default
            all of them.
        shard: ``(worker, workers)``: these environments are one of so many equal parts of a larger
            batch, and are given the actions that they would have there.

    Attributes:
        fast_weights: A variable ``[tasks, ...]`` per adapted variable of the model.
        shared_weights: A variable per other weight of the model, the same for all tasks.

    Example:
        >>> from tf_agents.specs import BoundedTensorSpec
        >>> observation = tf.TensorSpec([3], tf.float32)
        >>> policy = TaskPolicy(
        ...     time_step.time_step_spec(observation),
        ...     BoundedTensorSpec([2], tf.float32, -1, 1),
        ...     gaussian_policy(3, 2),
        ...     tasks=2,
        ... )
        >>> policy.action(time_step.restart(tf.zeros([8, 3]), batch_size=8)).action.shape
        TensorShape([8, 2])
    """

    def __init__(
        self,
        time_step_spec: time_step.TimeStep,
        action_spec: Any,
        model: keras.Model,
        *,
        tasks: int = 1,
        distribution: DistributionFunction = diagonal_gaussian,
        greedy: bool = False,
        adapted: Sequence[keras.Variable] | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        # The environment clips actions; a clipped action has another probability than it.
        super().__init__(time_step_spec, action_spec, clip=False, name="task_policy")
        self.tasks = tasks
        self.shard = shard
        adapted = model.trainable_variables if adapted is None else adapted
        state = state_variables(model)
        own = {id(variable) for variable in (*adapted, *state)}
        # Hidden from tf.Module, which would save the model's own variables a second time.
        self._outputs = _Outputs(
            model, adapted, [v for v in model.variables if id(v) not in own], state
        )
        self.fast_weights = [
            tf.Variable(tf.repeat(value[None], tasks, axis=0), trainable=False)
            for value in as_tensors(list(adapted))
        ]
        self.shared_weights = [
            tf.Variable(value, trainable=False) for value in as_tensors(self._outputs.shared)
        ]
        self._states = [tf.Variable(v, trainable=False) for v in self._model_states()]
        self._distribution_of = distribution
        self._greedy = greedy
        self._stream = tf.Variable([0, 0], dtype=tf.int32, trainable=False)
        self._drawn = tf.Variable(0, dtype=tf.int32, trainable=False)

    def assign(self, weights: Tensors) -> None:
        """Sets the weights of every task.

        Args:
            weights: One ``[tasks, ...]`` per adapted variable of the model, or without the
                task axis: the same for all tasks.
        """
        for variable, value in zip(self.fast_weights, weights, strict=True):
            variable.assign(tf.broadcast_to(value, variable.shape))

    def assign_model(self) -> None:
        """Sets the weights of every task, and its batch statistics, to those that the model has."""
        self.assign(as_tensors(self._outputs.adapted))
        values = [*self._outputs.shared, *self._model_states()]
        for variable, value in zip([*self.shared_weights, *self._states], values, strict=True):
            variable.assign(value)

    def assign_task(self, policy: "TaskPolicy", task: int) -> None:
        """Lets every task act as one does in another policy of the same model.

        Args:
            policy: The other policy.
            task: The number of the task in it.
        """
        own, theirs = ([*p.fast_weights, *p._states] for p in (self, policy))
        for variable, value in zip(own, theirs, strict=True):
            variable.assign(tf.broadcast_to(value[task], variable.shape))
        for variable, value in zip(self.shared_weights, policy.shared_weights, strict=True):
            variable.assign(value)

    def seed_actions(self, *numbers: int) -> None:
        """Restarts the random numbers of the actions.

        Args:
            *numbers: Integers from 0, such as a seed, an iteration and a stage; each sequence has
                its own stream.
        """
        self._stream.assign(seed_words(numbers).view(np.int32))
        self._drawn.assign(0)

    def save(self, folder: str | os.PathLike, overwrite: bool = False) -> None:
        """Saves the policy as a SavedModel, with TF-Agents' `PolicySaver`, whole or not at all.

        It has the signatures ``action`` and ``get_initial_state``; TensorFlow Serving runs it, and
        ``tf.saved_model.load(folder).action(time_step)`` needs no code of this package.

        Args:
            folder: Where to; its parent is created if need be.
            overwrite: Whether to replace a policy saved there.

        Raises:
            FileExistsError: There is something, and ``overwrite`` is False.
        """
        folder = pathlib.Path(folder)
        if folder.exists() and not overwrite:
            raise FileExistsError(
                f"{folder} exists: choose another folder, or pass overwrite=True to replace it."
            )
        with whole_folder(folder) as new, warnings.catch_warnings(), _quiet_absl():
            # Of the distributions that PolicySaver saves beside the actions.
            warnings.filterwarnings("ignore", "Encoding a StructuredValue")
            policy_saver.PolicySaver(self, batch_size=None).save(str(new))

    def _model_states(self) -> Tensors:
        """The model's state, such as batch statistics, for every task."""
        return task_states(self._outputs.state, tf.range(self.tasks))

    def _variables(self) -> list[tf.Variable]:
        weights = [*self.fast_weights, *self.shared_weights]
        return [*weights, *self._states, self._stream, self._drawn]

    def _distribution(
        self, time_step: time_step.TimeStep, policy_state: Any
    ) -> policy_step.PolicyStep:
        outputs = self._outputs_of(time_step)
        return policy_step.PolicyStep(self._distribution_of(outputs), policy_state, ())

    def _outputs_of(self, time_step: time_step.TimeStep) -> Any:
        """Returns the model's outputs for all environments."""

        def by_task(x: tf.Tensor) -> tf.Tensor:
            return tf.reshape(x, tf.concat([[self.tasks, -1], tf.shape(x)[1:]], 0))

        outputs = self._outputs.of_tasks(
            *(
                [tf.convert_to_tensor(v) for v in variables]
                for variables in (self.fast_weights, self.shared_weights, self._states)
            ),
            tf.nest.map_structure(by_task, time_step.observation),
        )
        return tf.nest.map_structure(
            lambda x: tf.reshape(x, tf.concat([[-1], tf.shape(x)[2:]], 0)), outputs
        )

    def _action(
        self, time_step: time_step.TimeStep, policy_state: Any, seed: Any = None
    ) -> policy_step.PolicyStep:
        outputs = self._outputs_of(time_step)
        if self._greedy:
            action = distributions.mode(self._distribution_of(outputs))
            action = distributions.as_spec(action, self.action_spec)
            return policy_step.PolicyStep(action, policy_state, ())
        if seed is None:
            number = self._drawn.assign_add(1)
            seed = tf.random.experimental.stateless_fold_in(self._stream.read_value(), number)
        worker, workers = self.shard
        if workers > 1:  # what is drawn depends on the size of the whole batch
            outputs = tf.nest.map_structure(lambda x: tf.concat([x] * workers, 0), outputs)
        action = distributions.sample(self._distribution_of(outputs), seed)
        if workers > 1:
            action = tf.nest.map_structure(lambda x: tf.split(x, workers)[worker], action)
        action = distributions.as_spec(action, self.action_spec)
        return policy_step.PolicyStep(action, policy_state, ())


def seed_words(numbers: Sequence[int]) -> np.ndarray:
    """Returns two random words, uint32 ``[2]``, that are a function of a sequence of integers.

    Args:
        numbers: Any integers that are not negative. Their number counts: without it NumPy makes
            the same of ``(5,)`` and ``(5, 0)``.
    """
    return np.random.SeedSequence([len(numbers), *map(operator.index, numbers)]).generate_state(2)


class _Outputs:
    """A model as a function of the weights of each task."""

    def __init__(
        self,
        model: keras.Model,
        adapted: Sequence[keras.Variable],
        shared: Sequence[keras.Variable],
        state: Sequence[keras.Variable],
    ) -> None:
        self._model = model
        self.adapted, self.shared, self.state = [*adapted], [*shared], [*state]
        self._tasks = Tasks()

    def of_tasks(self, fast: Tensors, shared: Tensors, states: Tensors, observations: Any) -> Any:
        def of_all(run: Run, shared: Tensors, *elements: Any) -> Any:
            def of_task(element: Any) -> Any:
                fast, state, observations = element
                weights = [
                    *zip(self.adapted, fast, strict=True),
                    *zip(self.shared, shared, strict=True),
                ]
                states = [*zip(self.state, state, strict=True)]
                return model_outputs(self._model, weights, states, observations, run.route)

            return run.map(of_task, elements)

        return self._tasks.call(of_all, shared, fast, states, observations)


@contextlib.contextmanager
def _quiet_absl() -> Iterator[None]:
    """Hides remarks about names that PolicySaver itself has chosen."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def model_outputs(
    model: keras.Model,
    weights: Sequence[tuple[keras.Variable, tf.Tensor]],
    state: Sequence[tuple[keras.Variable, tf.Tensor]],
    observations: Any,
    route: Route,
) -> Any:
    """Calls a policy's model with explicit weights; see `functional.forward`.

    Batch normalisation uses its moving statistics: an action must not depend on what other
    environments see.
    """
    return forward(
        model,
        weights,
        state,
        observations,
        training=False,
        route=route,
        batch_statistics="stored",
    ).predictions
