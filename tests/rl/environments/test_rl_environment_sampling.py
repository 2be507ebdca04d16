"""The sampling benchmark: every contender steps what it says, and the table compares with bare."""

import numpy as np
import pytest

from experiments.benchmarks import samplers, sampling

NAME = "keras_maml/HalfCheetahVelocity-v0"


def test_every_contender_is_measured():
    assert set(samplers.KINDS) == {*sampling.CONTENDERS, *sampling.WITH_PROCESSES}


@pytest.mark.parametrize("kind", sampling.CONTENDERS)
def test_contenders_step(kind):
    sampler = samplers.Sampler(kind, NAME, "paper", 3)
    assert len(sampler.time(2)) == 2


def test_single_environment_of_tf_agents_starts_again_after_its_end():
    env = samplers.SinglePyEnvironment(NAME, "paper")
    first = env.reset()
    for _ in range(200):
        last = env.step(np.zeros(6, np.float32))
    assert first.is_first() and last.is_last() and last.discount == 1.0
    assert env.step(np.zeros(6, np.float32)).is_first()


def test_table():
    def figures(count, ms):
        return {"environments": count, "median_ms": ms, "quartiles_ms": [ms, ms], "steps": 7}

    contenders = {sampling.BARE: figures(100, 2.0), "SyncVectorEnv": figures(100, 8.0)}
    record = {"name": NAME, "physics": "paper", "contenders": contenders}
    *_, bare, sync = sampling.table({"line": record}).splitlines()
    assert bare.split()[:4] == ["mujoco.batch", "100", "50000", "100"]
    assert sync.split()[:4] == ["SyncVectorEnv", "100", "12500", "25"]


def test_unknown_contenders_are_refused():
    with pytest.raises(ValueError, match="kind must be one of"):
        samplers.make("Threads", NAME, "paper", 1)
