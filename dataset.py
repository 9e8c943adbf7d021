"""What a face file is called and means: age bins, labels, the file-name conventions, and the input pipeline."""

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

if TYPE_CHECKING:
    import tensorflow as tf

AGE_BOUNDS = (5, 10, 15, 20, 30, 40, 50, 60, 70)  # the last age of each bin but the open last one
OLDEST = 120
MALE, FEMALE, UNKNOWN = 0, 1, -1
FIRST_EPOCH = -9  # ten pre-training epochs, -9 to 0, come before epoch 1
MAX_PIXELS = 100_000_000
BAD_SHARE = 0.1  # of the set: more bad pictures than this end the run
PREFETCHED_BATCHES = 2
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # of the content: web sets hold GIFs called .jpg
# of a name without its suffix; groups: age, gender where the convention has one
CONVENTIONS = {
    "UTKFace": re.compile(r"(?P<age>\d{1,3})_(?P<gender>[01])_[0-4]_\d{8}.*"),
    "FG-NET": re.compile(r"\d{3}a(?P<age>\d{2})[a-z]?", re.IGNORECASE),
    "MORPH": re.compile(r"\d+_\d+(?P<gender>[mf])(?P<age>\d{2,3})", re.IGNORECASE),
    "CACD": re.compile(r"(?P<age>\d{1,3})_.*[^\W\d_].*_\d{4}"),
}
GENDERS = {"0": MALE, "m": MALE, "male": MALE, "1": FEMALE, "f": FEMALE, "female": FEMALE, "": UNKNOWN}

# pictures past Pillow's own limit are refused by open_picture: its warning would only say so twice
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class InputError(ValueError):
    """What a user gave cannot be used: one line that names the thing and the mend."""


class BadPicture(InputError):
    """A file that cannot be read as a picture; `reason` says why."""

    def __init__(self, path: str | Path, reason: str):
        self.reason = reason
        super().__init__(f"{shown(str(path))}: {reason}")


class AgeBins:
    """Age bins: bounds (5, 10) make 0-5, 6-10 and 11+. Raises InputError unless they rise strictly within 1-119."""

    def __init__(self, bounds: Sequence[int] = AGE_BOUNDS):
        edges = [0, *bounds, OLDEST]
        if len(edges) < 3 or any(low >= high for low, high in zip(edges, edges[1:], strict=False)):
            raise InputError(
                f"age bounds {','.join(map(str, bounds))} must be one or more ages that rise within 1-{OLDEST - 1}, "
                f"such as {','.join(map(str, AGE_BOUNDS))}"
            )
        self.bounds = tuple(bounds)
        lows = [0, *(bound + 1 for bound in bounds)]
        closed = list(zip(lows, self.bounds, strict=False))
        self.names = [f"{low}-{high}" for low, high in closed] + [f"{lows[-1]}+"]
        self.centres = [(low + high) / 2 for low, high in closed] + [self.bounds[-1] + 8.0]  # years

    def __len__(self) -> int:
        return len(self.names)

    def index(self, ages: Sequence[int] | np.ndarray) -> np.ndarray:
        """The bin of each age in years, int [N]."""
        return np.searchsorted(self.bounds, ages)

    def one_hot(self, ages: Sequence[int] | np.ndarray) -> np.ndarray:
        """Labels of training: float32 [N, bins], +1 at the age's bin and -1 elsewhere."""
        return np.eye(len(self), dtype=np.float32)[self.index(ages)] * 2 - 1

    def interpolated(self, ages: Sequence[float] | np.ndarray) -> np.ndarray:
        """Labels of aging: float32 [N, bins] in [-1, 1], linear between the bins' centres, clamped outside them."""
        hats = [np.interp(ages, self.centres, hat) for hat in np.eye(len(self))]
        return np.stack(hats, axis=-1).astype(np.float32) * 2 - 1


def gender_labels(genders: Sequence[int] | np.ndarray) -> np.ndarray:
    """float32 [N, 2]: +1 at the gender and -1 at the other, (0, 0) for UNKNOWN."""
    genders = np.asarray(genders)[:, np.newaxis]
    return np.where(genders == UNKNOWN, 0, np.where(genders == (MALE, FEMALE), 1, -1)).astype(np.float32)


class Face(NamedTuple):
    """A picture of one face: its path, age in years, and MALE, FEMALE or UNKNOWN."""

    path: str
    age: int
    gender: int


class Listing(NamedTuple):
    """What a folder holds: faces in the order of names, (name, reason) of each file left out, faces by convention."""

    faces: list[Face]
    skipped: list[tuple[str, str]]
    conventions: Counter[str]


def shown(name: str) -> str:
    """The name as it can be printed on one line of any terminal."""
    return name if name.isprintable() else ascii(name)


def parse_name(name: str) -> tuple[str, int, int] | None:
    """(convention, age, gender) that a file name says, or None where it fits no convention."""
    stem = Path(name).stem
    for convention, pattern in CONVENTIONS.items():
        if match := pattern.fullmatch(stem):
            labels = match.groupdict(default="")
            return convention, int(labels["age"]), GENDERS[labels.get("gender", "").lower()]
    return None


def picture_names(folder: str | Path) -> list[str]:
    """Pictures in the folder and below, by suffix: sorted posix paths relative to it."""
    folder = Path(folder)
    names = []
    for parent, _, files in os.walk(folder):
        prefix = "" if Path(parent) == folder else Path(parent).relative_to(folder).as_posix() + "/"
        names += [prefix + name for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    return sorted(names)


@contextmanager
def open_picture(path: str | Path) -> Iterator[Image.Image]:
    """Open a picture, its pixels not yet decoded. Raises BadPicture for whatever is wrong, in the with block too."""
    try:
        if not Path(path).is_file():  # a pipe would wait for ever
            raise BadPicture(path, "no such file")
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadPicture(path, f"{image.width} x {image.height} pixels, the limit is {MAX_PIXELS:,} in all")
            yield image
    except BadPicture:
        raise
    except UnidentifiedImageError as error:
        raise BadPicture(path, "not a picture" if Path(path).stat().st_size else "empty file") from error
    except Exception as error:  # a malformed picture makes Pillow raise nearly anything
        raise BadPicture(path, " ".join(str(error).split()) or type(error).__name__) from error


def list_faces(folder: str | Path) -> Listing:
    """The labelled faces in the folder and below. Raises InputError if there are none."""
    faces, skipped, conventions = [], [], Counter()
    for name in picture_names(folder):
        labels = parse_name(name)
        if labels is None:
            skipped.append((name, "its name fits no convention"))
            continue
        convention, age, gender = labels
        conventions[convention] += 1
        faces.append(Face(str(Path(folder, name)), age, gender))
    if not faces:
        raise InputError(f"no faces in {folder}")
    return Listing(faces, skipped, conventions)


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
    size_image: int,
    channels: int,
    num_z_channels: int,
    seed: int,
    balance: bool = False,
    cache: dict[str, np.ndarray] | None = None,
    bad: dict[str, str] | None = None,
    shard: tuple[int, int] = (0, 1),
) -> "tf.data.Dataset":
    """Batches first_batch, first_batch + 1, ... of an epoch, as they are whenever it is begun.

    Returns a dataset of (images uint8 [B, S, S, C], age labels float32 [B, bins], gender labels float32 [B, 2],
    z_prior float32 [B, Z] ~ U(-1, 1)). The order is a function of (seed, epoch), z_prior of (seed, step).
    """
    import tensorflow as tf

    from ops import load_image

    order = epoch_order(faces, bins, epoch, seed, balance)
    worker, workers = shard
    part = batch_size // workers
    bad = {} if bad is None else bad

    def load(position: int) -> tuple[Face, np.ndarray]:
        """The face at a position of the epoch, or, where it is bad, one that (seed, epoch, position) draws."""
        random = np.random.default_rng([seed, 2, epoch - FIRST_EPOCH, position])
        while True:
            face = faces[order[position]]
            try:
                if cache is None:
                    return face, load_image(face.path, size_image, channels)
                if face.path not in cache:
                    cache[face.path] = load_image(face.path, size_image, channels)
                return face, cache[face.path]
            except BadPicture as error:
                bad[face.path] = error.reason
                check_bad(bad, len(faces))
                position = random.integers(len(order))

    def batches() -> Iterator[tuple[np.ndarray, ...]]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for batch in range(first_batch, len(order) // batch_size):
                start = batch * batch_size + worker * part
                chosen, images = zip(*pool.map(load, range(start, start + part)), strict=True)
                step = first_step + batch - first_batch
                z_prior = np.random.default_rng([seed, 1, step]).uniform(-1, 1, (batch_size, num_z_channels))
                yield (
                    np.stack(images),
                    bins.one_hot([face.age for face in chosen]),
                    gender_labels([face.gender for face in chosen]),
                    z_prior[worker * part : (worker + 1) * part].astype(np.float32),
                )

    signature = (
        tf.TensorSpec((part, size_image, size_image, channels), tf.uint8),
        tf.TensorSpec((part, len(bins)), tf.float32),
        tf.TensorSpec((part, 2), tf.float32),
        tf.TensorSpec((part, num_z_channels), tf.float32),
    )
    return tf.data.Dataset.from_generator(batches, output_signature=signature).prefetch(PREFETCHED_BATCHES)


def check_bad(bad: dict[str, str], total: int) -> None:
    """Raise InputError, with the first names, if more than one in ten of `total` pictures are bad (path: reason)."""
    if len(bad) > total * BAD_SHARE:
        first = "; ".join(f"{shown(name)}: {reason}" for name, reason in list(bad.items())[:3])
        raise InputError(f"{len(bad):,} of {total:,} pictures cannot be read, more than one in ten: {first}")
