import io
import os
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_maml.episodes import (
    builders,
    image_files,
    image_folder,
    load_image_folder,
    split_classes,
)
from keras_maml.episodes.image_archives import ImageArchive, find_archive
from keras_maml.episodes.image_files import (
    MARGIN,
    decode,
    in_order,
    lanczos_matrix,
    read_classes,
    resize,
)

NAMES = [f"class {i}" for i in range(10)]


def picture(number, height=7, width=9):
    return np.random.default_rng(number).integers(0, 256, [height, width, 3], "uint8")


@pytest.fixture
def folder(tmp_path):
    """Ten classes of different sizes, PNG and JPEG files, and files that are neither."""
    path = tmp_path / "photos"
    for c, name in enumerate(NAMES):
        (path / name).mkdir(parents=True)
        for i in range(2 + c % 3):
            image = tf.io.encode_png(picture(10 * c + i)).numpy()
            (path / name / f"{i}.PNG").write_bytes(image)
        (path / name / ".hidden.png").write_bytes(b"x")
    (path / NAMES[0] / "notes.txt").write_text("x")
    (path / "list.csv").write_text("x")
    return path


def load(folder, **arguments):
    return load_image_folder(folder, **({"image_size": (7, 9)} | arguments))


def test_splits_part_the_classes(folder):
    parts = {split: load(folder, split=split) for split in ("train", "validation", "test")}
    assert [len(part.names) for part in parts.values()] == [6, 2, 2]
    assert sorted(sum((part.names for part in parts.values()), ())) == NAMES
    for part in parts.values():
        classes = [NAMES.index(name) for name in part.names]
        assert part.counts == tuple(2 + c % 3 for c in classes)
        expected = [picture(10 * c + i) for c in classes for i in range(2 + c % 3)]
        np.testing.assert_array_equal(part.images, expected)


def test_split_seed_and_fractions_choose_the_classes(folder):
    first, second = (load(folder, split_seed=seed).names for seed in (0, 1))
    assert set(first) != set(second)
    assert len(load(folder, fractions=(0.8, 0.1, 0.1)).names) == 8
    chosen = load(folder, split=["class 7", "class 2"])
    assert chosen.names == ("class 7", "class 2")
    np.testing.assert_array_equal(chosen.images[0], picture(70))


def test_classes_named_by_numbers_can_be_chosen_by_them(tmp_path):
    for name in range(3):
        (tmp_path / str(name)).mkdir()
        pixels = tf.io.encode_png(np.full([2, 2, 3], 50 * name, "uint8")).numpy()
        (tmp_path / str(name) / "1.png").write_bytes(pixels)
    for split in ([2, 0], np.array([2, 0]), range(2, -1, -2)):
        data = load(tmp_path, split=split, image_size=2)
        assert data.names == ("2", "0")
        assert data.images[:, 0, 0, 0].tolist() == [100, 0]
    with pytest.raises(ValueError, match="does not know 3. Its classes are 0, 1, 2"):
        load(tmp_path, split=[0, 3])


def test_names_in_another_encoding(folder, tmp_path):
    # The message about it would have such a name, which tests in several processes cannot report.
    (folder / "class 0" / "notes.txt").unlink()
    before = load(folder, split=["class 0"]).images
    latin = os.fsdecode("été".encode("latin-1"))
    moved = folder.rename(tmp_path / latin)
    image = moved / "class 0" / "1.PNG"
    image.rename(image.with_name(f"1 {latin}.PNG"))
    np.testing.assert_array_equal(load(moved, split=["class 0"]).images, before)
    (moved / "class 3").rename(moved / latin)
    with pytest.raises(ValueError, match="has a name that is not UTF-8. Rename it"):
        load(moved)


def test_a_zip_file_gives_the_same(folder, tmp_path):
    for root in ("", "photos/"):
        path = tmp_path / "photos.zip"
        with zipfile.ZipFile(path, "w") as file:
            for image in folder.rglob("*.*"):
                file.write(image, root + image.relative_to(folder).as_posix())
        np.testing.assert_array_equal(load(path).images, load(folder).images)


def test_the_second_start_decodes_nothing(folder, monkeypatch):
    first = load(folder)
    monkeypatch.setattr(builders, "read_classes", None)
    np.testing.assert_array_equal(load(folder).images, first.images)
    assert load(folder, split="test").images.shape[1:] == (7, 9, 3)


def test_changed_files_and_settings_are_prepared_anew(folder):
    before = load(folder, split=["class 3"]).images
    (folder / "class 3" / "0.PNG").write_bytes(tf.io.encode_png(picture(1000)).numpy())
    np.testing.assert_array_equal(load(folder, split=["class 3"]).images[0], picture(1000))
    grey = load(folder, split=["class 3"], channels=1, image_size=5).images
    assert grey.shape == (len(before), 5, 5, 1)


def test_episodes(folder, concatenate):
    episodes = image_folder(
        folder, image_size=8, ways=3, shots=1, queries=1, meta_batch_size=2, tasks=4
    )
    (x_support, y_support), _ = concatenate(episodes)
    assert x_support.shape == (4, 3, 8, 8, 3) and x_support.dtype == np.float32
    assert x_support.min() >= 0 and 0.5 < x_support.max() <= 1
    assert y_support.tolist() == [[0, 1, 2]] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "The height in image_size must be an integer of at least 1, got 0"),
        ({"image_size": (8, 8, 3)}, r"must be a number of pixels or \(height, width\), got \(8"),
        ({"channels": 4}, r"channels must be 1 \(grey\) or 3 \(colour\), got 4"),
        ({"split": "val"}, "split must be one of .*, got 'val'"),
        ({"split": ["class 1", "cat"]}, "does not know cat. Its classes are class 0, class 1"),
        ({"split": ["class 1", "class 1"]}, "which got a class twice"),
        ({"fractions": (0.5, 0.5)}, r"three shares .* sum to 1, got \(0.5, 0.5\)"),
        ({"fractions": (0.5, 0.6, -0.1)}, "three shares"),
        ({"fractions": (0.5, 0.5, float("nan"))}, "three shares"),
        ({"split": []}, "which got no class. Its classes are class 0"),
    ],
)
def test_arguments_are_checked(folder, cache, arguments, message):
    with pytest.raises(ValueError, match=message):
        load(folder, **arguments)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rotations": True}, r"needs square images, .* got shape \[None, 7, 9, 3\]"),
        ({"queries": 2}, "at least shots .* but 1 of 6 classes have fewer: class 3 .2."),
        ({"ways": 7}, "ways=7 needs at least 7 classes, but split='train' with .* has 6"),
    ],
)
def test_what_no_episode_can_be_made_of_is_refused_before_decoding(
    folder, monkeypatch, arguments, message
):
    monkeypatch.setattr(builders, "read_classes", None)
    settings = {"image_size": (7, 9), "ways": 2, "shots": 1, "queries": 1} | arguments
    with pytest.raises(ValueError, match=message):
        image_folder(folder, **settings)


def test_a_folder_without_classes_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Expected a folder \(or zip file\) of classes"):
        load(tmp_path / "none")
    (tmp_path / "1.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"holds no images \*/\* .*; its first file is 1.png"):
        load(tmp_path)


def test_a_corrupt_image_is_named_and_nothing_is_kept(folder, cache):
    (folder / "class 4" / "1.PNG").write_bytes(b"\x89PNG nonsense")
    with pytest.raises(ValueError, match=r"class 4/1.PNG in .*photos is not a readable image"):
        load(folder)
    assert not cache.exists()


@pytest.mark.parametrize("name", ["../evil/1.png", "/etc/evil/1.png", "a/../../evil/1.png"])
def test_paths_out_of_a_zip_file_are_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(name, b"x")
    with pytest.raises(ValueError, match=r"a path out of the archive. Do not use this file"):
        ImageArchive(tmp_path / "a.zip", levels=2, suffixes=[".png"])


def test_a_zip_file_is_preferred_to_what_it_unpacks_to(tmp_path):
    (tmp_path / "train").mkdir()
    assert find_archive(tmp_path, "train", advice="") == tmp_path / "train"
    (tmp_path / "train.zip").write_bytes(b"")
    assert find_archive(tmp_path, "train", advice="") == tmp_path / "train.zip"


def test_split_classes_does_not_depend_on_the_order():
    names = [f"{i:03d}" for i in range(100)]
    parts = [split_classes(names[::-1], split) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [64, 16, 20]
    assert parts[0] == split_classes(names, "train") and sorted(sum(parts, [])) == names


@pytest.mark.parametrize("encode", [tf.io.encode_png, tf.io.encode_jpeg], ids=["png", "jpeg"])
def test_decode_converts_colours(encode):
    image = np.broadcast_to(picture(0, 16, 16)[:1, :1], [16, 16, 3])
    content = encode(image).numpy()
    colour = decode(content, channels=3, where="").astype(int)
    assert np.abs(colour - image).max() <= 3
    grey = decode(content, channels=1, where="").astype(int)[..., 0]
    assert np.abs(grey - image @ [0.299, 0.587, 0.114]).max() <= 3


@pytest.mark.parametrize("size", [(28, 28), (9, 40), (70, 61)])
def test_resize_is_that_of_tensorflow(size):
    image = picture(0, 60, 50)
    expected = tf.image.resize(image, size, "lanczos3", antialias=True)
    expected = np.round(np.clip(expected, 0, 255)).astype(int)
    assert np.abs(resize(image, size).astype(int) - expected).max() <= 1
    assert resize(image, (60, 50)) is image


def test_lanczos_matrix_is_the_linear_map_of_tensorflow():
    image = np.random.default_rng(0).random([105, 105], "float32")
    matrix = lanczos_matrix(105, 28)
    expected = tf.image.resize(image[..., None], [28, 28], "lanczos3", antialias=True)[..., 0]
    np.testing.assert_allclose(matrix @ image @ matrix.T, expected, atol=1e-5)


def test_resized_images_do_not_depend_on_the_order_of_additions():
    image = picture(0, 60, 50)
    rows, columns = (np.round(lanczos_matrix(n, 28) * 2**20) for n in image.shape[:2])
    assert np.array_equal(rows / 2**20, lanczos_matrix(60, 28))
    exact = np.einsum("hr,rcd,wc->hwd", rows.astype(int), image.astype(int), columns.astype(int))
    expected = np.round(np.clip(exact / 2**40, 0, 255))
    assert np.array_equal(resize(image, (28, 28)), expected)


def test_links_are_followed_but_not_in_circles(folder, tmp_path):
    before = load(folder).images
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in NAMES[:5]:
        (linked / name).symlink_to(folder / name)
    for name in NAMES[5:]:
        (linked / name).mkdir()
        for path in (folder / name).iterdir():
            (linked / name / path.name).symlink_to(path)
    (linked / NAMES[9] / "around").symlink_to(linked)
    (linked / NAMES[9] / ".gone.png").symlink_to(tmp_path / "gone")
    np.testing.assert_array_equal(load(linked).images, before)
    archive = ImageArchive(linked, levels=2, suffixes=[".png"])
    assert archive.names == ImageArchive(folder, levels=2, suffixes=[".png"]).names


def test_a_link_to_nothing_is_named(folder, tmp_path):
    (folder / NAMES[3] / "gone.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(ValueError, match=r"gone\.png is a link to a file that is not there"):
        load(folder)


def test_folders_that_agree_in_sizes_and_times_are_told_apart(tmp_path):
    for name, value in (("a", 10), ("b", 200)):
        for kind in ("cat", "dog"):
            path = tmp_path / name / kind / "1.bmp"
            path.parent.mkdir(parents=True)
            path.write_bytes(encoded(Image.new("L", (8, 8), value), "BMP"))
            os.utime(path, (1, 1))
    images = [
        load_image_folder(tmp_path / name, image_size=8, fractions=(1, 0, 0)).images
        for name in ("a", "b")
    ]
    assert [set(array.ravel()) for array in images] == [{10}, {200}]


def test_too_few_classes_in_a_split_name_its_fractions(folder):
    message = (
        r"needs at least 3 classes, but split='test' with fractions=\(0.64, 0.16, 0.2\) has 2. Use"
    )
    sizes = {"image_size": 8, "ways": 3, "shots": 1, "queries": 1}
    with pytest.raises(ValueError, match=message):
        image_folder(folder, split="test", **sizes)
    with pytest.raises(ValueError, match=r"but split=\['class 7', 'class 2'\] has 2"):
        image_folder(folder, split=["class 7", "class 2"], **sizes)


def encoded(image, form, **options):
    """A file of an image, written by Pillow."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("form", "mode"),
    [("GIF", "P"), ("BMP", "RGB"), ("BMP", "L"), ("JPEG", "CMYK"), ("WEBP", "RGB"), ("TIFF", "L")],
)
def test_every_form_of_image_becomes_grey_or_colour(form, mode, channels):
    image = Image.new("RGB", (6, 5), (204, 204, 204)).convert(mode)
    pixels = decode(encoded(image, form), channels=channels, where="")
    assert pixels.shape == (5, 6, channels) and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - 204).max() <= 6


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_transparent_becomes_white(channels):
    ink = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    ink.putpixel((1, 0), (0, 0, 0, 255))
    for image in (ink, ink.convert("LA")):
        pixels = decode(encoded(image, "PNG"), channels=channels, where="")
        assert pixels[0, :, 0].tolist() == [255, 0]


def test_a_photograph_is_turned_as_its_camera_noted():
    notes = Image.Exif()
    notes[0x0112] = 6  # to be turned by 90 degrees
    content = encoded(Image.new("RGB", (6, 4)), "JPEG", exif=notes)
    assert decode(content, channels=3, where="").shape == (6, 4, 3)


def test_16_bits_become_8():
    deep = Image.fromarray(np.array([[0, 256 * 7 + 255, 65535]], "uint16"))
    assert decode(encoded(deep, "PNG"), channels=1, where="").ravel().tolist() == [0, 7, 255]
    with pytest.raises(ValueError, match="a.tif is not a readable image: it has 32 bits"):
        decode(encoded(deep.convert("F"), "TIFF"), channels=1, where="a.tif")


def test_a_class_without_readable_images_is_not_left_out_silently(folder, tmp_path):
    (folder / "class x").mkdir()
    load(folder)
    (folder / "class x" / ".hidden").write_text("x")
    load(folder)
    (folder / "class x" / "1.heic").write_bytes(b"x")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for path in folder.rglob("*.*"):
            file.write(path, path.relative_to(folder).as_posix())
    for path in (folder, tmp_path / "a.zip"):
        with pytest.raises(
            ValueError, match=r"folder class x in .* no image .*first file is 1.heic"
        ):
            load(path)


def test_a_file_that_is_no_archive_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"a.txt is no folder and no zip file"):
        load(tmp_path / "a.txt")


def photograph(height, width):
    """Something smooth with edges and noise, as photographs have."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] / 100
    waves = np.stack([np.sin(3 * x + c) + np.cos(2 * y * x) + (y > x) for c in range(3)], -1)
    pixels = 60 * waves + 90 + rng.normal(0, 4, waves.shape)
    return Image.fromarray(pixels.clip(0, 255).astype("uint8"))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("form", "mode"),
    [
        ("JPEG", "RGB"),
        ("JPEG", "CMYK"),
        ("PNG", "RGB"),
        ("PNG", "RGBA"),
        ("PNG", "P"),
        ("PNG", "1"),
        ("PNG", "I;16"),
        ("TIFF", "L"),
    ],
)
def test_large_images_become_what_they_do_when_decoded_in_full(form, mode, channels):
    image, size = photograph(300, 500), (20, 24)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype("uint16") << 8)
    content = encoded(image.convert(mode) if mode != "I;16" else image, form)
    full = decode(content, channels=channels, where="")
    part = decode(content, channels=channels, where="", size=size)
    assert full.shape[:2] == (300, 500)
    for there, kept, wanted in zip(full.shape, part.shape, size, strict=False):
        assert MARGIN * wanted <= kept < there
    expected, result = (resize(pixels, size).astype(int) for pixels in (full, part))
    assert expected.std() > 20
    assert np.abs(result - expected).mean() < 1


def test_images_that_are_not_much_too_large_are_decoded_in_full():
    content = encoded(photograph(100, 120), "JPEG")
    full = decode(content, channels=3, where="")
    np.testing.assert_array_equal(decode(content, channels=3, where="", size=(50, 60)), full)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("turned", [3, 6])
def test_large_photographs_are_turned_as_their_camera_noted(form, turned):
    notes = Image.Exif()
    notes[0x0112] = turned
    content = encoded(photograph(400, 200), form, exif=notes)
    full, size = decode(content, channels=3, where=""), (16, 8) if turned == 3 else (8, 16)
    part = decode(content, channels=3, where="", size=size)
    assert full.shape == ((400, 200, 3) if turned == 3 else (200, 400, 3))
    assert full.shape[0] > part.shape[0] >= MARGIN * size[0]
    difference = resize(part, size).astype(int) - resize(full, size)
    assert np.abs(difference).mean() < 1


def test_no_more_files_are_read_than_the_threads_need():
    taken = []

    def items():
        for i in range(100):
            taken.append(i)
            yield (i,)

    for done, result in enumerate(in_order(lambda i: 10 * i, items(), workers=3)):
        assert result == 10 * done
        assert len(taken) <= done + 1 + 3
    assert len(taken) == 100


@pytest.mark.parametrize(("limit", "turns"), [(4 * 30, 0), (4 * 30 - 1, 1)])
def test_what_takes_much_memory_is_done_by_one_thread_at_a_time(monkeypatch, limit, turns):
    class Turns:
        taken = 0

        def __enter__(self):
            self.taken += 1

        def __exit__(self, *_):
            pass

    lock = Turns()
    monkeypatch.setattr(image_files, "_large", lock)
    monkeypatch.setattr(image_files, "LARGE", limit)
    decode(encoded(Image.new("L", (5, 6)), "PNG"), channels=1, where="")
    assert lock.taken == turns


def test_images_whose_pixels_must_not_change_are_decoded_in_full(tmp_path):
    (tmp_path / "a").mkdir()
    content = encoded(photograph(300, 500), "JPEG")
    (tmp_path / "a" / "0.jpg").write_bytes(content)
    archive = ImageArchive(tmp_path, levels=2, suffixes=[".jpg"])
    files = archive.by_folder()
    (_, exact), *_ = read_classes(archive, files, size=(20, 24), channels=3, exact=True)
    (_, quick), *_ = read_classes(archive, files, size=(20, 24), channels=3)
    full = decode(content, channels=3, where="")
    np.testing.assert_array_equal(exact[0], resize(full, (20, 24)))
    assert (exact != quick).any()


def test_files_that_are_not_read_are_named(folder, caplog):
    for name in ("1.heic", "2.HEIC", "Thumbs.db", ".hidden.heic"):
        (folder / NAMES[3] / name).write_bytes(b"x")
    load(folder)
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith(f"3 files in {folder} are left out, since only .jpg, ")
    assert "2 with .heic, 1 with .txt; the first is class 0/notes.txt. Convert" in message


def test_what_is_being_done_is_said_once_and_truly(folder, capsys, cache):
    load(folder)
    said = "".join(capsys.readouterr())
    assert said.startswith(f"Preparing images, once: they are kept in {cache}")
    assert "ownload" not in said
    load(folder)
    assert "".join(capsys.readouterr()) == ""
