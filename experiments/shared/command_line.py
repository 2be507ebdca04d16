"""Command lines of experiments: their options are the fields of dataclasses."""

import dataclasses
import shlex
import sys
from collections.abc import Callable
from typing import Any

import simple_parsing

from experiments.shared.interruption import INTERRUPTION
from keras_maml.execution.faults import WorkersError
from keras_maml.execution.workers import Workers, count_workers


def run_command(
    name: str, description: str, run: Callable, *arguments: type, on_workers: bool = False
) -> None:
    """Runs an experiment as a command.

    Args:
        name: The module's name in `experiments`.
        description: What ``--help`` says.
        run: Called with an instance of each dataclass.
        *arguments: The dataclasses.
        on_workers: Whether several workers can run it together: it is called with ``workers=``.
    """
    parser = simple_parsing.ArgumentParser(
        prog=f"python -m experiments.{name}",
        description=description,
        add_option_string_dash_variants=simple_parsing.DashVariant.DASH,
    )
    for argument in arguments:
        parser.add_arguments(with_plain_flags(argument), argument.__name__.lower())
    given = parser.parse_args()
    values = [getattr(given, argument.__name__.lower()) for argument in arguments]
    try:
        if not on_workers:
            check_one_process()
        workers = Workers()
        with INTERRUPTION.continuable(as_typed), workers.sharing_errors(counted_on=True):
            run(*values, **({"workers": workers} if on_workers else {}))
            workers.all_ready()  # none leaves while others go on
    except (ValueError, OSError, FloatingPointError, WorkersError) as error:
        # Of the user's making: the message says it all.
        parser.exit(2, f"{parser.prog}: {error}\n")


def check_one_process() -> None:
    """Raises ValueError where several workers run a command that is for one process."""
    if count_workers() > 1:
        raise ValueError("runs in one process: start it without keras_maml.launch.")


def values_of(kind: type) -> Any:
    """Returns what the command line says of a dataclass alone, whatever else is asked for.

    Args:
        kind: A dataclass, whose values choose the defaults of other options.
    """
    parser = simple_parsing.ArgumentParser(
        add_help=False, add_option_string_dash_variants=simple_parsing.DashVariant.DASH
    )
    parser.add_arguments(kind, "values")
    return parser.parse_known_args()[0].values


def with_plain_flags(kind: type) -> type:
    """Returns a dataclass whose booleans are taken back by ``--no-name``, not by ``--noname``.

    Args:
        kind: A frozen dataclass.
    """
    flags = [
        (f.name, bool, simple_parsing.field(default=f.default, negative_prefix="--no-"))
        for f in dataclasses.fields(kind)
        if isinstance(f.default, bool)
    ]
    return with_fields(kind, flags)


def with_defaults(settings: Any) -> type:
    """Returns a dataclass like that of ``settings`` whose defaults are its values.

    Args:
        settings: An instance of a frozen dataclass.
    """
    kind = type(settings)
    fields = [
        (f.name, f.type, dataclasses.field(default=getattr(settings, f.name), metadata=f.metadata))
        for f in dataclasses.fields(kind)
    ]
    return with_fields(kind, fields)


def with_fields(kind: type, fields: list[tuple]) -> type:
    """Returns a dataclass like ``kind`` with fields of other defaults.

    It says that it comes from ``kind``'s module: what ``--help`` says is looked for in its source.
    """
    where = {"__module__": kind.__module__, "__doc__": kind.__doc__}
    return dataclasses.make_dataclass(
        kind.__name__, fields, bases=(kind,), namespace=where, frozen=True
    )


def as_typed() -> str:
    """Returns the command that started this process, as a user would type it."""
    module = getattr(sys.modules["__main__"].__spec__, "name", None)
    return shlex.join(["python", "-m", module or "experiments", *sys.argv[1:]])
