"""Threads do not see what a learner lends the layers of a model, nor each other's."""

import concurrent.futures
import sys
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_maml import MAML
from keras_maml.layers import SharedHead


@pytest.fixture(autouse=True)
def impatient_threads():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def model():
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8),
            keras.layers.BatchNormalization(),
            keras.layers.LayerNormalization(),
            keras.layers.Dense(3),
        ]
    )


@pytest.fixture
def learner(model):
    learner = MAML(model, 0.5, inner_steps=2)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile(keras.optimizers.Adam(0.01), loss, jit_compile=False)
    return learner


def make_task(examples, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(examples, 4)).astype("float32")
    return x, random.integers(0, 3, examples).astype("int32")


def in_threads(function, arguments):
    with concurrent.futures.ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(function, arguments))


def test_adapting_in_threads_leaves_the_model_as_it_is(learner, model):
    x, _ = make_task(6)
    learner.build_on(tf.nest.map_structure(lambda t: t[None], (make_task(6), make_task(6))))
    before = model(x, training=False).numpy()
    alone = [learner.adapt(*make_task(k))(x).numpy() for k in (1, 2, 3, 4, 5, 6)]
    learner.compiler()(learner)  # traces anew
    together = in_threads(lambda k: learner.adapt(*make_task(k))(x).numpy(), (1, 2, 3, 4, 5, 6))
    for ours, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
    assert np.array_equal(model(x, training=False), before)
    assert not [layer.name for layer in model.layers if "call" in vars(layer)]
    assert tf.nn.moments.__module__.startswith("tensorflow")


def test_threads_adapt_to_different_numbers_of_classes():
    model = keras.Sequential([keras.Input((4,)), SharedHead()])
    learner = MAML(model, 0.5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile("sgd", loss, jit_compile=False)
    query, _ = make_task(7)

    def shapes(ways):
        x, _ = make_task(2 * ways)
        adapted = [learner.adapt(x, np.repeat(range(ways), 2)) for _ in range(4)]
        return [adapted[-1](query).shape, *(one.predict(query, verbose=0).shape for one in adapted)]

    for ways, found in zip((3, 5), in_threads(shapes, (3, 5)), strict=True):
        assert found == [(7, ways)] * 5


def test_the_users_own_calls_are_never_lent_forms(learner, model):
    x, _ = make_task(6)
    expected = model(x, training=False).numpy()
    moments = tf.nn.moments(x, [0])
    stop, wrong = threading.Event(), []

    def use_the_model():
        while not stop.is_set():
            wrong.append(np.abs(model(x, training=False) - expected).max())
            wrong.append(np.abs(tf.nn.moments(x, [0])[1] - moments[1]).max())

    user = threading.Thread(target=use_the_model)
    user.start()
    try:
        for examples in range(2, 7):
            learner.adapt(*make_task(examples))
    finally:
        stop.set()
        user.join()
    assert len(wrong) > 10
    assert max(wrong) < 1e-6


def test_one_adapted_model_serves_many_threads(learner):
    adapted = learner.adapt(*make_task(6))
    queries = [make_task(5, seed)[0] for seed in range(4)]
    expected = [adapted(x).numpy() for x in queries]
    found = in_threads(lambda x: [adapted(x).numpy() for _ in range(20)], queries)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, [theirs] * 20, rtol=1e-5, atol=1e-6)


def test_training_in_one_thread_beside_adapting_and_predicting_in_another(learner):
    data = tf.nest.map_structure(lambda t: t[None], (make_task(6), make_task(5, 1)))
    learner.build_on(data)
    before = [v.numpy() for v in learner.trainable_variables]
    history = learner.fit(data, epochs=5, verbose=0).history
    trained = [v.numpy() for v in learner.trainable_variables]
    learner.set_weights([v for v in learner.get_weights()])
    for variable, value in zip(learner.trainable_variables, before, strict=True):
        variable.assign(value)
    learner.compiler()(learner)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        fit = pool.submit(lambda: learner.fit(data, epochs=5, verbose=0).history)
        others = [
            pool.submit(
                lambda k=k: learner.adapt(*make_task(k)).predict(make_task(3)[0], verbose=0)
            )
            for k in (2, 3)
        ]
        results = [other.result() for other in others]
    assert fit.result()["loss"] == pytest.approx(history["loss"], rel=1e-5)
    for ours, theirs in zip(learner.trainable_variables, trained, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert all(np.isfinite(result).all() for result in results)
