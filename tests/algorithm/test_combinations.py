"""Parts in combination compute what a plain loop over tasks computes; known identities hold."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from finite_differences import assert_equals_finite_differences, flat

from keras_maml import ANIL, MAML, meta_gradients, query_losses, update_rules

pytestmark = pytest.mark.usefixtures("float64")

STEPS, TASKS = 3, 3
PLAIN = {"task_map": "sequential"}
ROUTES = {
    "turns": ({"task_map": "sequential"}, {"jit_compile": False}),
    "vectorized": ({"task_map": "vectorized"}, {"jit_compile": False}),
    "compiled turns": ({"task_map": "sequential"}, {}),
    "eager": ({}, {"run_eagerly": True}),
    "chunked": ({"task_chunk": 2, "task_map": "vectorized"}, {"jit_compile": False}),
}


def make_learner(settings, options=None, epoch=4):
    keras.utils.set_random_seed(1)
    stack = [keras.layers.Dense(4, "tanh", name="body"), keras.layers.Dense(1, name="head")]
    model = keras.Sequential([keras.Input((3,)), *stack])
    learner = MAML(model, inner_steps=STEPS, **settings())
    random = np.random.default_rng(2)
    for variable in learner.update_rule.trainable_variables:
        variable.assign(variable.numpy() * random.uniform(0.5, 1.5, variable.shape))
    if hasattr(learner.query_loss, "epoch"):
        learner.query_loss.epoch.assign(epoch)
    learner.compile(keras.optimizers.SGD(0.1), "mse", **(options or {"jit_compile": False}))
    return learner


def episodes():
    return zoo.episodes(zoo.CASES["dense"])


def forward(weights, x):
    kernel, bias, last_kernel, last_bias = weights
    return tf.tanh(x @ kernel + bias) @ last_kernel + last_bias


def loss_of(weights, x, y):
    return tf.reduce_mean((forward(weights, x) - y) ** 2)


COMBINATIONS = {
    "head, rates per tensor and step, every step's loss": lambda: {
        "adapted_layers": "head",
        "update_rule": update_rules.PerLayerPerStep(0.3, steps=STEPS),
        "query_loss": query_losses.MultiStep(10),
    },
    "rates per parameter, first order": lambda: {
        "update_rule": update_rules.MetaSGD(0.3),
        "meta_gradient": "first_order",
    },
    "reptile, Adam": lambda: {
        "update_rule": update_rules.Adam(0.1, beta_1=0.0),
        "meta_gradient": "reptile",
    },
    "momentum, every step's loss": lambda: {
        "update_rule": update_rules.Momentum(0.1, 0.5),
        "query_loss": query_losses.MultiStep(10),
    },
}


def plain_loop(name):
    """Loss and meta-gradient of a combination, written out task by task."""
    learner = make_learner(COMBINATIONS[name])
    variables = [v.value for v in learner.trainable_variables]
    adapted = (2, 3) if name.startswith("head") else (0, 1, 2, 3)
    counts = np.full(STEPS, 1 / STEPS)
    if "every step" in name:  # epoch 4 of 10, by the authors' code
        counts[:-1] = np.maximum(1 / STEPS - 4 / 10 / STEPS, 0.03 / STEPS)
        counts[-1] = min(1 / STEPS + 4 * (STEPS - 1) / STEPS / 10, 1 - (STEPS - 1) * 0.03 / STEPS)
    else:
        counts = np.eye(STEPS)[-1]
    losses, differences = [], []
    with tf.GradientTape() as outer:
        outer.watch(variables)
        for task in range(TASKS):
            (x, y), query = tf.nest.map_structure(lambda t, i=task: t[i], episodes())
            weights, learned = list(variables[:4]), variables[4:]
            momenta = [0.0] * 4
            squares = [0.0] * 4
            for step in range(STEPS):
                with tf.GradientTape() as inner:
                    inner.watch(weights)
                    loss = loss_of(weights, x, y)
                gradients = inner.gradient(loss, [weights[i] for i in adapted])
                for number, (i, g) in enumerate(zip(adapted, gradients, strict=True)):
                    if "first order" in name:
                        g = tf.stop_gradient(g)
                    if name.startswith("head"):
                        move = learned[number][step] * g
                    elif name.startswith("rates"):
                        move = learned[number] * g
                    elif name.startswith("reptile"):
                        squares[i] = 0.999 * squares[i] + 0.001 * g**2
                        move = 0.1 * g / (tf.sqrt(squares[i] / (1 - 0.999 ** (step + 1))) + 1e-7)
                    else:
                        momenta[i] = 0.5 * momenta[i] + g
                        move = 0.1 * momenta[i]
                    weights[i] = weights[i] - move
                losses.append(counts[step] * loss_of(weights, *query))
            differences.append([a - b for a, b in zip(variables[:4], weights, strict=True)])
        loss = tf.add_n(losses) / TASKS
    if name.startswith("reptile"):
        return float(loss), [tf.add_n(one) / TASKS for one in zip(*differences, strict=True)]
    return float(loss), outer.gradient(loss, variables)


@functools.cache
def expected(name):
    return plain_loop(name)


def assert_as_plain_loop(name, route, **settings):
    of_route, options = ROUTES[route]
    learner = make_learner(lambda: COMBINATIONS[name]() | of_route | settings, options)
    loss, gradients = learner.meta_gradients(*episodes())
    wanted_loss, wanted = expected(name)
    assert float(loss) == pytest.approx(wanted_loss, rel=1e-10)
    for ours, theirs in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_combination_of_parts_is_a_plain_loop(name):
    assert_as_plain_loop(name, "turns")


@pytest.mark.parametrize("route", [route for route in ROUTES if route != "turns"])
@pytest.mark.parametrize("name", ["head, rates per tensor and step, every step's loss"])
def test_every_route_computes_a_combination(name, route):
    assert_as_plain_loop(name, route)


@pytest.mark.parametrize("route", ["turns", zoo.slow("vectorized")])
@pytest.mark.parametrize("name", [name for name in COMBINATIONS if "every step" in name])
def test_the_losses_of_every_step_are_rematerialized(name, route):
    assert_as_plain_loop(name, route, meta_gradient=meta_gradients.Exact(rematerialize=True))


# --- against finite differences -----------------------------------------------------------------

PARTS = {
    "rates per parameter": lambda: {"update_rule": update_rules.MetaSGD(0.2)},
    "head, rates, every step": lambda: {
        "adapted_layers": "head",
        "update_rule": update_rules.PerLayerPerStep(0.2, steps=2),
        "query_loss": query_losses.MultiStep(),
    },
    "curvature": lambda: {"update_rule": update_rules.MetaCurvature(0.2)},
    "adam": lambda: {"update_rule": update_rules.Adam(0.05, epsilon=0.1)},
    "body, momentum": lambda: {
        "adapted_layers": "body",
        "update_rule": update_rules.Momentum(0.1, clip_norm=0.5),
    },
    "descent, every step, recomputed": lambda: {
        "update_rule": update_rules.GradientDescent(0.2, clip_value=0.3),
        "query_loss": query_losses.MultiStep(),
        "meta_gradient": meta_gradients.Exact(rematerialize=True),
    },
}
SLOW = [(model, parts) for model in ("paper", "lstm", "attention") for parts in PARTS]


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        *(("dense", parts) for parts in PARTS),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in SLOW),
    ],
)
def test_meta_gradients_equal_finite_differences(model, parts):
    case = zoo.CASES[model]
    learner = MAML(case.build(), inner_steps=2, **PLAIN, **PARTS[parts]())
    learner.compile("sgd", case.loss, jit_compile=False)
    batch = zoo.episodes(case, tasks=2)
    _, gradients = learner.meta_gradients(*batch)
    assert_equals_finite_differences(learner, [g.numpy() for g in gradients], batch)


# --- identities ---------------------------------------------------------------------------------


@functools.cache
def maml():
    learner = make_learner(lambda: {"inner_learning_rate": 0.3} | PLAIN)
    return [gradient.numpy() for gradient in learner.meta_gradients(*episodes())[1]]


@pytest.mark.parametrize(
    "settings",
    [
        {"update_rule": lambda: update_rules.MetaSGD(0.3)},
        {"update_rule": lambda: update_rules.PerLayerPerStep(0.3, steps=STEPS)},
        {"update_rule": lambda: update_rules.MetaCurvature(0.3)},
        {"update_rule": lambda: update_rules.Momentum(0.3, 0.0)},
        {"update_rule": lambda: update_rules.GradientDescent(0.3, clip_norm=1e6)},
        {
            "update_rule": lambda: update_rules.GradientDescent(0.3),
            "query_loss": lambda: query_losses.MultiStep(0),
        },
        {
            "update_rule": lambda: update_rules.GradientDescent(0.3),
            "adapted_layers": lambda: ["body", "head"],
        },
    ],
)
def test_parts_at_their_simplest_are_maml(settings):
    keras.utils.set_random_seed(1)
    stack = [keras.layers.Dense(4, "tanh", name="body"), keras.layers.Dense(1, name="head")]
    model = keras.Sequential([keras.Input((3,)), *stack])
    parts = {name: make() for name, make in settings.items()}
    learner = MAML(model, inner_steps=STEPS, **parts, **PLAIN)
    learner.compile("sgd", "mse", jit_compile=False)
    _, gradients = learner.meta_gradients(*episodes())
    for ours, theirs in zip(gradients[:4], maml(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-13)


def test_where_all_layers_are_the_head_anil_is_maml():
    keras.utils.set_random_seed(1)
    stack = [keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((3,)), *stack])
    learner = ANIL(model, adapted_layers="all", inner_steps=STEPS, inner_learning_rate=0.3, **PLAIN)
    learner.compile("sgd", "mse", jit_compile=False)
    _, gradients = learner.meta_gradients(*episodes())
    for ours, theirs in zip(gradients, maml(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-13)


def test_where_there_is_only_a_head_anil_is_maml():
    results = []
    for algorithm in (ANIL, MAML):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        learner = algorithm(model, inner_learning_rate=0.3, inner_steps=STEPS, **PLAIN)
        learner.compile("sgd", "mse", jit_compile=False)
        results.append(flat(learner.meta_gradients(*episodes())[1]))
    np.testing.assert_allclose(*results, rtol=1e-12)


def test_all_weight_on_the_last_step_is_the_last_steps_loss():
    class AllOnTheLast(query_losses.QueryLoss):
        def step_weights(self, steps):
            return tf.one_hot(steps - 1, steps, dtype="float64")

    settings = {"inner_learning_rate": 0.3, "query_loss": AllOnTheLast()} | PLAIN
    _, gradients = make_learner(lambda: settings).meta_gradients(*episodes())
    np.testing.assert_allclose(flat(gradients), flat(maml()), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("epoch", [0, 1, 7, 14, 15, 40])
def test_step_weights_are_those_of_the_authors_code(steps, epoch, total=15):
    loss = query_losses.MultiStep(total)
    loss.epoch.assign(epoch)
    weights = np.ones(steps) / steps
    decay, least = 1.0 / steps / total, 0.03 / steps
    for i in range(steps - 1):
        weights[i] = np.maximum(weights[i] - epoch * decay, least)
    weights[-1] = np.minimum(weights[-1] + epoch * (steps - 1) * decay, 1 - (steps - 1) * least)
    if epoch >= total:
        weights = np.eye(steps)[-1]
    np.testing.assert_allclose(loss.step_weights(steps), weights, rtol=1e-12)
    assert loss.last_only == (epoch >= total)


def linear_learner(meta_gradient, **settings):
    stack = [keras.Input((3,)), keras.layers.Dense(1, bias_initializer="normal")]
    model = keras.Sequential(stack)
    learner = MAML(model, meta_gradient=meta_gradient, **settings, **PLAIN)
    learner.compile("sgd", "mse", jit_compile=False)
    return learner


def test_the_implicit_gradient_is_exact_for_a_converged_quadratic():
    strength = 2.0
    implicit = meta_gradients.Implicit(strength, conjugate_gradient_steps=4, damping=0.0)
    learner = linear_learner(implicit, inner_learning_rate=0.2, inner_steps=40)
    batch = zoo.episodes(zoo.CASES["dense"], support=12)
    initial = flat(learner.model.get_weights())
    wanted = []
    for task in range(TASKS):
        support, query = keras.tree.map_structure(lambda t, i=task: t[i].numpy(), batch)

        def quadratic(x, y):
            a = np.concatenate([x, np.ones_like(x[:, :1])], axis=1)
            return 2 * a.T @ a / len(a), 2 * a.T @ y[:, 0] / len(a)

        hessian, b = quadratic(*support)
        solution = np.linalg.solve(hessian + strength * np.eye(4), b + strength * initial)
        query_hessian, query_b = quadratic(*query)
        slope = query_hessian @ solution - query_b
        wanted.append(np.linalg.solve(np.eye(4) + hessian / strength, slope))
    _, gradients = learner.meta_gradients(*batch)
    np.testing.assert_allclose(flat(gradients), np.mean(wanted, axis=0), rtol=1e-7)


@pytest.mark.parametrize("adapted_layers", ["all", "head"])
@pytest.mark.slow  # forty inner steps; those of a quadratic are exact above
def test_the_implicit_gradient_of_converged_tasks_equals_finite_differences(adapted_layers):
    implicit = meta_gradients.Implicit(5.0, conjugate_gradient_steps=21, damping=0.0)
    settings = {"inner_learning_rate": 0.12, "meta_gradient": implicit} | PLAIN
    learner = make_learner(lambda: settings | {"adapted_layers": adapted_layers})
    learner.inner_steps = 40
    _, gradients = learner.meta_gradients(*episodes())
    assert_equals_finite_differences(learner, [g.numpy() for g in gradients], episodes())


def test_reptile_needs_no_query_set():
    parts = COMBINATIONS["reptile, Adam"]
    alone, with_query = make_learner(parts), make_learner(parts)
    support, query = episodes()
    alone.fit((support,), verbose=0)
    with_query.fit((support, query), verbose=0)
    for ours, theirs in zip(alone.get_weights(), with_query.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    alone.evaluate((support, query), verbose=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"update_rule": lambda: update_rules.MetaSGD(0.1)}, "Reptile has no gradient for what an"),
        ({"adapted_layers": lambda: "head"}, "Reptile has no gradient for layers that are not"),
        ({"query_loss": lambda: query_losses.MultiStep()}, "Reptile measures the last step only"),
    ],
)
def test_what_reptile_cannot_train_is_refused(settings, message):
    parts = {name: make() for name, make in settings.items()} | {"meta_gradient": "reptile"}
    with pytest.raises(ValueError, match=message):
        make_learner(lambda: parts).meta_gradients(*episodes())


def test_the_epoch_is_saved_and_training_resumes_bit_for_bit(tmp_path):
    parts = COMBINATIONS["momentum, every step's loss"]
    learner = make_learner(lambda: parts() | PLAIN, epoch=0)
    path = tmp_path / "learner.keras"
    checkpoint = keras.callbacks.ModelCheckpoint(path, save_freq="epoch")
    learner.fit(episodes(), epochs=2, verbose=0, callbacks=checkpoint)
    assert float(learner.query_loss.epoch) == 2
    loaded = keras.models.load_model(path)
    for one in (learner, loaded):
        one.fit(episodes(), epochs=9, verbose=0)  # over the end of annealing
        assert one.query_loss.last_only
    for ours, theirs in zip(loaded.variables, learner.variables, strict=True):
        assert np.array_equal(ours, theirs)
    callbacks = keras.callbacks.CallbackList(add_history=True, model=learner)
    for _ in range(2):  # a list that is used again counts every epoch once, too
        learner.fit(episodes(), verbose=0, callbacks=callbacks)
    assert float(learner.query_loss.epoch) == 13
