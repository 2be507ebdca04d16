"""A pendulum that adapts to gravity: gymnasium's Pendulum, from the Moon to beyond the Earth.

Run ``python -m examples.pendulum``; it writes the learning curve to ``pendulum.png``.
"""

import keras

import keras_maml.rl as rl


def main(iterations=60, tasks=8, rollouts=10, horizon=100, path="pendulum.png", **settings):
    """Meta-trains a policy; returns a row per iteration, with returns before and after adapting."""
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
        gravities = environment.sample_tasks(tasks, seed=(0, iteration))
        _, (before, after) = rl.meta_iteration(agent, sampler, gravities, 0, iteration)
        row = {"iterations": iteration, "return_before": before.mean(), "return": after.mean()}
        history.append(row)
        print(" ".join(f"{name} {value:.0f}" for name, value in row.items()), flush=True)
    rl.plots.learning_curves({"after one gradient step": history}, "Pendulum").savefig(path)
    return history


if __name__ == "__main__":
    keras.utils.set_random_seed(0)
    main()
