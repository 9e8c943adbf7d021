"""What networks see in a face: age, gender, and whether it is the same person; open it to judge by other networks.

Age and gender are seen by a small network that ships in support/pretrained/age_gender; the
person by dlib's face embedding, an optional extra.
"""

import functools
import importlib.util
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from PIL import Image

from support.errors import InputError
from support.pretrained import load_quantized

WEIGHTS = Path(__file__).parent / "pretrained" / "age_gender" / "weights.npz"
SIDE = 64  # pixels of a face as the network sees it
AGES = 101  # the network's distribution is over 0, 1, ... 100 years
SHARPEST = 0.5  # standard deviation of the filter that resizes to SIDE, in pixels of the coarser picture
AT_ONCE = 100  # faces in the network at a time: bounds the memory whatever their number
MISSING = "whether it is the same person needs dlib: pip install dlib-bin face_recognition_models"
# An aligned face fills this part of its picture: the median of what dlib's own detector finds in 148 of 150 faces of
# UTKFace. It is taken as found in every picture, so that no blurred face is missed.
FACE_EDGES = (0.07, 0.93)
LANDMARK_SIDE = 256  # pixels that faces are enlarged to before landmarks are looked for
CHIP_SIDE, CHIP_PADDING = 150, 0.25  # what dlib's embedding was trained on


def age_and_gender_network() -> keras.Model:
    """A network from faces, float [N, 64, 64, 3] in [-1, 1], to logits: ages [N, 101] and genders [N, 1].

    The softmax of the first is a distribution over years, the sigmoid of the second the probability of female. It has
    0.85 million parameters, so that it ships in less than a megabyte of int8.
    """
    images = x = keras.Input([SIDE, SIDE, 3], name="faces")

    def convolution(x, channels: int, name: str, stride: int = 1, kernel: int = 3):
        # batch norm on large feature maps would take longer than all convolutions
        small = x.shape[1] // stride <= 8
        x = layers.Conv2D(
            channels,
            kernel,
            stride,
            "same",
            activation=None if small else "relu",
            use_bias=not small,
            kernel_initializer="he_normal",
            name=name,
        )(x)
        return layers.ReLU()(layers.BatchNormalization(momentum=0.95, name=f"{name}_bn")(x)) if small else x

    x = convolution(x, 32, "conv0", stride=2, kernel=5)  # [N, 32, 32, 32]
    x = convolution(x, 64, "conv1", stride=2)  # [N, 16, 16, 64]
    x = layers.Add()([x, convolution(x, 64, "conv2")])
    x = convolution(x, 128, "conv3", stride=2)  # [N, 8, 8, 128]
    x = layers.Add()([x, convolution(x, 128, "conv4")])
    x = convolution(x, 192, "conv5", stride=2)  # [N, 4, 4, 192]
    x = convolution(x, 192, "conv6")
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    ages = layers.Dense(AGES, name="ages")(x)
    genders = layers.Dense(1, name="genders")(x)
    return keras.Model(
        images, [layers.Activation("linear", dtype="float32", name=f"{y.name}_logits")(y) for y in (ages, genders)]
    )


def resampling(side: int, sigma, centre=0.0, scale=1.0) -> tf.Tensor:
    """Matrices that resize the columns of pictures of `side` pixels to SIDE by a Gaussian: float32 [N, SIDE, side].

    Arguments, scalars or [N]: sigma, the filter's standard deviation in pixels of the pictures; centre, the place that
    becomes the middle, in halves of the picture's width from its own; scale, what part of the width is seen, negative
    for a mirrored one.
    """
    sigma, centre, scale = (tf.reshape(tf.cast(value, tf.float32), [-1, 1, 1]) for value in (sigma, centre, scale))
    places = (tf.range(SIDE, dtype=tf.float32)[:, tf.newaxis] + 0.5) / SIDE * 2 - 1  # -1 to 1
    places = ((centre + scale * places) + 1) / 2 * side - 0.5
    distances = (places - tf.range(side, dtype=tf.float32)) / sigma
    # a place outside sees the pixels at the edge
    return tf.nn.softmax(-0.5 * distances**2, axis=-1)


def resample(images, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Faces, uint8 [N, S, S, 1 or 3], resized by matrices of `resampling`: float32 [N, 64, 64, 3] in [-1, 1]."""
    side, channels = images.shape[1], images.shape[3]
    images = tf.cast(images, tf.float32) / 127.5 - 1.0
    x = tf.reshape(rows @ tf.reshape(images, [-1, side, side * channels]), [-1, SIDE, side, channels])
    x = tf.reshape(tf.transpose(x, [0, 2, 1, 3]), [-1, side, SIDE * channels])
    x = tf.transpose(tf.reshape(columns @ x, [-1, SIDE, SIDE, channels]), [0, 2, 1, 3])
    return tf.repeat(x, 3, axis=-1) if channels == 1 else x


def sharpest(side: int) -> float:
    """The standard deviation of the filter, in pixels of pictures of `side`, that keeps most and shows no alias."""
    return SHARPEST * max(side / SIDE, 1.0)


def years(age_logits):
    """The mean age in years, float [N], of the distributions whose logits are [N, 101]."""
    return tf.reduce_sum(tf.nn.softmax(age_logits) * tf.range(AGES, dtype=tf.float32), axis=-1)


@functools.cache
def shipped_network() -> keras.Model:
    """The network of age and gender that ships. Raises InputError where its weights are missing."""
    network = age_and_gender_network()
    load_quantized(WEIGHTS, [network])
    return network


def ages_and_genders(images: np.ndarray, network: keras.Model | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns what is seen in aligned faces, uint8 [N, S, S, 1 or 3]: ages in years, the probability of female, [N].

    Without a network by the one that ships. A face and its mirror image are seen, and the mean is taken, which is a
    little nearer the truth than either. Raises InputError where the weights are missing.
    """
    network = network or shipped_network()
    matrices = resampling(images.shape[1], sharpest(images.shape[1]))

    def see(faces) -> tf.Tensor:
        age_logits, gender_logits = network(faces, training=False)
        return tf.stack([years(age_logits), tf.sigmoid(gender_logits[:, 0])])

    seen = []
    for i in range(0, len(images), AT_ONCE):
        faces = resample(images[i : i + AT_ONCE], matrices, matrices)
        seen.append((see(faces) + see(faces[:, :, ::-1])).numpy() / 2)
    ages, female = np.concatenate(seen, axis=1)
    return ages, female


@functools.cache
def dlib_models():
    """dlib's (landmark predictor, face embedding). Raises InputError, with what to install, where they are missing."""
    try:
        import dlib
    except ImportError as error:
        raise InputError(MISSING) from error
    # found and not imported: its own code needs pkg_resources, which new versions of setuptools have no more
    package = importlib.util.find_spec("face_recognition_models")
    if not package or not package.submodule_search_locations:
        raise InputError(MISSING)
    folder = Path(package.submodule_search_locations[0]) / "models"
    try:
        return (
            dlib.shape_predictor(str(folder / "shape_predictor_5_face_landmarks.dat")),
            dlib.face_recognition_model_v1(str(folder / "dlib_face_recognition_resnet_model_v1.dat")),
        )
    except RuntimeError as error:
        raise InputError(f"{folder} is not whole: pip install --force-reinstall face_recognition_models") from error


def embeddings(images: np.ndarray) -> np.ndarray:
    """dlib's embeddings, float32 [N, 128], of aligned faces, uint8 [N, S, S, 1 or 3].

    The same person's lie closer than 0.6 by dlib's own rule. About 0.1 s of a CPU a face. Raises InputError, with what
    to install, where dlib is missing.
    """
    predictor, network = dlib_models()
    import dlib

    near, far = (round(edge * LANDMARK_SIDE) for edge in FACE_EDGES)
    found = dlib.rectangle(near, near, far, far)
    vectors = np.empty([len(images), 128], np.float32)
    for vector, image in zip(vectors, images, strict=True):
        picture = Image.fromarray(image if image.shape[-1] == 3 else image[..., 0]).convert("RGB")
        enlarged = np.asarray(picture.resize((LANDMARK_SIDE, LANDMARK_SIDE), Image.Resampling.BILINEAR))
        chip = dlib.get_face_chip(enlarged, predictor(enlarged, found), CHIP_SIDE, CHIP_PADDING)
        vector[:] = network.compute_face_descriptor(chip)
    return vectors
