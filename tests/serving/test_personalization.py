"""Customers keep their own weights: in every store, after processes die, of one learner."""

import concurrent.futures
import contextlib
import inspect
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo

from keras_maml import MAML, networks
from keras_maml.serving.fast_weights import ServedLearner
from keras_maml.serving.opened import open_learner
from keras_maml.serving.personalization import (
    OtherLearnerError,
    Personalizer,
    UnknownCustomerError,
)
from keras_maml.serving.stores import FolderStore, MemoryStore, SQLiteStore

# Writes customers until it is killed, and says of each that it is kept.
WRITER = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("stores", sys.argv[1])
stores = importlib.util.module_from_spec(spec)
spec.loader.exec_module(stores)
store, number = stores.SQLiteStore(sys.argv[2]), 0
while True:
    name = f"{sys.argv[3]}-{number}"
    store.put({name: name.encode() * 100, name + "b": b"second"})
    print(name, flush=True)
    number += 1
"""


@pytest.fixture(scope="module")
def learner():
    keras.utils.set_random_seed(0)
    case = zoo.CASES["normalization"]
    learner = MAML(case.build(), 0.2, 2, batch_normalization="inductive", adapted_layers="head")
    learner.compile("sgd", case.loss, run_eagerly=True)
    learner.predict(zoo.episodes(case), verbose=0)
    return learner


@pytest.fixture(scope="module")
def opened(learner):
    return open_learner(learner)  # once: tracing takes seconds


@pytest.fixture(scope="module")
def episodes():
    (x, y), (x_query, _) = zoo.episodes(zoo.CASES["normalization"], tasks=5)
    return x.numpy(), y.numpy(), x_query.numpy()


def stores(folder):
    return [MemoryStore(), FolderStore(folder / "folder"), SQLiteStore(folder / "a.sqlite")]


def test_every_customer_gets_the_answers_of_their_own_examples(learner, opened, episodes, tmp_path):
    x, y, x_query = episodes
    names = ["ada", "../bob", "..", "Zoë/%2F", "e"]
    for store in stores(tmp_path):
        personalizer = Personalizer(opened, store, batch_size=2)
        personalizer.adapt_many(names, x, y)
        together = personalizer.predict_many(names, x_query)
        for index, name in enumerate(names):
            expected = learner.adapt(x[index], y[index])(x_query[index])
            np.testing.assert_allclose(together[index], expected, rtol=0, atol=1e-5)
            alone = personalizer.predict(name, x_query[index][:1])
            np.testing.assert_allclose(alone, expected[:1], rtol=0, atol=1e-5)
        assert personalizer.customers() == sorted(names)
        personalizer.adapt("ada", x[1], y[1])  # again, with other examples
        again = personalizer.predict("ada", x_query[1])
        np.testing.assert_allclose(again, together[1], rtol=0, atol=1e-5)
        assert personalizer.forget("..") and not personalizer.forget("..")
        with pytest.raises(UnknownCustomerError, match=r"no weights of '\.\.': call adapt before"):
            personalizer.predict("..", x_query[0])
    assert sorted(path.name for path in tmp_path.iterdir() if "sqlite" not in path.name) == [
        "folder"
    ]


def test_a_saved_model_and_its_learner_share_customers(learner, opened, episodes, tmp_path):
    x, y, x_query = episodes
    learner.export(tmp_path / "1", verbose=False)
    store = MemoryStore()
    Personalizer(opened, store).adapt("ada", x[0], y[0])
    expected = learner.adapt(x[0], y[0])(x_query[0])
    served = Personalizer(tmp_path / "1", store)
    np.testing.assert_allclose(served.predict("ada", x_query[0]), expected, rtol=0, atol=1e-5)


def test_who_opens_a_saved_model_is_warned_as_who_exported_it(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization()])
    learner, x = MAML(model, 0.1), np.ones([3, 2], "float32")
    learner.compile("sgd", "mean_squared_error", run_eagerly=True)
    learner.adapt(x, x)
    with pytest.warns(UserWarning, match="chance. Pass batch_normalization"):
        learner.export(tmp_path / "1", signatures=["adapt", "predict_with"], verbose=False)
    with pytest.warns(UserWarning, match="chance. Export it with batch_normalization"):
        Personalizer(tmp_path / "1")


def test_weights_of_another_learner_are_refused(learner, opened, episodes):
    x, y, x_query = episodes
    store = MemoryStore()
    Personalizer(opened, store).adapt("ada", x[0], y[0])
    other = MAML.from_config(learner.get_config())
    other.compile("sgd", "mse", run_eagerly=True)
    other.predict(zoo.episodes(zoo.CASES["normalization"]), verbose=0)
    other.model.set_weights([weight + 0.1 for weight in learner.model.get_weights()])
    with pytest.raises(OtherLearnerError, match="another learner: adapt again"):
        Personalizer(other, store).predict("ada", x_query[0])


def test_lists_are_several_inputs_where_the_model_has_them_and_rows_elsewhere():
    inputs = keras.Input((2,)), keras.Input((2,))
    outputs = keras.layers.Dense(1)(keras.layers.Concatenate()(inputs))
    learner = MAML(keras.Model(inputs, outputs), 0.1)
    learner.compile("sgd", "mean_squared_error", run_eagerly=True)
    x, y = [[[1.0, 2.0]], [[3.0, 4.0]]], [[5.0]]
    expected = learner.adapt(tuple(map(np.array, x)), np.array(y))(tuple(map(np.array, x)))
    personalizer = Personalizer(open_learner(learner))
    for nest in (x, tuple(x), list(map(np.array, x))):
        personalizer.adapt("ada", nest, y)
        np.testing.assert_allclose(personalizer.predict("ada", nest), expected, 1e-5)
    named = {"left-eye": list(inputs), "right": keras.Input((2,))}
    outputs = keras.layers.Dense(1)(keras.layers.Concatenate()([*inputs, named["right"]]))
    other = MAML(keras.Model(named, outputs), 0.1)
    other.compile("sgd", "mean_squared_error", run_eagerly=True)
    nest = {"left-eye": list(map(np.array, x)), "right": np.array(x[0])}
    expected_of_other = other.adapt(nest, np.array(y))(nest)
    of_other = Personalizer(open_learner(other))
    of_other.adapt("ada", {"left-eye": x, "right": x[0]}, y)
    found = of_other.predict("ada", {"left-eye": x, "right": x[0]})
    np.testing.assert_allclose(found, expected_of_other, 1e-5)
    many = [[part] for part in x]
    np.testing.assert_allclose(personalizer.predict_many(["ada"], many)[0], expected, 1e-5)


@pytest.mark.parametrize("end", [-1, -4, 16, 17])
def test_damaged_records_ask_to_adapt_again(opened, episodes, end):
    x, y, x_query = episodes
    store = MemoryStore()
    personalizer = Personalizer(opened, store)
    personalizer.adapt("ada", x[0], y[0])
    [record] = store.get(["ada"])
    store.put({"ada": record[:end]})
    with pytest.raises(OtherLearnerError, match="The record of 'ada' is damaged.*Adapt again"):
        personalizer.predict("ada", x_query[0])


def test_what_is_opened_stays_as_it_is_while_the_learner_changes(learner, opened, episodes):
    x, y, x_query = episodes
    personalizer = Personalizer(opened)
    before, weights = learner.adapt(x[0], y[0])(x_query[0]).numpy(), learner.model.get_weights()
    personalizer.adapt("ada", x[0], y[0])
    try:
        for variable in learner.model.trainable_variables:
            variable.assign_add(tf.ones_like(variable))  # as optimizers do
        after = learner.adapt(x[0], y[0])(x_query[0]).numpy()
        assert np.abs(after - before).max() > 1e-2
        assert ServedLearner(learner).checksum() != opened.checksum
        personalizer.adapt("bob", x[0], y[0])
        for name in ("ada", "bob"):
            answer = personalizer.predict(name, x_query[0])
            np.testing.assert_allclose(answer, before, rtol=0, atol=1e-5)
    finally:
        learner.model.set_weights(weights)


def test_half_precision_halves_what_is_kept(opened, episodes):
    x, y, x_query = episodes
    whole, half = Personalizer(opened), Personalizer(opened, half_precision=True)
    for personalizer in (whole, half):
        personalizer.adapt("ada", x[0], y[0])
    sizes = [len(p.store.get(["ada"])[0]) - 17 for p in (whole, half)]
    assert sizes == [4 * whole.opened.size, 2 * whole.opened.size]
    expected = whole.predict("ada", x_query[0])
    difference = np.abs(half.predict("ada", x_query[0]) - expected).max()
    assert 0 < difference < 1e-2


def test_numbers_that_half_precision_does_not_hold_are_told_from_diverged_ones(opened, episodes):
    x, y, _ = episodes
    with pytest.raises(ValueError, match=r"'ada' gave numbers up to .* which float16 does not"):
        Personalizer(opened, half_precision=True).adapt("ada", x[0], y[0] + 1e7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": -1}, "steps must be an integer of at least 0, got -1"),
        ({"steps": 2.5}, "steps must be an integer of at least 0, got 2.5"),
        ({"steps": "3"}, "steps must be an integer of at least 0, got '3'"),
        ({"batch_normalization": "foo"}, "batch_normalization must be one of .* got 'foo'"),
    ],
)
def test_settings_out_of_range_are_refused_and_those_of_what_is_open_stay(
    learner, opened, settings, message
):
    with pytest.raises(ValueError, match=message):
        Personalizer(learner, **settings)
    with pytest.raises(ValueError, match="pass them to open_learner"):
        Personalizer(opened, **settings)


def test_customers_are_a_list_in_which_each_comes_once(opened, episodes):
    x, y, x_query = episodes
    personalizer = Personalizer(opened)
    with pytest.raises(ValueError, match=r"each once, got \['a'\] more than once"):
        personalizer.adapt_many(["a", "b", "a"], x[:3], y[:3])
    for customers in ("bc", {"b", "c"}, {"b": 1, "c": 2}):
        with pytest.raises(ValueError, match="customers must be a list of names"):
            personalizer.adapt_many(customers, x[:2], y[:2])
        with pytest.raises(ValueError, match="customers must be a list of names"):
            personalizer.predict_many(customers, x_query[:2])
    assert personalizer.customers() == []


def test_a_customer_of_an_omniglot_head_takes_less_than_two_kilobytes(tmp_path):
    model = networks.omniglot_classifier(5, 64)
    learner = MAML(model, adapted_layers="head", batch_normalization="inductive")
    served = ServedLearner(learner)
    assert served.size == 65 * 5 + 4 * 2 * 64  # the head, and means and variances of four layers
    record = bytes(17 + 2 * served.size)  # with half_precision; the record's head has 17 bytes
    SQLiteStore(tmp_path / "a").put({f"customer-{number}": record for number in range(1000)})
    assert (tmp_path / "a").stat().st_size < 1000 * 2000
    assert 17 + 4 * ServedLearner(learner, "transductive").size < 2000


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones((4, 2)), np.ones((4, 1)), r"x_support must have the shape \[tasks, examples, 3"),
        (np.ones((4, 3)), np.ones((3, 1)), "y_support must have as many tasks and examples"),
        (np.ones((0, 3)), np.ones((0, 1)), "none of them 0"),
        (np.ones((4, 3)) * 1e39, np.ones((4, 1)), "x_support must hold finite numbers"),
        ([["a"] * 3], [[1.0]], "x_support must hold finite numbers"),
        (np.ones((4, 3)), np.full((4, 1), 3e38), "'ada' gave weights that are not finite"),
        (np.ones(3), np.ones((4, 1)), "x_support must have 3 axes"),
    ],
)
def test_examples_that_do_not_fit_are_refused_and_nothing_is_kept(opened, x, y, message):
    personalizer = Personalizer(opened)
    with pytest.raises(ValueError, match=message):
        personalizer.adapt("ada", x, y)
    assert personalizer.customers() == []


@pytest.mark.parametrize("name", ["", "a" * 81, 7, None])
def test_names_that_no_store_can_keep_are_refused(opened, episodes, name):
    x, y, _ = episodes
    with pytest.raises(ValueError, match="text of 1 to 80 bytes"):
        Personalizer(opened).adapt(name, x[0], y[0])


@pytest.mark.parametrize("name", ["nowhere/a.sqlite", "folder", "text"])
def test_what_is_no_file_of_customers_is_refused_by_name(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("no database " * 100)
    with pytest.raises(OSError, match=f"{name} cannot keep customers"):
        SQLiteStore(tmp_path / name)


@pytest.mark.parametrize("kind", [FolderStore, SQLiteStore])
def test_a_relative_path_is_that_of_when_the_store_was_made(tmp_path, monkeypatch, kind):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    store = kind("customers")
    monkeypatch.chdir("other")
    with concurrent.futures.ThreadPoolExecutor() as threads:  # with a connection of its own
        threads.submit(store.put, {"ada": b"1"}).result()
    assert store.get(["ada"]) == [b"1"]
    assert not list((tmp_path / "other").iterdir())


def test_who_is_forgotten_leaves_nothing_of_writers_that_were_killed(tmp_path, monkeypatch):
    store = FolderStore(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *paths: os._exit(0))
        for name in ("ada", "é" * 40):
            process = multiprocessing.get_context("fork").Process(
                target=store.put, args=({name: b"weights"},)
            )
            process.start()
            process.join()
    assert len(list(tmp_path.iterdir())) == 2 and store.names() == []
    assert not store.delete("ada")
    assert len(list(tmp_path.iterdir())) == 1
    assert not store.delete("é" * 40)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("table", ["weights (id INTEGER, kg REAL)", "notes (text TEXT)"])
def test_the_database_of_another_program_is_left_as_it_is(tmp_path, table):
    path = tmp_path / "other.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"CREATE TABLE {table}")
    before = path.read_bytes()
    with pytest.raises(OSError, match="cannot keep customers .*database of another program"):
        SQLiteStore(path)
    assert path.read_bytes() == before


def test_tables_that_others_add_to_a_file_of_customers_are_no_hindrance(tmp_path):
    path = tmp_path / "a.sqlite"
    SQLiteStore(path).put({"ada": b"1"})
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE backups (number INTEGER)")
        connection.execute("VACUUM")
    assert SQLiteStore(path).get(["ada"]) == [b"1"]


@pytest.mark.parametrize("path", ["", ":memory:"])
def test_a_path_that_is_no_file_is_refused(path):
    with pytest.raises(ValueError, match=f"'{path}' is no file: name one, or take a MemoryStore"):
        SQLiteStore(path)


def test_a_disk_that_is_full_is_said_and_the_store_goes_on(tmp_path):
    store = SQLiteStore(tmp_path / "a.sqlite")
    store.put({"ada": b"1"})
    with store._transaction() as connection:
        connection.execute("PRAGMA max_page_count=8")
    with pytest.raises(sqlite3.OperationalError, match="disk is full"):
        store.put({"bob": b"2", "large": bytes(2**20)})
    assert store.names() == ["ada"]
    store.put({"ada": b"3"})
    assert store.get(["ada"]) == [b"3"]


def test_names_that_cannot_have_been_kept_are_of_nobody(tmp_path):
    for store in stores(tmp_path):
        for name in ("é" * 150, "a" * 300, "nobody"):
            assert store.get([name]) == [None] and not store.delete(name)
    (tmp_path / "folder" / "ada.weights").mkdir()
    with pytest.raises(OSError):  # Of what is there but cannot be read nothing is said.
        FolderStore(tmp_path / "folder").get(["ada"])


def start_writer(path, name):
    command = [sys.executable, "-c", WRITER, inspect.getfile(SQLiteStore), str(path), name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_process_that_writes_without_a_pause_leaves_others_their_turns(tmp_path):
    path = tmp_path / "a.sqlite"
    with start_writer(path, "a") as writer:
        try:
            assert writer.stdout.readline()
            # With SQLite's own waiting, a tenth of such attempts or fewer come through in 5 s.
            for number in range(20):
                store = SQLiteStore(path)
                store.put({f"b-{number}": b"first"})
                assert store.get([f"b-{number}"]) == [b"first"]
        finally:
            writer.kill()


def test_what_processes_that_were_killed_had_kept_is_there(tmp_path):
    path = tmp_path / "a.sqlite"
    writers = [start_writer(path, name) for name in "ab"]
    for writer in writers:
        for _ in range(5):
            assert writer.stdout.readline()
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
    promised = []
    for name, writer in zip("ab", writers, strict=True):
        rest, _ = writer.communicate()
        whole = [line for line in rest.splitlines(keepends=True) if line.endswith("\n")]
        promised += [f"{name}-{i}" for i in range(5 + len(whole))]
    store = SQLiteStore(path)
    assert store.get(promised) == [name.encode() * 100 for name in promised]
    # Of a transaction that was interrupted there is all or nothing.
    names = set(store.names())
    assert {name + "b" for name in names if not name.endswith("b")} == {
        name for name in names if name.endswith("b")
    }
    store.put({"after": b"works"})
    assert store.get(["after"]) == [b"works"]
