"""Networks that are trained on all classes at once, and what they make of new ones."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from experiments import baselines
from keras_maml import episodes

SMALL = baselines.Settings(
    glyphs=True,
    filters=4,
    batch_size=20,
    iterations=4,
    epoch_iterations=2,
    validation_tasks=2,
    test_shots=(1,),
    test_queries=2,
    test_tasks=4,
    test_steps=1,
    test_rates=(0.1,),
    test_tuning_tasks=2,
)


@pytest.fixture(scope="module")
def data():
    drawn = episodes.load_glyphs("train")
    return episodes.ImageClasses(drawn.images[:60], drawn.names[:3], drawn.counts[:3])


def test_an_epoch_has_every_image_once_in_an_order_of_its_own(data):
    found = list(baselines.batches(data, SMALL, seen=0).take(7).as_numpy_iterator())
    images = np.concatenate([x for x, _ in found[:3]])
    places = [(data.images / np.float32(255) == image).all((1, 2, 3)).argmax() for image in images]
    assert sorted(places) == [*range(60)]
    labels = np.concatenate([y for _, y in found[:3]])
    np.testing.assert_array_equal(labels, np.array(places) // 20)
    assert places != [*range(60)]
    assert not np.array_equal(found[0][0], found[3][0])
    (later, _), *_ = baselines.batches(data, SMALL, seen=5).take(1).as_numpy_iterator()
    np.testing.assert_array_equal(later, found[5][0])


def test_the_nearest_neighbour_is_that_of_the_largest_cosine():
    keras.utils.set_random_seed(0)
    stack = [keras.Input((3,)), layers.Dense(4, "tanh"), layers.Dense(9)]
    network = keras.Sequential(stack)
    random = np.random.default_rng(0)
    x, x_query = (random.normal(size=(2, 6, 3)).astype("float32") for _ in range(2))
    y, y_query = (random.integers(3, size=(2, 6)) for _ in range(2))
    tasks = tf.data.Dataset.from_tensors(((x, y), (x_query, y_query)))
    found = baselines.neighbours(network, tasks)
    for task in range(2):
        features = [np.tanh(a[task] @ network.layers[0].kernel.numpy()) for a in (x, x_query)]
        features = [f / np.linalg.norm(f, axis=-1, keepdims=True) for f in features]
        nearest = (features[1] @ features[0].T).argmax(-1)
        assert found[task] == pytest.approx((y[task][nearest] == y_query[task]).mean())


@pytest.mark.slow
def test_a_run_says_what_both_methods_reach_and_is_not_made_twice(tmp_path, capsys):
    files = baselines.Files(output=str(tmp_path / "run"))
    record = baselines.run(SMALL, files)
    first = capsys.readouterr().out
    assert [row["method"] for row in record["results"]] == ["nearest neighbour", "fine-tuning"]
    assert all(row["tasks"] == 4 and 0 <= row["mean"] <= 1 for row in record["results"])
    assert "5-way 1-shot  fine-tuning, transductive, " in first
    assert baselines.run(SMALL, files) == record
    assert "Epoch" in first and "Epoch" not in capsys.readouterr().out


def test_one_task_has_no_interval():
    found = baselines.summary(np.array([0.25], "float32"))
    assert found == {"mean": 0.25, "ci95": None, "tasks": 1}
    assert baselines.summary(np.array([0.2, 0.4]))["ci95"] == pytest.approx(1.96 * 0.1)
    row = {"method": "nearest neighbour", "shots": 1, **found}
    text = baselines.table({"settings": {"glyphs": True, "ways": 5}, "results": [row]})
    assert text.splitlines()[-1].split("  ")[-1].strip() == "25.00%"


def test_only_a_task_of_as_many_ways_and_shots_has_a_published_accuracy():
    rows = [{"method": "nearest neighbour", "shots": n, "mean": 0.4, "ci95": 0.01} for n in (1, 2)]
    texts = [
        baselines.table({"settings": {"glyphs": glyphs, "ways": ways}, "results": rows})
        for glyphs, ways in ((False, 5), (False, 20), (True, 5))
    ]
    assert ["41.08%" in text for text in texts] == [True, False, False]
    assert texts[0].count("±") == 3 and "20-way 1-shot" in texts[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_rates": ()}, "test_rates must be one or several"),
        ({"iterations": 3}, "iterations must be a multiple of 2"),
        ({"ways": 1}, "ways must be an integer of at least 2"),
        ({"test_shots": (1, 0)}, "test_shots must be an integer of at least 1, got 0"),
        ({"test_shots": (1, 19)}, r"shots \+ queries = 19 \+ 2 = 21 examples"),
        (
            {"batch_size": 2_000},
            "batch_size must be at most the number of training images, .* 2000",
        ),
    ],
)
def test_settings_out_of_range_are_refused_before_work_starts(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        baselines.run(dataclasses.replace(SMALL, **change), baselines.Files(output=str(tmp_path)))
    assert not [*tmp_path.iterdir()]
