import os
import pathlib
import subprocess
import sys

import pytest

from keras_maml import files
from keras_maml.files import (
    TEMPORARY,
    read_csv,
    remove_leftovers,
    whole,
    whole_folder,
    write_csv,
    write_json,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path):
    with whole(tmp_path / "a.npz") as temporary:
        temporary.write_text("new")
        assert names(tmp_path) == [temporary.name]
        assert temporary.name.startswith(TEMPORARY) and temporary.name.endswith(".a.npz")
    assert names(tmp_path) == ["a.npz"]


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), whole(path) as temporary:
        temporary.write_text("half")
        1 / 0  # noqa: B018
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_json_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert names(tmp_path) == []


def test_tables_come_back_as_they_were(tmp_path):
    rows = [{"a": 1.0, "b": 0.1 + 0.2}, {"a": -2.5, "b": 1e-30}, {"a": 0.0, "c": 1.0}]
    write_csv(tmp_path / "a.csv", rows)
    assert read_csv(tmp_path / "a.csv") == rows


def test_a_folder_replaces_another_as_a_whole(tmp_path):
    folder = tmp_path / "models" / "1"
    for content in ("first", "second"):
        with whole_folder(folder) as new:
            new.mkdir()
            (new / content).touch()
        assert names(folder) == [content]
    assert names(tmp_path) == ["models"]
    assert names(tmp_path / "models") == ["1"]


def test_a_failed_folder_leaves_nothing_but_the_old_one(tmp_path):
    for there in (False, True):
        folder = tmp_path / str(there)
        if there:
            folder.mkdir()
            (folder / "old").touch()
        with pytest.raises(ZeroDivisionError), whole_folder(folder) as new:
            new.mkdir()
            1 / 0  # noqa: B018
    assert names(tmp_path) == ["True"]
    assert names(tmp_path / "True") == ["old"]


def test_a_folder_that_came_meanwhile_is_not_replaced_unasked(tmp_path):
    folder = tmp_path / "1"
    with pytest.raises(OSError, match="not empty"), whole_folder(folder, replace=False) as new:
        new.mkdir()
        folder.mkdir()
        (folder / "other").touch()
    assert names(folder) == ["other"]


# A process that runs keras_maml/files.py alone: the package would import TensorFlow.
ALONE = f"""
import importlib.util, pathlib, resource, sys
spec = importlib.util.spec_from_file_location("files", {str(files.__file__)!r})
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
"""


def alone(code, *arguments):
    return subprocess.Popen([sys.executable, "-c", ALONE + code, *map(str, arguments)])


FULL_DISK = """
import numpy as np
folder, size = pathlib.Path(sys.argv[1]), 10_000
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # no file may become larger

def npz(path):
    with files.whole(path) as temporary:
        np.savez(temporary, np.zeros(size))

def fill(path):
    with files.whole_folder(path) as new:
        new.mkdir()
        (new / "large").write_bytes(bytes(2 * size))

writers = {
    "text": lambda path: files.write_text(path, "a" * 2 * size),
    "json": lambda path: files.write_json(path, ["a"] * size),
    "csv": lambda path: files.write_csv(path, [{"a": 1.0}] * size),
    "npz": npz,
    "folder": fill,
}
failed = []
for name, write in writers.items():
    try:
        write(folder / name)
    except OSError:
        failed.append(name)
sys.exit(failed != list(writers))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of the size of files")
def test_what_is_there_stays_when_the_disk_is_full(tmp_path):
    for name in ("text", "json", "csv", "npz"):
        (tmp_path / name).write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    assert alone(FULL_DISK, tmp_path).wait() == 0
    assert names(tmp_path) == ["csv", "folder", "json", "npz", "text"]
    assert {(tmp_path / name).read_text() for name in ("text", "json", "csv", "npz")} == {"old"}
    assert names(tmp_path / "folder") == ["old"]


def test_two_writers_of_a_file_do_not_share_a_name(tmp_path):
    path = tmp_path / "a.txt"
    with whole(path) as first:
        first.write_text("first")
        with whole(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert names(tmp_path) == ["a.txt"]


WRITE_OFTEN = """
for _ in range(100):
    files.write_text(sys.argv[1], sys.argv[2] * 300_000)
"""


def test_two_processes_do_not_tear_each_others_writes(tmp_path):
    path = tmp_path / "a.txt"
    writers = [alone(WRITE_OFTEN, path, letter) for letter in "ab"]
    seen = []
    while not seen or any(writer.poll() is None for writer in writers):
        if path.exists():
            seen.append(path.read_text())
    assert [writer.returncode for writer in writers] == [0, 0]
    assert {*seen} <= {"a" * 300_000, "b" * 300_000}
    assert names(tmp_path) == ["a.txt"]


def test_contents_are_on_the_disk_before_their_name_is(tmp_path, monkeypatch):
    events, fsync = [], os.fsync
    targets = {}

    def note(descriptor):
        inode = os.fstat(descriptor).st_ino
        events.append((targets.get(inode, "?"), names(tmp_path)))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    targets[tmp_path.stat().st_ino] = "folder"
    with whole(tmp_path / "a.txt") as temporary:
        temporary.write_text("all")
        targets[temporary.stat().st_ino] = "file"
    assert events == [("file", [temporary.name]), ("folder", ["a.txt"])]


def test_a_link_goes_on_pointing_to_the_file_that_is_replaced(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    file, link = tmp_path / "elsewhere" / "a.txt", tmp_path / "a.txt"
    file.write_text("old")
    link.symlink_to(file)
    files.write_text(link, "new")
    assert link.is_symlink() and file.read_text() == "new"
    assert names(tmp_path / "elsewhere") == ["a.txt"]


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path):
    (tmp_path / "secret").touch(mode=0o600)
    files.write_text(tmp_path / "secret", "new")
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    (tmp_path / "own").mkdir(mode=0o700)
    with files.whole_folder(tmp_path / "own") as new:
        new.mkdir()
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("letter", ["a", "é"])
def test_names_may_be_as_long_as_the_system_allows(tmp_path, letter):
    name = letter * (250 // len(letter.encode())) + ".txt"
    with whole(tmp_path / name) as temporary:
        assert temporary.suffix == ".txt"
        temporary.touch()
    with whole_folder(tmp_path / name[1:]) as new:
        new.mkdir()
    assert names(tmp_path) == sorted([name, name[1:]])


def test_a_link_goes_on_pointing_to_the_folder_that_is_replaced(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "current").symlink_to("1")
    with whole_folder(tmp_path / "current") as new:
        new.mkdir()
        (new / "new").touch()
    assert (tmp_path / "current").is_symlink() and names(tmp_path / "1") == ["new"]


def test_a_link_to_nothing_is_no_place_for_a_folder(tmp_path):
    (tmp_path / "current").symlink_to("nowhere")
    with (
        pytest.raises(FileNotFoundError, match="current is a link to nowhere, which is not there"),
        whole_folder(tmp_path / "current"),
    ):
        pytest.fail("began to work")
    assert names(tmp_path) == ["current"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="folders are exchanged on Linux")
def test_a_folder_that_is_replaced_is_never_missing(tmp_path, monkeypatch):
    folder = tmp_path / "1"
    with whole_folder(folder) as new:
        new.mkdir()
    monkeypatch.setattr(pathlib.Path, "rename", lambda *_: pytest.fail("renamed in two steps"))
    with whole_folder(folder) as new:
        new.mkdir()
        (new / "second").touch()
    assert names(folder) == ["second"]
    assert names(tmp_path) == ["1"]


def test_where_folders_cannot_be_exchanged_they_are_replaced_by_renaming(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "exchange", lambda *_: False)
    test_a_folder_replaces_another_as_a_whole(tmp_path)


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    # A name as a killed process leaves it: that of a writer that then wrote nothing.
    with pytest.raises(FileNotFoundError), whole(tmp_path / "checkpoints" / "a.h5") as temporary:
        pass
    temporary.write_text("half")
    (tmp_path / "temporary.txt").touch()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["checkpoints", "temporary.txt"]
    assert names(tmp_path / "checkpoints") == []
