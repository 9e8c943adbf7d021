"""Any photo made into faces that lie as the training faces do, each placed by its eyes, nose and mouth."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

# Where UTKFace's aligned pictures have the eyes, the nose and the corners of the mouth, left before right as they are
# seen, in fractions of the picture's side: medians that `tools/measure_alignment.py template` prints.
TEMPLATE = np.array([(0.296, 0.291), (0.689, 0.292), (0.493, 0.521), (0.317, 0.693), (0.668, 0.692)])
VIEW = (TEMPLATE - 0.06) / 0.86  # where they are, likewise, in the smaller square that is looked at twice
SMALLEST_CROP, LARGEST_CROP = 16, 1024  # pixels a side
# Of 400 faces in scenes one was less than 97% sure, and no point was farther off than 0.12; of what is found in images
# without a face nothing is more than 80% sure: `tools/measure_alignment.py scenes empty` prints both.
CONFIDENCE = 0.95
DEVIATION = 0.15  # of any of the five points from TEMPLATE, in sides of the crop
DISCRIMINANT = Path(__file__).parent / "pretrained" / "aligned_face.npy"  # float16 [513], by measure_alignment.py fit


class Face(NamedTuple):
    """A face found in a photo, and its crop."""

    points: np.ndarray  # float [5, 2]: eyes, nose and corners of the mouth, in pixels of the photo
    confidence: float  # from 0 to 1
    frame: np.ndarray  # float [2, 3]: the map from the crop's unit square to pixels of the photo
    image: np.ndarray  # the crop, uint8 [side, side, 3], as large as in the photo within SMALLEST_ and LARGEST_CROP


class Found(NamedTuple):
    """What a photo shows."""

    faces: list[Face]  # from left to right
    dropped: list[str]  # what was found but is no face, or none to be used: where it is, and why


def find_faces(photo: Image.Image) -> Found:
    """Find every face in a photo, level it and crop it as UTKFace's faces are cropped.

    Where it shows none, it is searched on its sides and on its head. Raises InputError where mtcnn is not installed.
    """
    photo = photo if photo.mode == "RGB" else photo.convert("RGB")
    found = [_believe(photo, quarters=0)]
    if not found[0].faces:
        found += [_believe(photo, quarters) for quarters in (1, 2, 3)]
    return max(found, key=lambda turned: sum(face.confidence for face in turned.faces))


def looks_aligned(image: np.ndarray) -> bool:
    """Whether a square image, uint8 [S, S] or [S, S, 1 or 3], shows a face that lies about as the training faces do."""
    return bool(features(image) @ np.load(DISCRIMINANT).astype(float) > 0)


def _believe(photo: Image.Image, quarters: int) -> Found:
    """Look again at what is found in a photo turned left by quarters, and keep what is a face."""
    from support import finder  # imports TensorFlow, which takes seconds

    looks = [_look_again(photo, points, finder) for points in finder.find_points(photo, quarters)]
    faces, dropped = [], []
    for face in sorted(looks, key=lambda face: -face.confidence):
        (x, y), side = face.points.mean(0), side_of(face.frame)
        apart = [np.abs(other.points.mean(0) - (x, y)).max() / max(side, side_of(other.frame)) for other in faces]
        if face.confidence < CONFIDENCE:
            doubt = f"only {face.confidence:.0%} sure to be a face"
        elif np.hypot(*(apply(face.frame, TEMPLATE) - face.points).T).max() > DEVIATION * side:
            doubt = "eyes, nose and mouth are not where a face has them"
        elif min(apart, default=1) < 0.5:
            doubt = "inside another face"
        elif not looks_aligned(face.image):
            doubt = "unlike the training faces"
        else:
            faces.append(face)
            continue
        dropped.append(f"at ({x:.0f}, {y:.0f}), {side:.0f} pixels wide: {doubt}")
    return Found(sorted(faces, key=lambda face: face.points[:, 0].mean()), dropped)


def _look_again(photo: Image.Image, points: np.ndarray, finder) -> Face:
    """The face at five points, float [5, 2]: a second look, at the level face alone, places them better."""
    view = similarity(VIEW, points)
    points, confidence = finder.look(sample(photo, view, finder.VIEW_SIDE))
    frame = similarity(TEMPLATE, points := apply(view, points))
    side = int(np.clip(round(side_of(frame)), SMALLEST_CROP, LARGEST_CROP))
    return Face(points, confidence, frame, sample(photo, frame, side))


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation, scale and shift, float [2, 3], that take points [N, 2] nearest to others, by least squares."""
    z, w = source @ (1, 1j), target @ (1, 1j)  # in complex numbers it is w = a z + b, which holds no reflection
    a = np.vdot(z - z.mean(), w) / np.vdot(z - z.mean(), z)
    b = w.mean() - a * z.mean()
    return np.array([(a.real, -a.imag, b.real), (a.imag, a.real, b.imag)])


def apply(frame: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points [N, 2] as a map [2, 3] takes them."""
    return points @ frame[:, :2].T + frame[:, 2]


def side_of(frame: np.ndarray) -> float:
    """The side in pixels of the square that a frame covers."""
    return float(np.hypot(*frame[:, 0]))


def sample(photo: Image.Image, frame: np.ndarray, side: int) -> np.ndarray:
    """The square of a photo that a frame covers, uint8 [side, side, 3]; what lies beyond the photo repeats its edge."""
    step = max(1, side_of(frame) / side)  # pixels of the photo for one of the crop
    corners = apply(frame, np.array([(0, 0), (0, 1), (1, 0), (1, 1)]))
    low, high = (corners.min(0) - 2 * step).astype(int), (corners.max(0) + 2 * step).astype(int)
    first = np.clip(low, 0, np.array(photo.size) - 1)  # of the pixels that there are
    last = np.clip(high, first + 1, photo.size)
    x, y = (np.clip(np.arange(low[i], high[i]), first[i], last[i] - 1) - first[i] for i in (0, 1))
    part = Image.fromarray(np.asarray(photo.crop((*first, *last)))[y[:, np.newaxis], x])
    # resizing blurs as it must; turning by itself would take single pixels out of a large face
    small = part.resize([round(length / step) for length in part.size], Image.Resampling.BILINEAR, reducing_gap=3)
    inverse = (
        np.column_stack([frame[:, :2] / side, frame[:, 2] - low]) * np.divide(small.size, part.size)[:, np.newaxis]
    )
    return np.asarray(small.transform((side, side), Image.Transform.AFFINE, inverse.ravel(), Image.Resampling.BICUBIC))


def features(image: np.ndarray) -> np.ndarray:
    """How strong an image's gradients are in eight directions, in each of 8 x 8 cells, and a 1: float [513]."""
    grey = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image).convert("L")
    down, right = np.gradient(np.asarray(grey.resize((32, 32), Image.Resampling.BILINEAR), float))
    direction = np.round(np.arctan2(down, right) / (np.pi / 4)) % 8
    strength = np.hypot(down, right) * (direction == np.arange(8).reshape(8, 1, 1))
    cells = np.sqrt(strength.reshape(8, 8, 4, 8, 4).mean((2, 4)))
    return np.append((cells - cells.mean()) / (cells.std() + 0.1), 1)
