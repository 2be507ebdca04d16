"""The examples of reinforcement learning run, and draw their curves."""

import numpy as np
import pytest
from zoo import slow

from examples import cartpole, pendulum


@pytest.mark.parametrize("example", [cartpole, slow(pendulum)])
def test_example(example, tmp_path):
    small = {"iterations": 2, "tasks": 2, "rollouts": 2, "horizon": 6}
    found = example.main(**small, folder=tmp_path, jit_compile=False)
    # A step of CartPole is worth 1; one of Pendulum costs at most pi^2 + 6.4 + 0.004.
    returns = np.array([found["return_before"], found["return"]])
    assert returns.shape == (2, 2)
    low, high = {cartpole: (1, 6), pendulum: (-6 * 16.3, 0)}[example]
    assert (returns >= low).all() and (returns <= high).all()
    assert (tmp_path / "picture.png").stat().st_size > 5000


def test_a_longer_pole_changes_the_physics():
    class Cart:
        length, masspole, polemass_length = 0.5, 0.1, 0.05

    cart = Cart()
    cartpole.set_pole(cart, 2.0)
    assert (cart.length, cart.polemass_length) == (2.0, 0.2)
