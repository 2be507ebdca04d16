import keras
import numpy as np
import pytest

from keras_maml import MAML
from keras_maml.episodes import glyphs, load_glyphs
from keras_maml.episodes.glyphs import CLASSES, draw_glyph, glyph_strokes


def test_splits_part_the_glyphs():
    numbers = [number for split in CLASSES.values() for number in split]
    assert len(numbers) >= 60 and sorted(numbers) == list(range(len(numbers)))
    data = load_glyphs("test")
    assert data.images.shape == (20 * 20, 28, 28, 1) and data.images.dtype == np.uint8
    np.testing.assert_array_equal(data.images[23, ..., 0], draw_glyph(81, np.array([3]))[0])


def test_a_drawing_is_a_function_of_glyph_and_number():
    several = draw_glyph(5, np.arange(8))
    np.testing.assert_array_equal(draw_glyph(5, np.array([6, 2])), several[[6, 2]])
    assert (draw_glyph(6, np.arange(8)) != several).any(axis=(1, 2)).all()


def test_glyphs_differ_and_drawings_resemble_each_other():
    images = np.concatenate([load_glyphs(split).images for split in CLASSES])
    images = images.reshape(100, 20, -1).astype("float32")
    assert len(np.unique(images.reshape(2000, -1), axis=0)) == 2000
    means = images.mean(axis=1)
    distances = (means**2).sum(axis=-1) - 2 * images @ means.T  # squared, up to a constant
    nearest = distances.argmin(axis=-1)
    # Most are nearest to the mean of their own glyph, but not all: that would be too easy.
    assert 0.8 < (nearest == np.arange(100)[:, None]).mean() < 1


def test_drawings_are_of_ink_within_the_paper():
    images = load_glyphs("train").images
    assert (images.max(axis=(1, 2, 3)) == 255).all()
    covered = (images > 127).mean(axis=(1, 2, 3))
    assert covered.min() > 0.02 and covered.max() < 0.5
    assert np.isfinite(glyph_strokes(3)).all() and len(glyph_strokes(3)) in (2, 3, 4)


def test_episodes_are_drawn_of_the_split(concatenate):
    settings = {"ways": 3, "shots": 1, "queries": 2, "meta_batch_size": 2, "tasks": 6}
    (x_support, _), (x_query, y_query) = concatenate(glyphs(split="validation", **settings))
    assert x_query.shape == (6, 6, 28, 28, 1) and y_query.tolist() == [[0, 0, 1, 1, 2, 2]] * 6
    own = load_glyphs("validation").images.reshape(320, -1)
    pixels = np.round(255 * x_support).astype("uint8").reshape(18, 1, -1)
    assert ((pixels == own).all(axis=-1).sum(axis=1) == 1).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, "split must be one of .*, got 'val'"),
        ({"split": "validation", "ways": 17}, "ways=17 needs at least 17 classes"),
        ({"queries": 20}, r"at least shots \+ queries = 1 \+ 20 = 21 examples"),
        ({"tasks": 33}, "tasks=33 and meta_batch_size=32"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        glyphs(**arguments)


@pytest.mark.slow  # test_pretrained trains a smaller one
def test_a_learner_recognises_new_glyphs_after_seconds_of_training():
    network = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.AveragePooling2D(2),
            keras.layers.Flatten(),
            keras.layers.Dense(128, "relu"),
            keras.layers.Dense(5),
        ]
    )
    learner = MAML(network, inner_learning_rate=0.4, inner_steps=2)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    sizes = {"shots": 5, "queries": 5, "meta_batch_size": 8}
    learner.fit(glyphs(**sizes), steps_per_epoch=200, verbose=0)
    results = learner.evaluate(
        glyphs(split="test", tasks=160, **sizes), verbose=0, return_dict=True
    )
    assert results["accuracy"] > 0.9
