"""What TensorBoard shows."""

import keras
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from keras_maml import MAML, callbacks, episodes, networks, plots


@pytest.fixture(scope="module")
def log_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    learner = MAML(networks.sinusoid_regressor(seed=0), 0.01, evaluation_steps=2)
    learner.compile("adam", "mean_squared_error", jit_compile=False)
    validation = episodes.sinusoid(meta_batch_size=5, tasks=10, seed=1)
    summary = callbacks.AdaptationSummary(
        folder,
        validation,
        tasks=10,
        figure=lambda learner: plots.sinusoid_adaptation(
            learner, 1.0, 0.0, np.array([[0.5], [1.0]], "float32"), steps=(0, 2)
        ),
        every=3,
    )
    learner.fit(
        episodes.sinusoid(meta_batch_size=5),
        steps_per_epoch=3,
        epochs=5,
        validation_data=validation,
        callbacks=[keras.callbacks.TensorBoard(folder), summary],
        verbose=0,
    )
    return folder


def test_a_run_that_goes_on_and_stops_early_has_its_first_and_last_epoch(tmp_path):
    learner = MAML(networks.sinusoid_regressor(seed=0), 0.01)
    learner.compile("adam", "mean_squared_error", jit_compile=False)
    validation = episodes.sinusoid(meta_batch_size=5, tasks=5, seed=1)
    stop = keras.callbacks.EarlyStopping("loss", min_delta=1e9, patience=2)
    training = episodes.sinusoid(meta_batch_size=5)
    summary = callbacks.AdaptationSummary(tmp_path, validation, tasks=5, every=10)
    learner.fit(
        training,
        steps_per_epoch=1,
        initial_epoch=3,
        epochs=9,
        callbacks=[stop, summary],
        verbose=0,
    )
    events = tags(tmp_path / "adaptation")[0].Tensors("loss by inner step/step 00")
    assert [event.step for event in events] == [3, 5]


def test_what_is_shown_is_the_average_of_the_weights_and_training_is_left_alone(tmp_path):
    validation = episodes.sinusoid(meta_batch_size=5, tasks=10, seed=1)
    seen = []

    def trained(*more):
        learner = MAML(networks.sinusoid_regressor(seed=0), 0.01)
        optimizer = keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.5)
        learner.compile(optimizer, "mean_squared_error", jit_compile=False)
        every = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: seen.append(learner.get_weights())
        )
        learner.fit(
            episodes.sinusoid(meta_batch_size=5),
            steps_per_epoch=2,
            epochs=2,
            callbacks=[*more, every],
            verbose=0,
        )
        return learner.get_weights()

    figure = lambda learner: plots.sinusoid_adaptation(  # noqa: E731
        learner, 1.0, 0.0, np.array([[0.5], [1.0]], "float32"), steps=(0, 1)
    )
    shown = []
    summary = callbacks.AdaptationSummary(
        tmp_path,
        validation,
        tasks=10,
        figure=lambda learner: shown.append(learner.get_weights()) or figure(learner),
    )
    average = trained(summary)
    watched = [*seen]
    seen.clear()
    assert_same(average, trained())
    assert_same(watched, seen)
    assert_same(shown[-1], average)
    assert not np.array_equal(watched[-1][0], average[0])


def assert_same(ours, theirs):
    keras.tree.map_structure(np.testing.assert_array_equal, ours, theirs)


def tags(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    return accumulator, set(accumulator.Tags()["tensors"])


def test_loss_before_and_after_and_the_gradient_norm_are_there(log_dir):
    _, train = tags(log_dir / "train")
    assert {"epoch_loss", "epoch_loss_before", "epoch_gradient_norm"} <= train
    _, validation = tags(log_dir / "validation")
    assert {"epoch_loss", "epoch_loss_before"} <= validation
    assert "epoch_gradient_norm" not in validation


def test_the_graph_is_there(log_dir):
    accumulator, _ = tags(log_dir / "adaptation")
    assert accumulator.Tags()["graph"]
    functions = accumulator.Graph().library.function
    names = {node.name for function in functions for node in function.node_def}
    assert any("sinusoid_regressor" in name and "MatMul" in name for name in names)


def test_every_inner_step_and_a_picture_are_there_from_the_first_epoch_to_the_last(log_dir):
    accumulator, found = tags(log_dir / "adaptation")
    steps = [f"loss by inner step/step {step:02d}" for step in range(3)]
    assert {*steps, "adaptation"} <= found
    for name in (*steps, "adaptation"):
        assert [event.step for event in accumulator.Tensors(name)] == [0, 2, 4]
    png = accumulator.Tensors("adaptation")[0].tensor_proto.string_val[2]
    assert png.startswith(b"\x89PNG")


@pytest.mark.parametrize(("name", "value"), [("every", 0), ("tasks", 0), ("steps", -1)])
def test_settings_out_of_range_are_refused_before_training(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least .*, got {value}"):
        callbacks.AdaptationSummary(tmp_path, episodes.sinusoid(), **{name: value})
