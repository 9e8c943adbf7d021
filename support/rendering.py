"""Reading the faces of photos, and rendering sheets, images, films and blends of them at other ages."""

import dataclasses
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from support import InputError, printable
from support.alignment import LARGEST_CROP, find_faces, looks_aligned
from support.figures import GIF_BYTES, GRID_COLUMNS, framed, save_animation, sheet
from support.files import NAME_BYTES, output_name, shortened, unique_name
from support.images import BadImage, fit_image, read_image, save_image, to_image
from support.labels import GENDER_NAMES, AgeBins, gender_numbers
from support.photo_editing import (
    Photo,
    check_own_labels,
    keep_detail,
    own_label,
    own_labels,
    relative_ages,
    report_faces,
    save_photos,
)
from support.terminal import progress

MAX_FACE_ROWS = 3  # faces: a sheet of at most so many has a row for each face, any other a column
FILM_FRAMES = 48  # from young to old and back
FILM_SECONDS = 0.1  # the time of a frame
FILM_SIDE = 64  # pixels that the face is enlarged to, so that its age fits above it
FILM_BYTES = 2_000_000  # the largest GIF of one face
PHOTO_FILM_SIDE = 1080  # the longer side of a film of a whole photo, in pixels
DETAIL_SIDE = 256  # the largest side in pixels of a face with detail on a sheet or in a film
OVERVIEW_SIDE = 640  # pixels


class InputFace(NamedTuple):
    """A face to age."""

    name: str  # prefix of its output files
    image: np.ndarray  # uint8 [S, S, C]
    crop: np.ndarray  # the face at its own resolution, uint8 [s, s, 3]
    label: tuple[int, ...]  # (age, gender) from labels.csv or the file name, or () if unknown
    photo: Image.Image | None  # the photo, padded to a square, with a frame around the face, if it is to be shown


def read_input_faces(
    paths: Sequence[str | Path], size_image: int, channels: int, align: bool, photo: bool = False
) -> Iterator[InputFace]:
    """Yield the faces of images lazily: with align every face detected in a photo, else the central square.

    Images that cannot be read, or show no face, are reported and skipped; with align, rejected detections are printed,
    and the number of faces if a photo shows several. Without align, images that do not look aligned are reported on
    stderr at the end. Raises InputError if no face is left.
    """
    names, doubtful = set(), []
    for path in progress(paths, "Aging", unit="image"):
        try:
            image = read_image(path)
        except BadImage as error:
            tqdm.write(f"Left out: {error}")
            continue
        if align:
            found = report_faces(find_faces(image), printable(path))
            if not found:
                tqdm.write(f"Left out: {printable(path)}: no face found")
            faces = [(Image.fromarray(face.image), [face.frame]) for face in found]
        else:
            faces = [(image, [])]
        for face, frames in faces:
            fitted = fit_image(face, size_image, channels)
            if not align and not looks_aligned(fitted):
                doubtful.append(printable(path))
            crop = fit_image(face, min(LARGEST_CROP, *face.size), 3)
            shown = framed(image, frames, max(size_image, DETAIL_SIDE)) if photo else None
            yield InputFace(unique_name(output_name(path), names), fitted, crop, own_label(path), shown)
    if not names:
        where = printable(paths[0]) if len(paths) == 1 else f"any of {len(paths):,} images"
        raise InputError(f"no face to age in {where}: give --testdir photos of faces")
    if doubtful:
        print(
            f"{len(doubtful):,} of {len(paths):,} images not like the training faces, such as "
            f"{', '.join(doubtful[:3])}: --align True finds, levels and crops the faces of a photo",
            file=sys.stderr,
        )


def read_input_face(path: str | Path, size_image: int, channels: int, align: bool) -> InputFace:
    """Return the only face of a photo: see `read_input_faces`. Raises InputError if it shows none or several."""
    faces = list(read_input_faces([path], size_image, channels, align))
    if len(faces) > 1:
        raise InputError(f"a blend needs one face in each photo, but {printable(path)} shows {len(faces)}: crop it")
    return faces[0]


def remove_further(folder: Path, kind: str, genders: Sequence[int], count: int) -> None:
    """Remove further sheets of an earlier call with more than `count` faces; kind: their prefix, "test" or "random"."""
    for gender in genders:
        name = f"{kind}_as_{GENDER_NAMES[gender]}"
        for path in folder.glob(f"{name}_*.png"):
            number = re.fullmatch(rf"{name}_([1-9]\d*)\.png", path.name)
            if number and (int(number[1]) - 1) * GRID_COLUMNS >= count:
                path.unlink()


class Row(NamedTuple):
    """Faces beside each other on a sheet, or one face."""

    faces: list[InputFace]
    z: np.ndarray  # [N, Z]
    own: np.ndarray | None  # the faces generated at their own labels, uint8 [N, S, S, C], if detail is kept
    ages: list[float]  # their own ages in years, likewise
    labels: list[str]  # the own age and gender of each face in words, if detail is kept


@dataclasses.dataclass
class Renderer:
    """Write sheets, images, films and photos of faces at other ages into a folder."""

    folder: Path
    bins: AgeBins
    encode: Callable  # FaceAging's, from images, uint8 [N, S, S, C], to z [N, Z]
    generate: Callable  # FaceAging's, from z, ages in years and genders to images
    detail: float = 0  # how much of a photo's own detail is kept, from 0 to 1
    own_ages: Sequence[float] = ()  # of faces whose file name has no labels: one for all, or one for each of a photo
    own_genders: Sequence[int] = ()

    def age(self, faces: Iterator[InputFace], genders: Sequence[int], ages: Sequence[float], animate: str) -> int:
        """Draw faces at some ages in years, or as films ("gif" or "mp4"), or on sheets; return their number."""
        if max(len(self.own_ages), len(self.own_genders)) > 1:
            faces = list(faces)  # their number is checked before anything is written
            check_own_labels(self.own_ages, self.own_genders, len(faces))
        count, faces = 0, iter(faces)
        # a face at a time where each has images of its own, so that the progress bar moves
        while chunk := list(itertools.islice(faces, 1 if ages or animate else GRID_COLUMNS)):
            row = self._row(chunk, count)
            for gender in genders:
                if ages:
                    self._draw_ages(row, ages, gender)
                if animate:
                    self._draw_film(row, gender, animate)
                if not ages and not animate:
                    self._draw_sheet(count, row, gender)
            count += len(chunk)
        if not ages and not animate:
            remove_further(self.folder, "test", genders, count)
        return count

    def show_random(self, z: np.ndarray, genders: Sequence[int]) -> None:
        """Draw z [N, Z] at every age, ten a sheet."""
        for first in progress(range(0, len(z), GRID_COLUMNS), "Rendering", unit="sheet"):
            for gender in genders:
                chunk = z[first : first + GRID_COLUMNS]
                aged = self._age(Row([], chunk, None, [], []), self.bins.centres, gender)
                self._save_sheet("random", first, gender, aged, self.bins.names, [""] * len(chunk))
        remove_further(self.folder, "random", genders, len(z))

    def _row(self, faces: list[InputFace], first: int = 0) -> Row:
        """Return a row of faces; first: the number of faces before them, which have the first of several own labels."""
        images = np.stack([face.image for face in faces])
        z = self.encode(images)
        if not self.detail:
            return Row(faces, z, None, [], [""] * len(z))
        known, names, last = [face.label for face in faces], [face.name for face in faces], first + len(faces)
        given = [values[first:last] if len(values) > 1 else values for values in (self.own_ages, self.own_genders)]
        *own, estimated = own_labels(images, known, *given, names)
        labels = [
            f"{'about ' * unsure}{age:.0f}, {GENDER_NAMES[gender]}"
            for age, gender, unsure in zip(*own, estimated, strict=True)
        ]
        return Row(faces, z, self.generate(z, *own), own[0], labels)

    def _age(self, row: Row, ages: Sequence[float], gender: int, side: int | None = None) -> np.ndarray:
        """Return a row at some ages in years: uint8 [ages, N, side, side, C], without detail [ages, N, S, S, C]."""
        count = len(row.z)
        aged = self.generate(np.tile(row.z, (len(ages), 1)), np.repeat(ages, count), [gender])
        aged = aged.reshape(len(ages), count, *aged.shape[1:])
        if row.own is None:
            return aged
        crops = self._crops(row, side)
        return np.asarray([self._with_detail(row, crops, *pair) for pair in zip(aged, ages, strict=True)])

    def _with_detail(self, row: Row, crops: list[np.ndarray], aged: np.ndarray, age: float) -> list[np.ndarray]:
        """Return a row's crops at an age in years: aged are the generated faces, uint8 [N or 1, S, S, C]."""
        images = np.stack([face.image for face in row.faces])
        return keep_detail(crops, images, row.own, aged, row.ages, age, self.detail)

    def _side(self, row: Row) -> int:
        """Return the side in pixels of a row's faces on a sheet or in a film."""
        detailed = min(DETAIL_SIDE, max(len(face.crop) for face in row.faces)) if self.detail else 0
        return max(detailed, len(row.faces[0].image))

    def _crops(self, row: Row, side: int | None) -> list[np.ndarray]:
        """Return the faces at the size that they are drawn at, uint8 [side, side, C]; None: their own."""
        if row.own is None:
            return [face.image for face in row.faces]
        crops = ((Image.fromarray(face.crop), side or len(face.crop)) for face in row.faces)
        return [fit_image(crop, size, row.own.shape[-1]) for crop, size in crops]

    def age_photos(
        self,
        photos: Iterator[tuple[str, Path, Photo]],
        genders: Sequence[int],
        ages: Sequence[float],
        years: Sequence[float],
        animate: str,
        film_side: int,
    ) -> int:
        """Write photos with faces aged in place, and films of them ("gif" or "mp4"); return the number of photos.

        photos: those of `read_photos`; genders: none for everyone's own; ages: in years; years: relative to everyone's
        own age; film_side: the longer side of a film in pixels.
        """
        count = 0
        for name, path, photo in photos:
            count += 1
            own = photo.own_labels(self.own_ages, self.own_genders)
            if len(photo.frames) > 1:
                overview = framed(photo.image, photo.frames, OVERVIEW_SIDE)
                save_image(self.folder / f"{name}_faces.png", np.asarray(overview))
            rows = {f"{age:g}": [age] * len(own[0]) for age in ages}
            rows |= {f"{year:+g}": relative_ages(own[0], year, photo.name) for year in years}
            film = photo.shrunk(read_image(path), film_side) if animate else None
            for gender in genders or (None,):
                to = own[1] if gender is None else [gender] * len(own[1])
                suffix = f"_{GENDER_NAMES[to[0]]}" if len(set(to)) == 1 else ""
                edit_arguments = own, to, self.detail, self.encode, self.generate
                if rows:
                    paths = [self.folder / f"{name}_{title}{suffix}" for title in rows]
                    save_photos(paths, photo, photo.aged(list(rows.values()), *edit_arguments))
                if film:
                    older = np.repeat(self._film_ages()[:, np.newaxis], len(to), axis=1)
                    film_edits = film.aged(older, *edit_arguments)
                    frames = [np.asarray(film.edited(face_edits)) for face_edits in film_edits]
                    path = self.folder / f"{name}{suffix}.{animate}"
                    save_animation(path, [*frames, *frames[-2:0:-1]], FILM_SECONDS, max_bytes=GIF_BYTES)
        return count

    def blend_detail(
        self, faces: list[InputFace], blended: Sequence[np.ndarray], ages: Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the two faces of a blend, uint8 [2, s, s, C], and the blend with their detail, [2, N, s, s, C].

        blended: the blend at each of two ages in years, uint8 [2, N, S, S, C]. The detail of one face fades into that
        of the other.
        """
        row = self._row(faces)
        crops, count, images = self._crops(row, self._side(row)), len(blended[0]), []
        for age, steps in zip(ages, blended, strict=True):
            for share, image in zip(np.linspace(0, 1, count), steps, strict=True):
                first, second = self._with_detail(row, crops, image[np.newaxis], age)
                images.append(np.rint((1 - share) * first + share * second).astype(np.uint8))
        return np.stack(crops), np.reshape(images, (2, count, *crops[0].shape))

    def _draw_sheet(self, first: int, row: Row, gender: int) -> None:
        """Draw faces: their photos if these are shown, the input, the faces as labelled, and at every age."""
        side = self._side(row)
        images = np.stack(self._crops(row, side))
        rows, names = [images], ["input"]
        channels = images.shape[-1]
        if row.faces[0].photo is not None:
            rows.insert(0, np.stack([fit_image(face.photo, side, channels) for face in row.faces]))
            names.insert(0, "photo")
        if labelled := [i for i, face in enumerate(row.faces) if face.label]:
            # what the network keeps of a person: the reconstruction at the labels of the file's name
            ages, genders = zip(*(row.faces[i].label for i in labelled), strict=True)
            centres = np.array(self.bins.centres)[self.bins.index(ages)]
            rebuilt = self.generate(row.z[labelled], centres, genders)
            rows.append(np.full_like(images, 255))
            rows[-1][labelled] = [fit_image(to_image(image), side, channels) for image in rebuilt]
            names.append("as labelled")
        aged = self._age(row, self.bins.centres, gender, side)
        self._save_sheet("test", first, gender, [*rows, *aged], [*names, *self.bins.names], row.labels)

    def _save_sheet(self, kind: str, first: int, gender: int, rows, names: list[str], labels: list[str]) -> None:
        """Write a sheet: a column for each face or, of up to MAX_FACE_ROWS faces, a row for each with ages below."""
        suffix = f"_{first // GRID_COLUMNS + 1}" if first else ""
        title = f"as {GENDER_NAMES[gender]}"
        path = self.folder / f"{kind}_{title.replace(' ', '_')}{suffix}.png"
        rows = np.stack(rows)
        if len(rows[0]) <= MAX_FACE_ROWS and not first:
            image = sheet(rows.swapaxes(0, 1), labels, names, title, captions_below=True)
        else:
            image = sheet(rows, names, labels if any(labels) else None, title)
        save_image(path, image)

    def _draw_ages(self, row: Row, ages: Sequence[float], gender: int) -> None:
        """Write a face at each of some ages in years as an image of its own."""
        for age, (image,) in zip(ages, self._age(row, ages, gender), strict=True):
            save_image(self.folder / f"{row.faces[0].name}_{age:g}_{GENDER_NAMES[gender]}.png", image)

    def _draw_film(self, row: Row, gender: int, suffix: str) -> None:
        """Draw a film of a face from young to old and back, with its age above, beside its photo if it is shown."""
        face, ages = row.faces[0], self._film_ages()
        side = self._side(row)
        images = self._age(row, ages, gender, side)[:, 0]
        beside = [] if face.photo is None else [fit_image(face.photo, side, images.shape[-1])]
        scale = int(np.ceil(FILM_SIDE / side))
        frames = [
            sheet(
                np.stack([*beside, image]).repeat(scale, axis=1).repeat(scale, axis=2)[np.newaxis],
                [""],
                [*(["photo"] * len(beside)), f"{age:.0f} years"],
            )
            for age, image in zip(ages, images, strict=True)
        ]
        path = self.folder / f"{face.name}_{GENDER_NAMES[gender]}.{suffix}"
        save_animation(path, [*frames, *frames[-2:0:-1]], FILM_SECONDS, max_bytes=FILM_BYTES)

    def _film_ages(self) -> np.ndarray:
        """Return the ages in years of the first half of a film, from young to old; the second half is its reverse."""
        return np.linspace(self.bins.centres[0], self.bins.centres[-1], FILM_FRAMES // 2 + 1)


def blend_labels(
    faces: Sequence[InputFace], paths: Sequence, ages: Sequence[float], genders: Sequence[int]
) -> tuple[Sequence[float], Sequence[int]]:
    """Return the (ages, genders) of the two faces of a blend: those requested, else those of the files' names.

    Raises InputError where a label is missing.
    """
    first, second = paths
    for requested, flag in ((ages, "age A,B"), (genders, "gender")):
        if not requested and not all(face.label for face in faces):
            raise InputError(f"{first} and {second} are not both named after age and gender: give --{flag}")
    ages = ages or [face.label[0] for face in faces]
    genders = gender_numbers(genders or [face.label[1] for face in faces])
    if len(genders) == 1:  # of both
        genders *= 2
    if len(ages) != 2:
        raise InputError(f"a blend has two ages, not {len(ages)}: give --age A,B")
    return ages, genders


def draw_blend(
    folder: Path, faces: Sequence[InputFace], ends: np.ndarray, blended: np.ndarray, ages: Sequence[float]
) -> Path:
    """Draw a blend of two faces, images uint8 [2, S, S, C]: a row, uint8 [N, S, S, C], for each of the two ages."""
    first, second = (shortened(face.name, NAME_BYTES // 2) for face in faces)
    path = folder / f"blend_{first}_{second}.png"
    inputs = np.full_like(blended[0], 255)
    inputs[[0, -1]] = ends
    save_image(path, sheet(np.stack([inputs, *blended]), ["input", *(f"at {age:g}" for age in ages)]))
    return path
