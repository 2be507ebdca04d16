"""SavedModels of policies that adapt where they are served, with signatures like a classifier's.

- ``initial``: nothing -> ``fast_weights`` ``[1, size]``, where every task begins.
- ``adapt``: ``fast_weights``, episodes drawn with them, and the number of the inner step, from 0
  -> ``fast_weights`` after that step.
- ``act``: ``fast_weights`` and observations -> ``actions``, drawn, and ``most_likely_actions``.

The tasks are the first axis of everything, so that servers may join requests. An episode is the
first ``lengths`` steps of a row; what stands after them does not count.
"""

import os
import pathlib
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from tf_agents.trajectories import StepType, Trajectory

from keras_maml import validation
from keras_maml.algorithm.inner_loop import Carry
from keras_maml.execution import tracing
from keras_maml.execution.functional import Tensors
from keras_maml.execution.task_map import map_sequentially
from keras_maml.files import whole_folder
from keras_maml.rl import distributions
from keras_maml.rl.advantages import transitions
from keras_maml.rl.policy_gradient import PolicyObjective
from keras_maml.serving.signatures import named


class Served(NamedTuple):
    """What is exported.

    Attributes:
        objective: The policy and its inner step.
        observation_spec: Of one environment.
        action_spec: Of one environment.
        estimate: The settings of `keras_maml.rl.advantages.transitions`, but for the tasks.
    """

    objective: PolicyObjective
    observation_spec: Any
    action_spec: Any
    estimate: dict[str, Any]

    def adapt(self, element: tuple) -> tf.Tensor:
        """Takes an inner step in one task; the element is what ``adapt`` takes, without tasks."""
        vector, observations, actions, rewards, lengths, step = element
        times = tf.range(rewards.shape[1])[None]
        last = tf.reshape(lengths, [-1, 1]) - 1
        # What stands after an episode may be anything, even what 0 times is no number.
        observations, actions = tf.nest.map_structure(
            lambda x: _where(times <= last, x, x[:, :1]), (observations, actions)
        )
        rewards = tf.where(times <= last, rewards, tf.zeros_like(rewards))
        kinds = [int(kind) for kind in (StepType.FIRST, StepType.MID, StepType.LAST)]
        first, mid, end = (tf.fill(rewards.shape, kind) for kind in kinds)
        trajectory = Trajectory(
            step_type=tf.where(times > last, end, tf.where(times == 0, first, mid)),
            observation=observations,
            action=actions,
            policy_info=(),
            next_step_type=tf.where(times > last, first, tf.where(times == last, end, mid)),
            reward=rewards,
            discount=tf.ones_like(rewards),
        )
        stage = transitions(trajectory, tasks=1, **self.estimate)
        stage = tf.nest.map_structure(lambda value: value[0], stage)
        parameters, rule = self.objective.parameters(), self.objective.update_rule
        carry = Carry(self._unpacked(vector), rule.first_slots(parameters))
        return _packed(self.objective.step(parameters, carry, stage, step).fast)

    def act(self, element: tuple) -> tuple[Any, Any]:
        """Chooses actions in one task, for observations ``[environments, ...]``."""
        vector, observations = element
        fast = self._unpacked(vector)
        outputs = self.objective.outputs(self.objective.parameters(), fast, observations)
        distribution = self.objective.distribution(outputs)
        drawn = distributions.sample(distribution), distributions.mode(distribution)
        return tuple(distributions.as_spec(actions, self.action_spec) for actions in drawn)

    def initial(self) -> tf.Tensor:
        """Returns the initial weights as a vector."""
        return _packed(self.objective.parameters().initial)

    def _unpacked(self, vector: tf.Tensor) -> Tensors:
        shapes = [tuple(v.shape) for v in self.objective.variables().initial]
        parts = tf.split(vector, [int(np.prod(shape)) for shape in shapes])
        return [tf.reshape(part, shape) for part, shape in zip(parts, shapes, strict=True)]


def _where(which: tf.Tensor, x: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """Chooses steps, of which ``which`` says ``[rollouts, steps]``."""
    return tf.where(tf.reshape(which, [*which.shape, *[1] * (len(x.shape) - 2)]), x, other)


def _packed(weights: Tensors) -> tf.Tensor:
    return tf.concat([tf.reshape(weight, [-1]) for weight in weights], axis=0)


def export(
    served: Served, folder: str | os.PathLike, *, rollouts: int, steps: int, overwrite: bool = False
) -> None:
    """Saves a policy that adapts, whole or not at all; see the module for its signatures.

    Args:
        served: What to save.
        folder: Where to; its parent is created if need be.
        rollouts: Episodes of a task in a request of ``adapt``.
        steps: The most steps of an episode.
        overwrite: Whether to replace what is saved there.

    Raises:
        FileExistsError: There is something, and ``overwrite`` is False.
        ValueError: A number is out of range, or the update rule keeps something between steps.
    """
    for name, value in (("rollouts", rollouts), ("steps", steps)):
        validation.check_count(name, value, minimum=1)
    folder = pathlib.Path(folder)
    if folder.exists() and not overwrite:
        raise FileExistsError(
            f"{folder} exists: choose another folder, or pass overwrite=True to replace it."
        )
    rule = served.objective.update_rule
    if tf.nest.flatten(rule.first_slots(served.objective.parameters())):
        raise ValueError(
            f"{type(rule).__name__} keeps something between inner steps, which a server would "
            "have to keep, too. Export a policy with GradientDescent, MetaSGD or the like."
        )
    initial = served.initial()
    vector = tf.TensorSpec([None, *initial.shape], initial.dtype, "fast_weights")

    def inputs(name: str, nest: Any, *sizes: int | None) -> dict[str, tf.TensorSpec]:
        return {
            key: tf.TensorSpec([None, *sizes, *spec.shape], spec.dtype, key)
            for key, spec in named(name, nest).items()
        }

    seen = inputs("observations", served.observation_spec, None)
    episodes = inputs("observations", served.observation_spec, rollouts, steps)
    done = inputs("actions", served.action_spec, rollouts, steps)
    rest = {
        "rewards": tf.TensorSpec([None, rollouts, steps], tf.float32, "rewards"),
        "lengths": tf.TensorSpec([None, rollouts], tf.int32, "lengths"),
        "step": tf.TensorSpec([None], tf.int32, "step"),
    }

    def adapt(**given: tf.Tensor) -> dict[str, tf.Tensor]:
        message = f"lengths must be those of whole episodes, in 1 .. {steps}."
        checks = [
            tf.debugging.assert_positive(given["lengths"], message),
            tf.debugging.assert_less_equal(given["lengths"], steps, message),
        ]
        with tf.control_dependencies([check for check in checks if check is not None]):
            element = (
                tf.identity(given["fast_weights"]),
                _nest(served.observation_spec, episodes, given),
                _nest(served.action_spec, done, given),
                *(given[name] for name in rest),
            )
        return {"fast_weights": map_sequentially(served.adapt, element)}

    def act(**given: tf.Tensor) -> dict[str, tf.Tensor]:
        observations = _nest(served.observation_spec, seen, given)
        drawn, likely = map_sequentially(served.act, (given["fast_weights"], observations))
        return named("actions", drawn) | named("most_likely_actions", likely)

    module = tf.Module()
    owners = [*served.objective.model.variables, *rule.variables]
    module.parameters = [variable.value for variable in owners]
    functions = {
        "initial": (lambda: {"fast_weights": served.initial()[None]}, {}),
        "adapt": (adapt, {"fast_weights": vector} | episodes | done | rest),
        "act": (act, {"fast_weights": vector} | seen),
    }
    signatures = {
        name: tracing.function(function).get_concrete_function(**taken)
        for name, (function, taken) in functions.items()
    }
    with whole_folder(folder) as new:
        tf.saved_model.save(module, str(new), signatures)


def _nest(spec: Any, names: dict[str, Any], given: dict[str, tf.Tensor]) -> Any:
    return keras.tree.pack_sequence_as(spec, [given[name] for name in names])
