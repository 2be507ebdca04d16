"""Lets `tf.vectorized_map` turn a loop over time steps into one loop for all tasks.

TensorFlow vectorises a loop as if every task left it at another turn: it carries an array of the
tasks' results for each of the loop's variables, and asks in every turn whether there are tasks
left. XLA does not compile the arrays (they hold lists), and would run the body as a branch. Where
all tasks leave the loop together, the vectorised loop is simply the loop of the vectorised body.

`tf.vectorized_map` has no public door for that, so its table of converters is given one that
takes the loops that `NAME` marks, and leaves all others to the converter that was there.
"""

import tensorflow as tf
from tensorflow.python.ops.parallel_for import pfor as _pfor

# What the names of such loops contain.
NAME = "keras_maml_loop"


def _convert(pfor_input: _pfor._PforInput) -> list:
    if NAME not in pfor_input.op.name:
        return _pfor._convert_while(pfor_input)
    length = pfor_input.pfor.loop_len_vector
    tasks = tf.get_static_value(length)
    tasks = length[0] if tasks is None else int(tasks[0])
    condition, body = (
        pfor_input.op.graph._get_function(pfor_input.get_attr(name).name)
        for name in ("cond", "body")
    )
    stacked = [value.is_stacked for value in pfor_input.inputs]
    values = [value.t for value in pfor_input.inputs]

    def converted(function, arguments):
        converter = _pfor.PFor(
            loop_var=pfor_input.pfor.loop_var,
            loop_len=tf.convert_to_tensor(tasks),
            pfor_ops=function.graph.get_operations(),
            fallback_to_while_loop=False,
            all_indices=pfor_input.pfor.all_indices,
            all_indices_partitioned=pfor_input.pfor.all_indices_partitioned,
            pfor_config=pfor_input.pfor.pfor_config,
        )
        wrapped = [_pfor.wrap(t, s) for t, s in zip(arguments, stacked, strict=True)]
        return _pfor._convert_function_call(function, converter, wrapped)

    for i, differs in enumerate(_differing(body.graph, stacked)):
        if differs and not stacked[i]:
            stacked[i], values[i] = True, _pfor._stack(values[i], length).t

    def turn(*arguments):
        results = []
        after = converted(body, arguments)
        for result, differs, before in zip(after, stacked, arguments, strict=True):
            if differs and not result.is_stacked:
                result = _pfor._stack(result.t, [tasks])
            result.t.set_shape(before.shape)
            results.append(result.t)
        return results

    results = tf.while_loop(
        lambda *arguments: tf.reshape(converted(condition, arguments)[0].t, []),
        turn,
        values,
        name=NAME,
    )
    return [_pfor.wrap(t, s) for t, s in zip(results, stacked, strict=True)]


def _differing(body: tf.Graph, stacked: list[bool]) -> list[bool]:
    """Returns which variables of a loop differ between tasks, given those that do at first."""
    stacked, before = list(stacked), None
    while stacked != before:  # what differs after a turn makes others differ after the next
        before = list(stacked)
        reached = {id(t) for t, differs in zip(body.inputs, stacked, strict=True) if differs}
        for operation in body.get_operations():
            if operation.type not in _SAME and any(id(t) in reached for t in operation.inputs):
                reached.update(map(id, operation.outputs))
        outputs = body.outputs[: len(stacked)]
        stacked = [a or id(t) in reached for a, t in zip(stacked, outputs, strict=True)]
    return stacked


# Operations whose results are the same for all tasks.
_SAME = ("Shape", "ShapeN", "Size", "Rank")

for _operation in ("While", "StatelessWhile"):
    _pfor._pfor_converter_registry[_operation] = _convert
