import dataclasses
import functools
import hashlib
import importlib
import random
import shutil
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import tensorflow as tf

from keras_maml.episodes import builders, load_omniglot, omniglot
from keras_maml.episodes.omniglot_source import OFFICIAL, Edition

# By its name in sys.modules: in the package the name is that of the function.
MODULE = importlib.import_module("keras_maml.episodes.omniglot")
SIZE, DRAWINGS = 35, 4
TINY = Edition(
    characters={  # more than one alphabet in an archive, one character not the first of its own
        "images_background": [
            "Greek_0/character01",
            "Greek_0/character03",
            "Greek_0/character05",
            "Greek_1/character02",
            "Greek_1/character04",
        ],
        "images_evaluation": ["Latin_0/character01", "Latin_0/character03", "Latin_1/character02"],
    },
    drawings=DRAWINGS,
    size=SIZE,
    sha256=None,
)
TINY_SPLITS = {"train": 4, "validation": 1, "test": 3}


def draw(rng):
    """Paper 255, three thick strokes 0."""
    image = np.full([SIZE, SIZE, 1], 255, "uint8")
    for row, column, length in rng.integers([5, 3, 5], [SIZE - 10, 10, SIZE - 10], [3, 3]):
        image[row : row + 5, column : column + length] = 0
    return image


def drawings():
    """All drawings by their path in the archives."""
    rng = np.random.default_rng(0)
    result = {}
    for archive, names in TINY.characters.items():
        for name in names:
            for d in range(DRAWINGS):
                result[f"{archive}/{name}/{d + 1:02d}.png"] = draw(rng)
    return result


def write(folder, files):
    """Packs each archive into a zip file."""
    for archive in TINY.characters:
        with zipfile.ZipFile(folder / f"{archive}.zip", "w") as file:
            for path, content in files.items():
                if path.startswith(archive):
                    file.writestr(path, content)


@pytest.fixture
def files():
    return {path: tf.io.encode_png(image).numpy() for path, image in drawings().items()}


@pytest.fixture
def folder(tmp_path, files):
    path = tmp_path / "data"
    path.mkdir()
    write(path, files)
    return path


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(MODULE, "OFFICIAL", TINY)
    monkeypatch.setattr(MODULE, "SPLITS", TINY_SPLITS)


def load_all(folder=None, **arguments):
    return load_omniglot(folder, split=None, **arguments)


def assert_equal_data(actual, expected):
    assert actual.names == expected.names
    np.testing.assert_array_equal(actual.images, expected.images)


def test_images_are_inverted_and_reduced_with_lanczos(folder):
    data = load_all(folder)
    assert data.images.shape == (8 * DRAWINGS, 28, 28, 1) and data.images.dtype == np.uint8
    assert data.counts == (DRAWINGS,) * 8
    assert list(data.names) == sorted(data.names)
    assert data.names[0] == "Greek_0/character01"
    sources = [v for k, v in drawings().items() if "/Greek_0/character01/" in k]
    ink = 1 - np.stack(sources).astype("float32") / 255
    expected = tf.image.resize(ink, [28, 28], "lanczos3", antialias=True)[..., 0]
    expected = np.round(255 * np.clip(expected, 0, 1)).astype(int)
    key = lambda image: image.astype("uint8").tobytes()  # noqa: E731
    for ours, theirs in zip(
        sorted(data.images[:DRAWINGS, ..., 0], key=key), sorted(expected, key=key), strict=True
    ):
        assert np.abs(ours - theirs).max() <= 1


def test_ink_is_255_and_paper_0(folder):
    images = load_all(folder).images
    assert images.max() == 255
    assert (images[:, :2] == 0).all() and (images[:, -2:] == 0).all()


def test_one_bit_and_eight_bit_files_give_the_same(folder, tmp_path):
    from io import BytesIO

    from PIL import Image

    expected = load_all(folder)
    one_bit = {}
    for path, image in drawings().items():
        buffer = BytesIO()
        Image.fromarray(image[..., 0]).convert("1").save(buffer, "PNG")
        one_bit[path] = buffer.getvalue()
    other = tmp_path / "one_bit"
    other.mkdir()
    write(other, one_bit)
    assert_equal_data(load_all(other, cache_dir=tmp_path / "second"), expected)


def test_unpacked_folders_give_the_same(folder, tmp_path):
    expected = load_all(folder)
    unpacked = tmp_path / "unpacked"
    for archive in TINY.characters:
        zipfile.ZipFile(folder / f"{archive}.zip").extractall(unpacked)
    assert_equal_data(load_all(unpacked), expected)


def test_files_that_are_no_drawings_are_passed_over(folder, files):
    with zipfile.ZipFile(folder / "images_background.zip", "a") as file:
        file.writestr("__MACOSX/images_background/Greek_0/character01/._0000_01.png", b"x")
        file.writestr("images_background/Greek_0/character01/._0000_01.png", b"x")
        file.writestr("images_background/Greek_0/.DS_Store", b"x")
    assert len(load_all(folder).images) == 8 * DRAWINGS


def forbid_reading(monkeypatch):
    def refuse(*_):
        raise AssertionError("the drawings were read again")

    monkeypatch.setattr(builders, "assemble", refuse)


def test_the_second_start_uses_the_cache(folder, monkeypatch):
    first = load_all(folder)
    forbid_reading(monkeypatch)
    assert_equal_data(load_all(folder), first)


def test_repacked_archives_are_the_same_source(folder, monkeypatch, files):
    first = load_all(folder)
    write(folder, dict(reversed(files.items())))
    forbid_reading(monkeypatch)
    assert_equal_data(load_all(folder), first)


def test_other_drawings_are_prepared_beside(folder, files):
    before = load_all(folder)
    path = next(iter(files))
    files[path] = tf.io.encode_png(np.zeros([SIZE, SIZE, 1], "uint8")).numpy()
    write(folder, files)
    after = load_all(folder)
    changed = (before.images != after.images).any(axis=(1, 2, 3))
    assert 0 < changed.sum() <= DRAWINGS
    assert set(before.labels[changed]) == {"Greek_0/character01"}


def test_without_folder_the_cache_is_enough(folder, monkeypatch):
    first = load_all(folder)
    shutil.rmtree(folder)
    forbid_reading(monkeypatch)
    assert_equal_data(load_all(), first)
    with pytest.raises(FileNotFoundError, match="which does not exist"):
        load_all(folder)


@pytest.fixture
def server(folder, monkeypatch):
    """Serves the archives to this machine, in place of the official address."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    downloads, infos = {}, {}
    for name in TINY.characters:
        content = (folder / f"{name}.zip").read_bytes()
        url = f"http://127.0.0.1:{server.server_port}/{name}.zip"
        downloads[name] = (url, len(content), hashlib.sha256(content).hexdigest())
        infos[url] = type(next(iter(builders.OmniglotBuilder.url_infos.values())))(
            size=len(content), checksum=downloads[name][2], filename=None
        )
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(builders, "DOWNLOADS", downloads)
    monkeypatch.setattr(builders.OmniglotBuilder, "url_infos", infos)
    yield server
    server.shutdown()
    server.server_close()


def test_a_download_gives_the_same_images(folder, server, tmp_path):
    fetched = load_all(cache_dir=tmp_path / "other")
    server.shutdown()
    assert_equal_data(fetched, load_all(folder))
    assert_equal_data(fetched, load_all(cache_dir=tmp_path / "other"))


def test_a_download_with_another_checksum_is_refused(folder, files, server, cache):
    write(folder, files | {min(files): files[max(files)]})
    with pytest.raises(
        FileNotFoundError, match=r"NonMatchingChecksumError(?s:.*)into one folder and pass that"
    ):
        load_all()
    assert not list(cache.glob("**/*.tfrecord*"))


def test_without_network_and_folder_the_error_says_what_to_do(server):
    server.shutdown()
    server.server_close()
    message = r"could not be downloaded \((?s:.*)\). Download images_background.zip and .*pass that"
    with pytest.raises(FileNotFoundError, match=message):
        load_all()


def test_the_addresses_are_those_of_the_checksums():
    assert set(builders.DOWNLOADS) == set(OFFICIAL.characters)
    urls = {url for url, *_ in builders.DOWNLOADS.values()}
    assert urls == set(builders.OmniglotBuilder.url_infos)


def test_a_missing_archive_is_named(folder):
    (folder / "images_evaluation.zip").unlink()
    message = r"images_evaluation.zip or the unpacked folder .* found neither. Download images_"
    with pytest.raises(FileNotFoundError, match=message):
        load_all(folder)


def test_a_truncated_archive_is_named(folder):
    path = folder / "images_background.zip"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="images_background.zip is truncated or damaged .*again"):
        load_all(folder)


@pytest.mark.parametrize(
    ("member", "found"),
    [("cats/1.png", "its first file is cats/1.png"), (None, "it is empty")],
)
def test_another_archive_is_refused(folder, member, found):
    with zipfile.ZipFile(folder / "images_background.zip", "w") as file:
        if member:
            file.writestr(member, b"")
    message = rf"holds no images \*/\*/\* with suffix .png; {found}. It seems to be another"
    with pytest.raises(ValueError, match=message):
        load_all(folder)


def test_a_missing_character_is_counted(folder, files):
    write(folder, {k: v for k, v in files.items() if "Latin_1" not in k})
    message = "must hold 3 classes with 4 images each, but 1 missing: Latin_1/character02. Download"
    with pytest.raises(ValueError, match=message):
        load_all(folder)


def test_a_missing_drawing_is_named(folder, files):
    write(folder, {k: v for k, v in files.items() if k != min(files)})
    message = r"5 classes with 4 images each, but 1 of another size: Greek_0/character01 \(3\)"
    with pytest.raises(ValueError, match=message):
        load_all(folder)


def test_a_file_that_is_no_image_is_named(folder, files):
    write(folder, files | {min(files): b"\x89PNG nonsense"})
    with pytest.raises(ValueError, match=r"01.png in .*background.zip is not a readable image"):
        load_all(folder)


def test_a_drawing_of_another_size_is_named(folder, files):
    small = tf.io.encode_png(np.zeros([7, 9, 1], "uint8")).numpy()
    write(folder, files | {min(files): small})
    with pytest.raises(ValueError, match="01.png .* has 7 x 9 pixels, expected 35 x 35"):
        load_all(folder)


def test_a_flipped_byte_in_the_archive_is_found(folder):
    path = folder / "images_background.zip"
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match="background.zip is truncated or damaged .*Bad CRC-32"):
        load_all(folder)


def test_an_error_leaves_no_cache(folder, files, cache):
    write(folder, files | {min(files): b""})
    with pytest.raises(ValueError, match="not a readable image"):
        load_all(folder)
    assert not cache.exists()


def test_drawings_that_are_not_the_official_ones_are_reported(folder, monkeypatch, caplog):
    monkeypatch.setattr(MODULE, "OFFICIAL", dataclasses.replace(TINY, sha256="0123"))
    for _ in range(2):  # prepared, then read back
        caplog.clear()
        load_all(folder)
        assert "are not the official ones" in caplog.text and "expected 0123" in caplog.text


def test_the_official_edition_is_complete():
    assert [len(names) for names in OFFICIAL.characters.values()] == [964, 659]
    assert len({name for names in OFFICIAL.characters.values() for name in names}) == 1623


def test_splits_part_the_characters(monkeypatch):
    monkeypatch.undo()
    names = [f"{i:04d}" for i in range(1623)]
    # Their order does not matter.
    given = np.random.default_rng(0).permutation(names).tolist()
    parts = {name: MODULE.split_characters(given, name) for name in ("train", "validation", "test")}
    assert [len(part) for part in parts.values()] == [1100, 100, 423]
    assert sorted(sum(parts.values(), [])) == names
    random.Random(1).shuffle(names)
    assert parts["validation"] == names[1100:1200]


def test_the_shuffle_is_pinned(monkeypatch):
    monkeypatch.undo()
    names = MODULE.split_characters([f"{i:04d}" for i in range(1623)], "train")
    assert names[:4] == ["0713", "1081", "1577", "0509"]


def test_a_split_holds_its_own_drawings(folder):
    everything, part = load_all(folder), load_omniglot(folder, split="test")
    assert len(part.names) == 3
    for name in part.names:
        ours, all_ = part.images[part.labels == name], everything.images[everything.labels == name]
        np.testing.assert_array_equal(ours, all_)


def test_episodes_hold_drawings_of_the_split(folder, concatenate):
    sizes = {"ways": 3, "shots": 1, "queries": 2, "meta_batch_size": 2, "tasks": 20}
    episodes = omniglot(folder, split="train", rotations=False, **sizes)
    (x_support, y_support), (x_query, y_query) = concatenate(episodes)
    assert x_support.shape == (20, 3, 28, 28, 1) and x_support.dtype == np.float32
    assert x_query.shape == (20, 6, 28, 28, 1) and y_query.shape == (20, 6)
    assert x_support.max() == 1 and x_support.min() == 0
    split = load_omniglot(folder, split="train")
    images = split.images.reshape(-1, DRAWINGS, 28, 28)
    ours = np.round(255 * x_support[..., 0]).astype("uint8")
    found = (ours[:, :, None, None] == images).all(axis=(-1, -2))
    assert (found.sum(axis=(2, 3)) == 1).all()
    assert found.any(axis=(0, 1)).all()


def test_rotations_are_on_by_default(folder):
    turned = next(iter(omniglot(folder, ways=3, tasks=32)))[0][0]
    straight = next(iter(omniglot(folder, ways=3, tasks=32, rotations=False)))[0][0]
    same = np.all(turned == straight, axis=(2, 3, 4)).mean()
    assert 0.1 < same < 0.4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, r"split must be one of \('train', 'validation', 'test'\), got 'val'"),
        ({"ways": 5}, "ways=5 needs at least 5 classes, but split='train' has 4"),
        ({"ways": 3, "queries": 4}, r"at least shots \+ queries = 1 \+ 4 = 5 examples"),
        ({"ways": 0}, "ways must be an integer of at least 1, got 0"),
        ({"ways": 3, "tasks": 33}, "tasks=33 and meta_batch_size=32. Use tasks=64"),
        ({"ways": 3, "start": -1}, "start must be an integer of at least 0, got -1"),
    ],
)
def test_arguments_are_checked_before_anything_is_read(arguments, message, monkeypatch):
    with pytest.raises(ValueError, match=message):
        omniglot("a folder that does not exist", **arguments)


def test_unknown_splits_are_refused():
    with pytest.raises(ValueError, match="split must be one of .*got 'evaluation'"):
        load_omniglot("a folder that does not exist", split="evaluation")
