"""A cart that adapts to the pole it balances: gymnasium's CartPole, its tasks lengths of the pole.

Run ``python -m examples.cartpole``; it writes the learning curve, as a picture and as numbers.
"""

import keras

import keras_maml.rl as rl
from examples import recording


def set_pole(cart, length):
    """Gives a cart its task; the physics uses the product, too."""
    cart.length, cart.polemass_length = length, cart.masspole * length


def main(
    iterations=30, tasks=8, rollouts=5, horizon=200, seed=0, folder="runs/cartpole", **settings
):
    """Meta-trains a policy, and draws its returns before and after adapting."""
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
        **settings,
    )
    sampler = rl.Sampler(environment, agent.collect_policy)
    history = []
    for iteration in range(iterations):
        lengths = environment.sample_tasks(tasks, seed=(seed, iteration))
        _, (before, after) = rl.meta_iteration(agent, sampler, lengths, seed, iteration)
        row = {"iterations": iteration, "return_before": before.mean(), "return": after.mean()}
        history.append(row)
        means = f"return {before.mean():.0f} before adapting, {after.mean():.0f} after"
        print(f"{iteration + 1} of {iterations}: {means}", flush=True)
    figure = rl.plots.learning_curves({"after one gradient step": history}, "CartPole")
    returns = {key: [row[key] for row in history] for key in ("return_before", "return")}
    return recording.record(folder, figure, seed, returns)


if __name__ == "__main__":
    recording.run(main)
