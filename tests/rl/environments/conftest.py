"""Makes TF-Agents importable, whatever a test module imports first."""

import keras_maml.rl  # noqa: F401
