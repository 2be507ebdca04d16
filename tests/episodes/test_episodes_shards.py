"""Every worker gets its share of every meta-batch, and no episode is made twice."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_maml import episodes
from keras_maml.episodes import sampling


def _arrays(**how):
    images = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
    labels = np.repeat(np.arange(4), 10)
    return episodes.from_arrays(images, labels, ways=2, shots=1, queries=2, **how)


def _tasks(**how):
    tasks = [(np.random.default_rng(i).normal(size=(9, 2)), np.ones([9, 1])) for i in range(7)]
    return episodes.from_tasks(tasks, shots=2, queries=3, **how)


def _glyphs(**how):
    return episodes.glyphs(ways=2, shots=1, queries=1, **how)


SOURCES = [episodes.sinusoid, _arrays, _tasks, _glyphs]


@pytest.mark.parametrize("source", SOURCES)
def test_shares_in_order_are_the_meta_batch(source):
    how = {"meta_batch_size": 6, "tasks": 12, "start": 6, "seed": 3}
    whole = list(source(**how))
    shares = [list(source(shard=(worker, 3), **how)) for worker in range(3)]
    for number, batch in enumerate(whole):
        joined = keras.tree.map_structure(
            lambda *parts: np.concatenate(parts), *(share[number] for share in shares)
        )
        keras.tree.map_structure(np.testing.assert_array_equal, batch, joined)
    assert all(len(share) == len(whole) for share in shares)


def test_only_its_own_episodes_are_made():
    seen = []

    def make_batch(indices):
        tf.py_function(lambda i: seen.extend(i.numpy().tolist()), [indices], [])
        return indices

    list(sampling.episode_dataset(make_batch, meta_batch_size=4, tasks=8, shard=(1, 2)))
    assert sorted(seen) == [2, 3, 6, 7]


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ((0, 4), "Use meta_batch_size=8, or a number of workers that divides 6"),
        ((2, 2), "got worker 2 of 2"),
        ((-1, 2), "must be an integer of at least 0"),
        ((0, 0), "must be an integer of at least 1"),
        (1, r"shard must be \(worker, workers\)"),
    ],
)
def test_a_share_that_cannot_be_is_refused(shard, message):
    with pytest.raises(ValueError, match=message):
        episodes.sinusoid(meta_batch_size=6, shard=shard)
