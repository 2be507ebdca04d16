import hashlib

import numpy as np
import pytest
import tensorflow as tf

from keras_maml.episodes import from_arrays
from keras_maml.episodes.arrays import rotate

CLASSES, EXAMPLES = 6, 7
LABELS = np.tile(np.arange(CLASSES), EXAMPLES)
ROWS = np.arange(CLASSES * EXAMPLES)
"""As feature vectors, these say which example is which."""


def episodes(images=None, labels=LABELS, **arguments):
    images = ROWS[:, None].astype("float32") if images is None else images
    settings = {"ways": 3, "shots": 2, "queries": 3, "meta_batch_size": 4, "tasks": 40}
    return from_arrays(images, labels, **(settings | arguments))


def test_the_element_spec_is_static():
    images = np.zeros([42, 8, 8, 1], "uint8")
    (x_support, y_support), (x_query, y_query) = episodes(images, rotations=True).element_spec
    assert x_support == tf.TensorSpec([4, 6, 8, 8, 1])
    assert x_query == tf.TensorSpec([4, 9, 8, 8, 1])
    assert y_support == tf.TensorSpec([4, 6], tf.int32)
    assert y_query == tf.TensorSpec([4, 9], tf.int32)


def test_each_label_stands_for_one_class_and_no_example_comes_twice(concatenate):
    (x_support, y_support), (x_query, y_query) = concatenate(episodes())
    rows = np.concatenate([x_support, x_query], axis=1)[..., 0].astype(int)
    labels = np.concatenate([y_support, y_query], axis=1)
    for row, label in zip(rows, labels, strict=True):
        assert len(set(row)) == 15
        classes = [set(LABELS[row[label == k]]) for k in range(3)]
        assert [len(c) for c in classes] == [1, 1, 1]
        assert len(set.union(*classes)) == 3
    assert np.bincount(y_support.ravel()).tolist() == [80, 80, 80]
    assert set(rows.ravel()) == set(ROWS)


def test_every_class_gets_every_label(concatenate):
    (x_support, y_support), _ = concatenate(episodes(tasks=400))
    classes = LABELS[x_support[..., 0].astype(int)]
    seen = np.bincount(classes.ravel() * 3 + y_support.ravel(), minlength=18) / 2
    expected = 400 / CLASSES
    assert (np.abs(seen - expected) < 4 * np.sqrt(expected)).all()


def reference_choice(reference_bits, stream, index, members, count, part=0, parts=1):
    """`count` of the members, by the largest 63-bit keys."""
    digest = hashlib.blake2b(f"9/{stream}".encode(), digest_size=8).digest()
    size = len(members)
    first = (index * parts + part) * size
    keys = reference_bits(int.from_bytes(digest, "little"), first, size) >> np.uint64(1)
    return np.asarray(members)[np.argsort(keys)[::-1][:count]]


def test_the_pipeline_equals_plain_numpy(concatenate, reference_bits):
    (x_support, _), (x_query, _) = concatenate(episodes(seed=9, tasks=8))
    for i in range(8):
        classes = reference_choice(reference_bits, "classes", i, range(CLASSES), 3)
        for k, c in enumerate(classes):
            members = np.flatnonzero(c == LABELS)
            rows = reference_choice(reference_bits, "examples", i, members, 5, part=k, parts=3)
            np.testing.assert_array_equal(x_support[i, 2 * k : 2 * k + 2, 0], rows[:2])
            np.testing.assert_array_equal(x_query[i, 3 * k : 3 * k + 3, 0], rows[2:])


def test_episodes_do_not_depend_on_the_meta_batch_size_nor_on_the_start(concatenate, assert_same):
    images = np.random.default_rng(0).integers(0, 256, [42, 4, 4], "uint8")
    whole = concatenate(episodes(images, rotations=True, meta_batch_size=6, tasks=12))
    small = concatenate(episodes(images, rotations=True, meta_batch_size=2, tasks=12))
    assert_same(small, whole)
    later = concatenate(episodes(images, rotations=True, meta_batch_size=4, tasks=8, start=4))
    assert_same(later, tf.nest.map_structure(lambda a: a[4:], whole))


def test_seeds_have_their_own_episodes():
    first, second = (next(iter(episodes(seed=seed)))[0][0].numpy() for seed in (0, 1))
    assert (first != second).any(axis=(1, 2)).all()


def test_fewer_shots_see_the_same_classes_and_the_first_examples(concatenate):
    (one, _), _ = concatenate(episodes(shots=1, seed=3))
    (two, _), _ = concatenate(episodes(shots=2, seed=3))
    np.testing.assert_array_equal(one, two[:, ::2])


def test_classes_of_different_sizes_are_used_up_evenly(concatenate):
    labels = np.repeat([0, 1, 2], [5, 6, 31])
    (x_support, y_support), (x_query, y_query) = concatenate(episodes(labels=labels, tasks=200))
    rows = np.concatenate([x_support, x_query], axis=1)[..., 0].astype(int)
    assert all(len(set(row)) == 15 for row in rows)
    np.testing.assert_array_equal(np.sort(labels[rows], axis=1), [np.repeat([0, 1, 2], 5)] * 200)
    seen = np.bincount(rows.ravel())
    assert (seen[:5] == 200).all()
    expected = 200 * 5 / 31
    assert (np.abs(seen[11:] - expected) < 4 * np.sqrt(expected)).all()


def test_string_labels_give_the_episodes_of_their_order(concatenate, assert_same):
    names = np.array(["a", "b", "c", "d", "e", "f"])[LABELS]
    assert_same(concatenate(episodes(labels=names)), concatenate(episodes()))


@pytest.mark.parametrize(
    ("dtype", "scale", "expected"),
    [("uint8", None, 200 / 255), ("uint8", 0.5, 100), ("int16", 1.0, 200), ("float64", 2.0, 400)],
)
def test_scale(dtype, scale, expected):
    images = np.full([42, 3], 200, dtype)
    (x, _), _ = next(iter(episodes(images, scale=scale, dtype="float32")))
    assert x.dtype == tf.float32
    np.testing.assert_allclose(x, np.full(x.shape, expected), rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "shape", "values", "expected"),
    [
        ("int32", (8, 8, 3), (0, 200), 200 / 255),
        ("int64", (8, 8), (0, 200), 200 / 255),
        ("uint16", (8, 8), (0, 200), 200 / 255),
        ("uint16", (8, 8), (0, 4095), 4095),  # not of 8 bits
        ("int32", (8, 8), (-1, 200), 200),  # no brightness
        ("int32", (8, 8), (0, 1), 1),  # ink and paper
        ("float32", (8, 8), (0, 200), 200),
        ("uint8", (64,), (0, 200), 200 / 255),
    ],
)
def test_images_of_0_to_255_are_scaled_whatever_their_dtype(dtype, shape, values, expected):
    images = np.full([42, *shape], values[1], dtype)
    images[0, 0] = values[0]
    (x, _), (query, _) = next(iter(episodes(images)))
    assert x.dtype == tf.float32
    np.testing.assert_allclose(max(x.numpy().max(), query.numpy().max()), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int16", "int32", "int64"])
def test_token_ids_stay_integers(concatenate, dtype):
    tokens = (ROWS[:, None] + np.array([0, 100])).astype(dtype)
    (x, _), _ = concatenate(episodes(tokens))
    assert x.dtype == dtype
    np.testing.assert_array_equal(x[..., 1], x[..., 0] + 100)
    (x, _), _ = concatenate(episodes(tokens, dtype="float32"))
    assert x.dtype == "float32" and x.max() > 1


@pytest.mark.parametrize("form", [list, np.array, lambda texts: np.array(texts, object)])
def test_texts_come_out_as_they_are(concatenate, form):
    texts = [f"text {row}" for row in ROWS]
    (x, y), _ = concatenate(episodes(form(texts)))
    (rows, labels), _ = concatenate(episodes())
    np.testing.assert_array_equal(y, labels)
    assert x.shape == (40, 6)
    assert [text.decode() for text in x.flat] == [f"text {int(row)}" for row in rows.flat]


def test_inputs_of_several_arrays_belong_together(concatenate):
    images = np.zeros([42, 2, 2], "uint8")
    images[:, 0, 0] = ROWS
    arrays = {"image": images, "row": ROWS[:, None], "text": [str(row) for row in ROWS]}
    options = {"scale": {"image": 1.0}, "dtype": {"row": "float32"}}
    (x, y), _ = concatenate(episodes(arrays, **options))
    (rows, labels), _ = concatenate(episodes())
    assert {name: value.dtype.kind for name, value in x.items()} == {
        "image": "f",
        "row": "f",
        "text": "O",
    }
    np.testing.assert_array_equal(y, labels)
    np.testing.assert_array_equal(x["row"], rows)
    np.testing.assert_array_equal(x["image"][..., 0, 0], rows[..., 0])
    np.testing.assert_array_equal(x["text"].astype(int), rows[..., 0])
    turned = concatenate(episodes(arrays, rotations=True, **options))
    np.testing.assert_array_equal(turned[0][0]["row"], rows)
    assert (turned[0][0]["image"] != x["image"]).any()


@pytest.mark.parametrize(
    "labels",
    [
        LABELS[:, None],
        np.eye(CLASSES)[LABELS],
        np.eye(CLASSES)[LABELS] > 0,
        LABELS.tolist(),
        LABELS.astype(object),
    ],
)
def test_labels_of_any_form_give_the_same_episodes(concatenate, assert_same, labels):
    assert_same(concatenate(episodes(labels=labels)), concatenate(episodes()))


def test_the_output_dtype_can_be_chosen():
    (x, y), _ = next(iter(episodes(dtype="float16")))
    assert (x.dtype, y.dtype) == (tf.float16, tf.int32)


def test_later_changes_of_the_array_do_not_reach_the_dataset(concatenate, assert_same):
    images = ROWS[:, None].astype("float32")
    dataset = episodes(images)
    before = concatenate(dataset)
    images[:] = -1
    assert_same(concatenate(dataset), before)


@pytest.mark.parametrize("channels", [(), (2,)])
@pytest.mark.parametrize("turns", [[[0, 1, 2, 3]], [[1, 1, 1, 1]], [[3, 3, 0, 2]]])
def test_rotate_equals_numpy(channels, turns):
    images = np.arange(4 * 3 * 25 * (channels or (1,))[0]).reshape(1, 4, 3, 5, 5, *channels)
    turned = rotate(tf.constant(images), tf.constant(turns))
    for k, turn in enumerate(turns[0]):
        expected = np.rot90(images[0, k], turn, axes=(1, 2))
        np.testing.assert_array_equal(turned[0, k], expected)


def test_rotations_turn_support_and_query_of_a_class_alike(concatenate):
    # Four corners tell the turns apart, whatever the example.
    image = np.array([[1, 2], [3, 4]], "float32")
    images = np.tile(image, [42, 1, 1])
    turned = np.stack([np.rot90(image, k) for k in range(4)])
    (x_support, y_support), (x_query, y_query) = concatenate(
        episodes(images, rotations=True, tasks=200)
    )
    x = np.concatenate([x_support, x_query], axis=1)
    y = np.concatenate([y_support, y_query], axis=1)
    turns = (x[:, :, None] == turned).all(axis=(3, 4)).argmax(axis=2)
    per_class = np.stack([turns[y == k].reshape(200, 5) for k in range(3)])
    assert (per_class == per_class[..., :1]).all()
    seen = np.bincount(per_class[..., 0].ravel(), minlength=4)
    assert (np.abs(seen - 150) < 4 * np.sqrt(150)).all()


def test_the_images_are_not_part_of_the_graph():
    images = np.zeros([42, 500, 500], "uint8")
    dataset = episodes(images)
    function = dataset._input_dataset._input_dataset._map_func.function
    assert len(function.graph.as_graph_def().SerializeToString()) < 100_000


NOT_FINITE = np.where(ROWS[:, None] == 5, np.nan, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ways": 7}, r"ways=7 needs at least 7 classes, but labels has 6. Use fewer ways"),
        (
            {"queries": 6},
            r"at least shots \+ queries = 2 \+ 6 = 8 examples, but 6 of 6 classes .*: 0 \(7\), 1",
        ),
        (
            {"labels": np.where(ROWS == 0, 1, LABELS), "queries": 5},
            r"but 1 of 6 classes have fewer: 0 \(6\)\.",
        ),
        ({"labels": LABELS[:-1]}, "one label per example, got 42 examples in images and 41 labels"),
        ({"labels": np.full([42, 2], 0.5)}, r"one 1 in each row, got shape \[42, 2\] and dtype fl"),
        (
            {"labels": np.where(LABELS == 2, np.nan, LABELS)},
            r"must have a label, but 7 have NaN or infinity; the first is labels\[2\]",
        ),
        ({"images": np.ma.masked_equal(ROWS[:, None], 3)}, "images must have all values, some"),
        ({"labels": np.ma.masked_equal(LABELS, 2)}, "labels must have all values, some are masked"),
        ({"labels": np.array([*LABELS[:-1], None])}, "labels must be .* but row 41 holds None"),
        ({"labels": ["a"] * 21 + [None] * 21}, "labels must be .* but row 21 holds None"),
        ({"labels": ["a"] * 21 + [np.nan] * 21}, "labels must be .* but row 21 holds nan"),
        ({"labels": ["1"] * 21 + [1] * 21}, "labels must be .* but row 21 holds 1"),
        ({"labels": np.zeros([42, 1, 1])}, r"got shape \[42, 1, 1\]"),
        ({"images": NOT_FINITE}, r"1 of 42 hold NaN or infinity; the first is images\[5\]"),
        ({"images": ROWS[:, None] * 1j}, "images must be numbers or texts, got dtype complex128"),
        ({"images": np.array(["a", 1, *ROWS[2:]], object)}, "but row 1 holds 1. Convert it"),
        ({"images": ROWS[:, None] * 1e300}, r"images becomes float32, .* has 4.1.*e\+301 in it"),
        ({"images": ROWS[:, None] * 1e10, "scale": 1e30}, r"410000000000.0 in it, times 1e\+30"),
        ({"images": ROWS[:, None] * 9, "dtype": "uint8"}, r"0 \.\. 255, but has 369 in it. Scale"),
        ({"images": -ROWS[:, None], "dtype": "uint64"}, "becomes uint64, .* has -41 in it"),
        ({"images": ROWS[:, None] * 9999, "dtype": "float16"}, r"65504.0, but has 409959 in it"),
        ({"scale": float("nan")}, "scale must be a finite number, got nan"),
        ({"images": ROWS}, r"got shape \[42\]. If an example is one number, pass images\[:, None"),
        ({"images": [[1], [1, 2]]}, "must have one shape: .* Pad them to one length"),
        ({"images": {"a": ROWS[:, None], "b": ROWS[:9, None]}}, r"got {'a': 42, 'b': 9}"),
        ({"images": {}}, "got an empty dictionary"),
        ({"images": {"a": ROWS[:, None]}, "scale": {"b": 2.0}}, r"got none named \['b'\]"),
        ({"scale": {"b": 2.0}}, "scale must be one value, since images is no dictionary"),
        ({"images": ROWS.astype(str), "scale": 2.0}, "Texts cannot be scaled: got scale=2.0"),
        ({"dtype": "int32", "scale": 0.5}, "scale needs a floating dtype .* come out as int32"),
        (
            {"images": np.zeros([42, 4, 5, 1]), "rotations": True},
            r"rotations=True needs square images.* got shape \[42, 4, 5, 1\]",
        ),
        ({"rotations": True}, r"rotations=True needs square images.* got shape \[42, 1\]"),
        ({"dtype": "bool"}, "dtype must be one of numbers such as 'float32', got 'bool'"),
        ({"ways": 0}, "ways must be an integer of at least 1, got 0"),
        ({"shots": -1}, "shots must be an integer of at least 1, got -1"),
        ({"queries": 0}, "queries must be an integer of at least 1, got 0"),
        ({"meta_batch_size": 0}, "meta_batch_size must be an integer of at least 1, got 0"),
        ({"tasks": 6}, "tasks=6 and meta_batch_size=4. Use tasks=8"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        episodes(**arguments)
