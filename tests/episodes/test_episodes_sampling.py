import hashlib

import numpy as np
import pytest
import tensorflow as tf

from keras_maml.episodes import sampling
from keras_maml.episodes.sampling import (
    WEYL_INCREMENT,
    choose,
    episode_dataset,
    random_bits,
    require_positive,
    splitmix64,
    uniform,
)


def indices(*values):
    return tf.constant(values, tf.int64)


def test_splitmix64_gives_the_published_outputs():
    states = [(k * WEYL_INCREMENT) % 2**64 for k in (1, 2, 3)]
    outputs = splitmix64(tf.constant(states, tf.uint64)).numpy().tolist()
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize("seed", [0, -1, 2**70])
def test_an_episode_owns_a_block_of_the_sequence_of_its_seed_and_stream(seed, reference_bits):
    digest = hashlib.blake2b(f"{seed}/inputs".encode(), digest_size=8).digest()
    sequence = reference_bits(int.from_bytes(digest, "little"), 0, 60)
    bits = random_bits(seed, indices(0, 1, 9), "inputs", (2, 3)).numpy()
    np.testing.assert_array_equal(bits[:2].ravel(), sequence[:12])
    np.testing.assert_array_equal(bits[2].ravel(), sequence[54:])


def test_late_episodes_are_reached_without_overflow(reference_bits):
    index = 2**40
    digest = hashlib.blake2b(b"3/x", digest_size=8).digest()
    expected = reference_bits(int.from_bytes(digest, "little"), index * 5, 5)
    np.testing.assert_array_equal(random_bits(3, indices(index), "x", (5,))[0], expected)


def test_uniform_is_the_high_24_bits():
    bits = random_bits(0, indices(4), "a", (100,)).numpy()
    draws = uniform(0, indices(4), "a", (100,)).numpy()
    assert draws.dtype == np.float32
    np.testing.assert_array_equal(draws, (bits >> np.uint64(40)) / 2.0**24)


def test_the_largest_draw_is_below_one():
    largest = tf.cast(tf.constant(2**24 - 1, tf.uint64), tf.float32) * 2.0**-24
    assert largest.numpy() < 1


def test_uniform_has_the_moments_and_the_bins_of_the_uniform_distribution():
    draws = uniform(0, tf.range(1000, dtype=tf.int64), "a", (100,)).numpy().astype("float64")
    n = draws.size
    assert abs(draws.mean() - 1 / 2) < 4 / np.sqrt(12 * n)
    assert abs(draws.var() - 1 / 12) < 4 / np.sqrt(180 * n)
    observed, expected = np.bincount((draws * 64).astype(int).ravel(), minlength=64), n / 64
    chi_squared = ((observed - expected) ** 2 / expected).sum()
    assert abs(chi_squared - 63) < 4 * np.sqrt(2 * 63)


@pytest.mark.parametrize("other", [(1, "a", 0), (0, "b", 0), (0, "a", 1)])
def test_seeds_streams_and_episodes_are_uncorrelated(other):
    n = 50_000
    seed, stream, shift = other
    first = uniform(0, tf.range(n, dtype=tf.int64), "a", ()).numpy()
    second = uniform(seed, tf.range(shift, n + shift, dtype=tf.int64), stream, ()).numpy()
    assert not np.intersect1d(first[:100], second[:100]).size or shift
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(n)


def test_no_output_is_shared_within_a_stream():
    bits = random_bits(0, tf.range(1000, dtype=tf.int64), "a", (7,)).numpy()
    assert np.unique(bits).size == bits.size


def test_choose_takes_each_member_once_and_favours_none():
    chosen = choose(0, tf.range(6000, dtype=tf.int64), "c", (), population=5, count=2).numpy()
    assert (chosen[:, 0] != chosen[:, 1]).all()
    pairs = np.bincount(chosen[:, 0] * 5 + chosen[:, 1], minlength=25).reshape(5, 5)
    expected = 6000 / 20
    off_diagonal = pairs[~np.eye(5, dtype=bool)]
    assert (np.abs(off_diagonal - expected) < 4 * np.sqrt(expected)).all()


def test_choose_with_fewer_gives_the_first_of_more():
    few = choose(5, indices(1, 2), "c", (3,), population=20, count=2)
    many = choose(5, indices(1, 2), "c", (3,), population=20, count=9)
    np.testing.assert_array_equal(few, many[..., :2])


def test_choose_keeps_to_the_available_members():
    available = tf.constant([[2, 5], [3, 2]])
    chosen = choose(0, indices(0, 1), "c", (2,), population=9, count=2, available=available).numpy()
    assert (chosen < available[..., None]).numpy().all()
    assert sorted(chosen[0, 0]) == sorted(chosen[1, 1]) == [0, 1]


def test_a_finite_dataset_knows_its_length_and_its_shapes():
    dataset = episode_dataset(lambda i: i * i, meta_batch_size=3, tasks=6, start=2)
    assert dataset.cardinality() == 2
    assert dataset.element_spec == tf.TensorSpec([3], tf.int64)
    assert [e.tolist() for e in dataset.as_numpy_iterator()] == [[4, 9, 16], [25, 36, 49]]


def test_without_tasks_the_dataset_never_ends():
    dataset = episode_dataset(lambda i: i, meta_batch_size=2, start=4)
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    assert [e.tolist() for e in dataset.take(2).as_numpy_iterator()] == [[4, 5], [6, 7]]


def test_tasks_must_fill_the_meta_batches():
    with pytest.raises(ValueError, match=r"tasks=10 and meta_batch_size=4. Use tasks=12"):
        episode_dataset(lambda i: i, meta_batch_size=4, tasks=10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"meta_batch_size": 0}, "meta_batch_size must be an integer of at least 1, got 0"),
        ({"meta_batch_size": 2, "tasks": -2}, "tasks must be an integer of at least 1, got -2"),
        ({"meta_batch_size": 2, "start": -1}, "start must be an integer of at least 0, got -1"),
        ({"meta_batch_size": 2.0}, "meta_batch_size must be an integer of at least 1, got 2.0"),
    ],
)
def test_sizes_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        episode_dataset(lambda i: i, **arguments)


def test_require_positive_accepts_numpy_integers_and_refuses_booleans():
    require_positive(ways=np.int64(3))
    with pytest.raises(ValueError, match="ways must be an integer of at least 1, got True"):
        require_positive(ways=True)


def test_a_seed_must_be_an_integer():
    with pytest.raises(ValueError, match="seed must be an integer, got 0.5"):
        uniform(0.5, indices(0), "a", ())


def test_large_meta_batches_are_made_one_by_one(monkeypatch):
    made = []

    def record(numbers):
        made.append(numbers.tolist())
        return np.zeros([2, 100], np.float32)

    def make_batch(numbers):
        batch = tf.numpy_function(record, [numbers], tf.float32)
        return tf.ensure_shape(batch, [2, 100])

    monkeypatch.setattr(sampling, "LARGEST_AHEAD", 2 * 100 * 4 - 1)
    batches = iter(episode_dataset(make_batch, meta_batch_size=2))
    for number in range(3):
        next(batches)
        assert made == [[2 * i, 2 * i + 1] for i in range(number + 1)]
