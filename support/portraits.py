"""People's photos read in, and the sheets, films and blends drawn of them; open it to change what aging draws."""

import itertools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from support.alignment import apply, find_faces, looks_aligned
from support.errors import InputError, printable
from support.files import NAME_BYTES, shortened
from support.images import BadImage, fit_image, read_image, save_image
from support.labels import GENDER_NAMES, UNKNOWN, AgeBins, gender_numbers, parse_name
from support.pictures import IN_A_ROW, save_animation, sheet
from support.terminal import progress

FILM_FRAMES = 48  # from young to old and back
FILM_SECONDS = 0.1  # the time of a frame
FILM_SIDE = 64  # pixels that the face is enlarged to, so that its age fits above it
FILM_BYTES = 2_000_000  # the largest GIF of one face
FRAME_COLOR = (255, 64, 0)  # lines round a face in its photo


class Portrait(NamedTuple):
    """A face to age."""

    name: str  # what its pictures are called
    image: np.ndarray  # uint8 [S, S, C]
    label: tuple[int, ...]  # the (age, gender) that its file's name says, or () where it says nothing
    photo: np.ndarray | None  # uint8 [S, S, C], the photo with a frame where the face was found, if it is to be shown


def read_portraits(
    paths: Sequence[str | Path], size_image: int, channels: int, align: bool, photo: bool = False
) -> Iterator[Portrait]:
    """Yields the faces of photos, each read when its turn comes: with align all in a photo, otherwise its middle.

    A photo that cannot be read, or shows no face, is named and left out; with align it is said how many faces one has
    if that is not one, and what was found in it that is none. At the end those are named on stderr that do not look
    like the faces trained on. Raises InputError where there is no face at all.
    """
    names, doubtful = set(), []
    for path in progress(paths, "Aging", unit="picture"):
        try:
            picture = read_image(path)
        except BadImage as error:
            tqdm.write(f"Left out: {error}")
            continue
        faces = _find(picture, path) if align else [(picture, None)]
        _, *label = parse_name(Path(path).name) or (None, UNKNOWN)
        for face, frame in faces:
            image = fit_image(face, size_image, channels)
            if not align and not looks_aligned(image):
                doubtful.append(printable(str(path)))
            shown = fit_image(framed(picture, frame, size_image), size_image, channels) if photo else None
            yield Portrait(unused(output_name(path), names), image, () if UNKNOWN in label else tuple(label), shown)
    if not names:
        where = printable(str(paths[0])) if len(paths) == 1 else f"any of {len(paths):,} pictures"
        raise InputError(f"no face to age in {where}")
    if doubtful:
        print(
            f"{len(doubtful):,} of {len(paths):,} pictures not like the faces trained on, such as "
            f"{', '.join(doubtful[:3])}: --align True finds, levels and crops the faces of a photo",
            file=sys.stderr,
        )


def read_portrait(path: str | Path, size_image: int, channels: int, align: bool) -> Portrait:
    """Returns the one face of a photo: see `read_portraits`. Raises InputError where it shows none or several."""
    faces = list(read_portraits([path], size_image, channels, align))
    if len(faces) > 1:
        raise InputError(f"a blend takes one face of each photo, but {printable(str(path))} shows {len(faces)}")
    return faces[0]


def _find(picture: Image.Image, path: str | Path) -> list[tuple[Image.Image, np.ndarray]]:
    """Returns (the crop, its frame) of each face in a photo, and says what else there is to say of it."""
    found = find_faces(picture)
    name = printable(str(path))
    if found.rejected:
        tqdm.write(f"{name}: {len(found.rejected)} not taken for a face to age, such as {found.rejected[0]}")
    if not found.faces:
        tqdm.write(f"Left out: {name}: no face found")
    elif len(found.faces) > 1:
        tqdm.write(f"{len(found.faces)} faces in {name}, taken from left to right")
    return [(Image.fromarray(face.image), face.frame) for face in found.faces]


def framed(photo: Image.Image, frame: np.ndarray, side: int) -> Image.Image:
    """Returns a photo shrunk to fit a white square of this side, with lines round a face.

    frame: float [2, 3], the map from the face's unit square to pixels of the photo.
    """
    scale = side / max(photo.size)
    small = photo.resize([max(1, round(scale * length)) for length in photo.size], Image.Resampling.LANCZOS)
    square = Image.new("RGB", (side, side), "white")
    left, top = ((side - length) // 2 for length in small.size)
    square.paste(small, (left, top))
    corners = apply(frame, np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)])) * scale + (left, top)
    ImageDraw.Draw(square).line([tuple(corner) for corner in corners.tolist()], FRAME_COLOR, max(1, side // 48))
    return square


def output_name(path: str | Path) -> str:
    """Returns what the pictures made of a photo begin with: its own name, shortened where that is too long."""
    return shortened(Path(path).stem)


def blend_name(faces: Sequence[Portrait]) -> str:
    """Returns what the picture of a blend of two faces is called."""
    first, second = (shortened(face.name, NAME_BYTES // 2) for face in faces)
    return f"blend_{first}_{second}.png"


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


def remove_further(folder: Path, kind: str, genders: Sequence[int], count: int) -> None:
    """Remove the further sheets that an earlier call drew of more faces than the `count` of this one.

    They would lie beside those just drawn as if they went on. kind: "test" or "random", as the names begin.
    """
    for gender in genders:
        name = f"{kind}_as_{GENDER_NAMES[gender]}"
        for path in folder.glob(f"{name}_*.png"):
            number = re.fullmatch(rf"{name}_([1-9]\d*)\.png", path.name)
            if number and (int(number[1]) - 1) * IN_A_ROW >= count:
                path.unlink()


class Renderer:
    """Draws faces at other ages into a folder.

    encode takes images, uint8 [N, S, S, C], to z [N, Z]; generate takes z, ages in years and genders to images; both
    are those of FaceAging.
    """

    def __init__(self, folder: Path, bins: AgeBins, encode: Callable, generate: Callable):
        self.folder = folder
        self.bins = bins
        self.encode = encode
        self.generate = generate

    def age(self, faces: Iterator[Portrait], genders: Sequence[int], ages: Sequence[float], animate: str) -> int:
        """Draw portraits at some ages in years, or as films ("gif" or "mp4"), or on sheets; returns how many."""
        count = 0
        # a face at a time where each has images of its own, so that the progress bar moves
        for row in rows_of(faces, 1 if ages or animate else IN_A_ROW):
            z = self.encode(np.stack([portrait.image for portrait in row]))
            for gender in genders:
                if ages:
                    self._draw_ages(row[0].name, z, ages, gender)
                if animate:
                    self._draw_film(row[0], z, gender, animate)
                if not ages and not animate:
                    self._draw_sheet(count, row, z, gender)
            count += len(row)
        if not ages and not animate:
            remove_further(self.folder, "test", genders, count)
        return count

    def show_random(self, z: np.ndarray, genders: Sequence[int]) -> None:
        """Draw z [N, Z] at every age, ten a sheet."""
        for first in progress(range(0, len(z), IN_A_ROW), "Renderer", unit="sheet"):
            for gender in genders:
                aged = self._at_every_age(z[first : first + IN_A_ROW], gender)
                self._save_sheet("random", first, gender, aged, self.bins.names)
        remove_further(self.folder, "random", genders, len(z))

    def _at_every_age(self, z: np.ndarray, gender: int) -> np.ndarray:
        """Returns each z [N, Z] at every bin's centre, young to old: uint8 [bins, N, S, S, C]."""
        bins = len(self.bins)
        images = self.generate(np.tile(z, (bins, 1)), np.repeat(self.bins.centres, len(z)), [gender])
        return images.reshape(bins, len(z), *images.shape[1:])

    def _draw_sheet(self, first: int, row: list[Portrait], z: np.ndarray, gender: int) -> None:
        """Draw faces: their photos where these are shown, themselves, as their labels say, and at every age."""
        images = np.stack([portrait.image for portrait in row])
        rows, names = [images], ["input"]
        if row[0].photo is not None:
            rows.insert(0, np.stack([portrait.photo for portrait in row]))
            names.insert(0, "photo")
        labelled = [i for i, portrait in enumerate(row) if portrait.label]
        if labelled:
            # what the network keeps of a person: the reconstruction at the label that the file's name says
            ages, genders = zip(*(row[i].label for i in labelled), strict=True)
            centres = np.array(self.bins.centres)[self.bins.index(ages)]
            rows.append(np.full_like(images, 255))
            rows[-1][labelled] = self.generate(z[labelled], centres, genders)
            names.append("as labelled")
        self._save_sheet("test", first, gender, [*rows, *self._at_every_age(z, gender)], [*names, *self.bins.names])

    def _save_sheet(self, what: str, first: int, gender: int, rows: Sequence[np.ndarray], names: list[str]) -> None:
        suffix = f"_{first // IN_A_ROW + 1}" if first else ""
        title = f"as {GENDER_NAMES[gender]}"
        path = self.folder / f"{what}_{title.replace(' ', '_')}{suffix}.png"
        save_image(path, sheet(np.stack(rows), names, title=title))

    def _draw_ages(self, name: str, z: np.ndarray, ages: Sequence[float], gender: int) -> None:
        """Write a face at each of some ages in years as an image of its own."""
        for age, image in zip(ages, self.generate(z, ages, gender), strict=True):
            save_image(self.folder / f"{name}_{age:g}_{GENDER_NAMES[gender]}.png", image)

    def _draw_film(self, portrait: Portrait, z: np.ndarray, gender: int, suffix: str) -> None:
        """Draw a film of a face from young to old and back, with its age above, beside its photo where it is shown."""
        older = np.linspace(self.bins.centres[0], self.bins.centres[-1], FILM_FRAMES // 2 + 1)
        ages = np.concatenate([older, older[-2:0:-1]])
        beside = [] if portrait.photo is None else [portrait.photo]
        scale = int(np.ceil(FILM_SIDE / portrait.image.shape[0]))
        frames = [
            sheet(
                np.stack([*beside, image]).repeat(scale, axis=1).repeat(scale, axis=2)[np.newaxis],
                [""],
                [*(["photo"] * len(beside)), f"{age:.0f} years"],
            )
            for age, image in zip(ages, self.generate(z, ages, gender), strict=True)
        ]
        path = self.folder / f"{portrait.name}_{GENDER_NAMES[gender]}.{suffix}"
        save_animation(path, frames, FILM_SECONDS, max_bytes=FILM_BYTES)


def blend_labels(
    faces: Sequence[Portrait], paths: Sequence, ages: Sequence[float], genders: Sequence[int]
) -> tuple[Sequence[float], Sequence[int]]:
    """Returns the (ages, genders) of the two faces of a blend: those given, or else those that the files' names say.

    Raises InputError where a label is missing.
    """
    first, second = paths
    for given, flag in ((ages, "age A,B"), (genders, "gender")):
        if not given and not all(face.label for face in faces):
            raise InputError(f"{first} and {second} are not both named after age and gender: give --{flag}")
    ages = ages or [face.label[0] for face in faces]
    genders = gender_numbers(genders or [face.label[1] for face in faces])
    if len(genders) == 1:  # of both
        genders *= 2
    if len(ages) != 2:
        raise InputError(f"a blend has two ages, not {len(ages)}: give --age A,B")
    return ages, genders


def draw_blend(path: Path, ends: np.ndarray, blended: np.ndarray, ages: Sequence[float]) -> None:
    """Draw the way between two faces, uint8 [2, S, S, C]: a row, uint8 [N, S, S, C], for each of the two ages."""
    inputs = np.full_like(blended[0], 255)
    inputs[[0, -1]] = ends
    save_image(path, sheet(np.stack([inputs, *blended]), ["input", *(f"at {age:g}" for age in ages)]))
