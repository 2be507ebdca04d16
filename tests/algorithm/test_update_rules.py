"""What an update rule learns reaches every path: training, evaluation, adaptation, files."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from zoo import slow, slow_if

import keras_maml
from keras_maml import MAML, update_rules

TASKS, STEPS = 4, 2
ROUTES = {
    "vectorized": ({"task_map": "vectorized"}, {"jit_compile": False}),
    "compiled": ({"task_map": "vectorized"}, {}),
    "turns": ({"task_map": "sequential"}, {"jit_compile": False}),
    "compiled turns": ({"task_map": "sequential"}, {}),
    "eager": ({}, {"run_eagerly": True}),
    "chunked": ({"task_chunk": 3, "task_map": "vectorized"}, {"jit_compile": False}),
    "chunked turns": ({"task_chunk": 1, "task_map": "sequential"}, {}),
    "rematerialized": (
        {"rematerialize": True, "task_map": "vectorized"},
        {"jit_compile": False},
    ),
    "rematerialized turns": ({"rematerialize": True, "task_map": "sequential"}, {}),
}


@keras.saving.register_keras_serializable("tests")
class LearnedMomentum(update_rules.UpdateRule):
    """A rule with variables, one of them where the slots begin, and with slots."""

    def build(self, shapes):
        self.rates = [self.add_weight(shape=(), initializer="ones") for _ in shapes]
        self.first = [self.add_weight(shape=shape, initializer="ones") for shape in shapes]

    def begin(self, weights):
        return {"count": tf.constant(0), "momentum": [0.1 * tf.identity(v) for v in self.first]}

    def step(self, weights, gradients, slots, step):
        momentum = [0.5 * m + g for m, g in zip(slots["momentum"], gradients, strict=True)]
        rates = [0.2 * rate for rate in self.rates]
        triples = zip(weights, rates, momentum, strict=True)
        slots = {"count": slots["count"] + 1, "momentum": momentum}
        return [w - rate * m for w, rate, m in triples], slots


RULES = {
    "per_layer_per_step": lambda: update_rules.PerLayerPerStep(0.3, steps=STEPS),
    "learned_momentum": LearnedMomentum,
}


def make_learner(rule="per_layer_per_step", options=None, **settings):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(3, "tanh", name="body"),
            keras.layers.Dense(1, name="head"),
        ]
    )
    learner = MAML(model, inner_steps=STEPS, update_rule=RULES[rule](), **settings)
    random = np.random.default_rng(2)
    for variable in learner.update_rule.trainable_variables:
        variable.assign(variable.numpy() * random.uniform(0.5, 1.5, variable.shape))
    learner.compile(keras.optimizers.Adam(0.01), "mse", **(options or {}))
    return learner


def make_episodes(seed=0):
    random = np.random.default_rng(seed)

    def half():
        x = random.normal(size=(TASKS, 5, 2))
        return tf.constant(x, keras.config.floatx()), tf.constant(x.sum(-1, keepdims=True) ** 2)

    return tf.nest.map_structure(lambda t: tf.cast(t, keras.config.floatx()), (half(), half()))


def forward(weights, x):
    kernel, bias, last_kernel, last_bias = weights
    return tf.tanh(x @ kernel + bias) @ last_kernel + last_bias


def plain_loop(learner, episodes, first_order=False, adapted=(0, 1, 2, 3), steps=STEPS):
    """The loss after adaptation and its gradient, written out task by task."""
    rule = learner.update_rule
    variables = [v.value for v in learner.trainable_variables]
    count = len(learner.model.trainable_variables)
    with tf.GradientTape() as outer:
        outer.watch(variables)
        losses = []
        for task in range(TASKS):
            (x, y), (x_query, y_query) = tf.nest.map_structure(lambda t, i=task: t[i], episodes)
            weights, learned = list(variables[:count]), variables[count:]
            momentum = [0.1 * m for m in learned[len(adapted) :]]
            for step in range(steps):
                with tf.GradientTape() as inner:
                    inner.watch(weights)
                    loss = tf.reduce_mean((forward(weights, x) - y) ** 2)
                gradients = inner.gradient(loss, [weights[i] for i in adapted])
                if first_order:
                    gradients = [tf.stop_gradient(g) for g in gradients]
                if isinstance(rule, LearnedMomentum):
                    momentum = [0.5 * m + g for m, g in zip(momentum, gradients, strict=True)]
                    moves = [0.2 * learned[i] * m for i, m in enumerate(momentum)]
                else:
                    moves = [learned[i][min(step, STEPS - 1)] * g for i, g in enumerate(gradients)]
                for i, move in zip(adapted, moves, strict=True):
                    weights[i] = weights[i] - move
            losses.append(tf.reduce_mean((forward(weights, x_query) - y_query) ** 2))
        loss = tf.reduce_mean(losses)
    return float(loss), outer.gradient(loss, variables), weights


@functools.cache
def expected(rule, first_order=False, adapted=(0, 1, 2, 3)):
    return plain_loop(make_learner(rule), make_episodes(), first_order, adapted)[:2]


def assert_gradients(found, wanted):
    loss, gradients = found
    assert float(loss) == pytest.approx(wanted[0], rel=1e-10)
    assert len(gradients) == len(wanted[1])
    for ours, theirs in zip(gradients, wanted[1], strict=True):
        assert np.any(theirs != 0)
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-12)


# Every route with one of the rules; turns of XLA's are those in chunks, and in test_compilation.
FAST = {
    "per_layer_per_step": ("compiled", "turns", "chunked turns", "rematerialized turns"),
    "learned_momentum": ("vectorized", "eager", "chunked", "rematerialized"),
}
PAIRS = [slow_if(route not in FAST[rule], rule, route) for rule in RULES for route in ROUTES]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("rule", "route"), PAIRS)
def test_the_meta_gradient_of_a_rule_is_that_of_a_plain_loop(rule, route):
    settings, options = ROUTES[route]
    learner = make_learner(rule, options, **settings)
    assert_gradients(learner.meta_gradients(*make_episodes()), expected(rule))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("rule", "route"), [("per_layer_per_step", "turns"), ("learned_momentum", "rematerialized")]
)
def test_in_first_order_a_rule_still_gets_its_gradient(rule, route):
    settings, options = ROUTES[route]
    learner = make_learner(rule, options, first_order=True, **settings)
    assert_gradients(learner.meta_gradients(*make_episodes()), expected(rule, True))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rule", RULES)
def test_the_gradient_of_a_rule_equals_finite_differences(rule):
    learner, episodes = make_learner(rule, {"jit_compile": False}), make_episodes()
    _, gradients = learner.meta_gradients(*episodes)
    for variable, gradient in zip(learner.trainable_variables, gradients, strict=True):
        centre, losses = variable.numpy(), []
        direction = np.sign(gradient)
        for offset in (-1e-5, 1e-5):
            variable.assign(centre + offset * direction)
            losses.append(float(learner.meta_gradients(*episodes)[0]))
        variable.assign(centre)
        slope = (losses[1] - losses[0]) / 2e-5
        np.testing.assert_allclose(slope, np.sum(gradient * direction), rtol=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("route", ["vectorized", "turns", "rematerialized"])
def test_layers_that_are_not_adapted_are_meta_trained(route):
    settings, options = ROUTES[route]
    keras.utils.set_random_seed(1)
    learner = make_learner(options=options, **settings)
    learner.adapted_layers = "head"
    learner.update_rule = update_rules.PerLayerPerStep(0.3, steps=STEPS)
    found = learner.meta_gradients(*make_episodes())
    wanted = plain_loop(learner, make_episodes(), adapted=(2, 3))[:2]
    assert_gradients(found, wanted)
    assert len(learner.update_rule.trainable_variables) == 2


@pytest.mark.usefixtures("float64")
def test_what_a_rule_learns_is_used_wherever_a_learner_adapts(tmp_path):
    learner, episodes = make_learner(options={"jit_compile": False}), make_episodes()
    steps = STEPS + 1  # one more than there are rates: the last one goes on
    learner.evaluation_steps = steps
    loss, _, weights = plain_loop(learner, episodes, steps=steps)
    support, query = tf.nest.map_structure(lambda t: t[-1], episodes)
    predictions = forward(weights, query[0])
    assert learner.evaluate(episodes, verbose=0, return_dict=True)["loss"] == pytest.approx(loss)
    curve = learner.trajectories(*episodes, steps=steps)["loss"]
    assert np.mean(curve[:, -1]) == pytest.approx(loss)
    np.testing.assert_allclose(learner.predict(episodes, verbose=0)[-1], predictions)
    adapted = learner.adapt(*support)
    np.testing.assert_allclose(adapted(query[0]), predictions)
    learner.export(tmp_path / "1", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "1")).signatures["adapt_and_predict"]
    x_support, y_support, x_query = (array[None] for array in (*support, query[0]))
    answer = served(x_support=x_support, y_support=y_support, x_query=x_query)
    np.testing.assert_allclose(answer["predictions"][0], predictions)


# test_family saves the other rule, within MAMLPlusPlus.
@pytest.mark.parametrize("rule", [slow("per_layer_per_step"), "learned_momentum"])
def test_training_goes_on_bit_for_bit_from_a_file(rule, tmp_path):
    learner = make_learner(rule, ROUTES["turns"][1], task_map="sequential")
    before = [v.numpy() for v in learner.update_rule.trainable_variables]
    learner.fit(make_episodes(), epochs=2, verbose=0)
    assert all(
        np.any(v != b) for v, b in zip(learner.update_rule.trainable_variables, before, strict=True)
    )
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    assert type(loaded.update_rule) is type(learner.update_rule)
    for one in (learner, loaded):
        one.fit(make_episodes(1), epochs=2, verbose=0)
    for ours, theirs in zip(loaded.variables, learner.variables, strict=True):
        assert np.array_equal(ours, theirs)


def test_a_pretrained_learner_keeps_what_its_rule_has_learned(tmp_path):
    learner = make_learner()
    keras_maml.pretrained.save(learner, tmp_path / "mine", {}, "")
    loaded = keras_maml.load("mine", tmp_path)
    rates = [rule.trainable_variables for rule in (loaded.update_rule, learner.update_rule)]
    for ours, theirs in zip(*rates, strict=True):
        assert np.array_equal(ours, theirs)


def test_a_rule_that_has_learned_for_other_layers_says_so():
    learner = make_learner(options={"jit_compile": False})
    learner.meta_gradients(*make_episodes())
    learner.model.layers[0].trainable = False
    with pytest.raises(ValueError, match="has learned for 4 adapted weights.*is to adapt 2"):
        learner.meta_gradients(*make_episodes())


def test_a_schedule_gives_the_rate_of_every_step():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.5, 0.25])
    rule = update_rules.GradientDescent(schedule)
    weights = [tf.constant(1.0)]
    for step, expected in ((0, 0.0), (1, 0.5)):
        moved, _ = rule.step(weights, [tf.constant(2.0)], (), step)
        assert float(moved[0]) == pytest.approx(expected)
    again = update_rules.GradientDescent.from_config(rule.get_config())
    assert again.learning_rate.get_config() == schedule.get_config()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: update_rules.GradientDescent(-1.0), "at least 0, or a Keras learning rate sched"),
        (lambda: update_rules.PerLayerPerStep(0.1, steps=0), "steps must be an integer"),
        (lambda: make_learner(inner_learning_rate=0.1), "either inner_learning_rate or update_"),
        (lambda: setattr(make_learner(), "update_rule", 0.1), "update_rule must be one of"),
        (lambda: make_learner(meta_gradient="second"), "meta_gradient must be one of"),
        (lambda: make_learner(meta_gradient="exact", first_order=True), "either meta_gradient"),
        (lambda: make_learner(adapted_layers="tail"), "adapted_layers must be one of"),
        (lambda: make_learner(adapted_layers=["neck"]), "the model does not have.*body"),
    ],
)
def test_wrong_parts_are_refused_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@keras.saving.register_keras_serializable("tests")
class Scaled(update_rules.UpdateRule):
    """A rule whose step reads a learned scale within something that hides what it reads."""

    def __init__(self, within=lambda function: function, **kwargs):
        super().__init__(**kwargs)
        self._within = within

    def build(self, shapes):
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def step(self, weights, gradients, slots, step):
        scaled = self._within(lambda gradient: 0.3 * self.scale * gradient)
        return [w - scaled(g) for w, g in zip(weights, gradients, strict=True)], slots


def with_own_gradient(function):
    return tf.custom_gradient(lambda x: (function(x), lambda upstream: function(upstream)))


def meta_gradients_of(monkeypatch, within):
    monkeypatch.setitem(RULES, "scaled", lambda: Scaled(within))
    return make_learner("scaled", {"jit_compile": False}).meta_gradients(*make_episodes())[1]


@pytest.mark.parametrize("within", [lambda function: tf.recompute_grad(function), tf.function])
def test_what_a_rule_reads_is_learned_within_what_hides_it(within, monkeypatch):
    plain = float(meta_gradients_of(monkeypatch, lambda function: function)[-1])
    hidden = float(meta_gradients_of(monkeypatch, within)[-1])
    assert plain != 0.0 and hidden == pytest.approx(plain, rel=1e-5)


def test_a_rule_that_hides_what_it_reads_is_refused(monkeypatch):
    with pytest.raises(
        NotImplementedError, match="scale' is read inside of a function with a grad"
    ):
        meta_gradients_of(monkeypatch, with_own_gradient)
