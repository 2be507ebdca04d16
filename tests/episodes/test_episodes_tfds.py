import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from keras_maml.episodes import from_tfds, load_tfds

NAMES = ["ant", "bee", "cat", "dog", "eel"]
SIZES = {"train": 4, "test": 2}


def picture(split, label, number):
    image = np.full([5, 6, 3], 40 * label, "uint8")
    image[0, 0] = [number, len(split), 255]
    return image


class TinyAnimals(tfds.core.GeneratorBasedBuilder):
    """A set of tensorflow_datasets; images are stored as PNG files."""

    VERSION = tfds.core.Version("1.0.0")
    label = tfds.features.ClassLabel(names=NAMES)
    shape = (None, None, 3)
    supervised = ("image", "label")
    brightness = np.uint8(0)

    def _info(self):
        features = {"image": tfds.features.Image(shape=self.shape), "label": self.label}
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=self.supervised,
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in SIZES}

    def _generate_examples(self, split):
        for label in range(len(NAMES)):
            for i in range(SIZES[split]):
                image = picture(split, label, i) + self.brightness
                yield f"{label} {i}", {"image": image, "label": label}


class TinyNumbers(TinyAnimals):
    """Without names of classes, and without supervised keys."""

    label = np.int64
    supervised = None


class TinyTags(TinyAnimals):
    """Several labels per image."""

    label = tfds.features.Sequence(tfds.features.ClassLabel(names=NAMES))

    def _generate_examples(self, split):
        yield "two", {"image": np.zeros([5, 6, 3], "uint8"), "label": [0, 1]}


class TinyAges(TinyAnimals):
    """Labels that are no classes, one of which is missing; some images are grey."""

    shape = (None, None, None)
    label = np.float32

    def _generate_examples(self, split):
        yield "colour", {"image": np.zeros([5, 6, 3], "uint8"), "label": 7}
        if split == "test":
            yield "none", {"image": np.zeros([5, 6, 3], "uint8"), "label": np.nan}
        else:
            yield "grey", {"image": np.zeros([8, 6, 1], "uint8"), "label": 7}


class TinyTroubles(TinyAnimals):
    """One image of another size, one without label."""

    def _generate_examples(self, split):
        yield "size", {"image": np.zeros([7, 7, 3], "uint8"), "label": 0}
        yield "label", {"image": np.zeros([5, 6, 3], "uint8"), "label": -int(split == "test")}


class TinyParts(TinyAnimals):
    """A split that is a part of another one."""

    def _generate_examples(self, split):
        for key, example in super()._generate_examples(split):
            yield key, example | {"image": picture("train", example["label"], int(key[-1]))}


@pytest.fixture
def load(tmp_path):
    def call(name="tiny_animals", **arguments):
        return load_tfds(name, **({"split": NAMES, "data_dir": tmp_path / "tfds"} | arguments))

    return call


def sorted_images(images):
    return sorted(image.tobytes() for image in images)


def test_splits_are_pooled_class_by_class(load):
    data = load()
    assert (data.names, data.counts) == (tuple(NAMES), (6,) * 5)
    for label in range(5):
        expected = [picture(s, label, i) for s, size in SIZES.items() for i in range(size)]
        own = data.images[6 * label : 6 * label + 6]
        assert sorted_images(own) == sorted_images(expected)


def test_the_splits_to_pool_can_be_named(load):
    data = load(split=["bee"], tfds_splits=["test"])
    assert sorted_images(data.images) == sorted_images([picture("test", 1, i) for i in range(2)])


def test_classes_are_split_by_seed(load):
    parts = [load(split=split).names for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [3, 1, 1] and sorted(sum(parts, ())) == NAMES
    assert any(load(split="test", split_seed=seed).names != parts[2] for seed in range(1, 6))


def test_the_second_start_decodes_nothing(load, monkeypatch):
    first = load()
    monkeypatch.setattr(TinyAnimals, "as_dataset", None)
    np.testing.assert_array_equal(load().images, first.images)


def test_a_set_that_was_made_again_is_read_again(load, monkeypatch, tmp_path):
    first = load(split=["bee"]).images
    monkeypatch.setattr(TinyAnimals, "brightness", np.uint8(1))
    shutil.rmtree(tmp_path / "tfds")
    again = load(split=["bee"]).images
    assert sorted_images(again) == sorted_images(first + 1)


def test_splits_that_contain_each_other_are_not_pooled(load):
    message = "different images, but test and train of tiny_parts share 10: .* tfds_splits=.'train'"
    with pytest.raises(ValueError, match=message):
        load("tiny_parts")
    assert load("tiny_parts", tfds_splits=["train"]).counts == (4,) * 5


def test_a_folder_in_the_form_of_tfds_needs_no_preparation(tmp_path):
    root = tmp_path / "pictures"

    def write(split, number):
        (root / split / "ant").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(split, 0, number)).save(root / split / "ant" / f"{number}.png")

    write("train", 0), write("test", 0), write("test", 1)
    assert load_tfds(tfds.ImageFolder(str(root)), split=["ant"]).counts == (3,)
    write("test", 2)
    assert load_tfds(tfds.ImageFolder(str(root)), split=["ant"]).counts == (4,)


def test_labels_without_names_are_numbers(load):
    with pytest.raises(ValueError, match=r"image_key and label_key. Its features are \['image',"):
        load("tiny_numbers")
    keys = {"image_key": "image", "label_key": "label"}
    data = load("tiny_numbers", **keys, split=["3"])
    assert data.counts == (6,)
    np.testing.assert_array_equal(load("tiny_numbers", **keys, split=[3]).images, data.images)


def test_images_are_resized(load):
    assert load(image_size=(3, 4)).images.shape == (30, 3, 4, 3)


def test_troubles_are_explained(load, cache):
    with pytest.raises(ValueError, match=r"images of tiny_troubles differ in size, .*image_size"):
        load("tiny_troubles", tfds_splits=["train"], split=["ant"])
    with pytest.raises(ValueError, match=r"an example without label \(-1\). Pool other splits"):
        load("tiny_troubles", image_size=5, split=["ant"])
    with pytest.raises(ValueError, match="tiny_tags must have one label, but .* with label_key"):
        load("tiny_tags")
    with pytest.raises(ValueError, match="tiny_ages differ in channels, .*image_folder converts"):
        load("tiny_ages", tfds_splits=["train"], image_size=5)
    with pytest.raises(ValueError, match=r"tiny_ages holds an example without label \(nan\)"):
        load("tiny_ages", tfds_splits=["test"])
    with pytest.raises(ValueError, match="tensorflow_datasets knows no data set 'tiny_horses'"):
        load("tiny_horses")
    with pytest.raises(ValueError, match="tensorflow_datasets cannot build 'tiny_animals:9.9.9'"):
        load("tiny_animals:9.9.9")
    with pytest.raises(ValueError, match=r"tfds_splits must name splits of tiny_animals, \['test"):
        load(tfds_splits=["val"])
    with pytest.raises(
        ValueError, match="splits of tiny_animals, .* each once, got .*'test', 'test"
    ):
        load(tfds_splits=["test", "test"])
    with pytest.raises(ValueError, match="does not know cow"):
        load(split=["cow"])
    with pytest.raises(ValueError, match="rotations=True needs square images"):
        from_tfds("tiny_animals", image_size=(3, 4), rotations=True)
    assert len(list(cache.iterdir())) == 1  # that of the last call that loads


def test_a_set_that_cannot_be_fetched_is_explained(load, monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(TinyAnimals, "download_and_prepare", refuse)
    message = r"tiny_animals could not be fetched .* \(ConnectionError: no route to host\). Prepare"
    with pytest.raises(FileNotFoundError, match=message):
        load()


def test_episodes(tmp_path, concatenate):
    episodes = from_tfds(
        "tiny_animals",
        ways=3,
        shots=1,
        queries=4,
        meta_batch_size=2,
        tasks=6,
        data_dir=tmp_path / "tfds",
    )
    (x_support, _), (x_query, y_query) = concatenate(episodes)
    labels = np.round(255 * x_query[:, :, 1, 1, 0]).astype(int) // 40
    for row, y in zip(labels, y_query, strict=True):
        assert [len(set(row[y == k])) for k in range(3)] == [1, 1, 1] and len(set(row)) == 3
    assert x_support.shape == (6, 3, 5, 6, 3)
