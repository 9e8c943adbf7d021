"""Reading one image file: decoding, orientation, colours, cropping, resizing; writing one; and exact copies."""

import hashlib
import io
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError, features

from support import InputError, printable, reason
from support.files import atomic_write
from support.terminal import progress

# The formats of photos among those that Pillow opens: EPS would run another program, FITS and GRIB are measurements.
PHOTO_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF", "HEIF", "JPEG2000", "PPM")
OPTIONAL_FORMATS = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}  # parts that a build of Pillow may lack
HEIC_REASON = "a HEIC image: pip install pillow-heif"
HEIC_SUFFIXES = (".heic", ".heif", ".hif")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")  # bytes 8 to 11 of such a file
UNSUPPORTED_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".jxl", ".svg", ".psd", ".xcf")
MAX_PIXELS = 128_000_000  # somewhat more than a phone's 108 megapixels
INFERENCE_BATCH = 50  # images encoded or generated at a time, which bounds the memory
FILES_PER_TASK = 500  # one future for each of 163,446 files would cost more than reading them
MAX_READ_PIXELS = 25_000_000  # larger images are reduced while they are read: 4 bytes a pixel, in every reading thread


class BadImage(InputError):
    """A file that cannot be read as an image, and the `reason`."""

    def __init__(self, path: str | Path, reason: str):
        self.reason = reason
        super().__init__(f"{printable(path)}: {reason}")


@cache
def formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that are read with the installed Pillow."""
    try:
        from pillow_heif import register_heif_opener

        register_heif_opener()
    except ImportError:
        pass
    Image.init()
    lacking = {name for name, feature in OPTIONAL_FORMATS.items() if not features.check(feature)}
    return tuple(name for name in PHOTO_FORMATS if name in Image.OPEN and name not in lacking)


@cache
def suffixes() -> tuple[str, ...]:
    """Return the suffixes, in lower case, of the files that are read."""
    known = {*formats(), "MPO"}  # a JPEG of two views, which Pillow opens as a JPEG
    return tuple(suffix for suffix, name in Image.registered_extensions().items() if name in known)


def unsupported_reason(name: str) -> str:
    """Return why a file whose suffix is none of `suffixes` is not read, or "" if it is not an image."""
    suffix = Path(name).suffix.lower()
    if suffix in HEIC_SUFFIXES:
        return HEIC_REASON
    if suffix in UNSUPPORTED_SUFFIXES or Image.registered_extensions().get(suffix) in PHOTO_FORMATS:
        return f"{suffix[1:]} is not read: save it as JPEG or PNG"
    return ""


def _unidentified_reason(path: str | Path) -> str:
    """Return why Pillow finds no format for a file's content."""
    with Path(path).open("rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp" and head[8:] in HEIC_BRANDS:
        return HEIC_REASON
    return "not an image" if head else "empty file"


@contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """Open an image without decoding its pixels. Raises BadImage for any error, within the block too."""
    try:
        if not Path(path).is_file():  # opening a pipe would block
            raise BadImage(path, "no such file")
        # by content, not by suffix: data sets from the web contain GIFs called .jpg
        with Image.open(path, formats=formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError  # as Pillow itself, which has a lower limit
            yield image
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage(path, _unidentified_reason(path)) from error
    except Image.DecompressionBombError as error:
        raise BadImage(path, f"more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:  # Pillow raises errors of nearly any class for malformed images
        raise BadImage(path, reason(error)) from error


def read_image(path: str | Path, most: int | None = None) -> Image.Image:
    """Return an image as RGB in sRGB, rotated by its EXIF orientation, with transparent pixels over white.

    Images of more than `most` pixels, by default MAX_READ_PIXELS, are reduced. Raises BadImage, an InputError with the
    file's name, if the image cannot be read.
    """
    with open_image(path) as image:
        most = most or MAX_READ_PIXELS
        factor = _reduction(image, most)
        if factor > 1:  # a JPEG can be decoded at a half, a quarter or an eighth of its size
            image.draft(image.mode, (image.width // factor, image.height // factor))
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise BadImage(path, "32-bit pixels without a defined white")
        image = _to_srgb(_reduced(image, most))
        return _over_white(image).convert("RGB")


def _reduction(image: Image.Image, most: int) -> int:
    """Return the whole number by which to divide the sides for at most `most` pixels."""
    return math.ceil(math.sqrt(image.width * image.height / most))


def _reduced(image: Image.Image, most: int) -> Image.Image:
    """Return an image of at most about `most` pixels, each of its pixels the mean of a square of pixels."""
    factor = _reduction(image, most)
    if factor == 1:
        return image
    if image.has_transparency_data or image.mode in ("1", "P"):  # palette indices cannot be averaged
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    return image.reduce(factor)


def _to_srgb(image: Image.Image) -> Image.Image:
    """Convert an image with an ICC profile to sRGB.

    A profile that is broken, or of another colour model than the image, is ignored, as browsers do.
    """
    if not (content := image.info.get("icc_profile")):
        return image
    image.load()  # before `try`: broken pixels are not a broken profile
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
        mode = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(profile.profile.xcolor_space)
        if mode is None or (mode == "CMYK") != (image.mode == "CMYK"):
            return image
        if "sRGB" in ImageCms.getProfileDescription(profile):  # a conversion would only round
            return image
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        colours = image.convert("RGB").convert(mode) if image.mode != mode else image
        image = ImageCms.profileToProfile(colours, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
        if alpha:
            image.putalpha(alpha)
    except (ImageCms.PyCMSError, OSError, ImportError):  # a build of Pillow may lack littlecms
        pass
    return image


def _over_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))


def read_full(path: str | Path) -> tuple[Image.Image, str]:
    """Return an image at its own size, and Pillow's name of its format.

    The image is upright, L, LA, RGB or RGBA, in the colours of the ICC profile in its `info`; other modes, such as
    CMYK and 16 bits, are converted to sRGB. Raises BadImage as `read_image` does.
    """
    with open_image(path) as image:
        name, profile = image.format, image.info.get("icc_profile")
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode in ("1", "P", "PA") or (image.has_transparency_data and image.mode in ("L", "RGB")):
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        if image.mode not in ("L", "LA", "RGB", "RGBA"):
            image, profile = read_image(path, MAX_PIXELS), None
        image.load()
        image.info = {"icc_profile": profile} if profile else {}
        return image, name


def from_srgb(image: Image.Image, content: bytes | None, mode: str) -> Image.Image:
    """Return an RGB image in the mode, L or RGB, and the colours of an ICC profile; without a usable one, in sRGB."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content or b""))
        known = profile.profile.xcolor_space == {"L": "GRAY", "RGB": "RGB "}[mode]
        if known and "sRGB" not in ImageCms.getProfileDescription(profile):
            image = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), profile, outputMode=mode)
    except (ImageCms.PyCMSError, OSError, ImportError):  # as in `_to_srgb`
        pass
    return image.convert(mode)


class NothingRead(InputError):
    """None of the faces can be read."""

    def __init__(self, faces: Sequence):
        such = f", such as {printable(faces[0].path)}" if faces else ""
        super().__init__(f"none of {len(faces)} faces can be read{such}: restore the files, or use others")


def read_images(
    faces: Sequence, load_image: Callable[[str], np.ndarray], log: Callable[[str], None] = print
) -> tuple[np.ndarray, list]:
    """Return (images uint8 [N, S, S, C], their faces) for those faces, dataset.Face, that can be read.

    `log` prints the others. Raises InputError if none can be read.
    """
    images, read = [], []
    for face in faces:
        try:
            images.append(load_image(face.path))
            read.append(face)
        except BadImage as error:
            log(f"Left out: {error}")
    if not images:
        raise NothingRead(faces)
    return np.stack(images), read


def read_parts(
    faces: Sequence, load_image: Callable[[str], np.ndarray], title: str
) -> Iterator[tuple[np.ndarray, list]]:
    """Yield what `read_images` returns for INFERENCE_BATCH faces at a time, with a progress bar.

    Raises InputError if no face at all can be read.
    """
    empty = True
    for i in progress(range(0, len(faces), INFERENCE_BATCH), title, unit="batch", delay=5):
        with suppress(NothingRead):
            yield read_images(faces[i : i + INFERENCE_BATCH], load_image)
            empty = False
    if empty:
        raise NothingRead(faces)


def fit_image(image: Image.Image, size_image: int, channels: int) -> np.ndarray:
    """Return the central square of an image, resized by Pillow's antialiased bilinear filter: uint8 [S, S, channels].

    `channels` is 1 (grey) or 3 (RGB).
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).convert("L" if channels == 1 else "RGB")
    pixels = np.asarray(image.resize((size_image, size_image), Image.Resampling.BILINEAR))
    return pixels.reshape(size_image, size_image, channels)


def fit_images(images: np.ndarray, size_image: int, channels: int) -> np.ndarray:
    """Return images, uint8 [N, H, W, C], each fitted to [S, S, channels] by `fit_image`.

    C is 1 (grey), 3 (RGB) or 4 (RGBA, composited over white like files). Raises InputError for any other array.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size or images.shape[3] not in (1, 3, 4):
        raise InputError(f"images are uint8 [N, H, W, C] with C 1, 3 or 4, not {images.dtype} {list(images.shape)}")
    if images.shape[1:] == (size_image, size_image, channels):
        return images
    return np.stack([fit_image(_over_white(to_image(image)), size_image, channels) for image in images])


def to_image(pixels: np.ndarray) -> Image.Image:
    """Return an array, uint8 [H, W, C] with C 1, 3 or 4, as a Pillow image."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def save_image(path: str | Path, pixels: np.ndarray) -> None:
    """Write one image, uint8 [H, W, C] with C 1 or 3, in the format of the path's suffix."""
    with atomic_write(path) as temporary:
        to_image(pixels).save(temporary)


def find_copies(paths: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256, by path, of each file of which another one has the same bytes, or that is listed twice.

    Only files of equal size are read.
    """
    by_size = defaultdict(list)
    for path in paths:
        with suppress(OSError):  # a file removed since it was listed is reported when it is read
            by_size[Path(path).stat().st_size].append(path)
    paths = [path for group in by_size.values() if len(group) > 1 for path in group]
    digests = hash_files(paths)
    times = Counter(digests)
    return {path: digest for path, digest in zip(paths, digests, strict=True) if digest and times[digest] > 1}


def hash_files(paths: Sequence[str]) -> list[str]:
    """Return the SHA-256 of each file's content, "" for a file that cannot be read."""

    def digest(path: str) -> str:
        try:
            return hashlib.sha256(Path(path).read_bytes()).hexdigest()
        except OSError:
            return ""

    return [each for part in in_tasks(digest, paths) for each in part]


def in_tasks(function: Callable, files: Sequence) -> Iterator[list]:
    """Yield the results of a function of each file, in the order of the files, FILES_PER_TASK at a time, by threads."""
    parts = [files[i : i + FILES_PER_TASK] for i in range(0, len(files), FILES_PER_TASK)]
    with ThreadPoolExecutor() as pool:
        yield from pool.map(lambda part: list(map(function, part)), parts)
