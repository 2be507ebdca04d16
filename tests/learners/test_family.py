"""Algorithms by name, context parameters, and heads for any number of classes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from zoo import slow_if

import keras_maml
from keras_maml import layers, update_rules

RATE, STEPS = 0.4, 2


def dense_model():
    stack = [keras.layers.Dense(4, "tanh", name="body"), keras.layers.Dense(1, name="head")]
    return keras.Sequential([keras.Input((3,)), *stack])


def context_model():
    stack = [layers.ContextParameters(2), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)]
    return keras.Sequential([keras.Input((3,)), *stack])


def regression(tasks=3):
    random = np.random.default_rng(0)

    def half():
        x = random.normal(size=(tasks, 5, 3))
        return tuple(tf.constant(a, keras.config.floatx()) for a in (x, x[..., :1] ** 2))

    return half(), half()


def classes(ways, tasks=3):
    random = np.random.default_rng(ways)
    y = np.tile(np.repeat(np.arange(ways), 2), (tasks, 1))

    def half():
        x = random.normal(size=(tasks, 2 * ways, 3)) + y[..., None]
        return tf.constant(x, keras.config.floatx()), tf.constant(y, "int32")

    return half(), half()


def head_learner(**settings):
    stack = [keras.layers.Dense(4, "tanh"), layers.SharedHead(5, "softmax", name="head")]
    model = keras.Sequential([keras.Input((3,)), *stack])
    settings = {"inner_learning_rate": RATE, "inner_steps": STEPS} | settings
    learner = keras_maml.MAML(model, task_map="sequential", **settings)
    loss = "sparse_categorical_crossentropy"
    adam = keras.optimizers.Adam(0.01)
    learner.compile(adam, loss, metrics=["accuracy"], jit_compile=False)
    return learner


ALGORITHMS = {
    "ANIL": dense_model,
    "BOIL": dense_model,
    "CAVIA": context_model,
    "FirstOrderMAML": dense_model,
    "ImplicitMAML": dense_model,
    "MAMLPlusPlus": dense_model,
    "MetaCurvature": dense_model,
    "MetaSGD": dense_model,
    "Reptile": dense_model,
}


# Adapt other layers, or by another rule, than those that stay.
LATE = ("BOIL", "FirstOrderMAML", "MetaSGD")


@pytest.mark.parametrize("name", [slow_if(name in LATE, name) for name in ALGORITHMS])
def test_an_algorithm_learns_and_comes_back_from_a_file(name, tmp_path):
    settings = {"inner_steps": 2, "task_map": "sequential"}
    learner = getattr(keras_maml, name)(ALGORITHMS[name](), **settings)
    learner.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=False)
    before = [v.numpy() for v in learner.trainable_variables]
    losses = learner.fit(regression(), epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert any(np.any(v != b) for v, b in zip(learner.trainable_variables, before, strict=True))
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    assert loaded.get_config()["meta_gradient"] == learner.get_config()["meta_gradient"]
    for one in (learner, loaded):
        one.fit(regression(), verbose=0)
    for ours, theirs in zip(loaded.variables, learner.variables, strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.usefixtures("float64")
def test_context_parameters_are_adapted_and_not_meta_trained():
    learner = keras_maml.CAVIA(context_model(), inner_learning_rate=RATE, inner_steps=STEPS)
    learner.compile("sgd", "mse", jit_compile=False)
    support, query = regression()
    variables = [v.value for v in learner.trainable_variables]
    assert len(variables) == 4

    def forward(weights, context, x):
        x = tf.concat([x, tf.repeat(context[None], x.shape[0], 0)], 1)
        return tf.tanh(x @ weights[0] + weights[1]) @ weights[2] + weights[3]

    with tf.GradientTape() as outer:
        outer.watch(variables)
        total = 0.0
        for task in range(3):
            x, y, x_query, y_query = (part[task] for part in (*support, *query))
            context = tf.zeros(2, "float64")
            for _ in range(STEPS):
                with tf.GradientTape() as inner:
                    inner.watch(context)
                    loss = tf.reduce_mean((forward(variables, context, x) - y) ** 2)
                context -= RATE * inner.gradient(loss, context)
            total += tf.reduce_mean((forward(variables, context, x_query) - y_query) ** 2) / 3
    expected = outer.gradient(total, variables)
    loss, gradients = learner.meta_gradients(support, query)
    assert float(loss) == pytest.approx(float(total))
    for ours, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-13)
    learner.fit((support, query), verbose=0)
    assert not np.any(learner.model.layers[0].context)
    adapted = learner.adapt(support[0][0], support[1][0])
    assert np.all(adapted.layers[0].context)


def test_an_adapted_model_keeps_its_number_of_classes():
    learner = head_learner()
    (x, y), (x_query, _) = classes(3)
    models = [learner.adapt(x[0], y[0]) for _ in range(2)]
    expected = models[0].predict(x_query[0], verbose=0)
    more, (x_more, _) = classes(5)
    assert learner.adapt(more[0][0], more[1][0]).predict(x_more[0], verbose=0).shape == (10, 5)
    np.testing.assert_allclose(models[0].predict(x_query[0, :2], verbose=0), expected[:2], 1e-5)
    np.testing.assert_allclose(models[1](x_query[0]), expected, 1e-5)
    assert models[1].layers[-1].get_config()["ways"] == 3


@pytest.mark.parametrize("hook", ["on_train_batch_begin", "on_train_batch_end"])
def test_training_goes_on_with_its_number_of_classes_whatever_a_callback_evaluates(hook):
    learner = head_learner(inner_learning_rate=0.0)  # all classes stay as likely as each other
    learner.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    trained, evaluated = [], []

    def evaluate(*_, **logs):
        evaluated.append(learner.evaluate(classes(7, tasks=1), verbose=0)[0])
        learner.reset_metrics()  # which are those of training as well

    validated = learner.fit(
        classes(5, tasks=1),
        validation_data=classes(5, tasks=1),
        epochs=2,
        callbacks=[
            keras.callbacks.LambdaCallback(
                on_train_batch_end=lambda batch, logs: trained.append(logs["loss"])
            ),
            keras.callbacks.LambdaCallback(**{hook: evaluate}),
        ],
        verbose=0,
    ).history["val_loss"]
    assert trained == validated == pytest.approx([np.log(5)] * 2)
    assert evaluated == pytest.approx([np.log(7)] * 2)


@pytest.mark.usefixtures("float64")
def test_a_shared_head_is_one_vector_copied_to_every_class():
    learner = head_learner()
    support, query = classes(4)
    learner.build_on((support, query))
    variables = [v.value for v in learner.trainable_variables]

    def loss_of(weights, x, y):
        probabilities = tf.nn.softmax(
            tf.tanh(x @ weights[0] + weights[1]) @ weights[2] + weights[3]
        )
        return tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, probabilities))

    with tf.GradientTape() as outer:
        outer.watch(variables)
        total = 0.0
        for task in range(3):
            x, y, x_query, y_query = (part[task] for part in (*support, *query))
            kernel, bias, vector, shift = variables
            weights = [kernel, bias, tf.repeat(vector, 4, 1), tf.repeat(shift, 4)]
            for _ in range(STEPS):
                with tf.GradientTape() as inner:
                    inner.watch(weights)
                    loss = loss_of(weights, x, y)
                slopes = inner.gradient(loss, weights)
                weights = [w - RATE * g for w, g in zip(weights, slopes, strict=True)]
            total += loss_of(weights, x_query, y_query) / 3
    expected = outer.gradient(total, variables)
    loss, gradients = learner.meta_gradients(support, query)
    assert float(loss) == pytest.approx(float(total))
    for ours, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("kind", ["generator", "stream", "py_dataset"])
def test_a_head_has_as_many_ways_as_data_that_can_be_read_once(kind):
    batches = [keras.tree.map_structure(lambda a, i=i: a[i:][:1], classes(5)) for i in range(3)]

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return len(batches)

        def __getitem__(self, number):
            return batches[number]

    once = iter(batches)
    data = {
        "generator": lambda: (batch for batch in batches),
        "stream": lambda: tf.data.Dataset.from_generator(
            lambda: once,
            output_signature=keras.tree.map_structure(tf.TensorSpec.from_tensor, batches[0]),
        ),
        "py_dataset": Batches,
    }[kind]()
    model = keras.Sequential([keras.Input((3,)), layers.SharedHead(activation="softmax")])
    learner = keras_maml.MAML(model, RATE)
    learner.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    results = learner.evaluate(data, verbose=0)
    assert model.layers[-1].ways == 5
    assert results == pytest.approx(learner.evaluate(classes(5), verbose=0), rel=1e-5)


@pytest.mark.slow  # several programs
def test_a_learner_trained_5_way_adapts_to_3_and_12_classes(tmp_path):
    learner = head_learner(inner_steps=5)
    learner.fit(classes(5), epochs=10, verbose=0)
    trained = [v.numpy() for v in learner.trainable_variables]
    for ways in (3, 12):
        support, query = classes(ways)
        results = learner.evaluate((support, query), verbose=0, return_dict=True)
        assert results["accuracy"] > 1.2 / ways
        adapted = learner.adapt(*(part[0] for part in support))
        assert adapted(query[0][0]).shape == (2 * ways, ways)
        predictions = learner.predict((support, query[:1]), verbose=0)
        np.testing.assert_allclose(adapted(query[0][0]), predictions[0], rtol=1e-4, atol=1e-6)
    learner.export(tmp_path / "12", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "12")).signatures["adapt_and_predict"]
    answer = served(x_support=support[0], y_support=support[1], x_query=query[0])
    np.testing.assert_allclose(answer["predictions"], predictions, rtol=1e-4, atol=1e-6)
    (x, y), (x_query, _) = classes(3)
    y = tf.concat([y[:1], y[1:] % 2], 0)  # as a batching server joins them: 3 classes, 2 and 2
    adapted = [learner.adapt(x[task], y[task])(x_query[task]) for task in range(3)]
    assert [prediction.shape[-1] for prediction in adapted] == [3, 2, 2]
    served = tf.saved_model.load(str(tmp_path / "12")).signatures
    answer = served["adapt_and_predict"](x_support=x, y_support=y, x_query=x_query)
    weights = served["adapt"](x_support=x, y_support=y)["weights"]
    for predictions in (answer, served["predict_with"](x=x_query, weights=weights)):
        for ours, theirs in zip(predictions["predictions"], adapted, strict=True):
            ways = theirs.shape[-1]
            np.testing.assert_allclose(ours[:, :ways], theirs, rtol=1e-4, atol=1e-6)
            assert not np.any(ours[:, ways:])
    for ours, theirs in zip(learner.trainable_variables, trained, strict=True):
        assert np.array_equal(ours, theirs)
    learner.fit(classes(5), verbose=0)
    with pytest.raises(ValueError, match="validate with have 3 classes, those to train with 5"):
        learner.fit(classes(5), validation_data=classes(3), verbose=0)


@pytest.mark.parametrize("kind", ["context", "head"])
def test_moving_averages_are_of_what_is_meta_trained(kind):
    context = kind == "context"
    learner = keras_maml.CAVIA(context_model()) if context else head_learner()
    data = regression() if context else classes(5)
    loss = "mse" if context else "sparse_categorical_crossentropy"
    sgd = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.6)
    learner.compile(sgd, loss, jit_compile=False)
    weights, averages = [], []
    note = lambda to: to.append([v.numpy() for v in learner.trainable_weights])  # noqa: E731
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    notes = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: note(weights),
        on_epoch_end=lambda epoch, logs: note(averages),
    )
    learner.fit(data, epochs=3, callbacks=[swap, notes], verbose=0)
    assert len(learner.trainable_weights) == 4
    note(averages)  # which are the weights in the end
    assert np.abs(averages[-1][0] - weights[-1][0]).max() > 1e-4
    for number, kept in enumerate(zip(*weights, strict=True)):
        average = kept[0]
        expected = [average, *(average := 0.6 * average + 0.4 * w for w in kept[1:])]
        found = [one[number] for one in averages]
        np.testing.assert_allclose(found, [*expected, average], rtol=1e-5, atol=1e-6)
    parts = [*learner.trainable_variables, *learner.non_trainable_variables]
    assert sorted(map(id, parts)) == sorted(map(id, learner.variables))
    learner.model.layers[-1 if context else 0].trainable = False
    with pytest.raises(ValueError, match="moving averages of 4 variables .* trained now, 2"):
        learner.fit(data, verbose=0)


@pytest.mark.parametrize(
    "algorithm",
    [
        keras_maml.FirstOrderMAML,
        keras_maml.ANIL,
        keras_maml.BOIL,
        keras_maml.MetaSGD,
        keras_maml.MetaCurvature,
        keras_maml.MAMLPlusPlus,
        keras_maml.Reptile,
        keras_maml.ImplicitMAML,
    ],
)
def test_the_second_argument_is_the_inner_rate(algorithm):
    rule = algorithm(dense_model(), 0.3).update_rule.get_config()
    assert 0.3 in rule.values()


def test_cavia_without_context_parameters_says_so():
    with pytest.raises(ValueError, match="the model has none"):
        keras_maml.CAVIA(dense_model())


def test_a_learner_cites_what_it_uses(capsys):
    learner = keras_maml.ANIL(dense_model(), update_rule=update_rules.PerLayerPerStep(0.1))
    learner.citation()
    printed = capsys.readouterr().out
    keys = [line.split("{")[1] for line in printed.splitlines() if line.startswith("@")]
    assert keys == ["finn2017maml,", "antoniou2019mamlpp,", "raghu2020anil,"]
    assert printed.count("{") == printed.count("}")
