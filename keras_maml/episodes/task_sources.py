"""Reads tables of tasks: data frames, columns by name, or a folder of CSV files."""

import csv
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_maml.episodes.image_archives import is_hidden
from keras_maml.episodes.plain_arrays import array_of, decoded, is_missing, plain_array

Columns = dict[str, np.ndarray]
Pair = tuple[Any, np.ndarray]

INTEGER = re.compile(r"\s*[+-]?\d{1,18}\s*")
NUMBER = re.compile(r"\s*[+-]?(\d+[.,]?\d*|[.,]\d+|\d{1,3}(,\d{3})+\.?\d*)([eE][+-]?\d+)?\s*")
"""What people write for numbers, also with a comma for the point, or one after the thousands."""


def read_table(
    table: Any,
    *,
    task: str,
    target: str | Sequence[str],
    features: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
) -> dict[str, Pair]:
    """Parts a table into tasks.

    Args:
        table: A data frame (pandas, polars: whatever has ``columns`` and gives one of them by its
            name), or a mapping from names to columns ``[N]``.
        task: The column that names the task of each row.
        target: See `pairs_of_columns`.
        features: See `pairs_of_columns`.

    Returns:
        ``(x, y)`` of each task by its name, in the order of the names; rows keep their order.

    Raises:
        ValueError: If a column is missing, does not hold one value per row, a cell that is used
            is empty, or is a text where most others of its column are numbers.

    Example:
        >>> table = {"shop": ["b", "a", "b"], "day": [1, 2, 3], "sales": [0.5, 1.5, 2.5]}
        >>> pairs = read_table(table, task="shop", target="sales")
        >>> [(name, x.tolist(), y.tolist()) for name, (x, y) in pairs.items()]
        [('a', [[2.0]], [[1.5]]), ('b', [[1.0], [3.0]], [[0.5], [2.5]])]
    """
    names = list(table.columns) if hasattr(table, "columns") else list(table)
    columns = {str(name): array_of(table[name]) for name in names}
    _check_different(list(map(str, names)), "the table")
    lengths = {name: column.shape for name, column in columns.items()}
    if len(set(lengths.values())) > 1 or any(len(shape) != 1 for shape in lengths.values()):
        raise ValueError(
            f"Every column of the table must hold one value per row, got the shapes {lengths}."
        )
    _require(columns, [task], "task", "the table")
    labels = columns.pop(task)
    without = [row for row, name in enumerate(labels) if is_missing(name)]
    if without:
        raise ValueError(
            f"Every row must name its task, but {len(without)} have none in the column {task}; the "
            f"first is row {without[0]}. Fill in or remove them."
        )
    for name in _used(columns, target, features):
        columns[name] = decoded(plain_array(columns[name], f"The column {name!r} of the table"))
        if columns[name].dtype.kind == "U":
            _check_texts(name, columns[name].tolist(), lambda row: f"row {row} of the table")
    tasks, number = np.unique(labels.astype(str), return_inverse=True)
    order = np.argsort(number, kind="stable")
    cuts = np.cumsum(np.bincount(number, minlength=len(tasks)))[:-1]
    x, y = pairs_of_columns(columns, target=target, features=features, where="the table")

    def parts(array: np.ndarray) -> list[np.ndarray]:
        return np.split(array[order], cuts)

    if isinstance(x, dict):
        by_input = {key: parts(array) for key, array in x.items()}
        inputs: Any = [{key: by_input[key][i] for key in x} for i in range(len(tasks))]
    else:
        inputs = parts(x)
    pairs = zip(inputs, parts(y), strict=True)
    return dict(zip(tasks.tolist(), pairs, strict=True))


def read_folder(
    folder: str | os.PathLike,
    *,
    target: str | Sequence[str],
    features: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
) -> dict[str, Pair]:
    r"""Reads a folder of CSV files, a task each, named after its file.

    Args:
        folder: Holds files ``*.csv`` whose first line names the columns; the same ones in each.
            Hidden files are passed over.
        target: See `pairs_of_columns`.
        features: See `pairs_of_columns`.

    Returns:
        ``(x, y)`` of each task by its name, in the order of the names.

    Raises:
        FileNotFoundError: If there is no such folder, or no CSV file in it.
        ValueError: If two files have one name but for the suffix (``a.csv`` and ``a.CSV``), or a
            file has other columns than the first, two of the same name, a line of
            another length, an empty cell, or a text where most others of a column are numbers, or
            is not text in UTF-8.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "north.csv").write_text("day,sales\n1,0.5\n2,1.5\n")
        >>> {name: y.tolist() for name, (x, y) in read_folder(folder, target="sales").items()}
        {'north': [[0.5], [1.5]]}
    """
    folder = Path(folder).expanduser()
    files = sorted(folder.glob("*.[cC][sS][vV]")) if folder.is_dir() else []
    files = [path for path in files if not is_hidden(path.name)]
    if not files:
        trouble = "holds none" if folder.is_dir() else "is no folder"
        raise FileNotFoundError(
            f"Expected a folder of CSV files, one per task, but {folder} {trouble}."
        )
    by_name = {path.stem: path for path in files}
    for path in files:
        if by_name[path.stem] != path:
            raise ValueError(
                f"A file of {folder} is a task named after it, but {path.name} and "
                f"{by_name[path.stem].name} have one name. Rename or remove one."
            )
    cells = {path: _read_cells(path) for path in files}
    names = list(cells[files[0]])
    for path, columns in cells.items():
        if list(columns) != names:
            raise ValueError(
                f"All files in {folder} must have the same columns, but {files[0].name} has "
                f"{names} and {path.name} has {list(columns)}."
            )
    # Whether a column holds numbers is a matter of all files: "7" can be a text in one of them.
    kinds = {name: _kind([cells[path][name] for path in files]) for name in names}
    places = [(path, row) for path in files for row, _ in enumerate(cells[path][names[0]], start=1)]

    def place(i: int) -> str:
        path, row = places[i]
        return f"{path}, row {row} after the header,"

    for name in _used(names, target, features):
        if kinds[name] is str:
            column = [cell for path in files for cell in cells[path][name]]
            _check_texts(name, column, place)
    return {
        path.stem: pairs_of_columns(
            {name: np.array(columns[name], kinds[name]) for name in names},
            target=target,
            features=features,
            where=str(path),
        )
        for path, columns in cells.items()
    }


def pairs_of_columns(
    columns: Columns,
    *,
    target: str | Sequence[str],
    features: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None,
    where: str,
) -> Pair:
    """Makes inputs and targets of columns.

    Args:
        columns: ``[N]`` each, by name.
        target: The column to be predicted, or several. Numbers with fractions become
            ``[N, targets]``; one column of integers or texts are labels, ``[N]``.
        features: The columns that it is predicted from: of numbers, ``[N, features]``, or one of
            texts, ``[N]``; for a model with several inputs, a mapping from their names to columns.
            ``None``: all others, which must have names.
        where: Names the columns, for errors.

    Returns:
        ``(x, y)``.

    Raises:
        ValueError: If a column is missing or has empty cells, or numbers and texts are to become
            one array.
    """
    targets = [target] if isinstance(target, str) else list(target)
    _require(columns, targets, "target", where)
    y = _together(columns, targets, "target", where)
    if y.shape[1] == 1 and y.dtype.kind != "f":
        y = y[:, 0]
    if isinstance(features, Mapping):
        return {key: _input(columns, names, where) for key, names in features.items()}, y
    if features is None:
        features = [name for name in columns if name not in targets]
        if "" in features:
            raise ValueError(
                f"A column of {where} has no name, as the row numbers that pandas writes. Write "
                "them with index=False, or name the features."
            )
    return _input(columns, features, where), y


def _input(columns: Columns, names: str | Sequence[str], where: str) -> np.ndarray:
    names = [names] if isinstance(names, str) else list(names)
    _require(columns, names, "features", where)
    x = _together(columns, names, "features", where)
    # Numbers of columns are quantities, also whole ones: token ids come as arrays.
    if x.dtype.kind == "U":
        return x[:, 0]
    return x if x.dtype.kind == "f" else x.astype("float64")


def _together(columns: Columns, names: Sequence[str], what: str, where: str) -> np.ndarray:
    """Stacks columns of numbers as ``[N, columns]``, or one of texts."""
    found = [
        decoded(plain_array(columns[name], f"The column {name!r} of {where}")) for name in names
    ]
    texts = [name for name, column in zip(names, found, strict=True) if column.dtype.kind == "U"]
    if texts and len(found) > 1:
        raise ValueError(
            f"{what} must be columns of numbers, or one of texts, but of {list(names)} in {where} "
            f"{texts} hold texts. Name the columns to use; for a model with "
            'several inputs, as features={"numbers": [...], "text": "..."}.'
        )
    return np.stack(found, axis=1)


def _require(columns: Mapping[str, Any], names: Sequence[str], what: str, where: str) -> None:
    missing = [name for name in names if name not in columns]
    if missing or not names:
        raise ValueError(
            f"{what} must name columns of {where}, got {missing or 'none'}. Its columns are "
            f"{list(columns)}."
        )


def _check_different(names: Sequence[str], where: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Columns must have different names, but {where} has {twice} twice.")


def _read_cells(path: Path) -> dict[str, list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            separator = max(",;\t", key=first.count)  # the first of those that are as frequent
            header, *rows = [row for row in csv.reader(file, delimiter=separator) if row]
    except (UnicodeDecodeError, ValueError, csv.Error) as error:
        raise ValueError(
            f"{path} is no CSV file in UTF-8 whose first line names the columns ({error}). Write "
            "it again."
        ) from error
    header = [name.strip() for name in header]
    _check_different(header, str(path))
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header) or not all(cell.strip() for cell in row):
            raise ValueError(
                f"Every line of {path} must have a value for each of its columns, {header}, but "
                f"row {number} after the header is {row}. Fill in or remove it."
            )
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}


def _used(names: Iterable[str], target: str | Sequence[str], features: Any) -> list[str]:
    """The columns, of those that there are, that become targets or features."""
    if features is None:
        return list(names)
    parts = [target, *(features.values() if isinstance(features, Mapping) else [features])]
    wanted = {name for part in parts for name in ([part] if isinstance(part, str) else part)}
    return [name for name in names if name in wanted]


def _check_texts(name: str, cells: Sequence[str], place: Callable[[int], str]) -> None:
    """Checks that texts are not meant as numbers: one empty cell would make classes of them all."""
    numbers = sum(map(bool, map(NUMBER.fullmatch, cells)))
    if 2 * numbers <= len(cells) or all(map(INTEGER.fullmatch, cells)):
        return
    first = next((i for i, cell in enumerate(cells) if _kind([[cell]]) is str), None)
    if first is None:  # a column of texts as it came, such as grades
        return
    raise ValueError(
        f"The column {name!r} must be numbers or texts, but {numbers} of its {len(cells)} cells "
        f"are numbers, and {place(first)} holds the text {cells[first]!r}. Write numbers as 1234.5 "
        "and remove rows where they are missing; if they are names, write them as 'number 7'."
    )


def _kind(columns: Sequence[Sequence[str]]) -> type:
    """The type of a column, given its cells in every file."""
    cells = [cell for column in columns for cell in column]
    if all(INTEGER.fullmatch(cell) for cell in cells):
        return int
    try:
        np.array(cells, float)
    except ValueError:
        return str
    return float
