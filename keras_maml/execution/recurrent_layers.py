"""Keras's recurrent layers as recurrences that can be differentiated to any order.

`recur` computes what `keras.layers.RNN` and its kind compute, from the layer's cell. LSTM, GRU and
SimpleRNN cells take their product with the inputs for all time steps at once, before the
recurrence; any other cell is called as it is, its weights being constants of the recurrence. Of
stacked cells each runs over the whole sequence before the next one does.

Dropout draws one mask per sequence, as in Keras: different ones for each gate where Keras does so.
A cell that draws random numbers of its own at every time step, or keeps other state, is unrolled.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_maml.execution.linear import add_bias
from keras_maml.execution.random import hashed_uniform
from keras_maml.execution.recurrence import Step, Tensors, recurrence, unrolled

# Shorter sequences are unrolled.
MIN_LOOP_STEPS = 2


@dataclasses.dataclass(frozen=True)
class _Plan:
    """A cell as the parts of a `recurrence`.

    Attributes:
        step: One time step.
        carry: The first carry.
        inputs: What differs from step to step.
        results: Takes the cell's output and its states out of a carry.
        constants: What does not differ.
        matrix: What the first of the carry is multiplied with.
        keeps_state: Whether a step changes variables, so that it cannot be a loop's.
    """

    step: Step
    carry: Tensors
    inputs: Tensors
    results: Callable[[Tensors], tuple[tf.Tensor, Any]]
    constants: Tensors = dataclasses.field(default_factory=list)
    matrix: tf.Tensor | None = None
    keeps_state: bool = False


def recur(
    layer: keras.layers.RNN,
    sequences: Any,
    initial_state: Any = None,
    mask: tf.Tensor | None = None,
    training: bool = False,
    unroll: bool = False,
) -> Any:
    """Computes ``layer(sequences, initial_state, mask, training)``, exact to any order.

    Args:
        layer: A built `keras.layers.RNN`, LSTM, GRU or SimpleRNN.
        sequences: ``[examples, time, ...]``, or a nest of such for a cell of one's own.
        initial_state: The states before the first time step; zeros if None.
        mask: Whether a time step counts, ``[examples, time]``.
        training: Whether the cells' dropout is active.
        unroll: Whether to unroll sequences of any length, which must be known.

    Returns:
        What the layer returns.
    """
    if layer.stateful:
        return type(layer).call(
            layer, sequences, initial_state=initial_state, mask=mask, training=training
        )
    cell = layer.cell
    if initial_state is None:
        examples = tf.nest.flatten(sequences)[0]
        examples = examples.shape[0] or tf.shape(examples)[0]
        initial_state = layer.get_initial_state(batch_size=examples)
    states = list(initial_state) if keras.tree.is_nested(initial_state) else [initial_state]
    states = keras.tree.map_structure(lambda t: tf.cast(t, cell.compute_dtype), states)
    inputs = keras.tree.map_structure(_time_first, sequences)
    mask = None if mask is None else tf.cast(_time_first(keras.tree.flatten(mask)[0]), tf.bool)
    if layer.go_backwards:
        inputs = keras.tree.map_structure(lambda t: tf.reverse(t, [0]), inputs)
        mask = None if mask is None else tf.reverse(mask, [0])
    last, outputs, states = _run(cell, inputs, states, mask, training, unroll)
    if mask is not None and layer.zero_output_for_mask:
        outputs = tf.where(_expand(mask, outputs), outputs, tf.zeros_like(outputs))
        last = outputs[-1]
    cast = lambda t: tf.cast(t, layer.compute_dtype)  # noqa: E731
    output = cast(_time_first(outputs) if layer.return_sequences else last)
    if not layer.return_state:
        return output
    return (output, *keras.tree.map_structure(cast, list(states)))


def _run(cell, inputs, states, mask, training, unroll):
    """Returns the last output, all outputs ``[time, examples, ...]`` and the last states."""
    if type(cell) is keras.layers.StackedRNNCells:
        after, last, outputs = [], None, inputs
        for inner, state in zip(cell.cells, states, strict=True):
            nested = keras.tree.is_nested(state)
            last, outputs, state = _run(
                inner, outputs, list(state) if nested else [state], mask, training, unroll
            )
            after.append(state if nested else state[0])
        return last, outputs, after
    plan = _PLANS.get(type(cell), _any_cell)(cell, inputs, states, training)
    if mask is not None:
        plan = _masked(plan, mask)
    unroll = unroll or plan.keeps_state or _is_short(plan.inputs[0])
    run = unrolled if unroll else recurrence
    last, carries = run(plan.step, plan.carry, plan.inputs, plan.constants, plan.matrix)
    _forget_masks(cell)
    output, states = plan.results(last)
    return output, plan.results(carries)[0], states


def _forget_masks(cell):
    """Lets a cell of Keras's kind draw new dropout masks for the next sequence."""
    for name in ("reset_dropout_mask", "reset_recurrent_dropout_mask"):
        if type(cell) not in _PLANS and hasattr(cell, name):
            getattr(cell, name)()


def _is_short(inputs: tf.Tensor) -> bool:
    return inputs.shape[0] is not None and inputs.shape[0] < MIN_LOOP_STEPS


def _time_first(tensor: tf.Tensor) -> tf.Tensor:
    return tf.transpose(tensor, [1, 0, *range(2, tensor.shape.rank)])


def _expand(mask: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    shape = tf.concat([tf.shape(mask), [1] * (like.shape.rank - mask.shape.rank)], 0)
    return tf.reshape(mask, shape) if mask.shape.rank < like.shape.rank else mask


def _masked(plan: _Plan, mask: tf.Tensor) -> _Plan:
    """Keeps the carry where a time step does not count, and repeats the output before."""
    first, _ = plan.results(plan.carry)

    def step(carry, product, inputs, constants):
        *carry, shown = carry
        counts, *inputs = inputs
        following = plan.step(carry, product, inputs, constants)
        output, _ = plan.results(following)
        return [
            tf.where(_expand(counts, new), new, old)
            for new, old in zip([*following, output], [*carry, shown], strict=True)
        ]

    def results(carry):
        return carry[-1], plan.results(carry[:-1])[1]

    return dataclasses.replace(
        plan,
        step=step,
        carry=[*plan.carry, tf.zeros_like(first)],
        inputs=[mask, *plan.inputs],
        results=results,
    )


# --- cells whose product with the inputs is taken for all time steps at once --------------------


def _lstm(cell, inputs, states, training):
    def gates(z, c):
        i, f, new, o = tf.split(z, 4, -1)
        squash = cell.recurrent_activation
        c = squash(f) * c + squash(i) * cell.activation(new)
        return [squash(o) * cell.activation(c), c]

    def step(carry, product, inputs, constants):
        return gates(inputs[0] + product, carry[1])

    def step_with_dropout(carry, product, inputs, constants):
        return gates(inputs[0] + _product_with_dropout(carry[0], *constants), carry[1])

    projected = _project(cell, inputs, cell.bias, 4, training)
    results = lambda carry: (carry[0], list(carry))  # noqa: E731
    kernel, keep = _recurrent_parts(cell, states[0], 4, training)
    if keep is None:
        return _Plan(step, states, [projected], results, matrix=kernel)
    return _Plan(step_with_dropout, states, [projected], results, [kernel, *keep])


def _gru(cell, inputs, states, training):
    units = cell.units
    kernel, keep = _recurrent_parts(cell, states[0], 3, training)
    bias, inner_bias = None, tf.zeros([3 * units], kernel.dtype)
    if cell.use_bias:
        bias = _weight(cell, cell.bias)
        if cell.reset_after:
            bias, inner_bias = tf.unstack(bias)
    keep = keep or [None] * 3

    def step(carry, product, inputs, constants):
        h, x, inner_bias = carry[0], inputs[0], constants[0]
        if product is None:
            product = _product_with_dropout(h, constants[1][:, : 2 * units], *constants[2:4])
            if cell.reset_after:
                last = _product_with_dropout(h, constants[1][:, 2 * units :], constants[4])
                product = tf.concat([product, last], -1)
        x_gates, x_new = tf.split(x, [2 * units, units], -1)
        gates = product[:, : 2 * units] + inner_bias[: 2 * units]
        z, r = tf.split(cell.recurrent_activation(x_gates + gates), 2, -1)
        if cell.reset_after:
            inner = r * (product[:, 2 * units :] + inner_bias[2 * units :])
        else:
            inner = r * h if len(constants) < 5 else r * h * constants[4]
            inner = tf.matmul(inner, constants[1][:, 2 * units :])
        new = cell.activation(x_new + inner)
        return [z * h + (1 - z) * new]

    projected = _project(cell, inputs, bias, 3, training)
    results = lambda carry: (carry[0], list(carry))  # noqa: E731
    if keep[0] is not None:
        return _Plan(step, states, [projected], results, [inner_bias, kernel, *keep])
    if cell.reset_after:
        return _Plan(step, states, [projected], results, [inner_bias], kernel)
    constants = [inner_bias, kernel]
    return _Plan(step, states, [projected], results, constants, kernel[:, : 2 * units])


def _simple(cell, inputs, states, training):
    activate = cell.activation or (lambda x: x)

    def step(carry, product, inputs, constants):
        if product is None:
            product = _product_with_dropout(carry[0], *constants)
        return [activate(inputs[0] + product)]

    projected = _project(cell, inputs, cell.bias, None, training)
    results = lambda carry: (carry[0], list(carry))  # noqa: E731
    kernel, keep = _recurrent_parts(cell, states[0], None, training)
    if keep is None:
        return _Plan(step, states, [projected], results, matrix=kernel)
    return _Plan(step, states, [projected], results, [kernel, *keep])


def _weight(cell, variable):
    return tf.cast(tf.convert_to_tensor(variable), cell.compute_dtype)


def _project(cell, inputs, bias, gates, training):
    """Multiplies the inputs of all time steps with the kernel, and adds the bias."""
    kernel = _weight(cell, cell.kernel)
    inputs = tf.cast(inputs, kernel.dtype)
    keep = _masks(cell, cell.dropout, inputs[0], gates, training)
    if keep is None:
        outputs = tf.tensordot(inputs, kernel, 1)
    else:
        kernels = tf.split(kernel, len(keep), -1)
        parts = zip(keep, kernels, strict=True)
        outputs = tf.concat([tf.tensordot(inputs * m, k, 1) for m, k in parts], -1)
    return outputs if bias is None else add_bias(outputs, _weight(cell, bias))


def _recurrent_parts(cell, state, gates, training):
    """Returns the recurrent kernel and the masks of its dropout, or None."""
    kernel = _weight(cell, cell.recurrent_kernel)
    return kernel, _masks(cell, cell.recurrent_dropout, state, gates, training)


def _product_with_dropout(h, kernel, *keep):
    kernels = tf.split(kernel, len(keep), -1)
    return tf.concat([tf.matmul(h * m, k) for m, k in zip(keep, kernels, strict=True)], -1)


def _masks(cell, rate, like, gates, training):
    """Draws the masks of dropout, one for each gate where the cell does so."""
    if not training or not 0 < rate < 1:
        return None
    count = getattr(cell, "dropout_mask_count", None)
    shape = like.shape if like.shape.is_fully_defined() else tf.shape(like)
    masks = []
    for _ in range(count or 1):
        keep = hashed_uniform(cell.seed_generator.next(), shape) >= rate
        masks.append(tf.cast(keep, like.dtype) / tf.constant(1 - rate, like.dtype))
    return masks


# --- any other cell -----------------------------------------------------------------------------


def _any_cell(cell, inputs, states, training):
    is_layer = isinstance(cell, keras.layers.Layer)
    settings = {"training": training} if is_layer and cell._call_has_training_arg else {}
    variables = cell.variables if is_layer else []
    values = [tf.convert_to_tensor(variable) for variable in variables]
    flat_states = keras.tree.flatten(states)

    def call(flat_inputs, flat):
        """Returns the output and the flat states."""
        x = keras.tree.pack_sequence_as(inputs, flat_inputs)
        output, after = cell(x, keras.tree.pack_sequence_as(states, flat), **settings)
        return [*keras.tree.flatten(after), output]

    def step(carry, product, inputs, constants):
        with _holding(variables, constants):
            return call(inputs, carry[:-1])

    def step_of_its_own(carry, product, inputs, constants):
        return call(inputs, carry[:-1])

    def results(carry):
        return carry[-1], keras.tree.pack_sequence_as(states, list(carry[:-1]))

    flat_inputs = keras.tree.flatten(inputs)
    output, pure = _try(cell, lambda s, x: call(x, s), flat_states, flat_inputs, variables, values)
    carry = [*flat_states, output]
    if pure:
        return _Plan(step, carry, flat_inputs, results, values)
    return _Plan(step_of_its_own, carry, flat_inputs, results, keeps_state=True)


def _try(cell, step, states, inputs, variables, values):
    """Calls a cell in a graph that is thrown away.

    Returns:
        Zeros shaped as its output, and whether it is a function of its arguments and its weights.
    """
    graph = tf.__internal__.FuncGraph("cell")
    with graph.as_default():
        given = [tf.stop_gradient(value) for value in values]
        with _holding(variables, given) as scope:
            *_, output = step([tf.zeros_like(t) for t in states], [t[0] for t in inputs])
        assigns = any(
            scope.get_current_value(variable) is not value
            for variable, value in zip(variables, given, strict=True)
        )
    known = {id(t) for t in (*states, *inputs, *values)}
    strange = [t for t, _ in graph.captures if id(t) not in known and _may_be_trained(t)]
    draws = any(getattr(cell, name, 0) for name in ("dropout", "recurrent_dropout"))
    batch = _examples(inputs[0])
    zeros = tf.zeros([batch, *output.shape[1:]], output.dtype)
    return zeros, not (draws or assigns or strange or scope.losses)


def _may_be_trained(tensor):
    return tensor.dtype.is_floating or tensor.dtype == tf.resource


def _holding(variables, values):
    return keras.StatelessScope(zip(variables, values, strict=True), collect_losses=True)


def _examples(inputs):
    return tf.shape(inputs)[1] if inputs.shape[1] is None else inputs.shape[1]


_PLANS = {
    keras.layers.LSTMCell: _lstm,
    keras.layers.GRUCell: _gru,
    keras.layers.SimpleRNNCell: _simple,
}
