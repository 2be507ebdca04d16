"""The page of examples/browser.py in a real Chromium: drawn on, compared with Python, offline.

Needs Node.js with npm, which fetches puppeteer, and Chromium: ``apt install chromium``, or its
path in ``$CHROMIUM``. With ``-s`` it prints where pictures of the page are, and its measurements.
"""

import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import threading

import numpy as np
import pytest
import tensorflow as tf

import keras_maml
from examples import browser
from experiments.shared import runs
from keras_maml.files import write_json

PUPPETEER = "puppeteer-core@24.8.2"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
SEED = 7
COMMAND = "python -m pytest -s -m slow tests/examples/test_browser.py"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What browser.mjs prints."""
    for name, found in (("Chromium", CHROMIUM), ("npm", shutil.which("npm"))):
        if not found:
            pytest.skip(f"{name} is not installed")
    site, driver = (tmp_path_factory.mktemp(name) for name in ("site", "driver"))
    browser.build(site)
    (driver / "package.json").write_text("{}")
    npm = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", PUPPETEER]
    subprocess.run(npm, cwd=driver, check=True)
    with browser.server(site, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        script = pathlib.Path(__file__).with_name("browser.mjs")
        url = f"http://127.0.0.1:{server.server_port}/"
        done = subprocess.run(
            ["node", script, url, str(SEED), driver],
            cwd=driver,
            env=os.environ | {"CHROMIUM": CHROMIUM},
            capture_output=True,
            text=True,
            timeout=300,
        )
        server.shutdown()
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    how = {"command": COMMAND, "seed": SEED, "learner": browser.LEARNER}
    record = runs.made_with() | how | measured(seen, site)
    write_json(driver / "results.json", record)
    print(f"\n{driver}: {json.dumps(record, indent=1)}")
    return seen


def measured(seen, site):
    """What the page took: medians where there are several."""
    recognised = [q["answer"] == f"It is character {q['character'] + 1}." for q in seen["queries"]]
    wasm = "litert/core/wasm/litert_wasm_internal.wasm"
    files = ("learner.tflite", "litert/core/dist/index.js", wasm)
    return {
        "chromium": seen["chromium"],
        "drawings": len(recognised),
        "recognised": sum(recognised),
        "loss": [float(seen["learned"][when]) for when in ("before", "after")],
        "milliseconds": {
            "until ready": seen["loading"],
            "first adaptation": int(re.search(r"(\d+) ms", seen["learned"]["status"])[1]),
            "adaptation": statistics.median(seen["adaptations"]),
            "prediction": statistics.median(q["milliseconds"] for q in seen["queries"]),
        },
        "bytes": {file: (site / file).stat().st_size for file in files},
    }


def arrays(pixels):
    return np.array(pixels, "float32").reshape(-1, 28, 28, 1)


def test_shapes_drawn_again_are_recognised(seen):
    assert seen["errors"] == []
    assert len(seen["queries"]) == 20  # 15 by mouse, 5 by touch
    for query in seen["queries"]:
        assert query["answer"] == f"It is character {query['character'] + 1}."
    assert float(seen["learned"]["after"]) < 0.2 < 1.2 < float(seen["learned"]["before"])


def test_scores_are_those_of_python(seen):
    learner = keras_maml.load(browser.LEARNER)
    support = arrays(seen["support"]), np.arange(5)
    queries = arrays([query["pixels"] for query in seen["queries"]])
    logits = learner.adapt(*support, steps=3)(queries).numpy()
    np.testing.assert_allclose([q["logits"] for q in seen["queries"]], logits, rtol=0, atol=1e-4)
    scores = tf.nn.softmax(logits)
    np.testing.assert_allclose([q["scores"] for q in seen["queries"]], scores, rtol=0, atol=1e-4)
    before = tf.nn.softmax(learner.adapt(*support, steps=0)(queries[-1:]))[0]
    np.testing.assert_allclose(seen["without"], before, rtol=0, atol=1e-4)


def test_drawings_are_centred_ink_on_paper(seen):
    square = arrays(seen["support"])[4, ..., 0]
    assert square.min() == 0 and square.max() == 1
    assert square[13, 13] == 0 < square[13].max()
    for axis in (0, 1):
        inked = np.flatnonzero(square.any(axis))
        assert abs(inked[0] + inked[-1] - 27) <= 1
        assert 17 <= len(inked) <= 21  # 60 % of the paper, and the pen


def test_a_photograph_is_taken(seen):
    photograph = arrays(seen["photograph"])
    assert photograph.min() < 0.2 and photograph.max() > 0.8


def test_it_works_offline_once_loaded(seen):
    # package.json is there, but the page has had no use for it.
    assert seen["offline"] == {"status": "Draw the first character.", "reached": False}
