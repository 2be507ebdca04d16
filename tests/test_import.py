"""What `import keras_maml` brings in, in a process of its own."""

import subprocess
import sys

import pytest

LATER = ("matplotlib", "tabulate", "tensorflow_datasets", "tqdm", "gymnasium", "tf_agents", "PIL")
"""Packages that are imported when they are used: figures, tables, prepared images, robots."""

COUNT = f"""
import sys
import keras, tensorflow  # they bring in what they like: Keras imports matplotlib and PIL
before = set(sys.modules)
import keras_maml
keras_maml.episodes.glyphs(split="test", tasks=32)
added = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(*sorted(added & {set(LATER)!r}))
"""

WITHOUT = f"""
import sys
sys.modules |= dict.fromkeys({LATER!r})  # not installed, as far as imports can see
import keras, keras_maml
learner = keras_maml.MAML(keras_maml.networks.sinusoid_regressor())
learner.compile("adam", "mse")
print(sorted(name for name in {LATER!r} if sys.modules[name]))
"""


@pytest.mark.parametrize(("code", "expected"), [(COUNT, ""), (WITHOUT, "[]")])
def test_packages_that_only_some_need_are_imported_when_they_are_used(code, expected):
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == expected
