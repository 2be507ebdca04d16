"""What takes long shows how far it is where somebody looks, and nothing elsewhere."""

import io

import pytest
import tqdm

from keras_maml import MAML, episodes, evaluation, networks


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_evaluation_says_how_many_tasks_are_done(stream, monkeypatch):
    at_once = {"delay": 0, "mininterval": 0}
    init = tqdm.tqdm.__init__
    monkeypatch.setattr(tqdm.tqdm, "__init__", lambda *a, **k: init(*a, **k | at_once))
    monkeypatch.setattr("sys.stderr", stream)
    learner = MAML(networks.sinusoid_regressor(units=(4,), seed=0))
    learner.compile(loss="mean_squared_error", jit_compile=False)
    evaluation.evaluate(learner, episodes.sinusoid(meta_batch_size=4), tasks=10, steps=1)
    if stream.isatty():
        assert "| 4/10 [" in stream.getvalue()
        assert "| 8/10 [" in stream.getvalue()
        assert "12/10" not in stream.getvalue()  # two of the last meta-batch were not asked for
    else:
        assert stream.getvalue() == ""
