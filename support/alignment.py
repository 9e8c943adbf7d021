"""Face alignment: detection by MTCNN, crops as in UTKFace, aligned data sets, and a test of alignment."""

import csv
import shutil
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from support import InputError, first_names
from support.dataset import Face, exclusive, image_names, list_faces
from support.files import atomic_write
from support.images import BadImage, fit_image, read_image
from support.labels import GENDER_NAMES, TABLE, TABLE_COLUMNS
from support.terminal import progress, python_command, silence

# Eyes, nose and corners of the mouth in UTKFace's aligned images, the left one in the image first, in fractions of the
# side: medians printed by `tools/measure_alignment.py template`.
TEMPLATE = np.array([(0.296, 0.291), (0.689, 0.292), (0.493, 0.521), (0.317, 0.693), (0.668, 0.692)])
ONET_TEMPLATE = (TEMPLATE - 0.06) / 0.86  # the same points in the smaller square that `run_onet` gets
SMALLEST_CROP, LARGEST_CROP = 16, 1024  # pixels a side
# Of 400 faces in scenes one had less than 97% confidence, and no point a larger deviation than 0.12; no detection in
# images without a face has more than 80%: printed by `tools/measure_alignment.py scenes empty`.
MIN_CONFIDENCE = 0.95
MAX_DEVIATION = 0.15  # of any of the five points from TEMPLATE, in sides of the crop
DISCRIMINANT = Path(__file__).parent / "pretrained" / "aligned_face.npy"  # float16 [513], by measure_alignment.py fit
SAMPLED_IMAGES = 100  # images, evenly spaced over a data set, whose alignment is tested
SAMPLE_SIDE = 64  # pixels of these
DOUBTFUL_SHARE = 0.2  # of a data set; 0.001 for UTKFace itself
OUTCOMES_FILE = ".outcomes"  # of the photos of an alignment that is not complete
ALIGNED_SUFFIX = "_aligned"  # appended by --align True to the name of a data set of photos
WORKING_SIDE = 2000  # pixels of the longer side at which photos are searched, which bounds time and memory
SMALLEST_FACE = 24
PROPOSALS = 300  # at most, of one size and of all: images of gravel give thousands, too many for the second network
ROTATIONS = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
ONET_SIDE = 48  # pixels a side of the input of the last network
CPU = "CPU:0"  # such small networks are slower on a GPU


class DetectedFace(NamedTuple):
    """A face found in a photo, and its crop."""

    points: np.ndarray  # float [5, 2]: eyes, nose and corners of the mouth, in pixels of the photo
    confidence: float  # from 0 to 1
    frame: np.ndarray  # float [2, 3]: the map from the crop's unit square to pixels of the photo
    image: np.ndarray  # the crop, uint8 [side, side, 3], as large as in the photo within SMALLEST_ and LARGEST_CROP


class Detections(NamedTuple):
    """The faces found in a photo."""

    faces: list[DetectedFace]  # from left to right
    rejected: list[str]  # place and reason of each detection that is not a usable face


def find_faces(photo: Image.Image) -> Detections:
    """Find every face in a photo; rotate, scale and crop it as UTKFace's faces are.

    If there is none, the photo is searched rotated by 90, 180 and 270 degrees. Raises InputError without mtcnn.
    """
    photo = photo if photo.mode == "RGB" else photo.convert("RGB")
    found = [filter_detections(photo, quarters=0)]
    if not found[0].faces:
        found += [filter_detections(photo, quarters) for quarters in (1, 2, 3)]
    return max(found, key=lambda turned: sum(face.confidence for face in turned.faces))


def filter_detections(photo: Image.Image, quarters: int) -> Detections:
    """Refine and filter the detections in a photo rotated counter-clockwise by quarters of a turn."""
    detected = [refine(photo, points) for points in find_points(photo, quarters)]
    faces, rejected = [], []
    for face in sorted(detected, key=lambda face: -face.confidence):
        (x, y), side = face.points.mean(0), frame_side(face.frame)
        apart = [np.abs(other.points.mean(0) - (x, y)).max() / max(side, frame_side(other.frame)) for other in faces]
        if face.confidence < MIN_CONFIDENCE:
            doubt = f"confidence {face.confidence:.0%}"
        elif np.hypot(*(map_points(face.frame, TEMPLATE) - face.points).T).max() > MAX_DEVIATION * side:
            doubt = "eyes, nose and mouth are not placed as in a face"
        elif min(apart, default=1) < 0.5:
            doubt = "inside another face"
        elif not looks_aligned(face.image):
            doubt = "unlike the training faces"
        else:
            faces.append(face)
            continue
        rejected.append(f"at ({x:.0f}, {y:.0f}), {side:.0f} pixels wide: {doubt}")
    return Detections(sorted(faces, key=lambda face: face.points[:, 0].mean()), rejected)


def refine(photo: Image.Image, points: np.ndarray) -> DetectedFace:
    """Return the face at five points, float [5, 2], placed more exactly by the last network on the aligned crop."""
    view = similarity(ONET_TEMPLATE, points)
    points, confidence = run_onet(crop_square(photo, view, ONET_SIDE))
    frame = similarity(TEMPLATE, points := map_points(view, points))
    side = int(np.clip(round(frame_side(frame)), SMALLEST_CROP, LARGEST_CROP))
    return DetectedFace(points, confidence, frame, crop_square(photo, frame, side))


def find_points(photo: Image.Image, quarters: int) -> np.ndarray:
    """Return the points of all candidates by MTCNN (Zhang et al. 2016, arXiv 1604.02878), float [N, 5, 2].

    Eyes, nose and corners of the mouth in pixels of the photo, which is searched rotated counter-clockwise by quarters
    of a turn; the left one in an upright face first.
    """
    pnet, rnet, onet = _networks()
    import tensorflow as tf  # takes seconds: most uses of this module need no detection
    from mtcnn.utils.bboxes import generate_bounding_box, resize_to_square, upscale_bboxes

    reduced = max(1, max(photo.size) / WORKING_SIDE)
    working = _resize(photo, 1 / reduced)
    if quarters:
        working = working.transpose(ROTATIONS[quarters - 1])
    with tf.device(CPU):
        boxes, scale = [np.empty((0, 6))], 12 / SMALLEST_FACE
        # the first network detects faces of 12 pixels, so the photo is reduced step by step
        while scale * min(working.size) >= 12:
            found = generate_bounding_box(*pnet(_normalize(_resize(working, scale))), 0.6)
            boxes.append(upscale_bboxes(found[_strongest(found, 0.5)], np.array([scale])))
            scale *= 0.709
        boxes = np.concatenate(boxes)
        boxes = resize_to_square(boxes[_strongest(boxes, 0.7)])
        pixels = _normalize(working)
        for stage in (rnet, onet):
            if len(boxes):  # the stages accept no empty list
                boxes = stage(images_normalized=pixels, bboxes_batch=boxes, threshold_onet=0.7)
    points = boxes[:, 6:].reshape(-1, 2, 5).swapaxes(1, 2) if len(boxes) else np.empty((0, 5, 2))
    back = np.linalg.matrix_power([(0, 1), (-1, 0)], quarters)
    return (points - np.divide(working.size, 2)) @ back * reduced + np.divide(photo.size, 2)


def run_onet(view: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the points, float [5, 2] in sides of a view, uint8 [48, 48, 3], and the confidence, from 0 to 1.

    Of the view and its mirror image the points are averaged and the lower confidence is returned.
    """
    *_, onet = _networks()
    import tensorflow as tf

    with tf.device(CPU):
        _, points, scores = onet.model(np.concatenate([_normalize(view), _normalize(view[:, ::-1])]))
    upright, mirrored = points.numpy().reshape(2, 2, 5).swapaxes(1, 2)
    unmirrored = mirrored[[1, 0, 2, 4, 3]] * (-1, 1) + (1, 0)
    return (upright + unmirrored) / 2, float(scores[:, 1].numpy().min())


def _resize(image: Image.Image, scale: float) -> Image.Image:
    """Return an image reduced by a factor of at most 1, without aliasing."""
    size = [max(1, round(scale * side)) for side in image.size]
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3)


def _normalize(image) -> np.ndarray:
    """Return an image [H, W, 3] as the networks' input, float32 [1, H, W, 3] from -1 to 1."""
    return (np.asarray(image, np.float32)[np.newaxis] - 127.5) / 128


def _strongest(boxes: np.ndarray, overlap: float) -> np.ndarray:
    """Return the indices of boxes, float [N, 6], not overlapped by stronger ones; mtcnn's own needs N * N numbers."""
    import tensorflow as tf

    return tf.image.non_max_suppression(boxes[:, 1:5], boxes[:, 5], PROPOSALS, overlap).numpy()


@cache
def _networks():
    """Return MTCNN's first network as a function traced once for images of every size, and the two other stages."""
    try:
        with silence():  # TensorFlow logs while it is imported
            import keras
            import tensorflow as tf
            from mtcnn.stages import StageONet, StagePNet, StageRNet
    except ImportError as error:
        raise InputError(f"--align needs mtcnn: {python_command('-m', 'pip', 'install', 'mtcnn')} ({error})") from error
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")  # whatever the precision of the run
    try:
        with tf.device(CPU):
            pnet, rnet, onet = StagePNet(), StageRNet(), StageONet()
    finally:
        keras.config.set_dtype_policy(policy)
    return tf.function(pnet.model, input_signature=[tf.TensorSpec([1, None, None, 3])]), rnet, onet


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the rotation, scale and shift, float [2, 3], that map points [N, 2] to others, by least squares."""
    z, w = source @ (1, 1j), target @ (1, 1j)  # in complex numbers w = a z + b, which has no reflection
    a = np.vdot(z - z.mean(), w) / np.vdot(z - z.mean(), z)
    b = w.mean() - a * z.mean()
    return np.array([(a.real, -a.imag, b.real), (a.imag, a.real, b.imag)])


def map_points(frame: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply a map [2, 3] to points [N, 2]."""
    return points @ frame[:, :2].T + frame[:, 2]


def frame_side(frame: np.ndarray) -> float:
    """Return the side in pixels of the square that a frame covers."""
    return float(np.hypot(*frame[:, 0]))


def crop_square(photo: Image.Image, frame: np.ndarray, side: int) -> np.ndarray:
    """Return the square of a photo that a frame covers, uint8 [side, side, 3]; its edge is repeated beyond it."""
    step = max(1, frame_side(frame) / side)  # pixels of the photo for one of the crop
    corners = map_points(frame, np.array([(0, 0), (0, 1), (1, 0), (1, 1)]))
    low, high = (corners.min(0) - 2 * step).astype(int), (corners.max(0) + 2 * step).astype(int)
    first = np.clip(low, 0, np.array(photo.size) - 1)  # within the photo
    last = np.clip(high, first + 1, photo.size)
    x, y = (np.clip(np.arange(low[i], high[i]), first[i], last[i] - 1) - first[i] for i in (0, 1))
    part = Image.fromarray(np.asarray(photo.crop((*first, *last)))[y[:, np.newaxis], x])
    # resizing averages pixels; the transform alone would sample single pixels of a large face
    small = part.resize([round(length / step) for length in part.size], Image.Resampling.BILINEAR, reducing_gap=3)
    inverse = (
        np.column_stack([frame[:, :2] / side, frame[:, 2] - low]) * np.divide(small.size, part.size)[:, np.newaxis]
    )
    return np.asarray(small.transform((side, side), Image.Transform.AFFINE, inverse.ravel(), Image.Resampling.BICUBIC))


def features(image: np.ndarray) -> np.ndarray:
    """Return the strength of an image's gradients in eight directions, in each of 8 x 8 cells, and a 1: float [513]."""
    grey = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image).convert("L")
    down, right = np.gradient(np.asarray(grey.resize((32, 32), Image.Resampling.BILINEAR), float))
    direction = np.round(np.arctan2(down, right) / (np.pi / 4)) % 8
    strength = np.hypot(down, right) * (direction == np.arange(8).reshape(8, 1, 1))
    cells = np.sqrt(strength.reshape(8, 8, 4, 8, 4).mean((2, 4)))
    return np.append((cells - cells.mean()) / (cells.std() + 0.1), 1)


def looks_aligned(image: np.ndarray) -> bool:
    """Return whether a square image, uint8 [S, S] or [S, S, 1 or 3], shows a face placed as in the training faces."""
    return bool(features(image) @ np.load(DISCRIMINANT).astype(float) > 0)


def alignment_warning(faces: Sequence[Face]) -> str:
    """Return a warning if many of a sample of the faces are not placed as aligned faces are, or else ""."""
    sample = [faces[i].path for i in np.unique(np.linspace(0, len(faces) - 1, SAMPLED_IMAGES).round().astype(int))]

    def doubtful(path: str) -> bool:
        try:
            return not looks_aligned(fit_image(read_image(path), SAMPLE_SIDE, 3))
        except BadImage:  # reported when it is read for training
            return False

    with ThreadPoolExecutor() as pool:
        found = [path for path, doubted in zip(sample, pool.map(doubtful, sample), strict=True) if doubted]
    if len(found) <= DOUBTFUL_SHARE * len(sample):
        return ""
    return (
        f"{len(found):,} of {len(sample):,} images sampled do not look like aligned faces{first_names(found)}: "
        "training uses the central square of each image, so align and crop them first, as close as UTKFace's, "
        "or pass --align True"
    )


def aligned_name(photos: str) -> str:
    """Return the name of the data set of faces that `--align True` makes from a data set of photos."""
    return f"{Path(photos).as_posix()}{ALIGNED_SUFFIX}"


def photos_name(aligned: str) -> str:
    """Return the name of the data set of photos from which one of aligned faces is made.

    Raises InputError if the name is not that of such a set.
    """
    if not aligned.endswith(ALIGNED_SUFFIX):
        raise InputError(f"the run was made with {aligned} without alignment: omit --align")
    return aligned.removesuffix(ALIGNED_SUFFIX)


def align_dataset(photos: Path, aligned: Path, unknown_gender: bool = False) -> None:
    """Find the face in every photo of a data set, and write the faces and their labels as the data set `aligned`.

    It appears when it is complete; a stopped process leaves a hidden folder with which the next one continues, and one
    process works at a time. A face has its photo's name followed by .png, and its labels in labels.csv. Photos without
    a face are left out, and those with several, whose labels may belong to any of them; their numbers, reasons and
    first names are printed. Raises InputError if no face is left, or without mtcnn.
    """
    with exclusive(aligned, f"aligns {photos}"):
        if aligned.is_dir():  # another process has aligned it meanwhile
            return
        listing = list_faces(photos, unknown_gender)
        _networks()  # before any work
        partial = aligned.with_name(f".{aligned.name}.aligning")
        outcomes = _align_photos(listing.faces, photos, partial)
        rows = [
            (f"{name}.png", face.age, GENDER_NAMES.get(face.gender, ""))
            for name, face in zip(outcomes, listing.faces, strict=True)
            if not outcomes[name]
        ]
        left_out = dict(listing.skipped) | {name: reason for name, reason in outcomes.items() if reason}
        if not rows:
            shutil.rmtree(partial)
            raise InputError(f"no photo in {photos} shows one face to train on{first_names(list(left_out))}")
        for name in set(image_names(partial)).difference(row[0] for row in rows):  # of photos removed meanwhile
            (partial / name).unlink()
        with (partial / TABLE).open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file).writerows([TABLE_COLUMNS, *rows])
        (partial / OUTCOMES_FILE).unlink()
        partial.rename(aligned)
    print(f"{len(rows):,} faces of {len(rows) + len(left_out):,} photos aligned in {aligned}")
    for reason, count in Counter(left_out.values()).most_common():
        names = [name for name, why in left_out.items() if why == reason]
        print(f"  {count:,} left out, {reason}{first_names(names)}")


def _align_photos(faces: Sequence[Face], photos: Path, partial: Path) -> dict[str, str]:
    """Write the face of each photo to the folder `partial`; return the outcomes by photo: a reason, or "" for a face.

    Photos whose outcome the folder records, and which have not changed since, are not searched again.
    """
    partial.mkdir(parents=True, exist_ok=True)
    outcomes, text = {}, {"encoding": "utf-8", "errors": "surrogateescape"}
    with (partial / OUTCOMES_FILE).open("a+", **text) as file:
        file.seek(0)
        lines = file.read().split("\0")
        # the last line is empty, or was cut off when a process ended
        done = dict(line.rsplit("\t", 1) for line in lines[:-1] if line.count("\t") > 2)
        file.write("\0" * bool(lines[-1]))
        if done:
            print(f"Continuing the alignment of {photos} after {len(done):,} photos", flush=True)
        for face in progress(faces, f"Aligning {photos}", unit="photo"):
            name = Path(face.path).relative_to(photos).as_posix()
            path = partial / f"{name}.png"
            state = Path(face.path).stat()
            key = f"{name}\t{state.st_size}\t{state.st_mtime_ns}"
            if key not in done or (not done[key] and not path.is_file()):
                done[key] = _align_photo(face.path, path)
                file.write(f"{key}\t{done[key]}\0")
                file.flush()
            outcomes[name] = done[key]
    return outcomes


def _align_photo(photo: str, path: Path) -> str:
    """Write the only face of a photo as an image; return the reason if there is none, or ""."""
    try:
        found = find_faces(read_image(photo)).faces
    except BadImage as error:
        return error.reason
    if len(found) != 1:
        return "several faces" if found else "no face found"
    with atomic_write(path) as temporary:
        Image.fromarray(found[0].image).save(temporary)
    return ""
