"""A step that takes long to compile says so, once, and what would be faster."""

import logging
import threading

import pytest
import zoo

from keras_maml import MAML
from keras_maml.learners import patience


@pytest.fixture(name="said")
def messages(monkeypatch):
    """Set once something was said, which is at once; and what was."""
    spoken, said = threading.Event(), []

    class Listener(logging.Handler):
        def emit(self, record):
            said.append(record.getMessage())
            spoken.set()

    listener, logger = Listener(), logging.getLogger("keras_maml")
    monkeypatch.setattr(patience, "PATIENCE", 0.0)
    logger.addHandler(listener)
    yield spoken, said
    logger.removeHandler(listener)


def test_only_the_first_call_is_explained(said):
    spoken, messages = said
    call = patience.first_call_explained(lambda x: spoken.wait(60) and x, lambda: "slow")
    assert [call(2), call(3), call(4)] == [2, 3, 4]
    assert messages == ["slow"]


def test_a_call_that_fails_is_not_the_first_one(said):
    spoken, messages = said

    def fail():
        assert spoken.wait(60)
        spoken.clear()
        raise ValueError("no")

    call = patience.first_call_explained(fail, lambda: "slow")
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            call()
    assert messages == ["slow", "slow"]


def test_nothing_is_said_of_what_is_fast(monkeypatch):
    monkeypatch.setattr(patience, "PATIENCE", 3600.0)
    asked = []
    call = patience.first_call_explained(abs, lambda: asked.append("slow") or "slow")
    assert [call(-1), call(-2)] == [1, 2]
    assert not asked


@pytest.mark.parametrize(
    ("name", "settings", "step", "advice"),
    [
        (
            "lstm",
            {"inner_steps": 5},
            "train step",
            ["than 5", "shorter", "first_order", "jit_compile=False"],
        ),
        ("lstm", {"inner_steps": 5}, "test step", ["shorter", "jit_compile=False"]),
        ("dense", {"first_order": True}, "train step", ["jit_compile=False"]),
    ],
)
def test_the_advice_is_of_this_learner_and_step(name, settings, step, advice):
    learner = MAML(zoo.CASES[name].build(), 0.1, **settings)
    learner.compile("sgd", zoo.CASES[name].loss)
    says = learner.slow_to_compile(step)
    assert f"The first {step} of maml is not done after 20 s" in says
    after = says.split("Faster to compile: ")[1]
    assert len(after.split("; ")) == len(advice)
    assert all(words in after for words in advice)


def test_every_step_of_a_learner_is_explained(said, monkeypatch):
    spoken, messages = said
    learner = MAML(zoo.CASES["dense"].build(), 0.1)
    learner.compile("sgd", zoo.CASES["dense"].loss, jit_compile=False)
    train_step = learner.train_step
    monkeypatch.setattr(learner, "train_step", lambda data: spoken.wait(60) and train_step(data))
    data = zoo.episodes(zoo.CASES["dense"])
    for _ in range(2):
        learner.fit(data, verbose=0)
    assert len(messages) == 1
    assert messages[0].startswith("The first train step of maml")
