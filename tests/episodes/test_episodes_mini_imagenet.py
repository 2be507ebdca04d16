import hashlib
import importlib
import pickle
import re
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from keras_maml.episodes import load_mini_imagenet, mini_imagenet, mini_imagenet_source
from keras_maml.episodes.image_files import resize
from keras_maml.episodes.mini_imagenet_classes import CLASSES

# By its name in sys.modules: in the package the name is that of the function.
MODULE = importlib.import_module("keras_maml.episodes.mini_imagenet")
TINY = {"train": ("n01", "n03", "n05"), "validation": ("n02",), "test": ("n04", "n06")}
FILES = {"train": "train", "validation": "val", "test": "test"}
EACH, SIZE = 4, 6


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    for module in (MODULE, mini_imagenet_source):
        monkeypatch.setattr(module, "CLASSES", TINY)
        monkeypatch.setattr(module, "IMAGES_PER_CLASS", EACH)
    monkeypatch.setattr(mini_imagenet_source, "IMAGE_SIZE", SIZE)


@pytest.fixture
def images():
    """uint8 ``[EACH, SIZE, SIZE, 3]`` of every class."""
    rng = np.random.default_rng(0)
    names = [name for classes in TINY.values() for name in classes]
    return {name: rng.integers(0, 256, [EACH, SIZE, SIZE, 3], "uint8") for name in names}


def png(image):
    return tf.io.encode_png(image).numpy()


def write_zips(folder, images, splits=tuple(TINY)):
    folder.mkdir(exist_ok=True)
    for split in splits:
        with zipfile.ZipFile(folder / f"{FILES[split]}.zip", "w") as file:
            for name in TINY[split]:
                for i, image in enumerate(images[name]):
                    file.writestr(f"{FILES[split]}/{name}/{name}_{i}.png", png(image))


def write_folders(folder, images):
    for split, classes in TINY.items():
        for name in classes:
            place = folder / FILES[split] / name
            place.mkdir(parents=True)
            for i, image in enumerate(images[name]):
                (place / f"{name}_{i}.png").write_bytes(png(image))


def write_pickles(folder, images, protocol=2, **changes):
    folder.mkdir(exist_ok=True)
    for split, classes in TINY.items():
        content = {
            "image_data": np.concatenate([images[name] for name in classes]),
            "class_dict": {
                name: list(range(i * EACH, (i + 1) * EACH)) for i, name in enumerate(classes)
            },
        }
        path = folder / f"mini-imagenet-cache-{FILES[split]}.pkl"
        path.write_bytes(pickle.dumps(content | changes, protocol))


def write_csv(folder, images):
    (folder / "images").mkdir(parents=True)
    for split, classes in TINY.items():
        lines = ["filename,label"]
        for i in range(EACH):  # not sorted by class
            for name in classes:
                lines.append(f"{name}{i:08d}.png,{name}")
                (folder / "images" / f"{name}{i:08d}.png").write_bytes(png(images[name][i]))
        (folder / f"{FILES[split]}.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("write", [write_zips, write_folders, write_pickles, write_csv])
def test_every_form_gives_the_same_images(tmp_path, images, write):
    folder = tmp_path / "data"
    write(folder, images)
    for split, classes in TINY.items():
        data = load_mini_imagenet(folder, split=split)
        assert (data.names, data.counts) == (classes, (EACH,) * len(classes))
        expected = np.concatenate([images[name] for name in classes])
        np.testing.assert_array_equal(data.images, expected)
        assert data.images.dtype == np.uint8


def test_larger_images_are_reduced(tmp_path, images):
    write_csv(tmp_path / "data", images)
    large = np.random.default_rng(1).integers(0, 256, [20, 30, 3], "uint8")
    (tmp_path / "data" / "images" / "n0400000002.png").write_bytes(png(large))
    data = load_mini_imagenet(tmp_path / "data", split="test")
    np.testing.assert_array_equal(data.images[2], resize(large, (SIZE, SIZE)))
    np.testing.assert_array_equal(data.images[3], images["n04"][3])


def test_without_folder_what_was_prepared_is_enough(tmp_path, images):
    with pytest.raises(
        FileNotFoundError, match=r"No mini-ImageNet was prepared yet: pass its folder"
    ):
        load_mini_imagenet()
    write_zips(tmp_path / "data", images)
    load_mini_imagenet(tmp_path / "data")
    data = load_mini_imagenet(split="validation")
    np.testing.assert_array_equal(data.images, images["n02"])


def test_damaged_images_stay_and_their_folder_is_asked_for(tmp_path, images, cache):
    write_zips(tmp_path / "data", images)
    load_mini_imagenet(tmp_path / "data")
    path = next(cache.glob("**/*val*tfrecord*"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(
        FileNotFoundError, match="prepared again from its images: pass their folder"
    ):
        load_mini_imagenet(split="validation")
    np.testing.assert_array_equal(load_mini_imagenet(split="test").images[:EACH], images["n04"])
    data = load_mini_imagenet(tmp_path / "data", split="validation")
    np.testing.assert_array_equal(data.images, images["n02"])


def test_episodes_hold_images_of_the_split_in_the_unit_interval(tmp_path, images, concatenate):
    write_zips(tmp_path / "data", images)
    sizes = {"ways": 2, "shots": 1, "queries": 2, "meta_batch_size": 2, "tasks": 20}
    (x_support, _), (x_query, y_query) = concatenate(mini_imagenet(tmp_path / "data", **sizes))
    assert x_support.shape == (20, 2, SIZE, SIZE, 3) and x_query.shape == (20, 4, SIZE, SIZE, 3)
    assert x_support.dtype == np.float32 and y_query.tolist() == [[0, 0, 1, 1]] * 20
    own = np.concatenate([images[name] for name in TINY["train"]])
    pixels = np.round(255 * np.concatenate([x_support, x_query], axis=1)).astype("uint8")
    found = (pixels[:, :, None] == own).all(axis=(3, 4, 5))
    assert (found.sum(axis=2) == 1).all() and found.any(axis=(0, 1)).all()


def assert_refused(folder, message, error=ValueError):
    with pytest.raises(error, match=message):
        load_mini_imagenet(folder)


def test_a_missing_split_is_named(tmp_path, images, cache):
    write_zips(tmp_path / "zips", images, splits=("train", "test"))
    message = r"Expected val.zip or the unpacked folder val in .*zips, found neither. A folder with"
    assert_refused(tmp_path / "zips", message, FileNotFoundError)
    write_pickles(tmp_path / "pickles", images)
    (tmp_path / "pickles" / "mini-imagenet-cache-val.pkl").unlink()
    message = r"Expected .*mini-imagenet-cache-val.pkl, which does not exist. A folder with"
    assert_refused(tmp_path / "pickles", message, FileNotFoundError)
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "empty", "Found no mini-ImageNet in .*empty. A", FileNotFoundError)
    assert_refused(tmp_path / "none", "The folder .*none does not exist", FileNotFoundError)
    assert not cache.exists()


def test_other_classes_are_named(tmp_path, images):
    write_zips(tmp_path / "data", images)
    (tmp_path / "data" / "val.zip").replace(tmp_path / "data" / "swap.zip")
    (tmp_path / "data" / "test.zip").replace(tmp_path / "data" / "val.zip")
    (tmp_path / "data" / "swap.zip").replace(tmp_path / "data" / "test.zip")
    message = (
        r"val.zip must hold 1 classes with 4 images each, but 1 missing: n02; 2 unexpected: n04, "
        r"n06. These must be the validation classes of Ravi and Larochelle's split"
    )
    assert_refused(tmp_path / "data", message)


def test_a_missing_image_is_counted(tmp_path, images):
    write_folders(tmp_path / "data", images)
    (tmp_path / "data" / "test" / "n06" / "n06_0.png").unlink()
    assert_refused(tmp_path / "data", r"test must hold .* 1 of another size: n06 \(3\)")


def test_a_class_in_two_folders_is_refused(tmp_path, images):
    write_zips(tmp_path / "data", images)
    with zipfile.ZipFile(tmp_path / "data" / "val.zip", "a") as file:
        file.writestr("more/n02/n02_0.png", png(images["n02"][0]))
    message = r"must lie at the same depth below one folder, but more/n02/n02_0.png and val/n02/"
    assert_refused(tmp_path / "data", message)


def test_an_image_twice_in_a_zip_file_is_refused(tmp_path, images):
    write_zips(tmp_path / "data", images)
    with zipfile.ZipFile(tmp_path / "data" / "val.zip", "a") as file, pytest.warns(UserWarning):
        file.writestr("val/n02/n02_0.png", png(images["n02"][1]))
    assert_refused(tmp_path / "data", "val.zip holds val/n02/n02_0.png twice")


def test_a_corrupt_image_is_named_and_nothing_is_kept(tmp_path, images, cache):
    write_folders(tmp_path / "data", images)
    path = tmp_path / "data" / "test" / "n06" / "n06_0.png"
    path.write_bytes(path.read_bytes()[:40])
    assert_refused(tmp_path / "data", r"n06/n06_0.png in .*test is not a readable image: .*Replace")
    assert not cache.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_data": np.zeros([12, 5, 5, 3], "uint8")}, r"\[images, 6, 6, 3\], got uint8 \[12"),
        ({"image_data": np.zeros([12, 6, 6, 3], "int32")}, r"must be uint8 .* got int32 \[12, 6"),
        ({"image_data": 5}, r"\[images, 6, 6, 3\], got int64 \[\]"),
        ({"class_dict": [1]}, "but has no such entries"),
        ({"class_dict": {"n01": range(4)}}, "refers to __builtin__.xrange"),
        ({"class_dict": {"n01": [0, 1, 2, 3]}}, "2 missing: n03, n05"),
        ({"class_dict": {n: [0, 1, 2, 3] for n in TINY["train"]}}, "images of its own"),
        (
            {"class_dict": {"n01": [0, 1, 2, 3], "n03": [4, 5, 6, 7], "n05": [8, 9, 10, 12]}},
            "numbered from 0 to 11",
        ),
        ({"class_dict": {n: [1, 1, 2, 3] for n in TINY["train"]}}, r"another size: n01 \(3\)"),
    ],
)
def test_pickles_of_anything_else_are_refused(tmp_path, images, cache, changes, message):
    write_pickles(tmp_path / "data", images, **changes)
    assert_refused(tmp_path / "data", message)
    assert not cache.exists()


def test_an_unreadable_pickle_is_named(tmp_path, images):
    write_pickles(tmp_path / "data", images)
    path = tmp_path / "data" / "mini-imagenet-cache-test.pkl"
    path.write_bytes(path.read_bytes()[:99])
    assert_refused(tmp_path / "data", "cache-test.pkl cannot be read as a pickle of arrays")


def test_a_list_with_missing_images_is_refused(tmp_path, images):
    write_csv(tmp_path / "data", images)
    (tmp_path / "data" / "images" / "n0300000001.png").unlink()
    message = r"1 images listed in .*train.csv are not in .*images; the first is n0300000001.png"
    assert_refused(tmp_path / "data", message)


@pytest.mark.parametrize("name", ["val.csv", "images"])
def test_a_missing_list_or_folder_of_images_is_named(tmp_path, images, name):
    write_csv(tmp_path / "data", images)
    (tmp_path / "data" / name).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=re.escape(name)):
        load_mini_imagenet(tmp_path / "data")


def test_a_corrupt_listed_image_is_named(tmp_path, images):
    write_csv(tmp_path / "data", images)
    (tmp_path / "data" / "images" / "n0300000001.png").write_bytes(b"no image")
    assert_refused(tmp_path / "data", r"n0300000001\.png .*not a readable image")


def test_a_list_cannot_point_out_of_its_folder(tmp_path, images):
    write_csv(tmp_path / "data", images)
    path = tmp_path / "data" / "val.csv"
    path.write_text(path.read_text().replace("n0200000001.png", "../images/n0200000001.png"))
    assert_refused(tmp_path / "data", r"the first is ../images/n0200000001.png")


def test_a_list_without_header_is_refused(tmp_path, images):
    write_csv(tmp_path / "data", images)
    (tmp_path / "data" / "val.csv").write_text("a.png,n02\n")
    assert_refused(tmp_path / "data", r"val.csv must begin with the line filename,label, got \['a")


def test_an_image_listed_for_two_classes_is_refused(tmp_path, images):
    write_csv(tmp_path / "data", images)
    path = tmp_path / "data" / "train.csv"
    path.write_text(path.read_text().replace("n0100000001.png", "n0300000001.png"))
    assert_refused(tmp_path / "data", r"train.csv lists n0300000001.png, which is in train.csv al")


def test_a_test_image_cannot_be_trained_on(tmp_path, images):
    write_csv(tmp_path / "data", images)
    path = tmp_path / "data" / "test.csv"
    path.write_text(path.read_text().replace("n0400000001.png", "n0100000001.png"))
    assert_refused(tmp_path / "data", r"test.csv lists n0100000001.png, which is in train.csv al")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, r"split must be one of \('train', 'validation', 'test'\), got 'val'"),
        ({"ways": 4}, "ways=4 needs at least 4 classes, but split='train' has 3"),
        ({"ways": 3, "queries": 4}, r"at least shots \+ queries = 1 \+ 4 = 5 examples"),
        ({"ways": 3, "tasks": 33}, "tasks=33 and meta_batch_size=4. Use tasks=36"),
    ],
)
def test_arguments_are_checked_before_anything_is_read(arguments, message):
    with pytest.raises(ValueError, match=message):
        mini_imagenet("a folder that does not exist", **arguments)


def test_the_class_lists_are_those_of_ravi_and_larochelle():
    lists = "\n".join(" ".join(sorted(names)) for names in CLASSES.values())
    # Of the folders of published archives of the set.
    expected = "d084e3f58a010d1bbae45ea0b5ec7da177ce51bad37cd2c0843832f0dd6466d2"
    assert hashlib.sha256(lists.encode()).hexdigest() == expected


def test_the_class_lists_are_complete():
    assert [len(CLASSES[split]) for split in TINY] == [64, 16, 20]
    assert len({name for classes in CLASSES.values() for name in classes}) == 100
