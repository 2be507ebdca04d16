"""Glyphs: few-shot classification of made-up characters, a first experiment that needs no data.

    python -m experiments.glyphs
    python -m experiments.glyphs --shots 5 --output runs/glyphs-mine

Takes a few minutes, and shows what the experiments on Omniglot and mini-ImageNet write.
"""

from experiments import omniglot
from experiments.shared.image_classification import main
from experiments.shared.image_settings import Experiment, Settings, with_first_order
from keras_maml import episodes


def load(folder: None = None, *, split: str = "train") -> episodes.ImageClasses:
    """Returns glyphs, which are drawn and not read from a folder."""
    if folder is not None:
        raise ValueError(f"Glyphs are drawn, not read: leave --data out, got {folder!r}.")
    return episodes.load_glyphs(split)


EXPERIMENT = Experiment(
    name="glyphs",
    title="Glyphs",
    rows=with_first_order(
        (
            Settings(
                filters=32,
                meta_batch_size=8,
                iterations=1_000,
                epoch_iterations=100,
                validation_tasks=80,
                test_tasks=200,
            ),
        )
    ),
    published={},
    make_network=omniglot.make_network,
    load=load,
    data="glyphs, test classes",
    licence="drawn by keras_maml",
    images=omniglot.IMAGES,
    images_per_class=20,
)

if __name__ == "__main__":
    main(EXPERIMENT, __doc__)
