"""The command line: what can be done with a learner without writing Python.

    keras-maml info                                        # the pretrained learners
    keras-maml info omniglot-5way-1shot
    keras-maml evaluate omniglot-5way-1shot glyphs --tasks 200
    keras-maml adapt omniglot-5way-1shot letters/ --predict a.png b.png
    keras-maml export omniglot-5way-1shot served/omniglot/1
    keras-maml serve omniglot-5way-1shot --store customers.sqlite
    keras-maml demo

LEARNER is the name of a pretrained learner, or a .keras file, or a folder that holds learner.keras
and card.json, or hf://owner/name on the Hugging Face Hub. Exit codes: 0 done, 1 failed, 2 wrong
usage, 130 interrupted.
"""

import argparse
import contextlib
import json
import math
import os
import pathlib
import sys
import urllib.parse
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_maml import episodes, networks
from keras_maml.algorithm.objective import BATCH_NORMALIZATIONS
from keras_maml.episodes.image_files import decode, resize
from keras_maml.files import whole
from keras_maml.learners.adapted import HUB
from keras_maml.learners.checks import names_of_loss
from keras_maml.learners.maml import MAML
from keras_maml.private_keras import inputs_of
from keras_maml.serving import pretrained
from keras_maml.serving.signatures import plain
from keras_maml.version import __version__

Report = dict[str, Any]
DATA = "glyphs, sinusoid, omniglot[:FOLDER], mini-imagenet[:FOLDER], or a folder of classes"
INK = "images are inverted first: for dark ink on white paper, where the learner expects ink 1"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: What follows the name of the program; by default what was typed.

    Returns:
        The exit code: 0 done, 1 failed, 130 interrupted. Wrong usage exits with 2.

    Example:
        >>> main(["info", "no-such-learner"])
        1
    """
    values = parser().parse_args(arguments)
    try:
        # What libraries print is no result; where a warning is raised is no user's business.
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: _say(message)
            report, text = values.run(values)
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        _say(error)  # The message says it all.
        return 1
    except KeyboardInterrupt:
        return 130
    print(json.dumps(report, indent=1, default=str) if values.json else text)
    return 0


def _say(message: Warning | Exception) -> None:
    print(f"keras-maml: {message}", file=sys.stderr)


# --- commands: each returns what --json prints, and the same to read --------------------------


def _info(values: argparse.Namespace) -> tuple[Report, str]:
    if values.learner is None:
        names = pretrained.available()
        return {"learners": names}, "\n".join(names)
    learner, card = _load(values.learner)
    inputs, outputs = _shapes(learner)
    report = {
        "learner": values.learner,
        "title": card.get("title"),
        "inputs": inputs,
        "outputs": outputs,
        "weights": sum(math.prod(weight.shape) for weight in learner.model.trainable_variables),
        "inner_learning_rate": learner.inner_learning_rate,
        "inner_steps": learner.inner_steps,
        "evaluation_steps": learner.evaluation_steps,
        "batch_normalization": learner.batch_normalization,
        "images": card.get("images"),
        "data": card.get("data"),
        "licence": card.get("licence"),
        "command": card.get("command"),
        "commit": card.get("commit"),
        "accuracy": card.get("accuracy", []),
    }
    lines = [
        f"{name.replace('_', ' '):20} {value}"
        for name, value in report.items()
        if name != "accuracy" and value is not None
    ]
    for row in report["accuracy"]:
        if row["step"] in (0, learner.evaluation_steps):
            what = f"{row['batch_normalization']}, {row['queries']} queries, step {row['step']}"
            value = f"{100 * row['mean']:.2f} ± {100 * row['ci95']:.2f} %, {row['tasks']} tasks"
            lines.append(f"{'accuracy':20} {value} ({what})")
    return report, "\n".join(lines)


def _evaluate(values: argparse.Namespace) -> tuple[Report, str]:
    from keras_maml.reporting import evaluation

    learner, card = _load(values.learner)
    result = evaluation.evaluate(
        learner, _episodes(values, learner, card), tasks=values.tasks, steps=values.steps
    )
    report = {"learner": values.learner, "data": values.data, "results": result.rows()}
    return report, result.to_text()


def _adapt(values: argparse.Namespace) -> tuple[Report, str]:
    output = values.output and pathlib.Path(values.output)
    if output and (output.is_dir() or not output.parent.is_dir()):
        raise FileNotFoundError(f"{output} cannot be a file: name one in a folder that is there.")
    learner, _ = _load(values.learner)
    height, width, channels = _image_shape(learner)
    most = _ways(learner)
    classes = _folder(values.folder, learner, values.invert)
    if len(classes.names) > most:
        raise ValueError(
            f"{values.folder} holds {len(classes.names)} classes, but {values.learner} tells "
            f"{most} apart: take a learner for more, or leave classes out."
        )
    pictures = [
        resize(decode(path.read_bytes(), channels=channels, where=str(path)), (height, width))
        for path in map(pathlib.Path, values.predict)
    ]
    x = _scaled(classes.images, False)
    labels = np.repeat(np.arange(len(classes.names)), classes.counts)
    loss = names_of_loss(learner.loss)
    if "categorical" in loss and "sparse" not in loss:
        labels = np.eye(most, dtype="float32")[labels]
    how = _normalization(values)
    adapted = learner.adapt(x, labels, steps=values.steps, batch_normalization=how)
    queries = _scaled(np.stack(pictures), values.invert) if pictures else x
    scores = adapted.predict(queries, verbose=0)
    if not np.isfinite(scores).all():
        raise FloatingPointError(
            "The adapted model predicts what is not finite: take fewer --steps, or pictures like "
            "those that the learner was trained with."
        )
    if output:
        with whole(output) as temporary:
            adapted.save(temporary)
    chances = _probabilities(scores, len(classes.names))
    predictions = [
        {
            "picture": path,
            "class": classes.names[row.argmax()],
            "probability": float(row.max()),
            "probabilities": dict(zip(classes.names, row.tolist(), strict=True)),
        }
        for path, row in zip(values.predict, chances, strict=False)  # no pictures, no rows
    ]
    report = {
        "learner": values.learner,
        "classes": dict(zip(classes.names, classes.counts, strict=True)),
        "predictions": predictions,
        "output": values.output,
    }
    lines = [f"{p['picture']}: {p['class']} ({p['probability']:.0%})" for p in predictions]
    lines += [f"The adapted model is in {values.output}."] if values.output else []
    nothing = f"Adapted to {', '.join(sorted(classes.names))}; --predict and --output say what for."
    return report, "\n".join(lines) or nothing


def _probabilities(scores: np.ndarray, classes: int) -> np.ndarray:
    """Returns probabilities ``[pictures, classes]`` of the first classes of scores."""
    known = scores[:, :classes]
    if (scores >= 0).all() and np.allclose(scores.sum(-1), 1, atol=1e-3):  # they are such already
        return known / np.maximum(known.sum(-1, keepdims=True), np.finfo(known.dtype).tiny)
    return np.asarray(keras.ops.softmax(known))


def _export(values: argparse.Namespace) -> tuple[Report, str]:
    learner, _ = _load(values.learner)
    options = {"steps": values.steps, "overwrite": values.overwrite, "verbose": False}
    how = values.batch_normalization
    learner.export(values.folder, batch_normalization=how, **options)
    return {"learner": values.learner, "folder": values.folder}, f"Exported to {values.folder}"


def _serve(values: argparse.Namespace) -> tuple[Report, str]:
    from keras_maml.serving import addresses, server, stores
    from keras_maml.serving.personalization import Personalizer

    # The folder above a version's is needed, which the path may leave to the working folder.
    path = pathlib.Path(os.path.abspath(pathlib.Path(values.learner).expanduser()))
    own_name = path.parent.name if path.name.isdecimal() else path.name.removesuffix(".keras")
    name = own_name if values.name is None else values.name
    token = values.token_file and pathlib.Path(values.token_file).read_text().strip()
    server.check(values.host, values.port, values.grpc_port, token, name)
    store = stores.MemoryStore() if values.store is None else stores.SQLiteStore(values.store)
    if (path / "saved_model.pb").is_file():  # which has its steps and its normalisation
        if values.steps is not None or values.transductive:
            raise ValueError("A SavedModel keeps the steps and the normalisation it was given.")
        personalizer = Personalizer(path, store, half_precision=values.half_precision)
    else:
        learner, _ = _load(values.learner)
        personalizer = Personalizer(
            learner,
            store,
            half_precision=values.half_precision,
            steps=values.steps,
            batch_normalization=_normalization(values),
        )
    at = addresses.address(values.host, values.port)
    where = f"http://{at}/v1/models/{urllib.parse.quote(name)}"
    print(f"Serving {where} ...", file=sys.stderr, flush=True)
    server.serve(
        personalizer,
        host=values.host,
        port=values.port,
        grpc_port=values.grpc_port,
        token=token,
        name=name,
    )
    return {"learner": values.learner, "url": where}, f"Served {where}"


def _demo(values: argparse.Namespace) -> tuple[Report, str]:
    from keras_maml.reporting import evaluation, plots

    folder = pathlib.Path(values.output)
    folder.mkdir(parents=True, exist_ok=True)
    learner = MAML(networks.sinusoid_regressor(seed=0), 0.01, inner_steps=1, evaluation_steps=10)
    loss, together = keras.losses.MeanSquaredError(), min(500, values.iterations)
    learner.compile(keras.optimizers.Adam(0.001), loss, steps_per_execution=together)
    print(f"Meta-training on sine curves, {values.iterations:,} steps ...", file=sys.stderr)
    seen = int(sys.stderr.isatty())  # a bar, where somebody looks
    learner.fit(episodes.sinusoid(), steps_per_epoch=values.iterations, verbose=seen)
    new: dict[str, Any] = {"shots": 10, "queries": 100, "seed": 20_000}
    result = evaluation.evaluate(
        learner, episodes.sinusoid(meta_batch_size=100, **new), tasks=500, steps=10
    )
    (x_support, _), _ = next(iter(episodes.sinusoid(meta_batch_size=1, **new)))
    curve = episodes.sinusoid_parameters(seed=new["seed"], indices=np.arange(1))
    amplitude, phase = (float(parameter[0]) for parameter in curve)
    figure = plots.sinusoid_adaptation(learner, amplitude, phase, x_support[0].numpy())
    plots.save(figure, folder / "adaptation.png")
    learner.save(folder / "learner.keras")
    files = [str(folder / name) for name in ("adaptation.png", "learner.keras")]
    report = {"files": files, "results": result.rows()}
    title = "Mean squared error on new curves, from 10 points:"
    return report, "\n".join([title, result.to_text(), *files])


# --- learners and data ------------------------------------------------------------------------


def _load(learner: str) -> tuple[MAML, Report]:
    """Returns a learner by name, file or folder, and its card."""
    path = pathlib.Path(learner).expanduser()
    on_hub = learner.startswith(HUB)
    if on_hub or path.is_file():
        found = pretrained.read(learner if on_hub else path)
        if not isinstance(found, MAML):
            raise ValueError(f"{learner} holds a {type(found).__name__}, not a learner.")
        return found, {}
    if (path / pretrained.LEARNER).is_file():
        folder = path.resolve()
        if (folder / pretrained.CARD).is_file():
            return pretrained.load(folder.name, folder.parent), pretrained.card(
                folder.name, folder.parent
            )
        return _load(str(path / pretrained.LEARNER))
    if not pretrained.is_name(learner):
        raise FileNotFoundError(
            f"There is no learner {learner}: it is no file, and no folder that holds "
            f"{pretrained.LEARNER}. Names of pretrained ones: keras-maml info."
        )
    return pretrained.load(learner), pretrained.card(learner)


def _normalization(values: argparse.Namespace) -> str:
    """Returns how queries are normalised: unless asked for, none depends on the others."""
    return "transductive" if values.transductive else "inductive"


def _episodes(values: argparse.Namespace, learner: MAML, card: Report) -> Any:
    name, _, folder = values.data.partition(":")
    settings = card.get("settings", {})
    shots = values.shots or settings.get("shots", 10 if name == "sinusoid" else 1)
    queries = values.queries or 15
    common = {"shots": shots, "meta_batch_size": min(8, values.tasks), "seed": values.seed}
    if name == "sinusoid":
        return episodes.sinusoid(queries=queries, **common)
    rotations = name == "omniglot"  # as the paper tests
    if name == "glyphs":
        classes = episodes.load_glyphs(values.split)
    elif name == "omniglot":
        classes = episodes.load_omniglot(folder or None, split=values.split)
    elif name == "mini-imagenet":
        classes = episodes.load_mini_imagenet(folder or None, split=values.split)
    elif not pathlib.Path(values.data).exists():
        raise FileNotFoundError(f"There are no data {values.data}: expected {DATA}.")
    else:
        classes = _folder(values.data, learner, values.invert)
    if values.queries is None:  # as many as the smallest class leaves
        queries = max(1, min(queries, min(classes.counts) - shots))
    return classes.episodes(
        ways=_ways(learner), queries=queries, where=values.data, rotations=rotations, **common
    )


def _folder(path: str, learner: MAML, invert: bool) -> episodes.ImageClasses:
    height, width, channels = _image_shape(learner)
    classes = episodes.load_image_folder(
        path, image_size=(height, width), channels=channels, fractions=(1, 0, 0)
    )
    if not invert:
        return classes
    return episodes.ImageClasses(255 - classes.images, classes.names, classes.counts)


def _scaled(images: np.ndarray, invert: bool) -> np.ndarray:
    scaled = images / np.float32(255)
    return 1 - scaled if invert else scaled


def _image_shape(learner: MAML) -> tuple[int, int, int]:
    shape, _ = _shapes(learner)
    if not _is_known(shape, 3):
        raise ValueError(
            f"The learner takes {shape or 'what is unknown yet'}, not images of one size."
        )
    return tuple(shape)


def _ways(learner: MAML) -> int:
    _, shape = _shapes(learner)
    if not _is_known(shape, 1) or shape[0] < 2:
        raise ValueError(
            f"The learner gives {shape or 'what is unknown yet'}, not one score for each class."
        )
    return shape[0]


def _is_known(shape: Any, rank: int) -> bool:
    sizes = shape if isinstance(shape, list) else []
    return len(sizes) == rank and all(isinstance(size, int) for size in sizes)


def _shapes(learner: MAML) -> tuple[Any, Any]:
    """Returns the shapes of one example's inputs and outputs, or nests; None if still unknown."""
    model, seen = learner.model, learner.support_spec
    if inputs_of(model) is not None:
        shapes = model.input_shape, model.output_shape
    elif seen is None:
        return None, None
    else:  # a class of its own, which knows no shapes but those of its calls
        x = keras.tree.map_structure(lambda t: keras.KerasTensor(t.shape, t.dtype.name), seen[0])
        tensors = x, model.compute_output_spec(plain(x))
        shapes = keras.tree.map_structure(lambda tensor: tuple(tensor.shape), tensors)
    return keras.tree.map_shape_structure(lambda shape: list(shape[1:]), shapes)


# --- parsing ----------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Returns what reads the command line; its results name the function to ``run``."""
    top = argparse.ArgumentParser(
        prog="keras-maml",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        sub.add_argument("--json", action="store_true", help="print JSON instead of text")
        sub.set_defaults(run=run)
        return sub

    info = command("info", _info, "shows a learner's card, shapes and accuracy, or which there are")
    info.add_argument("learner", nargs="?", metavar="LEARNER")

    evaluate = command("evaluate", _evaluate, "adapts to many tasks and measures every step")
    evaluate.add_argument("learner", metavar="LEARNER")
    evaluate.add_argument("data", metavar="DATA", help=DATA)
    evaluate.add_argument("--tasks", type=_count, default=600, help="default: %(default)s")
    text = "support examples of each class; default: those of its training, or 1, of curves 10"
    evaluate.add_argument("--shots", type=_count, help=text)
    text = "query examples of each class; default: at most 15"
    evaluate.add_argument("--queries", type=_count, help=text)
    evaluate.add_argument("--seed", type=int, default=0, help="which episodes")
    splits = ("train", "validation", "test")
    evaluate.add_argument("--split", choices=splits, default="test", help="not of a folder")

    adapt = command("adapt", _adapt, "adapts to the classes of a folder and classifies pictures")
    adapt.add_argument("learner", metavar="LEARNER")
    adapt.add_argument("folder", metavar="FOLDER", help="a folder of images for each class")
    adapt.add_argument("--predict", nargs="+", default=[], metavar="PICTURE")
    adapt.add_argument(
        "--output", type=_file, metavar="FILE.keras", help="where to save the adapted model"
    )
    text = "normalise the pictures by their own statistics, all together, as in the paper"
    adapt.add_argument("--transductive", action="store_true", help=text)

    export = command("export", _export, "writes a SavedModel that adapts where it is served")
    export.add_argument("learner", metavar="LEARNER")
    export.add_argument("folder", metavar="FOLDER", help="such as served/omniglot/1")
    export.add_argument("--overwrite", action="store_true", help="replace one that is there")
    text = "of the queries; inductive if they come one by one; default: the learner's own"
    choices = BATCH_NORMALIZATIONS
    export.add_argument("--batch-normalization", choices=choices, help=text)

    serve = command("serve", _serve, "answers as TensorFlow Serving does, and keeps customers")
    serve.add_argument("learner", metavar="LEARNER", help="or the folder of an exported one")
    serve.add_argument("--store", metavar="FILE.sqlite", help="customers; default: in memory")
    serve.add_argument("--half-precision", action="store_true", help="keep customers as float16")
    serve.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    serve.add_argument("--port", type=_port, default=8501, help="default: %(default)s")
    serve.add_argument("--grpc-port", type=_port, metavar="PORT", help="default: no gRPC")
    serve.add_argument("--name", help="of the model in paths; default: the learner's")
    serve.add_argument("--token-file", metavar="FILE", help="holds what clients must know")
    text = "normalise the queries of a request by their own statistics, as in the paper"
    serve.add_argument("--transductive", action="store_true", help=text)

    for sub in (evaluate, adapt, export, serve):
        sub.add_argument("--steps", type=int, help="inner steps; default: the learner's own")
    for sub in (evaluate, adapt):
        sub.add_argument("--invert", action="store_true", help=INK)

    demo = command("demo", _demo, "meta-trains on sine curves and draws how it adapts")
    demo.add_argument("--output", default="demo", help="folder; default: %(default)s")
    demo.add_argument("--iterations", type=_count, default=20_000, help="default: %(default)s")
    return top


def _port(text: str) -> int:
    if _count(text) > 65_535:
        raise argparse.ArgumentTypeError(f"must be at most 65535, got {text}")
    return int(text)


def _file(text: str) -> str:
    if not text.endswith(".keras"):
        raise argparse.ArgumentTypeError(f"must end with .keras, got {text!r}")
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return int(text)
