"""Every Python block of README and docs runs, and every command that they show exists.

The blocks of a page are one program. They run with tiny settings: what is in SMALLER is replaced.
"""

import importlib.util
import json
import pathlib
import re
import runpy
import shlex
import sys

import numpy as np
import pytest
import simple_parsing
from PIL import Image

from keras_maml import cli

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
QUICK = {"docs/guides/batch-normalization.md", "docs/index.md"}
"""Pages whose programs take a few seconds; the others are slow."""
SMALLER = [
    (r"epochs=\d+", "epochs=1"),
    (r"steps_per_epoch=\d+", "steps_per_epoch=2"),
    (r"steps_per_execution=\d+", "steps_per_execution=2"),
    (r"tasks=(80|100|1000)\b", "tasks=8"),
    (r"meta_batch_size=(16|25)", "meta_batch_size=4"),
    # Reinforcement learning
    (r"\b40 \* 20\b", "2 * 3"),
    (r"tasks=40\)", "tasks=2)"),
    (r"steps=200", "steps=5"),
    (r"iterations=\d+", "iterations=1"),
]


def blocks(page, language):
    return [text for kind, text in FENCE.findall(page.read_text()) if kind == language]


def programs():
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        if blocks(page, "python"):
            marks = [] if name in QUICK else [pytest.mark.slow]
            yield pytest.param(page, id=name, marks=marks)


def commands():
    for page in PAGES:
        for text in blocks(page, ""):
            for line in text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] in ("make", "python", "keras-maml"):
                    yield pytest.param(words, id=f"{page.stem}: {' '.join(words[:4])}")


def experiments():
    """The commands of experiments in the text of pages, and those that records say they are of."""
    for page in PAGES:
        for text in re.findall(r"`(python -m experiments\.[^`]+)`", page.read_text()):
            yield " ".join(text.split())
        for text in blocks(page, ""):
            lines = text.replace("\\\n", " ").splitlines()
            yield from (line for line in lines if line.startswith("python -m experiments."))
    for record in (ROOT / "experiments/results").rglob("results.json"):
        command = json.loads(record.read_text()).get("command", "")
        if command.startswith("python -m experiments."):
            yield command


@pytest.fixture
def somewhere(tmp_path, monkeypatch):
    """A working folder with what the programs read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_MAML_CACHE", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)

    def picture(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, [40, 40, 3], "uint8")).save(path)

    for number in range(17):
        for example in range(6):
            picture(tmp_path / f"photos/{number:02}/{example}.png")
    for number in range(5):
        picture(tmp_path / f"new_classes/{number}/1.png")
    picture(tmp_path / "picture.jpg")
    return {
        "images": generator.random([60, 28, 28, 1], "float32"),
        "labels": np.repeat(np.arange(10), 6),
        "x_support": generator.random([5, 28, 28, 1], "float32"),
        "y_support": np.arange(5),
        "x_query": generator.random([7, 28, 28, 1], "float32"),
    }


@pytest.mark.parametrize("page", [*programs()])
def test_the_blocks_of_a_page_run(page, somewhere):
    program = "\n".join(blocks(page, "python"))
    # TF-Agents is imported by keras_maml.rl alone, which gives it the Keras that it needs.
    if "keras_maml.rl" in program and importlib.util.find_spec("tf_agents") is None:
        pytest.skip("the extra 'rl' is not installed")
    for pattern, replacement in SMALLER:
        program = re.sub(pattern, replacement, program)
    exec(compile(program, str(page), "exec"), somewhere)


@pytest.mark.parametrize("words", [*commands()])
def test_the_commands_of_a_page_exist(words):
    match words:
        case ["make", *targets]:
            makefile = (ROOT / "Makefile").read_text()
            for target in targets:
                assert "=" in target or f"\n{target}:" in makefile
        case ["keras-maml", *arguments]:
            assert cli.parser().parse_args(arguments).run
        case ["python", "-m", module, *options]:
            spec = importlib.util.find_spec(module)
            assert spec
            source = _source(spec)
            for option in (word for word in options if word.startswith("--")):
                name = option.removeprefix("--").removeprefix("no-").replace("-", "_")
                assert name in source or name.replace("_", "-") in source, option
        case _:
            pytest.fail(f"Not a command that can be checked: {words}")


def test_the_options_of_experiments_that_are_named_exist(monkeypatch):
    class ParsedError(Exception):
        pass

    def parse(parser, *arguments):
        raise ParsedError(parse_args(parser, *arguments))

    parse_args = simple_parsing.ArgumentParser.parse_args
    monkeypatch.setattr(simple_parsing.ArgumentParser, "parse_args", parse)
    found = sorted(set(experiments()))
    assert len(found) > 80
    for command in found:
        _, _, module, *options = shlex.split(command, comments=True)
        if module != "experiments.publish":  # whose arguments are no options
            monkeypatch.setattr(sys, "argv", [module, *options])
            try:
                with pytest.raises(ParsedError):
                    runpy.run_module(module, run_name="__main__")
            except SystemExit as stopped:
                pytest.fail(f"{command}: {stopped}")


def _source(spec):
    """The text that may define a command's options: its own, and what experiments share."""
    files = [pathlib.Path(spec.origin), *pathlib.Path(spec.origin).parent.rglob("*.py")]
    return "".join(file.read_text() for file in files)
