"""People's photos read in, and the sheets, films and blends drawn of them; open it to change what aging draws."""

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from support.align import align_faces, looks_aligned, opencv
from support.dataset import parse_name
from support.errors import InputError, printable
from support.images import BadPicture, fit_image, read_image, save_image
from support.labels import UNKNOWN, AgeBins
from support.pictures import save_animation, sheet

FILM_FRAMES = 48  # from young to old and back
FILM_SECONDS = 0.1  # the time of a frame
FILM_SIDE = 64  # pixels that the face is enlarged to, so that its age fits above it
FILM_BYTES = 2_000_000  # the largest GIF of one face


class Portrait(NamedTuple):
    """A face to age: what its pictures are called, uint8 [S, S, C], and the (age, gender) that its file's name says.

    `label` is () where the name says nothing.
    """

    name: str
    image: np.ndarray
    label: tuple[int, ...]


def read_portraits(paths: Sequence[str | Path], size_image: int, channels: int, align: bool) -> Iterator[Portrait]:
    """Yields the faces of photos, each read when its turn comes: with align all in a photo, otherwise its middle.

    A photo that cannot be read, or shows no face, is named and left out. At the end those are named on stderr that do
    not look like the faces trained on.
    """
    align = align and _can_align()
    names, doubtful = set(), []
    for path in tqdm(paths, "Aging", unit="picture", disable=None):
        try:
            photo = read_image(path)
        except BadPicture as error:
            tqdm.write(f"Left out: {error}")
            continue
        faces = [Image.fromarray(face) for face in align_faces(np.asarray(photo))] if align else [photo]
        if not faces:
            tqdm.write(f"Left out: {printable(str(path))}: no face found")
        _, *label = parse_name(Path(path).name) or (None, UNKNOWN)
        for face in faces:
            image = fit_image(face, size_image, channels)
            if not align and not looks_aligned(image):
                doubtful.append(printable(str(path)))
            yield Portrait(unused(Path(path).stem, names), image, () if UNKNOWN in label else tuple(label))
    if doubtful:
        print(
            f"{len(doubtful):,} of {len(paths):,} pictures not like the faces trained on, such as "
            f"{', '.join(doubtful[:3])}: --align True finds, levels and crops the faces of a photo",
            file=sys.stderr,
        )


def _can_align() -> bool:
    try:
        opencv()
    except InputError as error:
        print(f"{error}; until then the middle of each picture is taken", file=sys.stderr)
        return False
    return True


def unused(name: str, names: set[str]) -> str:
    """Returns the name, numbered from _2 where `names` has it, and adds it there; a difference in case is none."""
    numbered = (f"{name}_{number}" for number in itertools.count(2))
    free = next(one for one in itertools.chain([name], numbered) if one.casefold() not in names)
    names.add(free.casefold())
    return free


def rows_of(portraits: Iterator[Portrait], length: int) -> Iterator[list[Portrait]]:
    """Yields the portraits in rows of this length; the last may be shorter."""
    while row := list(itertools.islice(portraits, length)):
        yield row


def draw_sheet(path: Path, row: list[Portrait], kept: np.ndarray, aged: np.ndarray, bins: AgeBins, title: str) -> None:
    """Draw a row of faces, the portraits that have a label as the network keeps them, and all faces at every age.

    kept: uint8 [K, S, S, C], reconstructions of the K portraits with a label; aged: uint8 [bins, N, S, S, C].
    """
    images = np.stack([portrait.image for portrait in row])
    rows, names = [images], ["input"]
    if len(kept):
        rows.append(np.full_like(images, 255))
        rows[-1][[bool(portrait.label) for portrait in row]] = kept
        names.append("as labelled")
    save_image(path, sheet(np.stack([*rows, *aged]), [*names, *bins.names], title=title))


def draw_ages(folder: Path, name: str, gender: str, images: np.ndarray, ages: Sequence[float]) -> None:
    """Write a face at each of some ages in years, uint8 [N, S, S, C], as an image of its own."""
    for age, image in zip(ages, images, strict=True):
        save_image(folder / f"{name}_{age:g}_{gender}.png", image)


def film_ages(bins: AgeBins) -> np.ndarray:
    """Returns the age in years of each frame of a film, float [FILM_FRAMES]: from young to old and back."""
    older = np.linspace(bins.centres[0], bins.centres[-1], FILM_FRAMES // 2 + 1)
    return np.concatenate([older, older[-2:0:-1]])


def draw_film(path: Path, images: np.ndarray, ages: np.ndarray) -> None:
    """Draw a film of a face, uint8 [N, S, S, C], with the age in years, [N], above it; the suffix says which kind."""
    scale = int(np.ceil(FILM_SIDE / images.shape[1]))
    frames = [
        sheet(image[np.newaxis, np.newaxis], [""], [f"{age:.0f} years"])
        for age, image in zip(ages, images.repeat(scale, axis=1).repeat(scale, axis=2), strict=True)
    ]
    save_animation(path, frames, FILM_SECONDS, max_bytes=FILM_BYTES)


def blend_labels(
    faces: Sequence[Portrait], paths: Sequence, ages: Sequence[float], genders: Sequence[int]
) -> tuple[Sequence[float], Sequence[int]]:
    """Returns the (ages, genders) of the two faces of a blend: those given, or else those that the files' names say.

    Raises InputError where the paths do not give two faces, or a label is missing.
    """
    first, second = paths
    if len(faces) != 2:
        raise InputError(f"a blend takes two faces, but {first} and {second} give {len(faces)}")
    for given, flag in ((ages, "age A,B"), (genders, "gender")):
        if not given and not all(face.label for face in faces):
            raise InputError(f"{first} and {second} are not both named after age and gender: give --{flag}")
    ages = ages or [face.label[0] for face in faces]
    genders = genders or [face.label[1] for face in faces]
    if len(ages) != 2:
        raise InputError(f"a blend has two ages, not {len(ages)}: give --age A,B")
    return ages, genders


def draw_blend(path: Path, ends: np.ndarray, blended: np.ndarray, ages: Sequence[float]) -> None:
    """Draw the way between two faces, uint8 [2, S, S, C]: a row, uint8 [N, S, S, C], for each of the two ages."""
    inputs = np.full_like(blended[0], 255)
    inputs[[0, -1]] = ends
    save_image(path, sheet(np.stack([inputs, *blended]), ["input", *(f"at {age:g}" for age in ages)]))
