"""What the networks are built from, how a picture becomes numbers and back, and the files of a run.

The layers are the reference program's: 'SAME' padding, convolution weights from a truncated normal(0, 0.02), weights of
transposed convolutions and fully connected layers from a normal(0, 0.02), biases zero. Each function takes and gives a
Keras tensor, so that a network reads one line per layer.
"""

import contextlib
import os
import platform
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from PIL import Image, ImageOps

import pictures
from dataset import BadPicture, InputError, open_picture

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

STDDEV = 0.02  # of every initial weight
OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"  # an entry that TensorFlow 2 checkpoints have and TensorFlow 1 ones lack
REFERENCE_NAMES = {"kernel": "w", "bias": "b"}  # of weights in the reference program's checkpoints, where they differ


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
    """Append a label [batch, k], `duplicate` times, to x [batch, n], or as constant maps to x [batch, h, w, c]."""
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


def read_image(path: str | Path) -> Image.Image:
    """Read a picture in RGB, turned as its EXIF says, laid over white where transparent.

    Raises BadPicture (an InputError), with the file's name, for anything that cannot be read so.
    """
    with open_picture(path) as image:
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise BadPicture(path, "32-bit pixels, whose white is not known")
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return image.convert("RGB")


def load_image(path: str | Path, size_image: int, channels: int) -> np.ndarray:
    """Read a picture as uint8 [size_image, size_image, channels], channels 1 (grey) or 3 (RGB). Raises BadPicture."""
    return fit_image(read_image(path), size_image, channels)


def fit_image(image: Image.Image, size_image: int, channels: int) -> np.ndarray:
    """The central square of a picture, resized by Pillow's antialiased bilinear filter: uint8 [S, S, channels]."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).convert("L" if channels == 1 else "RGB")
    pixels = np.asarray(image.resize((size_image, size_image), Image.Resampling.BILINEAR))
    return pixels.reshape(size_image, size_image, channels)


def save_batch_images(images, path: str | Path, columns: int = 10) -> np.ndarray:
    """Write images, float [N, S, S, C] in [-1, 1], row by row as one grid without gaps; gives it as uint8 [H, W, C]."""
    picture = pictures.grid(to_pixels(images).numpy(), columns)
    pictures.save_image(path, picture)
    return picture


def total_variation(images):
    """Mean over the batch of half the squared differences between neighbours, per row and per column of pixels."""
    _, height, width, _ = images.shape
    vertical = tf.reduce_sum(tf.square(images[:, 1:] - images[:, :-1])) / 2 / height
    horizontal = tf.reduce_sum(tf.square(images[:, :, 1:] - images[:, :, :-1])) / 2 / width
    return (vertical + horizontal) / tf.cast(tf.shape(images)[0], images.dtype)


class StopRequest:
    """Within it the first Ctrl-C or SIGTERM is only noted, in `signal`; a second one ends the program at once."""

    def __init__(self):
        self.signal = None
        self.handlers = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python hears no signals
            self.handlers = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, _) -> None:
        self.signal = number
        print("\nFinishing this batch, then saving ...", file=sys.stderr, flush=True)
        for either in self.handlers:
            signal.signal(either, signal.SIG_DFL)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder, made if need be, for this process alone; the system lets go of it whatever way a process ends.

    Raises InputError, with the other's host and process, where another holds it, and where the folder's name is a
    file's. Without fcntl (Windows), no lock.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{folder} cannot be a folder, there is a file: give another --savedir") from error
    with (folder / "lock").open("a+") as file:
        if fcntl:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise InputError(
                    f"{folder} is being trained in by {file.read().strip() or 'another process'}: "
                    "wait for it, or give another --savedir"
                ) from error
        file.truncate(0)
        print(f"process {os.getpid()} on {platform.node()}", file=file, flush=True)
        yield


def saved_checkpoints(folder: Path) -> list[str]:
    """The checkpoints in the folder that were written to their end, latest first."""
    state = tf.train.get_checkpoint_state(folder)
    return list(reversed(state.all_model_checkpoint_paths)) if state else []


def is_reference(prefix: str) -> bool:
    """Whether a checkpoint is the reference program's: written by TensorFlow 1, which keeps no graph of objects."""
    return not tf.train.load_checkpoint(prefix).has_tensor(OBJECT_GRAPH)


def sync(prefix: str) -> None:
    """Have a checkpoint's files reach the disk itself, that a power loss cannot take them."""
    folder = Path(prefix).parent
    for path in [*folder.glob(f"{Path(prefix).name}.*"), folder / "checkpoint"]:
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def reason(error: Exception) -> str:
    """The first line of what went wrong."""
    return str(getattr(error, "strerror", None) or getattr(error, "message", None) or error).splitlines()[0]


def reference_name(variable: keras.Variable) -> str:
    """The name that the reference program's checkpoints have for a weight: E_conv0/kernel is E_conv0/w there."""
    layer, name = variable.path.split("/")[-2:]
    return f"{layer}/{REFERENCE_NAMES.get(name, name)}"
