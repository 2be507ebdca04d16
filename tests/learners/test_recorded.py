"""Losses, meta-gradients, trained weights and predictions are those of an earlier formulation.

recorded.npz was written by the code before update rules, meta-gradients and what adapts became
parts (commit b4d73b5), in float64, with two inner steps. Here they are computed eagerly, which is
far cheaper than four traces a model; that programs compute the same is tested in algorithm/.
"""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo

from keras_maml import MAML

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(scope="module")
def recorded():
    with np.load(pathlib.Path(__file__).with_name("recorded.npz")) as arrays:
        return dict(arrays)


def flat(tensors):
    return np.concatenate([np.ravel(np.asarray(tensor)) for tensor in tensors])


# In first order only one model of each kind of state: the exact gradient is of the same losses.
LATE = (*zoo.SLOW, "convolution", "normalization", "lstm", "attention", "transposed_convolution")
FIRST_ORDER = ("dense", "dropout", "regularized")
CASES = [(name, "exact", name in LATE) for name in zoo.CASES]
CASES += [(name, "first_order", name not in FIRST_ORDER) for name in zoo.CASES]


@pytest.mark.parametrize(
    ("name", "kind"),
    [zoo.slow_if(late, name, kind) for name, kind, late in CASES],
)
def test_results_are_those_recorded(name, kind, recorded):
    case = zoo.CASES[name]
    learner = MAML(
        case.build(),
        inner_learning_rate=0.3,
        inner_steps=2,
        meta_gradient=kind,
    )
    # The gradients of these convolutions are slow one operation at a time.
    options = {"jit_compile": False} if name == "other_convolutions" else {"run_eagerly": True}
    learner.compile(keras.optimizers.Adam(0.01), case.loss, **options)
    episode = zoo.episodes(case)
    loss, gradients = learner.meta_gradients(*episode)
    for _ in range(2):
        logs = learner.train_on_batch(episode, return_dict=True)
    found = {
        "loss": [loss, logs["loss"], logs["loss_before"], logs["gradient_norm"]],
        "gradients": flat(gradients),
        "weights": flat(learner.trainable_variables),
        "predictions": flat(tf.nest.flatten(learner.predict_on_batch(episode))),
    }
    for what, values in found.items():
        expected = recorded[f"{name}/{kind}/{what}"]
        np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-9, err_msg=what)
