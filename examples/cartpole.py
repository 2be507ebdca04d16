"""A cart that adapts to the pole it balances: gymnasium's CartPole, its tasks lengths of the pole.

Run ``python -m examples.cartpole``; it writes the learning curve to ``cartpole.png``.
"""

import keras

import keras_maml.rl as rl


def set_pole(cart, length):
    """Gives a cart its task; the physics uses the product, too."""
    cart.length, cart.polemass_length = length, cart.masspole * length


def main(iterations=30, tasks=8, rollouts=5, horizon=200, path="cartpole.png", **settings):
    """Meta-trains a policy; returns a row per iteration, with returns before and after adapting."""
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
        lengths = environment.sample_tasks(tasks, seed=(0, iteration))
        _, (before, after) = rl.meta_iteration(agent, sampler, lengths, 0, iteration)
        row = {"iterations": iteration, "return_before": before.mean(), "return": after.mean()}
        history.append(row)
        print(" ".join(f"{name} {value:.0f}" for name, value in row.items()), flush=True)
    rl.plots.learning_curves({"after one gradient step": history}, "CartPole").savefig(path)
    return history


if __name__ == "__main__":
    keras.utils.set_random_seed(0)
    main()
