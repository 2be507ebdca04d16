"""Gives TF-Agents the Keras 2 it needs, in a process whose own Keras is Keras 3.

TF-Agents and TensorFlow Probability reach Keras as ``tf.keras`` and work with Keras 2 only, the
package tf_keras. Setting ``TF_USE_LEGACY_KERAS=1`` would have to come before TensorFlow is
imported, which `keras_maml` itself does. So `use_legacy_keras` points ``tf.keras`` at tf_keras,
before TF-Agents is imported. ``import keras`` stays Keras 3.
"""

import contextlib
import importlib.util
import io
import sys

import tensorflow as tf

PACKAGES = ("tf_agents", "tf_keras", "tensorflow_probability", "gymnasium")


def use_legacy_keras() -> None:
    """Makes ``tf.keras`` tf_keras for the rest of the process.

    Raises:
        ImportError: A package of the extra ``rl`` is not installed, or TF-Agents or TensorFlow
            Probability was imported before while ``tf.keras`` was Keras 3.

    Example:
        >>> use_legacy_keras()
        >>> tf.keras.layers.Layer.__module__.startswith("tf_keras")
        True
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"keras_maml.rl needs {', '.join(missing)}, which is not installed. Install the "
            "extra: pip install 'keras-maml[rl]' (Python 3.11)."
        )
    if is_legacy():
        return
    loaded = [name for name in ("tf_agents", "tensorflow_probability") if name in sys.modules]
    if loaded:
        raise ImportError(
            f"{' and '.join(loaded)} was imported while tf.keras was Keras 3, with which it does "
            "not work. Import keras_maml.rl first, or set the environment variable "
            "TF_USE_LEGACY_KERAS=1 before Python starts."
        )
    import tf_keras

    with contextlib.suppress(ImportError), contextlib.redirect_stderr(io.StringIO()):
        import gym  # noqa: F401 (TF-Agents imports it, and it prints a notice when first imported)

    # Every name under which TF-Agents and TensorFlow Probability look for it.
    for module in (tf, tf.compat.v1, tf.compat.v2):
        module.keras = tf_keras
    sys.modules["tensorflow.keras"] = tf_keras
    if not is_legacy():
        raise ImportError(
            "tf.keras could not be pointed at tf_keras. Set the environment variable "
            "TF_USE_LEGACY_KERAS=1 before Python starts."
        )


def is_legacy() -> bool:
    """Whether ``tf.keras`` is Keras 2."""
    return tf.keras.layers.Layer.__module__.startswith("tf_keras")
