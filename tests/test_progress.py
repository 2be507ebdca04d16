"""What takes long shows how far it is where somebody looks, and nothing elsewhere."""

import io
import re

import pytest
import tqdm

from experiments.shared.training_bar import TrainingBar
from keras_maml import MAML, episodes, evaluation, networks


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Bars show from the first moment on, and every step."""
    init, shown = tqdm.tqdm.__init__, {"delay": 0, "mininterval": 0}
    monkeypatch.setattr(tqdm.tqdm, "__init__", lambda *a, **k: init(*a, **k | shown))


@pytest.fixture
def learner():
    learner = MAML(networks.sinusoid_regressor(units=(4,), seed=0))
    learner.compile("sgd", "mean_squared_error", jit_compile=False)
    return learner


def test_a_training_says_how_many_iterations_are_done_before_and_now(learner, monkeypatch):
    training = episodes.sinusoid(meta_batch_size=2)
    learner.fit(training, steps_per_epoch=3, verbose=0)
    monkeypatch.setattr("sys.stderr", stream := Terminal())
    bar = TrainingBar(7, "lines")
    learner.fit(training, epochs=2, steps_per_epoch=2, verbose=0, callbacks=[bar])
    found = re.findall(r"lines: .*?\| (\d)/7 \[", stream.getvalue())
    assert [*dict.fromkeys(found)] == ["3", "4", "5", "6", "7"]


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_evaluation_says_how_many_tasks_are_done(stream, learner, monkeypatch):
    monkeypatch.setattr("sys.stderr", stream)
    evaluation.evaluate(learner, episodes.sinusoid(meta_batch_size=4), tasks=10, steps=1)
    if stream.isatty():
        assert "| 4/10 [" in stream.getvalue()
        assert "| 8/10 [" in stream.getvalue()
        assert "12/10" not in stream.getvalue()  # two of the last meta-batch were not asked for
    else:
        assert stream.getvalue() == ""
