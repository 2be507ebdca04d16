"""A cart that adapts to the pole it balances: gymnasium's CartPole, its tasks lengths of the pole.

Run ``python -m examples.cartpole``; it writes the learning curve, as a picture, and as numbers what
new poles give.
"""

import keras
import numpy as np

import keras_maml.rl as rl
from examples import recording
from keras_maml import update_rules


def set_pole(cart, length):
    """Gives a cart its task; the physics uses the product, too."""
    cart.length, cart.polemass_length = length, cart.masspole * length


def main(iterations=30, tasks=8, rollouts=5, horizon=200, seed=0, folder="runs/cartpole"):
    """Meta-trains a policy, and tests it on poles it has never had."""
    keras.utils.set_random_seed(seed)
    environment = rl.environments.from_gymnasium(
        "CartPole-v1",
        tasks=rl.environments.Uniform(0.3, 3.0),  # half the length of the pole, in metres
        set_task=set_pole,
        count=tasks * rollouts,
        horizon=horizon,
    )
    layers = [keras.Input((4,)), keras.layers.Dense(32, "tanh"), keras.layers.Dense(2)]
    agent = rl.MetaPolicyGradientAgent(
        *rl.tensor_specs(environment),
        keras.Sequential(layers),
        tasks=tasks,
        inner_learning_rate=0.5,
        distribution=rl.categorical,
    )
    sampler = rl.Sampler(environment, agent.collect_policy)
    history = rl.train(agent, sampler, iterations=iterations, seed=seed)
    poles = environment.sample_tasks(tasks, seed=(seed, iterations))
    steps = [update_rules.GradientDescent(0.5)] * 3
    tested = rl.evaluate(agent, sampler, poles, steps, seed=seed).values["adaptation"]["return"]
    figure = rl.plots.learning_curves({"after one gradient step": history}, "CartPole")
    return recording.record(folder, figure, seed, {"return by step": np.mean(tested, axis=0)})


if __name__ == "__main__":
    recording.run(main)
