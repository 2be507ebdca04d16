"""What a run depends on, as JSON, so that no other run goes on in its folder."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_maml.private_keras import flatten_layers

UNSAID = {"name", "dtype", "module", "registered_name", "build_config"}
"""Arguments that Keras counts or names by itself, differently from time to time."""


def described(setting: Any) -> Any:
    """Returns a setting as it is after writing and reading it as JSON.

    Objects are their class and their arguments; of functions there is only the name.

    Args:
        setting: A number, text, array, function, dataclass, object of Keras, or a nest of these.

    Example:
        >>> described([keras.optimizers.schedules.CosineDecay(0.5, 10).get_config()["alpha"], len])
        [0.0, 'len']
    """
    if setting is None or isinstance(setting, bool | int | float | str):
        return setting
    if isinstance(setting, np.ndarray | np.generic):
        return setting.tolist()
    if isinstance(setting, Mapping):
        return {str(k): described(value) for k, value in setting.items() if k not in UNSAID}
    if isinstance(setting, list | tuple):
        return [described(value) for value in setting]
    if dataclasses.is_dataclass(setting):
        arguments = {f.name: getattr(setting, f.name) for f in dataclasses.fields(setting)}
    elif hasattr(setting, "get_config"):
        arguments = _config(setting)
    else:
        return getattr(setting, "__name__", type(setting).__name__)
    return {"kind": type(setting).__name__} | described(arguments)


def layers_of(model: keras.Model) -> dict[str, Any]:
    """Returns the classes of a model's layers, with the arguments that are numbers or texts.

    Others say how weights begin, or hold names and code of the user's, which may change.
    """
    layers = flatten_layers(model)
    said: dict[str, Any] = {"layers": len(layers)}
    for number, layer in enumerate(layers):
        arguments = {} if isinstance(layer, keras.Model) else described(_config(layer))
        plain = {name: value for name, value in arguments.items() if _is_plain(value)}
        plain["policy"] = layer.dtype_policy.name
        said[str(number)] = {"kind": type(layer).__name__} | plain
    return said


def check_same(path: pathlib.Path, settings: dict[str, Any]) -> None:
    """Raises ValueError where a run has other settings than one that is to go on with it.

    Args:
        path: Of a JSON file with the settings of the run. What only one of the two has is new.
        settings: Those of what is to go on, see `described`.
    """
    found = dict(_flat(json.loads(path.read_text())))
    changed = [
        f"{name}: {found[name]!r} there, {value!r} asked for"
        for name, value in _flat(settings)
        if name in found and found[name] != value
    ]
    if changed:
        raise ValueError(
            f"{path.parent} holds a run with other settings ({'; '.join(changed)}). Give the "
            "settings that it was begun with to go on with it, or choose another folder."
        )


def _config(thing: Any) -> dict[str, Any]:
    try:
        return thing.get_config()
    except NotImplementedError:  # a class of the user's that cannot be saved
        return {}


def _is_plain(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return all(isinstance(value, bool | int | float | str) for value in values)


def _flat(settings: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yields names with dots and the values that are no mappings."""
    if not isinstance(settings, dict):
        yield name, settings
        return
    for key, value in settings.items():
        yield from _flat(value, f"{name}.{key}" if name else key)
