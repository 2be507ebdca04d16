"""`fit`, `evaluate` and `predict` behave as Keras users expect."""

import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo

from keras_maml import MAML, callbacks, episodes, files

CASE = zoo.CASES["dense"]


def make_learner(seed=0, settings=None, **options):
    keras.utils.set_random_seed(seed)
    learner = MAML(CASE.build(), 0.1, 1, 2, **(settings or {}))
    options = {"jit_compile": False} | options  # XLA takes seconds for every program
    learner.compile(keras.optimizers.Adam(0.01), CASE.loss, metrics=["mae"], **options)
    return learner


def meta_batches(count=6):
    parts = [zoo.episodes(CASE, seed=seed) for seed in range(count)]
    stacked = tf.nest.map_structure(lambda *tensors: tf.stack(tensors), *parts)
    return tf.data.Dataset.from_tensor_slices(stacked)


def assert_same_state(left, right):
    ours = [*left.variables, *left.optimizer.variables]
    theirs = [*right.variables, *right.optimizer.variables]
    for a, b in zip(ours, theirs, strict=True):
        assert np.array_equal(a.numpy(), b.numpy())


def test_history_and_progress_have_metrics_before_and_after(capsys):
    learner = make_learner()
    history = learner.fit(meta_batches(), epochs=2, validation_data=meta_batches(2)).history
    names = {"loss", "loss_before", "mae", "mae_before"}
    assert set(history) == names | {f"val_{n}" for n in names} | {"gradient_norm"}
    assert all(len(values) == 2 for values in history.values())
    shown = capsys.readouterr().out
    assert "loss_before" in shown and "mae_before" in shown and "val_loss" in shown


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        zoo.slow_if(True, {}, {"jit_compile": True}),
        ({"task_chunk": 2}, {"run_eagerly": True}),
        ({"rematerialize": True}, {"jit_compile": False}),
    ],
    ids=str,
)
def test_training_that_does_not_measure_before_is_the_same_otherwise(settings, options):
    learners = [
        make_learner(settings=settings | {"measure_before": measured}, **options)
        for measured in (True, False)
    ]
    data = {"x": meta_batches(2), "validation_data": meta_batches(2), "verbose": 0}
    expected, found = (learner.fit(**data).history for learner in learners)
    assert set(expected) - set(found) == {"loss_before", "mae_before"}
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-5)
    for ours, theirs in zip(*(learner.get_weights() for learner in learners), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_evaluate_gives_the_loss_before_and_after_the_evaluation_steps():
    learner = make_learner()
    found = learner.evaluate(meta_batches(2), verbose=0, return_dict=True)
    losses = [learner.trajectories(*data, steps=2)["loss"].numpy() for data in meta_batches(2)]
    assert found["loss_before"] == pytest.approx(np.mean(losses, axis=(0, 1))[0], rel=1e-5)
    assert found["loss"] == pytest.approx(np.mean(losses, axis=(0, 1))[2], rel=1e-5)


def test_predict_adapts_to_each_task_and_needs_no_query_targets():
    learner = make_learner()
    support, (x_query, y_query) = zoo.episodes(CASE)
    predictions = learner.predict((support, (x_query, y_query)), verbose=0)
    assert predictions.shape == (3, 5, 1)
    assert np.array_equal(predictions, learner.predict((support, (x_query,)), verbose=0))
    adapted = learner.adapt(support[0][1], support[1][1])
    expected = adapted.predict(x_query[1], verbose=0)
    np.testing.assert_allclose(predictions[1], expected, rtol=1e-5)
    assert learner.predict(meta_batches(4), verbose=0, steps=3).shape == (9, 5, 1)


@pytest.mark.parametrize("task_map", ["vectorized", zoo.slow("sequential")])
def test_one_batch_at_a_time_is_what_an_epoch_is(task_map):
    data = zoo.episodes(CASE)
    learners = [make_learner(settings={"task_map": task_map}) for _ in range(2)]
    expected = learners[0].fit(data, epochs=2, verbose=0).history
    steps = [learners[1].train_on_batch(data, return_dict=True) for _ in range(2)]
    assert {name: [step[name] for step in steps] for name in steps[0]} == expected
    results = learners[0].evaluate(data, verbose=0)
    assert learners[1].test_on_batch(data) == results
    assert learners[1].test_on_batch(data, return_dict=True)["loss"] == results[0]
    found, expected = learners[1].predict_on_batch(data), learners[0].predict(data, verbose=0)
    np.testing.assert_array_equal(found, expected)
    without_targets = (data[0], data[1][:1])
    np.testing.assert_array_equal(learners[1].predict_on_batch(without_targets), expected)


def test_adapt_leaves_the_learner_as_it_was_and_returns_a_usable_model(tmp_path):
    learner = make_learner()
    (x, y), _ = zoo.episodes(CASE)
    learner.build_on(meta_batches(1))
    before = learner.get_weights()
    adapted = learner.adapt(x[0], y[0], steps=5)
    for ours, theirs in zip(before, learner.get_weights(), strict=True):
        assert np.array_equal(ours, theirs)
    assert isinstance(adapted, type(learner.model)) and adapted is not learner.model
    first, *_ = learner.adapt(x[0], y[0], steps=0).evaluate(x[0], y[0], verbose=0)
    last, *_ = adapted.evaluate(x[0], y[0], verbose=0)
    assert last < first
    assert type(adapted) is type(learner.model)  # once more was asked than to predict
    adapted.save(tmp_path / "adapted.keras")
    loaded = keras.models.load_model(tmp_path / "adapted.keras")
    predictions = adapted.predict(x[1], verbose=0)
    np.testing.assert_allclose(loaded.predict(x[1], verbose=0), predictions, rtol=1e-5, atol=1e-6)


def test_many_steps_in_one_call_end_the_same():
    one, many = make_learner(), make_learner(steps_per_execution=3)
    for learner in (one, many):
        learner.fit(meta_batches(), epochs=2, verbose=0)
    assert_same_state(one, many)


def test_every_way_of_running_ends_alike():
    ways = ({"jit_compile": True}, {"jit_compile": False}, {"run_eagerly": True})
    learners = [make_learner(**options) for options in ways]
    for learner in learners:
        learner.fit(meta_batches(3), verbose=0)
    for weights in zip(*(learner.get_weights() for learner in learners), strict=True):
        for other in weights[1:]:
            np.testing.assert_allclose(other, weights[0], rtol=1e-4, atol=1e-6)


def test_xla_is_on_unless_asked_otherwise():
    learner = MAML(CASE.build(), 0.1)
    learner.compile("sgd", CASE.loss)
    assert learner.jit_compile
    assert not make_learner(jit_compile=False).jit_compile
    assert not make_learner(run_eagerly=True).jit_compile


def test_later_epochs_trace_nothing():
    traces = []

    class Counts(keras.layers.Layer):
        def call(self, x):
            traces.append(1)
            return x

    model = keras.Sequential([keras.Input((3,)), Counts(), keras.layers.Dense(1)])
    learner = MAML(model, 0.1)
    learner.compile("sgd", "mse", jit_compile=False)
    counts = []
    count = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: counts.append(len(traces)))
    learner.fit(
        meta_batches(), epochs=3, validation_data=meta_batches(2), callbacks=[count], verbose=0
    )
    assert counts[0] == counts[1] == counts[2] > 0


def test_standard_callbacks(tmp_path):
    learner = make_learner()
    rates = []
    history = learner.fit(
        meta_batches(),
        epochs=4,
        validation_data=meta_batches(2),
        verbose=0,
        callbacks=[
            keras.callbacks.ModelCheckpoint(
                tmp_path / "best.keras", monitor="val_loss", save_best_only=True
            ),
            keras.callbacks.EarlyStopping("val_mae", mode="max", patience=1),
            keras.callbacks.LearningRateScheduler(lambda epoch: 0.01 / (epoch + 1)),
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda *_: rates.append(float(learner.optimizer.learning_rate))
            ),
            keras.callbacks.CSVLogger(tmp_path / "log.csv"),
            keras.callbacks.ReduceLROnPlateau("loss"),
            keras.callbacks.TensorBoard(tmp_path / "logs"),
            keras.callbacks.TerminateOnNaN(),
        ],
    ).history
    epochs = len(history["loss"])
    assert 2 <= epochs < 4  # stopped: the error cannot grow for long while it is trained away
    assert rates == pytest.approx([0.01 / (epoch + 1) for epoch in range(epochs)])
    assert "mae_before" in (tmp_path / "log.csv").read_text().splitlines()[0]
    assert list((tmp_path / "logs").rglob("events*"))
    best = keras.models.load_model(tmp_path / "best.keras")
    loss = best.evaluate(meta_batches(2), verbose=0, return_dict=True)["loss"]
    assert loss == pytest.approx(min(history["val_loss"]), rel=1e-5)


@pytest.mark.parametrize("kind", [keras.callbacks.BackupAndRestore, callbacks.BackupAndRestore])
def test_backup_and_restore_continues_where_it_was_interrupted(tmp_path, kind):
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    whole, cut = make_learner(), make_learner()
    whole.fit(meta_batches(), epochs=4, verbose=0)
    backup = lambda: kind(tmp_path / "backup")  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        cut.fit(meta_batches(), epochs=4, callbacks=[backup(), Interrupt()], verbose=0)
    restarted = make_learner(seed=9)
    history = restarted.fit(meta_batches(), epochs=4, callbacks=[backup()], verbose=0)
    assert history.epoch == [2, 3]
    assert_same_state(restarted, whole)


def test_a_folder_of_backups_is_kept_from_others_while_it_is_in_use(tmp_path):
    learner, backup = make_learner(), callbacks.BackupAndRestore(tmp_path, delete=False)
    learner.compile("sgd", CASE.loss, run_eagerly=True)
    unlock = files.lock(tmp_path)  # as another process does
    with pytest.raises(BlockingIOError, match="in use by another run"):
        learner.fit(meta_batches(1), callbacks=[backup], verbose=0)
    unlock()
    tried = []
    removing = keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: shutil.rmtree(tmp_path))

    def use_it_too(*_):
        with pytest.raises(BlockingIOError):
            files.lock(tmp_path)
        tried.append(backup.epochs_done())

        raise KeyboardInterrupt

    fails = keras.callbacks.LambdaCallback(on_epoch_end=use_it_too)
    with pytest.raises(KeyboardInterrupt):
        learner.fit(meta_batches(1), callbacks=[backup, fails], verbose=0)
    assert tried == [1]
    learner.fit(meta_batches(1), callbacks=[backup, removing], verbose=0)
    assert backup.epochs_done() == 1
    files.lock(tmp_path)()


def test_clipping_limits_the_step():
    learner = make_learner()
    learner.compile(keras.optimizers.SGD(1.0, clipvalue=1e-3), CASE.loss, jit_compile=False)
    learner.build_on(meta_batches(1))
    before = learner.get_weights()
    learner.fit(meta_batches(1), verbose=0)
    moved = [np.abs(a - b).max() for a, b in zip(before, learner.get_weights(), strict=True)]
    assert max(moved) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(
    "scaling",
    [
        zoo.slow(lambda: keras.optimizers.SGD(0.1, loss_scale_factor=1024.0)),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)),
    ],
)
def test_an_optimizer_that_scales_losses_takes_the_same_step(scaling):
    plain, scaled = make_learner(), make_learner()
    plain.compile(keras.optimizers.SGD(0.1), CASE.loss, jit_compile=False)
    scaled.compile(scaling(), CASE.loss, jit_compile=False)
    for learner in (plain, scaled):
        learner.fit(meta_batches(2), verbose=0)
    for a, b in zip(plain.get_weights(), scaled.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_a_smaller_last_meta_batch_counts_as_its_tasks_do():
    learner = make_learner()
    tasks = tf.data.Dataset.from_tensor_slices(zoo.episodes(CASE, tasks=5))
    whole = learner.evaluate(tasks.batch(5), verbose=0, return_dict=True)
    parts = learner.evaluate(tasks.batch(2), verbose=0, return_dict=True)
    assert parts == pytest.approx(whole, rel=1e-5)


def test_the_gradient_norm_is_that_of_the_meta_gradient():
    learner = make_learner()
    data = zoo.episodes(CASE)
    _, gradients = learner.meta_gradients(*data)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in gradients))
    assert learner.fit(data, verbose=0).history["gradient_norm"][0] == pytest.approx(norm, 1e-5)


@pytest.mark.slow
def test_sinusoids_are_learned():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.Dense(40, "relu"),
            keras.layers.Dense(40, "relu"),
            keras.layers.Dense(1),
        ]
    )
    learner = MAML(model, 0.01, 1, 5)
    learner.compile(keras.optimizers.Adam(3e-3), "mse", steps_per_execution=100)
    learner.fit(episodes.sinusoid(), steps_per_epoch=2000, verbose=0)
    test = episodes.sinusoid(seed=1, meta_batch_size=100, tasks=500)
    found = learner.evaluate(test, verbose=0, return_dict=True)
    assert found["loss"] < 0.5 * found["loss_before"]
