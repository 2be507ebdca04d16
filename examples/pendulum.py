"""A pendulum that adapts to gravity: gymnasium's Pendulum, from the Moon to beyond the Earth.

Run ``python -m examples.pendulum``; it writes the learning curve, as a picture, and as numbers what
new gravities give.
"""

import gymnasium
import keras
import numpy as np

import keras_maml.rl as rl
from examples import recording
from keras_maml import update_rules


def make():
    """Returns a pendulum whose torque is an action in -1 .. 1."""
    return gymnasium.wrappers.RescaleAction(
        gymnasium.make("Pendulum-v1"), np.float32(-1), np.float32(1)
    )


def main(iterations=60, tasks=8, rollouts=10, horizon=100, seed=0, folder="runs/pendulum"):
    """Meta-trains a policy, and tests it under gravities it has never had."""
    keras.utils.set_random_seed(seed)
    environment = rl.environments.from_gymnasium(
        make,
        tasks=rl.environments.Uniform(1.6, 15.0),  # m/s^2
        set_task=rl.environments.Attributes("g"),
        count=tasks * rollouts,
        horizon=horizon,
    )
    agent = rl.MetaPolicyGradientAgent(
        *rl.tensor_specs(environment),
        rl.gaussian_policy(observation_size=3, action_size=1, units=(32, 32), activation="tanh"),
        tasks=tasks,
        inner_learning_rate=0.1,
        inner_loss="likelihood_ratio",
        discount=0.95,
        gae_lambda=0.95,
        outer=rl.TrustRegion(max_kl=0.03),
    )
    sampler = rl.Sampler(environment, agent.collect_policy)
    history = rl.train(agent, sampler, iterations=iterations, seed=seed)
    gravities = environment.sample_tasks(tasks, seed=(seed, iterations))
    steps = [update_rules.GradientDescent(0.1)] * 3
    tested = rl.evaluate(agent, sampler, gravities, steps, seed=seed).values["adaptation"]["return"]
    figure = rl.plots.learning_curves({"MAML": history}, "Pendulum")
    return recording.record(folder, figure, seed, {"return by step": np.mean(tested, axis=0)})


if __name__ == "__main__":
    recording.run(main)
