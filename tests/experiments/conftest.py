"""Fixtures that the tests of experiments share."""

import pytest

from keras_maml.learners.episodic_model import EpisodicModel


@pytest.fixture(scope="module")
def without_xla():
    """XLA takes seconds for every program; test_meta_gradients shows that it changes nothing."""
    compile_ = EpisodicModel.compile

    def plain(learner, *args, jit_compile=False, **kwargs):
        compile_(learner, *args, jit_compile=jit_compile, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EpisodicModel, "compile", plain)
        yield
