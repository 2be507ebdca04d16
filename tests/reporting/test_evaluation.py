"""Evaluation: numbers by step, their statistics and their forms."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_maml import MAML, callbacks, episodes, networks, plots
from keras_maml.reporting.evaluation import Evaluation, evaluate


def make_regressor(steps=2, **settings):
    settings = {"inner_learning_rate": 0.1, "evaluation_steps": steps} | settings
    learner = MAML(networks.sinusoid_regressor(seed=0), **settings)
    learner.compile(loss="mean_squared_error", metrics=["mae"], jit_compile=False)
    return learner


# At once every step is in the program, and in turns there is a loop.
@pytest.mark.parametrize("task_map", ["vectorized", "sequential"])
def test_every_step_equals_adapting_to_each_task_alone(task_map):
    learner = make_regressor(task_map=task_map)
    data = episodes.sinusoid(shots=4, queries=6, meta_batch_size=3, tasks=6)
    values = evaluate(learner, data, tasks=6).values["transductive"]
    assert set(values) == {"loss", "mae"} and values["loss"].shape == (6, 3)
    task = 0
    for (x_support, y_support), (x_query, y_query) in data:
        for i in range(3):
            for step in range(3):
                adapted = learner.adapt(x_support[i], y_support[i], steps=step)
                error = adapted.predict(x_query[i], verbose=0) - y_query[i].numpy()
                assert values["loss"][task, step] == pytest.approx(np.mean(error**2), rel=1e-4)
                assert values["mae"][task, step] == pytest.approx(np.mean(abs(error)), rel=1e-4)
            task += 1


def test_unknown_names_say_what_there_is():
    learner = make_regressor(steps=0)
    data = episodes.sinusoid(meta_batch_size=4)
    for modes in ([], "inductive"):
        with pytest.raises(ValueError, match="batch_normalizations must be a list of"):
            evaluate(learner, data, tasks=4, batch_normalizations=modes)
    result = evaluate(learner, data, tasks=4)
    with pytest.raises(ValueError, match=r"metric must be one of \('loss', 'mae'\), got 'acc'"):
        result.curve("acc")
    with pytest.raises(ValueError, match="batch_normalization must be one of .* got 'inductive'"):
        result.curve("loss", batch_normalization="inductive")


def test_the_last_meta_batch_is_cut_to_the_number_of_tasks():
    learner = make_regressor(steps=0)
    data = episodes.sinusoid(meta_batch_size=4)
    few, many = evaluate(learner, data, tasks=5), evaluate(learner, data, tasks=8)
    assert few.tasks == 5
    assert np.array_equal(
        few.values["transductive"]["loss"], many.values["transductive"]["loss"][:5]
    )


def test_both_ways_of_batch_normalisation_are_reported_and_differ():
    learner = MAML(networks.fully_connected_classifier(3, (4,), (5,), seed=0), 0.5)
    learner.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    images = np.random.default_rng(0).normal(size=(40, 4))
    data = episodes.from_arrays(
        images, np.arange(40) % 4, ways=3, shots=2, queries=2, meta_batch_size=4
    )
    result = evaluate(learner, data, tasks=8)
    assert list(result.values) == ["transductive", "inductive"]
    loss = {mode: metrics["loss"] for mode, metrics in result.values.items()}
    assert not np.allclose(loss["transductive"], loss["inductive"])
    learner.batch_normalization = "inductive"
    assert list(evaluate(learner, data, tasks=4).values) == ["inductive", "transductive"]
    only = evaluate(learner, data, tasks=8, batch_normalizations=["inductive"])
    assert np.array_equal(only.values["inductive"]["loss"], loss["inductive"])


VALUES = np.array([[1.0, 2.0], [3.0, np.nan], [8.0, np.inf]])


def test_statistics_are_those_of_the_finite_tasks():
    before, after = Evaluation({"transductive": {"loss": VALUES}}).rows()
    assert before["mean"] == 4.0 and before["median"] == 3.0 and before["not_finite"] == 0
    assert before["ci95"] == pytest.approx(1.96 * np.sqrt(13) / np.sqrt(3))
    assert after["mean"] == 2.0 and after["ci95"] is None and after["not_finite"] == 2


def test_a_step_at_which_no_task_is_finite_has_no_statistics():
    result = Evaluation({"transductive": {"loss": np.array([[1.0, np.nan], [3.0, np.nan]])}})
    row = result.rows()[1]
    assert row["mean"] is None and row["not_finite"] == 2
    curve = [result.curve("loss", statistic) for statistic in ("mean", "ci95")]
    np.testing.assert_allclose(curve[0], [2.0, np.nan])
    (line, *_) = plots.loss_over_steps({"maml": curve}).axes[0].lines
    assert line.get_ydata()[0] == 2.0


def test_too_few_episodes_are_refused_before_any_work(tmp_path):
    data = episodes.sinusoid(meta_batch_size=2, tasks=4)
    for start in (
        lambda: evaluate(None, data, steps=1, batch_normalizations=["inductive"], tasks=5),
        lambda: callbacks.AdaptationSummary(tmp_path, data, tasks=5),
    ):
        with pytest.raises(ValueError, match="the dataset ends after 4"):
            start()


def test_episodes_that_are_no_meta_batches_are_not_counted():
    one_by_one = episodes.sinusoid(meta_batch_size=1, shots=5, queries=9, tasks=4).unbatch()
    for data in (tf.data.Dataset.range(4), one_by_one):
        with pytest.raises(ValueError, match="An element of an episodes|same number of tasks"):
            evaluate(make_regressor(), data, tasks=9)


def test_the_forms_tell_the_same():
    result = Evaluation({"transductive": {"loss": VALUES, "accuracy": VALUES / 10}})
    columns = result.to_dict()
    assert columns["metric"] == ["loss", "loss", "accuracy", "accuracy"]
    assert json.loads(result.to_json()) == result.rows()
    assert {len(column) for column in columns.values()} == {4}
    assert result.curve("loss").tolist() == [4.0, 2.0]
    text = result.to_text()
    assert "3 tasks" in text and "4.0000 ± 4.0801" in text and "0.4000 ± 0.4080" in text
    assert text.splitlines()[-1].split()[-1] == "2"  # tasks that are not finite


def test_diverging_tasks_are_counted_not_hidden():
    learner = make_regressor(steps=8, inner_learning_rate=30.0, task_map="sequential")
    result = evaluate(learner, episodes.sinusoid(shots=3, meta_batch_size=5), tasks=10, steps=40)
    assert result.rows()[0]["not_finite"] == 0
    assert result.curve("loss", "not_finite")[-1] > 0
    assert all(row["mean"] is None or np.isfinite(row["mean"]) for row in result.rows())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": 0}, "tasks must be an integer of at least 1, got 0"),
        ({"steps": -1}, "steps must be an integer of at least 0, got -1"),
        ({"tasks": 9}, "tasks=9 were asked for, but the dataset ends after 4"),
        ({"batch_normalizations": ["inductive"] * 2}, "must be one or several different ones"),
        ({"batch_normalizations": ["none"]}, "batch_normalizations must be one of .* got 'none'"),
    ],
)
def test_errors_say_what_to_do(arguments, message):
    data = episodes.sinusoid(meta_batch_size=2, tasks=4)
    with pytest.raises(ValueError, match=message):
        evaluate(make_regressor(), data, **arguments)


def test_a_metric_cannot_take_the_place_of_the_loss():
    learner = make_regressor()
    learner.compile("sgd", "mse", metrics=[keras.metrics.MeanAbsoluteError(name="loss")])
    data = episodes.sinusoid(meta_batch_size=2, tasks=4)
    for measure in (lambda: evaluate(learner, data, tasks=4), lambda: learner.evaluate(data)):
        with pytest.raises(ValueError, match="called 'loss'.* another name"):
            measure()
