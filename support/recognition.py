"""Estimates of age and gender by the included age network, and face embeddings by dlib, an optional package."""

import functools
import importlib.util
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from PIL import Image

from support import InputError
from support.fast_ops import normalize
from support.images import to_image
from support.pretrained import PRETRAINED, load_quantized

WEIGHTS = PRETRAINED / "age_gender" / "weights.npz"
SIDE = 64  # pixels of the age network's input
AGES = 101  # its distribution is over 0, 1, ... 100 years
MIN_SIGMA = 0.5  # standard deviation of the filter that resizes to SIDE, in pixels of the coarser image
FACES_PER_BATCH = 100  # faces in the age network at a time: bounds the memory
MISSING = "identity is measured with dlib: pip install dlib-bin face_recognition_models"
# An aligned face fills this part of its image: the median of what dlib's own detector finds in 148 of 150 faces of
# UTKFace. It replaces the detector, which misses blurred faces.
FACE_EDGES = (0.07, 0.93)
LANDMARK_SIDE = 256  # pixels that faces are enlarged to for the landmark predictor
LANDMARKS, EMBEDDING = "shape_predictor_5_face_landmarks", "dlib_face_recognition_resnet_model_v1"  # dlib's files
CHIP_SIDE, CHIP_PADDING = 150, 0.25  # the input of dlib's embedding network


def age_and_gender_network() -> keras.Model:
    """Return a network from faces, float [N, 64, 64, 3] in [-1, 1], to logits: ages [N, 101] and genders [N, 1].

    The softmax of the first is a distribution over years, the sigmoid of the second the probability of female. The
    0.85 million parameters take less than a megabyte in 8 bits.
    """
    images = x = keras.Input([SIDE, SIDE, 3], name="faces")

    def convolution(x, channels: int, name: str, stride: int = 1, kernel: int = 3):
        # batch norm on large feature maps takes longer than all convolutions
        small = x.shape[1] // stride <= 8
        settings = {"use_bias": not small, "kernel_initializer": "he_normal", "name": name}
        x = layers.Conv2D(channels, kernel, stride, "same", activation=None if small else "relu", **settings)(x)
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
    logits = [layers.Activation("linear", dtype="float32", name=f"{y.name}_logits")(y) for y in (ages, genders)]
    return keras.Model(images, logits)


def resampling(side: int, sigma, centre=0.0, scale=1.0) -> tf.Tensor:
    """Return matrices that resize the columns of images of `side` pixels to SIDE: float32 [N, SIDE, side].

    Arguments, scalars or [N]: sigma, standard deviation of the Gaussian filter in pixels of the images; centre, offset
    of the new centre in halves of the width; scale, share of the width that is kept, negative to mirror it.
    """
    sigma, centre, scale = (tf.reshape(tf.cast(value, tf.float32), [-1, 1, 1]) for value in (sigma, centre, scale))
    places = (tf.range(SIDE, dtype=tf.float32)[:, tf.newaxis] + 0.5) / SIDE * 2 - 1  # -1 to 1
    places = ((centre + scale * places) + 1) / 2 * side - 0.5
    distances = (places - tf.range(side, dtype=tf.float32)) / sigma
    # positions outside take the pixels at the edge
    return tf.nn.softmax(-0.5 * distances**2, axis=-1)


def resample(images, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Resize faces, uint8 [N, S, S, 1 or 3], by matrices of `resampling` to float32 [N, 64, 64, 3] in [-1, 1]."""
    side, channels = images.shape[1], images.shape[3]
    x = tf.reshape(rows @ tf.reshape(normalize(images), [-1, side, side * channels]), [-1, SIDE, side, channels])
    x = tf.reshape(tf.transpose(x, [0, 2, 1, 3]), [-1, side, SIDE * channels])
    x = tf.transpose(tf.reshape(columns @ x, [-1, SIDE, SIDE, channels]), [0, 2, 1, 3])
    return tf.repeat(x, 3, axis=-1) if channels == 1 else x


def min_sigma(side: int) -> float:
    """Return the smallest standard deviation without aliasing of the filter, in pixels of images of `side`."""
    return MIN_SIGMA * max(side / SIDE, 1.0)


def years(age_logits):
    """Return the mean age in years, float [N], of distributions with logits [N, 101]."""
    return tf.reduce_sum(tf.nn.softmax(age_logits) * tf.range(AGES, dtype=tf.float32), axis=-1)


@functools.cache
def included_network() -> keras.Model:
    """Return the included age network. Raises InputError if its weights are missing."""
    network = age_and_gender_network()
    load_quantized(WEIGHTS, [network])
    return network


def ages_and_genders(images: np.ndarray, network: keras.Model | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Estimate ages in years and the probability of female, float [N], of aligned faces, uint8 [N, S, S, 1 or 3].

    network: the included one by default. The estimates are means over a face and its mirror image, which are a little
    more accurate. Raises InputError if the weights are missing.
    """
    network = network or included_network()
    matrices = resampling(images.shape[1], min_sigma(images.shape[1]))

    def estimate(faces) -> tf.Tensor:
        age_logits, gender_logits = network(faces, training=False)
        return tf.stack([years(age_logits), tf.sigmoid(gender_logits[:, 0])])

    estimates = []
    for i in range(0, len(images), FACES_PER_BATCH):
        faces = resample(images[i : i + FACES_PER_BATCH], matrices, matrices)
        estimates.append((estimate(faces) + estimate(faces[:, :, ::-1])).numpy() / 2)
    ages, female = np.concatenate(estimates, axis=1)
    return ages, female


@functools.cache
def dlib_models():
    """Return dlib's (landmark predictor, face embedding). Raises InputError, with what to install, if missing."""
    try:
        import dlib
    except ImportError as error:
        raise InputError(MISSING) from error
    # only located: importing it needs pkg_resources, which new versions of setuptools lack
    package = importlib.util.find_spec("face_recognition_models")
    if not package or not package.submodule_search_locations:
        raise InputError(MISSING)
    folder = Path(package.submodule_search_locations[0]) / "models"
    files = [str(folder / f"{name}.dat") for name in (LANDMARKS, EMBEDDING)]
    try:
        return dlib.shape_predictor(files[0]), dlib.face_recognition_model_v1(files[1])
    except RuntimeError as error:
        raise InputError(f"{folder} is incomplete: pip install --force-reinstall face_recognition_models") from error


def dlib_is_installed() -> bool:
    """Return whether identity can be measured; if not, print on stderr what to install."""
    try:
        dlib_models()
    except InputError as error:
        print(f"{error}; everything else is measured", file=sys.stderr)
        return False
    return True


def embeddings(images: np.ndarray) -> np.ndarray:
    """Return dlib's embeddings, float32 [N, 128], of aligned faces, uint8 [N, S, S, 1 or 3].

    Takes about 0.1 s of CPU time a face. Raises InputError, with what to install, if dlib is missing.
    """
    predictor, network = dlib_models()
    import dlib

    near, far = (round(edge * LANDMARK_SIDE) for edge in FACE_EDGES)
    box = dlib.rectangle(near, near, far, far)
    vectors = np.empty([len(images), 128], np.float32)
    for vector, image in zip(vectors, images, strict=True):
        photo = to_image(image).convert("RGB")
        enlarged = np.asarray(photo.resize((LANDMARK_SIDE, LANDMARK_SIDE), Image.Resampling.BILINEAR))
        chip = dlib.get_face_chip(enlarged, predictor(enlarged, box), CHIP_SIDE, CHIP_PADDING)
        vector[:] = network.compute_face_descriptor(chip)
    return vectors


def identity_distances(photos: np.ndarray, reconstructions: np.ndarray, aged: np.ndarray) -> dict[str, np.ndarray]:
    """Return the distances of embeddings from those of the photos, arrays [N, ...] by name.

    photos, reconstructions: uint8 [N, S, S, C]; aged: at every age bin, uint8 [bins, N, S, S, C]. Takes about a second
    a face. Raises InputError if dlib is missing.
    """
    expected = embeddings(photos)
    parts = [np.linalg.norm(embeddings(faces) - expected, axis=1) for faces in (reconstructions, *aged)]
    return {"reconstruction": parts[0], "aged": np.stack(parts[1:], axis=1)}  # [N], [N, bins]
