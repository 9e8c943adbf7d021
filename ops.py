"""What the networks are built from, how a picture becomes numbers and back, and the files of a run.

The layers are the reference program's: 'SAME' padding, convolution weights from a truncated normal(0, 0.02), weights of
transposed convolutions and fully connected layers from a normal(0, 0.02), biases zero. Each function takes and gives a
Keras tensor, so that a network reads one line per layer.
"""

import contextlib
import functools
import itertools
import math
import os
import platform
import re
import shutil
import signal
import socket
import sys
import threading
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from PIL import Image, ImageOps
from tensorflow.python.eager import context

import pictures
from dataset import BadPicture, InputError, open_picture

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

HEARTBEAT_SECONDS = 60  # without a sign of life from a worker, then it is given up
LOST = (  # what collectives raise, in one worker or another, when the connection to a peer breaks
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
    tf.errors.UnknownError,
)
STDDEV = 0.02  # of every initial weight
# what TensorFlow raises for a checkpoint with a file that is changed, missing or (IndexError) cut short
DAMAGE = (tf.errors.OpError, OSError, IndexError)
STATE = ("model_checkpoint_path", "all_model_checkpoint_paths")  # of the file `checkpoint`: the latest, and every one
PACKED = "weights.npz"  # the file of a model that ships
OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"  # an entry that TensorFlow 2 checkpoints have and TensorFlow 1 ones lack
# Pixels a side of the map: measured in tests/README.md.
SMALL_MAP = 8  # up to here the gradient of the kernel is a matrix product, the batch a dimension of the transpose
SMALLEST_MAP = 4  # up to here all of a convolution is
REFERENCE_NAMES = {"kernel": "w", "bias": "b"}  # of weights in the reference program's checkpoints, where they differ


def conv2d(x, num_output_channels: int, size_kernel: int = 5, stride: int = 2, name: str = "conv2d"):
    """Convolve [batch, h, w, c] to [batch, h / stride, w / stride, num_output_channels]."""
    return Conv2D(
        num_output_channels,
        size_kernel,
        stride,
        padding="same",
        kernel_initializer=keras.initializers.TruncatedNormal(stddev=STDDEV),
        name=name,
    )(x)


def deconv2d(
    x, num_output_channels: int, size_kernel: int = 5, stride: int = 2, activation=None, name: str = "deconv2d"
):
    """Transposed convolution of [batch, h, w, c] to [batch, h * stride, w * stride, num_output_channels]."""
    return Conv2DTranspose(
        num_output_channels,
        size_kernel,
        stride,
        padding="same",
        activation=activation,
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


def batch_norm(x, name: str = "batch_norm"):
    """Batch normalisation without a scale; its statistics are those of the whole batch on however many devices."""
    shared = tf.distribute.get_strategy().num_replicas_in_sync > 1
    return BatchNormalization(momentum=0.999, epsilon=1e-3, scale=False, synchronized=shared, name=name)(x)


def concat_label(x, label, duplicate: int = 1):
    """Append a label [batch, k], `duplicate` times, to x [batch, n], or as constant maps to x [batch, h, w, c]."""
    label = keras.ops.cast(keras.ops.tile(label, [1, duplicate]), x.dtype)  # [batch, k * duplicate]
    if len(x.shape) == 4:
        _, height, width, _ = x.shape
        label = keras.ops.tile(label[:, None, None, :], [1, height, width, 1])
    return keras.ops.concatenate([x, label], axis=-1)


class Conv2D(layers.Conv2D):
    """Keras' convolution, but on a CPU small maps are convolved as matrix products."""

    def convolution_op(self, inputs, kernel):
        _, height, width, _ = inputs.shape
        if height == width and height % 2 == 0 and self.strides[0] == 2 and _is_small(height // 2):
            return _convolve(inputs, tf.convert_to_tensor(kernel))
        return super().convolution_op(inputs, kernel)


class Conv2DTranspose(layers.Conv2DTranspose):
    """Keras' transposed convolution, but on a CPU small maps are matrix products, and bias and ReLU one pass."""

    def call(self, inputs):
        kernel, bias = tf.convert_to_tensor(self.kernel), tf.convert_to_tensor(self.bias)
        _, height, width, _ = inputs.shape
        if height == width and self.strides[0] == 2 and _is_small(height):
            maps = _deconvolve(inputs, kernel)
        else:
            shape = [tf.shape(inputs)[0], self.strides[0] * height, self.strides[0] * width, self.filters]
            maps = tf.nn.conv2d_transpose(inputs, kernel, shape, self.strides)
        add_bias = _add_bias if _on_cpu() else tf.nn.bias_add
        return self.activation(add_bias(maps, bias))


class BatchNormalization(layers.BatchNormalization):
    """Keras' batch normalisation, but of maps while training in one fused operation."""

    def call(self, inputs, training=None, mask=None):
        if not training or self.synchronized or len(inputs.shape) != 4:
            return super().call(inputs, training=training, mask=mask)
        ones = tf.ones_like(self.beta)  # no scale
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(inputs, ones, self.beta, epsilon=self.epsilon)
        # it gives the variance over all other samples, Keras and the reference program keep the one over all samples
        samples = tf.cast(tf.size(inputs) // inputs.shape[-1], tf.float32)
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance * (samples - 1) / samples)):
            moving.assign(moving * self.momentum + value * (1 - self.momentum))
        return outputs


def _on_cpu() -> bool:
    return not tf.config.list_logical_devices("GPU")


@tf.custom_gradient
def _add_bias(maps, bias):
    _, _, width, channels = maps.shape
    if channels % 16:
        biased = tf.nn.bias_add(maps, bias)
    else:
        # as a batch norm that changes nothing else: TensorFlow takes a ReLU into that, and fast for so many channels
        ones = tf.ones_like(bias, tf.float32)
        biased, *_ = tf.compat.v1.nn.fused_batch_norm(
            maps, ones, tf.cast(bias, tf.float32), mean=0 * ones, variance=ones / 2, epsilon=0.5, is_training=False
        )

    def gradient(upstream):
        # the sum over pixels, first over every eighth as a matrix product: TensorFlow's own takes thrice as long
        pixels = math.gcd(width, 8)
        rows = tf.reshape(upstream, [-1, pixels * channels])
        sums = tf.matmul(tf.ones([1, tf.shape(rows)[0]], rows.dtype), rows)
        return upstream, tf.reduce_sum(tf.reshape(sums, [pixels, channels]), axis=0)

    return biased, gradient


# Convolutions of stride 2 between pictures [N, 2m, 2m, C] and maps [N, m, m, D] by a kernel [k, k, C, D]. On maps of
# few pixels oneDNN leaves most of a CPU idle; gathering what each pixel sees, and one matrix product, does not.


def _is_small(side: int) -> bool:
    return side <= SMALL_MAP and _on_cpu()


@tf.custom_gradient
def _convolve(images, kernel):
    def gradient(upstream):
        # or else windows are gathered from the images, and kept, as early as the forward pass
        with tf.control_dependencies([upstream]):
            late = tf.identity(images)
        return _spread(upstream, kernel), _correlate(late, upstream, kernel.shape)

    return _collect(images, kernel), gradient


@tf.custom_gradient
def _deconvolve(maps, kernel):
    def gradient(upstream):
        return _collect(upstream, kernel), _correlate(upstream, maps, kernel.shape)

    return _spread(maps, kernel), gradient


def _collect(images, kernel):
    """The convolution: each pixel of the map is a weighted sum of its window of the picture."""
    k, _, _, d = kernel.shape
    side = images.shape[1] // 2
    if side > SMALLEST_MAP:
        return tf.nn.conv2d(images, kernel, 2, "SAME")
    windows, weights = _take(images, _windows(side, k)), tf.reshape(kernel, [-1, d])
    # transposed, and so the product: oneDNN takes four thirds of the time for windows @ weights
    product = tf.transpose(tf.matmul(weights, windows, transpose_a=True, transpose_b=True))
    return tf.reshape(product, [-1, side, side, d])


def _spread(maps, kernel):
    """Its transpose: each pixel of the map adds to its window of the picture."""
    k, _, c, d = kernel.shape
    side = maps.shape[1]
    if side > SMALLEST_MAP:
        # in three dimensions, the batch as the last: oneDNN is fast along a long one, and a small map's are short
        maps = tf.transpose(maps, [1, 2, 0, 3])[tf.newaxis]
        shape = [1, 2 * side, 2 * side, tf.shape(maps)[3], c]
        images = tf.nn.conv3d_transpose(maps, kernel[:, :, tf.newaxis], shape, [2, 2, 1])
        return tf.transpose(images[0], [2, 0, 1, 3])
    windows = tf.matmul(tf.reshape(maps, [-1, d]), tf.reshape(kernel, [-1, d]), transpose_b=True)
    shares = _shares(side, k)
    terms = _take(tf.reshape(windows, [-1, side**2, k**2, c]), shares)
    return tf.reduce_sum(tf.reshape(terms, [-1, 2 * side, 2 * side, shares.shape[1], c]), axis=3)


def _correlate(images, maps, shape):
    """The gradient of a kernel of this shape: each of its places correlates the map with the picture shifted so."""
    windows = _take(images, _windows(maps.shape[1], shape[0]))
    return tf.reshape(tf.matmul(windows, tf.reshape(maps, [-1, shape[3]]), transpose_a=True), shape)


def _take(images, places: np.ndarray):
    """At places, int [P, T] in 0 ... h * w, of images [N, h, w, C]: [N * P, T * C]; the place h * w holds zeros."""
    _, height, width, channels = images.shape
    flat = tf.pad(tf.reshape(images, [-1, height * width, channels]), [[0, 0], [0, 1], [0, 0]])
    return tf.reshape(tf.gather(flat, places.ravel(), axis=1), [-1, places.shape[1] * channels])


def _windows(side: int, k: int) -> np.ndarray:
    """The places in the picture that each pixel of the map sees, int [side * side, k * k]."""
    rows = 2 * np.arange(side)[:, np.newaxis] - (k - 2) // 2 + np.arange(k)  # [side, k]
    places = rows[:, None, :, None] * 2 * side + rows[:, None, :]  # [side, side, k, k]
    inside = (rows >= 0) & (rows < 2 * side)
    places[~(inside[:, None, :, None] & inside[:, None, :])] = (2 * side) ** 2
    return places.reshape(side**2, k**2)


def _shares(side: int, k: int) -> np.ndarray:
    """The places in all windows, flattened, that hold each pixel of the picture: int [4 * side * side, T]."""
    windows = _windows(side, k).ravel()
    holders = [np.flatnonzero(windows == place) for place in range((2 * side) ** 2)]
    most = max(map(len, holders))
    return np.array([np.pad(h, (0, most - len(h)), constant_values=len(windows)) for h in holders])


class Adam(keras.optimizers.Adam):
    """Keras' Adam, the same formula, but each variable is updated by one fused operation, in one pass of memory."""

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        steps = tf.cast(self.iterations + 1, tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=self.beta_1**steps,
            beta2_power=self.beta_2**steps,
            lr=learning_rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


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


def strategy() -> tf.distribute.Strategy:
    """What shares training out: over the workers of TF_CONFIG, this machine's GPUs, or TensorFlow's default of one.

    Waits for the other workers. Raises InputError where TF_CONFIG is wrong or this worker's port is taken.
    """
    if "TF_CONFIG" not in os.environ:
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")  # mostly one CPU
        return tf.distribute.MirroredStrategy(devices) if len(devices) > 1 else tf.distribute.get_strategy()
    try:
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        if (resolver.task_type, resolver.task_id) not in workers(resolver):
            raise ValueError(f"it has no {resolver.task_type} {resolver.task_id}")
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"TF_CONFIG is wrong, {error}: it must be such as "
            '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
        ) from error
    server = context.context()
    # TensorFlow's own 10 s are too few: a busy machine is taken for a dead one. There is no public setting
    server.configure_coordination_service = functools.partial(
        server.configure_coordination_service, heartbeat_timeout_in_ms=1000 * HEARTBEAT_SECONDS
    )
    with lost_workers_named():
        shared = tf.distribute.MultiWorkerMirroredStrategy()
    # TensorFlow has put a handler of its own in place, which only takes note
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return shared


def workers(resolver: tf.distribute.cluster_resolver.ClusterResolver) -> list[tuple[str, int]]:
    """(job, index) of all processes that train together, the chief first."""
    jobs = resolver.cluster_spec().as_dict()
    return [(job, index) for job in ("chief", "worker") for index in range(len(jobs.get(job, ())))]


def worker(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """(index, count) of this process among those that train together; 0 is the chief."""
    resolver = strategy.cluster_resolver
    if not resolver:
        return 0, 1
    return workers(resolver).index((resolver.task_type, resolver.task_id)), len(workers(resolver))


@contextlib.contextmanager
def lost_workers_named() -> Iterator[None]:
    """Within it what TensorFlow raises when another worker has gone is an InputError."""
    try:
        yield
    except LOST as error:
        raise InputError(
            f"another worker has stopped or cannot be reached ({type(error).__name__}): start all of them again with "
            "the same command, they go on from the last checkpoint"
        ) from error


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


@tf.custom_gradient
def total_variation(images):
    """Mean over the batch of half the squared differences between neighbours, per row and per column of pixels."""
    batch, (height, width) = tf.cast(tf.shape(images)[0], images.dtype), images.shape[1:3]
    rows = images[:, 1:] - images[:, :-1]
    columns = images[:, :, 1:] - images[:, :, :-1]

    def to_neighbours(differences, axis: int):
        before, after = np.zeros([2, 4, 2], int)
        before[axis, 0] = after[axis, 1] = 1
        # padded twice rather than once and sliced, which takes 0.04 s more of a step
        return tf.pad(differences, before) - tf.pad(differences, after)

    def gradient(upstream):
        # written out: TensorFlow's own keeps five maps as large as the images until the discriminator is through
        return upstream / batch * (to_neighbours(rows, 1) / height + to_neighbours(columns, 2) / width)

    return (tf.nn.l2_loss(rows) / height + tf.nn.l2_loss(columns) / width) / batch, gradient  # l2_loss halves


class StopRequest:
    """Within it the first Ctrl-C or SIGTERM is only noted, in `signal`; a second one ends the program at once.

    A thread listens for them: a handler of Python's would wait for TensorFlow to come back from the step in hand.
    """

    def __init__(self):
        self.signal = None
        self.handlers = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python hears no signals
            ours = (signal.SIGINT, signal.SIGTERM)
            self.handlers = {number: signal.signal(number, lambda *_: None) for number in ours}
            self.ear, self.mouth = socket.socketpair()  # Windows takes a socket, no pipe
            self.mouth.setblocking(False)
            self.wakeup = signal.set_wakeup_fd(self.mouth.fileno())
            self.listener = threading.Thread(target=self._listen, daemon=True)
            self.listener.start()
        return self

    def __exit__(self, *_) -> None:
        if self.handlers:
            signal.set_wakeup_fd(self.wakeup)
            for number, handler in self.handlers.items():
                signal.signal(number, handler)
            self.mouth.close()
            self.listener.join()
            self.ear.close()

    def _listen(self) -> None:
        while heard := self.ear.recv(1):
            if heard[0] in self.handlers:
                if self.signal:
                    os._exit(128 + heard[0])
                self.signal = heard[0]
                print("\nFinishing this batch, then saving ...", file=sys.stderr, flush=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder, made if need be, for this process alone; the system lets go of it whatever way a process ends.

    Raises InputError, with the other's host and process, where another holds it, and where the folder's name is a
    file's. Without fcntl (Windows), no lock; where the file system has none, a warning.
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
            except OSError as error:  # some network file systems
                print(f"{folder} cannot be locked ({error.strerror}): do not train twice into it", file=sys.stderr)
        file.truncate(0)
        print(f"process {os.getpid()} on {platform.node()}", file=file, flush=True)
        yield


def named_layers(network: keras.Model) -> dict[str, layers.Layer]:
    """The layers with weights, by name. Keras saves them by place: any new layer would spoil all checkpoints."""
    return {layer.name: layer for layer in network.layers if layer.weights}


def saved_checkpoints(folder: str | Path) -> list[str]:
    """The checkpoints in the folder that were written to their end, latest first: their paths without a suffix.

    They are those named in its file `checkpoint`; what is not named there is the rest of a write that was cut short.
    Where that file is itself lost or damaged, they are those with an index. A folder without any may hold the packed
    weights of a model that ships. Raises InputError for a path of which TensorFlow could read none.
    """
    if set("*?[") & set(str(folder)):
        raise InputError(f"{folder}: TensorFlow reads nothing from a path with * ? or [, give another --savedir")
    folder, state = Path(folder), Path(folder, "checkpoint")
    text = state.read_text(encoding="utf-8", errors="replace") if state.is_file() else ""
    # the reference program may have written the folder that it ran in
    latest, every = (re.findall(rf'^{key}: "(?:.*[/\\])?(.+)"$', text, re.MULTILINE) for key in STATE)
    if not latest or latest != every[-1:]:
        indices = [path.stem for path in folder.iterdir() if path.suffix == ".index"] if folder.is_dir() else []
        every = sorted(indices, key=lambda name: (len(name), name))  # model-5 before model-10
    if not every and (folder / PACKED).is_file():
        every = [PACKED]
    return [str(folder / name) for name in reversed(every)]


def keep_checkpoints(folder: Path, prefixes: Sequence[str]) -> None:
    """Have the file `checkpoint` name these, earliest first and the last one just written, and remove all others.

    The last one's files reach the disk itself before it is named: no power loss can make `checkpoint` name one that is
    not whole, nor take the one before.
    """
    latest, names = Path(prefixes[-1]).name, [Path(prefix).name for prefix in prefixes]
    for path in folder.glob(f"{latest}.*"):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    sync_folder(folder)
    with pictures.write_whole(folder / "checkpoint") as path:
        lines = zip([STATE[0], *(STATE[1] for _ in names)], [latest, *names], strict=True)
        path.write_text("".join(f'{key}: "{name}"\n' for key, name in lines))
    sync_folder(folder)
    remove_leftovers(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove the checkpoints that the folder's file `checkpoint` does not name, half-written ones too."""
    kept = [Path(prefix).name for prefix in saved_checkpoints(folder)]
    for path in folder.glob("model-*"):
        name = path.name.partition(".")[0]
        if name not in kept or ".tempstate" in path.name:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def is_reference(prefix: str) -> bool:
    """Whether a checkpoint is the reference program's: written by TensorFlow 1, which keeps no graph of objects."""
    return not tf.train.load_checkpoint(prefix).has_tensor(OBJECT_GRAPH)


def sync_folder(folder: Path) -> None:
    """Have the names of a folder's files reach the disk itself."""
    if os.name == "posix":  # Windows opens no folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def reason(error: Exception) -> str:
    """The first line of what went wrong."""
    text = getattr(error, "strerror", None) or getattr(error, "message", None) or error
    return (str(text) or type(error).__name__).splitlines()[0]


def reference_name(variable: keras.Variable) -> str:
    """The name that the reference program's checkpoints have for a weight: E_conv0/kernel is E_conv0/w there."""
    layer, name = variable.path.split("/")[-2:]
    return f"{layer}/{REFERENCE_NAMES.get(name, name)}"


def pack_weights(path: str | Path, networks: Sequence[keras.Model], bits: int = 8) -> None:
    """Write the weights of networks as a .npz, small: float16 with 16 bits, or int8 with a scale per output channel.

    Biases stay as they are. Keys are those of `reference_name`; of an int8 array w the scales are "w/scale".
    """
    arrays = {}
    for layer in itertools.chain.from_iterable(network.layers for network in networks):
        for variable in layer.weights:
            name, values = reference_name(variable), variable.numpy()
            if values.ndim > 1 and bits == 8:
                output = values.ndim - (2 if isinstance(layer, layers.Conv2DTranspose) else 1)
                others = tuple(axis for axis in range(values.ndim) if axis != output)
                scale = np.maximum(np.abs(values).max(axis=others, keepdims=True) / 127, np.finfo(np.float32).tiny)
                arrays[f"{name}/scale"] = scale
                values = np.rint(values / scale).astype(np.int8)
            elif values.ndim > 1:
                values = values.astype(np.float16)
            arrays[name] = values
    with pictures.write_whole(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def unpack_weights(path: str | Path, networks: Sequence[keras.Model]) -> None:
    """Put weights that `pack_weights` wrote into the networks. Raises InputError, with nothing changed, for others."""
    variables = [variable for network in networks for variable in network.weights]
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = [reference_name(variable) for variable in variables]
            values = [arrays[name].astype(np.float32) * arrays.get(f"{name}/scale", 1) for name in names]
        if any(value.shape != variable.shape for value, variable in zip(values, variables, strict=True)):
            raise ValueError("another network's")
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} is not a whole set of weights: get it again ({reason(error)})") from error
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
