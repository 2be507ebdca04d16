"""Layers for the inner loop: weights of every task's own, and weights of every step's own.

A layer may name variables as its ``task_variables``. The inner loop adapts these where the layer
is adapted, every task begins with the values they have, and the outer optimizer leaves them alone.
Other variables of such a layer are meta-trained, and not adapted.

A layer may have an integer variable called ``inner_step``, not trainable. In the inner loop it
holds the number of the inner step, counted from 0; when the query set is measured, that of the
last step taken.
"""

from typing import Any

import keras

from keras_maml import validation
from keras_maml.execution.forms import batch_normalizations
from keras_maml.private_keras import is_functional, replace_variables


@keras.saving.register_keras_serializable("keras_maml")
class ContextParameters(keras.layers.Layer):
    """Parameters that say which task it is (CAVIA): zero at first, adapted, not meta-trained.

        phi <- phi - alpha grad_phi L_support(theta, phi),    phi = 0 before the first step;
        theta is meta-trained only.

    Inputs ``[examples, ..., features]`` become ``[examples, ..., features + units]``: the context
    is appended to the features. With ``concatenate=False`` the outputs are the context alone,
    ``[examples, units]``, such as for a dense layer that makes scales and shifts of it (FiLM), as
    the authors condition convolutions.

    Args:
        units: How many context parameters there are.
        concatenate: Whether to append them to the inputs.
        **kwargs: Of `keras.layers.Layer`.

    Raises:
        ValueError: ``units`` is not an integer of at least 1.

    Source: Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson, Fast Context Adaptation via Meta-Learning,
    ICML 2019.

    Example:
        >>> layer = ContextParameters(2)
        >>> layer(keras.ops.ones((1, 3))).numpy().tolist()
        [[1.0, 1.0, 1.0, 0.0, 0.0]]
    """

    def __init__(self, units: int, concatenate: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        validation.check_count("units", units, minimum=1)
        validation.check_flag("concatenate", concatenate)
        self.units, self.concatenate = int(units), concatenate

    def build(self, input_shape: Any) -> None:
        """Makes the context."""
        self.context = self.add_weight(shape=(self.units,), initializer="zeros", name="context")

    @property
    def task_variables(self) -> list[keras.Variable]:
        """What every task has of its own: the context."""
        return [self.context] if self.built else []

    def call(self, inputs: Any) -> Any:
        """Appends the context to the inputs, or returns it alone."""
        context = keras.ops.cast(self.context, self.compute_dtype)
        if not self.concatenate:
            inputs = keras.ops.reshape(inputs, (keras.ops.shape(inputs)[0], -1))
        repeated = keras.ops.zeros_like(inputs[..., :1]) + context
        if not self.concatenate:
            return repeated
        return keras.ops.concatenate([keras.ops.cast(inputs, self.compute_dtype), repeated], -1)

    def compute_output_shape(self, input_shape: Any) -> tuple:
        """Returns the shape of the outputs."""
        if not self.concatenate:
            return (input_shape[0], self.units)
        return (*input_shape[:-1], input_shape[-1] + self.units)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        settings = {"units": self.units, "concatenate": self.concatenate}
        return {**super().get_config(), **settings}


# A logit that a softmax makes 0, and that float16 holds.
_NEVER = -1e4


@keras.saving.register_keras_serializable("keras_maml")
class SharedHead(keras.layers.Layer):
    """A classifier whose classes all begin with one meta-learned vector (UNICORN-MAML).

        logit_c = (w + d_c) . x + b + e_c,    d = 0 and e = 0 before the first inner step.

    w and b are meta-trained; d and e are adapted and not meta-trained. Adapting them is adapting
    copies of w and b for each class, so the order of classes does not matter, and a learner
    adapts to any number of them: `keras_maml.MAML` gives the head as many as the episodes have
    that it meets.

    With more or fewer classes, a rule with variables of the head's shape (`MetaSGD`,
    `MetaCurvature`) does not fit any more, and says so. What is exported takes requests of as many
    classes as the head has then, see `set_ways`, or fewer.

    Args:
        ways: The number of classes; None for as many as the first episodes have.
        activation: As in `keras.layers.Dense`, such as ``"softmax"``.
        kernel_initializer: As in `keras.layers.Dense`.
        **kwargs: Of `keras.layers.Layer`.

    Raises:
        ValueError: ``ways`` is not an integer of at least 1.

    Source: Ye, Chao, How to Train Your MAML to Excel in Few-Shot Classification, ICLR 2022.

    Example:
        >>> head = SharedHead(ways=3)
        >>> logits = head(keras.ops.ones((1, 2)))[0].numpy()
        >>> bool(logits[0] == logits[1] == logits[2])
        True
        >>> head.set_ways(12)
        >>> head(keras.ops.ones((1, 2))).shape
        TensorShape([1, 12])
    """

    def __init__(
        self,
        ways: int | None = None,
        activation: Any = None,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        validation.check_optional_count("ways", ways)
        self.ways = 2 if ways is None else int(ways)
        self.activation = keras.activations.get(activation)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape: Any) -> None:
        """Makes the shared vector and the classes' differences from it."""
        self._features = input_shape[-1]
        self.kernel = self.add_weight(
            shape=(self._features, 1), initializer=self.kernel_initializer, name="kernel"
        )
        self.bias = self.add_weight(shape=(1,), initializer="zeros", name="bias")
        self._make_differences()

    def set_ways(self, ways: int) -> None:
        """Changes the number of classes; nothing that was learned depends on it."""
        if ways == self.ways:
            return
        self.ways = int(ways)
        if self.built:
            replace_variables(self, self.task_variables, self._make_differences)

    def _make_differences(self) -> None:
        shapes = {"kernel_of_class": (self._features, self.ways), "bias_of_class": (self.ways,)}
        self.kernel_of_class, self.bias_of_class = (
            self.add_weight(shape=shape, initializer="zeros", name=name)
            for name, shape in shapes.items()
        )

    @property
    def task_variables(self) -> list[keras.Variable]:
        """What every task has of its own: how its classes differ from the shared vector."""
        return [self.kernel_of_class, self.bias_of_class] if self.built else []

    def values_for(self, classes: Any) -> list[Any]:
        """Returns what adaptation to fewer classes than there are ways begins with.

        The other classes begin so far below that their probability is 0 in every inner step: the
        classes that there are get the probabilities of a head of as many ways.

        Args:
            classes: How many classes there are, a scalar integer.

        Returns:
            Values of the ``task_variables``.
        """
        classes = keras.ops.cast(classes, "int32")  # labels are integers of any width
        absent = keras.ops.cast(keras.ops.arange(self.ways) >= classes, self.bias.dtype)
        return [keras.ops.zeros_like(self.kernel_of_class), absent * _NEVER]

    def call(self, inputs: Any) -> Any:
        """Returns a logit, or what the activation makes of it, for every class."""
        kernel, bias = self.kernel + self.kernel_of_class, self.bias + self.bias_of_class
        cast = [keras.ops.cast(weight, self.compute_dtype) for weight in (kernel, bias)]
        return self.activation(keras.ops.matmul(inputs, cast[0]) + cast[1])

    def compute_output_shape(self, input_shape: Any) -> tuple:
        """Returns the shape of the outputs."""
        return (*input_shape[:-1], self.ways)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {
            **super().get_config(),
            "ways": self.ways,
            "activation": keras.activations.serialize(self.activation),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable("keras_maml")
class PerStepBatchNormalization(keras.layers.Layer):
    """Batch normalisation with a scale and an offset for every inner step (MAML++'s BNWB).

        y = gamma_i (x - mean) / sqrt(variance + epsilon) + beta_i    in inner step i.

    Mean and variance are those of the batch at hand, so every step has its own, too; where a
    learner normalises inductively, the query set takes those of the support set under the weights
    of the same step. gamma and beta are meta-trained and not adapted, as in the authors' code.
    Steps beyond the last take the last one's; the initialisation takes the first one's, and a
    query set those of the last step before it.

    Args:
        steps: How many inner steps have a scale and an offset of their own.
        axis: The axis of the features, as in `keras.layers.BatchNormalization`.
        epsilon: Is added to the variance.
        **kwargs: Of `keras.layers.Layer`.

    Raises:
        ValueError: ``steps`` is not an integer of at least 1.

    Source: Antoniou, Edwards, Storkey, How to train your MAML, ICLR 2019; which weights are
    adapted, and which step's a query set takes, is from the authors' code.

    Example:
        >>> layer = PerStepBatchNormalization(steps=2)
        >>> layer(keras.ops.ones((4, 3))).shape
        TensorShape([4, 3])
        >>> [tuple(variable.shape) for variable in layer.trainable_variables]
        [(2, 3), (2, 3)]
    """

    def __init__(
        self, steps: int = 5, axis: int = -1, epsilon: float = 0.001, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        validation.check_count("steps", steps, minimum=1)
        self.steps, self.axis, self.epsilon = int(steps), axis, epsilon
        self.supports_masking = True
        self.normalization = keras.layers.BatchNormalization(
            axis, epsilon=epsilon, center=False, scale=False, dtype=self.dtype_policy
        )

    def build(self, input_shape: Any) -> None:
        """Makes scales, offsets and the number of the step."""
        self.normalization.build(input_shape)
        shape = (self.steps, input_shape[self.axis])
        self.gamma = self.add_weight(shape=shape, initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=shape, initializer="zeros", name="beta")
        self.inner_step = self.add_weight(
            shape=(), initializer="zeros", dtype="int32", trainable=False, name="inner_step"
        )

    @property
    def task_variables(self) -> list[keras.Variable]:
        """None: scales and offsets are meta-trained, and not adapted."""
        return []

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalises, and applies the scale and the offset of the step."""
        outputs = self.normalization(inputs, training=training, mask=mask)
        step = keras.ops.minimum(self.inner_step, self.steps - 1)
        # A product, and not an index: its derivatives are dense.
        chosen = keras.ops.one_hot(step, self.steps, dtype=self.gamma.dtype)[None]
        shape = [1] * len(outputs.shape)
        shape[self.axis] = -1
        gamma, beta = (
            keras.ops.cast(
                keras.ops.reshape(keras.ops.matmul(chosen, of_steps), shape), outputs.dtype
            )
            for of_steps in (self.gamma, self.beta)
        )
        return outputs * gamma + beta

    def compute_output_shape(self, input_shape: Any) -> tuple:
        """Returns the shape of the inputs."""
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        settings = {"steps": self.steps, "axis": self.axis, "epsilon": self.epsilon}
        return {**super().get_config(), **settings}


def per_step_batch_normalization(model: keras.Model, steps: int) -> keras.Model:
    """Puts `PerStepBatchNormalization` in the place of batch normalisation.

    Args:
        model: A sequential or functional model. Frozen layers stay what they are.
        steps: How many inner steps have a scale and an offset of their own.

    Returns:
        Another model of the same layers, which both train, but for batch normalisation: there every
        step begins with the scale and the offset of the model's layer. The model itself where it
        has no batch normalisation.

    Raises:
        ValueError: The model, or a layer that normalises inside, is a subclass, whose layers cannot
            be exchanged.

    Example:
        >>> stack = [keras.Input((4,)), keras.layers.BatchNormalization(name="norm")]
        >>> per_step = per_step_batch_normalization(keras.Sequential(stack), steps=3)
        >>> tuple(per_step.get_layer("norm").gamma.shape)
        (3, 4)
    """
    replaced = {}

    def exchanged(layer: Any) -> Any:
        plain = type(layer) is keras.layers.BatchNormalization and not layer.renorm
        if not (plain and layer.trainable):
            return layer
        replaced[layer] = PerStepBatchNormalization(
            steps, layer.axis, layer.epsilon, name=layer.name, dtype=layer.dtype_policy
        )
        return replaced[layer]

    before = batch_normalizations(model)
    if not before:
        return model
    if is_functional(model):
        result = keras.models.clone_model(model, clone_function=exchanged, recursive=True)
    if len(replaced) < len(before):
        left = [layer.name for layer in before if layer not in replaced]
        raise ValueError(
            f"The batch normalisation {left} cannot be exchanged for one with weights per step: "
            "only that of Keras can be, in sequential and functional models. Put "
            "keras_maml.layers.PerStepBatchNormalization into the model yourself, and pass "
            "per_step_batch_normalization=False."
        )
    for layer, per_step in replaced.items():
        for ours, theirs in ((layer.gamma, per_step.gamma), (layer.beta, per_step.beta)):
            if layer.built and ours is not None:
                theirs.assign(keras.ops.broadcast_to(ours, theirs.shape))
    return result
