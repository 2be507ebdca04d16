"""SavedModels that adapt where they are served, without Python.

All inputs but those of ``serving_default`` have the tasks as their first axis, see `signatures`.
Tasks and inner steps of the signatures whose sizes are free are loops of plain TensorFlow
operations; those of fixed shapes run tasks as training does, compiled by XLA if asked.

The number of inner steps has signatures of its own: a SavedModel can give an input a default
value, but Python's loader refuses a request that leaves such an input out (TensorFlow 2.21).
"""

import json
import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from keras_maml import validation
from keras_maml.files import whole_folder
from keras_maml.learners.maml import MAML
from keras_maml.private_keras import flatten_layers
from keras_maml.serving import warmup
from keras_maml.serving.fast_weights import ServedLearner
from keras_maml.serving.traces import SIGNATURES, Tracer

FACTS = "keras_maml.json"
"""What `Personalizer` reads of a SavedModel, in its assets.extra."""


def export(
    learner: MAML,
    filepath: str | os.PathLike,
    *,
    signatures: Sequence[str] = SIGNATURES,
    steps: int | None = None,
    batch_normalization: str | None = None,
    shapes: Sequence[tuple[int, int, int]] = (),
    jit_compile: bool = False,
    overwrite: bool = False,
    verbose: bool = True,
) -> None:
    """Writes a SavedModel for TensorFlow Serving: whole, or not at all.

    Its signatures:

    - ``serving_default``: ``x [examples, ...]`` to the predictions of the meta-learned
      initialisation, as ``learner(x)``: batch normalisation takes the batch at hand. (This
      signature alone takes no task axis.)
    - ``adapt_and_predict``: ``x_support [tasks, examples, ...]``, ``y_support [tasks, examples,
      ...]`` and ``x_query [tasks, queries, ...]`` to the predictions for the queries after
      adaptation, as `learner.predict`.
    - ``adapt``: ``x_support`` and ``y_support`` to ``weights [tasks, n]``: what adaptation moved,
      and the statistics that inductive normalisation needs. A kilobyte may be a customer.
    - ``predict_with``: ``x [tasks, queries, ...]`` and ``weights [tasks, n]`` to predictions.
    - ``adapt_and_predict_steps`` and ``adapt_steps``: the same with ``steps``, the number of inner
      steps of each task: int32 ``[tasks]``; 0 is the initialisation.

    The numbers of examples, queries and tasks are free, and so are sizes that the model's inputs
    and outputs leave open; other sizes and the dtypes are those of the last episodes that the
    learner has seen; whole numbers count as floats where inputs and outputs of the model are such,
    or floats were seen before. Nested inputs and targets are flattened to names such as
    ``x_support_left`` or ``x_support_0``. A single output is called ``predictions``; a dictionary
    of outputs keeps its keys; others are ``predictions_0`` and so on. Support examples have equal
    weights. Malformed requests, and classes or tokens that the model does not have, fail with a
    message that says what was expected.

    Requests of several customers may be joined along the first axis, as TensorFlow Serving's
    batcher does with ``--enable_batching`` (leave out ``pad_variable_length_inputs``: it would
    add support examples).

    Args:
        learner: A compiled learner that has seen an episode.
        filepath: The folder to write, on a local disk. TensorFlow Serving expects its last part
            to be a version number. Missing parents are created.
        signatures: Which of ``"adapt_and_predict"``, ``"adapt"`` and ``"predict_with"``.
        steps: The inner steps of ``adapt_and_predict`` and ``adapt``; by default
            `evaluation_steps`.
        batch_normalization: ``"transductive"`` or ``"inductive"``; by default the learner's.
        shapes: Triples ``(tasks, support, query)``. Each adds signatures for just these numbers,
            in which tasks run as in training, named as in ``adapt_and_predict_1x5x25``.
        jit_compile: Whether XLA compiles those. TensorFlow Serving then needs the flag
            ``--xla_cpu_compilation_enabled``.
        overwrite: Whether to replace a SavedModel that is already there.
        verbose: Whether to print where the SavedModel is and what its signatures take.

    Raises:
        FileExistsError: ``filepath`` exists; it is left as it is.
        ValueError: The learner is not compiled, has not seen an episode, or an argument is out
            of range.

    Warns:
        UserWarning: ``predict_with`` is likely to get one query at a time, which transductive
            normalisation would normalise by itself.

    Example:
        >>> import tempfile
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> learner = MAML(model, inner_learning_rate=0.1)
        >>> learner.compile(optimizer="adam", loss="mean_squared_error")
        >>> x = tf.random.normal([1, 10, 1])
        >>> adapted = learner.adapt(x[0], 2 * x[0])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     learner.export(folder + "/line/1", verbose=False)
        ...     served = tf.saved_model.load(folder + "/line/1").signatures
        >>> x_query = tf.constant([[[0.5], [3.0]]])
        >>> answer = served["adapt_and_predict"](x_support=x, y_support=2 * x, x_query=x_query)
        >>> answer["predictions"].shape
        TensorShape([1, 2, 1])

        Adapted once, asked often:

        >>> weights = served["adapt"](x_support=x, y_support=2 * x)["weights"]
        >>> weights.shape
        TensorShape([1, 2])
        >>> again = served["predict_with"](x=x_query, weights=weights)["predictions"]
        >>> bool(tf.reduce_all(tf.abs(again - answer["predictions"]) < 1e-5))
        True
    """
    for name in signatures:
        validation.check_choice("signatures", name, SIGNATURES)
    validation.check_flag("jit_compile", jit_compile)
    shapes = [_check_shape(shape) for shape in shapes]
    if jit_compile and not shapes:
        raise ValueError(
            "jit_compile=True compiles the signatures of fixed shapes: pass shapes, such as "
            "shapes=[(1, 5, 25)] for one task of 5 support examples and 25 queries."
        )
    filepath = pathlib.Path(filepath)
    check_destination(filepath, overwrite)
    check_ready(learner, "export")
    served = ServedLearner(learner, batch_normalization)
    tracer = Tracer(served, learner.evaluation_steps if steps is None else steps)
    unasked = batch_normalization is None and served.depends_on_other_queries
    if "predict_with" in signatures and unasked:
        warn_of_single_queries(stacklevel=4)
    functions = tracer.of_any_size(signatures)
    for shape in shapes:
        functions |= tracer.of_fixed_sizes(signatures, shape, jit_compile)
    module = module_of(learner, functions)
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    with whole_folder(filepath, replace=overwrite) as folder:
        tf.saved_model.save(module, str(folder), functions, options)
        _without_names_of_gradients(folder / "saved_model.pb")
        warmup.write(folder, tracer.requests)
        facts = {"checksum": served.checksum(), "weights": served.size, "steps": tracer.steps}
        facts |= {"batch_normalization": served.normalization, "warn_of_single_queries": unasked}
        (folder / "assets.extra" / FACTS).write_text(json.dumps(facts) + "\n")
    if verbose:
        calls = [
            f"{name}({', '.join(sorted(function.structured_input_signature[1]))})"
            for name, function in functions.items()
        ]
        print(f"Exported to {filepath}: {', '.join(calls)}")


def module_of(learner: MAML, functions: Mapping[str, Any]) -> tf.Module:
    """Returns what traced functions are saved with: all that they refer to."""
    module = tf.Module()
    variables = [v for function in functions.values() for v in function.variables]
    module.served_variables = list({id(v): v for v in variables}.values())
    # Layers may hold resources other than variables, such as lookup tables. Not the whole model:
    # if it was compiled itself, its optimizer would be saved with it.
    module.layers = [
        layer for layer in flatten_layers(learner.model) if not isinstance(layer, keras.Model)
    ]
    return module


def check_ready(learner: MAML, caller: str) -> None:
    """Raises ValueError unless a learner is compiled and knows its support set's shapes."""
    if not learner.compiled:
        raise ValueError(f"{caller} needs the loss of the inner steps: call compile before.")
    if learner.support_spec is None:
        raise ValueError(
            f"{caller} needs the shape and dtype of the support set, which the learner does not "
            "know yet: call fit, evaluate, build_on or adapt once before, or load a learner saved "
            "after that."
        )


def warn_of_single_queries(stacklevel: int, todo: str = "Pass") -> None:
    """Warns that a prediction depends on the queries that it is made together with.

    Args:
        stacklevel: Who is to blame, as `warnings.warn` counts.
        todo: What to do with the argument that says how queries are normalised.
    """
    warnings.warn(
        "This learner normalises queries transductively: by the statistics of all queries of "
        "a request. Asked for one at a time, or for queries of one class, it is little better "
        f'than chance. {todo} batch_normalization="inductive", and best train the learner so, '
        "too. If every request holds a whole query set as in training, "
        f'{todo[0].lower()}{todo[1:]} batch_normalization="transductive" to say so.',
        stacklevel=stacklevel,
    )


def _without_names_of_gradients(file: pathlib.Path) -> None:
    """Takes out what Python's loader would print a warning for: dozens of them.

    Operations name the gradient that they had while tracing. It is part of the graphs already, and
    a SavedModel that holds none to take again need not name any.
    """
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    for graph in (meta_graph.graph_def for meta_graph in saved.meta_graphs):
        for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
            for node in nodes:
                if not node.op.endswith("PartitionedCall"):
                    node.attr.pop("_gradient_op_type", None)
    file.write_bytes(saved.SerializeToString(deterministic=True))


# --- files -----------------------------------------------------------------------------------


def check_destination(
    folder: pathlib.Path, overwrite: bool, what: str = "a SavedModel", mark: str = "saved_model.pb"
) -> None:
    """Checks that nothing is lost where a folder is to be written.

    Args:
        folder: The folder.
        overwrite: Whether it may replace one of its kind.
        what: What it is to hold.
        mark: The file by which its kind is known.

    Raises:
        FileExistsError: There is something else, or something that may not be replaced.
    """
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / mark).is_file():
        raise FileExistsError(
            f"{folder} exists and is not {what}: choose another folder, such as {folder / '1'}."
        )
    if not overwrite:
        raise FileExistsError(
            f"{folder} already holds {what}: choose another folder (the next version number), or "
            "pass overwrite=True to replace it."
        )


def _check_shape(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    if not isinstance(shape, (tuple, list)) or len(shape) != 3:
        raise ValueError(f"shapes must hold triples (tasks, support, query), got {shape!r}.")
    for name, size in zip(("tasks", "support", "query"), shape, strict=True):
        validation.check_count(f"{name} in shapes", size, minimum=1)
    return tuple(shape)
