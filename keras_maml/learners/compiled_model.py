"""Models whose steps are compiled, as one program or as several."""

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_maml import validation
from keras_maml.execution import tracing
from keras_maml.execution.forms import has_recurrent_layers
from keras_maml.execution.tasks import MODES, Tasks
from keras_maml.execution.workers import Workers
from keras_maml.learners.adapted import WrappedModel
from keras_maml.learners.patience import PATIENCE, first_call_explained
from keras_maml.learners.settings import Setting
from keras_maml.learners.without_xla import first_step_without_xla_where_it_fails
from keras_maml.private_keras import flatten_layers


class CompiledModel(WrappedModel):
    """A model around another model that keeps the programs its steps were compiled to.

    Args:
        model: Any `keras.Model`.
        task_map: How the tasks of a meta-batch run; see `keras_maml.execution.tasks`.
        task_chunk: How many of them may be in memory at once.
        **kwargs: Passed on to `keras.Model`.
    """

    task_map = Setting(validation.one_of(MODES))
    task_chunk = Setting(validation.check_optional_count)

    def __init__(
        self,
        model: keras.Model,
        task_map: str = "auto",
        task_chunk: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        self.patch_bytes = 0  # of the largest episode yet, see `forms.first_call`
        self._compiled_functions = {}
        self.task_map = task_map
        self.task_chunk = task_chunk

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration, with how tasks run."""
        return {
            **super().get_config(),
            "task_map": self.task_map,
            "task_chunk": self.task_chunk,
        }

    def make_train_function(self, force: bool = False) -> None:
        """Makes what `fit` calls; see `keras_maml.execution.compilation` for how it is compiled."""
        self._make_explained("train", force)

    def make_test_function(self, force: bool = False) -> None:
        """Makes what `evaluate` calls, likewise."""
        self._make_explained("test", force)

    def make_predict_function(self, force: bool = False) -> None:
        """Makes what `predict` calls, likewise."""
        self._make_explained("predict", force)

    def _make_explained(self, kind: str, force: bool) -> None:
        name = f"{kind}_function"
        before = getattr(self, name)
        jit_compile = self.jit_compile
        try:
            self.jit_compile = False  # or Keras compiles a step as one program: it may be several
            getattr(super(), f"make_{name}")(force)
        finally:
            self.jit_compile = jit_compile
        made = getattr(self, name)
        if made is not before:
            message = functools.partial(self.slow_to_compile, f"{kind} step")
            made = first_call_explained(made, message)
            if kind == "train":
                made = first_step_without_xla_where_it_fails(self, made)
            setattr(self, name, made)

    def slow_to_compile(self, what: str) -> str:
        """Returns what to say of a step whose first call takes long.

        Args:
            what: Names the step.
        """
        compiler = "XLA compiles" if self.jit_compile else "TensorFlow prepares"
        return (
            f"The first {what} of {self.name} is not done after {PATIENCE:.0f} s: it is traced, "
            f"and {compiler} it, once for each shape of the episodes."
        )

    @property
    def tasks(self) -> Tasks:
        """How the tasks of a meta-batch run."""
        if self.__dict__.get("_tasks") is None:
            self.__dict__["_tasks"] = Tasks(
                self.task_map,
                self.task_chunk,
                patch_bytes=self.patch_bytes,
                loops=has_recurrent_layers(self.model),
                layer_names=[layer.name for layer in flatten_layers(self.model)],
            )
        return self.__dict__["_tasks"]

    def forget_programs(self, tasks: Tasks | None = None) -> None:
        """Makes the next step trace anew, after a setting has changed.

        Args:
            tasks: How tasks run from now on, if that stays as it is.
        """
        self.__dict__["_tasks"] = tasks
        self._compiled_functions = {}
        for kind in ("train", "test", "predict"):
            if getattr(self, f"{kind}_function", None) is not None:
                getattr(self, f"make_{kind}_function")(force=True)

    def call_compiled(self, key: Any, step: Callable, *arguments: Any) -> Any:
        """Calls a step compiled as `compile` says, traced once per key and kind of arguments."""
        if self.run_eagerly:
            return self.run_step(step, *arguments)
        key = key, str(spec_of(arguments))  # in less time than TensorFlow needs for it

        def make() -> Callable:
            function, traced = tracing.function(lambda *a: self.run_step(step, *a)), []

            def call(*arguments: Any) -> Any:
                if not traced:
                    traced.append(function.get_concrete_function(*arguments))
                return traced[0](*arguments)  # where XLA compiles it

            return first_call_explained(call, lambda: self.slow_to_compile("step"))

        return self.compiled_function(key, make)(*arguments)

    def compiled_function(self, key: Any, make: Callable[[], Callable]) -> Callable:
        """Returns what ``make()`` has made for a key since a setting changed."""
        if key not in self._compiled_functions:
            self._compiled_functions[key] = make()
        return self._compiled_functions[key]

    def run_step(
        self,
        step: Callable,
        *arguments: Any,
        jit_compile: bool = True,
        workers: Workers | None = None,
    ) -> Any:
        """Calls ``step(run, *arguments)`` over a meta-batch; see `keras_maml.execution.tasks`.

        Args:
            step: The step.
            *arguments: Nests of tensors ``[tasks, examples, ...]``.
            jit_compile: Whether XLA compiles the step if the learner is compiled so.
            workers: Those that take it together, each on a share of the tasks.
        """
        sizes = [array.shape[1] for array in keras.tree.flatten(arguments)]
        return self.tasks.call(
            step,
            *arguments,
            jit_compile=jit_compile and self.jit_compile and not self.run_eagerly,
            examples=None if None in sizes else max(sizes),
            workers=workers,
        )


def spec_of(episode: Any) -> Any:
    """Returns the shapes and dtypes of a nest of tensors."""
    return keras.tree.map_structure(tf.TensorSpec.from_tensor, episode)
