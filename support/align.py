"""A photo as it comes from a phone, made into faces that lie as the training faces do (optional extra: OpenCV 4)."""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from support.errors import InputError
from support.terminal import python

# Where UTKFace's aligned pictures have the eyes, left and right in the picture, as fractions of its width and height:
# medians of OpenCV's eye_tree_eyeglasses cascade over 400 of them (spread: 0.022 across, 0.013 down). And the chin, in
# the middle, where the mean of as many darkens most.
EYES = ((0.29, 0.30), (0.69, 0.30))
CHIN = (0.49, 0.953)
# Centre and side, in the same fractions, of the box the finder below draws round a UTKFace face: means over 400 of
# them set into larger canvases; `tests.tools.measure_alignment` measures all of these again.
BOX_CENTRE = (0.490, 0.411)
BOX_SIDE = 0.993

# A cascade still sees a face that leans by 10 degrees, and none that leans by 30.
TURNS = (-20, -10, 0, 10, 20)
WORKING_SIDE = 640  # longest side, in pixels, of the picture that is searched: a face of 40 pixels there is found
SMALLEST_BOX = 40
BORDER = 1 / 8  # of the longest side: the box round a face that fills its picture reaches beyond the picture
STRONG_VOTES = 12  # windows over all turns: 29 false finds in 295 scenes had 4 to 10, 96% of the faces had 12 or more
CORRECTIONS = 4  # steps of the linear correction, each by 0.6 of what is foretold: whole steps overshoot
CORRECTION_RATE = 0.6

# Linear maps from a normalised 16 x 16 grey picture, float16 [16 * 16 + 1, 5], the last row the offsets: the first four
# columns foretell how far a crop lies from the training faces' place (right, down, scale, turn), the fifth is above 0
# for an aligned face. Ridge regression over some thousand faces by `tests.tools.measure_alignment --fit`.
STATISTICS = Path(__file__).parents[1] / "demo" / "aligned_face.npy"
SMALL_SIDE = 16
FAINTEST = 4.0  # standard deviation in grey levels under which a small picture shows nothing


def align_faces(image: np.ndarray) -> list[np.ndarray]:
    """Find every face in a photo, level it and crop it as UTKFace's faces are cropped.

    image: uint8 [H, W, 3], upright (EXIF rotation applied). Returns uint8 [side, side, 3] pictures from left to right,
    each at the face's own size in pixels; what lies beyond the photo repeats its edge. Empty where no face is found.
    Raises InputError where OpenCV is missing or carries no cascades.
    """
    return [sample(image, frame, max(SMALL_SIDE, round(side_of(frame)))) for frame in find_frames(image)]


def looks_aligned(image: np.ndarray) -> bool:
    """Whether a square picture, uint8 [S, S] or [S, S, 1 or 3], has a face about where the training faces are.

    Needs no OpenCV. A linear discriminant on the 16 x 16 grey picture, set to doubt 1.5% of UTKFace's own faces.
    """
    small = shrink(image)
    return bool(small.std() >= FAINTEST and foretell(small)[4] > 0)


def find_frames(image: np.ndarray) -> list[np.ndarray]:
    """Each face's frame, float [2, 3]: the map from the unit square of the aligned picture to pixels of the photo."""
    grey = opencv().cvtColor(image, opencv().COLOR_RGB2GRAY)
    frames = [correct(grey, box_frame(box)) for box in find_faces(grey)]
    return sorted(frames, key=lambda frame: frame[0] @ (0.5, 0.5, 1))


def find_faces(grey: np.ndarray) -> list[np.ndarray]:
    """One box, float [5], for every face in a grey photo, uint8 [H, W]: those that enough windows vote for."""
    return [mean_box(boxes) for boxes in group(find_boxes(grey)) if boxes[:, 4].sum() >= STRONG_VOTES]


def find_boxes(grey: np.ndarray) -> np.ndarray:
    """What the cascade finds in a grey photo turned by each of TURNS.

    grey: uint8 [H, W]. Returns float [N, 5]: centre (x, y), side in pixels, turn in degrees, votes.
    """
    cv2 = opencv()
    shrunk = min(1, WORKING_SIDE / max(grey.shape))
    if shrunk < 1:
        grey = cv2.resize(grey, None, fx=shrunk, fy=shrunk, interpolation=cv2.INTER_AREA)
    border = round(BORDER * max(grey.shape))
    grey = cv2.copyMakeBorder(grey, border, border, border, border, cv2.BORDER_REPLICATE)
    height, width = grey.shape
    boxes = []
    for degrees in TURNS:
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
        size = np.abs(turn[:, :2]) @ (width, height)  # of the canvas that holds the turned photo
        turn[:, 2] += size / 2 - (width / 2, height / 2)
        turned = cv2.warpAffine(grey, turn, tuple(np.ceil(size).astype(int).tolist()), borderMode=cv2.BORDER_REPLICATE)
        found, votes = _cascade().detectMultiScale2(turned, 1.1, 3, minSize=(SMALLEST_BOX, SMALLEST_BOX))
        back = cv2.invertAffineTransform(turn)
        for (left, top, side, _), count in zip(found, np.ravel(votes), strict=True):
            centre = back @ (left + side / 2, top + side / 2, 1) - border
            boxes.append((*(centre / shrunk), side / shrunk, degrees, count))
    return np.array(boxes, float).reshape(-1, 5)


def group(boxes: np.ndarray) -> list[np.ndarray]:
    """Boxes, float [N, 5], put together face by face, the most voted first."""
    groups: list[list[np.ndarray]] = []
    for box in boxes[np.argsort(-boxes[:, 4], kind="stable")]:
        for others in groups:
            if np.hypot(*(box[:2] - others[0][:2])) < 0.4 * max(box[2], others[0][2]):
                others.append(box)
                break
        else:
            groups.append([box])
    return [np.array(others) for others in groups]


def mean_box(boxes: np.ndarray) -> np.ndarray:
    """One face's boxes, float [N, 5], averaged by their squared votes, which are most where the turn levels it."""
    return np.average(boxes, axis=0, weights=boxes[:, 4] ** 2)


def box_frame(box: np.ndarray) -> np.ndarray:
    """The frame, float [2, 3], of an aligned picture whose face has this box, float [5]."""
    x, y, side, degrees = box[:4]
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = side / BOX_SIDE * np.array([[c, -s], [s, c]])
    return np.column_stack([turn, np.array([x, y]) - turn @ BOX_CENTRE])


def move(frame: np.ndarray, right: float, down: float, scale: float, turn: float) -> np.ndarray:
    """A frame moved within its own unit square: shifts and scale in fractions of it, turn in radians round the nose."""
    nose = np.array([0.5, 0.45])
    inner = np.array([[1 + scale, -turn], [turn, 1 + scale]])
    shift = nose + (right, down) - inner @ nose
    return np.column_stack([frame[:, :2] @ inner, frame[:, :2] @ shift + frame[:, 2]])


def correct(grey: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """A frame brought nearer to where the training faces would have it."""
    for _ in range(CORRECTIONS):
        frame = move(frame, *(-CORRECTION_RATE * foretell(sample(grey, frame, SMALL_SIDE))[:4]))
    return frame


def side_of(frame: np.ndarray) -> float:
    """The side in pixels of the square that a frame covers."""
    return float(np.hypot(frame[0, 0], frame[1, 0]))


def sample(image: np.ndarray, frame: np.ndarray, side: int) -> np.ndarray:
    """The part of a picture [H, W, ...] that a frame covers, as uint8 [side, side, ...]."""
    cv2 = opencv()
    step = side_of(frame) / side  # pixels of the photo for one of ours
    # a square of the photo round the frame, so that blurring costs no more than the face
    corners = frame @ np.array([[0, 0, 1, 1], [0, 1, 0, 1], [1, 1, 1, 1]])
    low = np.clip(np.floor(corners.min(1) - 3 * step), 0, np.array(image.shape[1::-1]) - 1).astype(int)
    high = np.maximum(np.ceil(corners.max(1) + 3 * step).astype(int), low + 1)
    part = image[low[1] : high[1], low[0] : high[0]]
    if step > 1:
        part = cv2.GaussianBlur(part, (0, 0), 0.45 * step, borderType=cv2.BORDER_REPLICATE)
    pixels = np.column_stack([frame[:, :2] / side, frame[:, :2].sum(1) / (2 * side) + frame[:, 2] - low - 0.5])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(part, pixels, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def shrink(image: np.ndarray) -> np.ndarray:
    """A picture, uint8 [H, W] or [H, W, 1 or 3], as float [16, 16] grey levels."""
    grey = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image).convert("L")
    half = np.asarray(grey.resize((2 * SMALL_SIDE, 2 * SMALL_SIDE), Image.Resampling.BILINEAR), float)
    return half.reshape(SMALL_SIDE, 2, SMALL_SIDE, 2).mean((1, 3))


def normalise(small: np.ndarray) -> np.ndarray:
    """Grey levels [16, 16] as float [257]: brightness and contrast taken out, and a 1 for the offsets."""
    return np.append((small - small.mean()) / (small.std() + 1), 1)


def foretell(small: np.ndarray) -> np.ndarray:
    """What STATISTICS say of grey levels [16, 16]: float [5]."""
    return normalise(small) @ _statistics()


@cache
def _statistics() -> np.ndarray:
    return np.load(STATISTICS).astype(float)


@cache
def opencv():
    """OpenCV 4: imported when first needed, for it is an optional extra, and release 5 has no cascades."""
    try:
        import cv2
    except ImportError:
        cv2 = None
    if not hasattr(cv2, "CascadeClassifier"):
        what = "is not installed" if cv2 is None else f"is {cv2.__version__}, which has no face cascades"
        install = python("-m", "pip", "install", "opencv-python-headless<5")
        raise InputError(f"aligning faces needs OpenCV 4, which {what}: {install}")
    return cv2


@cache
def _cascade():
    cv2 = opencv()
    return cv2.CascadeClassifier(str(Path(cv2.data.haarcascades) / "haarcascade_frontalface_alt2.xml"))
