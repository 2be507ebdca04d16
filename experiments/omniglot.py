"""Omniglot: few-shot classification of handwritten characters (Finn et al. 2017, section 5.2).

    python -m experiments.omniglot --data FOLDER_WITH_THE_ARCHIVES
    python -m experiments.omniglot --ways 20 --shots 5 --first-order
    python -m experiments.omniglot --no-convolutions

FOLDER holds images_background.zip and images_evaluation.zip; without --data they are downloaded.
Ways, shots and network choose a row of the paper's table 1; every other option overrides it.
"""

import keras

from experiments.image_classification import Experiment, Published, Settings, main
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
    rows=(
        Settings(),
        Settings(**FIVE_SHOTS),
        Settings(**TWENTY_WAYS),
        Settings(**TWENTY_WAYS, **FIVE_SHOTS),
        Settings(convolutions=False),
        Settings(convolutions=False, **FIVE_SHOTS),
    ),
    published={
        (5, 1, True, False): Published(0.987, 0.004),
        (5, 5, True, False): Published(0.999, 0.001),
        (20, 1, True, False): Published(0.958, 0.003),
        (20, 5, True, False): Published(0.989, 0.002),
        (5, 1, False, False): Published(0.897, 0.011),
        (5, 5, False, False): Published(0.975, 0.006),
        (5, 1, True, True): Published(0.983, 0.005, FIRST_ORDER),
        (5, 5, True, True): Published(0.992, 0.002, FIRST_ORDER),
        (20, 1, True, True): Published(0.894, 0.005, FIRST_ORDER),
        (20, 5, True, True): Published(0.979, 0.001, FIRST_ORDER),
    },
    make_network=make_network,
    load=episodes.load_omniglot,
    data="Omniglot, test characters (423)",
    licence="MIT (Brenden Lake)",
    images=IMAGES,
    rotations=True,
)

if __name__ == "__main__":
    main(EXPERIMENT, __doc__)
