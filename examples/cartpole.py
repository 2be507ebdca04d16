"""A cart that adapts to its pole and its wiring: gymnasium's CartPole.

In half of the tasks the motor is wired the other way round, so that what balances one pole fells
another: only a policy that adapts can balance both. Run ``python -m examples.cartpole``; it writes
the learning curve, as a picture, and as numbers what new carts give.
"""

import keras
import numpy as np

import keras_maml.rl as rl
from examples import recording
from keras_maml import update_rules


def set_cart(cart, task):
    """Gives a cart its task in -1 .. 1: the sign is the wiring, the size the length of the pole."""
    cart.force_mag = 10.0 if task > 0 else -10.0
    cart.length = 0.3 + 2.7 * abs(task)  # half of it, in metres
    cart.polemass_length = cart.masspole * cart.length


def main(
    iterations=60, tasks=8, rollouts=5, horizon=200, test_tasks=40, seed=0, folder="runs/cartpole"
):
    """Meta-trains a policy, and tests it on carts it has never had."""
    keras.utils.set_random_seed(seed)
    environment = rl.environments.from_gymnasium(
        "CartPole-v1",
        tasks=rl.environments.Uniform(-1.0, 1.0),
        set_task=set_cart,
        count=tasks * rollouts,
        horizon=horizon,
    )
    hidden = [keras.layers.Dense(32, "tanh") for _ in range(2)]
    layers = [keras.Input((4,)), *hidden, keras.layers.Dense(2)]
    agent = rl.MetaPolicyGradientAgent(
        *rl.tensor_specs(environment),
        keras.Sequential(layers),
        tasks=tasks,
        inner_learning_rate=0.5,
        distribution=rl.categorical,
    )
    sampler = rl.Sampler(environment, agent.collect_policy)
    history = rl.train(agent, sampler, iterations=iterations, seed=seed)
    steps = [update_rules.GradientDescent(0.5)] * 3
    carts = environment.sample_tasks(test_tasks, seed=(seed, iterations))
    tested = rl.evaluate(agent, sampler, carts, steps, seed=seed).values["adaptation"]["return"]
    figure = rl.plots.learning_curves({"MAML": history}, "CartPole")
    return recording.record(folder, figure, seed, {"return by step": np.mean(tested, axis=0)})


if __name__ == "__main__":
    recording.run(main)
