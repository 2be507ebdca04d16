"""Pretrained learners: a folder each, with the learner and a card that says how it was made.

saved_models/omniglot-5way-1shot/
  learner.keras    architecture, settings and weights; no optimizer state
  card.json        how it was made and how good it is; what it is compiled with
  card.md          the same to read
"""

import json
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import keras

from keras_maml.maml import MAML

LEARNER, CARD = "learner.keras", "card.json"


def load(name: str, folder: str | os.PathLike | None = None) -> MAML:
    """Loads a pretrained learner, compiled and ready to adapt, to evaluate or to train on.

    Args:
        name: Its name, such as ``"omniglot-5way-1shot"``.
        folder: Where learners are; see `models_folder`.

    Returns:
        The learner.

    Raises:
        FileNotFoundError: There is no such folder, or no learner of this name in it.

    Example:
        >>> import keras_maml
        >>> learner = keras_maml.load("omniglot-5way-1shot")  # doctest: +SKIP
        >>> adapted = learner.adapt(x_support, y_support)  # doctest: +SKIP
    """
    path = models_folder(folder) / name
    if not name or not (path / LEARNER).exists():
        names = ", ".join(available(folder)) or "none at all"
        raise FileNotFoundError(
            f"{path.parent} holds no pretrained learner {name!r}. There are: {names}. Other "
            "folders: keras_maml.load(name, folder) or the environment variable KERAS_MAML_MODELS."
        )
    learner = keras.models.load_model(path / LEARNER)
    learner.compile_from_config(card(name, folder)["compile"])
    return learner


def available(folder: str | os.PathLike | None = None) -> list[str]:
    """Returns the names of the learners that there are.

    Args:
        folder: Where learners are; see `models_folder`.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    return sorted(path.parent.name for path in models_folder(folder).glob(f"*/{LEARNER}"))


def card(name: str, folder: str | os.PathLike | None = None) -> dict[str, Any]:
    """Returns what is known of a learner: command, commit, data, licence, score, settings.

    Args:
        name: Its name.
        folder: Where learners are; see `models_folder`.

    Raises:
        FileNotFoundError: There is no such learner.
    """
    return json.loads((models_folder(folder) / name / CARD).read_text())


def models_folder(folder: str | os.PathLike | None = None) -> pathlib.Path:
    """Finds the folder of pretrained learners.

    Args:
        folder: The folder itself; None: ``$KERAS_MAML_MODELS``, or else ``saved_models/`` of the
            checkout that this package is imported from.

    Raises:
        FileNotFoundError: There is no such folder: an installed package comes without learners.
    """
    checkout = pathlib.Path(__file__).parents[1] / "saved_models"
    path = pathlib.Path(folder or os.environ.get("KERAS_MAML_MODELS") or checkout)
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} is not a folder. Pretrained learners come with a checkout of keras_maml, in "
            "saved_models/: pass that folder, or set the environment variable KERAS_MAML_MODELS."
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

    Args:
        learner: A built and compiled learner.
        path: The folder to be written.
        card: What is known of the learner; can be written as JSON.
        text: The same as Markdown.
        replace: Whether to replace a folder that is there.

    Raises:
        FileExistsError: The folder is there and not to be replaced.
    """
    path = pathlib.Path(path)
    if path.exists() and not replace:
        raise FileExistsError(f"{path} is there already. Choose another name, or replace it.")
    if path.exists() and not (path / CARD).exists():
        raise FileExistsError(f"{path} holds no pretrained learner: it is not replaced.")
    # A learner that was never compiled is saved without the state of its optimizer.
    plain = type(learner).from_config(learner.get_config())
    plain.model.set_weights(learner.model.get_weights())
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as temporary:
        new = pathlib.Path(temporary) / "new"
        new.mkdir()
        plain.save(new / LEARNER)
        content = {**card, "compile": learner.get_compile_config()}
        (new / CARD).write_text(json.dumps(content, indent=1) + "\n")
        (new / "card.md").write_text(text)
        if path.exists():
            path.rename(new.with_name("old"))
        new.rename(path)
