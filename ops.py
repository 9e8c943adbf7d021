"""What the networks are built from, and how a picture becomes numbers and back.

The layers are the reference program's: 'SAME' padding, convolution weights from a truncated normal(0, 0.02), transposed
convolution and fully connected weights from a normal(0, 0.02), biases zero (Zhang et al. 2017 and its reference program).
Each function takes and gives a Keras tensor, so that a network reads one line per layer.
"""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from PIL import Image, ImageOps

import pictures
from dataset import BadPicture, open_picture

STDDEV = 0.02  # of every initial weight


def conv2d(x, num_output_channels: int, size_kernel: int = 5, stride: int = 2, name: str = "conv2d"):
    """Convolve [batch, h, w, c] to [batch, h / stride, w / stride, num_output_channels]."""
    return layers.Conv2D(
        num_output_channels,
        size_kernel,
        stride,
        padding="same",
        kernel_initializer=keras.initializers.TruncatedNormal(stddev=STDDEV),
        name=name,
    )(x)


def deconv2d(x, num_output_channels: int, size_kernel: int = 5, stride: int = 2, name: str = "deconv2d"):
    """Transposed convolution of [batch, h, w, c] to [batch, h * stride, w * stride, num_output_channels]."""
    return layers.Conv2DTranspose(
        num_output_channels,
        size_kernel,
        stride,
        padding="same",
        kernel_initializer=keras.initializers.RandomNormal(stddev=STDDEV),
        name=name,
    )(x)


def fc(x, num_output_length: int, name: str = "fc"):
    """Fully connected layer, [batch, n] to [batch, num_output_length]."""
    initializer = keras.initializers.RandomNormal(stddev=STDDEV)
    return layers.Dense(num_output_length, kernel_initializer=initializer, name=name)(x)


def lrelu(x, leak: float = 0.2):
    """Leaky ReLU: x where positive, leak * x elsewhere."""
    return layers.LeakyReLU(negative_slope=leak)(x)


def batch_norm(x, name: str = "batch_norm", synchronized: bool = False):
    """Batch normalisation without a scale; synchronized takes the statistics over the batches of all devices."""
    return layers.BatchNormalization(momentum=0.999, epsilon=1e-3, scale=False, synchronized=synchronized, name=name)(x)


def concat_label(x, label, duplicate: int = 1):
    """Append a label [batch, k], repeated `duplicate` times, to x: to [batch, n], or as constant maps to [batch, h, w, c]."""
    label = keras.ops.cast(keras.ops.tile(label, [1, duplicate]), x.dtype)  # [batch, k * duplicate]
    if len(x.shape) == 4:
        _, height, width, _ = x.shape
        label = keras.ops.tile(label[:, None, None, :], [1, height, width, 1])
    return keras.ops.concatenate([x, label], axis=-1)


def best_precision() -> tuple[str, str]:
    """(Keras dtype policy, why): mixed_bfloat16 where this machine computes in bfloat16, else float32."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        name, capability = details.get("device_name", "GPU"), details.get("compute_capability", (0, 0))
        what = f"{name} of compute capability {'.'.join(map(str, capability))}"
        if capability >= (8, 0):
            return "mixed_bfloat16", f"{what} has bfloat16"
        return "float32", f"{what} has no bfloat16"
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    for flag in ("amx_bf16", "avx512_bf16"):
        if flag in flags:
            return "mixed_bfloat16", f"this CPU has {flag}"
    return "float32", "this CPU has neither avx512_bf16 nor amx_bf16"


def float32_output(x, activation: str = "linear"):
    """The activation of a network's last layer, computed and given in float32 whatever precision runs inside."""
    return layers.Activation(activation, dtype="float32")(x)


def to_network_range(images):
    """Pixels in [0, 255], of any type, to float32 in [-1, 1]."""
    return tf.cast(images, tf.float32) / 127.5 - 1.0


def to_pixels(images):
    """The networks' float range [-1, 1] to uint8 pixels, rounded to the nearest."""
    return tf.cast(tf.round((tf.clip_by_value(images, -1.0, 1.0) + 1.0) * 127.5), tf.uint8)


def load_image(path: str | Path, size_image: int, channels: int) -> np.ndarray:
    """Read a picture as uint8 [size_image, size_image, channels], channels 1 (grey) or 3 (RGB).

    Turned as its EXIF says, laid over white where transparent, cut to the central square, resized by Pillow's
    antialiased bilinear filter. Raises InputError, with the file's name, for anything that cannot be read so.
    """
    with open_picture(path) as image:
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise BadPicture(path, "32-bit pixels, whose white is not known")
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.convert("L" if channels == 1 else "RGB").crop((left, top, left + side, top + side))
        pixels = np.asarray(image.resize((size_image, size_image), Image.Resampling.BILINEAR))
        return pixels.reshape(size_image, size_image, channels)


def save_batch_images(images, path: str | Path, columns: int = 10) -> None:
    """Write images, float [N, S, S, C] in [-1, 1], as one grid without gaps, row by row, ten a row."""
    pictures.save_image(path, pictures.grid(to_pixels(images).numpy(), columns))
