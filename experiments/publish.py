"""Publishes the learner of a finished run of image classification as a pretrained one.

    python -m experiments.publish runs/omniglot-5way-1shot omniglot-5way-1shot

Every number on its card is taken from the results of the run. However it was trained, the published
learner normalises inductively; a run that begins with it trains as its own settings say.
"""

import argparse
import json
import math
import pathlib
import string
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tabulate

from experiments.shared.command_line import check_one_process
from experiments.shared.image_settings import Settings
from experiments.shared.report import images as report
from experiments.shared.runs import defaults_of, results_of
from keras_maml import pretrained
from keras_maml.words import counted

FACTS = ("title", "command", "commit", "date", "versions", "data", "licence", "published")
FACTS += ("departures", "train_hours", "iterations_of_best_epoch", "settings")
NEWER_FACTS = ("starts", "images", "images_sha256")  # runs from before these were kept have none
LOADED = "inductive"  # batch normalisation: exported, a learner is asked for one picture at a time

CARD = string.Template("""\
# $name

As it is loaded (inductive, for one picture at a time): $loaded after $steps.

As its run is judged ($mode): $headline

```python
learner = keras_maml.load("$name")
adapted = learner.adapt(x_support, y_support)  # a keras.Model
```

| | |
|---|---|
| task | $ways classes, $support of each |
| images | float32, $images |
| adaptation | $steps of gradient descent, rate $rate |
| weights | $weights |
| command | `$command` |
| commit | $commits |
| training | $iterations meta-iterations, $hours hours with stops; best on validation tasks: $best |
| differs from the full setting | $departures |
| data | $data$checksum |
| licence of the data | $licence |

Accuracy on $tasks test tasks, with the 95 % interval of the mean:

$scores

Transductive batch normalisation takes the statistics of the query images that are classified
together, inductive those of the support images. The learner was trained ${mode}ly and is set to
inductive, with which a picture can be classified alone. The inner loop adapts every weight, also
the offsets (beta) of batch normalisation, which the authors' code only meta-trains.
""")


def publish(
    run: str | pathlib.Path, name: str, folder: str | pathlib.Path | None = None, **options: bool
) -> pathlib.Path:
    """Copies the learner of a run, without its optimizer's state, and writes its card.

    Args:
        run: The folder of the run.
        name: The name of the pretrained learner.
        folder: The folder of all pretrained learners; see `keras_maml.pretrained.models_folder`.
        **options: ``replace``, as in `keras_maml.pretrained.save`.

    Returns:
        The folder that was written.

    Raises:
        FileNotFoundError: The run has not finished.
        FileExistsError: There is a learner of this name.
        ValueError: The run is none of image classification, or the name is a path.
    """
    run = pathlib.Path(run)
    if not pretrained.is_name(name):
        raise ValueError(f"A learner's name must be that of a folder, not a path, got {name!r}.")
    settings = run / "settings.json"
    # Results of other settings are older than the learner: the run was lengthened, or tested anew.
    record = settings.exists() and results_of(
        run, json.loads(settings.read_text()), defaults_of(Settings())
    )
    if not record or not (run / pretrained.LEARNER).exists():
        raise FileNotFoundError(
            f"{run} holds no learner.keras with a results.json of the run's settings: only a run "
            "that has finished can be published. Give its command again to finish it."
        )
    missing = [fact for fact in FACTS if fact not in record]
    if missing:
        raise ValueError(
            f"{run} holds no run of image classification: its results.json has no "
            f"{', '.join(missing)}. Give the folder of such a run."
        )
    learner = keras.models.load_model(run / pretrained.LEARNER)
    learner.batch_normalization = LOADED
    scores = [row for row in record["results"] if row["metric"] == "accuracy"]
    facts = {fact: record[fact] for fact in (*FACTS, *NEWER_FACTS) if fact in record}
    card = {"name": name, **facts, "accuracy": scores}
    path = pretrained.models_folder(folder) / name
    pretrained.save(learner, path, card, _text(card, learner, record), **options)
    return path


def _text(card: Mapping[str, Any], learner: Any, record: Mapping[str, Any]) -> str:
    settings = card["settings"]
    steps = sorted({0, 1, settings["evaluation_steps"], max(r["step"] for r in card["accuracy"])})
    ways = dict.fromkeys((row["batch_normalization"], row["queries"]) for row in card["accuracy"])
    scores = [
        [mode, queries, *(report.percent(report.accuracy(record, s, queries, mode)) for s in steps)]
        for mode, queries in ways
    ]
    shape = " x ".join(str(size) for size in learner.model.input_shape[1:])
    headers = [
        "batch normalisation",
        "query images per class",
        *(counted(s, "step") for s in steps),
    ]
    return CARD.substitute(
        card,
        headline=report.headline(record),
        loaded=report.percent(report.accuracy(record, settings["evaluation_steps"], None, LOADED)),
        ways=settings["ways"],
        support=counted(settings["shots"], "support image"),
        images=card.get("images", f"{shape} in 0 .. 1"),
        commits=report.commits(record),
        checksum=f", SHA-256 {card['images_sha256']}" if "images_sha256" in card else "",
        steps=counted(learner.evaluation_steps, "step"),
        rate=learner.inner_learning_rate,
        weights=f"{sum(math.prod(w.shape) for w in learner.model.trainable_variables):,}",
        iterations=f"{settings['iterations']:,}",
        hours=card["train_hours"],
        best=f"{card['iterations_of_best_epoch']:,.0f}",
        departures="; ".join(card["departures"]) or "-",
        tasks=f"{settings['test_tasks']:,}",
        scores=tabulate.tabulate(scores, headers, tablefmt="github"),
        mode=settings["batch_normalization"],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.publish",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("name", help="name of the pretrained learner")
    parser.add_argument("--folder", help="folder of pretrained learners (default: saved_models)")
    parser.add_argument("--replace", action="store_true", help="replace one of the same name")
    values = parser.parse_args(arguments)
    try:
        check_one_process()
        path = publish(values.run, values.name, values.folder, replace=values.replace)
    except (OSError, ValueError) as error:  # of the user's making: the message says it all
        parser.exit(2, f"{parser.prog}: {error}\n")
    where = "" if values.folder is None else f", folder={values.folder!r}"
    print(f"{path}: keras_maml.load({values.name!r}{where})")


if __name__ == "__main__":
    main()
