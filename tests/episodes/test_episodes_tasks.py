import decimal

import numpy as np
import pytest
import tensorflow as tf

from keras_maml.episodes import from_tasks, load_tasks

SIZES = [7, 12, 9, 8, 10]
NAMES = ["north", "south", "east", "west", "centre"]


def pairs(sizes=SIZES):
    """Tasks whose inputs say which task and row they are, and whose targets follow from them."""
    made = []
    for task, size in enumerate(sizes):
        x = np.stack([np.full(size, task), np.arange(size)], axis=1).astype("float32")
        made.append((x, x[:, :1] * 100 + x[:, 1:]))
    return made


def table(order=None):
    """The same as columns, with the rows of all tasks mixed."""
    x = np.concatenate([x for x, _ in pairs()])
    order = np.random.default_rng(0).permutation(len(x)) if order is None else order
    # Rows of a task keep their order, as in the pairs.
    order = order[np.argsort(x[order][:, 1], kind="stable")]
    x = x[order]
    names = np.array(NAMES)[x[:, 0].astype(int)]
    return {"task": names, "a": x[:, 0], "b": x[:, 1], "y": 100 * x[:, 0] + x[:, 1]}


class Frame:
    """What pandas and polars have in common."""

    def __init__(self, columns):
        self._columns = columns
        self.columns = list(columns)

    def __getitem__(self, name):
        return self._columns[name]


def episodes(data=None, **options):
    settings = {"shots": 3, "queries": 4, "meta_batch_size": 5, "tasks": 20}
    return from_tasks(pairs() if data is None else data, **(settings | options))


def rows_of(batches):
    (x_support, _), (x_query, _) = batches
    return np.concatenate([x_support, x_query], axis=1)


def test_an_episode_has_different_examples_of_one_task_with_their_targets(concatenate):
    (x_support, y_support), (x_query, y_query) = concatenate(episodes())
    assert (x_support.shape, y_query.shape) == ((20, 3, 2), (20, 4, 1))
    rows = rows_of(((x_support, None), (x_query, None)))
    assert (rows[:, :, 0] == rows[:, :1, 0]).all()
    assert all(len(set(row)) == 7 for row in rows[:, :, 1])
    np.testing.assert_array_equal(y_support, 100 * x_support[..., :1] + x_support[..., 1:])
    np.testing.assert_array_equal(y_query, 100 * x_query[..., :1] + x_query[..., 1:])


def test_every_task_comes_once_before_one_comes_again(concatenate):
    rows = rows_of(concatenate(episodes(meta_batch_size=4)))
    order = rows[:, 0, 0].reshape(4, 5).tolist()
    assert [sorted(turns) for turns in order] == [[0, 1, 2, 3, 4]] * 4
    assert len({tuple(turns) for turns in order}) > 1


def test_all_examples_of_tasks_of_unequal_sizes_are_drawn_evenly(concatenate):
    rows = rows_of(concatenate(episodes(tasks=2000)))
    for task, size in enumerate(SIZES):
        seen = np.bincount(rows[rows[:, 0, 0] == task][..., 1].astype(int).ravel())
        assert len(seen) == size
        expected = 400 * 7 / size
        assert (np.abs(seen - expected) <= 4 * np.sqrt(expected)).all()


def test_episodes_do_not_depend_on_the_meta_batch_size_nor_on_the_start(concatenate, assert_same):
    whole = concatenate(episodes(seed=7, meta_batch_size=12, tasks=24))
    assert_same(concatenate(episodes(seed=7, meta_batch_size=1, tasks=24)), whole)
    later = concatenate(episodes(seed=7, meta_batch_size=4, tasks=8, start=16))
    assert_same(later, tf.nest.map_structure(lambda array: array[16:], whole))
    other = concatenate(episodes(seed=8, meta_batch_size=12, tasks=24))
    assert (rows_of(other) != rows_of(whole)).any()


def test_lists_tables_and_folders_give_the_same_episodes(concatenate, assert_same, tmp_path):
    named = dict(zip(NAMES, pairs(), strict=True))
    columns, options = table(), {"task": "task", "target": ["y"]}
    expected = concatenate(episodes({name: named[name] for name in sorted(NAMES)}))
    assert_same(concatenate(episodes(columns, **options)), expected)
    assert_same(concatenate(episodes(Frame(columns), **options)), expected)
    for name, (x, y) in named.items():
        lines = [f"{a:.1f};{b:.1f};{c:.1f}" for (a, b), c in zip(x, y[:, 0], strict=True)]
        (tmp_path / f"{name}.csv").write_text("\ufeffa;b;y\n" + "\n".join(lines) + "\n")
    (tmp_path / "notes.txt").write_text("no task")
    assert_same(concatenate(episodes(tmp_path, target="y")), expected)


def test_splits_part_the_tasks_and_whole_tasks_can_be_left_out():
    columns = {"task": np.arange(40) % 20, "x": np.zeros(40), "y": np.zeros(40)}

    def names(**options):
        return load_tasks(columns, task="task", target="y", **options).names

    parts = [names(split=split) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [13, 3, 4]
    assert sorted(sum(parts, ())) == sorted(names())
    assert names(split="test", split_seed=1) != parts[2]
    assert names(split="train", fractions=(0.5, 0.2, 0.3)) != parts[0]
    assert set(names(leave_out=[7, "8"])) == set(names()) - {"7", "8"}
    assert names(split=[3, 12]) == ("12", "3")


def test_who_leaves_tasks_out_leaves_the_others_in_their_splits():
    columns = {"task": np.arange(40) % 20, "x": np.zeros(40), "y": np.zeros(40)}
    for split in ("train", "validation", "test"):
        options = {"task": "task", "target": "y", "split": split}
        names = load_tasks(columns, **options).names
        assert load_tasks(columns, leave_out=names[1:], **options).names == names[:1]


def test_what_comes_out_is_the_same_in_every_split():
    def load(x, y, **options):
        data = {f"s{i}": (x(i), y(i)) for i in range(10)}
        parts = [load_tasks(data, split=s, **options) for s in ("train", "validation", "test")]
        for part in parts:
            first, number = np.array(x(int(part.names[1][1:]))), part.counts[0]
            assert part.x.values[number : 2 * number].numpy().tolist() == first.tolist()
        (described,) = {(part.x.dtype, part.x.scale, part.y.dtype) for part in parts}
        return described

    def photo(i):
        return np.full([3, 4, 4, 1], 300 if i == 3 else 100 + i)

    def whole(i):
        return np.arange(3)

    assert load(photo, whole) == (tf.float32, 1, tf.int32)
    assert load(photo, lambda i: np.arange(3) / (1 + (i == 3))) == (tf.float32, 1, tf.float32)
    assert load(photo, whole, leave_out=["s3"]) == (tf.float32, 1 / 255, tf.int32)
    assert load(lambda i: np.full([3, 2], i + 0.5 * (i == 3)), whole)[0] == tf.float32
    assert load(lambda i: np.full([3, 2], i), whole)[0] == tf.int64


def test_sequences_of_integers_are_no_images():
    sequences = np.arange(60).reshape(6, 5, 2)
    assert load_tasks([(sequences, np.zeros(6))]).x.scale == 1
    assert load_tasks([(sequences.astype("uint8"), np.zeros(6))]).x.scale == 1 / 255


def test_queries_of_series_follow_the_support(concatenate):
    rows = rows_of(concatenate(episodes(ordered=True, tasks=2000)))
    steps = rows[:, :, 1]
    assert (np.diff(steps, axis=1) == 1).all()
    for task, size in enumerate(SIZES):
        firsts = np.bincount(steps[rows[:, 0, 0] == task][:, 0].astype(int))
        assert len(firsts) == size - 6
        assert (np.abs(firsts - 400 / len(firsts)) <= 4 * np.sqrt(400 / len(firsts))).all()


@pytest.mark.parametrize("ordered", [False, True])
def test_windows_are_successive_rows_with_the_target_of_the_last(ordered, concatenate):
    options = {"shots": 1, "queries": 2, "tasks": 200, "ordered": ordered}
    (x, y), (x_query, _) = concatenate(episodes(window=2, **options))
    assert x.shape == (200, 1, 2, 2) and x_query.shape == (200, 2, 2, 2)
    assert (x[..., 0] == x[:, :1, :1, 0]).all()
    assert (np.diff(x[..., 1], axis=2) == 1).all()
    np.testing.assert_array_equal(y, 100 * x[:, :, -1, :1] + x[:, :, -1, 1:])
    largest = {task: x_query[x_query[:, 0, 0, 0] == task][..., 1].max() for task in range(5)}
    assert largest == {task: size - 1 for task, size in enumerate(SIZES)}


def test_windows_share_no_row_and_are_drawn_evenly(concatenate):
    data = load_tasks(pairs([8]))
    episodes = data.episodes(shots=1, queries=1, window=3, meta_batch_size=1000, tasks=6000)
    (x, _), (x_query, _) = concatenate(episodes)
    first, second = x[:, 0, 0, 1].astype(int), x_query[:, 0, 0, 1].astype(int)
    assert (np.abs(first - second) >= 3).all()
    _, seen = np.unique(8 * first + second, return_counts=True)
    assert len(seen) == 12  # of six places 0 .. 5 for two windows, those at least 3 apart
    assert (np.abs(seen - 500) <= 4 * np.sqrt(500)).all()


def test_texts_and_their_labels(concatenate):
    mails = {
        "ann": (["a0 spam", "a1 ham", "a2 spam"], ["spam", "ham", "spam"]),
        "bob": (["b0 ham", "b1 ham"], ["ham", "later"]),
    }
    data = load_tasks(mails)
    assert data.classes == ("ham", "later", "spam")
    (x, y), _ = concatenate(data.episodes(shots=1, queries=1, meta_batch_size=1, tasks=20))
    assert y.dtype == np.int32 and x.shape == (20, 1)
    known = {}
    for texts, labels in mails.values():
        known |= dict(zip(texts, labels, strict=True))
    assert [data.classes[label] for label in y.flat] == [known[text.decode()] for text in x.flat]
    # A label means the same in every split.
    assert load_tasks(mails, split=["bob"]).classes == data.classes


@pytest.mark.parametrize(
    ("targets", "classes"),
    [
        (np.array([0.5, 10, 2, np.float32(3), True], object), ()),
        (np.array(["café".encode(), "tea", "tea", b"tea", "café"], object), ("café", "tea")),
    ],
)
@pytest.mark.parametrize("as_table", [False, True])
def test_objects_are_the_numbers_or_texts_that_they_hold(targets, classes, as_table):
    if as_table:
        columns = {"task": ["a"] * 5, "x": range(5), "y": targets}
        data = load_tasks(columns, task="task", target="y")
    else:
        data = load_tasks([(np.zeros([5, 1]), targets)])
    assert data.classes == classes
    y = data.y.numpy().ravel().tolist()
    assert y == ([0, 1, 1, 1, 0] if classes else [0.5, 10, 2, 3, 1])


def test_targets_up_to_the_ends_of_their_dtype_are_kept():
    whole, real = [-(2**31), 2**31 - 1], [-3.4e38, 3.4e38]
    for y in (whole, real):
        kept = load_tasks([(np.zeros([2, 1]), np.array(y))]).y.numpy()
        np.testing.assert_array_equal(kept, np.array(y, kept.dtype))
        assert np.isfinite(kept).all() and kept.dtype.itemsize == 4
    # What is whole in one task is no label if it is not so in another.
    parts = [np.array([2**40, 0]), np.array([0.5, 0])]
    y = load_tasks([(np.zeros([2, 1]), part) for part in parts]).y
    assert y.numpy().tolist() == [2**40, 0, 0.5, 0]


def test_models_of_several_inputs_get_them_by_name(concatenate):
    columns = table() | {"text": [f"row {row:.0f}" for row in table()["b"]]}
    data = load_tasks(
        columns, task="task", target="y", features={"numbers": ["a", "b"], "text": "text"}
    )
    (x, y), _ = concatenate(data.episodes(shots=3, queries=4, meta_batch_size=5, tasks=5))
    assert x["numbers"].shape == (5, 3, 2) and y.shape == (5, 3, 1)
    assert [text.decode() for text in x["text"].flat] == [
        f"row {row:.0f}" for row in x["numbers"][..., 1].flat
    ]


def test_whole_numbers_are_labels_as_targets_and_quantities_as_features(concatenate):
    columns = {"task": list("aabb"), "x": [1, 2, 3, 4], "y": [0, 1, 1, 0]}
    data = from_tasks(
        columns, task="task", target="y", shots=1, queries=1, meta_batch_size=2, tasks=2
    )
    (x, y), _ = concatenate(data)
    assert (x.dtype, x.shape, y.dtype, y.shape) == (np.float32, (2, 1, 1), np.int32, (2, 1))
    tokens = [(np.array([[1, 2], [3, 4]]), [0, 1])]
    assert load_tasks(tokens).x.dtype == tf.int64


TIMES = 1_796_076_000 + np.arange(6)


@pytest.mark.parametrize("times", [TIMES, TIMES.astype(float), TIMES + 0.25, 10**9 * TIMES])
def test_numbers_that_float32_does_not_tell_apart_are_refused(times):
    columns = {"task": ["a"] * 6, "day": range(6), "time": times, "y": range(6)}
    message = "column 1 of x must hold numbers .* of 6 different ones in .* it leaves 1. Subtract"
    with pytest.raises(ValueError, match=message):
        load_tasks(columns, task="task", target="y")
    with pytest.raises(ValueError, match="column 1 of x must"):
        load_tasks([(np.stack([times, times - times[0]], axis=1)[:, ::-1] / 1.0, np.arange(6))])
    with pytest.raises(ValueError, match="y must hold numbers"):
        load_tasks([(np.zeros([6, 1]), times.astype(float))])


def test_numbers_are_rounded_where_that_loses_little():
    values = np.random.default_rng(0).uniform(0, 1e9, [20_000, 1])
    assert len(np.unique(values.astype("float32"))) < 20_000
    whole = np.unique(np.random.default_rng(0).integers(0, 10**8, 20_000))[:, None]
    assert len(np.unique(whole.astype("float32"))) < len(whole)
    for x in (
        values,
        whole,
        np.array([[0.1], [0.1 + 1e-12]]),
        3600 * np.arange(9)[:, None] + 1.8e9,
    ):
        load_tasks([(x, np.zeros(len(x)))])
    columns = {"task": ["a"] * 6, "time": TIMES, "y": range(6)}
    data = load_tasks(columns, task="task", target="y", dtype="float64")
    assert data.x.finish(data.x.values).numpy()[:, 0].tolist() == TIMES.tolist()


def csv(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


class NeitherEqualNorUnequal:
    """As `pandas.NA` is."""

    def __ne__(self, other):
        return self

    def __bool__(self):
        raise TypeError("ambiguous")


ONE = {"shots": 1, "queries": 1, "meta_batch_size": 1, "tasks": 1}


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (
            pairs(),
            {"shots": 6, "queries": 3},
            r"6 \+ 3 = 9 examples, but 2 of 5 .*: 0 \(7\), 3",
        ),
        (pairs(), {"window": 4}, r"2 examples, windows of 4 rows: 8 rows, but 1 of .*: 0 \(7\)\."),
        (pairs(), {"window": 7, "ordered": True}, r"of 7 rows: 8 rows, but 1 of 5 .*: 0 \(7\)\."),
        (pairs(), {"shots": 0}, "shots must be an integer of at least 1, got 0"),
        (pairs(), {"target": "y"}, "A list of arrays has no target. Leave target= out"),
        (pairs(), {"leave_out": ["9"]}, r"leave_out must name .* has none named \['9'\]"),
        (pairs(), {"leave_out": range(5)}, "would have none left"),
        (pairs(), {"split": "dev"}, "split must be one of"),
        (pairs(), {"split": "test", "fractions": (1, 0, 0)}, "holds none of the 5 tasks. Choose"),
        (
            pairs(),
            {"split": ["1"], "leave_out": ["1"]},
            "none of the 5 tasks beside those that are left out",
        ),
        ([], {}, "data must hold at least one task, got none"),
        ([np.zeros([3, 2])], {}, r"a list of pairs \(x, y\).* got ndarray for task 0"),
        ([(np.zeros([3, 2]), [1, 2])], {}, r"got \[3\] examples in x and targets of shape \[2\]"),
        (
            [*pairs(), (np.zeros([3, 4]), np.zeros([3, 1]))],
            {},
            r"but x is \[3, 4\] in task 5 and \[7, 2\] in task 0. Pad or cut",
        ),
        ([(np.full([3, 1], np.nan), np.zeros(3))], {}, "x of task 0 holds NaN or infinity"),
        ([(np.zeros([3, 1]), [0, np.inf, 0])], {}, "y of task 0 holds NaN or infinity"),
        ([(["a", "b"], ["+", "-"]), (["a", "b"], [0, 1])], {}, "y must be .* got both. Make them"),
        ([([["a"]] * 2, [0, 1]), ([[1]] * 2, [0, 1])], {}, "x must be .* got both. Make them"),
        (
            [(np.zeros([2, 1]), np.array([0, 3_000_000_000]))],
            {},
            r"y becomes int32, .* \.\. 2147483647, but has 3000000000 in it. Scale it, or",
        ),
        (
            [(np.zeros([2, 1]), np.array([2**32 - 1, 0], "uint32"))],
            {},
            "y becomes int32, .* but has 4294967295",
        ),
        (
            [(np.zeros([2, 1]), [0.0, -1e300])],
            {},
            r"y becomes float32, .* has -1e\+300 in it. Scale",
        ),
        ([(np.full([2, 1], 1e300), [0, 1])], {}, r"x becomes float32, .* has 1e\+300 in it"),
        ([(np.zeros([2, 1]), ["a", None])], {}, "y of task 0 must be .* but row 1 holds None"),
        ([(np.zeros([2, 1]), ["a", np.nan])], {}, "y of task 0 must be .* but row 1 holds nan"),
        ([(np.zeros([2, 1]), [["a", "b"], ["a", 1]])], {}, "but row 1 holds 1. Convert it"),
        ([(np.zeros([1, 1]), [decimal.Decimal(1)])], {}, r"row 0 holds Decimal\('1'\)"),
        (
            [(np.zeros([1, 1]), np.array(["2020-01-01"], "M8[D]"))],
            {},
            r"y of task 0 must be numbers or texts, got dtype datetime64\[D\]. Convert",
        ),
        ({1: pairs()[0], "1": pairs()[1]}, {}, "Two tasks have the same name as text, 1. Rename"),
        (table(), {"task": "task"}, "A table needs target. Give target="),
        (table(), {"task": "shop", "target": "y"}, r"task must name columns .* got \['shop'\]"),
        (table(), {"task": "task", "target": "z"}, r"target must name columns .* got \['z'\]"),
        (
            table() | {"text": table()["task"]},
            {"task": "task", "target": "y"},
            r"of \['a', 'b', 'text'\] in the table \['text'\] hold texts\. Name",
        ),
        (
            table() | {"day": np.full(sum(SIZES), "2020-01-01", "datetime64[D]")},
            {"task": "task", "target": "y"},
            r"column 'day' of the table must be .* got dtype datetime64\[D\]. Convert",
        ),
        (
            {"task": ["a", None], "x": [1, 2], "y": [1, 2]},
            {"task": "task", "target": "y"},
            "1 have none in the column task; the first is row 1",
        ),
        (
            {"task": ["a", np.nan], "x": [1, 2], "y": [1, 2]},
            {"task": "task", "target": "y"},
            "1 have none in the column task; the first is row 1",
        ),
        (
            {"task": np.array(["a", NeitherEqualNorUnequal()]), "x": [1, 2], "y": [1, 2]},
            {"task": "task", "target": "y"},
            "1 have none in the column task; the first is row 1",
        ),
        (
            {"task": ["a", "b"], "x": [1, 2], "y": ["yes", np.nan]},
            {"task": "task", "target": "y"},
            "column 'y' of the table must be .* but row 1 holds nan",
        ),
        (
            {"task": ["a", "b"], "x": [1, 2], "y": [30_000_000_000, 0]},
            {"task": "task", "target": "y"},
            "y becomes int32, .* but has 30000000000 in it",
        ),
        (
            {"task": ["a", "b"], "x": [1, 1e300], "y": [1, 2]},
            {"task": "task", "target": "y"},
            r"x becomes float32, .* has 1e\+300 in it",
        ),
        (
            {"task": ["a", "b"], 1: [1, 2], "1": [3, 4], "y": [1, 2]},
            {"task": "task", "target": "y"},
            r"different names, but the table has \['1'\] twice",
        ),
        (
            {"task": ["a", "b"], "": [1, 2], "y": [1, 2]},
            {"task": "task", "target": "y"},
            "A column of the table has no name",
        ),
        (
            {"task": ["a", "b"], "x": [1, 2, 3], "y": [1, 2]},
            {"task": "task", "target": "y"},
            "one value per row, got the shapes",
        ),
    ],
)
def test_what_does_not_fit_is_said(data, options, message):
    with pytest.raises(ValueError, match=message):
        from_tasks(data, **(ONE | options))


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, FileNotFoundError, "one per task, but .* holds none"),
        ({"a": ""}, ValueError, "a.csv is no CSV file in UTF-8 whose first line names"),
        ({"a": "x,y\n1,\n"}, ValueError, r"row 1 after the header is \['1', ''\]. Fill in"),
        ({"a": "x,y\n1,2\n3\n"}, ValueError, r"row 2 after the header is \['3'\]"),
        ({"a": "t,v, t,y\n1,2,3,4\n"}, ValueError, r"names, but .*a.csv has \['t'\] twice"),
        (
            {"a": ",t,y\n0,1.5,2\n"},
            ValueError,
            "a.csv has no name.* with index=False, or name the fe",
        ),
        ({"a": "x,y\n1,2\n", "b": "x,z\n1,2\n"}, ValueError, r"a.csv has .* and b.csv has"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, files, error, message):
    with pytest.raises(error, match=message):
        from_tasks(csv(tmp_path, **files), target="y", **ONE)


def test_a_file_that_is_no_task_is_none_and_no_task_takes_the_place_of_another(tmp_path):
    folder = csv(tmp_path, north="x,y\n1.5,2\n")
    (folder / "._north.csv").write_bytes(b"\x00\xff")
    assert load_tasks(folder, target="y").names == ("north",)
    (folder / "north.CSV").write_text("x,y\n7.5,2\n")
    with pytest.raises(ValueError, match=r"north.CSV and north.csv have one name. Rename"):
        load_tasks(folder, target="y")


def test_row_numbers_without_a_name_may_stay_where_features_are_named(tmp_path):
    data = load_tasks(csv(tmp_path, a=",t,y\n0,1.5,2\n"), target="y", features="t")
    assert data.x.values.numpy().tolist() == [[1.5]]


def test_a_column_holds_texts_if_it_does_in_one_file(tmp_path, concatenate):
    folder = csv(tmp_path, a="x,y\n7,0\n8,1\n", b="x,y\nseven,0\neight,1\n")
    (x, _), _ = concatenate(from_tasks(folder, target="y", **ONE | {"tasks": 20}))
    assert {text.decode() for text in x.flat} == {"7", "8", "seven", "eight"}


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["10.5", "9.25", "NA", "100.0"], "3 of its 4 cells are numbers, and {2} holds .* 'NA'"),
        (["1", "2", "3", "-"], "3 of its 4 cells are numbers, and {3} holds the text '-'. Write"),
        (["7.5", "10,5", "9,25", "1e3"], "4 of its 4 cells are numbers, and {1} holds .* '10,5'"),
        (["1,000.5", "2", "-3", "4"], "4 of its 4 cells are numbers, and {0} holds .* '1,000.5'"),
    ],
)
@pytest.mark.parametrize("column", ["y", "x"])
def test_numbers_are_not_taken_for_texts(cells, message, column, tmp_path):
    columns = {"x": ["1"] * 4, "y": ["2"] * 4} | {column: cells}
    table = columns | {"task": ["a", "b"] * 2, "other": cells}
    with pytest.raises(
        ValueError, match=message.format(*map("row {} of the table".format, range(4)))
    ):
        load_tasks(table, task="task", target="y", features="x")
    lines = [f"{x};{y};NA\n" for x, y in zip(columns["x"], columns["y"], strict=True)]
    csv(tmp_path, a="x;y;other\n" + "".join(lines[:1]), b="x;y;other\n" + "".join(lines[1:]))
    places = ["a.csv, row 1", "b.csv, row 1", "b.csv, row 2", "b.csv, row 3"]
    with pytest.raises(
        ValueError, match=message.format(*(f".*{p} after the header," for p in places))
    ):
        load_tasks(tmp_path, target="y", features=["x"])


def test_classes_may_be_named_by_numbers():
    for names in (
        ["1a", "2a", "3"],
        ["7", "8", "7"],
        ["1.0", "1.3", "2.7"],
        ["192.168.0.1", "10.0.0.1", "10.0.0.2"],
    ):
        columns = {"task": ["a"] * 3, "x": [1, 2, 3], "y": names}
        assert load_tasks(columns, task="task", target="y").classes == tuple(sorted(set(names)))
