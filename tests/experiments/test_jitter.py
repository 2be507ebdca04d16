"""Images are redrawn as the settings of jitter say, each by itself and always the same."""

import numpy as np
import pytest
import tensorflow as tf

from experiments.shared import jitter
from keras_maml.episodes import glyphs

NONE = [0.5, 0.5, 0.5, 0.5, 0.5, 0.0]


def batch():
    return next(iter(glyphs(meta_batch_size=2, tasks=2)))[0][0]


def redraw(monkeypatch, images, draws):
    count = images.shape[1]
    numbers = tf.tile(tf.constant(draws, tf.float32)[None, None], [len(images), count, 1])
    monkeypatch.setattr(jitter, "uniform", lambda *_: numbers)
    return jitter.redraw(images, 0, tf.range(2, dtype=tf.int64), "jitter").numpy()


def test_draws_in_the_middle_change_nothing(monkeypatch):
    images = batch()
    np.testing.assert_allclose(redraw(monkeypatch, images, NONE), images, rtol=0, atol=1e-5)


def test_a_shift_is_one_to_the_right_and_down(monkeypatch):
    images = batch().numpy()
    most = int(jitter.SHIFT)
    expected = np.zeros_like(images)
    expected[:, :, most:, most:] = images[:, :, :-most, :-most]
    moved = redraw(monkeypatch, tf.constant(images), [0.5, 0.5, 0.5, 1.0, 1.0, 0.0])
    np.testing.assert_allclose(moved, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pen", [0.5, 1.0])
def test_a_wider_pen_reaches_one_pixel_further(monkeypatch, pen):
    dot = np.zeros([2, 1, 28, 28, 1], "float32")
    dot[:, :, 10, 12] = 1
    drawn = redraw(monkeypatch, tf.constant(dot), [*NONE[:-1], pen])[0, 0, ..., 0]
    expected = np.zeros([28, 28])
    expected[9:12, 11:14] = pen
    expected[10, 12] = 1
    np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-5)


def test_a_turn_keeps_the_middle_and_is_of_ten_degrees(monkeypatch):
    dot = np.zeros([2, 1, 29, 29, 1], "float32")
    dot[:, :, 14, 24] = 1  # ten to the right of the middle
    drawn = redraw(monkeypatch, tf.constant(dot), [1.0, *NONE[1:]])[0, 0, ..., 0]
    y, x = np.tensordot(drawn, np.stack(np.mgrid[:29, :29], -1), 2) / drawn.sum() - 14
    assert abs(np.degrees(np.arctan2(y, x))) == pytest.approx(jitter.ANGLE, abs=1)
    assert np.hypot(x, y) == pytest.approx(10, abs=0.2)


def test_an_episode_is_always_redrawn_alike_and_images_differently():
    def of(start, size):
        episodes = glyphs(meta_batch_size=size, tasks=4 - start, start=start)
        redrawn = jitter.jittered(episodes, seed=3, meta_batch_size=size, start=start)
        return tf.nest.map_structure(lambda *parts: np.concatenate(parts), *redrawn)

    for whole, later in zip(tf.nest.flatten(of(0, 4)), tf.nest.flatten(of(2, 1)), strict=True):
        np.testing.assert_allclose(whole[2:], later, rtol=0, atol=1e-6)
    same = tf.tile(batch()[:, :1], [1, 2, 1, 1, 1])
    indices = tf.range(2, dtype=tf.int64)
    one = jitter.redraw(same, 0, indices, "jitter support").numpy()
    other = jitter.redraw(same, 0, indices, "jitter query").numpy()
    for a, b in ((one[:, 0], one[:, 1]), (one, other)):
        assert np.abs(a - b).max() > 0.1
