"""Learners on the Hugging Face Hub, by Keras's own paths: ``hf://owner/name``."""

import json
import shutil
import types

import keras
import numpy as np
import pytest

from keras_maml import MAML, cli, networks


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """What Keras calls of huggingface_hub, with a folder in the place of the network."""

    class HfApi:
        def __init__(self, **_):
            pass

        def create_repo(self, repo_id, **_):
            return types.SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, repo_id, folder_path, **_):
            shutil.copytree(folder_path, tmp_path / repo_id, dirs_exist_ok=True)

    def snapshot_download(repo_id, **_):
        return str(tmp_path / repo_id)

    fake = types.SimpleNamespace(HfApi=HfApi, snapshot_download=snapshot_download, ModelCard=None)
    monkeypatch.setattr("keras.src.saving.saving_lib.huggingface_hub", fake)
    return tmp_path


def test_a_learner_comes_back_as_it_was(hub, capsys):
    learner = MAML(networks.sinusoid_regressor(seed=0), 0.02, evaluation_steps=3)
    learner.compile("adam", "mean_squared_error")
    learner.save("hf://somebody/sine")
    assert (hub / "somebody/sine/config.json").is_file()
    again = keras.models.load_model("hf://somebody/sine")
    assert isinstance(again, MAML)
    x = np.linspace(-1, 1, 5, dtype="float32")[:, None]
    np.testing.assert_array_equal(
        again.adapt(x, 2 * x)(x).numpy(), learner.adapt(x, 2 * x)(x).numpy()
    )
    capsys.readouterr()  # what Keras said
    assert cli.main(["info", "hf://somebody/sine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["inner_learning_rate"] == 0.02


def test_without_the_package_the_command_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("keras.src.saving.saving_lib.huggingface_hub", None)
    assert cli.main(["info", "hf://somebody/sine"]) == 1
    assert "huggingface_hub" in capsys.readouterr().err
