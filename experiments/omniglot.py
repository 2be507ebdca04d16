"""Omniglot: few-shot classification of handwritten characters (Finn et al. 2017, section 5.2).

    python -m experiments.omniglot --data FOLDER_WITH_THE_ARCHIVES
    python -m experiments.omniglot --ways 20 --shots 5 --first-order
    python -m experiments.omniglot --no-convolutions

FOLDER holds images_background.zip and images_evaluation.zip; without --data they are downloaded.
Ways, shots, network and --first-order choose a row of settings; every other option overrides it.
"""

import keras

from experiments.shared.image_classification import main
from experiments.shared.image_settings import (
    Experiment,
    Published,
    Settings,
    Task,
    with_first_order,
)
from keras_maml import episodes, networks

TWENTY_WAYS = {"ways": 20, "inner_steps": 5, "evaluation_steps": 5, "meta_batch_size": 16}
FIVE_SHOTS = {"shots": 5, "queries": 5, "test_queries": (5, 15)}
IMAGES = "28 x 28 x 1, ink 1 on paper 0"
FIRST_ORDER = "Nichol, Achiam and Schulman 2018 (arXiv 1803.02999), table 2"


def make_network(settings: Settings) -> keras.Model:
    """Returns the network of a run."""
    if not settings.convolutions:
        return networks.fully_connected_classifier(settings.ways, seed=settings.seed)
    return networks.omniglot_classifier(settings.ways, settings.filters, settings.seed)


EXPERIMENT = Experiment(
    name="omniglot",
    title="Omniglot",
    # Rates for a mean over examples: 5 x 0.4 and 20 x 0.1.
    rows=with_first_order(
        (
            Settings(),
            Settings(**FIVE_SHOTS),
            Settings(**TWENTY_WAYS),
            Settings(**TWENTY_WAYS, **FIVE_SHOTS),
            Settings(convolutions=False),
            Settings(convolutions=False, **FIVE_SHOTS),
        ),
        # With 2.0, first order comes to rest where a step saturates: 5-way 1-shot at 83 %.
        inner_learning_rate=0.4,
    ),
    published={
        Task(5, 1): Published(0.987, 0.004),
        Task(5, 5): Published(0.999, 0.001),
        Task(20, 1): Published(0.958, 0.003),
        Task(20, 5): Published(0.989, 0.002),
        Task(5, 1, False): Published(0.897, 0.011),
        Task(5, 5, False): Published(0.975, 0.006),
        Task(5, 1, True, True): Published(0.983, 0.005, FIRST_ORDER),
        Task(5, 5, True, True): Published(0.992, 0.002, FIRST_ORDER),
        Task(20, 1, True, True): Published(0.894, 0.005, FIRST_ORDER),
        Task(20, 5, True, True): Published(0.979, 0.001, FIRST_ORDER),
    },
    make_network=make_network,
    load=episodes.load_omniglot,
    data="Omniglot, test characters (423)",
    licence="MIT (Brenden Lake)",
    images=IMAGES,
    images_per_class=20,
    rotations=True,
    without_data="Omniglot is downloaded (16 MB), unless it was prepared before.",
)

if __name__ == "__main__":
    main(EXPERIMENT, __doc__)
