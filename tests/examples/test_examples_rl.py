"""The examples of reinforcement learning run, and write their curves."""

import keras
import numpy as np
import pytest
from zoo import slow

from examples import cartpole, pendulum


@pytest.mark.parametrize("example", [cartpole, slow(pendulum)])
def test_example(example, tmp_path):
    keras.utils.set_random_seed(0)
    path = tmp_path / "curve.png"
    small = {"iterations": 2, "tasks": 2, "rollouts": 2, "horizon": 6}
    history = example.main(**small, path=path, jit_compile=False)
    assert [row["iterations"] for row in history] == [0, 1]
    # A step of CartPole is worth 1; one of Pendulum costs at most pi^2 + 6.4 + 0.004.
    returns = np.array([[row["return_before"], row["return"]] for row in history])
    low, high = {cartpole: (1, 6), pendulum: (-6 * 16.3, 0)}[example]
    assert (returns >= low).all() and (returns <= high).all()
    assert path.stat().st_size > 5000


def test_a_longer_pole_changes_the_physics():
    class Cart:
        length, masspole, polemass_length = 0.5, 0.1, 0.05

    cart = Cart()
    cartpole.set_pole(cart, 2.0)
    assert (cart.length, cart.polemass_length) == (2.0, 0.2)
