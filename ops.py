"""Layers of the networks, and conversions between image files, pixels and the networks' value range.

The layers are the reference program's: 'SAME' padding, convolution weights from a truncated normal(0, 0.02), weights of
transposed convolutions and fully connected layers from a normal(0, 0.02), biases zero. Each function takes and returns
a Keras tensor, so that a network's definition has one line per layer.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import support  # noqa: F401, before keras and tensorflow: it sets environment variables that they read

# isort: split
import keras
import numpy as np
import tensorflow as tf
from keras import layers

from support import fast_ops
from support.fast_ops import STDDEV, denormalize, fc, normalize  # noqa: F401, fc is one of the layers
from support.figures import GRID_COLUMNS, grid
from support.images import INFERENCE_BATCH, fit_image, read_image


def conv2d(x, num_output_channels: int, size_kernel: int = 5, stride: int = 2, name: str = "conv2d"):
    """Convolve [batch, h, w, c] to [batch, h / stride, w / stride, num_output_channels]."""
    options = {"kernel_initializer": keras.initializers.TruncatedNormal(stddev=STDDEV), "name": name}
    return fast_ops.Conv2D(num_output_channels, size_kernel, stride, "same", **options)(x)


def deconv2d(
    x, num_output_channels: int, size_kernel: int = 5, stride: int = 2, activation=None, name: str = "deconv2d"
):
    """Transposed convolution of [batch, h, w, c] to [batch, h * stride, w * stride, num_output_channels]."""
    initializer = keras.initializers.RandomNormal(stddev=STDDEV)
    options = {"activation": activation, "kernel_initializer": initializer, "name": name}
    return fast_ops.Conv2DTranspose(num_output_channels, size_kernel, stride, "same", **options)(x)


def lrelu(x, leak: float = 0.2):
    """Leaky ReLU: x where positive, leak * x elsewhere."""
    return layers.LeakyReLU(negative_slope=leak)(x)


def batch_norm(x, name: str = "batch_norm"):
    """Batch normalisation without a scale; its statistics are those of the whole batch, on all devices together."""
    shared = tf.distribute.get_strategy().num_replicas_in_sync > 1
    return fast_ops.BatchNormalization(momentum=0.999, epsilon=1e-3, scale=False, synchronized=shared, name=name)(x)


def concat_label(x, label, duplicate: int = 1):
    """Append a label [batch, k], `duplicate` times, to x [batch, n], or as constant maps to x [batch, h, w, c]."""
    label = keras.ops.cast(keras.ops.tile(label, [1, duplicate]), x.dtype)  # [batch, k * duplicate]
    if len(x.shape) == 4:
        _, height, width, _ = x.shape
        label = keras.ops.tile(label[:, None, None, :], [1, height, width, 1])
    return keras.ops.concatenate([x, label], axis=-1)


def float32_output(x, activation: str = "linear"):
    """The activation of a network's last layer, computed and returned in float32 at any precision."""
    return layers.Activation(activation, dtype="float32")(x)


def feature_maps(D_img: keras.Model) -> keras.Model:
    """Return D_img as a network with the outputs [logits, *its four feature maps after ReLU]."""
    maps = [layer.output for layer in D_img.layers if isinstance(layer, layers.ReLU)]
    return keras.Model(D_img.inputs, [D_img.output, *maps])


def load_image(path: str | Path, size_image: int, channels: int) -> np.ndarray:
    """Read the central square of an image file: uint8 [size_image, size_image, channels], 1 (grey) or 3 (RGB).

    Raises BadImage, an InputError, if the file cannot be read.
    """
    return fit_image(read_image(path), size_image, channels)


def batch_grid(images, columns: int = GRID_COLUMNS) -> np.ndarray:
    """Return images, float [N, S, S, C] in [-1, 1], row by row as one grid without gaps: uint8 [H, W, C]."""
    return grid(denormalize(images).numpy(), columns)


def in_batches(method: Callable) -> Callable:
    """Run a method in chunks of INFERENCE_BATCH rows and return NumPy arrays."""

    @functools.wraps(method, updated=())
    def batched(self, *arrays: np.ndarray) -> np.ndarray:
        bound = method.__get__(self, type(self))  # a tf.function is traced once for each model
        parts = range(0, len(arrays[0]), INFERENCE_BATCH)
        return np.concatenate([bound(*(array[i : i + INFERENCE_BATCH] for array in arrays)).numpy() for i in parts])

    return batched
