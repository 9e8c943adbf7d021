"""What face files are called, and the labelled faces in a folder; open it to add a data set or a naming convention."""

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from support.alignment import looks_aligned
from support.archives import archive_of, archives_in, unpack
from support.draw_faces import DRAWN_NAME, draw_dataset
from support.errors import InputError, printable, reason
from support.images import BadPicture, fit_image, open_picture, read_image, suffixes, why_unread
from support.labels import GENDERS, OLDEST, UNKNOWN, AgeBins
from support.table import COLUMNS, FROM_A_RANGE, TABLE, parse_age, read_table
from support.terminal import PROJECT, from_here, progress

BAD_SHARE = 0.1  # a set of which a larger share cannot be read ends the run
NAMES_SHOWN, REASONS_SHOWN = 3, 10
ALIGNMENT_SAMPLE = 100  # pictures, evenly spaced over a set, that are looked at for alignment
ALIGNMENT_SIDE = 64  # pixels that they are looked at with
DOUBTFUL_SHARE = 0.2  # of UTKFace's own faces 0.001 are doubted
HEADERS_A_TASK = 500  # a future for each of 163,446 images would cost more than reading them
# Each pattern matches a file name without its suffix and captures the age and, where the convention has it, the gender.
CONVENTIONS = {
    "UTKFace": re.compile(r"(?P<age>\d{1,3})_(?P<gender>[01])_[0-4]_\d{8}.*"),
    "FG-NET": re.compile(r"\d{3}a(?P<age>\d{2})[a-z]?", re.IGNORECASE),
    "MORPH": re.compile(r"\d+_\d+(?P<gender>[mf])(?P<age>\d{2,3})", re.IGNORECASE),
    "CACD": re.compile(r"(?P<age>\d{1,3})_.*[^\W\d_].*_\d{4}"),
    "AgeDB": re.compile(r"\d+_.*[^\W\d_].*_(?P<age>\d{1,3})_(?P<gender>[mf])", re.IGNORECASE),
}
FOLDERS = "folders named by age"  # where neither names nor a table say anything
LABELS_GUIDE = PROJECT / "data" / "README.md"
DEMO = "demo"  # the data set that the program draws itself
ALIGNED = "_aligned"  # what --align True adds to the name of a data set of photos


def aligned_name(photos: str) -> str:
    """Returns the name of the data set of faces that `--align True` makes of a data set of photos."""
    return f"{Path(photos).as_posix()}{ALIGNED}"


def photos_name(aligned: str) -> str:
    """Returns the name of the data set of photos that one of aligned faces is made of.

    Raises InputError where the name is not that of such a set.
    """
    if not aligned.endswith(ALIGNED):
        raise InputError(f"the run was made with the faces of {aligned} as they are: leave out --align")
    return aligned.removesuffix(ALIGNED)


class TooManyBad(InputError):
    """More than one in ten images of a set cannot be read."""


class Face(NamedTuple):
    """An image of one face: its path, the age in years, and MALE, FEMALE or UNKNOWN."""

    path: str
    age: int
    gender: int


class Listing(NamedTuple):
    """What a folder holds.

    The faces in the order of their names, (name, reason) of each file or folder left out, and the number of faces by
    convention.
    """

    faces: list[Face]
    skipped: list[tuple[str, str]]
    conventions: Counter[str]


def find_dataset(name: str, data_folder: str | Path = "data") -> Path:
    """Returns the folder of a data set: one still packed, as NAME.tar.gz or .zip, is unpacked, the set `demo` drawn.

    Raises InputError where there are no faces.
    """
    folder = Path(data_folder, name)
    if name == DEMO and not folder.exists():
        print(f"Renderer faces into {folder} ...", flush=True)
        draw_dataset(folder)
    archive = archive_of(name, folder.parent)
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if empty and archive:
        unpack(archive, folder)
    elif empty or not folder.is_dir():
        others = [f"{packed}, for --dataset {other}" for packed, other in archives_in(folder.parent).items()]
        raise InputError(
            f"no faces in {folder}{first_names(others, f'; {folder.parent} holds ')}: put them there "
            f"(see {from_here(LABELS_GUIDE)}), or get UTKFace.tar.gz for {folder.parent} from "
            "https://susanqq.github.io/UTKFace/, or try --dataset demo"
        )
    return folder


def parse_name(name: str) -> tuple[str, int, int] | None:
    """Returns the (convention, age, gender) that a file name states, or None where it fits no convention."""
    stem = Path(name).stem
    for convention, pattern in CONVENTIONS.items():
        if match := pattern.fullmatch(stem):
            labels = match.groupdict(default="")
            return convention, int(labels["age"]), GENDERS[labels.get("gender", "").lower()]
    return None


def parse_folders(name: str) -> tuple[str, int, int] | None:
    """Returns the (convention, age, gender) that the folders of a picture's path say, or None where none is an age.

    An age is a whole number of years or a range, such as 25/ or 20-29/; a gender is a word, such as female/.
    """
    folders = Path(name).parts[-2::-1]  # the nearest first
    found = next((age for folder in folders if (age := parse_age(folder))), None)
    genders = (GENDERS.get(folder.lower(), UNKNOWN) for folder in folders if not folder[0].isdigit())
    gender = next((gender for gender in genders if gender != UNKNOWN), UNKNOWN)
    return (FOLDERS + FROM_A_RANGE * found[1], found[0], gender) if found else None


def picture_names(folder: str | Path) -> list[str]:
    """Returns the images in the folder and below, known by their suffixes, as sorted posix paths relative to it."""
    return look_through(folder)[0]


def look_through(folder: str | Path) -> tuple[list[str], dict[str, str]]:
    """Returns (the images in the folder and below, what of it is left out with the reason).

    Left out are folders that may not be looked into and images in a format that is not read. Both are posix paths
    relative to the folder, the images sorted; a folder's ends with "/". Raises InputError where the folder itself
    cannot be looked into.
    """
    folder = Path(folder)
    names, left_out = [], {}

    def name_closed(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise InputError(f"{printable(str(folder))}: {error.strerror}")
        left_out[Path(error.filename).relative_to(folder).as_posix() + "/"] = f"a folder: {error.strerror}"

    for parent, folders, files in os.walk(folder, onerror=name_closed):
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = "" if Path(parent) == folder else Path(parent).relative_to(folder).as_posix() + "/"
        for name in files:
            if name.startswith("."):
                continue
            if name.lower().endswith(suffixes()):
                names.append(prefix + name)
            elif why := why_unread(name):
                left_out[prefix + name] = why
    return sorted(names), left_out


def bad_headers(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Returns the images whose header cannot be read, each with the reason; pixels are not decoded."""

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
        title = f"Looking at {printable(str(folder))}"
        bar = progress(found, title, len(parts), unit="picture", unit_scale=HEADERS_A_TASK, delay=2)
        return {name: reason for bad in bar for name, reason in bad.items()}


def check_bad(bad: dict[str, str], total: int) -> None:
    """Raise TooManyBad, with the first names, if more than one in ten of `total` images are bad (reason by path)."""
    if len(bad) > total * BAD_SHARE:
        first = "; ".join(f"{printable(name)}: {reason}" for name, reason in list(bad.items())[:NAMES_SHOWN])
        raise TooManyBad(f"{len(bad):,} of {total:,} pictures cannot be read, more than one in ten: {first}")


def list_faces(folder: str | Path, unknown_gender: bool = False) -> Listing:
    """Returns the labelled faces in the folder and below, with the labels of labels.csv or else of their names.

    Where no picture has either, folders named by age label them. Raises InputError for a wrong table, for faces without
    a gender unless `unknown_gender`, where more than one in ten images are bad, and where no face is left.
    """
    folder = Path(folder)
    names, left_out = look_through(folder)
    labels = {name: said for name in names if (said := parse_name(name))}
    absent = {}
    if (folder / TABLE).is_file():
        listed, absent = read_table(folder / TABLE, names, labels)
        labels |= listed
    labels = labels or {name: said for name in names if (said := parse_folders(name))}
    skipped = {name: "its name fits no convention" for name in names if name not in labels}
    skipped |= {name: f"age above {OLDEST}" for name, (_, age, _) in labels.items() if age > OLDEST}
    kept = [name for name in names if name not in skipped]
    bad = bad_headers(folder, kept)
    check_bad(bad, len(kept))
    kept = [name for name in kept if name not in bad]
    if not kept:
        raise InputError(
            f"no labelled faces in {folder} ({len(names):,} pictures{first_names(names)}): names must be those of "
            f"{', '.join(CONVENTIONS)}, or be labelled in {TABLE} or by folders named by age "
            f"(see {from_here(LABELS_GUIDE)})"
        )
    faces = [Face(str(folder / name), *labels[name][1:]) for name in kept]
    lacking = [name for name in kept if labels[name][2] == UNKNOWN]
    if lacking and not unknown_gender:
        raise InputError(
            f"{len(lacking):,} of {len(faces):,} faces have no gender{first_names(lacking)}: give it in "
            f"{folder / TABLE} (columns {','.join(COLUMNS)}), or train without: --unknown_gender True"
        )
    return Listing(
        faces, sorted((skipped | bad | left_out | absent).items()), Counter(labels[name][0] for name in kept)
    )


def first_names(names: Sequence[str], lead: str = ", first ") -> str:
    """Returns the first few names, to follow a count: ", first a.jpg, b.jpg"; nothing where there are none."""
    return lead + ", ".join(map(printable, names[:NAMES_SHOWN])) if names else ""


def describe(listing: Listing, bins: AgeBins) -> str:
    """Returns a plain table of what was found: faces by convention, by age bin and gender, and the files skipped."""
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


def doubt_alignment(faces: Sequence[Face]) -> str:
    """Returns a warning where many of a sample of the faces do not lie as aligned faces do, or else ""."""
    sample = [faces[i] for i in np.unique(np.linspace(0, len(faces) - 1, ALIGNMENT_SAMPLE).round().astype(int))]
    # those that the program has drawn are aligned, but they are no photos, which `looks_aligned` knows only
    sample = [face.path for face in sample if not DRAWN_NAME.fullmatch(Path(face.path).name)]

    def doubtful(path: str) -> bool:
        try:
            return not looks_aligned(fit_image(read_image(path), ALIGNMENT_SIDE, 3))
        except BadPicture:  # it is named when its turn comes
            return False

    with ThreadPoolExecutor() as pool:
        found = [path for path, doubted in zip(sample, pool.map(doubtful, sample), strict=True) if doubted]
    if len(found) <= DOUBTFUL_SHARE * len(sample):
        return ""
    return (
        f"{len(found):,} of {len(sample):,} pictures looked at do not look like aligned faces{first_names(found)}: "
        "training takes the middle of each picture as it is, so level and crop them first, each face as close as "
        "UTKFace's"
    )


def find_pictures(testdir: list[str]) -> list[Path]:
    """Returns the images that --testdir names: several names where a shell has expanded a pattern itself.

    A name under which there is none is named and passed over. Raises InputError where that is every name.
    """
    paths, empty = [], []
    for name in testdir:
        try:
            found = _pictures_under(name)
        except InputError as error:
            empty.append(str(error))
            continue
        except OSError as error:  # a name that is too long, or in a folder that may not be looked into
            empty.append(f"{printable(name)}: {reason(error)}")
            continue
        paths += found
        if not found:
            empty.append(f"no pictures in {printable(name)}")
    if not paths:
        raise InputError(f"{'; '.join(empty[:NAMES_SHOWN])}: give --testdir a folder of faces, a picture, or a pattern")
    for line in empty:
        print(f"Left out: {line}")
    return paths


def _pictures_under(name: str) -> list[Path]:
    if Path(name).is_dir():
        pictures, left_out = look_through(name)
        for inner, why in left_out.items():
            print(f"Left out: {printable(str(Path(name, inner)))}: {why}")
        return [Path(name, picture) for picture in pictures]
    if Path(name).is_file():  # a file's own name may look like a pattern: me[1].jpg
        return [Path(name)]
    return [Path(match) for match in sorted(glob.glob(name, recursive=True)) if Path(match).is_file()]
