"""The examples of reinforcement learning run, and write their curves."""

import functools
import json

import numpy as np
import pytest
from zoo import slow

import keras_maml.rl as rl
from examples import cartpole, pendulum


@pytest.mark.parametrize("example", [cartpole, slow(pendulum)])
def test_example(example, tmp_path, monkeypatch, capsys):
    uncompiled = functools.partial(rl.MetaPolicyGradientAgent, jit_compile=False)
    monkeypatch.setattr(rl, "MetaPolicyGradientAgent", uncompiled)
    small = {"iterations": 2, "tasks": 2, "rollouts": 2, "horizon": 6}
    results = example.main(**small, folder=tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["results"] == results
    # A step of CartPole is worth 1; one of Pendulum costs at most pi^2 + 6.4 + 0.004.
    returns = np.array(results["return by step"])
    low, high = {cartpole: (1, 6), pendulum: (-6 * 16.3, 0)}[example]
    assert len(returns) == 4 and (returns >= low).all() and (returns <= high).all()
    assert (tmp_path / "picture.png").stat().st_size > 5000
    assert "2/2" in capsys.readouterr().out


def test_a_longer_pole_changes_the_physics():
    class Cart:
        length, masspole, polemass_length = 0.5, 0.1, 0.05

    cart = Cart()
    cartpole.set_pole(cart, 2.0)
    assert (cart.length, cart.polemass_length) == (2.0, 0.2)
