"""Precision, distribution strategy, worker start-up, and the training step on several devices."""

import contextlib
import functools
import os
import signal
import socket
import time
import zlib
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import keras
import tensorflow as tf
from tensorflow.python.eager import context

from support import InputError, exhausted, reason
from support.config import LARGEST_SEED

HEARTBEAT_SECONDS = 60  # a worker without a heartbeat for this long is considered dead
JOIN_SECONDS = 1800  # how long a worker waits for the others to start
JOIN_FIRST_LINE_SECONDS, JOIN_LINE_SECONDS = 5, 60  # to the first line about it, and between further lines
JOIN_PAUSE, JOIN_PATIENCE = 0.5, 2  # seconds between connection attempts, and their timeout
LOST_WORKER_ERRORS = (  # raised by collective operations when the connection to another worker breaks
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
    tf.errors.UnknownError,
)


def best_precision() -> tuple[str, str]:
    """Return a Keras dtype policy and the reason: mixed_bfloat16 if this machine computes in bfloat16, else float32."""
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


def choose_strategy() -> tf.distribute.Strategy:
    """Return the strategy for the workers of TF_CONFIG, or for this machine's GPUs, or TensorFlow's default.

    Waits for the other workers and prints which are missing. Raises InputError if TF_CONFIG is invalid, if this
    worker's port is in use, or if another worker has not started within JOIN_SECONDS.
    """
    if "TF_CONFIG" not in os.environ:
        found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")  # usually one CPU
        return tf.distribute.MirroredStrategy(found) if len(found) > 1 else tf.distribute.get_strategy()
    try:
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        if (resolver.task_type, resolver.task_id) not in _workers(resolver):
            raise ValueError(f"no {resolver.task_type} {resolver.task_id}")
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"TF_CONFIG is invalid, {error}: set it like "
            '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
        ) from error
    _await_workers(resolver)
    _lengthen_heartbeat()
    with translate_lost_workers():
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    # TensorFlow's C++ runtime has replaced the handler of SIGTERM and ignores the signal: set Python's handler again
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return strategy


def _await_workers(resolver: tf.distribute.cluster_resolver.ClusterResolver) -> None:
    """Return once all other workers have started; until then print which are missing.

    TensorFlow would wait without output and ignore Ctrl-C and SIGTERM. Therefore each worker first listens on its own
    port, and frees the port for TensorFlow when it has connected to all others.
    """
    address = resolver.cluster_spec().task_address(resolver.task_type, resolver.task_id)
    try:
        here = socket.create_server(("", int(address.rpartition(":")[2])))
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f"this worker cannot listen on {address} of TF_CONFIG: {reason(error)}") from error
    begun, next_line = time.monotonic(), JOIN_FIRST_LINE_SECONDS
    since, until = (f"{datetime.now() + timedelta(seconds=seconds):%H:%M:%S}" for seconds in (0, JOIN_SECONDS))
    with here:
        here.setblocking(False)
        while absent := _absent_workers(resolver):
            with contextlib.suppress(BlockingIOError):
                while True:  # connections of other workers
                    here.accept()[0].close()
            waited = time.monotonic() - begun
            if waited > JOIN_SECONDS:
                raise InputError(
                    f"{', '.join(absent)} did not start from {since} to {until}: start the same command there, with "
                    "its own TF_CONFIG, and make its port reachable from here"
                )
            if waited >= next_line:
                next_line = waited + JOIN_LINE_SECONDS
                print(f"Waiting for {', '.join(absent)} since {since}, until {until}", flush=True)
            time.sleep(JOIN_PAUSE)


def _absent_workers(resolver: tf.distribute.cluster_resolver.ClusterResolver) -> list[str]:
    """Return the other workers that accept no connection, such as "worker 1 (host2:2222)"."""
    jobs, absent = resolver.cluster_spec().as_dict(), []
    for job, index in _workers(resolver):
        if (job, index) == (resolver.task_type, resolver.task_id):
            continue
        host, _, port = jobs[job][index].rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), port), timeout=JOIN_PATIENCE).close()
        except (OSError, UnicodeError):
            absent.append(f"{job} {index} ({jobs[job][index]})")
    return absent


def _lengthen_heartbeat() -> None:
    # with TensorFlow's 10 s a busy machine is considered dead; there is no public setting
    server = context.context()
    server.configure_coordination_service = functools.partial(
        server.configure_coordination_service, heartbeat_timeout_in_ms=1000 * HEARTBEAT_SECONDS
    )


def _workers(resolver: tf.distribute.cluster_resolver.ClusterResolver) -> list[tuple[str, int]]:
    """Return (job, index) of all processes that train together, the chief first."""
    jobs = resolver.cluster_spec().as_dict()
    return [(job, index) for job in ("chief", "worker") for index in range(len(jobs.get(job, ())))]


@contextlib.contextmanager
def translate_out_of_memory() -> Iterator[None]:
    """Raise InputError within it where memory, that of a GPU included, or threads are exhausted."""
    try:
        yield
    except Exception as error:
        if message := exhausted(error):
            raise InputError(message) from error
        raise


@contextlib.contextmanager
def translate_lost_workers() -> Iterator[None]:
    """Raise InputError within it if the connection to another worker breaks."""
    try:
        yield
    except LOST_WORKER_ERRORS as error:
        raise InputError(
            f"another worker has stopped or cannot be reached ({type(error).__name__}): start all workers again with "
            "the same command, to resume from the last checkpoint"
        ) from error


def _set_keras(policy, floatx: str, image_data_format: str) -> None:
    keras.config.set_dtype_policy(policy)
    keras.config.set_floatx(floatx)
    keras.config.set_image_data_format(image_data_format)


class Devices:
    """The devices of all workers, and this process's rank among them.

    `replicas` is the number of devices, each of which computes an equal part of a batch; `world_size` is the number of
    processes (workers), `rank` this one's index. Only rank 0, the chief, writes files and prints.
    """

    def __init__(self, strategy: tf.distribute.Strategy | None = None):
        self.strategy = strategy or tf.distribute.get_strategy()
        self.replicas = self.strategy.num_replicas_in_sync
        resolver = self.strategy.cluster_resolver
        workers = _workers(resolver) if resolver else [None]
        self.world_size = len(workers)
        self.rank = workers.index((resolver.task_type, resolver.task_id)) if resolver else 0
        self.is_chief = self.rank == 0

    @contextlib.contextmanager
    def building(self, precision: str) -> Iterator[None]:
        """Build Keras networks within it on these devices, in a precision (a Keras dtype policy), channels last.

        Keras' global settings are restored afterwards: a user's program may have its own.
        """
        settings = keras.config.dtype_policy(), keras.config.floatx(), keras.config.image_data_format()
        _set_keras(precision, "float32", "channels_last")
        try:
            with self.strategy.scope(), translate_out_of_memory():
                yield
        finally:
            _set_keras(*settings)

    def seed(self, number: int) -> None:
        """Seed the global random generators of Python, NumPy and TensorFlow. Raises InputError for other numbers."""
        if not 0 <= number <= LARGEST_SEED:
            raise InputError(f"seed {number} is not within 0-{LARGEST_SEED}")
        keras.utils.set_random_seed(number)

    def log(self, line: str) -> None:
        """Print a line, if this is the chief."""
        if self.is_chief:
            print(line, flush=True)

    def check(self, size_batch: int, precision: str) -> None:
        """Raise InputError if the batch cannot be divided equally, or the precision not be used, on these devices."""
        if size_batch % self.replicas:
            share = max(1, size_batch // self.replicas)
            raise InputError(
                f"--batch_size {size_batch} cannot be divided equally among {self.replicas} devices: "
                f"use {share * self.replicas} or another multiple of {self.replicas}"
            )
        if self.replicas > 1 and precision == "mixed_float16":
            # Keras checks each replica's gradients for overflow separately: only some would skip a step
            raise InputError("mixed_float16 trains on one device only: use --precision mixed_bfloat16 or float32")

    def make_deterministic(self) -> None:
        """Make TensorFlow's operations deterministic for the rest of this process, unless there is a GPU.

        On a CPU the cost is negligible.
        """
        if not tf.config.list_physical_devices("GPU"):
            tf.config.experimental.enable_op_determinism()

    def run(self, update, batch: tuple, *constants) -> tuple[dict, dict]:
        """Return update(*batch, *constants), which is (losses, outputs), computed on all devices.

        batch: arrays [N, ...], this worker's part of the batch, divided equally among its devices. The losses are means
        over all devices, the outputs those of this worker's devices.
        """
        if self.replicas == 1:
            return update(*batch, *constants)
        local = self.replicas // self.world_size
        parts = [tf.reshape(x, [local, -1, *x.shape[1:]]) for x in batch]

        def update_part():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            return update(*(x[replica % local] for x in parts), *constants)

        losses, outputs = self.strategy.run(update_part)
        losses = {name: self.strategy.reduce("MEAN", loss, axis=None) for name, loss in losses.items()}
        return losses, {name: tf.concat(self.strategy.experimental_local_results(x), 0) for name, x in outputs.items()}

    @tf.function
    def sum_of_workers(self, number):
        """Return the sum of the workers' numbers, int64, each counted once a device. All workers must call it."""
        return self.strategy.reduce("SUM", self.strategy.run(lambda: tf.cast(number, tf.int64)), axis=None)

    def check_agreement(self, *facts) -> None:
        """Raise InputError if the workers differ in these values."""
        mine = zlib.crc32(repr(facts).encode())
        if self.world_size > 1 and self.sum_of_workers(mine) != mine * self.replicas:
            raise InputError(
                "the workers differ in the flags, the faces or the checkpoint: use the same command, the same data and "
                "a shared --savedir for all of them"
            )
