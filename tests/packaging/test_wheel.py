"""An installed package is complete: built, unpacked elsewhere, used from elsewhere."""

import os
import pathlib
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

import keras_maml

ROOT = pathlib.Path(__file__).parents[2]

USE = """
import keras_maml, keras, numpy, pathlib
print(keras_maml.__version__, pathlib.Path(keras_maml.__file__).parent)
print(*keras_maml.pretrained.available())
learner = keras_maml.load("omniglot-5way-1shot")
support = numpy.random.default_rng(0).random([5, 28, 28, 1], "float32")
adapted = learner.adapt(support, numpy.arange(5))
print(*adapted.predict(support, verbose=0).argmax(-1))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Builds from a copy: setuptools writes beside what it builds."""
    source, folder = (tmp_path_factory.mktemp(name) for name in ("source", "wheel"))
    for name in ("keras_maml", "saved_models"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    # What someone has exported there stays at home.
    (source / "saved_models/mine/1").mkdir(parents=True)
    (source / "saved_models/mine/1/saved_model.pb").touch()
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, source]
    subprocess.run(command, check=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.mark.slow
def test_an_installed_package_loads_a_learner_and_adapts(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site]
    subprocess.run([*install, wheel], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site), "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment.pop("KERAS_MAML_MODELS", None)
    output = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=elsewhere,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert output[0] == f"{keras_maml.__version__} {site / 'keras_maml'}"
    assert output[1].split() == keras_maml.pretrained.available(ROOT / "saved_models")
    assert output[2] == "0 1 2 3 4"  # every support image is recognised after adaptation


@pytest.mark.slow
def test_a_wheel_holds_types_licence_and_learners_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(n for n in names if n.endswith("METADATA"))).decode()
    assert "keras_maml/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "License-Expression: Apache-2.0" in metadata
    assert {name.split("/")[0] for name in names} == {
        "keras_maml",
        f"keras_maml-{keras_maml.__version__}.dist-info",
    }
    learners = {name.split("/")[2] for name in names if name.startswith("keras_maml/saved_models/")}
    assert learners == {*keras_maml.pretrained.available(ROOT / "saved_models")}
    assert wheel.stat().st_size < 4e6


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" in project["dynamic"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {keras_maml.__version__}\n" in citation
    assert f"## {keras_maml.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_what_make_installs_lies_within_the_ranges():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    for requirement in project["dependencies"]:
        name, oldest = requirement.split(">=")
        assert _numbers(pinned[name]) >= _numbers(oldest), name


def _numbers(version):
    return [int(number) for number in version.split(".")]
