import pytest

from keras_maml.files import TEMPORARY, read_csv, whole, whole_folder, write_csv, write_json


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path):
    with whole(tmp_path / "a.npz") as temporary:
        temporary.write_text("new")
        assert names(tmp_path) == [TEMPORARY + "a.npz"]
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
