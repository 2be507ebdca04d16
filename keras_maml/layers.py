"""Layers for the inner loop: weights that every task has of its own, beginning at zero.

A layer may name variables as its ``task_variables``. The inner loop adapts these where the layer
is adapted, every task begins with the values they have, and the outer optimizer leaves them alone.
Other variables of such a layer are meta-trained, and not adapted.
"""

from typing import Any

import keras

from keras_maml import validation
from keras_maml.private_keras import replace_variables


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
    ICML 2019, section 3.

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


@keras.saving.register_keras_serializable("keras_maml")
class SharedHead(keras.layers.Layer):
    """A classifier whose classes all begin with one meta-learned vector (UNICORN-MAML).

        logit_c = (w + d_c) . x + b + e_c,    d = 0 and e = 0 before the first inner step.

    w and b are meta-trained; d and e are adapted and not meta-trained. Adapting them is adapting
    copies of w and b for each class, so the order of classes does not matter, and a learner
    adapts to any number of them: `keras_maml.MAML` gives the head as many as the episodes have
    that it meets.

    With more or fewer classes, a rule with variables of the head's shape (`MetaSGD`,
    `MetaCurvature`) does not fit any more, and says so.

    Args:
        ways: The number of classes; None for as many as the first episodes have.
        activation: As in `keras.layers.Dense`, such as ``"softmax"``.
        kernel_initializer: As in `keras.layers.Dense`.
        **kwargs: Of `keras.layers.Layer`.

    Raises:
        ValueError: ``ways`` is not an integer of at least 1.

    Source: Ye, Chao, How to Train Your MAML to Excel in Few-Shot Classification, ICLR 2022,
    section 5.

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
