"""MAML for reinforcement learning, as a TF-Agents agent (Finn et al. 2017, algorithm 3)."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from tf_agents.agents import tf_agent
from tf_agents.trajectories import Trajectory, time_step

from keras_maml import validation
from keras_maml.algorithm.inner_loop import Carry, Parameters
from keras_maml.algorithm.update_rules import GradientDescent, UpdateRule
from keras_maml.execution import tracing
from keras_maml.execution.functional import Tensors, as_tensors
from keras_maml.execution.placement import placement
from keras_maml.execution.task_map import map_sequentially
from keras_maml.execution.workers import Workers
from keras_maml.files import whole
from keras_maml.private_keras import decays
from keras_maml.rl import serving
from keras_maml.rl.action_statistics import action_statistics
from keras_maml.rl.advantages import complete, transitions
from keras_maml.rl.baseline import Baseline, check_baseline
from keras_maml.rl.meta_objective import MetaObjective, credits_of
from keras_maml.rl.model_checks import check_model, check_unconstrained
from keras_maml.rl.policy import DistributionFunction, TaskPolicy, diagonal_gaussian
from keras_maml.rl.policy_gradient import INNER_LOSSES, PolicyObjective
from keras_maml.rl.proximal import Proximal, descend, own_optimizer
from keras_maml.rl.run_settings import UNSAID, described, layers_of
from keras_maml.rl.trust_region import TrustRegion

FIXED = {"model", "tasks", "inner_steps", "outer", "first_order", "exploration", "workers"}
"""Attributes that programs are made with, which would not notice a change."""


class MetaLossInfo(NamedTuple):
    """What one meta-iteration did; all scalars.

    Attributes:
        loss_before: The surrogate loss at the old weights.
        loss_after: The surrogate loss at the new weights.
        kl: Mean KL divergence from the old adapted policies to the new ones.
        gradient_norm: Norm of the meta-gradient.
        accepted: bool: whether the weights changed.
        backtracks: How often the line search shortened the step.
        average_gradient_norm: Norm of the moving average of meta-gradients that the step follows.
        predicted_gain: By how much the loss would have fallen if it were linear in the weights.
        gain_ratio: By how much it has fallen, as a share of that: near 1 the step could be longer,
            near 0 it is too long; 0 where nothing changed.
        deviation: Mean standard deviation of the real actions of the policy before adaptation; NaN
            if there are none.
        entropy: Its mean entropy, in nats.
        deviation_after: The same of the adapted policies.
        entropy_after: The same of the adapted policies.
    """

    loss_before: tf.Tensor
    loss_after: tf.Tensor
    kl: tf.Tensor
    gradient_norm: tf.Tensor
    accepted: tf.Tensor
    backtracks: tf.Tensor
    average_gradient_norm: tf.Tensor
    predicted_gain: tf.Tensor
    gain_ratio: tf.Tensor
    deviation: tf.Tensor
    entropy: tf.Tensor
    deviation_after: tf.Tensor
    entropy_after: tf.Tensor


class MetaPolicyGradientAgent(tf_agent.TFAgent):
    """Learns the initial weights of a policy that adapts by policy gradient steps.

    One meta-iteration: draw trajectories with `collect_policy` and `adapt` it to them, as often as
    there are inner steps; draw once more; `train` on all of them. `keras_maml.rl.sampling` does so.

    With ``inner_steps=0`` it is plain trust region policy optimisation over the tasks: the paper's
    pre-trained baseline, or its oracle if the observations hold the task.

    Args:
        time_step_spec: Of one environment.
        action_spec: Of one environment.
        model: A built model from observations to the parameters of ``distribution``; trained.
        tasks: Tasks in a meta-batch. The environments of a task stand side by side in a batch.
        inner_learning_rate: The rate alpha of the inner steps, by default 0.1. Short for
            ``update_rule=GradientDescent(inner_learning_rate)``.
        inner_steps: How many inner steps, each with trajectories of its own.
        outer: The outer step: `TrustRegion`, `Proximal`, or any Keras optimizer, which takes one
            plain step on the meta-gradient (its state is the agent's own).
        first_order: Whether the meta-gradient stops at the inner gradients (paper, section 5.2).
        discount: Per step.
        gae_lambda: Of generalized advantage estimation.
        inner_gae_lambda: The same in inner steps, by default ``gae_lambda``. Few rollouts of a task
            say most with a small one, at the price of a bias (docs/results.md).
        inner_loss: See `keras_maml.rl.policy_gradient.PolicyObjective`.
        distribution: From the model's outputs to a distribution over actions.
        jit_compile: Whether XLA compiles the training step.
        train_step_counter: An int64 variable that counts meta-iterations; by default a new one.
        update_rule: How an inner step turns gradients into fast weights, see
            `keras_maml.update_rules`; what it learns is trained by the outer step.
        adapted_layers: What the inner loop adapts, see `keras_maml.MAML`.
        baseline: What returns are compared with: ``"linear"`` features of observation and time,
            as the authors', ``"standardized"`` for large observations and few rollouts, ``"time"``
            alone, None, or a function; see `keras_maml.rl.baseline`.
        workers: The processes that train the agent together, each with ``tasks`` tasks of its own:
            all begin with the weights of worker 0 and take the same outer steps. None for this
            process alone.
        exploration: Whether rollouts before adaptation get credit for the returns after it: the
            term that E-MAML adds to the meta-gradient (Stadie et al. 2018). With it the expectation
            of the meta-gradient is that of adapting to sampled rollouts; its variance is large.

    Its settings are attributes that do not change; another agent on the same model has others.

    Attributes:
        skipped_steps: An int64 variable: calls of `train` that changed nothing, because the line
            search found no better policy or its result was not finite.

    Raises:
        ValueError: A setting is out of range, or the model is not built, does not fit the
            environment, or has what this agent would ignore: losses of its own, dtypes, or, with a
            trust region, constraints.

    Example:
        >>> from tf_agents.specs import BoundedTensorSpec
        >>> from keras_maml.rl.policy import gaussian_policy
        >>> agent = MetaPolicyGradientAgent(
        ...     time_step.time_step_spec(tf.TensorSpec([2], tf.float32)),
        ...     BoundedTensorSpec([2], tf.float32, -1, 1),
        ...     gaussian_policy(2, 2),
        ...     tasks=4,
        ... )
        >>> len(agent.training_data_spec)  # trajectories before and after the inner step
        2
    """

    def __init__(
        self,
        time_step_spec: time_step.TimeStep,
        action_spec: Any,
        model: keras.Model,
        *,
        tasks: int,
        inner_learning_rate: Any = None,
        inner_steps: int = 1,
        outer: TrustRegion | Proximal | keras.optimizers.Optimizer | None = None,
        first_order: bool = False,
        discount: float = 0.99,
        gae_lambda: float = 1.0,
        inner_gae_lambda: float | None = None,
        inner_loss: str = "log_likelihood",
        distribution: DistributionFunction = diagonal_gaussian,
        jit_compile: bool = True,
        train_step_counter: tf.Variable | None = None,
        update_rule: UpdateRule | None = None,
        adapted_layers: str | Sequence = "all",
        baseline: str | Baseline | None = "linear",
        workers: Workers | None = None,
        exploration: bool = False,
    ) -> None:
        validation.check_count("tasks", tasks, minimum=1)
        validation.check_count("inner_steps", inner_steps)
        validation.check_choice("inner_loss", inner_loss, INNER_LOSSES)
        if inner_gae_lambda is None:
            inner_gae_lambda = gae_lambda
        shares = {
            "discount": discount,
            "gae_lambda": gae_lambda,
            "inner_gae_lambda": inner_gae_lambda,
        }
        for name, value in shares.items():
            validation.check_number(name, value, lambda v: 0 <= v <= 1, "in 0 .. 1")
        check_baseline(baseline, time_step_spec.observation)
        made = check_model(model, distribution, time_step_spec.observation, action_spec)
        self.model = model
        self.tasks = tasks
        self.inner_steps = inner_steps
        self.workers = workers if workers is not None and workers.count > 1 else None
        self._agreed = self.workers is None
        outer = TrustRegion() if outer is None else outer
        if not isinstance(outer, TrustRegion | Proximal | keras.optimizers.Optimizer):
            raise ValueError(
                "outer must be a TrustRegion, a Proximal or a Keras optimizer such as "
                f"keras.optimizers.Adam(1e-3), got {outer!r}."
            )
        if isinstance(outer, keras.optimizers.Optimizer):
            outer = own_optimizer(outer)
        self.outer = outer
        self.first_order = first_order
        self.exploration = exploration
        if update_rule is not None and inner_learning_rate is not None:
            raise ValueError("Give either inner_learning_rate or update_rule, not both.")
        if update_rule is None:
            update_rule = GradientDescent(
                0.1 if inner_learning_rate is None else inner_learning_rate
            )
        self._objective = PolicyObjective(
            model,
            update_rule,
            distribution,
            inner_loss,
            route=placement().turns if jit_compile else "plain",
            adapted_layers=adapted_layers,
        )
        self._kinds = tf.nest.map_structure(lambda part: type(part).__name__, made)
        variables = self._objective.variables()
        self._made_with = _identities(variables)
        if isinstance(self.outer, TrustRegion):
            check_unconstrained(variables.trained)
        self._estimate = {
            "tasks": tasks,
            "discount": discount,
            "gae_lambda": gae_lambda,
            "baseline": baseline,
        }
        self._inner_estimate = self._estimate | {"gae_lambda": inner_gae_lambda}
        self._optimizer = None
        if isinstance(self.outer, Proximal):
            self._optimizer = self.outer.make_optimizer()
        elif isinstance(self.outer, keras.optimizers.Optimizer):
            self._optimizer = self.outer
        if self._optimizer is not None:
            self._optimizer.build(variables.trained)
        self._average_gradient = []
        if isinstance(self.outer, TrustRegion) and self.outer.momentum:
            self._average_gradient = [
                tf.Variable(tf.zeros(v.shape, v.dtype), trainable=False, name="average_gradient")
                for v in variables.trained
            ]
        counter = train_step_counter
        if counter is None:
            counter = tf.Variable(0, dtype=tf.int64, trainable=False, name="train_step")
        self.skipped_steps = tf.Variable(0, dtype=tf.int64, trainable=False, name="skipped_steps")
        policies = [
            TaskPolicy(
                time_step_spec,
                action_spec,
                model,
                tasks=n,
                distribution=distribution,
                adapted=variables.initial,
                shard=shard,
            )
            for n, shard in ((1, (0, 1)), (tasks, workers.shard if workers else (0, 1)))
        ]
        super().__init__(
            time_step_spec,
            action_spec,
            *policies,
            train_sequence_length=None,
            training_data_spec=(policies[1].trajectory_spec,) * (inner_steps + 1),
            train_step_counter=counter,
        )
        self._compile = functools.partial(tracing.function, jit_compile=jit_compile)
        self._jit_compile = jit_compile
        one_program = jit_compile and self.workers is None
        self._compiled_train = tracing.function(self._meta_step, jit_compile=one_program)
        self._inner_steps: dict[tuple, Callable] = {}
        self._rules: list[UpdateRule] = []  # of the inner steps so far
        self._slots: Any = None  # of the update rule, ``[tasks, ...]``, between inner steps

    def __setattr__(self, name: str, value: Any) -> None:
        if name in FIXED and name in self.__dict__:
            raise AttributeError(
                f"{name} of an agent does not change: its programs are made with what it was. Make "
                f"another agent on the same model, MetaPolicyGradientAgent(..., {name}=...)."
            )
        super().__setattr__(name, value)

    def check_tasks(self, tasks: Sequence, multiple: bool = False) -> None:
        """Raises ValueError unless there are as many tasks as the agent has.

        Args:
            tasks: The tasks.
            multiple: Whether a multiple will do. It always does without inner steps, where every
                rollout may have a task of its own.
        """
        multiple = multiple or not self.inner_steps
        batches, rest = divmod(len(tasks), self.tasks)
        if rest or not batches or (batches > 1 and not multiple):
            kind = "a multiple of " if multiple else ""
            raise ValueError(
                f"The number of tasks must be {kind}{self.tasks}, the tasks of the agent, "
                f"got {len(tasks)}."
            )

    def _check_variables(self) -> None:
        """Raises ValueError if layers have been frozen or thawed since the agent was made."""
        if _identities(self._objective.variables()) != self._made_with:
            raise ValueError(
                "The model has other trainable variables than when the agent was made: its layers "
                "have been frozen, thawed or replaced. Make another agent on the same model."
            )

    def reset_adaptation(self) -> None:
        """Gives the collect policy the initial weights for every task.

        Raises:
            ValueError: Layers have been frozen or thawed since the agent was made.
        """
        self._check_variables()
        if not self._agreed:
            self.hand_out()
        self.collect_policy.assign_model()
        self._rules, self._slots = [], None

    def hand_out(self) -> None:
        """Gives all workers the variables of worker 0; all of them have to call it."""
        if self.workers is not None:
            self.workers.hand_out(self.saved_variables)
            self._agreed = True

    def adapt(self, experience: Trajectory, update_rule: UpdateRule | None = None) -> None:
        """Adapts the collect policy by one inner step.

        Args:
            experience: ``[environments, steps, ...]``, drawn with the collect policy.
            update_rule: Of this step; by default that of the agent.

        Raises:
            ValueError: The environments cannot be divided among the tasks, or a task has no
                complete episode, or layers have been frozen or thawed since the agent was made, or
                see `check_update_rules`.
            FloatingPointError: A reward is not finite, or the fast weights of a task would not
                be. Nothing changes.
        """
        self._check_variables()
        self.check_experience(experience)
        rule = update_rule or self._objective.update_rule
        if self._rules:
            self.check_update_rules([self._rules[-1], rule])
        fast, slots = self._inner_step(rule, experience)
        finite = np.all([np.isfinite(x.numpy().reshape(self.tasks, -1)).all(1) for x in fast], 0)
        if not finite.all():
            raise FloatingPointError(
                f"Adaptation gave weights that are not finite in {(~finite).sum()} of "
                f"{self.tasks} tasks, the first of them task {(~finite).argmax()}. Lower "
                "inner_learning_rate, and look at the observations and rewards of that task."
            )
        self.collect_policy.assign(fast)
        self._slots = slots
        self._rules.append(rule)

    def check_update_rules(self, update_rules: Sequence[UpdateRule]) -> None:
        """Checks update rules that are to take inner steps one after another.

        Args:
            update_rules: One for each step.

        Raises:
            ValueError: They are of several kinds, and one keeps something from step to step.
        """

        def keeps(rule: UpdateRule) -> bool:
            parameters = dataclasses.replace(self._objective, update_rule=rule).parameters()
            return bool(tf.nest.flatten(rule.first_slots(parameters)))

        kinds = list(dict.fromkeys(map(type, update_rules)))
        if len(kinds) > 1 and any(map(keeps, update_rules)):
            raise ValueError(
                "What an update rule keeps from step to step is for rules of its own kind, got "
                f"{[kind.__name__ for kind in kinds]}. Take one kind in all inner steps; its "
                "settings may differ."
            )

    def adapted_policy(self, task: int) -> TaskPolicy:
        """Returns the policy of one task as the collect policy has adapted to it; it can be saved.

        Args:
            task: The number of the task.
        """
        if not 0 <= task < self.tasks:
            raise ValueError(f"task must be one of the agent's {self.tasks}, from 0, got {task!r}.")
        self._check_variables()
        policy = TaskPolicy(
            self.time_step_spec,
            self.action_spec,
            self.model,
            distribution=self._objective.distribution,
            adapted=self._objective.variables().initial,
        )
        policy.assign_task(self.collect_policy, task)
        return policy

    def export(
        self, folder: str | os.PathLike, *, rollouts: int, steps: int, overwrite: bool = False
    ) -> None:
        """Saves the policy so that it adapts where it is served, see `keras_maml.rl.serving`.

        Args:
            folder: Where to.
            rollouts: Episodes of a task that it adapts to.
            steps: The most steps of an episode.
            overwrite: Whether to replace what is saved there.

        Raises:
            FileExistsError: There is something, and ``overwrite`` is False.
            ValueError: A number is out of range, or the update rule keeps something between steps.
        """
        self._check_variables()
        estimate = {name: value for name, value in self._inner_estimate.items() if name != "tasks"}
        served = serving.Served(
            self._objective, self.time_step_spec.observation, self.action_spec, estimate
        )
        serving.export(served, folder, rollouts=rollouts, steps=steps, overwrite=overwrite)

    @property
    def learned_variables(self) -> list[Any]:
        """What training makes better: the model's variables and the update rule's."""
        return [*self.model.variables, *self._objective.update_rule.variables]

    @property
    def saved_variables(self) -> list[Any]:
        """Everything a training run must save to go on: weights, optimizer, counters."""
        optimizer = [] if self._optimizer is None else self._optimizer.variables
        training = [*optimizer, *self._average_gradient]
        counters = [self.train_step_counter, self.skipped_steps]
        return [*self.learned_variables, *training, *counters]

    @property
    def settings(self) -> dict[str, Any]:
        """What the agent was made with, tasks and specs apart, as it is written as JSON."""
        objective = self._objective
        adapted = {id(variable) for variable in objective.variables().initial}
        return described(
            {
                "model": layers_of(self.model),
                "distribution": self._kinds,
                "inner_steps": self.inner_steps,
                "inner_loss": objective.inner_loss,
                "update_rule": objective.update_rule,
                "adapted_variables": [id(v) in adapted for v in self.model.trainable_variables],
                "outer": self.outer,
                "decayed_variables": self._decayed(),
                "first_order": self.first_order,
                "exploration": self.exploration,
                "discount": self._estimate["discount"],
                "gae_lambda": self._estimate["gae_lambda"],
                "inner_gae_lambda": self._inner_estimate["gae_lambda"],
                "baseline": self._estimate["baseline"],
            }
        )

    def _decayed(self) -> list[bool] | None:
        """Returns which trained variables an outer optimizer takes weight decay off."""
        outer = self.outer
        if not isinstance(outer, keras.optimizers.Optimizer) or outer.weight_decay is None:
            return None
        return [decays(outer, variable) for variable in self._objective.variables().trained]

    def save(self, path: str | os.PathLike) -> None:
        """Saves `saved_variables`, whole or not at all, to go on from bit for bit.

        Args:
            path: Of a file that NumPy can load, ending with ``.npz``.
        """
        with whole(path) as temporary:
            np.savez(temporary, *(np.asarray(variable) for variable in self.saved_variables))

    def restore(self, path: str | os.PathLike) -> None:
        """Loads what `save` has saved; the collect policy gets the initial weights.

        The learning rate of the outer step is a setting and stays the agent's own, for who goes on
        with another one in another folder: `train` asks for that of the folder. With workers, all
        of them have to call it, and all get what the first one reads.

        Args:
            path: Of the file; of several workers the first one's counts.

        Raises:
            ValueError: It is of an agent with other variables, or layers have been frozen or thawed
                since this one was made. Nothing changes.
            WorkersError: Worker 0 could not read it. Nothing changes.
        """
        self._check_variables()
        if self.workers is None:
            self._load(self._read(path))
        else:
            with self.workers.sharing_errors(counted_on=False):
                values = self._read(path) if self.workers.index == 0 else []
                self.workers.all_ready()
                self._load(values)
                self.hand_out()
        self.initialize()

    def _read(self, path: str | os.PathLike) -> list[np.ndarray]:
        with np.load(path, allow_pickle=False) as file:
            values = [file[f"arr_{i}"] for i in range(sum(n.startswith("arr_") for n in file))]
        found, own = ([tuple(v.shape) for v in vs] for vs in (values, self.saved_variables))
        if found != own:
            raise ValueError(
                f"{path} is of an agent with variables of the shapes {found}, but this one has "
                f"{own}. Make the agent with the same model, outer step and update rule."
            )
        return values

    def _load(self, values: Sequence[np.ndarray]) -> None:
        rate = None if self._optimizer is None else self._optimizer.learning_rate
        for variable, value in zip(self.saved_variables, values, strict=False):
            if variable is not rate:
                variable.assign(value)

    def _initialize(self) -> None:
        self.reset_adaptation()
        self.policy.assign_model()

    def _train(
        self, experience: Sequence[Trajectory], weights: tf.Tensor | None = None
    ) -> tf_agent.LossInfo:
        if weights is not None:
            raise ValueError("MetaPolicyGradientAgent takes no weights of examples.")
        self._check_variables()
        if len(experience) != self.inner_steps + 1:
            raise ValueError(
                f"One meta-iteration needs {self.inner_steps + 1} batches of trajectories: one "
                f"before each of {self.inner_steps} inner steps and one after, got "
                f"{len(experience)}."
            )
        for batch in experience:
            self.check_experience(batch)
        info = self._compiled_train(tuple(experience))
        self.policy.assign_model()
        return tf_agent.LossInfo(info.loss_before, info)

    def _loss(self, experience: Any, weights: Any = None, training: bool = False) -> Any:
        raise NotImplementedError("The loss has a meaning at the old weights only: use train.")

    def _meta_step(self, experience: Sequence[Trajectory]) -> MetaLossInfo:
        *before, last = experience
        stages = [transitions(batch, **self._inner_estimate) for batch in before]
        stages.append(transitions(last, **self._estimate))
        variables = self._objective.variables().trained
        weights = as_tensors(variables)
        objective = MetaObjective(
            self._objective,
            stages,
            first_order=self.first_order,
            workers=self.workers,
            jit_compile=self._jit_compile,
        )
        objective = dataclasses.replace(objective, old=objective.outputs(weights))
        if self.exploration:
            credits = credits_of(stages[-1].performance, self.workers)
            objective = dataclasses.replace(objective, credits=credits)
        loss, gradient = objective.loss_and_gradient(weights)
        average = self._averaged(gradient)
        if isinstance(self.outer, Proximal):
            step = self.outer.step(objective, variables, self._optimizer)
        elif self._optimizer is not None:
            step = descend(objective, variables, self._optimizer)
        else:
            step = self.outer.step(
                weights,
                loss,
                average,
                lambda vector: objective.kl_hessian(weights, vector, self.outer.fisher_stride),
                objective.loss_and_kl,
                self.train_step_counter,
            )
            for variable, value in zip(variables, step.weights, strict=True):
                variable.assign(value)
        self.train_step_counter.assign_add(1)
        self.skipped_steps.assign_add(tf.cast(~step.accepted, tf.int64))
        changes = [new - old for new, old in zip(as_tensors(variables), weights, strict=True)]
        predicted = -tf.add_n(
            [tf.reduce_sum(g * change) for g, change in zip(gradient, changes, strict=True)]
        )
        before, after = (
            action_statistics(self._objective.distribution(old), stage.weights)
            for old, stage in ((objective.old[i], stages[i]) for i in (0, -1))
        )
        if self.workers is not None:
            before, after = self.workers.mean((before, after))
        return MetaLossInfo(
            loss_before=loss,
            loss_after=step.loss,
            kl=step.kl,
            gradient_norm=tf.linalg.global_norm(gradient),
            accepted=step.accepted,
            backtracks=step.backtracks,
            average_gradient_norm=tf.linalg.global_norm(average),
            predicted_gain=predicted,
            gain_ratio=tf.math.divide_no_nan(loss - step.loss, predicted),
            deviation=tf.reduce_mean(before.deviation),
            entropy=tf.reduce_mean(before.entropy),
            deviation_after=tf.reduce_mean(after.deviation),
            entropy_after=tf.reduce_mean(after.entropy),
        )

    def _averaged(self, gradient: Tensors) -> Tensors:
        """Returns the moving average of gradients; its scale does not matter to the outer step."""
        if not self._average_gradient:
            return gradient
        past, finite = self.outer.momentum, tf.math.is_finite(tf.linalg.global_norm(gradient))
        averages = []
        for variable, value in zip(self._average_gradient, gradient, strict=True):
            average = past * variable + (1.0 - past) * value
            # One that is not finite would stay for ever.
            variable.assign(tf.where(finite, average, variable))
            averages.append(average)
        return averages

    def _inner_step(self, rule: UpdateRule, experience: Trajectory) -> tuple[Tensors, Any]:
        """Takes an inner step in every task; one program per kind of update rule and shape."""
        objective = dataclasses.replace(self._objective, update_rule=rule)
        parameters = objective.parameters()
        slots = self._slots
        if slots is None:
            slots = tf.nest.map_structure(
                lambda t: tf.repeat(t[None], self.tasks, axis=0), rule.first_slots(parameters)
            )
        fast = [tf.convert_to_tensor(v) for v in self.collect_policy.fast_weights]
        step = tf.constant(len(self._rules))
        arguments = parameters, fast, slots, experience, step
        key = (_settings_of(rule), *experience.reward.shape)
        if key not in self._inner_steps:

            def inner_step(
                parameters: Parameters, fast: Tensors, slots: Any, experience: Any, step: tf.Tensor
            ) -> tuple[Tensors, Any]:
                def of_task(element: tuple) -> tuple[Tensors, Any]:
                    fast, slots, stage = element
                    carry = objective.step(parameters, Carry(fast, slots), stage, step)
                    return carry.fast, carry.slots

                stage = transitions(experience, **self._inner_estimate)
                return map_sequentially(of_task, (fast, slots, stage))

            # A concrete function: TensorFlow takes several programs of one place for retracing.
            program = self._compile(inner_step).get_concrete_function(*arguments)
            self._inner_steps[key] = program, rule  # which keeps its id
        program, _ = self._inner_steps[key]
        return program(*arguments)

    def check_experience(self, experience: Trajectory) -> None:
        """Checks trajectories that the agent is to adapt to or to be trained with.

        Args:
            experience: ``[environments, steps, ...]``.

        Raises:
            ValueError: The environments cannot be divided among the tasks, or a task has no
                complete episode.
            FloatingPointError: A reward is not finite.
        """
        shape = tuple(experience.reward.shape)
        if len(shape) != 2 or shape[0] % self.tasks:
            raise ValueError(
                f"Trajectories must be [environments, steps, ...] with a multiple of {self.tasks} "
                f"environments (the tasks of the agent), got rewards of shape {shape}."
            )
        unfinished = ~complete(experience).numpy().reshape(self.tasks, -1).any(1)
        if unfinished.any():
            raise ValueError(
                f"Every task needs a complete episode, but {unfinished.sum()} of {self.tasks} have "
                f"none in {shape[1]} steps, the first of them task {unfinished.argmax()}. Draw at "
                "least as many steps as the horizon of the environment."
            )
        wrong = ~np.isfinite(np.asarray(experience.reward)).reshape(self.tasks, -1).all(1)
        if wrong.any():
            raise FloatingPointError(
                f"Rewards are not finite in {wrong.sum()} of {self.tasks} tasks, the first of "
                f"them task {wrong.argmax()}."
            )


def _identities(variables: Parameters) -> list[list[int]]:
    return [[id(variable) for variable in kind] for kind in variables]


def _settings_of(rule: UpdateRule) -> tuple:
    """What tells update rules apart whose steps are others: settings if they are all, or identity.

    A rule of the user's may do anything; a schedule is an object.
    """
    if rule.variables or not type(rule).__module__.startswith("keras_maml."):
        return (id(rule),)
    config = {name: value for name, value in rule.get_config().items() if name not in UNSAID}
    plain = all(value is None or isinstance(value, int | float) for value in config.values())
    return (type(rule), *sorted(config.items())) if plain else (id(rule),)
