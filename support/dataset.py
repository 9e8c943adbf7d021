"""Data sets: unpacked from archives, listed as labelled faces, and summarized as a table."""

import glob
import gzip
import hashlib
import itertools
import math
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from support import InputError, first_names, printable, reason
from support.images import FILES_PER_TASK, BadImage, in_tasks, open_image, suffixes, unsupported_reason
from support.labels import (
    CONVENTIONS,
    OLDEST,
    TABLE,
    TABLE_COLUMNS,
    UNKNOWN,
    AgeBins,
    parse_folders,
    parse_name,
    read_table,
)
from support.terminal import PROJECT, progress, relative_path

MAX_BAD_SHARE = 0.1  # a data set of which a larger share cannot be read ends the run
NAMES_SHOWN, REASONS_SHOWN = 3, 10
ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
CHUNK_BYTES = 1 << 20  # bytes
TAR_END = 1024  # bytes, all of them 0, at the end of every tar
DATA = PROJECT / "data"
DEMO = "demo"  # the included data set, data/demo.tar.gz


class TooManyBad(InputError):
    """More than one in ten images of a set cannot be read."""


class Face(NamedTuple):
    """An image of one face: its path, the age in years, and MALE, FEMALE or UNKNOWN."""

    path: str
    age: int
    gender: int


class Listing(NamedTuple):
    """The contents of a data set's folder."""

    faces: list[Face]  # in the order of their names
    skipped: list[tuple[str, str]]  # (name, reason) of each file or folder left out
    conventions: Counter[str]  # number of faces by the source of their labels


def find_dataset(name: str, data_folder: str | Path = "data") -> Path:
    """Return the folder of a data set, unpacked from NAME.tar.gz, .tgz, .tar or .zip if it is not there yet.

    Raises InputError if there is neither, or the archive cannot be unpacked.
    """
    folder = Path(data_folder, name)
    if _is_empty(folder) and (archive := _archive_of(folder)):
        with exclusive(folder, f"unpacks {archive}"):
            if _is_empty(folder):  # another process may have unpacked it meanwhile
                unpack(archive, folder)
    elif _is_empty(folder) or not folder.is_dir():
        pairs = ((path.name, suffix) for path in sorted(folder.parent.glob("*")) for suffix in ARCHIVES)
        packed = [(name, name.removesuffix(suffix)) for name, suffix in pairs if name.endswith(suffix)]
        others = [f"{archive}, for --dataset {other}" for archive, other in packed]
        raise InputError(
            f"no faces in {folder}{first_names(others, f'; {folder.parent} contains ')}: put them there "
            f"(see {relative_path(DATA / 'README.md')}), or get UTKFace.tar.gz for {folder.parent} from "
            "https://susanqq.github.io/UTKFace/, or try --dataset demo"
        )
    return folder


def _is_empty(folder: Path) -> bool:
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def _archive_of(folder: Path) -> Path | None:
    """Return the archive beside the folder that has its name, or the included one of the demo set, or None."""
    places = (folder, DATA / DEMO) if folder.name == DEMO else (folder,)
    paths = (place.with_name(place.name + suffix) for place in places for suffix in ARCHIVES)
    return next((path for path in paths if path.is_file()), None)


@contextmanager
def exclusive(folder: Path, task: str) -> Iterator[None]:
    """Let one process at a time make the folder; the others wait, and print so. The system frees a killed one's lock.

    The lock is a hidden file beside the folder, which stays. Without locks in the file system, processes do not wait.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"), fallback_to_soft=False)
    with ExitStack() as stack:
        try:
            try:
                stack.enter_context(lock.acquire(timeout=0))
            except Timeout:
                print(f"Waiting for another process, which {task}", flush=True)
                stack.enter_context(lock.acquire())
        except (OSError, NotImplementedError) as error:
            print(f"{folder} cannot be locked ({reason(error)}): start one process at a time")
        yield


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the archive, or the only folder in it, as `folder`: completely or, with an InputError, not at all."""
    partial = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(partial, ignore_errors=True)  # the remains of a killed process
    try:
        (_unpack_zip if archive.suffix == ".zip" else _unpack_tar)(archive, partial)
        partial.mkdir(exist_ok=True)  # of an empty archive
        inside = [path for path in partial.iterdir() if path.name != "__MACOSX"]  # which macOS adds
        if folder.exists():
            folder.rmdir()
        (inside[0] if len(inside) == 1 and inside[0].is_dir() else partial).rename(folder)
    except (
        *(OSError, EOFError, ValueError, OverflowError, RuntimeError),
        *(zlib.error, tarfile.TarError, zipfile.BadZipFile),
    ) as error:
        raise InputError(f"{archive} cannot be unpacked: {error}; download it again, or unpack it yourself") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unpack_tar(archive: Path, folder: Path) -> None:
    with ExitStack() as stack:
        file = stack.enter_context(archive.open("rb"))
        size = archive.stat().st_size
        if archive.suffix == ".tar":  # without the checksum that compression adds
            file.seek(max(0, size - TAR_END))
            if file.read() != bytes(TAR_END):
                raise ValueError("its end is missing")
            file.seek(0)
        bar = tqdm.wrapattr(file, "read", size, desc=f"Unpacking {archive}", disable=None)
        stream = stack.enter_context(bar)
        if archive.suffix != ".tar":
            stream = stack.enter_context(gzip.open(stream))
        with tarfile.open(fileobj=stream, mode="r|") as members:
            for member in members:
                if not member.isfile() and not member.isdir():
                    raise ValueError(f"it contains a link or a device, {printable(member.name)}")
                members.extract(member, folder, filter="data")  # refuses paths outside the folder
        while stream.read(CHUNK_BYTES):  # to the checksum: tarfile accepts an archive cut off before a header
            pass


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as members:
        for member in tqdm(members.infolist(), f"Unpacking {archive}", delay=2, disable=None):
            member.filename = member.filename.replace("\\", "/")  # as some programs on Windows write
            kind = stat.S_IFMT(member.external_attr >> 16)  # 0 if packed on Windows
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ValueError(f"it contains a link or a device, {printable(member.filename)}")
            if ".." in PurePosixPath(member.filename).parts:
                raise ValueError(f"{printable(member.filename)} is outside the folder")
            if member.flag_bits & 1:
                raise ValueError("it has a password: unpack it by hand")
            members.extract(member, folder)  # raises BadZipFile for a wrong checksum


def image_names(folder: str | Path) -> list[str]:
    """Return the images in the folder and below, known by their suffixes, as sorted posix paths relative to it."""
    return find_files(folder)[0]


def find_files(folder: str | Path) -> tuple[list[str], dict[str, str]]:
    """Return (the images in the folder and below, what is left out, with the reasons).

    Left out are folders that cannot be listed and images in formats that are not read. Both are posix paths relative
    to the folder, the images sorted; a folder's path ends with "/". Raises InputError if the folder itself cannot be
    listed.
    """
    folder = Path(folder)
    names, left_out = [], {}

    def report(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise InputError(f"{printable(folder)}: {error.strerror}")
        left_out[Path(error.filename).relative_to(folder).as_posix() + "/"] = f"a folder: {error.strerror}"

    for parent, folders, files in os.walk(folder, onerror=report):
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = "" if Path(parent) == folder else Path(parent).relative_to(folder).as_posix() + "/"
        for name in files:
            if name.startswith("."):
                continue
            if name.lower().endswith(suffixes()):
                names.append(prefix + name)
            elif why := unsupported_reason(name):
                left_out[prefix + name] = why
    return sorted(names), left_out


def bad_headers(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the images whose header cannot be read, each with the reason; pixels are not decoded."""

    def why_bad(name: str) -> str:
        try:
            with open_image(folder / name):
                return ""
        except BadImage as error:
            return error.reason

    title, tasks = f"Checking {printable(folder)}", math.ceil(len(names) / FILES_PER_TASK)
    bar = progress(in_tasks(why_bad, names), title, tasks, unit="image", unit_scale=FILES_PER_TASK, delay=2)
    return {name: why for name, why in zip(names, itertools.chain.from_iterable(bar), strict=True) if why}


def check_bad(bad: dict[str, str], total: int) -> None:
    """Raise TooManyBad, with the first names, if more than one in ten of `total` images are bad (reason by path)."""
    if len(bad) > total * MAX_BAD_SHARE:
        first = "; ".join(f"{printable(name)}: {reason}" for name, reason in list(bad.items())[:NAMES_SHOWN])
        raise TooManyBad(
            f"{len(bad):,} of {total:,} images cannot be read, more than one in ten: {first}; replace or remove them"
        )


def list_faces(folder: str | Path, unknown_gender: bool = False) -> Listing:
    """Return the labelled faces in the folder and below, labelled by labels.csv or else by their names.

    If no image has such a label, folders named by age label them. Raises InputError for a wrong table, for faces
    without a gender unless `unknown_gender`, if more than one in ten images are bad, and if no face is left.
    """
    folder = Path(folder)
    names, left_out = find_files(folder)
    labels = {name: label for name in names if (label := parse_name(name))}
    absent = {}
    if (folder / TABLE).is_file():
        listed, absent = read_table(folder / TABLE, names, labels)
        labels |= listed
    labels = labels or parse_folders(names)
    skipped = {name: "its name fits no convention" for name in names if name not in labels}
    for name, label in labels.items():
        if not 0 <= label.age <= OLDEST:
            skipped[name] = "age below 0" if label.age < 0 else f"age above {OLDEST}"
    kept = [name for name in names if name not in skipped]
    bad = bad_headers(folder, kept)
    check_bad(bad, len(kept))
    kept = [name for name in kept if name not in bad]
    if not kept:
        raise InputError(
            f"no labelled faces in {folder} ({len(names):,} images{first_names(names)}): names must be those of "
            f"{', '.join(CONVENTIONS)}, or be labelled in {TABLE} or by folders named by age "
            f"(see {relative_path(DATA / 'README.md')})"
        )
    lacking = [name for name in kept if labels[name].gender == UNKNOWN]
    if lacking and not unknown_gender:
        raise InputError(
            f"{len(lacking):,} of {len(kept):,} faces have no gender{first_names(lacking)}: give it in "
            f"{folder / TABLE} (columns {','.join(TABLE_COLUMNS)}), or train without: --unknown_gender True"
        )
    faces = [Face(str(folder / name), labels[name].age, labels[name].gender) for name in kept]
    skipped = sorted((skipped | bad | left_out | absent).items())
    return Listing(faces, skipped, Counter(labels[name].source for name in kept))


def data_digest(faces: Sequence[Face]) -> str:
    """Return a digest of the names, sizes, ages and genders of faces, in their order."""
    digest = hashlib.sha256()
    for path, age, gender in faces:
        try:
            size = Path(path).stat().st_size
        except OSError:  # reported when it is read
            size = -1
        digest.update(f"{Path(path).name}/{size}/{age}/{gender}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def describe(listing: Listing, bins: AgeBins) -> str:
    """Return a table in plain text: faces by convention, by age bin and gender, and the files skipped."""
    counts = np.zeros((len(bins), 3), int)  # columns are male, female and, as UNKNOWN is -1, unknown last
    np.add.at(counts, (bins.index([face.age for face in listing.faces]), [face.gender for face in listing.faces]), 1)
    names = {convention: f"{convention} names" for convention in CONVENTIONS}
    lines = [f"{names.get(source, source)}: {count:,} faces" for source, count in listing.conventions.items()]
    rows = [("age", "male", "female", "unknown", "all")]
    for name, row in zip([*bins.names, "all"], [*counts, counts.sum(axis=0)], strict=True):
        rows.append((name, *(f"{count:,}" for count in (*row, row.sum()))))
    lines += ["{:>8}{:>9}{:>9}{:>9}{:>9}".format(*row) for row in rows]
    if listing.skipped:
        lines.append(f"skipped {len(listing.skipped):,} files:")
    for why, count in Counter(why for _, why in listing.skipped).most_common(REASONS_SHOWN):
        lines.append(f"  {count:,}, {why}{first_names([name for name, other in listing.skipped if other == why])}")
    return "\n".join(lines)


def find_images(testdir: list[str]) -> list[Path]:
    """Return the images that --testdir names: several names if a shell has expanded a pattern itself.

    Names without an image are printed and left out. Raises InputError if no name has one.
    """
    paths, empty = [], []
    for name in testdir:
        try:
            found = _images_under(name)
        except InputError as error:
            empty.append(str(error))
            continue
        except OSError as error:  # a name that is too long, or in a folder that cannot be listed
            empty.append(f"{printable(name)}: {reason(error)}")
            continue
        paths += found
        if not found:
            empty.append(f"no images in {printable(name)}")
    if not paths:
        raise InputError(f"{'; '.join(empty[:NAMES_SHOWN])}: give --testdir a folder of faces, an image, or a pattern")
    for line in empty:
        print(f"Left out: {line}")
    return paths


def _images_under(name: str) -> list[Path]:
    if Path(name).is_dir():
        names, left_out = find_files(name)
        for inner, why in left_out.items():
            print(f"Left out: {printable(Path(name, inner))}: {why}")
        return [Path(name, image) for image in names]
    if Path(name).is_file():  # a file's own name may look like a pattern: me[1].jpg
        return [Path(name)]
    return [Path(match) for match in sorted(glob.glob(name, recursive=True)) if Path(match).is_file()]
