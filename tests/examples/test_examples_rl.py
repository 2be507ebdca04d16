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
    small = {"iterations": 2, "tasks": 2, "rollouts": 2, "horizon": 6, "test_tasks": 4}
    results = example.main(**small, folder=tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["results"] == results
    # A step of CartPole is worth 1; one of Pendulum costs at most pi^2 + 6.4 + 0.004.
    returns = np.array(results["return by step"])
    low, high = {cartpole: (1, 6), pendulum: (-6 * 16.3, 0)}[example]
    assert len(returns) == 4 and (returns >= low).all() and (returns <= high).all()
    assert (tmp_path / "picture.png").stat().st_size > 5000
    assert "2/2" in capsys.readouterr().out


def test_a_task_is_the_wiring_and_the_length_of_the_pole():
    class Cart:
        masspole = 0.1

    cart = Cart()
    cartpole.set_cart(cart, -0.5)
    assert cart.force_mag == -10.0 and cart.length == pytest.approx(1.65)
    assert cart.polemass_length == pytest.approx(0.165)
    cartpole.set_cart(cart, 1.0)
    assert (cart.force_mag, cart.length) == (10.0, 3.0)


def test_a_task_is_the_motor_and_the_gravity_of_a_pendulum():
    environment = pendulum.make()
    pendulum.set_pendulum(environment.unwrapped, -0.5)
    assert environment.unwrapped.g == pytest.approx(8.3)
    assert environment.action(np.array([0.5])) == -1.0
    pendulum.set_pendulum(environment.unwrapped, 1.0)
    assert environment.unwrapped.g == 15.0
    assert environment.action(np.array([3.0])) == 2.0
