"""Reference implementations and helpers for the tests of the episodes."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds


def reference_bits(state: int, first: int, count: int) -> np.ndarray:
    """Outputs `first` .. `first + count - 1` of SplitMix64 seeded with `state`, in plain NumPy."""
    z = np.uint64(state) + np.arange(first + 1, first + count + 1, dtype="uint64") * np.uint64(
        0x9E3779B97F4A7C15
    )
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@pytest.fixture(autouse=True, scope="session")
def no_progress_bars():
    tfds.display_progress_bar(False)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """The folder for prepared data, of each test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("KERAS_MAML_CACHE", str(folder))
    return folder


@pytest.fixture(name="reference_bits")
def reference_bits_fixture():
    return reference_bits


@pytest.fixture
def concatenate():
    """Joins the elements of a finite dataset along the task axis."""

    def join(dataset: tf.data.Dataset):
        elements = list(dataset.as_numpy_iterator())
        return tf.nest.map_structure(lambda *parts: np.concatenate(parts), *elements)

    return join


@pytest.fixture
def assert_same():
    """Asserts that two structures of arrays are equal bit for bit."""

    def check(actual, expected):
        tf.nest.map_structure(np.testing.assert_array_equal, actual, expected)

    return check
