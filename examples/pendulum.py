"""A pendulum that adapts to gravity: gymnasium's Pendulum, from the Moon to beyond the Earth.

Run ``python -m examples.pendulum``; it writes the learning curve, as a picture and as numbers.
"""

import keras

import keras_maml.rl as rl
from examples import recording


def main(
    iterations=60, tasks=8, rollouts=10, horizon=100, seed=0, folder="runs/pendulum", **settings
):
    """Meta-trains a policy, and draws its returns before and after adapting."""
    keras.utils.set_random_seed(seed)
    environment = rl.environments.from_gymnasium(
        "Pendulum-v1",
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
        discount=0.95,
        **settings,
    )
    sampler = rl.Sampler(environment, agent.collect_policy)
    history = []
    for iteration in range(iterations):
        gravities = environment.sample_tasks(tasks, seed=(seed, iteration))
        _, (before, after) = rl.meta_iteration(agent, sampler, gravities, seed, iteration)
        row = {"iterations": iteration, "return_before": before.mean(), "return": after.mean()}
        history.append(row)
        means = f"return {before.mean():.0f} before adapting, {after.mean():.0f} after"
        print(f"{iteration + 1} of {iterations}: {means}", flush=True)
    figure = rl.plots.learning_curves({"after one gradient step": history}, "Pendulum")
    returns = {key: [row[key] for row in history] for key in ("return_before", "return")}
    return recording.record(folder, figure, seed, returns)


if __name__ == "__main__":
    recording.run(main)
