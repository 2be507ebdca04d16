"""The exact meta-gradient is exact for every layer, activation and loss of Keras, or refused.

Each is put into a small model in float64; the meta-gradient after two inner steps is compared with
finite differences. What cannot be compared is listed, with the reason.
"""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_maml import MAML
from keras_maml.execution.derivatives import MissingDerivative, naming_layers

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("float64")]

VECTOR, SERIES, IMAGE, VOLUME = (4,), (4, 3), (4, 4, 3), (2, 4, 4, 2)

# For each layer how it is made, and the shape of its input.
LAYERS = {
    "Dense": ("Dense", {"units": 3}, VECTOR),
    "Rescaling": ("Rescaling", {"scale": 0.5}, VECTOR),
    **{name: (name, {}, VECTOR) for name in ("ELU", "Identity", "LeakyReLU", "PReLU")},
    **{name: (name, {}, VECTOR) for name in ("ReLU", "Softmax", "LayerNormalization", "Flatten")},
    **{name: (name, {}, VECTOR) for name in ("RMSNormalization", "UnitNormalization")},
    "BatchNormalization": ("BatchNormalization", {}, VECTOR),
    "GroupNormalization": ("GroupNormalization", {"groups": 2}, VECTOR),
    "ActivityRegularization": ("ActivityRegularization", {"l2": 0.1}, VECTOR),
    "EinsumDense": ("EinsumDense", {"equation": "ab,bc->ac", "output_shape": 3}, VECTOR),
    "RepeatVector": ("RepeatVector", {"n": 2}, VECTOR),
    "Reshape": ("Reshape", {"target_shape": (2, 2)}, VECTOR),
    "Permute": ("Permute", {"dims": (2, 1)}, SERIES),
    "Masking": ("Masking", {}, SERIES),
    **{
        f"{k}{n}": (f"{k}{n}", {"pool_size": 2}, s)
        for k in ("MaxPooling", "AveragePooling")
        for n, s in (("1D", SERIES), ("2D", IMAGE), ("3D", VOLUME))
    },
    **{
        f"Global{k}{n}": (f"Global{k}{n}", {}, s)
        for k in ("MaxPooling", "AveragePooling")
        for n, s in (("1D", SERIES), ("2D", IMAGE), ("3D", VOLUME))
    },
    **{
        f"Adaptive{k}{n}": (f"Adaptive{k}{n}", {"output_size": 2}, s)
        for k in ("MaxPooling", "AveragePooling")
        for n, s in (("1D", SERIES), ("2D", IMAGE))
    },
    **{
        f"Conv{n}{t}": (f"Conv{n}{t}", {"filters": 2, "kernel_size": 2}, s)
        for t in ("", "Transpose")
        for n, s in (("1D", SERIES), ("2D", IMAGE), ("3D", VOLUME))
    },
    **{
        f"{k}Conv{n}": (f"{k}Conv{n}", {"kernel_size": 2} | m, s)
        for k, m in (("Depthwise", {}), ("Separable", {"filters": 2}))
        for n, s in (("1D", SERIES), ("2D", IMAGE))
    },
    **{
        f"{k}{n}": (f"{k}{n}", {}, s)
        for k in ("Cropping", "ZeroPadding", "UpSampling")
        for n, s in (("1D", SERIES), ("2D", IMAGE), ("3D", (3, 4, 4, 2)))
    },
    **{
        f"UpSampling2D_{how}": ("UpSampling2D", {"interpolation": how}, IMAGE)
        for how in ("bilinear", "bicubic", "lanczos3", "lanczos5")
    },
    **{
        f"Resizing_{how}": ("Resizing", {"height": 3, "width": 5, "interpolation": how}, IMAGE)
        for how in ("nearest", "bilinear", "bicubic", "lanczos3")
    },
    "CenterCrop": ("CenterCrop", {"height": 2, "width": 3}, IMAGE),
    **{name: (name, {"units": 2}, SERIES) for name in ("LSTM", "GRU", "SimpleRNN")},
}
NOT_COMPARED = {
    "zero or undefined derivative": (
        "CategoryEncoding Discretization HashedCrossing Hashing IntegerLookup StringLookup "
        "TextVectorization RandomPosterization Equalization AutoContrast Solarization "
        "ContrastLimitedAdaptiveHistogramEqualization"
    ),
    "draws random numbers, and is compared in the tests of dropout": (
        "AlphaDropout Dropout GaussianDropout GaussianNoise SpatialDropout1D SpatialDropout2D "
        "SpatialDropout3D"
    ),
    "augments inputs, before anything is trained": (
        "AugMix CutMix MixUp MaxNumBoundingBoxes Pipeline RandAugment RandomBrightness "
        "RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop "
        "RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale "
        "RandomHue RandomInvert RandomPerspective RandomRotation RandomSaturation "
        "RandomSharpness RandomShear RandomTranslation RandomZoom MelSpectrogram STFTSpectrogram"
    ),
    "has several inputs, integers for inputs, or others' layers inside; see the zoo": (
        "Activation Add AdditiveAttention Attention Average Bidirectional Concatenate ConvLSTM1D "
        "ConvLSTM2D ConvLSTM3D Dot Embedding GroupedQueryAttention Lambda Maximum Minimum "
        "MultiHeadAttention Multiply Normalization RNN ReversibleEmbedding SpectralNormalization "
        "Subtract TimeDistributed"
    ),
    "is not computed in float64 by TensorFlow": "AdaptiveAveragePooling3D AdaptiveMaxPooling3D",
    "is no layer of a model of its own": (
        "FlaxLayer GRUCell InputLayer InputSpec JaxLayer LSTMCell Layer SimpleRNNCell "
        "StackedRNNCells TFSMLayer TorchModuleWrapper Wrapper"
    ),
}


def test_every_layer_of_keras_is_listed():
    known = {name for name, _, _ in LAYERS.values()}
    known |= {name for names in NOT_COMPARED.values() for name in names.split()}
    classes = {
        getattr(layers, name).__name__
        for name in dir(layers)
        if inspect.isclass(getattr(layers, name))
    }
    assert classes <= known


def check(middle, shape, loss="mean_squared_error", outputs=1, last=None):
    """Compares the meta-gradient with differences, or sees that it is refused by name."""
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    stack = [layers.Dense(shape[-1], "tanh", bias_initializer="normal"), *middle, layers.Flatten()]
    model = keras.Sequential([keras.Input(shape), *stack, layers.Dense(outputs, last)])
    learner = MAML(model, 0.1, inner_steps=2, task_map="sequential")
    learner.compile("sgd", loss, jit_compile=False)
    x = random.normal(size=(2, 2, 3, *shape))
    y = random.uniform(0.1, 0.9, size=(2, 2, 3, outputs))
    y /= y.sum(-1, keepdims=True) if outputs > 1 else 1
    data = (x[0], y[0]), (x[1], y[1])
    names = [layer.name for layer in model.layers]
    with naming_layers(names):
        try:
            _, gradients = learner.meta_gradients(*data)
        except MissingDerivative as error:
            assert any(f"'{name}'" in str(error) for name in names)
            assert "first_order=True" in str(error) or "has no derivative of" in str(error)
            return
        variables = learner.trainable_variables
        directions = [np.where(g == 0, 1, np.sign(g)) for g in gradients]
        centres = [variable.numpy() for variable in variables]
        losses = {}
        for offset in (-2, -1, 1, 2):
            for v, c, d in zip(variables, centres, directions, strict=True):
                v.assign(c + offset * 1e-5 * d)
            losses[offset] = float(learner.meta_gradients(*data)[0])
    differences = (8 * (losses[1] - losses[-1]) - losses[2] + losses[-2]) / 12e-5
    exact = sum(np.sum(g * d) for g, d in zip(gradients, directions, strict=True))
    assert exact == pytest.approx(differences, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    kind, settings, shape = LAYERS[name]
    check([getattr(layers, kind)(**settings)], shape)


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in dir(keras.activations)
        if not n.startswith("_")
        and n not in ("deserialize", "get", "serialize")
        and n not in ("glu", "threshold")  # halves its inputs; takes more arguments
        and callable(getattr(keras.activations, n))
    ],
)
def test_activations(name):
    check([layers.Activation(getattr(keras.activations, name))], VECTOR)


@pytest.mark.parametrize(
    "name",
    sorted(
        {
            getattr(keras.losses, n).__name__
            for n in dir(keras.losses)
            if inspect.isclass(getattr(keras.losses, n))
        }
        - {
            "Loss",
            "CTC",
            "SparseCategoricalCrossentropy",
            "Circle",
            "CategoricalGeneralizedCrossEntropy",
        }
    ),  # for labels that are integers
)
def test_losses(name):
    check([], VECTOR, getattr(keras.losses, name)(), outputs=3, last="softmax")


IMAGES = {
    "adjust_contrast": lambda x: tf.image.adjust_contrast(x, 1.5),
    "central_crop": lambda x: tf.image.central_crop(x, 0.5),
    "extract_patches": lambda x: tf.image.extract_patches(
        x, [1, 2, 2, 1], [1, 1, 1, 1], [1, 1, 1, 1], "VALID"
    ),
    "flip_left_right": tf.image.flip_left_right,
    "hsv_to_rgb": lambda x: tf.image.hsv_to_rgb(tf.sigmoid(x)),
    "image_gradients": lambda x: tf.concat(tf.image.image_gradients(x), -1),
    "pad_to_bounding_box": lambda x: tf.image.pad_to_bounding_box(x, 1, 1, 6, 6),
    "resize_with_crop_or_pad": lambda x: tf.image.resize_with_crop_or_pad(x, 3, 6),
    "rgb_to_hsv": lambda x: tf.image.rgb_to_hsv(tf.sigmoid(x)),
    "rgb_to_yiq": tf.image.rgb_to_yiq,
    "rgb_to_yuv": tf.image.rgb_to_yuv,
    "rot90": tf.image.rot90,
    "sobel_edges": tf.image.sobel_edges,
    "total_variation": lambda x: tf.image.total_variation(x)[:, None],
    "transpose": tf.image.transpose,
}
# adjust_brightness, adjust_gamma, per_image_standardization and rgb_to_grayscale compute in
# float32, which is too coarse for differences.


@pytest.mark.parametrize("name", IMAGES)
def test_images(name):
    check([layers.Lambda(IMAGES[name], name=name)], IMAGE)
