"""The split into training and held-out faces, and the batches of an epoch, prefetched by threads."""

import dataclasses
import itertools
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from support import InputError, first_names, printable
from support.config import records_training
from support.dataset import Face, check_bad
from support.images import BadImage, find_copies, hash_files, read_images
from support.labels import AgeBins, gender_labels, parse_person
from support.pretrained import is_trained_on

PRETRAINING_EPOCHS = 10  # epochs with all loss weights 0, numbered -9 to 0
BATCHES_AHEAD = 2
MOST_HELD_OUT = 100  # faces

Batch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def epoch_name(epoch: int) -> str:
    """Return the name of an epoch: 01, 02, ...; p01 to p10 for the epochs -9 to 0 of pre-training."""
    return f"{epoch:02d}" if epoch > 0 else f"p{epoch + PRETRAINING_EPOCHS:02d}"


class Split(NamedTuple):
    """A data set in two parts, and what config.json records of it."""

    training: list[Face]
    held_out: list[Face]
    notes: dict  # "held_out", file names by SHA-256; "people", their number if whole people are held out


def train_val_split(
    faces: Sequence[Face],
    seed: int,
    config: dict | None = None,
    log: Callable[[str], None] = print,
    init_model: str | None = None,
) -> Split:
    """Split faces into those to train on and those held out, none of which is an exact copy of one trained on.

    config: the config.json of an earlier training, or {} for a new one. A new one holds out a tenth of the faces, 1 to
    100, by a seeded shuffle; if file names identify people, faces of up to 100 people, a tenth of them, whose other
    photos are not trained on; and none that the included model `init_model` was trained on, unless it was trained on
    all. An earlier training held out the faces in its record; a run older than the record, those of the same shuffle.
    `log` prints copies, people and missing faces. Raises InputError if the held-out faces are unknown
    or not in the data set.
    """
    shuffled = [faces[i] for i in np.random.default_rng(seed).permutation(len(faces))]
    before = config["training"] if records_training(config) else {}
    people = set()
    if "held_out" in before:
        held_out = _find_recorded(faces, before["held_out"], log)
        people = _people_in(before["held_out"].values()) if before.get("people") else set()
    elif before:
        held_out = _find_unrecorded(shuffled, before.get("faces"))
    else:
        held_out, people = _choose(shuffled, init_model)
    chosen, copies = set(held_out), find_copies([face.path for face in faces])
    training = [face for face in shuffled if face not in chosen]
    if people:
        training = [face for face in training if parse_person(face.path) not in people]
    if before and "held_out" not in before:  # it was trained on copies
        held_out = _without_copies(held_out, training, copies)
        if not held_out:
            raise InputError("all held-out faces have copies that were trained on: --evaluate DIR measures on a folder")
        log(f"The run has no record of its held-out faces: {len(held_out):,} by its seed that have no copy")
    else:
        others, training = training, _without_copies(training, held_out, copies)
        if not before:
            if not unseen_by(init_model, held_out):
                log(f"The included model {init_model} was trained on all faces: measure on others, --evaluate DIR")
            _log_split(faces, copies, len(others) - len(training), people, len(held_out), log)
    digests = zip(hash_files([face.path for face in held_out]), held_out, strict=True)
    record = {digest: Path(face.path).name for digest, face in digests if digest}
    return Split(training, held_out, {"held_out": record} | ({"people": len(people)} if people else {}))


def _choose(shuffled: list[Face], init_model: str | None) -> tuple[list[Face], set[tuple[str, str]]]:
    """Return the faces that a new training holds out, and the people that it does not train on."""
    photos = defaultdict(list)  # by person; a face without one counts as a person
    for face in shuffled:
        photos[parse_person(face.path) or face.path].append(face)
    unseen = unseen_by(init_model, shuffled) or shuffled
    most = _held_out_count(shuffled)
    if len(photos) in (1, len(shuffled)):
        return unseen[:most], set()
    allowed = set(unseen)
    people = [[face for face in group if face in allowed] for group in photos.values()]
    people = [group for group in people if group][: _held_out_count(photos)]
    # the first photo of each person, then the second, ...
    held_out = [face for row in itertools.zip_longest(*people) for face in row if face][:most]
    return held_out, _people_in(face.path for face in held_out)


def unseen_by(included: str | None, faces: Sequence[Face]) -> list[Face]:
    """Return the faces on which an included model, or no model, was not trained."""
    seen = is_trained_on(included, [face.path for face in faces]) if included else [False] * len(faces)
    return [face for face, is_seen in zip(faces, seen, strict=True) if not is_seen]


def choose_evaluation_faces(
    faces: Sequence[Face], training: Sequence[Face], included: str | None
) -> tuple[list[Face], dict]:
    """Return the faces to evaluate a model on, and what evaluation.json records of them; print what they lack.

    faces: those held out of its training on `training`, or any faces if that is empty. included: the included model
    that it began from, or is. Faces that it was trained on are left out, unless there are no others.
    """
    unseen = unseen_by(included, faces)
    notes = {"held_out": bool(training and unseen), "init_model": included, "init_model_trained_on": 0}
    if len(unseen) < len(faces):
        notes["init_model_trained_on"] = len(faces) - len(unseen)
        print(f"The included model {included} was trained on {len(faces) - len(unseen):,} of {len(faces):,} faces")
    if training and unseen:
        faces = unseen
    if people := _people_in(face.path for face in faces):
        known = people & _people_in(face.path for face in training)
        print(f"Faces of {len(people):,} people, {len(known):,} of whom the model was trained on in other photos")
        notes |= {"people": len(people), "people_trained_on": len(known)}
    return list(faces), notes


def _held_out_count(items: Sequence | dict) -> int:
    """Return how many of the faces, or of the people, are held out."""
    return min(MOST_HELD_OUT, max(1, len(items) // 10))


def _people_in(paths: Iterable[str]) -> set[tuple[str, str]]:
    return {person for path in paths if (person := parse_person(path))}


def _find_unrecorded(shuffled: list[Face], count: int | None) -> list[Face]:
    """Return the faces that a run without a record held out of `count` faces."""
    if count != len(shuffled):
        raise InputError(
            "which faces were held out of the training is unknown: the run has no record of them, and was made with "
            f"{count or 'other'} faces, not these {len(shuffled):,}; --evaluate DIR measures on a folder"
        )
    return shuffled[: _held_out_count(shuffled)]


def _log_split(faces: Sequence[Face], copies: dict, left_out: int, people: set, held_out: int, log: Callable) -> None:
    """Print how many people are held out, and what copies there are."""
    if people:
        log(f"Held out: {held_out:,} faces of {len(people):,} people, whose other photos are not trained on")
    groups = defaultdict(list)
    for face in faces:
        if face.path in copies:
            groups[copies[face.path]].append(face)
    if groups:
        first, *_, second = next(iter(groups.values()))
        log(
            f"{len(copies) - len(groups):,} images are exact copies of others, such as {printable(second.path)} of "
            f"{printable(first.path)}; {left_out:,} of them, copies of held-out faces, are not trained on"
        )
    if differing := [group for group in groups.values() if len({face[1:] for face in group}) > 1]:
        paths = first_names([face.path for face in differing[0]], ", such as ")
        log(f"{len(differing):,} images have copies with another age or gender{paths}")


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


def _by_content(faces: Sequence[Face]) -> dict[str, Face]:
    digests = hash_files([face.path for face in faces])
    return {digest: face for digest, face in zip(digests, faces, strict=True) if digest}


def _without_copies(faces: Sequence[Face], others: Sequence[Face], copies: dict[str, str]) -> list[Face]:
    """Return the faces of which no copy is among the others."""
    digests = {copies[face.path] for face in others if face.path in copies}
    return [face for face in faces if copies.get(face.path) not in digests]


def read_faces(
    faces: Sequence[Face], bins: AgeBins, load_image: Callable[[str], np.ndarray], log: Callable[[str], None] = print
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (images uint8 [N, S, S, C], age labels [N, bins], gender labels [N, 2]): see `read_images`."""
    images, read = read_images(faces, load_image, log)
    return images, *labels_of(read, bins)


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


@dataclasses.dataclass(eq=False)
class BatchLoader:
    """The batches of a training, epoch by epoch, read ahead by threads.

    faces: the training faces. `load_image` reads a path as uint8 [S, S, C] or raises BadImage: a face that cannot be
    read is replaced by the next in the epoch's order and added to `bad`, {path: reason}. With balance the age bins are
    drawn equally often; with flip half of each batch is mirrored left to right. Of `world_size` workers, the one with
    number `rank` gets its own part of each batch. The last incomplete batch of an epoch is dropped; the length is the
    number of batches in an epoch. Raises InputError if the faces do not fill one batch.

    Not a tf.data.Dataset: one that calls Python hides its errors, and blocks a process that exits within an epoch.
    """

    faces: Sequence[Face]
    bins: AgeBins
    load_image: Callable[[str], np.ndarray]
    _: dataclasses.KW_ONLY
    size_batch: int
    num_z_channels: int
    seed: int
    balance: bool = False
    flip: bool = False
    rank: int = 0
    world_size: int = 1

    def __post_init__(self):
        if not self.faces:
            raise InputError("all faces are held out, and none is left to train on: add more to the data set")
        if len(self) < 1:
            raise InputError(
                f"{len(self.faces)} faces to train on do not fill one batch of {self.size_batch}: "
                f"pass --batch_size {len(self.faces)} or less"
            )
        part = self.size_batch // self.world_size
        self.part = slice(self.rank * part, (self.rank + 1) * part)  # this worker's faces of a batch
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
