"""Three minutes of few-shot learning: learn to learn sine curves from ten points.

python -m experiments.demo
"""

import argparse
import sys

import keras

from experiments import sinusoid
from experiments.shared.command_line import as_typed, check_one_process
from experiments.shared.interruption import INTERRUPTION
from experiments.shared.runs import Run
from keras_maml import callbacks, episodes, plots, update_rules
from keras_maml.files import whole, write_text

# The rate of the paper's text: big steps that can be seen.
SETTINGS = sinusoid.Settings(
    methods=("maml",),
    seeds=(0,),
    inner_learning_rate=0.01,
    shots=(10,),
    iterations=20_000,
    epoch_iterations=4_000,
    test_tasks=2_000,
)


def run(output: str, settings: sinusoid.Settings = SETTINGS) -> None:
    """Trains, shows a table and a picture, exports; or shows what is there."""
    this = Run(output, settings)
    folder, log_dir = this.folder, this.folder / "tensorboard"
    if this.results is None:
        learner = sinusoid.make_learner(settings, "maml", seed=0)
        # In ten steps of this size a curve in hundreds would diverge, and hide the mean of all.
        rate = settings.inner_learning_rate
        learner.update_rule = update_rules.GradientDescent(rate, clip_norm=100.0)
        print(
            f"Meta-training a network of {learner.model.count_params():,} weights on sine curves."
        )
        validation = episodes.sinusoid(meta_batch_size=100, seed=sinusoid.VALIDATION, tasks=500)
        this.train(
            learner,
            lambda seen: episodes.sinusoid(start=seen * settings.meta_batch_size),
            iterations=settings.iterations,
            epoch_iterations=settings.epoch_iterations,
            validation_data=validation,
            verbose=1 if sys.stdout.isatty() else 2,  # a bar that moves, or a line per epoch
            callbacks=[
                keras.callbacks.TensorBoard(log_dir),
                callbacks.AdaptationSummary(
                    log_dir, validation, figure=lambda learner: picture(learner)
                ),
            ],
        )
        result = sinusoid.test(learner, settings, 10, "maml")
        plots.save(picture(learner), folder / "adaptation.png")
        with whole(folder / "learner.keras") as temporary:
            learner.save(temporary)
        learner.export(folder / "saved_model" / "1", overwrite=True, verbose=False)
        report = f"Mean squared error on new curves, adapted from 10 points\n{result.to_text()}\n"
        write_text(folder / "results.txt", report)
        this.finish(result.rows(), data="sine curves, test seed 20000")
    print(f"\n{(folder / 'results.txt').read_text()}")
    print(f"picture     {folder / 'adaptation.png'}")
    print(f"learner     {folder / 'learner.keras'}  (keras.models.load_model)")
    print(f"SavedModel  {folder / 'saved_model' / '1'}  (TensorFlow Serving)")
    print(f"TensorBoard {log_dir}  (tensorboard --logdir {log_dir})")


def picture(learner):
    """Draws the adaptation to the first test curve."""
    return sinusoid.example(learner, 10, "MAML, 10 points")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", default="runs/demo", help="folder of the run")
    output = parser.parse_args().output
    try:
        check_one_process()
        with INTERRUPTION.continuable(as_typed):
            run(output)
    except (ValueError, OSError) as error:  # of the user's making: the message says it all
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
