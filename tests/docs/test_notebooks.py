"""Notebooks are kept with their outputs.

`make test` runs the cells of one here with tiny settings; `make test-all` runs all notebooks as
they are, with nbmake.
"""

import json
import pathlib
import re

import matplotlib.pyplot as plt
import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "docs/notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SMALLER = {"=500": "=5", "epochs=16": "epochs=2"}


def test_the_page_lists_every_notebook():
    page = (FOLDER / "index.md").read_text()
    assert len(NOTEBOOKS) == 3
    assert all(f"({path.name})" in page for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_those_of_one_run_from_top_to_bottom(path):
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    # Every cell that draws has its picture, and no picture bears a path of somebody's machine.
    drawing = [cell for cell in code if "plt.show()" in "".join(cell["source"])]
    for cell in drawing:
        assert any("image/png" in output.get("data", {}) for output in cell["outputs"])
    assert not [o for o in outputs if "/home/" in json.dumps(o) or "/root/" in json.dumps(o)]


def test_notebooks_are_small():
    assert all(path.stat().st_size < 600_000 for path in NOTEBOOKS)


def test_the_cells_run_with_tiny_settings(monkeypatch):
    for variable in ("TF_CPP_MIN_LOG_LEVEL", "KERAS_MAML_CACHE"):  # which they may set
        monkeypatch.setenv(variable, "3")
    cells = json.loads((FOLDER / "sine_curves.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    program = "\n".join(code)
    for text, smaller in SMALLER.items():
        assert text in program
        program = program.replace(text, smaller)
    program = re.sub("^assert .*$", "", program, flags=re.MULTILINE)  # it has learned nothing
    names = {}
    exec(compile(program, "sine_curves", "exec"), names)
    plt.close("all")
    assert len(names["history"]["loss"]) == 2 and names["result"].curve("loss").shape == (11,)
