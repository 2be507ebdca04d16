"""Datasets of few-shot learning episodes.

Every dataset yields meta-batches ``((x_support, y_support), (x_query, y_query))`` whose arrays have
one leading axis for the tasks. Episode ``i`` of a seed is always the same.
"""

from keras_maml.episodes.arrays import from_arrays
from keras_maml.episodes.class_lists import split_classes
from keras_maml.episodes.glyphs import glyphs, load_glyphs
from keras_maml.episodes.image_classes import ImageClasses
from keras_maml.episodes.image_folder import image_folder, load_image_folder
from keras_maml.episodes.mini_imagenet import load_mini_imagenet, mini_imagenet
from keras_maml.episodes.omniglot import load_omniglot, omniglot
from keras_maml.episodes.sampling import episode_dataset, uniform
from keras_maml.episodes.sinusoid import sinusoid, sinusoid_parameters
from keras_maml.episodes.tasks import from_tasks, load_tasks
from keras_maml.episodes.tfds_sets import from_tfds, load_tfds

__all__ = [
    "ImageClasses",
    "episode_dataset",
    "from_arrays",
    "from_tasks",
    "from_tfds",
    "glyphs",
    "image_folder",
    "load_glyphs",
    "load_image_folder",
    "load_mini_imagenet",
    "load_omniglot",
    "load_tasks",
    "load_tfds",
    "mini_imagenet",
    "omniglot",
    "sinusoid",
    "sinusoid_parameters",
    "split_classes",
    "uniform",
]
