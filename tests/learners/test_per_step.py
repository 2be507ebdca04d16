"""MAML++'s batch normalisation per step, and the order of the derivative by epochs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from finite_differences import assert_equals_finite_differences
from zoo import slow_if

import keras_maml
from keras_maml import MAML, callbacks, layers, query_losses, update_rules

STEPS, TASKS, RATE, EPSILON = 2, 2, 0.3, 0.001


def model_with(normalization):
    stack = [keras.layers.Dense(3, name="body"), normalization]
    stack += [keras.layers.Activation("tanh"), keras.layers.Dense(1, name="head")]
    return keras.Sequential([keras.Input((2,)), *stack])


def episodes():
    random = np.random.default_rng(0)

    def half():
        x = random.normal(size=(TASKS, 5, 2))
        return tuple(tf.constant(a, keras.config.floatx()) for a in (x, x[..., :1] ** 2))

    return half(), half()


def make_learner(model=None, **settings):
    model = model or model_with(layers.PerStepBatchNormalization(STEPS, name="normalization"))
    settings = {"inner_steps": STEPS, "task_map": "sequential"} | settings
    learner = MAML(model, RATE, **settings)
    learner.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    random = np.random.default_rng(1)
    for variable in learner.trainable_variables:
        noise = random.uniform(-0.5, 0.5, variable.shape)
        variable.assign(variable.numpy() + noise)
    return learner


def plain_loop(learner, batch_normalization, step_weights):
    """The loss and the meta-gradient, written out."""
    layers_by_name = {layer.name: layer for layer in learner.model.layers}
    body, norm, head = (layers_by_name[name] for name in ("body", "normalization", "head"))
    variables = [v.value for v in (body.kernel, body.bias, norm.gamma, norm.beta, *head.weights)]

    with tf.GradientTape() as outer:
        outer.watch(variables)
        kernel, bias, gamma, beta, last_kernel, last_bias = variables
        total = 0.0
        for task in range(TASKS):
            (x, y), (x_query, y_query) = tf.nest.map_structure(lambda t, i=task: t[i], episodes())
            weights = [kernel, bias, last_kernel, last_bias]
            for step in range(STEPS):
                scale = gamma[step], beta[step]
                with tf.GradientTape() as inner:
                    inner.watch(weights)
                    loss = tf.reduce_mean((forward(weights, *scale, x, x) - y) ** 2)
                slopes = inner.gradient(loss, weights)
                weights = [w - RATE * g for w, g in zip(weights, slopes, strict=True)]
                own = x_query if batch_normalization == "transductive" else x
                loss = tf.reduce_mean((forward(weights, *scale, x_query, own) - y_query) ** 2)
                total += step_weights[step] * loss / TASKS
    return float(total), outer.gradient(total, variables)


def forward(weights, gamma, beta, x, x_statistics):
    kernel, bias, last_kernel, last_bias = weights
    before = x_statistics @ kernel + bias  # tf.nn.moments stops a gradient of second order
    mean = tf.reduce_mean(before, 0)
    variance = tf.reduce_mean((before - mean) ** 2, 0)
    x = (x @ kernel + bias - mean) / tf.sqrt(variance + EPSILON)
    return tf.tanh(x * gamma + beta) @ last_kernel + last_bias


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("settings", "step_weights"),
    [
        slow_if(True, {}, [0.0, 1.0]),
        ({"batch_normalization": "inductive", "query_loss": query_losses.MultiStep}, [0.5, 0.5]),
        ({"rematerialize": True, "query_loss": query_losses.MultiStep}, [0.5, 0.5]),
        slow_if(True, {"task_map": "vectorized"}, [0.0, 1.0]),
    ],
)
def test_every_step_has_its_scale_and_offset(settings, step_weights):
    settings = {name: v() if callable(v) else v for name, v in settings.items()}
    learner = make_learner(**settings)
    loss, gradients = learner.meta_gradients(*episodes())
    how = settings.get("batch_normalization", "transductive")
    expected_loss, expected = plain_loop(learner, how, step_weights)
    assert float(loss) == pytest.approx(expected_loss, rel=1e-9)
    for ours, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-11)
    assert all(np.abs(rows).min() > 0 for rows in gradients[2])  # every step's scale is trained


@pytest.mark.usefixtures("float64")
def test_the_meta_gradient_of_maml_plus_plus_equals_finite_differences():
    model = model_with(keras.layers.BatchNormalization(name="normalization"))
    settings = {"inner_steps": STEPS, "task_map": "sequential", "annealing_epochs": 4}
    learner = keras_maml.MAMLPlusPlus(model, 0.2, **settings)
    learner.compile("sgd", "mse", jit_compile=False)
    _, gradients = learner.meta_gradients(*episodes())
    assert_equals_finite_differences(learner, [g.numpy() for g in gradients], episodes())


@pytest.mark.usefixtures("float64")
def test_with_equal_steps_it_is_batch_normalisation_that_is_not_adapted():
    model = model_with(keras.layers.BatchNormalization(name="normalization"))
    plain = make_learner(model, adapted_layers=["body", "head"])
    loss, gradients = plain.meta_gradients(*episodes())
    per_step = MAML(layers.per_step_batch_normalization(model, STEPS), RATE, STEPS)
    per_step.compile("sgd", "mse", jit_compile=False)
    own_loss, own = per_step.meta_gradients(*episodes())
    assert float(own_loss) == pytest.approx(float(loss), rel=1e-12)
    for ours, theirs in zip(own, gradients, strict=True):
        total = tf.reduce_sum(ours, 0) if ours.shape == (STEPS, *theirs.shape) else ours
        np.testing.assert_allclose(total, theirs, rtol=1e-9, atol=1e-13)


def test_an_adapted_model_has_the_last_steps_scale(tmp_path):
    learner = make_learner(evaluation_steps=STEPS + 2, batch_normalization="inductive")
    support, query = episodes()
    learner.fit((support, query), verbose=0)
    expected = learner.predict((support, query[:1]), verbose=0)
    learner.save(tmp_path / "learner.keras")
    learner.export(tmp_path / "1", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "1")).signatures["adapt_and_predict"]
    answer = served(x_support=support[0], y_support=support[1], x_query=query[0])["predictions"]
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)
    for one in (learner, keras.models.load_model(tmp_path / "learner.keras")):
        adapted = one.adapt(support[0][0], support[1][0])
        np.testing.assert_allclose(adapted(query[0][0]), expected[0], rtol=1e-4, atol=1e-5)
    assert learner.model.get_layer("normalization").inner_step.numpy() == 0
    transductive = learner.adapt(support[0][0], support[1][0], batch_normalization="transductive")
    assert transductive.model.get_layer("normalization").inner_step.numpy() == STEPS + 1


def test_only_models_that_can_be_copied_get_other_layers():
    dense = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    assert layers.per_step_batch_normalization(dense, 3) is dense

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.normalization = keras.layers.BatchNormalization()

        def call(self, x):
            return self.normalization(x)

    with pytest.raises(
        ValueError, match="only that of Keras can be, in sequential and functional models"
    ):
        keras_maml.MAMLPlusPlus(Own())
    learner = keras_maml.MAMLPlusPlus(Own(), per_step_batch_normalization=False)
    assert learner.query_loss.step_weights(5).shape == (5,)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_first_order_comes_first_and_then_the_exact_gradient():
    annealing = [callbacks.DerivativeOrderAnnealing(1)]
    learner, by_hand = make_learner(), make_learner()
    learner.set_weights(by_hand.get_weights())
    learner.fit(episodes(), epochs=2, verbose=0, callbacks=annealing)
    for first_order in (True, False):
        by_hand.first_order = first_order
        by_hand.fit(episodes(), verbose=0)
    for ours, theirs in zip(learner.get_weights(), by_hand.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    with pytest.raises(ValueError, match="epochs must be an integer of at least 0"):
        callbacks.DerivativeOrderAnnealing(-1)
    annealing[0].set_model(keras_maml.Reptile(learner.model))
    message = 'DerivativeOrderAnnealing is for meta_gradient="exact" .* the learner\'s is Reptile'
    with pytest.raises(ValueError, match=message):
        annealing[0].on_train_begin()


def test_several_outputs_have_a_head_each():
    inputs = keras.Input((2,))
    x = keras.layers.Dense(3, "tanh", name="body")(inputs)
    left = keras.layers.Activation("tanh")(keras.layers.Dense(1, name="left")(x))
    right = keras.layers.Dense(1, name="right")(x)
    model = keras.Model(inputs, [left, right])
    learners = [algorithm(model) for algorithm in (keras_maml.ANIL, keras_maml.BOIL)]
    adapted = [[v.path.split("/")[-2] for v in one.partition().initial] for one in learners]
    assert adapted == [["left", "left", "right", "right"], ["body", "body"]]
    assert isinstance(learners[0].update_rule, update_rules.GradientDescent)
