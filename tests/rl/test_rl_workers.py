"""Workers train an agent as one process does."""

import re

import keras
import numpy as np
import pytest
from worker_processes import results_of, run_workers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("agents", "moved", "tolerance"),
    [
        ("agents", {"trust region 0", "proximal 0"}, 1e-5),
        ("precise agents", {"trust region 0"}, 1e-9),
    ],
)
def test_two_workers_train_an_agent_as_one_process_does(tmp_path, agents, moved, tolerance):
    for count in (1, 2):
        run_workers(tmp_path / str(count), count, agents)
    (one,), two = (results_of(tmp_path / str(count), count) for count in (1, 2))
    assert moved <= {name for name, (info, *_) in one[agents].items() if info[4]}
    for of_worker in two:
        for name, expected in one[agents].items():
            pairs = map(keras.tree.flatten, (of_worker[agents][name], expected))
            for found, value in zip(*pairs, strict=True):
                np.testing.assert_allclose(found, value, tolerance, tolerance, err_msg=name)


@pytest.mark.slow
def test_two_workers_go_on_from_a_folder_as_one_process_does(tmp_path):
    """Whether their agents are new or have trained elsewhere; and refuse another run together."""
    case = "agents in a folder"
    run_workers(tmp_path / "1", 1, case)
    printed = run_workers(tmp_path / "2", 2, case)
    (one,), two = (results_of(tmp_path / str(count), count) for count in (1, 2))
    for of_worker in two:
        for name, expected in one[case].items():
            for found, value in zip(of_worker[case][name], expected, strict=True):
                np.testing.assert_allclose(found, value, 1e-4, 1e-5, err_msg=name)
    for text in printed:
        assert re.search(r"Workers differ in seed: \['0', '1'\]", text)
    told = r"holds a run with other settings \(seed: 0 there, 1 asked for\)"
    assert re.search(f"ValueError: .*{told}", printed[0])
    assert re.search(f"WorkersError: Worker 0 failed with ValueError: .*{told}", printed[1])
