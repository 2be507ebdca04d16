"""What is exported takes the dtypes that the model has, whatever the last examples looked like."""

import keras
import numpy as np
import pytest

from keras_maml import MAML
from keras_maml.serving.personalization import Personalizer

WHOLE = np.array([[1], [2]])


def make_learner(*layers, loss="mse"):
    learner = MAML(keras.Sequential([*layers]), 0.1)
    learner.compile("sgd", loss, jit_compile=False)
    return learner


def dtypes(learner):
    return [leaf.dtype.name for leaf in keras.tree.flatten(learner.support_spec)]


def test_whole_numbers_are_floats_where_inputs_and_outputs_are():
    learner = make_learner(keras.Input((1,)), keras.layers.Dense(1))
    learner.adapt(WHOLE, 2 * WHOLE)
    assert dtypes(learner) == ["float32", "float32"]
    learner.adapt(WHOLE.astype("int16"), WHOLE[:, 0].astype("uint8"))
    assert dtypes(learner) == ["float32", "float32"]  # as it was known to be
    assert [leaf.shape.as_list() for leaf in learner.support_spec] == [[None, 1], [None]]


def test_bytes_are_refused_where_floats_were_learned_from():
    learner = make_learner(keras.Input((1,)), keras.layers.Dense(1))
    images = np.array([[100], [200]], "uint8")
    adapted = learner.adapt(images / 255, WHOLE)
    refused = pytest.raises(ValueError, match="inputs are uint8, .* were float32. Pass x / 255")
    with refused:
        learner.adapt(images, WHOLE)
    with refused:
        learner.predict(((images[None], WHOLE[None]), (images[None],)), verbose=0)
    with refused:
        adapted.predict(images, verbose=0)
    personalizer = Personalizer(learner)
    with refused:
        personalizer.adapt("ada", images, WHOLE)
    personalizer.adapt("ada", images / 255, WHOLE)
    with refused:
        personalizer.predict("ada", images)
    adapted = learner.adapt(images.astype("float32"), WHOLE)  # if that is what is meant
    assert adapted.predict(images / 255, verbose=0).shape == (2, 1)


def test_bytes_tokens_and_classes_stay_what_they_are():
    pictures = make_learner(
        keras.Input((1,)), keras.layers.Dense(3), loss="sparse_categorical_crossentropy"
    )
    pictures.adapt(WHOLE.astype("uint8"), WHOLE[:, 0])
    assert dtypes(pictures) == ["uint8", "int64"]
    tokens = make_learner(keras.Input((1,)), keras.layers.Embedding(3, 1), keras.layers.Flatten())
    tokens.adapt(WHOLE, WHOLE)
    assert dtypes(tokens) == ["int64", "float32"]


def test_classes_after_one_hot_targets_are_classes():
    learner = make_learner(keras.Input((1,)), keras.layers.Dense(2, "softmax"))
    learner.adapt(WHOLE, np.eye(2))
    assert dtypes(learner) == ["float32", "float32"]
    learner.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    learner.adapt(WHOLE, WHOLE[:, 0] - 1)
    assert dtypes(learner) == ["float32", "int64"]


def test_a_model_that_does_not_say_takes_floats_once_it_has_seen_some():
    class Subclass(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x):
            return self.dense(keras.ops.cast(x, "float32"))

    learner = MAML(Subclass(), 0.1)
    learner.compile("sgd", "mse", jit_compile=False)
    expected = []
    for scale in (1, 1.0, 1):
        learner.adapt(WHOLE * scale, WHOLE * scale)
        expected.append(dtypes(learner)[0])
    assert expected == ["int64", "float32", "float32"]
