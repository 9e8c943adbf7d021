"""What a face file is called and means: age bins, labels, the file-name conventions, and the input pipeline."""

import csv
import gzip
import json
import os
import re
import shutil
import tarfile
import warnings
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

AGE_BOUNDS = (5, 10, 15, 20, 30, 40, 50, 60, 70)  # the last age of each bin but the open last one
OLDEST = 120
MALE, FEMALE, UNKNOWN = 0, 1, -1
FIRST_EPOCH = -9  # ten pre-training epochs, -9 to 0, come before epoch 1
MAX_PIXELS = 100_000_000
BAD_SHARE = 0.1  # of the set: more bad pictures than this end the run
NAMES_SHOWN, REASONS_SHOWN = 3, 10
READ_AT_ONCE = 1 << 20  # bytes
HEADERS_A_TASK = 500  # a future for each of 163,446 pictures would cost more than the reading
BATCHES_AHEAD = 2
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
TABLE = "labels.csv"
SHIPPED_MODEL = Path(__file__).parent / "demo" / "model"
COLUMNS = ["file", "age", "gender"]

# what is wrong with a picture is said once, with its name, by BadPicture
warnings.filterwarnings("ignore", module="PIL")


class InputError(ValueError):
    """What a user gave cannot be used: one line that names the thing and the mend."""


class BadPicture(InputError):
    """A file that cannot be read as a picture; `reason` says why."""

    def __init__(self, path: str | Path, reason: str):
        self.reason = reason
        super().__init__(f"{shown(str(path))}: {reason}")


class TooManyBad(InputError):
    """More than one in ten pictures of a set cannot be read."""


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


def read_config(save_dir: str | Path) -> dict:
    """What the run in save_dir remembers: {"model": the constructor's arguments, "training", "versions"}, or {}."""
    path = Path(save_dir) / "config.json"
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return {name: dict(config[name]) for name in ("model", "training", "versions")}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not what a run writes: mend it, or give another --savedir") from error


def shown(name: str) -> str:
    """The name as it can be printed on one line of any terminal."""
    return name if name.isprintable() else ascii(name)


def find_dataset(name: str, data_folder: str | Path = "data") -> Path:
    """The folder of a data set; one still packed as NAME.tar.gz is unpacked. Raises InputError if it holds nothing."""
    folder = Path(data_folder, name)
    archive = Path(data_folder, f"{name}.tar.gz")
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if empty and archive.is_file():
        unpack(archive, folder)
    elif empty or not folder.is_dir():
        raise InputError(
            f"no faces in {folder}: put them there (see data/README.md), or get UTKFace.tar.gz for {folder.parent} "
            "from https://susanqq.github.io/UTKFace/, or try --dataset demo"
        )
    return folder


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the archive, or the one folder it holds, as `folder`: whole or, with an InputError, not at all."""
    partial = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    try:
        size = archive.stat().st_size
        with (
            archive.open("rb") as file,
            tqdm.wrapattr(file, "read", size, desc=f"Unpacking {archive}", disable=None) as packed,
            gzip.open(packed) as stream,
            tarfile.open(fileobj=stream, mode="r|") as members,
        ):
            for member in members:
                if not member.isfile() and not member.isdir():
                    raise ValueError(f"it holds a link or a device, {shown(member.name)}")
                members.extract(member, partial, filter="data")  # refuses what would leave the folder
            while stream.read(READ_AT_ONCE):  # to the checksum: tarfile takes an archive cut at a header for whole
                pass
        held = list(partial.iterdir())
        if folder.exists():
            folder.rmdir()
        (held[0] if len(held) == 1 and held[0].is_dir() else partial).rename(folder)
    except (OSError, EOFError, ValueError, OverflowError, zlib.error, tarfile.TarError) as error:
        raise InputError(f"{archive} cannot be unpacked: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: {error.strerror}")

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
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
                raise Image.DecompressionBombError  # as Pillow itself does, but beyond a higher limit
            yield image
    except BadPicture:
        raise
    except UnidentifiedImageError as error:
        raise BadPicture(path, "not a picture" if Path(path).stat().st_size else "empty file") from error
    except Image.DecompressionBombError as error:
        raise BadPicture(path, f"more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:  # a malformed picture makes Pillow raise nearly anything
        raise BadPicture(path, " ".join(str(error).split()) or type(error).__name__) from error


def read_table(table: Path, names: set[str]) -> dict[str, tuple[str, int, int]]:
    """(TABLE, age, gender) by file name. Raises InputError with the line of the first row that is wrong."""
    labels = {}
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file, skipinitialspace=True, strict=True)
        try:
            columns = [column.strip().lower() for column in next(rows, [])]
            if columns != COLUMNS:
                raise ValueError(f"the columns are {','.join(columns)}, not {','.join(COLUMNS)}")
            for row in filter(None, rows):
                if len(row) != len(COLUMNS):
                    raise ValueError(f"{len(row)} columns, not {','.join(COLUMNS)}")
                name, age, gender = row[0].replace("\\", "/"), row[1].strip(), row[2].strip().lower()
                if name not in names:
                    raise ValueError(f"{table.parent} holds no picture {shown(name)}")
                if name in labels:
                    raise ValueError(f"{shown(name)} has a row already")
                if not re.fullmatch(r"\d{1,3}", age) or int(age) > OLDEST:
                    raise ValueError(f"age {shown(age)} is not a whole number within 0-{OLDEST}")
                if gender not in GENDERS:
                    raise ValueError(f"gender {shown(gender)} is none of 0, 1, m, f, male, female, nor empty")
                labels[name] = TABLE, int(age), GENDERS[gender]
        except UnicodeDecodeError as error:
            raise InputError(f"{table}: not in UTF-8, save it so") from error
        except (ValueError, csv.Error) as error:
            raise InputError(f"{table}, line {rows.line_num}: {error}") from error
    return labels


def bad_headers(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Why it cannot be read, for each picture of which that shows in its header; pixels are not decoded."""

    def check(part: Sequence[str]) -> dict[str, str]:
        bad = {}
        for name in part:
            try:
                with open_picture(folder / name):
                    pass
            except BadPicture as error:
                bad[name] = error.reason
        return bad

    parts = [names[i : i + HEADERS_A_TASK] for i in range(0, len(names), HEADERS_A_TASK)]
    with ThreadPoolExecutor() as pool:
        found = pool.map(check, parts)
        bar = tqdm(found, f"Looking at {folder}", len(parts), unit_scale=HEADERS_A_TASK, delay=2, disable=None)
        return {name: reason for bad in bar for name, reason in bad.items()}


def check_bad(bad: dict[str, str], total: int) -> None:
    """Raise TooManyBad, with the first names, if more than one in ten of `total` pictures are bad (reason by path)."""
    if len(bad) > total * BAD_SHARE:
        first = "; ".join(f"{shown(name)}: {reason}" for name, reason in list(bad.items())[:NAMES_SHOWN])
        raise TooManyBad(f"{len(bad):,} of {total:,} pictures cannot be read, more than one in ten: {first}")


def list_faces(folder: str | Path, unknown_gender: bool = False) -> Listing:
    """The labelled faces in the folder and below: labels are those of labels.csv, else what the name says.

    Raises InputError for a wrong table, for faces without a gender unless `unknown_gender`, where more than one in
    ten pictures are bad, and where no face is left.
    """
    folder = Path(folder)
    names = picture_names(folder)
    labels = {name: said for name in names if (said := parse_name(name))}
    if (folder / TABLE).is_file():
        labels |= read_table(folder / TABLE, set(names))
    skipped = {name: "its name fits no convention" for name in names if name not in labels}
    skipped |= {name: f"age above {OLDEST}" for name, (_, age, _) in labels.items() if age > OLDEST}
    kept = [name for name in names if name not in skipped]
    bad = bad_headers(folder, kept)
    check_bad(bad, len(kept))
    kept = [name for name in kept if name not in bad]
    if not kept:
        raise InputError(
            f"no labelled faces in {folder} ({len(names):,} pictures{first_names(names)}): names must be those of "
            f"{', '.join(CONVENTIONS)}, or be labelled in {TABLE} (see data/README.md)"
        )
    faces = [Face(str(folder / name), *labels[name][1:]) for name in kept]
    lacking = [name for name in kept if labels[name][2] == UNKNOWN]
    if lacking and not unknown_gender:
        raise InputError(
            f"{len(lacking):,} of {len(faces):,} faces have no gender{first_names(lacking)}: give it in "
            f"{folder / TABLE} (columns {','.join(COLUMNS)}), or train without: --unknown_gender True"
        )
    return Listing(faces, sorted((skipped | bad).items()), Counter(labels[name][0] for name in kept))


def first_names(names: Sequence[str]) -> str:
    """The first few names, to follow a count: ", first a.jpg, b.jpg"."""
    return ", first " + ", ".join(map(shown, names[:NAMES_SHOWN])) if names else ""


def summary(listing: Listing, bins: AgeBins) -> str:
    """A table in plain text of what was found: faces by convention, by age bin and gender, and what was skipped."""
    counts = np.zeros((len(bins), 3), int)  # male, female, unknown: UNKNOWN, -1, is the last column
    np.add.at(counts, (bins.index([face.age for face in listing.faces]), [face.gender for face in listing.faces]), 1)
    names = {TABLE: TABLE} | {convention: f"{convention} names" for convention in CONVENTIONS}
    lines = [f"{names[convention]}: {count:,} faces" for convention, count in listing.conventions.items()]
    rows = [("age", "male", "female", "unknown", "all")]
    for name, row in zip([*bins.names, "all"], [*counts, counts.sum(axis=0)], strict=True):
        rows.append((name, *(f"{count:,}" for count in (*row, row.sum()))))
    lines += ["{:>8}{:>9}{:>9}{:>9}{:>9}".format(*row) for row in rows]
    if listing.skipped:
        lines.append(f"skipped {len(listing.skipped):,} files:")
    for reason, count in Counter(reason for _, reason in listing.skipped).most_common(REASONS_SHOWN):
        lines.append(f"  {count:,}, {reason}{first_names([name for name, why in listing.skipped if why == reason])}")
    return "\n".join(lines)


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
    flip: bool = False,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Batches first_batch, first_batch + 1, ... of an epoch, as they are whenever it is begun.

    Yields (images uint8 [B, S, S, C], age labels float32 [B, bins], gender labels float32 [B, 2], z_prior float32
    [B, Z] ~ U(-1, 1)), read ahead by threads. The order is a function of (seed, epoch), z_prior of (seed, step); the
    last short batch is dropped. With flip half of each batch, drawn by (seed, step), is mirrored left to right.
    `load_image` reads a path as uint8 [S, S, C] or raises BadPicture: a face that cannot be read is replaced by the
    next of the epoch's order and put into `bad` (reason by path). A worker of shard (index, count) gets its own part of
    each batch. Raises TooManyBad when more than one in ten faces are bad, and InputError if the workers cannot share a
    batch equally.

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
        images = np.stack(images)
        if flip:
            mirrored = np.random.default_rng([seed, 2, step]).permutation(batch_size) < batch_size // 2
            mirrored = mirrored[worker * part : (worker + 1) * part]
            images[mirrored] = images[mirrored, :, ::-1]
        return (
            images,
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
