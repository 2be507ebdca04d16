"""The paper's networks: sizes, order of layers, initial weights."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_maml import networks

# Convolution: 9 x in x out + out; dense: in x out + out; normalisation: an offset per channel.
CLASSIFIERS = {
    "omniglot": (
        lambda **kw: networks.omniglot_classifier(5, **kw),
        (28, 28, 1),
        (9 * 64 + 64) + 3 * (9 * 64 * 64 + 64) + 4 * 64 + (64 * 5 + 5),
    ),
    "mini-ImageNet": (
        lambda **kw: networks.mini_imagenet_classifier(5, **kw),
        (84, 84, 3),
        (9 * 3 * 32 + 32) + 3 * (9 * 32 * 32 + 32) + 4 * 32 + (5 * 5 * 32 * 5 + 5),
    ),
    "without convolutions": (
        lambda **kw: networks.fully_connected_classifier(5, **kw),
        (28, 28, 1),
        (784 * 256 + 256)
        + (256 * 128 + 128)
        + (128 * 64 + 64)
        + (64 * 64 + 64)
        + (64 * 5 + 5)
        + (256 + 128 + 64 + 64),
    ),
}


@pytest.fixture(params=CLASSIFIERS)
def classifier(request):
    return CLASSIFIERS[request.param]


def test_as_many_weights_as_the_paper_has(classifier):
    make, shape, weights = classifier
    model = make(seed=0)
    assert sum(np.prod(w.shape) for w in model.trainable_variables) == weights
    assert model.input_shape == (None, *shape) and model.output_shape == (None, 5)
    assert model(np.zeros((3, *shape), "float32")).shape == (3, 5)


def test_every_block_normalises_without_a_scale_and_then_rectifies(classifier):
    model = classifier[0](seed=0)
    kinds = [layer for layer in model.layers if not isinstance(layer, layers.MaxPooling2D)]
    for i, layer in enumerate(kinds):
        if isinstance(layer, layers.BatchNormalization):
            assert isinstance(kinds[i - 1], (layers.Conv2D, layers.Dense))
            assert isinstance(kinds[i + 1], layers.ReLU)
            assert layer.gamma is None and layer.epsilon == 1e-3 and layer.center
    assert sum(isinstance(layer, layers.ReLU) for layer in kinds) == 4
    assert isinstance(kinds[-1], layers.Dense) and kinds[-1].activation is keras.activations.linear


def test_the_seed_decides_the_weights(classifier):
    make = classifier[0]
    ours, same, other = (make(seed=seed).get_weights() for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(ours, same, strict=True))
    kernels = [i for i, weight in enumerate(ours) if weight.ndim > 1]
    assert not any(np.array_equal(ours[i], other[i]) for i in kernels)
    alike = [ours[i] for i in kernels if ours[i].shape == ours[kernels[1]].shape]
    assert not any(np.array_equal(alike[0], kernel) for kernel in alike[1:])


def kernels(model):
    return [layer.kernel.numpy() for layer in model.layers if hasattr(layer, "kernel")]


def test_dense_layers_start_with_a_truncated_normal():
    values = np.concatenate([k.ravel() for k in kernels(networks.fully_connected_classifier(5))])
    assert np.abs(values).max() <= 0.02  # two standard deviations
    # The variance of a normal distribution truncated at two standard deviations.
    assert values.std() == pytest.approx(0.01 * np.sqrt(0.77374), rel=0.01)


def test_convolutions_start_with_glorot_uniform_and_the_omniglot_output_with_a_normal():
    omniglot = kernels(networks.omniglot_classifier(20, seed=0))
    mini_imagenet = kernels(networks.mini_imagenet_classifier(20, seed=0))
    for kernel in (*omniglot[:-1], *mini_imagenet):
        fans = kernel.shape[-2] + kernel.shape[-1]
        bound = np.sqrt(6 / (np.prod(kernel.shape[:-2]) * fans))
        assert np.abs(kernel).max() <= bound
        assert kernel.std() == pytest.approx(bound / np.sqrt(3), rel=0.1)
    output = omniglot[-1]
    assert output.std() == pytest.approx(1, rel=4 / np.sqrt(2 * output.size))
    assert np.abs(output).max() > 2
