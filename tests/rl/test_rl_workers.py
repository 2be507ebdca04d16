"""Workers train an agent as one process does."""

import keras
import numpy as np
import pytest
from worker_processes import results_of, run_workers


@pytest.mark.slow
def test_two_workers_train_an_agent_as_one_process_does(tmp_path):
    for count in (1, 2):
        run_workers(tmp_path / str(count), count, "agents")
    (one,), two = (results_of(tmp_path / str(count), count) for count in (1, 2))
    moved = [name for name, (info, *_) in one["agents"].items() if info[4]]
    assert {"trust region 0", "proximal 0"} <= {*moved}
    precise = "trust region in float64"
    assert one["agents"][precise][0][4] == 1.0  # accepted
    for of_worker in two:
        for name, expected in one["agents"].items():
            pairs = map(keras.tree.flatten, (of_worker["agents"][name], expected))
            for found, value in zip(*pairs, strict=True):
                tolerance = 1e-9 if name == precise else 1e-5
                np.testing.assert_allclose(found, value, tolerance, tolerance, err_msg=name)
