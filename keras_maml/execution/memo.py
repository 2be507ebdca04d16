"""What a task's layers have computed, so that none computes the same again.

Where only a head is adapted, the body sees the same inputs with the same weights in every inner
step. A layer that has been called with the very same tensors, inputs and weights alike, answers
with the very same outputs; whatever depends on fast weights has new ones after each step. So
nothing needs to be known of how layers are connected, and models of every kind gain.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_maml.execution.forms import batch_normalizations
from keras_maml.execution.lending import lend
from keras_maml.private_keras import flatten_layers


class Memo:
    """Remembers the outputs of layers that are not adapted, for one task under one tape.

    A tape that watches weights of these layers has to see them computed: what was computed
    before it began is a constant for it, so give it a memo of its own.

    Args:
        adapted: The variables that the inner loop adapts; layers that have any are never
            remembered, since each inner tape has to see them.
    """

    def __init__(self, adapted: Sequence[keras.Variable]) -> None:
        self._adapted = {id(variable) for variable in adapted}
        self._results = {}
        self._open = []  # graphs whose results may be used in graphs within them

    def open(self) -> None:
        """Lets what was computed in this graph be used in graphs within it, such as a loop's body.

        Gradients then have to find their way out of these graphs by themselves.
        """
        self._open.append(tf.compat.v1.get_default_graph())

    @contextlib.contextmanager
    def lent(
        self, model: keras.Model, scope: Any, training: Any, normalizing: Any
    ) -> Iterator[None]:
        """Lends a model's layers calls that remember; inside `forms.differentiable_forms` only.

        Args:
            model: The model.
            scope: The `functional.WeightScope` that gives its variables their values.
            training: What else outputs depend on: hashable.
            normalizing: What those of trainable batch normalisation depend on besides: hashable.
        """
        with contextlib.ExitStack() as stack:
            for layer in _operations(model):
                variables = getattr(layer, "variables", [])
                if self._adapted.isdisjoint(map(id, variables)):
                    normalizes = isinstance(layer, keras.layers.Layer) and batch_normalizations(
                        layer
                    )
                    how = normalizing if normalizes else None
                    key = id(layer), training, how
                    call = functools.partial(self._call, layer.call, key, variables, scope)
                    stack.enter_context(lend(layer, "call", call))
            yield

    def _call(
        self,
        call: Callable,
        key: Any,
        variables: Sequence[keras.Variable],
        scope: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        def values() -> list[Any]:
            return [scope.get_current_value(variable) for variable in variables]

        given, losses = values(), len(scope.losses)
        arguments = keras.tree.flatten((args, kwargs))
        graph = tf.compat.v1.get_default_graph()  # tensors of a loop's body end with it
        key = key, len(args), tuple(kwargs), *(id(one) for one in (*given, *arguments))
        for seen in self._visible_from(graph):
            if (*key, id(seen)) in self._results:
                return self._results[*key, id(seen)][0]
        with scope.reads() as read:
            results = call(*args, **kwargs)
        same = all(a is b for a, b in zip(given, values(), strict=True))
        alone = read <= set(map(id, variables))  # the key knows of no other layer's weights
        if alone and same and losses == len(scope.losses):  # or it does more than to return
            # All of it is kept, so that ids stay theirs.
            self._results[*key, id(graph)] = results, graph, given, arguments
        return results

    def _visible_from(self, graph: tf.Graph) -> Iterator[tf.Graph]:
        yield graph
        while (graph := getattr(graph, "outer_graph", None)) is not None:
            if any(graph is one for one in self._open):
                yield graph


def _operations(model: keras.Model) -> list[Any]:
    """Returns the layers of a model, and the operations between them in functional models."""
    layers = flatten_layers(model)
    others = [operation for layer in layers for operation in getattr(layer, "operations", [])]
    found = {id(one): one for one in (*layers, *others) if one is not model}
    return [one for one in found.values() if not isinstance(one, keras.layers.InputLayer)]
