"""Where it is decided how the tasks of a meta-batch run; no other module knows.

Tasks run at once where their layers allow it, and one after another where not, or where that is
faster, which depends on the device (see `placement`): convolutions of more than a few small images
leave a processor's cache when all tasks are convolved together. Compiled by XLA, tasks that run at
once are one program with all that comes before and after them; tasks that take turns are several,
side by side on the cores (see `compilation`).
"""

import dataclasses
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from keras_maml.execution import compilation, derivatives, tracing
from keras_maml.execution.forms import Route
from keras_maml.execution.placement import placement
from keras_maml.execution.task_map import (
    VectorizationError,
    in_chunks,
    map_at_once,
    map_sequentially,
    refused_loops,
)
from keras_maml.execution.workers import Workers

MODES = ("auto", "vectorized", "sequential")

_log = logging.getLogger("keras_maml")


@dataclasses.dataclass(frozen=True)
class Run:
    """How the tasks of one step run.

    Attributes:
        route: How a task's function is traced, see `forms.differentiable_forms`.
        task_chunk: How many tasks may be in memory at once; None for no limit.
        programs: Whether the step consists of several compiled programs.
        workers: Those that take the step together, each on a share of the tasks; None where this
            process has all of them.
    """

    route: Route = "plain"
    task_chunk: int | None = None
    programs: bool = False
    workers: Workers | None = None

    def over_tasks(self, function: Callable[[Any], Any], elements: Any) -> list[Any]:
        """Applies a function of many tasks to a meta-batch.

        Args:
            function: From a nest of tensors ``[tasks, ...]`` to a nest of tensors that all have a
                leading axis: of tasks, or of length 1 for a sum over them.
            elements: A nest of tensors with a leading task axis.

        Returns:
            The nests of results of the slices that the meta-batch was cut into.
        """
        if self.programs and self.route != "vectorized":
            program = self.program(function)
            return compilation.side_by_side(program, elements, self.task_chunk)
        at_once = self.program(lambda elements: in_chunks(function, elements, self.task_chunk))
        return [at_once(elements)]

    def map(self, function: Callable[[Any], Any], elements: Any) -> Any:
        """Applies a function of one task to every task.

        Args:
            function: From a nest of tensors to a nest of tensors; it may use tensors of the caller.
            elements: A nest of tensors with a leading task axis.

        Returns:
            The nest of results, stacked along a leading task axis.
        """
        if self.route == "vectorized":
            return map_at_once(function, elements)
        return map_sequentially(function, elements)

    def numbers(self, tasks: int | tf.Tensor) -> tf.Tensor:
        """Returns which tasks of the whole meta-batch these are, ``[tasks]``, from 0."""
        numbers = tf.range(tasks)
        return numbers if self.workers is None else self.workers.index * tasks + numbers

    def program(self, function: Callable) -> Callable:
        """Compiles a part of a step by itself, unless the whole step is one program anyway."""
        if not self.programs:
            return function
        return tracing.function(function, jit_compile=True)


@dataclasses.dataclass(frozen=True)
class RunOfAnySize(Run):
    """How tasks run in a program for any number of tasks and examples, such as a served one.

    All tasks at once where every operation of one task, in its own form, has one over all tasks;
    otherwise one after another. Convolutions with kernels of each task's own have none; those with
    the same kernel for all tasks do, and are one large convolution.
    """

    def map(self, function: Callable[[Any], Any], elements: Any) -> Any:
        """Applies a function of one task to every task; see `Run.map`."""
        # Of its own graph: a failure leaves nothing in the caller's.
        at_once = tracing.function(lambda: map_at_once(function, elements))
        try:
            with refused_loops():
                return at_once()
        except VectorizationError:
            return map_sequentially(function, elements)


class Tasks:
    """Decides how tasks run, and runs them.

    Args:
        mode: ``"vectorized"``, ``"sequential"``, or ``"auto"``: at once unless an operation cannot
            be vectorised, which one message says, or turns are faster: with large patches, and in
            loops that XLA compiles.
        task_chunk: How many tasks may be in memory at once; None for no limit.
        patch_bytes: How large the largest patches of one example are, see `forms.first_call`.
        loops: Whether layers of the model are loops, as recurrent ones are.
        layer_names: The names of the model's layers, to recognise one in the message.

    Raises:
        ValueError: There is no such mode.

    Example:
        >>> def twice(run, x):
        ...     return run.map(lambda x: 2 * x, x)
        >>> Tasks().call(twice, tf.constant([1.0, 2.0]), jit_compile=True).numpy().tolist()
        [2.0, 4.0]
    """

    def __init__(
        self,
        mode: str = "auto",
        task_chunk: int | None = None,
        *,
        patch_bytes: int = 0,
        loops: bool = False,
        layer_names: Sequence[str] = (),
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"task_map must be one of {MODES}, got {mode!r}.")
        self.mode = mode
        self.task_chunk = task_chunk
        self.patch_bytes = patch_bytes
        self.loops = loops
        self.layer_names = layer_names
        self._cannot_vectorize = False

    def run_at_once(
        self, examples: int | None = None, jit_compile: bool = False, tasks: int | None = None
    ) -> bool:
        """Returns whether tasks run at once, as far as is known.

        Args:
            examples: How many examples a forward pass has, at most; None if that is open.
            jit_compile: Whether XLA compiles the program.
            tasks: How many tasks a meta-batch has; None if that is open.
        """
        if self.mode != "auto":
            return self.mode == "vectorized"
        if tasks is not None:
            tasks = min(tasks, self.task_chunk or tasks)
        large = placement().take_turns(examples, self.patch_bytes, tasks)
        loops = self.loops and jit_compile and placement().loops_in_turns
        return not (large or loops or self._cannot_vectorize)

    def call(
        self,
        step: Callable[..., Any],
        *arguments: Any,
        jit_compile: bool = False,
        examples: int | None = None,
        workers: Workers | None = None,
    ) -> Any:
        """Calls a step over a meta-batch, compiled if asked.

        Args:
            step: ``step(run, *arguments)``, with a `Run`, from nests of tensors to a nest.
            *arguments: Nests of tensors.
            jit_compile: Whether XLA compiles it.
            examples: See `run_at_once`.
            workers: See `Run`; XLA compiles what is between their messages, which it cannot.

        Returns:
            What the step returns.

        Raises:
            VectorizationError: The mode is ``"vectorized"``, and an operation cannot be.
            MissingDerivative: A derivative is asked for that TensorFlow does not have.
        """
        with derivatives.naming_layers(self.layer_names):
            results = self._call(step, arguments, jit_compile, examples, workers)
        tracing.free_with_graph()
        return results

    def _call(
        self,
        step: Callable[..., Any],
        arguments: Any,
        jit_compile: bool,
        examples: int | None,
        workers: Workers | None,
    ) -> Any:
        if tf.executing_eagerly():
            return step(Run("plain", self.task_chunk, workers=workers), *arguments)
        # One task at once is one in turns, in the layers' own operations and traced in less time.
        sizes = {array.shape[0] for array in tf.nest.flatten(arguments) if array.shape.rank}
        one = sizes == {1}
        in_turns = one and self.mode == "auto" and not jit_compile
        tasks = max(sizes, default=None) if None not in sizes else None
        if self.run_at_once(examples, jit_compile, tasks) and not in_turns:
            programs = jit_compile and workers is not None
            at_once = Run("vectorized", self.task_chunk, programs, workers)

            def whole(*arguments: Any) -> Any:
                return step(at_once, *arguments)

            try:
                # Of its own graph: a failure leaves nothing in the caller's.
                one_program = jit_compile and not programs
                return tracing.function(whole, jit_compile=one_program)(*arguments)
            except VectorizationError as error:
                if self.mode == "vectorized":
                    raise
                failure = error
        else:
            failure = None
        route = placement().turns if jit_compile else "plain"
        results = step(Run(route, self.task_chunk, jit_compile, workers), *arguments)
        if failure is not None:  # and not an error of the user's own, which would be raised here
            self._cannot_vectorize = True
            _log.warning(
                "%s cannot be vectorised over tasks; the tasks of a meta-batch run one after "
                "another instead (still compiled, but slower).",
                self._culprit(failure.operation),
            )
        return results

    def _culprit(self, operation: str) -> str:
        for part in reversed(re.split(r"[/\s\"]+", operation)):  # the innermost layer
            name = part if part in self.layer_names else re.sub(r"_\d+$", "", part)
            if name in self.layer_names:
                return f"Layer '{name}'"
        return "An operation of the model (" + operation.strip().splitlines()[-1].strip() + ")"
