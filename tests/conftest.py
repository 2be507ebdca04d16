"""Fixtures that every test shares."""

import gc

import keras
import pytest
from tensorflow.python.util import tf_stack

from keras_maml.learners import patience
from keras_maml.learners.episodic_model import EpisodicModel

# Traced programs are millions of objects. Looking for garbage among them as often as Python does
# by itself takes a seventh of the time.
gc.freeze()
gc.set_threshold(100_000, 100_000, 100)  # nor is there much among what is not young any more

# For every operation a graph notes the lines that made it, which takes an eighth of the time of
# tracing under pytest and is asked for by no test.
_stack = tf_stack.extract_stack()
tf_stack.extract_stack = lambda stacklevel=1: _stack

# What is said must not depend on how fast the machine is.
patience.PATIENCE = 3600.0


@pytest.fixture(autouse=True)
def fresh_keras():
    """Seeds everything, and gives layers the same names in every test."""
    keras.utils.clear_session(free_memory=False)  # names only: collecting garbage takes 0.2 s
    keras.utils.set_random_seed(1234)
    yield
    # The fixtures of modules are set up before this one clears what a test has left.
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def float64():
    """Double precision, for comparisons with finite differences."""
    keras.config.set_floatx("float64")


@pytest.fixture(scope="module")
def without_xla():
    """XLA takes seconds for every program; test_meta_gradients shows that it changes nothing."""
    compile_ = EpisodicModel.compile

    def plain(learner, *args, jit_compile=False, **kwargs):
        compile_(learner, *args, jit_compile=jit_compile, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EpisodicModel, "compile", plain)
        yield
