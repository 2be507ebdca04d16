"""A pendulum that adapts to its motor and to gravity: gymnasium's Pendulum.

In half of the tasks the motor turns the other way round, so that what swings one pendulum up holds
another down: only a policy that adapts can do both. Run ``python -m examples.pendulum``; it writes
the learning curve, as a picture, and as numbers what new pendulums give.
"""

import gymnasium
import keras
import numpy as np

import keras_maml.rl as rl
from examples import recording
from keras_maml import update_rules


class Motor(gymnasium.ActionWrapper):
    """Turns an action in -1 .. 1 into a torque, one way round or the other."""

    def action(self, action):
        """Returns the torque, in N m."""
        return self.unwrapped.largest_torque * np.clip(action, -1.0, 1.0)


def make():
    """Returns a pendulum with its motor."""
    return Motor(gymnasium.make("Pendulum-v1"))


def set_pendulum(pendulum, task):
    """Gives a pendulum its task in -1 .. 1: the sign is the motor's, the size the gravity's."""
    pendulum.largest_torque = 2.0 if task > 0 else -2.0
    pendulum.g = 1.6 + 13.4 * abs(task)  # m/s^2


def main(
    iterations=100,
    tasks=16,
    rollouts=10,
    horizon=100,
    test_tasks=48,
    seed=0,
    folder="runs/pendulum",
):
    """Meta-trains a policy, and tests it on pendulums it has never had."""
    keras.utils.set_random_seed(seed)
    environment = rl.environments.from_gymnasium(
        make,
        tasks=rl.environments.Uniform(-1.0, 1.0),
        set_task=set_pendulum,
        count=tasks * rollouts,
        horizon=horizon,
    )
    agent = rl.MetaPolicyGradientAgent(
        *rl.tensor_specs(environment),
        rl.gaussian_policy(observation_size=3, action_size=1, units=(32, 32), activation="tanh"),
        tasks=tasks,
        inner_learning_rate=0.3,
        inner_loss="likelihood_ratio",
        discount=0.95,
        gae_lambda=0.95,
        outer=rl.TrustRegion(max_kl=0.05),
    )
    sampler = rl.Sampler(environment, agent.collect_policy)
    history = rl.train(agent, sampler, iterations=iterations, seed=seed)
    steps = [update_rules.GradientDescent(0.3)] * 3
    pendulums = environment.sample_tasks(test_tasks, seed=(seed, iterations))
    tested = rl.evaluate(agent, sampler, pendulums, steps, seed=seed).values["adaptation"]["return"]
    figure = rl.plots.learning_curves({"MAML": history}, "Pendulum")
    return recording.record(folder, figure, seed, {"return by step": np.mean(tested, axis=0)})


if __name__ == "__main__":
    recording.run(main)
