"""One image file: opened, turned upright, made square, written; open it where an image is read wrongly or refused."""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError, features

from support.errors import InputError, printable, reason
from support.files import atomic_write

# Of what Pillow opens, the formats that photos come in: EPS would run another program, FITS and GRIB are measurements.
PHOTO_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF", "HEIF", "JPEG2000", "PPM")
BUILT_IN = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}  # the parts that a Pillow may be built without
WITHOUT_HEIC = "a HEIC picture: pip install pillow-heif"
HEIC_SUFFIXES = (".heic", ".heif", ".hif")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")  # bytes 8 to 11 of such a file
OTHER_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".jxl", ".svg", ".psd", ".xcf")
MAX_PIXELS = 128_000_000  # a phone's 108 megapixels, and a little more
MANY_PIXELS = 25_000_000  # a larger image is made smaller while it is read: 4 bytes a pixel, in every reading thread


class BadPicture(InputError):
    """A file that cannot be read as an image; `reason` says why."""

    def __init__(self, path: str | Path, reason: str):
        self.reason = reason
        super().__init__(f"{printable(str(path))}: {reason}")


@cache
def formats() -> tuple[str, ...]:
    """Returns Pillow's names of the formats that images are read in, here where it is installed as it is."""
    try:
        from pillow_heif import register_heif_opener

        register_heif_opener()
    except ImportError:
        pass
    Image.init()
    lacking = {name for name, feature in BUILT_IN.items() if not features.check(feature)}
    return tuple(name for name in PHOTO_FORMATS if name in Image.OPEN and name not in lacking)


@cache
def suffixes() -> tuple[str, ...]:
    """Returns the suffixes, in lower case, of the files that are read."""
    known = {*formats(), "MPO"}  # a JPEG of two views, which Pillow opens as a JPEG
    return tuple(suffix for suffix, name in Image.registered_extensions().items() if name in known)


def why_unread(name: str) -> str:
    """Returns why a file whose suffix is none of `suffixes` is not read, or "" where it is no image at all."""
    suffix = Path(name).suffix.lower()
    if suffix in HEIC_SUFFIXES:
        return WITHOUT_HEIC
    if suffix in OTHER_SUFFIXES or Image.registered_extensions().get(suffix) in PHOTO_FORMATS:
        return f"{suffix[1:]} is not read: save it as JPEG or PNG"
    return ""


def _why_unknown(path: str | Path) -> str:
    """Returns why Pillow knows no format for a file's content."""
    with Path(path).open("rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp" and head[8:] in HEIC_BRANDS:
        return WITHOUT_HEIC
    return "not a picture" if head else "empty file"


@contextmanager
def open_picture(path: str | Path) -> Iterator[Image.Image]:
    """Open an image, its pixels not yet decoded. Raises BadPicture for whatever is wrong, within the block too."""
    try:
        if not Path(path).is_file():  # opening a pipe would wait for ever
            raise BadPicture(path, "no such file")
        # by content, not by suffix: data sets from the web hold GIFs called .jpg
        with Image.open(path, formats=formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError  # as Pillow itself does, but beyond a higher limit
            yield image
    except BadPicture:
        raise
    except UnidentifiedImageError as error:
        raise BadPicture(path, _why_unknown(path)) from error
    except Image.DecompressionBombError as error:
        raise BadPicture(path, f"more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:  # a malformed image makes Pillow raise nearly anything
        raise BadPicture(path, reason(error)) from error


def read_image(path: str | Path) -> Image.Image:
    """Returns an image in sRGB, turned as its EXIF says, laid over white where it is transparent.

    One of more than MANY_PIXELS is made smaller. Raises BadPicture (an InputError), with the file's name, for anything
    that cannot be read so.
    """
    with open_picture(path) as image:
        shrink = _shrink_of(image)
        if shrink > 1:  # a JPEG can be decoded at a half, a quarter or an eighth of its size
            image.draft(image.mode, (image.width // shrink, image.height // shrink))
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise BadPicture(path, "32-bit pixels, whose white is not known")
        image = _in_srgb(_shrunk(image))
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return image.convert("RGB")


def _shrink_of(image: Image.Image) -> int:
    """Returns by which whole number the sides are to be divided for at most MANY_PIXELS."""
    return math.ceil(math.sqrt(image.width * image.height / MANY_PIXELS))


def _shrunk(image: Image.Image) -> Image.Image:
    """Returns an image of at most about MANY_PIXELS, each of its pixels the mean of a square of those before."""
    shrink = _shrink_of(image)
    if shrink == 1:
        return image
    if image.has_transparency_data or image.mode in ("1", "P"):  # a palette's numbers have no mean
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    return image.reduce(shrink)


def _in_srgb(image: Image.Image) -> Image.Image:
    """Returns an image whose colours, if a profile of its own says what they are, are those of sRGB.

    A profile that is broken, or for other colours than the image has, counts for none, as in a browser.
    """
    if not (content := image.info.get("icc_profile")):
        return image
    image.load()  # here, where what is wrong with the pixels is not taken for a broken profile
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
        mode = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(profile.profile.xcolor_space)
        if mode is None or (mode == "CMYK") != (image.mode == "CMYK"):
            return image
        if "sRGB" in ImageCms.getProfileDescription(profile):  # to convert would only round
            return image
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        colours = image.convert("RGB").convert(mode) if image.mode != mode else image
        image = ImageCms.profileToProfile(colours, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
        if alpha:
            image.putalpha(alpha)
    except (ImageCms.PyCMSError, OSError, ImportError):  # a Pillow may be built without littlecms
        pass
    return image


def fit_image(image: Image.Image, size_image: int, channels: int) -> np.ndarray:
    """Returns the central square of an image, resized by Pillow's antialiased bilinear filter: uint8 [S, S, channels].

    `channels` is 1 (grey) or 3 (RGB).
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).convert("L" if channels == 1 else "RGB")
    pixels = np.asarray(image.resize((size_image, size_image), Image.Resampling.BILINEAR))
    return pixels.reshape(size_image, size_image, channels)


def fit_images(images: np.ndarray, size_image: int, channels: int) -> np.ndarray:
    """Returns images, uint8 [N, H, W, C] with C 1 or 3, each made one of [S, S, channels] by `fit_image`.

    Raises InputError for an array of another kind, or an empty one.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise InputError(f"pictures are uint8 [N, H, W, C], not {images.dtype} {list(images.shape)}")
    if images.shape[1:] == (size_image, size_image, channels):
        return images
    return np.stack([fit_image(to_image(image), size_image, channels) for image in images])


def to_image(pixels: np.ndarray) -> Image.Image:
    """Returns an array, uint8 [H, W, C] with C 1 or 3, as an image of Pillow's."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def save_image(path: str | Path, pixels: np.ndarray) -> None:
    """Write one image, uint8 [H, W, C] with C 1 or 3, in the format of the path's suffix."""
    with atomic_write(path) as temporary:
        to_image(pixels).save(temporary)
