"""ONNX files adapt as the learner does, in onnxruntime."""

import keras
import numpy as np
import pytest
import zoo

from keras_maml import MAML

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("tf2onnx", reason="needs the extra onnx")


@pytest.mark.parametrize("name", ["dense", "paper"])
def test_files_adapt_as_the_learner_does(name, tmp_path):
    keras.utils.set_random_seed(2)
    case = zoo.CASES[name]
    learner = MAML(case.build(), 0.3, 2, batch_normalization="inductive")
    learner.compile("sgd", case.loss, run_eagerly=True)
    (x, y), (x_query, _) = zoo.episodes(case, tasks=1)
    expected = learner.predict(((x, y), (x_query,)), verbose=0)[0]
    count, queries = x.shape[1], x_query.shape[1]
    learner.export_onnx(tmp_path / "a", support=count, query=queries)
    adapt, predict = (
        onnxruntime.InferenceSession(str(tmp_path / "a" / f"{name}.onnx"))
        for name in ("adapt", "predict_with")
    )
    support = {"x_support": x[0].numpy(), "y_support": y[0].numpy()}
    (weights,) = adapt.run(["weights"], support)
    (answer,) = predict.run(["predictions"], {"x": x_query[0].numpy(), "weights": weights})
    np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-4)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        learner.export_onnx(tmp_path / "a")
