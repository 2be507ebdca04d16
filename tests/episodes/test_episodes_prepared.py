import gc
import json
import logging
import os
import random

import numpy as np
import pytest

from keras_maml.episodes import class_builder
from keras_maml.episodes.class_builder import ImageClassesBuilder
from keras_maml.episodes.image_classes import ImageClasses
from keras_maml.episodes.prepared_images import PreparedImages, cache_folder, newest_key

COUNTS = {"é": 3, "b": 5}

VERSION = str(ImageClassesBuilder.VERSION)


def pictures(name, count=None, value=0):
    shape = [count or COUNTS[name], 4, 6, 3]
    return (np.arange(np.prod(shape)).reshape(shape) * len(name.encode()) + value).astype("uint8")


class Pictures(ImageClassesBuilder, skip_registration=True):
    name = "pictures"
    prepared = 0

    def __init__(self, *, value=0, fail=False, **settings):
        self._value, self._fail = value, fail
        super().__init__(**settings)

    def read_source(self, dl_manager):
        Pictures.prepared += 1
        return {"train": self._train(), "test": [("c", pictures("b", 2))]}

    def _train(self):
        yield "é", pictures("é", value=self._value)
        if self._fail:
            raise ValueError("b.png is not a readable image")
        # A class may come in several parts.
        yield "b", pictures("b", value=self._value)[:2]
        yield "b", pictures("b", value=self._value)[2:]


@pytest.fixture(autouse=True)
def count_from_zero():
    Pictures.prepared = 0


def load(key="key", names=None, **settings):
    return PreparedImages(Pictures, key, settings=settings).read("train", names)


def assert_complete(data, value=0):
    assert (data.names, data.counts) == (("b", "é"), (5, 3))
    assert data.images.dtype == np.uint8 and data.labels.tolist() == ["b"] * 5 + ["é"] * 3
    expected = np.concatenate([pictures("b", value=value), pictures("é", value=value)])
    np.testing.assert_array_equal(data.images, expected)


@pytest.mark.parametrize("record_bytes", [1, 2 * 72, 10_000])
def test_records_of_any_size_give_the_images_in_order(monkeypatch, record_bytes):
    monkeypatch.setattr(class_builder, "RECORD_BYTES", record_bytes)
    assert_complete(load())


def test_the_second_start_reads_what_the_first_prepared(caplog):
    load()
    assert_complete(load())
    assert Pictures.prepared == 1 and not caplog.records


def test_chosen_classes_are_read_in_the_order_asked_for():
    assert load(names=["é"]).images.shape == (3, 4, 6, 3)
    data = load(names=["é", "b"])
    np.testing.assert_array_equal(data.images[:3], pictures("é"))
    np.testing.assert_array_equal(data.images[3:], pictures("b"))


def test_another_key_is_another_folder():
    assert_complete(load())
    assert_complete(load("other", value=1), value=1)
    assert_complete(load())
    assert Pictures.prepared == 2


def test_the_newest_key_is_found(cache):
    assert newest_key(Pictures) is None
    for i, key in enumerate(("first", "second")):
        load(key)
        path = cache / key / "pictures" / VERSION
        os.utime(path, (i, i))
    assert newest_key(Pictures) == "second"
    os.utime(cache / "first" / "pictures" / VERSION, (9, 9))
    assert newest_key(Pictures) == "first"


def records(folder):
    return sorted(folder.glob("**/*train.tfrecord*"))[0]


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def forget_a_class(folder):
    path = next(folder.glob("**/metadata.json"))
    metadata = json.loads(path.read_text())
    metadata["classes"]["train"]["b"] = 6
    path.write_text(json.dumps(metadata))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip_a_bit(records(folder)),
        lambda folder: records(folder).write_bytes(records(folder).read_bytes()[:-9]),
        lambda folder: records(folder).write_bytes(b""),
        lambda folder: records(folder).unlink(),
        lambda folder: next(folder.glob("**/dataset_info.json")).write_text("{"),
        lambda folder: next(folder.glob("**/dataset_info.json")).unlink(),
        lambda folder: next(folder.glob("**/metadata.json")).unlink(),
        lambda folder: next(folder.glob("**/features.json")).unlink(),
        forget_a_class,
    ],
    ids=[
        "one bit",
        "truncated",
        "empty",
        "no records",
        "half a description",
        "no description",
        "no metadata",
        "no features",
        "too few images",
    ],
)
def test_damage_is_found_or_harmless(cache, caplog, damage):
    load()
    damage(cache)
    assert_complete(load())
    if Pictures.prepared == 2:
        assert [r.levelno for r in caplog.records if r.name.startswith("keras_maml")] == [
            logging.WARNING
        ]
        assert f"Preparing {cache / 'key'} again: " in caplog.text
    caplog.clear()
    assert_complete(load())
    assert not caplog.records


def test_one_wrong_bit_is_found(cache):
    load()
    flip_a_bit(records(cache))
    load()
    assert Pictures.prepared == 2


def test_a_failed_preparation_leaves_nothing(cache):
    with pytest.raises(ValueError, match="b.png is not a readable image"):
        load(fail=True)
    assert not cache.exists()


def test_a_process_that_was_faster_wins_and_removes_nothing(cache, monkeypatch):
    original = Pictures.read_source

    def slow(self, dl_manager):
        own = list((cache / "key").rglob("incomplete.*"))
        monkeypatch.undo()
        random.seed(0)  # two runs of an experiment, started together
        load()
        assert own and all(path.exists() for path in own)
        return original(self, dl_manager)

    with monkeypatch.context() as monkeypatch:
        monkeypatch.setattr(Pictures, "read_source", slow)
        random.seed(0)
        assert_complete(load())
    assert Pictures.prepared == 2


def test_preparing_draws_nothing_from_the_users_random_numbers(cache):
    random.seed(0)
    load()
    drawn = random.random()
    random.seed(0)
    assert drawn == random.random()


DAMAGES = [
    lambda folder: flip_a_bit(records(folder)),
    lambda folder: next(folder.glob("**/dataset_info.json")).write_text("{"),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=["found in reading", "found in opening"])
def test_what_is_damaged_stays_until_it_is_made_again(cache, damage):
    load()
    damage(cache)
    damaged = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="b.png is not a readable image"):
        load(fail=True)
    assert {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()} == damaged
    assert_complete(load())
    assert [path.name for path in (cache / "key" / "pictures").iterdir()] == [VERSION]


def test_what_a_killed_preparation_left_is_removed(cache):
    left = cache / "key" / "pictures" / f"incomplete.abc_{VERSION}"
    left.mkdir(parents=True)
    (left / "pictures-train.tfrecord").write_bytes(b"half")
    load()
    assert [path.name for path in (cache / "key" / "pictures").iterdir()] == [VERSION]


def test_a_cache_that_cannot_be_written_costs_a_warning_only(cache, caplog):
    cache.write_text("a file, not a folder")
    gc.freeze()  # garbage is looked for among what follows
    prepared = PreparedImages(Pictures, "key")
    assert_complete(prepared.read("train"))
    assert "prepared for this time only" in caplog.text
    temporary = prepared._data_dir
    assert temporary.exists()
    del prepared
    gc.collect()
    assert not temporary.exists()


def test_images_are_used_without_a_copy(concatenate):
    data = load()
    episodes = data.episodes(ways=2, shots=1, queries=2, meta_batch_size=2, tasks=2)
    data.images[:] = 51
    (x_support, _), (x_query, _) = concatenate(episodes)
    np.testing.assert_allclose(x_support, 0.2)
    np.testing.assert_allclose(x_query, 0.2)


def test_images_that_must_not_be_written_to_are_read(tmp_path):
    np.save(tmp_path / "images.npy", np.full([4, 2, 2, 1], 255, "uint8"))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    data = ImageClasses(images, ("a", "b"), (2, 2))
    episodes = data.episodes(ways=2, shots=1, queries=1, meta_batch_size=1, tasks=1)
    (x, _), _ = next(iter(episodes))
    assert x.numpy().tolist() == np.ones([1, 2, 2, 2, 1]).tolist()


def test_classes_of_one_name_are_refused():
    data = ImageClasses(np.zeros([2, 2, 2, 1], "uint8"), ("a", "b"), (1, 1)).with_mirrored()
    with pytest.raises(ValueError, match="different names, got a mirrored, b mirrored twice"):
        data.with_mirrored()


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_MAML_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert cache_folder(tmp_path / "other") == tmp_path / "other"
    monkeypatch.delenv("KERAS_MAML_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "keras_maml"
