"""Mini-ImageNet: few-shot classification of photographs (Finn et al. 2017, section 5.2).

    python -m experiments.mini_imagenet --data FOLDER
    python -m experiments.mini_imagenet --data FOLDER --shots 5 --first-order

FOLDER is what `keras_maml.episodes.mini_imagenet` takes; it may be left out once it was prepared.
Shots and --first-order choose a row of settings; every other option overrides it.
"""

import keras

from experiments.shared.image_classification import main
from experiments.shared.image_settings import (
    Experiment,
    Published,
    Settings,
    Task,
    clip_of_mean,
    with_first_order,
)
from experiments.shared.jitter import PHOTOGRAPHS
from keras_maml import episodes, networks

CLIP = 10  # the bound of each element of the authors' meta-gradient
COMMON = {
    "queries": 15,
    "inner_learning_rate": 0.05,  # for a mean over examples: 5 x 0.01
    "inner_steps": 5,
    "evaluation_steps": 10,
    "filters": 32,
    "epoch_iterations": 250,
}


def make_network(settings: Settings) -> keras.Model:
    """Returns the network of a run."""
    ways, seed = settings.ways, settings.seed
    if not settings.convolutions:
        return networks.fully_connected_classifier(ways, (84, 84, 3), seed=seed)
    return networks.mini_imagenet_classifier(ways, settings.filters, seed=seed)


EXPERIMENT = Experiment(
    name="mini_imagenet",
    title="mini-ImageNet",
    rows=with_first_order(
        (
            Settings(**COMMON, meta_batch_size=4, clip_gradient=clip_of_mean(CLIP, 5, 1, 15)),
            Settings(
                **COMMON,
                shots=5,
                meta_batch_size=2,
                clip_gradient=clip_of_mean(CLIP, 5, 5, 15),
                test_queries=(5, 15),
            ),
        )
    ),
    published={
        Task(5, 1): Published(0.4870, 0.0184),
        Task(5, 5): Published(0.6311, 0.0092),
        Task(5, 1, True, True): Published(0.4807, 0.0175),
        Task(5, 5, True, True): Published(0.6315, 0.0091),
    },
    make_network=make_network,
    load=episodes.load_mini_imagenet,
    data="mini-ImageNet, test classes (20)",
    licence="ImageNet's terms: non-commercial research and education",
    images="84 x 84 x 3, RGB in 0 .. 1",
    images_per_class=600,
    jitter=PHOTOGRAPHS,
    clip=CLIP,
)

if __name__ == "__main__":
    main(EXPERIMENT, __doc__)
