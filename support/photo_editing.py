"""Aging at a photo's own resolution: detail transfer, and faces pasted back into their photo.

Only the change from the own age to another one is generated. It is an edit, a scale and an offset for each pixel,
computed at the resolution of the networks, enlarged to that of the photo and applied to its pixels.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from support import InputError, printable, recognition
from support.alignment import DetectedFace, Detections, find_faces, frame_side, looks_aligned, map_points
from support.dataset import image_names
from support.files import atomic_write, output_name, unique_name
from support.images import fit_image, from_srgb, read_full, read_image, to_image
from support.labels import FEMALE, GENDER_NAMES, MALE, OLDEST, TABLE, UNKNOWN, Label, parse_name, read_table
from support.terminal import progress

# Chosen by the measurements in docs/experiments.md. Lengths are relative to the face's side, changes are of pixels in
# [-1, 1].
BLUR = 3 / 128  # standard deviation of the filter that averages the change
COARSE = 4 / 128  # standard deviation of the filter that divides detail into coarse and fine
FADE_COARSE, FADE_FINE = 0.08, 0.3  # change at which detail has faded to 1 / e
WRINKLES_FROM, WRINKLES_IN = 30, 30  # the age in years from which wrinkles develop, and the years that they take
WRINKLE_DETAIL = 0.1  # local mean of fine detail at which rejuvenation removes half of it
STRENGTH_BLUR = 1.5 / 128  # standard deviation of the filter that averages fine detail
FACE = (0.5, 0.45), (0.5, 0.56)  # centre and radii of an ellipse: hair and background beyond it change less
FACE_EDGE = 0.8, 1.1  # radii between which the change fades
FEATHER = 0.12  # width of the border in which a pasted face passes into its photo
SOFTNESS = 0.05  # width of the passage from one of two overlapping faces to the other
ENLARGED = 512  # pixels a side to which an edit is enlarged by a bicubic filter, further by a bilinear one
STRIP_PIXELS = 2_000_000  # pixels edited at a time: bounds the memory of a large face
WRITER_THREADS = 2  # photos encoded at a time
QUALITY = {"quality": 95, "subsampling": 0}
# How a photo of each format is written, other formats as PNG. PNG's default compression takes seconds for a photo.
FORMATS = {
    "JPEG": (".jpg", QUALITY),
    "MPO": (".jpg", QUALITY),
    "PNG": (".png", {"compress_level": 1}),
    "WEBP": (".webp", {"quality": 95}),
    "TIFF": (".tif", {}),
    "BMP": (".bmp", {}),
}


def edits(faces, own, aged, own_ages: Sequence[float], ages: Sequence[float], detail: float) -> np.ndarray:
    """Return edits, float32 [N, S, S, 1 + C], that age faces and keep their detail.

    faces: the encoder's input; own, aged: the generated faces at their own age and at another, uint8 [N, S, S, C]
    each; own_ages, ages: in years, [N] or one; detail: D from 0 (the generated face) to 1. An edit takes a pixel x in
    [0, 255] to x + edit[0] * x + edit[1:], which is

        m * (aged + D * (w_coarse * coarse + w_fine * fine)) + (1 - m) * x,  coarse + fine = x - own,

    w = exp(-(change / fade)^2), where w_fine is lower for weak fine detail of old people who get younger; m is 1 in an
    ellipse around the face and 1 - D far from it.
    """
    faces, own, aged = (images.astype(np.float32) for images in (faces, own, aged))
    side = faces.shape[1]
    change = _blur(np.abs(aged - own).mean(axis=-1, keepdims=True), BLUR * side) / 127.5
    coarse_weight, fine_weight = (np.exp(-np.square(change / fade)) for fade in (FADE_COARSE, FADE_FINE))
    coarse = _blur(faces - own, COARSE * side)
    strength = _blur(np.abs(faces - own - coarse).mean(axis=-1, keepdims=True), STRENGTH_BLUR * side) / 127.5
    wrinkles = np.clip((np.asarray(own_ages) - np.maximum(ages, WRINKLES_FROM)) / WRINKLES_IN, 0, 1)
    fine_weight = fine_weight * (1 - wrinkles.reshape(-1, 1, 1, 1) / (1 + np.square(strength / WRINKLE_DETAIL)))
    offset = aged + detail * ((coarse_weight - fine_weight) * coarse - fine_weight * own)
    scale = detail * fine_weight - 1
    places = (np.arange(side) + 0.5) / side
    across, down = ((places - middle) / radius for middle, radius in zip(*FACE, strict=True))
    beyond = (np.hypot(across, down[:, np.newaxis]) - FACE_EDGE[0]) / (FACE_EDGE[1] - FACE_EDGE[0])
    mask = 1 - detail * smoothstep(beyond)[..., np.newaxis]
    return (mask * np.concatenate([scale, offset], axis=-1)).astype(np.float32)


def keep_detail(crops, faces, own, aged, own_ages, ages, detail: float) -> list[np.ndarray]:
    """Return crops of faces, uint8 [s, s, C] each, at other ages, with their own detail: see `edits`."""
    return list(map(apply_edit, itertools.cycle(crops), edits(faces, own, aged, own_ages, ages, detail)))


def smoothstep(x: np.ndarray) -> np.ndarray:
    """Return x in [0, 1], limited and with even ends."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _blur(images: np.ndarray, sigma: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter  # importing SciPy is slow

    return gaussian_filter(images, (0, sigma, sigma, 0))


def apply_edit(pixels: np.ndarray, edit: np.ndarray, frame: np.ndarray | None = None) -> np.ndarray:
    """Return pixels, uint8 [H, W, C], with an edit applied; those outside the frame are unchanged.

    edit: float32 [S, S, 2 or 1 + C]; frame: float [2, 3], the map from the edit's unit square to pixels, by default
    the whole array.
    """
    height, width = pixels.shape[:2]
    frame = np.array([(width, 0, 0), (0, height, 0)]) if frame is None else frame
    side = int(np.clip(round(frame_side(frame)), 1, max(ENLARGED, len(edit))))
    # PIL's affine transform needs the map from output pixels to input pixels
    inverse = np.linalg.inv(frame[:, :2]) * side
    data = np.column_stack([inverse, -inverse @ frame[:, 2]]).ravel()
    scale, *offset = (
        np.asarray(
            Image.fromarray(np.ascontiguousarray(edit[..., i]))
            .resize((side, side), Image.Resampling.BICUBIC)
            .transform((width, height), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
        )
        for i in range(edit.shape[-1])
    )
    edited = np.empty_like(pixels)
    for i in range(pixels.shape[2]):
        channel = pixels[..., i] * scale
        channel += offset[min(i, len(offset) - 1)]
        channel += pixels[..., i]
        edited[..., i] = np.clip(channel + 0.5, 0, 255)  # rounded by truncation
    return edited


def feathered(edit: np.ndarray, frame: np.ndarray, others: Sequence[np.ndarray] = ()) -> np.ndarray:
    """Return an edit that fades out towards the border of its square and towards overlapping faces.

    edit: float32 [S, S, 1 + C]; frame, others: the maps [2, 3] from the unit squares of this face and of the photo's
    other faces to pixels.
    """
    places = (np.arange(len(edit)) + 0.5) / len(edit)
    border = smoothstep(np.minimum(places, 1 - places) / FEATHER)
    weight = np.outer(border, border)
    square = np.stack(np.meshgrid(places, places), axis=-1).reshape(-1, 2)
    for other in others:
        in_other = (map_points(frame, square) - other[:, 2]) @ np.linalg.inv(other[:, :2]).T
        farther = np.linalg.norm(square - 0.5, axis=1) - np.linalg.norm(in_other - 0.5, axis=1)
        weight /= 1 + np.exp(np.clip(farther / SOFTNESS, -50, 50)).reshape(weight.shape)
    return edit * weight[..., np.newaxis].astype(np.float32)


class Photo(NamedTuple):
    """A photo at its own size, and the faces in it."""

    name: str  # to print
    image: Image.Image  # L, LA, RGB or RGBA, upright, in the colours of its ICC profile
    format: str | None  # Pillow's name of the format of its file
    frames: list[np.ndarray]  # of each face from left to right, the map [2, 3] from its unit square to pixels
    chosen: list[int]  # which F of them are aged
    faces: np.ndarray  # the encoder's input for those, uint8 [F, S, S, C] in sRGB
    label: tuple[int, ...]  # the (age, gender) of the file's name if the photo shows one face, else ()

    def own_labels(self, own_ages: Sequence[float], own_genders: Sequence[int]) -> tuple[list[float], list[int]]:
        """Return the own ages and genders of the chosen faces: see the function `own_labels`."""
        names = [self.name if len(self.frames) == 1 else f"{self.name}, face {i + 1}" for i in self.chosen]
        return own_labels(self.faces, [self.label] * len(names), own_ages, own_genders, names)[:2]

    def shrunk(self, image: Image.Image, side: int) -> "Photo":
        """Return the photo with another image of it, which is shrunk to a longer side of at most `side` pixels."""
        image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3)
        scale = image.width / self.image.width
        return self._replace(image=image, frames=[scale * frame for frame in self.frames])

    def edited(self, face_edits: np.ndarray) -> Image.Image:
        """Return a copy of the image with an edit applied to each chosen face, [F, S, S, 1 + C]."""
        image = self.image.copy()
        for index, edit in zip(self.chosen, face_edits, strict=True):
            frame = self.frames[index]
            edit = feathered(edit, frame, [other for i, other in enumerate(self.frames) if i != index])
            for box in _strips(frame, image.size):
                part = np.array(image.crop(box))
                colours = part if part.ndim == 2 else part[..., : 3 if part.shape[2] > 2 else 1]
                shift = np.array([(0, 0, box[0]), (0, 0, box[1])])
                colours[...] = apply_edit(np.atleast_3d(colours), edit, frame - shift).reshape(colours.shape)
                image.paste(Image.fromarray(part, image.mode), box)
        return image

    def in_own_colours(self, images: np.ndarray) -> np.ndarray:
        """Return images, uint8 [N, S, S, C] in sRGB, in the photo's colours: uint8 [N, S, S, 1 or 3]."""
        column = to_image(images.reshape(-1, *images.shape[2:])).convert("RGB")
        mode = self.image.mode.removesuffix("A")
        return np.asarray(from_srgb(column, self.image.info.get("icc_profile"), mode)).reshape(*images.shape[:3], -1)

    def aged(self, ages, own, genders, detail: float, encode: Callable, generate: Callable) -> list[np.ndarray]:
        """Return the edits of the F chosen faces for each of K ages: a list of K float32 [F, S, S, 1 + C].

        ages: in years, float [K, F]; own: their own (ages, genders); genders: [F]; encode, generate: FaceAging's.
        """
        count, z = len(ages), encode(self.faces)
        all_ages, all_genders = [*own[0], *np.ravel(ages)], [*own[1], *list(genders) * count]
        generated = self.in_own_colours(generate(np.tile(z, (count + 1, 1)), all_ages, all_genders))
        generated = generated.reshape(count + 1, len(z), *generated.shape[1:])
        faces = self.in_own_colours(self.faces)
        own_faces, *aged = generated
        return [edits(faces, own_faces, new, own[0], row, detail) for new, row in zip(aged, ages, strict=True)]


def _strips(frame: np.ndarray, size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Yield boxes of about STRIP_PIXELS or less that cover the part of a face's square within an image."""
    corners = map_points(frame, np.array([(0, 0), (0, 1), (1, 0), (1, 1)]))
    left, top = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, size).tolist()
    right, bottom = np.clip(np.ceil(corners.max(axis=0)).astype(int), 0, size).tolist()
    height = max(1, STRIP_PIXELS // max(1, right - left))
    for y in range(top, bottom if right > left else top, height):
        yield left, y, right, min(y + height, bottom)


def read_photo(source, size_image: int, channels: int, align: bool = False, numbers: Sequence[int] = ()) -> Photo:
    """Read a photo, a path, an image or an array, uint8 [H, W, 1 or 3], and find its faces.

    Without align a photo that is as a whole an aligned face is that one face; in any other faces are found. numbers:
    of the faces to age, from left to right, 1 the first; () for all. Raises InputError if the photo cannot be read,
    shows no face, or has no face of one of these numbers.
    """
    if isinstance(source, str | Path):
        name, reduced, (image, file_format) = printable(source), read_image(source), read_full(source)
    else:
        image = source if isinstance(source, Image.Image) else to_image(np.asarray(source))
        name, reduced, file_format = "the photo", image.convert("RGB"), image.format
    faces = [fit_image(reduced, size_image, channels)]
    if not align and looks_aligned(faces[0]):
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        frames = [np.array([(side, 0, left), (0, side, top)], float)]
    else:
        found = report_faces(find_faces(reduced), name)
        scale = round(image.width / reduced.width)  # `read_image` reduces large photos by whole numbers
        frames = [scale * face.frame for face in found]
        faces = [fit_image(Image.fromarray(face.image), size_image, channels) for face in found]
    if not frames:
        raise InputError(f"no face found in {name}: use a larger or sharper photo of the face")
    if wrong := [number for number in numbers if not 1 <= number <= len(frames)]:
        raise InputError(f"no face {wrong[0]} in {name}, which shows {len(frames)}: give --face 1 to {len(frames)}")
    label = own_label(source) if isinstance(source, str | Path) and len(frames) == 1 else ()
    chosen = [number - 1 for number in numbers] or list(range(len(frames)))
    return Photo(name, image, file_format, frames, chosen, np.stack([faces[i] for i in chosen]), label)


def own_label(path: str | Path) -> tuple[int, ...]:
    """Return the (age, gender) of a photo in its folder's labels.csv, else in its name, or () where one is missing."""
    label = _table_labels(Path(path).parent).get(Path(path).name) or parse_name(Path(path).name)
    return () if label is None or UNKNOWN in label else (label.age, label.gender)


@functools.cache
def _table_labels(folder: Path) -> dict[str, Label]:
    table = folder / TABLE
    return read_table(table, image_names(folder), {})[0] if table.is_file() else {}


def read_photos(
    paths: Sequence[str | Path], size_image: int, channels: int, align: bool, numbers: Sequence[int]
) -> Iterator[tuple[str, Path, Photo]]:
    """Yield (prefix of the output files, path, photo) for each photo: see `read_photo`.

    Photos that cannot be read, or show no face, are reported and skipped. Raises InputError if none is left.
    """
    names = set()
    for path in progress(paths, "Aging", unit="photo"):
        try:
            photo = read_photo(path, size_image, channels, align, numbers)
        except InputError as error:
            if len(paths) == 1:
                raise
            tqdm.write(f"Left out: {error}")
            continue
        yield unique_name(output_name(path), names), Path(path), photo
    if not names:
        raise InputError(f"no face to age in any of {len(paths):,} images: give --testdir photos of faces")


def relative_ages(own: Sequence[float], years: float, name: str) -> list[float]:
    """Return ages in years relative to people's own, clipped to 0 and OLDEST; clipping is printed."""
    ages = [min(max(age + years, 0), OLDEST) for age in own]
    if limited := [i for i, age in enumerate(own, 1) if not 0 <= age + years <= OLDEST]:
        tqdm.write(f"{name}: {years:+g} years is outside 0-{OLDEST} for face {', '.join(map(str, limited))}: limited")
    return ages


def report_faces(found: Detections, name: str) -> list[DetectedFace]:
    """Return the faces found in a photo; print how many there are and what was rejected."""
    if found.rejected:
        tqdm.write(f"{name}: {len(found.rejected)} detections rejected, such as {found.rejected[0]}")
    if len(found.faces) > 1:
        tqdm.write(f"{len(found.faces)} faces in {name}, numbered from left to right")
    return found.faces


def check_own_labels(own_ages: Sequence[float], own_genders: Sequence[int], count: int) -> None:
    """Raise InputError if several ages or genders are given, but not one for each of `count` faces."""
    for flag, values in (("own_age", own_ages), ("own_gender", own_genders)):
        if len(values) not in (0, 1, count):
            raise InputError(f"--{flag} has {len(values)} values for {count} faces: give one, or one for each face")


def own_labels(
    faces: np.ndarray,
    known: Sequence[tuple],
    own_ages: Sequence[float],
    own_genders: Sequence[int],
    names: Sequence[str],
) -> tuple[list[float], list[int], list[bool]]:
    """Return the own ages and genders of N named faces, uint8 [N, S, S, C], and whether they are estimates.

    They are those known, (age, gender) or () for each face, else own_ages and own_genders, one for all or one for each,
    else estimates of the included age network, which are printed. Raises InputError for another number of labels.
    """
    check_own_labels(own_ages, own_genders, len(faces))
    columns = [(list(values) or [None]) * (1 if len(values) > 1 else len(faces)) for values in (own_ages, own_genders)]
    labels = [label or flags for label, flags in zip(known, zip(*columns, strict=True), strict=True)]
    estimated = [None in label for label in labels]
    if any(estimated):
        for i, (age, female) in enumerate(zip(*recognition.ages_and_genders(faces), strict=True)):
            if estimated[i]:
                age = float(age) if labels[i][0] is None else labels[i][0]
                gender = (FEMALE if female > 0.5 else MALE) if labels[i][1] is None else labels[i][1]
                labels[i] = age, gender
                tqdm.write(f"{names[i]}: about {age:.0f}, {GENDER_NAMES[gender]} (estimated; --own_age, --own_gender)")
    return [age for age, _ in labels], [gender for _, gender in labels], estimated


def save_photos(paths: Sequence[Path], photo: Photo, photo_edits: Sequence[np.ndarray]) -> None:
    """Write a photo with each of some edits, to paths without a suffix, in a format of FORMATS: its own or PNG."""
    suffix, options = FORMATS.get(photo.format, FORMATS["PNG"])

    def save(path: Path, face_edits: np.ndarray) -> None:
        image = photo.edited(face_edits)
        with atomic_write(path.with_name(path.name + suffix)) as temporary:
            image.save(temporary, icc_profile=image.info.get("icc_profile"), **options)

    with ThreadPoolExecutor(WRITER_THREADS) as pool:
        list(pool.map(save, paths, photo_edits))


def pasted_distances(photo: Photo, aged: Sequence[np.ndarray]) -> list[float]:
    """Return the distances of dlib's embeddings of the first face, in a photo and found again in aged copies of it.

    aged: what FaceAging.age_photo returned; infinite where no face is found.
    """
    distances, own = [], recognition.embeddings(photo.faces[:1])
    for image in aged:
        found = find_faces(to_image(image).convert("RGB")).faces
        again = recognition.embeddings(found[0].image[np.newaxis]) if found else np.inf
        distances.append(float(np.linalg.norm(again - own)))
    return distances
