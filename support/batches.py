"""One split into training and held-out faces, and the batches of an epoch, read ahead by threads."""

import contextlib
import functools
import hashlib
import os
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from support.dataset import Face, check_bad
from support.errors import InputError, first_names, printable
from support.images import BadImage
from support.labels import AgeBins, gender_labels
from support.terminal import progress

PRETRAINING_EPOCHS = 10  # epochs without adversarial losses, numbered -9 to 0
BATCHES_AHEAD = 2
INFERENCE_BATCH = 50  # images encoded or generated at a time, which bounds the memory
MOST_HELD_OUT = 100  # faces
FILES_A_TASK = 500  # one future for each of 163,446 files would cost more than reading them

Batch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def epoch_name(epoch: int) -> str:
    """Return the name of an epoch: 01, 02, ...; p01 to p10 for the epochs -9 to 0 of pre-training."""
    return f"{epoch:02d}" if epoch > 0 else f"p{epoch + PRETRAINING_EPOCHS:02d}"


class Split(NamedTuple):
    """A data set in two parts, and the record by which config.json identifies the second as "held_out"."""

    training: list[Face]
    held_out: list[Face]
    record: dict[str, str]  # file name by SHA-256 of each held-out face


def train_val_split(
    faces: Sequence[Face], seed: int, config: dict | None = None, log: Callable[[str], None] = print
) -> Split:
    """Split faces into those to train on and those held out, none of which is an exact copy of one trained on.

    config: the config.json of an earlier training, or {} for a new one. A new one holds out a tenth of the faces, 1 to
    100, by a seeded shuffle. An earlier one held out those in its record; a run that is older than the record held out
    those of the same shuffle, and trained on copies. `log` prints copies and missing faces. Raises InputError if the
    held-out faces are unknown or not in the data set.
    """
    shuffled = [faces[i] for i in np.random.default_rng(seed).permutation(len(faces))]
    held_out = shuffled[: min(MOST_HELD_OUT, max(1, len(faces) // 10))]
    before = (config or {}).get("training", {})
    if "held_out" in before:
        held_out = _find_recorded(faces, before["held_out"], log)
    elif before and before.get("faces") != len(faces):
        raise InputError(
            "which faces were held out of the training is unknown: the run has no record of them, and was made with "
            f"{before.get('faces', 'other')} faces, not these {len(faces):,}; --evaluate DIR measures on a folder"
        )
    chosen = set(held_out)
    training = [face for face in shuffled if face not in chosen]
    copies = find_copies(faces)
    if before and "held_out" not in before:
        held_out = _without_copies(held_out, training, copies)
        if not held_out:
            raise InputError(
                "the run was trained on copies of all its held-out faces: --evaluate DIR measures on a folder"
            )
        log(f"The run has no record of its held-out faces: {len(held_out):,} by its seed, of which it saw no copy")
    else:
        kept = _without_copies(training, held_out, copies)
        if copies and not before:
            first, second = _pair(copies)
            log(
                f"{len(copies) - len(set(copies.values())):,} images are exact copies of others, such as "
                f"{printable(second)} of {printable(first)}; {len(training) - len(kept):,} of them, copies of held-out "
                "faces, are not trained on"
            )
        training = kept
    digests = _digests([face.path for face in held_out])
    names = [Path(face.path).name for face in held_out]
    return Split(training, held_out, {digest: name for digest, name in zip(digests, names, strict=True) if digest})


def _find_recorded(faces: Sequence[Face], record: dict[str, str], log: Callable[[str], None]) -> list[Face]:
    """Return the faces of a record by content, in its order."""
    names = set(record.values())
    found = _by_content([face for face in faces if Path(face.path).name in names])
    if not record.keys() <= found.keys():  # some may have been renamed
        found = _by_content(faces) | found
    if missing := [name for digest, name in record.items() if digest not in found]:
        lost = f"{len(missing):,} of the {len(record):,} faces held out of the training are not in this data set"
        if len(missing) == len(record):
            raise InputError(f"{lost}: --evaluate DIR measures on a folder of other faces")
        log(lost + first_names(missing))
    return [found[digest] for digest in record if digest in found]


def count_seen(config: dict, faces: Sequence[Face]) -> int:
    """Return how many of the faces were not held out of the training of `config`."""
    record = config.get("training", {}).get("held_out", {})
    return sum(digest not in record for digest in _digests([face.path for face in faces]))


def labels_digest(faces: Sequence[Face]) -> str:
    """Return the SHA-256 of the names, ages and genders of faces, in their order."""
    rows = (f"{Path(face.path).name}/{face.age}/{face.gender}\n" for face in faces)
    return hashlib.sha256("".join(rows).encode(errors="surrogateescape")).hexdigest()


def find_copies(faces: Sequence[Face]) -> dict[str, str]:
    """Return the SHA-256, by path, of each image of which the set contains another with the same bytes.

    Only files of equal size are read.
    """
    by_size = defaultdict(list)
    for face in faces:
        with contextlib.suppress(OSError):  # a file removed since it was listed is reported when it is read
            by_size[Path(face.path).stat().st_size].append(face.path)
    paths = [path for group in by_size.values() if len(group) > 1 for path in group]
    digests = _digests(paths)
    times = Counter(digests)
    return {path: digest for path, digest in zip(paths, digests, strict=True) if digest and times[digest] > 1}


def _without_copies(faces: Sequence[Face], others: Sequence[Face], copies: dict[str, str]) -> list[Face]:
    """Return the faces of which no copy is among the others."""
    theirs = {copies[face.path] for face in others if face.path in copies}
    return [face for face in faces if copies.get(face.path) not in theirs]


def _pair(copies: dict[str, str]) -> tuple[str, str]:
    """Return the paths of two equal images; the same path twice if it was given twice."""
    digest = next(iter(copies.values()))
    paths = [path for path, other in copies.items() if other == digest]
    return paths[0], paths[-1]


def _by_content(faces: Sequence[Face]) -> dict[str, Face]:
    digests = _digests([face.path for face in faces])
    return {digest: face for digest, face in zip(digests, faces, strict=True) if digest}


def _digests(paths: Sequence[str]) -> list[str]:
    """Return the SHA-256 of each file's content, "" for a file that cannot be read."""

    def digest(path: str) -> str:
        try:
            return hashlib.sha256(Path(path).read_bytes()).hexdigest()
        except OSError:
            return ""

    parts = [paths[i : i + FILES_A_TASK] for i in range(0, len(paths), FILES_A_TASK)]
    with ThreadPoolExecutor() as readers:
        return [each for part in readers.map(lambda part: list(map(digest, part)), parts) for each in part]


class NothingRead(InputError):
    """None of some faces can be read."""

    def __init__(self, faces: Sequence[Face]):
        such = f", such as {printable(faces[0].path)}" if faces else ""
        super().__init__(f"none of {len(faces)} faces can be read{such}")


def read_images(
    faces: Sequence[Face], load_image: Callable[[str], np.ndarray], log: Callable[[str], None] = print
) -> tuple[np.ndarray, list[Face]]:
    """Return (images uint8 [N, S, S, C], their faces) for the faces that can be read.

    `log` prints the others. Raises InputError if none can be read.
    """
    images, read = [], []
    for face in faces:
        try:
            images.append(load_image(face.path))
            read.append(face)
        except BadImage as error:
            log(f"Left out: {error}")
    if not images:
        raise NothingRead(faces)
    return np.stack(images), read


def read_faces(
    faces: Sequence[Face], bins: AgeBins, load_image: Callable[[str], np.ndarray], log: Callable[[str], None] = print
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (images uint8 [N, S, S, C], age labels [N, bins], gender labels [N, 2]): see `read_images`."""
    images, read = read_images(faces, load_image, log)
    return images, *labels_of(read, bins)


def read_parts(
    faces: Sequence[Face], load_image: Callable[[str], np.ndarray], title: str
) -> Iterator[tuple[np.ndarray, list[Face]]]:
    """Yield what `read_images` returns for INFERENCE_BATCH faces at a time, with a progress bar.

    Raises InputError if no face at all can be read.
    """
    empty = True
    for i in progress(range(0, len(faces), INFERENCE_BATCH), title, unit="batch", delay=5):
        with contextlib.suppress(NothingRead):
            yield read_images(faces[i : i + INFERENCE_BATCH], load_image)
            empty = False
    if empty:
        raise NothingRead(faces)


def labels_of(faces: Sequence[Face], bins: AgeBins) -> tuple[np.ndarray, np.ndarray]:
    """Return the one-hot age labels, float32 [N, bins], and gender labels, float32 [N, 2], of faces."""
    return bins.one_hot([face.age for face in faces]), gender_labels([face.gender for face in faces])


def epoch_order(faces: Sequence[Face], bins: AgeBins, epoch: int, seed: int, balance: bool = False) -> np.ndarray:
    """Return the indices of an epoch's faces, int [N]; with balance every bin with faces is drawn equally often."""
    # seeds are not negative: epoch -9 is number 0
    random = np.random.default_rng([seed, 0, epoch + PRETRAINING_EPOCHS - 1])
    if not balance:
        return random.permutation(len(faces))
    index = bins.index([face.age for face in faces])
    groups = [np.flatnonzero(index == i) for i in np.unique(index)]
    share = int(np.ceil(len(faces) / len(groups)))
    drawn = [np.resize(random.permutation(group), share) for group in groups]  # repeats small groups
    return random.permutation(np.concatenate(drawn))[: len(faces)]


class BatchLoader:
    """The batches of a training, epoch by epoch, read ahead by threads.

    faces: the training faces. `load_image` reads a path as uint8 [S, S, C] or raises BadImage: a face that cannot be
    read is replaced by the next in the epoch's order and added to `bad`, {path: reason}. With balance the age bins are
    drawn equally often; with flip half of each batch is mirrored left to right. Of `world_size` workers, the one with
    number `rank` gets its own part of each batch. The last incomplete batch of an epoch is dropped; the length is the
    number of batches in an epoch. Raises InputError if the faces do not fill one batch.

    Not a tf.data.Dataset: one that calls Python hides its errors, and blocks a process that exits within an epoch.
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
            raise InputError("all faces are held out, and none is left to train on: add more to the data set")
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
        self.named = 0  # number of them that `newly_bad` has returned

    def __len__(self) -> int:
        return len(self.faces) // self.size_batch

    def of(self, epoch: int, first: int = 0, step: int = 0) -> Iterator[Batch]:
        """Yield the batches first, first + 1, ... of an epoch, which do not depend on `first`.

        Each is (images uint8 [B, S, S, C], age labels float32 [B, bins], gender labels float32 [B, 2], z_prior float32
        [B, Z] ~ U(-1, 1)). `step` is the number of steps before the first of them. The order is a function of (seed,
        epoch); z_prior and the mirrored faces are functions of (seed, step). Raises TooManyBad if more than one in ten
        images are bad.
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
        """Return the face at a place of the epoch's order or, if that is bad, the next one that is not."""
        while True:
            face = self.faces[order[place]]
            try:
                return face, self.load_image(face.path)
            except BadImage as error:
                self.bad[face.path] = error.reason
                check_bad(self.bad, len(self.faces))
                place = (place + 1) % len(order)

    def newly_bad(self) -> dict[str, str]:
        """Return the entries of `bad` that no earlier call has returned."""
        new = dict(list(self.bad.items())[self.named :])
        self.named += len(new)
        return new


def in_batches(method: Callable) -> Callable:
    """Run a method in chunks of INFERENCE_BATCH rows and return NumPy arrays."""

    @functools.wraps(method, updated=())
    def batched(self, *arrays: np.ndarray) -> np.ndarray:
        bound = method.__get__(self, type(self))  # a tf.function is traced once for each model
        parts = range(0, len(arrays[0]), INFERENCE_BATCH)
        return np.concatenate([bound(*(array[i : i + INFERENCE_BATCH] for array in arrays)).numpy() for i in parts])

    return batched
