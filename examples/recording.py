"""What the examples share: their options, and what they leave in a folder."""

import argparse
import inspect
import json
import pathlib
from collections.abc import Callable

import keras
import numpy as np
from matplotlib.figure import Figure

from experiments.shared import runs
from keras_maml.files import write_json
from keras_maml.reporting import plots


def run(main: Callable) -> None:
    """Calls an example with what was typed: its arguments are the options.

    Results that are in the folder already are kept unless ``--overwrite`` is typed.
    """
    module = inspect.getmodule(main)
    parser = argparse.ArgumentParser(
        prog=module.__spec__ and f"python -m {module.__spec__.name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, parameter in inspect.signature(main).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:  # settings for those who call it
            continue
        default = parameter.default
        kind = str if default is None else type(default)
        text = None if default is None else "default: %(default)s"
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace what is in the folder")
    values = vars(parser.parse_args())
    overwrite = values.pop("overwrite")
    there = pathlib.Path(values["folder"]) / "results.json"
    if there.exists() and not overwrite:
        parser.error(f"{there} is there: choose another --folder, or add --overwrite.")
    try:
        main(**values)
    except (ValueError, OSError, ImportError) as error:  # of the user's making
        parser.exit(1, f"{parser.prog}: {error}\n")


def record(folder: str, figure: Figure, seed: int, results: dict) -> dict:
    """Writes picture.png and results.json, prints the results and returns them."""
    path = pathlib.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    plots.save(figure, path / "picture.png")
    results = keras.tree.map_structure(_rounded, results)
    write_json(path / "results.json", runs.made_with() | {"seed": seed, "results": results})
    lines = [f"{name}: {json.dumps(value)}" for name, value in results.items()]
    print(*lines, path / "picture.png", sep="\n")
    return results


def _rounded(value):
    return value if isinstance(value, str | int) else np.round(value, 4).tolist()
