"""Sales of a shop that opened ten days ago: regression from a table, one task per shop.

Run ``python -m examples.shops`` (it needs pandas); it writes a picture and the errors.
"""

import keras
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import keras_maml
from examples import recording

FEATURES = ["price", "degrees", "weekend"]


def table(shops=400, days=60, seed=0):
    """A row per shop and day. This one is made up; yours comes from `pandas.read_csv`."""
    generator = np.random.default_rng(seed)

    def each_shop(low, high):
        return np.repeat(generator.uniform(low, high, shops), days)

    price, degrees = generator.uniform(-1, 1, [2, shops * days])  # around their means
    weekend = generator.integers(0, 7, shops * days) >= 5
    level = each_shop(2, 6) + each_shop(-1, 2) * weekend - each_shop(0, 2) * price
    weather = each_shop(0, 3) * np.exp(-4 * (degrees - each_shop(-1, 1)) ** 2)
    sales = level + weather + generator.normal(0, 0.1, shops * days)
    shop = np.repeat([f"shop {number:03}" for number in range(shops)], days)
    columns = {"shop": shop, "price": price, "degrees": degrees, "weekend": weekend, "sales": sales}
    return pd.DataFrame(columns)


def network():
    """A small regressor; sales are a number per day."""
    layers = [keras.layers.Dense(64, "relu"), keras.layers.Dense(64, "relu"), keras.layers.Dense(1)]
    return keras.Sequential([keras.Input((len(FEATURES),)), *layers])


def main(iterations=4000, tasks=80, seed=0, folder="runs/shops"):
    """Meta-trains on 64 % of the shops, and compares on those that are new."""
    keras.utils.set_random_seed(seed)
    sales = {"data": table(seed=seed), "task": "shop", "target": ["sales"], "features": FEATURES}
    sizes = {"shots": 10, "queries": 20, "seed": seed}
    training = keras_maml.episodes.from_tasks(**sales, split="train", meta_batch_size=16, **sizes)
    test = keras_maml.episodes.from_tasks(
        **sales, split="test", meta_batch_size=tasks, tasks=tasks, **sizes
    )
    learner = keras_maml.MetaSGD(network(), 0.02, inner_steps=3)
    learner.compile(keras.optimizers.Adam(1e-3), "mean_squared_error")
    learner.fit(training, epochs=10, steps_per_epoch=max(1, iterations // 10), verbose=2)
    error = keras_maml.evaluation.evaluate(learner, test, tasks=tasks).curve("loss")

    # What else one would do: one network for all shops, and a line through the ten days.
    shared = network()
    shared.compile(keras.optimizers.Adam(1e-3), "mean_squared_error")
    rows = training.map(lambda support, query: query).unbatch()
    shared.fit(rows.repeat(), epochs=1, steps_per_epoch=iterations, verbose=0, shuffle=False)
    (x_support, y_support), (x, y) = keras.tree.map_structure(np.asarray, next(iter(test)))
    errors = {
        "one network for all": np.mean(
            (shared.predict(x.reshape(-1, 3), verbose=0) - y.reshape(-1, 1)) ** 2
        ),
        "a line for each": np.mean((lines(x_support, y_support, x) - y) ** 2),
        "meta-learned, by step": error,
    }

    figure = Figure((9, 4))
    left, right = figure.subplots(1, 2)
    left.plot(error, "o-", label="meta-learned")
    for name, style in (("one network for all", "C1--"), ("a line for each", "C2:")):
        left.plot(np.full_like(error, errors[name]), style, label=name)
    left.set(xlabel="inner steps", ylabel="mean squared error", title="new shops, from ten days")
    left.set_xticks(range(len(error)))
    for steps, name in ((0, "before adaptation"), (3, "after 3 steps")):
        predicted = learner.adapt(x_support[0], y_support[0], steps=steps).predict(x[0], verbose=0)
        right.plot(y[0], predicted, "o", label=name)
    right.axline((4, 4), slope=1, color="gray")
    right.set(xlabel="sales", ylabel="predicted sales", title="the other days of one of them")
    left.legend()
    right.legend()
    return recording.record(folder, figure, seed, errors)


def lines(x, y, new):
    """Least squares with an intercept, task by task."""
    x, new = (np.insert(part, 0, 1, axis=-1) for part in (x, new))
    return new @ np.linalg.pinv(x) @ y


if __name__ == "__main__":
    recording.run(main)
