"""Gymnasium's spaces in the language of TF-Agents: specs, and batches of what they describe."""

from typing import Any

import numpy as np
from gymnasium import spaces
from tf_agents.specs import array_spec

BRANCHES = "Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of them"


def spec_of(space: spaces.Space, name: str) -> Any:
    """Returns the spec of a space.

    Args:
        space: A Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of them.
        name: What the space is of, for the spec and for messages.

    Returns:
        A nest of `array_spec.BoundedArraySpec`. Floating numbers are float32, integers keep their
        dtype (uint8 for pictures); discrete ones begin with 0, whatever the space begins with.

    Raises:
        ValueError: The space is of another kind, or a Box of truth values.

    Example:
        >>> spec_of(spaces.Discrete(3, start=5), "action").maximum
        array(2)
        >>> spec_of(spaces.Dict({"speed": spaces.Box(-1.0, 1.0, (2,))}), "action")["speed"].shape
        (2,)
    """
    if isinstance(space, spaces.Dict):
        return {key: spec_of(part, f"{name}_{key}") for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(spec_of(part, f"{name}_{index}") for index, part in enumerate(space.spaces))
    if isinstance(space, spaces.Box) and space.dtype != bool:
        dtype = _dtype(space)
        return array_spec.BoundedArraySpec(
            space.shape, dtype, space.low.astype(dtype), space.high.astype(dtype), name
        )
    if isinstance(space, spaces.Discrete):
        return array_spec.BoundedArraySpec((), space.dtype, 0, int(space.n) - 1, name)
    if isinstance(space, spaces.MultiDiscrete):
        return array_spec.BoundedArraySpec(space.shape, space.dtype, 0, space.nvec - 1, name)
    if isinstance(space, spaces.MultiBinary):
        return array_spec.BoundedArraySpec(space.shape, space.dtype, 0, 1, name)
    raise ValueError(
        f"The space of {name} must be {BRANCHES}, with truth values as MultiBinary, got {space}. "
        "Change it with a wrapper, such as gymnasium.wrappers.FlattenObservation, "
        "TransformObservation or TransformAction."
    )


def to_space(space: spaces.Space, actions: Any) -> Any:
    """Turns actions of a policy into those of a batch of environments.

    Args:
        space: Of one environment's actions.
        actions: ``[environments, ...]``, or a nest of such, as `spec_of` describes them.

    Returns:
        NumPy arrays of the space's dtype in the same nest: clipped to the bounds of a Box, and
        counted from where a discrete space begins.

    Raises:
        FloatingPointError: An action is not finite.
        ValueError: There is no such choice.

    Example:
        >>> to_space(spaces.Box(-2.0, 2.0, (1,)), np.array([[0.5], [7.0]])).tolist()
        [[0.5], [2.0]]
        >>> to_space(spaces.Discrete(3, start=5), np.array([0, 2])).tolist()
        [5, 7]
    """
    if isinstance(space, spaces.Dict):
        return {key: to_space(part, actions[key]) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(
            to_space(part, action) for part, action in zip(space.spaces, actions, strict=True)
        )
    array = np.asarray(actions)
    if isinstance(space, spaces.Box):
        check_finite("action", array)
        return np.clip(array, space.low, space.high).astype(space.dtype)
    check_choices(array, spec_of(space, "action").maximum)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        array = array + space.start
    return array.astype(space.dtype)


def from_space(space: spaces.Space, observations: Any) -> Any:
    """Turns observations of a batch of environments into those a policy takes.

    Args:
        space: Of one environment's observations.
        observations: ``[environments, ...]``, or a nest of such.

    Returns:
        NumPy arrays in the same nest, as `spec_of` describes them.

    Raises:
        FloatingPointError: An observation is not finite.
    """
    if isinstance(space, spaces.Dict):
        return {key: from_space(part, observations[key]) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        parts = zip(space.spaces, observations, strict=True)
        return tuple(from_space(part, observation) for part, observation in parts)
    array = np.asarray(observations)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        array = array - space.start
    array = array.astype(_dtype(space))
    check_finite("observation", array)
    return array


def check_choices(actions: np.ndarray, most: np.ndarray) -> None:
    """Raises ValueError unless integers ``[environments, ...]`` are in 0 .. ``most``."""
    wrong = (actions < 0) | (actions > most)
    if wrong.any():
        index = int(np.argwhere(wrong)[0][0])
        raise ValueError(
            f"Actions must be integers from 0 to {np.asarray(most).tolist()}, but environment "
            f"{index} got {actions[index].tolist()}. Give the policy a distribution with as many "
            "choices as the environment."
        )


def check_finite(name: str, values: np.ndarray) -> None:
    """Raises FloatingPointError unless floating values ``[environments, ...]`` are finite."""
    if not np.issubdtype(values.dtype, np.floating) or np.isfinite(values).all():
        return
    index = int(np.argwhere(~np.isfinite(values))[0][0])
    reason = {
        "action": "The policy has become NaN or infinite; look at its last update.",
        "observation": "The environment has become unstable; reset it to go on.",
    }[name]
    raise FloatingPointError(
        f"The {name} of environment {index} is not finite, {values[index].tolist()}. {reason}"
    )


def _dtype(space: spaces.Space) -> np.dtype:
    return np.dtype(np.float32) if np.issubdtype(space.dtype, np.floating) else space.dtype
