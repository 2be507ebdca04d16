"""Episodes of any kind, each meta-batch once; what has no meaning is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_maml import MAML
from keras_maml.learners import inputs
from keras_maml.learners.inputs import is_stream

RANDOM = np.random.default_rng(0)


def make_half(tasks=4, examples=6, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(tasks, examples, 3)).astype("float32")
    return x, random.integers(0, 3, (tasks, examples)).astype("int32")


S, Q = make_half(), make_half(examples=5, seed=1)


def make_learner(model=None, loss=None, **options):
    model = model or keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    learner = MAML(model, 0.1)
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    options = {"jit_compile": False} | options
    learner.compile(keras.optimizers.SGD(0.1), loss, **options)
    return learner


class Record(keras.callbacks.Callback):
    """Notes the loss of every step, which shows the meta-batch."""

    def __init__(self):
        super().__init__()
        self.losses, self._total = [], 0.0

    def on_train_batch_end(self, batch, logs=None):
        total = logs["loss_before"] * (batch + 1)
        self.losses.append(total - self._total)
        self._total = total


def meta_batches(count=4):
    return [(make_half(2, 6, 2 * k), make_half(2, 5, 2 * k + 1)) for k in range(count)]


@pytest.fixture(scope="module")
def still():
    """A learner that never moves: the loss of a step is that of its meta-batch alone."""
    learner = make_learner()
    learner.optimizer.learning_rate = 0.0
    return learner


def losses_of(learner, data, **kwargs):
    record = Record()
    learner.fit(data, callbacks=[record], verbose=0, **kwargs)
    return record.losses


def spec_of(half):
    return tuple(tf.TensorSpec(array.shape, array.dtype) for array in half)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, number):
        return meta_batches()[number]


@pytest.mark.parametrize("kind", ["stream", "generator", "py_dataset", "dataset"])
def test_every_meta_batch_is_trained_on_in_its_turn(kind, still):
    batches = meta_batches()
    expected = [losses_of(still, batch)[0] for batch in batches]
    assert len({round(loss, 4) for loss in expected}) == 4
    source = iter(batches)  # cannot be read twice
    data = {
        "stream": lambda: tf.data.Dataset.from_generator(
            lambda: source, output_signature=tuple(map(spec_of, batches[0]))
        ),
        "generator": lambda: (batch for batch in batches),
        "py_dataset": Batches,
        "dataset": lambda: tf.data.Dataset.from_generator(
            lambda: iter(batches), output_signature=tuple(map(spec_of, batches[0]))
        ),
    }[kind]()
    assert losses_of(still, data) == pytest.approx(expected, rel=1e-4)


def test_a_py_dataset_is_told_where_every_pass_begins_and_ends(still):
    class Noted(Batches):
        def __len__(self):
            return 2

        def __getitem__(self, number):
            notes.append(number)
            return super().__getitem__(number)

        def on_epoch_begin(self):
            notes.append("begin")

        def on_epoch_end(self):
            notes.append("end")

    one_pass, notes = ["begin", 0, 1, "end"], []
    still.fit(Noted(), epochs=2, verbose=0)
    assert notes == [0, *one_pass, *one_pass]  # the first shows what they hold
    for use in (still.evaluate, still.predict):
        notes.clear()
        use(Noted(), verbose=0)
        assert notes == [0, *one_pass]


def test_arrays_are_cut_into_meta_batches_of_tasks(still):
    expected = [losses_of(still, batch)[0] for batch in meta_batches(2)]
    joined = tf.nest.map_structure(lambda *arrays: np.concatenate(arrays), *meta_batches(2))
    found = losses_of(still, joined, batch_size=2, shuffle=False)
    assert found == pytest.approx(expected, rel=1e-4)
    assert losses_of(still, joined) == pytest.approx([np.mean(expected)], rel=1e-4)
    assert len(losses_of(still, joined, batch_size=3)) == 2
    whole = still.predict(joined, verbose=0)
    np.testing.assert_allclose(still.predict(joined, batch_size=1, verbose=0), whole, rtol=1e-5)
    assert still.evaluate(joined, batch_size=3, verbose=0) == pytest.approx(
        still.evaluate(joined, verbose=0), rel=1e-5
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_the_last_tasks_validate(weighted):
    learner = make_learner()
    initial = learner.get_weights()
    weights = [RANDOM.uniform(0.2, 3, y.shape).astype("float32") for _, y in (S, Q)]
    given = {"sample_weight": weights} if weighted else {}
    history = learner.fit((S, Q), validation_split=0.25, verbose=0, **given).history
    learner = make_learner()
    learner.set_weights(initial)
    halves = [(*half, w) for half, w in zip((S, Q), weights, strict=True)] if weighted else (S, Q)
    data = [tuple(a[part] for a in half) for part in (slice(3), slice(3, None)) for half in halves]
    expected = learner.fit(data[:2], validation_data=data[2:], verbose=0).history
    assert history.keys() == expected.keys()
    for name, values in history.items():
        assert values == pytest.approx(expected[name])


def test_support_sets_alone_are_measured_wherever_episodes_may_come_from():
    class Alone(keras.utils.PyDataset):
        def __len__(self):
            return 1

        def __getitem__(self, number):
            return (S,)

    def read(data, **how):
        dataset = inputs.meta_batches(data, caller="evaluate", needs_query=False, **how)
        return keras.tree.map_structure(np.array, next(iter(dataset)))

    for alone in ((S,), tf.data.Dataset.from_tensors((S,)), Alone(), (batch for batch in Alone())):
        keras.tree.map_structure(np.testing.assert_array_equal, read(alone), (S, S))
    weighted = (*S, RANDOM.uniform(0.2, 3, S[1].shape).astype("float32"))
    found = read((S,), sample_weight=(weighted[2],))
    keras.tree.map_structure(np.testing.assert_array_equal, found, (weighted, weighted))
    _, (last,) = inputs.split_tasks((S,), 0.5, (weighted[2],))
    keras.tree.map_structure(np.testing.assert_array_equal, last, tuple(a[2:] for a in weighted))

    learner = make_learner()
    learner.meta_gradient = "reptile"
    learner.optimizer.learning_rate = 0.0
    history = learner.fit(Alone(), validation_data=Alone(), verbose=0).history
    assert history["loss"] == history["val_loss"] == pytest.approx(learner.evaluate(Alone())[:1])
    with pytest.raises(ValueError, match="must be .*x_support, y_support"):
        learner.predict((S,), verbose=0)


def test_lists_are_taken_as_tuples_and_lists_of_numbers_as_arrays():
    learner = make_learner()
    expected = learner.predict((S, Q), verbose=0)
    as_lists = [[S[0].tolist(), S[1].tolist()], [Q[0], Q[1].tolist()]]
    np.testing.assert_allclose(learner.predict(as_lists, verbose=0), expected, rtol=1e-5)
    adapted = learner.adapt(S[0][0], S[1][0].tolist())
    np.testing.assert_allclose(adapted(Q[0][0]), expected[0], rtol=1e-5)


def test_class_weights_are_weights_of_examples(still):
    weights = {0: 1.0, 1: 3.0}  # others 1
    by_example = tuple((x, y, np.where(y == 1, 3.0, 1.0).astype("float32")) for x, y in (S, Q))
    results = []
    for data, how in (
        ((S, Q), {"class_weight": weights}),
        (by_example, {}),
        ((S, Q), {"sample_weight": tuple(half[2] for half in by_example)}),
    ):
        results.append(still.train_on_batch(data, return_dict=True, **how))
    plain = still.train_on_batch((S, Q), return_dict=True)
    assert results[0] == pytest.approx(results[1])
    assert results[0] == pytest.approx(results[2])
    assert results[0]["loss"] != pytest.approx(plain["loss"], rel=1e-3)


def test_lists_of_results_agree_with_their_names():
    learner = make_learner(metrics=["accuracy"])
    by_name = learner.evaluate((S, Q), verbose=0, return_dict=True)
    names = ["loss", "loss_before", "accuracy", "accuracy_before"]
    assert sorted(learner.metrics_names) == sorted(names) == sorted(by_name)
    listed = learner.evaluate((S, Q), verbose=0)
    assert dict(zip(learner.metrics_names, listed, strict=True)) == pytest.approx(by_name)
    assert learner.test_on_batch((S, Q)) == pytest.approx(listed)
    trained = learner.train_on_batch((S, Q))
    assert dict(zip([*learner.metrics_names, "gradient_norm"], trained, strict=True)) == (
        pytest.approx(by_name | {"gradient_norm": trained[-1]})
    )


def test_evaluation_over_data_of_unknown_length_counts_every_task_once():
    batches = meta_batches(3)
    data = tf.data.Dataset.from_generator(
        lambda: iter(batches), output_signature=tuple(map(spec_of, batches[0]))
    )
    assert data.cardinality() == tf.data.UNKNOWN_CARDINALITY
    learner = make_learner(metrics=["accuracy"])
    joined = tf.nest.map_structure(lambda *arrays: np.concatenate(arrays), *batches)
    expected = learner.evaluate(joined, verbose=0, return_dict=True)
    for _ in range(2):
        found = learner.evaluate(data, verbose=0, return_dict=True)
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow  # several programs
def test_outputs_in_a_list_take_losses_by_name():
    inputs = keras.Input((3,))
    outputs = [keras.layers.Dense(3, name="cls")(inputs), keras.layers.Dense(2, name="reg")(inputs)]
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner = make_learner(
        keras.Model(inputs, outputs),
        {"cls": sparse, "reg": "mse"},
        metrics={"cls": ["accuracy"]},
    )
    halves = tuple((x, {"cls": y, "reg": x[..., :2]}) for x, y in (S, Q))
    result = learner.evaluate(halves, verbose=0, return_dict=True)
    parts = result["cls_loss"] + result["reg_loss"]
    assert result["loss"] == pytest.approx(parts, rel=1e-5)
    assert {"cls_accuracy", "cls_accuracy_before"} <= result.keys()
    learner.fit(halves, verbose=0)


def test_targets_of_another_rank_than_before():
    learner = make_learner(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]), "mse")
    y, y_query = S[0].sum(-1), Q[0].sum(-1)
    with_axis = ((S[0], y[..., None]), (Q[0], y_query[..., None]))
    first = learner.evaluate(with_axis, verbose=0)
    assert learner.evaluate(((S[0], y), (Q[0], y_query)), verbose=0) == pytest.approx(first)


@pytest.mark.parametrize(
    ("episode", "message"),
    [
        (((S[0], S[1] + 1), (Q[0], Q[1] + 1)), r"in 0..2, since the model has 3 .* got 1..3"),
        (((S[0], S[1] * 3), Q), r"Labels of the support set .* got 0..6"),
        (
            ((S[0], np.eye(3)[S[1]]), (Q[0], np.eye(3)[Q[1]])),
            r"must be integers \[tasks, examples\] for a sparse loss",
        ),
        (((S[0], S[1].astype(str)), (Q[0], Q[1].astype(str))), "support set are texts: number"),
        (((S[0][..., :2], S[1]), (Q[0][..., :2], Q[1])), r"shape \(3,\), but x of the support .*2"),
        (((tf.RaggedTensor.from_tensor(S[0]), S[1]), Q), "Ragged tensors cannot be adapted to"),
    ],
)
def test_mistakes_with_labels_and_sizes_are_explained_before_any_work(episode, message):
    learner = make_learner()
    with pytest.raises(ValueError, match=message):
        learner.fit(episode, verbose=0)
    assert int(learner.optimizer.iterations) == 0


@pytest.mark.parametrize("kind", ["Ragged", "Sparse"])
def test_a_dataset_of_tensors_that_are_not_dense_is_explained(kind):
    x = tf.constant(S[0])
    x = tf.RaggedTensor.from_tensor(x) if kind == "Ragged" else tf.sparse.from_dense(x)
    dataset = tf.data.Dataset.from_tensors(((x, S[1]), Q))
    with pytest.raises(ValueError, match=f"{kind} tensors cannot be adapted to"):
        make_learner().fit(dataset, verbose=0)


def test_adapting_to_a_batch_of_tasks_is_explained():
    with pytest.raises(ValueError, match=r"adapt takes the support set of one task, .* or call"):
        make_learner().adapt(*S)


def test_a_learner_without_a_loss():
    learner = MAML(keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)]), 0.1)
    learner.compile("sgd", jit_compile=False)
    with pytest.raises(ValueError, match="no loss to adapt by: compile the learner with a loss"):
        learner.fit((S, Q), verbose=0)


@pytest.mark.parametrize("use", ["fit", "evaluate"])
def test_bad_labels_in_a_later_meta_batch_are_found(use):
    batches = meta_batches(3)
    batches[2][1][1][0, 0] = 7
    data = tf.data.Dataset.from_tensor_slices(
        tf.nest.map_structure(lambda *arrays: np.stack(arrays), *batches)
    )
    message = r"Labels of the query set must be in 0..2, .* got 0..7 in meta-batch 2\. Label the"
    with pytest.raises(ValueError, match=message):
        getattr(make_learner(), use)(data, verbose=0)


def test_bad_labels_of_a_later_task_of_arrays_are_found_before_any_work():
    y = S[1].copy()
    y[3, 0] = 7  # in the last meta-batch of one task
    learner = make_learner()
    with pytest.raises(ValueError, match=r"support set must be in 0..2, .* \(first in task 3\)"):
        learner.fit(((S[0], y), Q), batch_size=1, shuffle=False, verbose=0)
    assert int(learner.optimizer.iterations) == 0


def test_a_stream_within_a_stream_is_known_as_one():
    batch = meta_batches(1)[0]
    spec = tuple(map(spec_of, batch))
    whole = tf.data.Dataset.from_tensors(batch)

    def stream(_):
        return tf.data.Dataset.from_generator(lambda: iter([batch]), output_signature=spec)

    assert not is_stream(whole.map(lambda *halves: halves).prefetch(1))
    assert is_stream(tf.data.Dataset.range(2).flat_map(stream).prefetch(1))
    assert is_stream(tf.data.Dataset.zip(whole, stream(0)))


def test_integers_beyond_the_vocabulary_are_found():
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            keras.layers.Embedding(5, 2),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    x = RANDOM.integers(0, 5, (2, 3, 4)).astype("int32")
    y = RANDOM.integers(0, 3, (2, 3)).astype("int32")
    make_learner(model).fit(((x, y), (x, y)), verbose=0)
    with pytest.raises(ValueError, match=r"query set must hold integers in 0..4, .* got 5..9"):
        make_learner(model).fit(((x, y), (x + 5, y)), verbose=0)


def test_integers_beyond_the_vocabulary_of_one_of_several_inputs_are_found():
    inputs = {name: keras.Input((), name=name, dtype="int32") for name in ("one", "two")}
    embedded = keras.layers.Embedding(5, 3)(inputs["one"])
    model = keras.Model(inputs, embedded + keras.ops.cast(inputs["two"], "float32")[:, None])
    learner = make_learner(model)
    x = {name: np.arange(4, dtype="int32")[None] for name in inputs}
    y = np.zeros((1, 4), "int32")
    more = {**x, "two": x["two"] + 5}  # is not embedded
    learner.fit(((x, y), (more, y)), verbose=0)
    message = r"x\['one'\] of the query set must hold integers in 0..4, .* got 2..5"
    wrong = ((x, y), ({**x, "one": x["one"] + 2}, y))
    for data in (wrong, tf.data.Dataset.from_tensors(wrong)):
        with pytest.raises(ValueError, match=message):
            learner.fit(data, verbose=0)
    with pytest.raises(ValueError, match=r"x\['one'\] of the support set .* got -1..2"):
        learner.adapt({**x, "one": x["one"][0] - 1, "two": x["two"][0]}, y[0])


def test_inputs_in_a_list_may_come_by_name_and_truth_values_be_embedded():
    one, two = keras.Input((), name="one", dtype="bool"), keras.Input((3,), name="two")
    embedded = keras.layers.Embedding(2, 3)(one)
    learner = make_learner(keras.Model([one, two], embedded + two))
    x, y = {"one": np.array([[True, False]]), "two": np.ones((1, 2, 3))}, np.zeros((1, 2), "int32")
    for data in (((x, y), (x, y)), tf.data.Dataset.from_tensors(((x, y), (x, y)))):
        learner.fit(data, verbose=0)
    x["one"] = np.array([[1, 2]])
    with pytest.raises(ValueError, match=r"x\['one'\] of the support set .* 0..1, .* got 1..2"):
        learner.fit(((x, y), (x, y)), verbose=0)


class Joined(keras.layers.Layer):
    def call(self, x):
        return keras.ops.concatenate([x["a"], x["b"]], -1)


def test_a_sequential_model_may_take_several_inputs():
    x, y = {name: np.ones((1, 4, 2)) for name in ("a", "b")}, np.zeros((1, 4), "int32")
    learner = make_learner(keras.Sequential([Joined(), keras.layers.Dense(3)]))
    learner.fit(((x, y), (x, y)), verbose=0)
    assert learner.model.layers[1].kernel.shape == (4, 3)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 2}, "takes batch_size with arrays only, got .*Dataset"),
        ({"sample_weight": S[1]}, "takes sample_weight with arrays only"),
        ({"validation_split": 0.5}, "validation_split needs arrays, got .*Dataset"),
    ],
)
def test_keywords_that_have_no_meaning_for_a_dataset(kwargs, message):
    data = tf.data.Dataset.from_tensors((S, Q))
    with pytest.raises(ValueError, match=message):
        make_learner().fit(data, verbose=0, **kwargs)
