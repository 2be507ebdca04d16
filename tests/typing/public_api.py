"""What a type checker must know of the public API; mypy reads this, nothing runs it.

A call that is wrong must be found: `warn_unused_ignores` fails where mypy does not see it.
"""

import pathlib
from typing import Any, assert_type

import numpy as np
import tensorflow as tf

import keras_maml
from keras_maml import MAML, evaluation, networks, pretrained

assert_type(keras_maml.__version__, str)
assert_type(keras_maml.load("omniglot-5way-1shot"), MAML)
assert_type(keras_maml.load("mine", pathlib.Path("models")), MAML)
assert_type(pretrained.available(), list[str])
assert_type(pretrained.card("omniglot-5way-1shot"), dict[str, Any])
assert_type(pretrained.models_folder(), pathlib.Path)

learner = MAML(networks.sinusoid_regressor(seed=0), inner_learning_rate=0.01, inner_steps=1)
result = evaluation.evaluate(learner, keras_maml.episodes.sinusoid(), tasks=100, steps=2)
assert_type(result, evaluation.Evaluation)
assert_type(result.tasks, int)
assert_type(result.to_text(), str)

classes = keras_maml.episodes.load_image_folder("photos", image_size=(84, 84))
assert_type(classes, keras_maml.episodes.ImageClasses)
assert_type(classes.counts, tuple[int, ...])

keras_maml.load(5)  # type: ignore[arg-type]
MAML(networks.sinusoid_regressor(), inner_steps="one")  # type: ignore[arg-type]
keras_maml.episodes.image_folder("photos")  # type: ignore[call-arg]
keras_maml.episodes.from_arrays(
    np.zeros([60, 8]),
    np.zeros(60),
    way=5,
    shots=1,
    queries=1,
    meta_batch_size=4,  # type: ignore
)
evaluation.evaluate(learner, tf.data.Dataset, tasks="all")  # type: ignore[arg-type]
