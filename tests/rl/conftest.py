"""What all tests of reinforcement learning share."""

import random

import keras
import numpy as np
import pytest

import keras_maml.rl  # noqa: F401  (before any test module imports TF-Agents, which needs Keras 2)


@pytest.fixture(autouse=True)
def fresh_keras():
    """Seeds what is drawn from; unlike `keras.utils.set_random_seed` keeps compiled programs."""
    random.seed(1234)
    np.random.seed(1234)
    yield
    set_precision("float32")


@pytest.fixture
def float64():
    """Double precision, for comparisons with finite differences."""
    set_precision("float64")


def set_precision(dtype):
    """Without `keras.backend.clear_session`, new layers would keep the dtype of earlier ones."""
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
