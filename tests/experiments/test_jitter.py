"""Images are redrawn as a jitter says, each by itself and always the same."""

import numpy as np
import pytest
import tensorflow as tf

from experiments.shared import jitter
from keras_maml.episodes import glyphs

NONE = [0.5, 0.5, 0.5, 0.5, 0.5, 0.0]
AS_IT_IS = {"mirror": 0.5, "size": 0.0, "down": 0.5, "right": 0.5, "bright": 0.5, "contrast": 0.5}
COLOURS = {"red": 0.5, "green": 0.5, "blue": 0.5}


def batch():
    return next(iter(glyphs(meta_batch_size=2, tasks=2)))[0][0]


def redraw(images, draws, way=jitter.DRAWINGS):
    images = tf.convert_to_tensor(images)
    flat = tf.reshape(images, [-1, *images.shape[2:]])
    numbers = tf.tile(tf.constant([draws], tf.float32), [len(flat), 1])
    return tf.reshape(way.redraw(flat, numbers), images.shape).numpy()


def test_draws_in_the_middle_change_nothing():
    images = batch()
    np.testing.assert_allclose(redraw(images, NONE), images, rtol=0, atol=1e-5)


def test_a_shift_is_one_to_the_right_and_down():
    images = batch().numpy()
    most = int(jitter.SHIFT)
    expected = np.zeros_like(images)
    expected[:, :, most:, most:] = images[:, :, :-most, :-most]
    moved = redraw(images, [0.5, 0.5, 0.5, 1.0, 1.0, 0.0])
    np.testing.assert_allclose(moved, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pen", [0.5, 1.0])
def test_a_wider_pen_reaches_one_pixel_further(pen):
    dot = np.zeros([2, 1, 28, 28, 1], "float32")
    dot[:, :, 10, 12] = 1
    drawn = redraw(dot, [*NONE[:-1], pen])[0, 0, ..., 0]
    expected = np.zeros([28, 28])
    expected[9:12, 11:14] = pen
    expected[10, 12] = 1
    np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-5)


def test_a_turn_keeps_the_middle_and_is_of_ten_degrees():
    dot = np.zeros([2, 1, 29, 29, 1], "float32")
    dot[:, :, 14, 24] = 1  # ten to the right of the middle
    drawn = redraw(dot, [1.0, *NONE[1:]])[0, 0, ..., 0]
    y, x = np.tensordot(drawn, np.stack(np.mgrid[:29, :29], -1), 2) / drawn.sum() - 14
    assert abs(np.degrees(np.arctan2(y, x))) == pytest.approx(jitter.ANGLE, abs=1)
    assert np.hypot(x, y) == pytest.approx(10, abs=0.2)


def test_an_episode_is_always_redrawn_alike_and_images_differently():
    def of(start, size):
        episodes = glyphs(meta_batch_size=size, tasks=4 - start, start=start)
        redrawn = jitter.DRAWINGS.of_episodes(episodes, seed=3, meta_batch_size=size, start=start)
        return tf.nest.map_structure(lambda *parts: np.concatenate(parts), *redrawn)

    for whole, later in zip(tf.nest.flatten(of(0, 4)), tf.nest.flatten(of(2, 1)), strict=True):
        np.testing.assert_allclose(whole[2:], later, rtol=0, atol=1e-6)
    same = tf.tile(batch()[:, :1], [1, 2, 1, 1, 1])
    indices = tf.range(2, dtype=tf.int64)
    one = jitter.DRAWINGS(same, 0, indices, "jitter support").numpy()
    other = jitter.DRAWINGS(same, 0, indices, "jitter query").numpy()
    for a, b in ((one[:, 0], one[:, 1]), (one, other)):
        assert np.abs(a - b).max() > 0.1


def photographs():
    return np.random.default_rng(0).uniform(0.2, 0.7, [1, 2, 21, 21, 3]).astype("float32")


def seen(images, **changes):
    draws = AS_IT_IS | COLOURS | changes
    return redraw(images, list(draws.values()), jitter.PHOTOGRAPHS)


def test_a_photograph_may_stay_as_it_is_or_be_mirrored():
    images = photographs()
    np.testing.assert_allclose(seen(images), images, rtol=0, atol=1e-5)
    np.testing.assert_allclose(seen(images, mirror=0.4), images[..., ::-1, :], rtol=0, atol=1e-5)


@pytest.mark.parametrize("down, right", [(0.0, 1.0), (1.0, 0.0), (0.5, 0.5)])
@pytest.mark.parametrize("mirror", [0.0, 0.5])
def test_the_part_of_a_photograph_that_is_seen_fills_the_image(down, right, mirror):
    rows, columns = np.mgrid[:21, :21].astype("float32")
    places = np.stack([rows, columns, rows], axis=-1)[None, None] / 40
    part = seen(places, mirror=mirror, size=1.0, down=down, right=right)[0, 0] * 40
    # Of 20 pixels between the first and the last 15 are left: five to share among two sides.
    top, left = 5 * (1 - down), 5 * (1 - right)
    if mirror < 0.5:
        left = 5 - left
    lines = [np.linspace(start, start + 15, 21) for start in (top, left)]
    if mirror < 0.5:
        lines[1] = lines[1][::-1]
    contrast = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1)
    np.testing.assert_allclose(part[..., :2], contrast, rtol=0, atol=1e-3)


def test_light_and_tint_of_a_photograph():
    images = photographs()
    np.testing.assert_allclose(seen(images, bright=1.0), 1.3 * images, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        seen(images, red=1.0, blue=0.0), [1.1, 1, 0.9] * images, rtol=0, atol=1e-5
    )
    middle = images.mean(axis=(2, 3, 4), keepdims=True)
    np.testing.assert_allclose(
        seen(images, contrast=0.0), middle + 0.7 * (images - middle), rtol=0, atol=1e-5
    )
    white = seen(np.ones_like(images), bright=1.0)
    np.testing.assert_array_equal(white, np.ones_like(images))
