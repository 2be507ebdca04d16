"""Importing the package gives TF-Agents its Keras, or says what to do."""

import subprocess
import sys

import pytest

SCRIPT = """
import importlib.util
import sys
import types

import keras
import tensorflow as tf

import keras_maml

# The core needs none of it.
EXTRA = {"tf_agents", "tf_keras", "tensorflow_probability", "gymnasium", "mujoco"}
assert not EXTRA & set(sys.modules), EXTRA & set(sys.modules)
assert "keras_maml.rl" not in sys.modules


def error():
    try:
        import keras_maml.rl
    except ImportError as error:
        return str(error)
    return ""


# Packages that are not installed.
real, missing = importlib.util.find_spec, {"tf_agents", "gymnasium"}
importlib.util.find_spec = lambda name, *rest: None if name in missing else real(name, *rest)
message = error()
assert "needs tf_agents, gymnasium, which is not installed" in message, message
assert "pip install 'keras-maml[rl]'" in message, message
importlib.util.find_spec = real

# Packages that were imported with the wrong Keras.
for name in ("tensorflow_probability", "tf_agents"):
    stand_in = types.ModuleType(name)
    stand_in.__spec__ = real(name)
    sys.modules[name] = stand_in
message = error()
for part in (
    "tf_agents and tensorflow_probability was imported while tf.keras was Keras 3",
    "Import keras_maml.rl first",
    "TF_USE_LEGACY_KERAS=1",
):
    assert part in message, message
assert tf.keras.layers.Layer.__module__.startswith("keras")  # nothing has changed
for name in ("tensorflow_probability", "tf_agents"):
    del sys.modules[name]

# Failed imports leave nothing behind.
assert error() == ""
from tf_agents.networks import sequential

assert keras.__version__.startswith("3.")
assert tf.keras.__version__.startswith("2.") and tf.compat.v2.keras is tf.keras
network = sequential.Sequential([tf.keras.layers.Dense(3)], tf.TensorSpec([2]))
network.create_variables()
assert len(network.trainable_variables) == 2
print("done")
"""


WITHOUT_MUJOCO = """
import sys

sys.modules["mujoco"] = None  # importing it raises ImportError

import gymnasium
import numpy as np

import keras_maml.rl as rl
from keras_maml.rl import film  # noqa: F401

environments = rl.environments.TaskVectorEnv("Navigation2D-v0", 4, horizon=3)
environment = rl.environments.TaskPyEnvironment(environments)
agent = rl.MetaPolicyGradientAgent(
    *rl.tensor_specs(environment), rl.gaussian_policy(2, 2, (3,)), tasks=2, jit_compile=False
)
sampler = rl.Sampler(environment, agent.collect_policy)
rl.meta_iteration(agent, sampler, environment.sample_tasks(2, seed=0), 0)
for make in (rl.environments.TaskEnv, rl.environments.TaskVectorEnv, gymnasium.make):
    try:
        make("keras_maml/AntVelocity-v0")
    except ImportError as error:
        assert "need MuJoCo 4" in str(error) and "'keras-maml[rl,mujoco]'" in str(error), error
    else:
        raise AssertionError(make)
print("done")
"""


def run(script):
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "done"


@pytest.mark.slow
def test_only_robots_need_mujoco():
    run(WITHOUT_MUJOCO)


def test_import_in_a_process_of_its_own():
    run(SCRIPT)
