"""Which faces are held out, the order of an epoch, its batches read ahead; open it where training reads its faces."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from support.dataset import Face, check_bad
from support.errors import InputError
from support.images import BadPicture
from support.labels import AgeBins, gender_labels

FIRST_EPOCH = -9  # ten pre-training epochs, -9 to 0, come before epoch 1
BATCHES_AHEAD = 2


def split(faces: Sequence[Face], seed: int) -> tuple[list[Face], list[Face]]:
    """(training, held out) of a seeded shuffle; held out are a tenth of the faces, at least 1 and at most 100."""
    shuffled = [faces[i] for i in np.random.default_rng(seed).permutation(len(faces))]
    held_out = min(100, max(1, len(faces) // 10))
    return shuffled[held_out:], shuffled[:held_out]


def epoch_order(faces: Sequence[Face], bins: AgeBins, epoch: int, seed: int, balance: bool = False) -> np.ndarray:
    """Indices of an epoch's faces, int [N]; with balance every bin that has faces is drawn equally often."""
    random = np.random.default_rng([seed, 0, epoch - FIRST_EPOCH])
    if not balance:
        return random.permutation(len(faces))
    index = bins.index([face.age for face in faces])
    groups = [np.flatnonzero(index == i) for i in np.unique(index)]
    share = -(-len(faces) // len(groups))
    drawn = [np.resize(random.permutation(group), share) for group in groups]  # repeats a group that is too small
    return random.permutation(np.concatenate(drawn))[: len(faces)]


def epoch_batches(
    faces: Sequence[Face],
    bins: AgeBins,
    *,
    epoch: int,
    first_batch: int,
    first_step: int,
    batch_size: int,
    num_z_channels: int,
    load_image: Callable[[str], np.ndarray],
    seed: int,
    bad: dict[str, str],
    balance: bool = False,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Batches first_batch, first_batch + 1, ... of an epoch, as they are whenever it is begun.

    Yields (images uint8 [B, S, S, C], age labels float32 [B, bins], gender labels float32 [B, 2], z_prior float32
    [B, Z] ~ U(-1, 1)), read ahead by threads. The order is a function of (seed, epoch), z_prior of (seed, step); the
    last short batch is dropped. `load_image` reads a path as uint8 [S, S, C] or raises BadPicture: a face that cannot
    be read is replaced by the next of the epoch's order and put into `bad` (reason by path). A worker of shard (index,
    count) gets its own part of each batch. Raises TooManyBad when more than one in ten faces are bad, and InputError if
    the workers cannot share a batch equally.

    Not a tf.data.Dataset: one that runs Python hides its errors, and hangs a process that ends in the middle of it.
    """
    order = epoch_order(faces, bins, epoch, seed, balance)
    worker, workers = shard
    if batch_size % workers:
        raise InputError(f"--batch_size {batch_size} cannot be shared by {workers} workers: make it a multiple")
    part = batch_size // workers

    def load(position: int) -> tuple[Face, np.ndarray]:
        """The face at a position of the epoch or, where that is bad, the next one that is not."""
        while True:
            face = faces[order[position]]
            try:
                return face, load_image(face.path)
            except BadPicture as error:
                bad[face.path] = error.reason
                check_bad(bad, len(faces))
                position = (position + 1) % len(order)

    def read(batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        start = batch * batch_size + worker * part
        chosen, images = zip(*readers.map(load, range(start, start + part)), strict=True)
        step = first_step + batch - first_batch
        z_prior = np.random.default_rng([seed, 1, step]).uniform(-1, 1, (batch_size, num_z_channels))
        return (
            np.stack(images),
            bins.one_hot([face.age for face in chosen]),
            gender_labels([face.gender for face in chosen]),
            z_prior[worker * part : (worker + 1) * part].astype(np.float32),
        )

    ahead = deque()
    with ThreadPoolExecutor(os.cpu_count()) as readers, ThreadPoolExecutor(1) as stacker:
        try:
            for batch in range(first_batch, len(order) // batch_size):
                ahead.append(stacker.submit(read, batch))
                if len(ahead) > BATCHES_AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
