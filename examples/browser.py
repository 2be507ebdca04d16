"""A learner in the browser: draw five characters, and it recognises them when drawn again.

Run ``python -m examples.browser``; it puts the page together in ``build/browser``, and serves it
there until Ctrl-C. npm fetches LiteRT.js, in the version and with the checksums of
``docs/browser/package-lock.json``.
"""

import argparse
import contextlib
import functools
import http.server
import pathlib
import shutil
import subprocess

import numpy as np

import keras_maml

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "browser"
LEARNER = "omniglot-5way-1shot-drawn"
MOST_STEPS = 5  # of the slider in index.html
LITERT = ("core/package.json", "core/dist/index.js", "wasm-utils/dist/index.js")
# For browsers with all of WebAssembly's vector instructions, and for the others.
LITERT += tuple(
    f"core/wasm/litert_wasm_{kind}.{suffix}"
    for kind in ("internal", "compat_internal")
    for suffix in ("js", "wasm")
)


def build(folder, name=LEARNER):
    """Puts page, LiteRT.js and learner together.

    Args:
        folder: Where to; what is there already is replaced.
        name: Of a pretrained learner for five 28 x 28 images.

    Raises:
        FileNotFoundError: npm is not installed.
        subprocess.CalledProcessError: npm cannot fetch LiteRT.js, or its checksums differ.
    """
    folder = pathlib.Path(folder)
    shutil.copytree(PAGE, folder, dirs_exist_ok=True)
    if shutil.which("npm") is None:
        raise FileNotFoundError("npm fetches LiteRT.js, and is not installed.")
    subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit"], cwd=folder, check=True)
    for file in LITERT:
        source, target = folder / "node_modules" / "@litertjs" / file, folder / "litert" / file
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    shutil.rmtree(folder / "node_modules")
    learner = keras_maml.load(name)
    # The kinds of the arrays become those of the file.
    learner.adapt(np.zeros([5, 28, 28, 1], "float32"), np.arange(5, dtype="int32"))
    learner.export_litert(
        folder / "learner.tflite", steps=MOST_STEPS, every_step=True, overwrite=True
    )


def server(folder, port=8000):
    """Returns a server of the folder on this machine alone."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)


def main():
    """Reads the command line, builds and serves."""
    parser = argparse.ArgumentParser(prog="python -m examples.browser", description=__doc__)
    parser.add_argument("--folder", default="build/browser", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    values = parser.parse_args()
    build(values.folder)
    print(f"http://127.0.0.1:{values.port}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server(values.folder, values.port).serve_forever()


if __name__ == "__main__":
    main()
