"""How faces are split, the order of an epoch, its batches read ahead; open it where training reads its faces."""

import contextlib
import functools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from support.dataset import Face, check_bad
from support.errors import InputError, printable
from support.images import BadPicture
from support.labels import AgeBins, gender_labels
from support.terminal import progress

PRETRAINING_EPOCHS = 10  # epochs without adversaries, numbered -9 to 0: before and outside those of the training proper
BATCHES_AHEAD = 2
INFERENCE_BATCH = 50  # images encoded or generated at a time: bounds the memory whatever the number of faces

Batch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def epoch_name(epoch: int) -> str:
    """Returns what an epoch is called where it shows: 01, 02, ...; pre-training, -9 to 0, is p01 to p10."""
    return f"{epoch:02d}" if epoch > 0 else f"p{epoch + PRETRAINING_EPOCHS:02d}"


def split(faces: Sequence[Face], seed: int) -> tuple[list[Face], list[Face]]:
    """Returns (training, held out) of a seeded shuffle; held out is a tenth of the faces, from 1 to 100."""
    shuffled = [faces[i] for i in np.random.default_rng(seed).permutation(len(faces))]
    held_out = min(100, max(1, len(faces) // 10))
    return shuffled[held_out:], shuffled[:held_out]


class NothingRead(InputError):
    """None of some faces can be read."""

    def __init__(self, faces: Sequence[Face]):
        such = f", such as {printable(faces[0].path)}" if faces else ""
        super().__init__(f"none of {len(faces)} faces can be read{such}")


def read_images(
    faces: Sequence[Face], load_image: Callable[[str], np.ndarray], say: Callable[[str], None] = print
) -> tuple[np.ndarray, list[Face]]:
    """Returns (images uint8 [N, S, S, C], their faces) of those that can be read.

    What cannot be read is named by `say`. Raises InputError where that is everything.
    """
    images, read = [], []
    for face in faces:
        try:
            images.append(load_image(face.path))
            read.append(face)
        except BadPicture as error:
            say(f"Left out: {error}")
    if not images:
        raise NothingRead(faces)
    return np.stack(images), read


def read_faces(
    faces: Sequence[Face], bins: AgeBins, load_image: Callable[[str], np.ndarray], say: Callable[[str], None] = print
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (images uint8 [N, S, S, C], age labels [N, bins], gender labels [N, 2]): see `read_images`."""
    images, read = read_images(faces, load_image, say)
    return images, *labels_of(read, bins)


def read_parts(
    faces: Sequence[Face], load_image: Callable[[str], np.ndarray], title: str
) -> Iterator[tuple[np.ndarray, list[Face]]]:
    """Yields what `read_images` returns for INFERENCE_BATCH faces at a time, under a progress bar.

    A part of which nothing can be read is passed over. Raises InputError where that is every part.
    """
    empty = True
    for i in progress(range(0, len(faces), INFERENCE_BATCH), title, unit="batch", delay=5):
        with contextlib.suppress(NothingRead):
            yield read_images(faces[i : i + INFERENCE_BATCH], load_image)
            empty = False
    if empty:
        raise NothingRead(faces)


def labels_of(faces: Sequence[Face], bins: AgeBins) -> tuple[np.ndarray, np.ndarray]:
    """Returns the one-hot age labels, float32 [N, bins], and gender labels, float32 [N, 2], of faces."""
    return bins.one_hot([face.age for face in faces]), gender_labels([face.gender for face in faces])


def epoch_order(faces: Sequence[Face], bins: AgeBins, epoch: int, seed: int, balance: bool = False) -> np.ndarray:
    """Returns the indices of an epoch's faces, int [N]; with balance every bin with faces is drawn equally often."""
    # a seed may not be negative: the first epoch that there can be, -9, is number 0
    random = np.random.default_rng([seed, 0, epoch + PRETRAINING_EPOCHS - 1])
    if not balance:
        return random.permutation(len(faces))
    index = bins.index([face.age for face in faces])
    groups = [np.flatnonzero(index == i) for i in np.unique(index)]
    share = int(np.ceil(len(faces) / len(groups)))
    drawn = [np.resize(random.permutation(group), share) for group in groups]  # repeats a group that is too small
    return random.permutation(np.concatenate(drawn))[: len(faces)]


class BatchLoader:
    """The batches of a training, epoch by epoch, read ahead by threads; made once.

    faces: those trained on. `load_image` reads a path as uint8 [S, S, C] or raises BadPicture: a face that cannot be
    read is replaced by the next of the epoch's order and put into `bad`, {path: reason}. With balance the age bins are
    drawn equally often; with flip half of each batch is mirrored left to right. Of `world_size` workers, this one,
    number `rank`, gets its own part of each batch. The last short batch of an epoch is dropped; the length is the
    number of batches in an epoch. Raises InputError where the faces fill not even one.

    It is no tf.data.Dataset: one that runs Python hides its errors, and hangs a process that ends in the middle of it.
    """

    def __init__(
        self,
        faces: Sequence[Face],
        bins: AgeBins,
        load_image: Callable[[str], np.ndarray],
        *,
        size_batch: int,
        num_z_channels: int,
        seed: int,
        balance: bool = False,
        flip: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ):
        if not faces:
            raise InputError("one face is held out, and none is left to train on: put more into the data set")
        if len(faces) < size_batch:
            raise InputError(
                f"{len(faces)} faces to train on do not fill one batch of {size_batch}: "
                f"pass --batch_size {len(faces)} or less"
            )
        self.faces = faces
        self.bins = bins
        self.load_image = load_image
        self.size_batch = size_batch
        self.num_z_channels = num_z_channels
        self.seed = seed
        self.balance = balance
        self.flip = flip
        part = size_batch // world_size
        self.part = slice(rank * part, (rank + 1) * part)  # this worker's faces of a batch
        self.bad: dict[str, str] = {}
        self.named = 0  # how many of them `newly_bad` has returned

    def __len__(self) -> int:
        return len(self.faces) // self.size_batch

    def of(self, epoch: int, first: int = 0, step: int = 0) -> Iterator[Batch]:
        """Yields the batches first, first + 1, ... of an epoch, as they are whenever it is begun.

        Each is (images uint8 [B, S, S, C], age labels float32 [B, bins], gender labels float32 [B, 2], z_prior float32
        [B, Z] ~ U(-1, 1)). `step` is the number of steps before the first of them. The order is a function of (seed,
        epoch), z_prior and what is mirrored of (seed, step). Raises TooManyBad where more than one in ten are bad.
        """
        order = epoch_order(self.faces, self.bins, epoch, self.seed, self.balance)
        ahead = deque()
        with ThreadPoolExecutor(os.cpu_count()) as readers, ThreadPoolExecutor(1) as stacker:
            try:
                for batch in range(first, len(self)):
                    ahead.append(stacker.submit(self._read, readers, order, batch, step + batch - first))
                    if len(ahead) > BATCHES_AHEAD:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def _read(self, readers: ThreadPoolExecutor, order: np.ndarray, batch: int, step: int) -> Batch:
        start = batch * self.size_batch
        places = range(start + self.part.start, start + self.part.stop)
        faces, images = zip(*readers.map(lambda place: self._load(order, place), places), strict=True)
        images = np.stack(images)
        if self.flip:
            mirrored = self._random(2, step).permutation(self.size_batch) < self.size_batch // 2
            mirrored = mirrored[self.part]
            images[mirrored] = images[mirrored, :, ::-1]
        z_prior = self._random(1, step).uniform(-1, 1, (self.size_batch, self.num_z_channels))
        return images, *labels_of(faces, self.bins), z_prior[self.part].astype(np.float32)

    def _random(self, purpose: int, step: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, purpose, step])

    def _load(self, order: np.ndarray, place: int) -> tuple[Face, np.ndarray]:
        """Returns the face at a place of the epoch's order or, where that is bad, the next one that is not."""
        while True:
            face = self.faces[order[place]]
            try:
                return face, self.load_image(face.path)
            except BadPicture as error:
                self.bad[face.path] = error.reason
                check_bad(self.bad, len(self.faces))
                place = (place + 1) % len(order)

    def newly_bad(self) -> dict[str, str]:
        """Returns those of `bad` that an earlier call has not returned."""
        new = dict(list(self.bad.items())[self.named :])
        self.named += len(new)
        return new


def in_batches(method: Callable) -> Callable:
    """Makes a method on tensors one on arrays, which is computed for INFERENCE_BATCH rows at a time."""

    @functools.wraps(method, updated=())
    def batched(self, *arrays: np.ndarray) -> np.ndarray:
        bound = method.__get__(self, type(self))  # of a tf.function, the one that is traced for this model
        parts = range(0, len(arrays[0]), INFERENCE_BATCH)
        return np.concatenate([bound(*(array[i : i + INFERENCE_BATCH] for array in arrays)).numpy() for i in parts])

    return batched
