"""What depends on the device: how a column is selected, and that every column computes the same."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo

from keras_maml import MAML
from keras_maml.execution import compilation
from keras_maml.execution.placement import GRAPHICS_CARD, PROCESSOR, placement, using
from keras_maml.execution.tasks import Tasks


@pytest.mark.parametrize(("devices", "column"), [([], PROCESSOR), (["GPU:0"], GRAPHICS_CARD)])
def test_the_devices_select_the_column(devices, column, monkeypatch):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: devices)
    assert placement() is column


@pytest.mark.parametrize(
    ("tasks", "task_chunk", "at_once"), [(4, None, True), (5, None, False), (5, 4, True)]
)
def test_patches_of_tasks_at_once_fit_into_a_cards_memory(tasks, task_chunk, at_once):
    size = GRAPHICS_CARD.all_patches // 4
    with using(GRAPHICS_CARD):
        assert Tasks(task_chunk=task_chunk, patch_bytes=size).run_at_once(1, tasks=tasks) == at_once
        assert Tasks(patch_bytes=size).run_at_once(1)
    assert not Tasks(patch_bytes=size).run_at_once(1, tasks=1)


def test_loops_run_at_once_on_a_card():
    assert not Tasks(loops=True).run_at_once(jit_compile=True)
    with using(GRAPHICS_CARD):
        assert Tasks(loops=True).run_at_once(jit_compile=True)


def test_tasks_in_turns_are_one_program_on_a_card(monkeypatch):
    monkeypatch.setattr(compilation, "count_cores", lambda: 2)
    programs = []
    with using(GRAPHICS_CARD):
        compilation.side_by_side(programs.append, tf.ones([4, 1]), None)
    assert len(programs) == 1


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("name", "task_map"),
    [
        ("convolution", "auto"),
        pytest.param("convolution", "sequential", marks=pytest.mark.slow),
        pytest.param("lstm", "sequential", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("jit_compile", [zoo.slow(True), False])
def test_the_columns_give_the_same_meta_gradient(name, task_map, jit_compile):
    case = zoo.CASES[name]
    found = []
    for column in (PROCESSOR, GRAPHICS_CARD):
        # The limits as they are would let both run these small images at once.
        with using(dataclasses.replace(column, task_patches=column.task_patches and 0)):
            keras.utils.set_random_seed(0)
            learner = MAML(case.build(), 0.1, inner_steps=2, task_map=task_map)
            learner.compile("sgd", case.loss, jit_compile=jit_compile)
            found.append(learner.meta_gradients(*zoo.episodes(case, tasks=2)))
    tf.nest.map_structure(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12),
        *found,
    )
