"""Pretrained learners: a folder each, with the learner and a card that says how it was made.

saved_models/omniglot-5way-1shot/
  learner.keras    architecture, settings and weights; no optimizer state
  card.json        how it was made and how good it is; what it is compiled with
  card.md          the same to read
"""

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from keras_maml.files import flush
from keras_maml.learners.maml import MAML

LEARNER, CARD = "learner.keras", "card.json"
REPLACED = ".replaced"
"""Where a learner waits until the one that replaces it is in place."""


def load(name: str, folder: str | os.PathLike | None = None) -> MAML:
    """Loads a pretrained learner, compiled and ready to adapt, to evaluate or to train on.

    Args:
        name: Its name, such as ``"omniglot-5way-1shot"``.
        folder: Where learners are; see `models_folder`.

    Returns:
        The learner.

    Raises:
        FileNotFoundError: There is no such folder, or no learner of this name in it.
        ValueError: The learner's files are damaged.

    Example:
        >>> import keras_maml
        >>> learner = keras_maml.load("omniglot-5way-1shot")  # doctest: +SKIP
        >>> adapted = learner.adapt(x_support, y_support)  # doctest: +SKIP
    """
    return _load(_find(name, folder))


def _load(path: pathlib.Path) -> MAML:
    """Loads the learner of a folder, as `save` writes it."""
    learner = read(path / LEARNER)
    with _damage_reported(path / CARD):
        learner.compile_from_config(json.loads((path / CARD).read_text())["compile"])
    return learner


def read(file: str | os.PathLike, compile: bool = True) -> MAML:
    """Reads a learner from its ``.keras`` file.

    Args:
        file: The file.
        compile: Whether to compile it as it was when it was saved, if it was.

    Returns:
        The learner.

    Raises:
        ValueError: The file is missing or damaged.
    """
    with _damage_reported(file):
        return keras.models.load_model(file, compile=compile)


@contextlib.contextmanager
def _damage_reported(file: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except ImportError:  # A package is missing, such as huggingface_hub: its message says so.
        raise
    except Exception as error:  # Damaged files raise nearly anything.
        raise ValueError(
            f"{file} cannot be loaded ({type(error).__name__}: {error}). Write or fetch it again."
        ) from error


def available(folder: str | os.PathLike | None = None) -> list[str]:
    """Returns the names of the learners that there are.

    Args:
        folder: Where learners are; see `models_folder`.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    models = models_folder(folder)
    found = (*models.glob(f"*/{LEARNER}"), *models.glob(f"{REPLACED}/*/{LEARNER}"))
    return sorted({path.parent.name for path in found})


def card(name: str, folder: str | os.PathLike | None = None) -> dict[str, Any]:
    """Returns what is known of a learner: command, commit, data, licence, score, settings.

    Args:
        name: Its name.
        folder: Where learners are; see `models_folder`.

    Raises:
        FileNotFoundError: There is no such learner.
    """
    return json.loads((_find(name, folder) / CARD).read_text())


def models_folder(folder: str | os.PathLike | None = None) -> pathlib.Path:
    """Finds the folder of pretrained learners.

    Args:
        folder: The folder itself; None: ``$KERAS_MAML_MODELS``, or else the learners that are
            installed with this package, or else ``saved_models/`` of the checkout that it is
            imported from.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    package = pathlib.Path(__file__).parents[1]
    installed, checkout = package / "saved_models", package.parent / "saved_models"
    ours = installed if installed.is_dir() else checkout
    path = pathlib.Path(folder or os.environ.get("KERAS_MAML_MODELS") or ours)
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} is not a folder. Pretrained learners come with keras_maml, in saved_models/. "
            "For others, pass their folder, or set the environment variable KERAS_MAML_MODELS."
        )
    return path


def save(
    learner: MAML,
    path: str | os.PathLike,
    card: Mapping[str, Any],
    text: str,
    replace: bool = False,
) -> None:
    """Writes the folder of a pretrained learner, whole or not at all.

    A folder cannot be renamed over another one. The old learner is moved aside for the moment
    between two renames, and `load` finds it there, also if the process is killed in between. Only
    who is reading one while it is replaced may get the files of both. Before that, the new one is
    loaded, and not kept if it is not the same.

    Args:
        learner: A built and compiled learner.
        path: The folder to be written.
        card: What is known of the learner; can be written as JSON.
        text: The same as Markdown.
        replace: Whether to replace a folder that is there.

    Raises:
        FileExistsError: The folder is there and not to be replaced.
        ValueError: What was written cannot be loaded, such as a class that is not registered, or
            lacks weights.
    """
    path = pathlib.Path(path)
    aside = path.parent / REPLACED / path.name
    if (path.exists() or aside.exists()) and not replace:
        raise FileExistsError(f"{path} is there already. Choose another name, or replace it.")
    if path.exists() and not (path / CARD).exists():
        raise FileExistsError(f"{path} holds no pretrained learner: it is not replaced.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as temporary:
        new, whole = pathlib.Path(temporary, "new"), pathlib.Path(temporary, LEARNER)
        new.mkdir()
        # Only Keras's own file holds all of a learner. One that is not compiled is saved without
        # the state of an optimizer.
        learner.save(whole)
        content = {**card, "compile": learner.get_compile_config()}
        (new / CARD).write_text(json.dumps(content, indent=1) + "\n")
        (new / "card.md").write_text(text, encoding="utf-8")
        try:
            read(whole, compile=False).save(new / LEARNER)
            loaded = _load(new)
        except ValueError as error:
            raise ValueError(
                f"{path} is not written, as the learner that was saved cannot be loaded: register "
                "classes and functions of your own with "
                f"keras.saving.register_keras_serializable. ({error})"
            ) from error
        if _weights(loaded) != _weights(learner):
            raise ValueError(
                f"{type(learner.model).__name__} is loaded with other weights than it was saved "
                "with. Let its build make the variables of all its layers."
            )
        flush(new)
        if path.exists():
            shutil.rmtree(aside, ignore_errors=True)
            aside.parent.mkdir(exist_ok=True)
            path.rename(aside)
        new.rename(path)
        flush(path.parent, below=False)
    shutil.rmtree(aside, ignore_errors=True)
    with contextlib.suppress(OSError):  # there is none, or another learner waits there
        aside.parent.rmdir()


def _weights(learner: MAML) -> list[tuple[tuple, bytes]]:
    return [(array.shape, array.tobytes()) for array in learner.get_weights()]


def is_name(name: Any) -> bool:
    """Whether a learner can have this name: that of a folder, not a path, not hidden."""
    return isinstance(name, str) and name == pathlib.Path(name).name and name[:1] not in ("", ".")


def _find(name: str, folder: str | os.PathLike | None) -> pathlib.Path:
    """Returns the folder of a learner, or of the one that is just being replaced."""
    models = models_folder(folder)
    if is_name(name):
        path = models / name
        # The new one may have come into place between the first look and the second.
        for place in (path, models / REPLACED / name, path):
            if (place / LEARNER).exists():
                return place
    names = ", ".join(available(folder)) or "none at all"
    raise FileNotFoundError(
        f"{models} holds no pretrained learner {name!r}. There are: {names}. Other "
        "folders: keras_maml.load(name, folder) or the environment variable KERAS_MAML_MODELS."
    )
