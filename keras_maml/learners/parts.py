"""The parts that a learner is a choice of: set, replaced, built, counted and saved."""

import functools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_maml import validation
from keras_maml.algorithm import adapted_layers as layer_choice
from keras_maml.algorithm import meta_gradients, query_losses
from keras_maml.algorithm.inner_loop import Parameters
from keras_maml.algorithm.objective import BATCH_NORMALIZATIONS, Objective
from keras_maml.algorithm.update_rules import GradientDescent, UpdateRule
from keras_maml.execution.forms import Route
from keras_maml.execution.functional import state_variables
from keras_maml.learners import inputs
from keras_maml.learners.checks import Vocabulary
from keras_maml.learners.episodic_model import EpisodicModel
from keras_maml.learners.metrics import stateless_loss
from keras_maml.learners.settings import Setting
from keras_maml.private_keras import flatten_layers, replace_sublayer, scales_losses

# Of layers in float16, whose smallest normal number is 6e-5: gradients of losses about 1 are often
# less. The inner gradients are divided by it again, before the weights in float32 move.
INNER_LOSS_SCALE = 1024.0


def inner_loss_scale(loss: tf.Tensor) -> tf.Tensor:
    """Returns what to scale an inner loss by: a large one by less, or its gradients overflow."""
    return INNER_LOSS_SCALE / tf.maximum(tf.abs(tf.stop_gradient(loss)), 1)


class LearnerOfParts(EpisodicModel):
    """An episodic model with parts: what adapts, update rule, meta-gradient, query loss.

    Whatever a part learns or counts is trained, saved and restored with the learner. A part that
    is replaced is in force from the next step on. Subclasses set all of them when they are made.
    """

    batch_normalization = Setting(validation.one_of(BATCH_NORMALIZATIONS))
    adapted_layers = Setting(layer_choice.check)
    _meta_gradient = Setting(lambda name, value: None)  # see the property

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute; another update rule takes the place of the one before."""
        if name == "update_rule":  # Keras would refuse a new layer once the learner is built
            self._replace_part(name, _checked_rule(value))
        elif name == "query_loss":
            self._replace_part(name, query_losses.get(value))
            self._last_only = self.query_loss.last_only
        else:
            super().__setattr__(name, value)

    @property
    def update_rule(self) -> UpdateRule:
        """How an inner step turns gradients into fast weights."""
        return self.__dict__["_update_rule"]

    @property
    def query_loss(self) -> query_losses.QueryLoss:
        """Which inner steps a meta-step measures the query set after."""
        return self.__dict__["_query_loss"]

    @property
    def inner_learning_rate(self) -> Any:
        """The rate of plain gradient descent; None for other update rules."""
        rule = self.update_rule
        return rule.learning_rate if type(rule) is GradientDescent else None

    @inner_learning_rate.setter
    def inner_learning_rate(self, rate: Any) -> None:
        rule = self.update_rule
        if type(rule) is not GradientDescent:
            name = type(rule).__name__
            raise ValueError(
                "inner_learning_rate is the rate of plain gradient descent, and the learner's "
                f"update rule is {name}: set update_rule, such as to {name} with another rate."
            )
        settings = rule.get_config()
        clip = {name: settings[name] for name in ("clip_norm", "clip_value")}
        self.update_rule = GradientDescent(rate, **clip)

    @property
    def meta_gradient(self) -> meta_gradients.MetaGradient:
        """How the outcome after adaptation is differentiated."""
        return self._meta_gradient

    @meta_gradient.setter
    def meta_gradient(self, meta_gradient: Any) -> None:
        self._meta_gradient = meta_gradients.get(meta_gradient)

    @property
    def first_order(self) -> bool:
        """Whether the inner gradient is stopped."""
        return self.meta_gradient.first_order

    @first_order.setter
    def first_order(self, first_order: bool) -> None:
        check_exact_or_first_order("first_order", self.meta_gradient)
        self.meta_gradient = meta_gradient_of(None, first_order, self.rematerialize)

    @property
    def rematerialize(self) -> bool:
        """Whether the inner steps are computed again for the meta-gradient."""
        return getattr(self.meta_gradient, "rematerialize", False)

    @rematerialize.setter
    def rematerialize(self, rematerialize: bool) -> None:
        check_exact_or_first_order("rematerialize", self.meta_gradient)
        self.meta_gradient = meta_gradient_of(None, self.first_order, rematerialize)

    def get_config(self) -> dict[str, Any]:
        """Returns the parts as they are saved, the wrapped model included."""
        plain = type(self.update_rule) is GradientDescent
        settings = self.update_rule.get_config()
        plain = plain and settings["clip_norm"] is settings["clip_value"] is None
        rate = settings["learning_rate"] if plain else None
        rule = None if plain else keras.saving.serialize_keras_object(self.update_rule)
        last = type(self.query_loss) is query_losses.LastStep
        query_loss = "last" if last else keras.saving.serialize_keras_object(self.query_loss)
        return {
            **super().get_config(),
            "inner_learning_rate": rate,
            "batch_normalization": self.batch_normalization,
            "update_rule": rule,
            "meta_gradient": keras.saving.serialize_keras_object(self.meta_gradient),
            "adapted_layers": layer_choice.names_of(self.adapted_layers),
            "query_loss": query_loss,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict | None = None):
        """Builds the learner from `get_config`."""
        parts = {
            name: keras.saving.deserialize_keras_object(config[name], custom_objects)
            for name in ("update_rule", "query_loss")
            if isinstance(config.get(name), dict)
        }
        return super().from_config({**config, **parts}, custom_objects)

    def _replace_part(self, name: str, part: keras.layers.Layer) -> None:
        replace_sublayer(self, self.__dict__.get(f"_{name}"), part)
        self.__dict__[f"_{name}"] = part
        if self.model.built:  # what parts learn is there before weights are loaded
            self.build_parts()
        self.forget_programs()

    def build_parts(self) -> None:
        """Builds the update rule."""
        self.partition()

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """What the outer optimizer trains: not what begins anew in every task."""
        left_out = {id(variable) for variable in layer_choice.task_variables(self.model)}
        return [v for v in super().trainable_variables if id(v) not in left_out]

    @property
    def trainable_weights(self) -> list[keras.Variable]:
        """The same; Keras pairs them with the moving averages of an optimizer."""
        return self.trainable_variables

    @property
    def non_trainable_variables(self) -> list[keras.Variable]:
        """All others."""
        trained = {id(variable) for variable in self.trainable_variables}
        return [v for v in self.variables if id(v) not in trained]

    @property
    def non_trainable_weights(self) -> list[keras.Variable]:
        """All others that are weights."""
        trained = {id(variable) for variable in self.trainable_variables}
        return [v for v in self.weights if id(v) not in trained]

    def own_callbacks(
        self,
    ) -> tuple[list[keras.callbacks.Callback], list[keras.callbacks.Callback]]:
        """Returns what `fit` calls before the user's callbacks, which may save it, and after."""
        first, last = [keras.callbacks.LambdaCallback(on_epoch_end=self._end_epoch)], []
        if ways := [(head, head.ways) for head in self._heads()]:

            def go_on(*_: Any, **logs: Any) -> None:
                self._give_ways(ways)  # other callbacks may have met tasks with others

            first.append(keras.callbacks.LambdaCallback(on_train_end=go_on))
            hooks = ("on_train_batch_begin", "on_test_batch_begin")
            last.append(keras.callbacks.LambdaCallback(**dict.fromkeys(hooks, go_on)))
        return first, last

    def _end_epoch(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.query_loss.end_epoch()
        self._forget_annealed()

    def _forget_annealed(self) -> None:
        """Makes steps trace anew once the losses before the last step do not count any more."""
        last_only = self.query_loss.last_only
        if last_only != self._last_only:
            self._last_only = last_only
            self.forget_programs()

    def _prepare(self, x: Any, y: Any, caller: str, **how: Any) -> tf.data.Dataset:
        how["needs_query"] = self.meta_gradient.needs_query or caller.startswith("predict")
        return super()._prepare(x, y, caller, **how)

    def _check(self, episode: Any, caller: str) -> tuple[int | None, Vocabulary]:
        self._forget_annealed()
        self._set_ways(episode, caller)
        return super()._check(episode, caller)

    @property
    def built_by_values(self) -> bool:
        """Whether heads take as many classes as episodes have labels of."""
        return bool(self._heads())

    def _set_ways(self, episode: Any, caller: str) -> None:
        """Gives heads that take any number of classes as many as the support sets have."""
        heads = self._heads()
        ways = inputs.ways_of(episode[0]) if heads else None
        if ways is None or all(head.ways == ways for head in heads):
            return
        if caller == "validation_data":
            raise ValueError(
                f"The episodes to validate with have {ways} classes, those to train with "
                f"{heads[0].ways}. Call evaluate for tasks with another number of classes."
            )
        self._give_ways([(head, ways) for head in heads])

    def _heads(self) -> list[keras.layers.Layer]:
        return [layer for layer in flatten_layers(self.model) if hasattr(layer, "set_ways")]

    def _give_ways(self, heads: Sequence[tuple[keras.layers.Layer, int]]) -> None:
        if all(head.ways == ways for head, ways in heads):
            return
        with self.changing:
            for head, ways in heads:
                head.set_ways(ways)
            self._known = {}
            self.forget_programs()

    def partition(self) -> Parameters:
        """Returns all variables by what becomes of them, each task's own state left out."""
        return layer_choice.partition(self.model, self.adapted_layers, self.update_rule)

    def parameters(self) -> Parameters:
        """Returns the values of `partition`."""
        return layer_choice.values_of(self.partition())

    def objective(
        self,
        *,
        training: bool = False,
        route: Route = "plain",
        batch_normalization: str | None = None,
    ) -> Objective:
        """Returns the losses of tasks, as functions of the parameters."""
        return Objective(
            self.model,
            self.partition(),
            state_variables(self.model),
            functools.partial(stateless_loss, self._compile_loss),
            batch_normalization or self.batch_normalization,
            training,
            route,
            self.meta_gradient.regularization,
            inner_loss_scale if computes_in_half(self.model) else None,
            self.optimizer.scale_loss(1.0) if training and scales_losses(self.optimizer) else None,
        )


def computes_in_half(model: keras.Model) -> bool:
    """Returns whether a layer computes in float16; bfloat16 has the range of float32."""
    return any(layer.compute_dtype == "float16" for layer in flatten_layers(model))


def _checked_rule(rule: Any) -> UpdateRule:
    if not isinstance(rule, UpdateRule):
        raise ValueError(
            "update_rule must be one of keras_maml.update_rules, or an object of a subclass of "
            f"keras_maml.update_rules.UpdateRule, got {rule!r}."
        )
    return rule


def check_exact_or_first_order(what: str, meta_gradient: meta_gradients.MetaGradient) -> None:
    """Raises ValueError where ``what`` would put another algorithm in a meta-gradient's place."""
    if type(meta_gradient) not in (meta_gradients.Exact, meta_gradients.FirstOrder):
        raise ValueError(
            f'{what} is for meta_gradient="exact" and "first_order", and the learner\'s is '
            f"{type(meta_gradient).__name__}: leave it out, or set meta_gradient to one of these "
            "first."
        )


def meta_gradient_of(
    meta_gradient: Any, first_order: bool, rematerialize: bool
) -> meta_gradients.MetaGradient:
    """Returns the meta-gradient that the settings stand for."""
    validation.check_flag("first_order", first_order)
    validation.check_flag("rematerialize", rematerialize)
    if meta_gradient is None:
        kind = meta_gradients.FirstOrder if first_order else meta_gradients.Exact
        return kind(rematerialize=rematerialize)
    if first_order or rematerialize:
        raise ValueError(
            "Give either meta_gradient or first_order and rematerialize, not both: such as "
            "meta_gradient=keras_maml.meta_gradients.FirstOrder(rematerialize=True)."
        )
    return meta_gradients.get(meta_gradient)
