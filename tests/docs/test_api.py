"""The pages of the API show everything that packages give to others."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("package", ["", "episodes", "rl", "rl/environments"])
def test_every_public_class_and_function_is_shown(package):
    name = ".".join(["keras_maml", *filter(None, package.split("/"))])
    tree = ast.parse((ROOT / "keras_maml" / package / "__init__.py").read_text())
    pages = [page.read_text() for page in (ROOT / "docs/api").glob("*.md")]
    shown = set(re.findall(r"^::: (\S+)", "\n".join(pages), re.MULTILINE))
    (public,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
    )
    found = {
        (node.module, alias.name)
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module not in (name, f"{name}.version")
        for alias in node.names
        if alias.name in public
    }
    assert len(found) > 5
    for module, what in sorted(found):
        ways = {module, f"{module}.{what}", f"{name}.{what}"}
        assert ways & shown, f"{module}.{what}"
