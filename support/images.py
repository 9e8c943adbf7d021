"""One image file: opened, turned upright, made square, written; open it where an image is read wrongly or refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from support.errors import InputError, printable, reason
from support.files import write_whole

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # by content: data sets from the web hold GIFs called .jpg
MAX_PIXELS = 100_000_000


class BadPicture(InputError):
    """A file that cannot be read as an image; `reason` says why."""

    def __init__(self, path: str | Path, reason: str):
        self.reason = reason
        super().__init__(f"{printable(str(path))}: {reason}")


@contextmanager
def open_picture(path: str | Path) -> Iterator[Image.Image]:
    """Open an image, its pixels not yet decoded. Raises BadPicture for whatever is wrong, within the block too."""
    try:
        if not Path(path).is_file():  # opening a pipe would wait for ever
            raise BadPicture(path, "no such file")
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError  # as Pillow itself does, but beyond a higher limit
            yield image
    except BadPicture:
        raise
    except UnidentifiedImageError as error:
        raise BadPicture(path, "not a picture" if Path(path).stat().st_size else "empty file") from error
    except Image.DecompressionBombError as error:
        raise BadPicture(path, f"more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:  # a malformed image makes Pillow raise nearly anything
        raise BadPicture(path, reason(error)) from error


def read_image(path: str | Path) -> Image.Image:
    """Returns an image in RGB, turned as its EXIF says, laid over white where it is transparent.

    Raises BadPicture (an InputError), with the file's name, for anything that cannot be read so.
    """
    with open_picture(path) as image:
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise BadPicture(path, "32-bit pixels, whose white is not known")
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return image.convert("RGB")


def fit_image(image: Image.Image, size_image: int, channels: int) -> np.ndarray:
    """Returns the central square of an image, resized by Pillow's antialiased bilinear filter: uint8 [S, S, channels].

    `channels` is 1 (grey) or 3 (RGB).
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).convert("L" if channels == 1 else "RGB")
    pixels = np.asarray(image.resize((size_image, size_image), Image.Resampling.BILINEAR))
    return pixels.reshape(size_image, size_image, channels)


def to_image(pixels: np.ndarray) -> Image.Image:
    """Returns an array, uint8 [H, W, C] with C 1 or 3, as an image of Pillow's."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def save_image(path: str | Path, pixels: np.ndarray) -> None:
    """Write one image, uint8 [H, W, C] with C 1 or 3, in the format of the path's suffix."""
    with write_whole(path) as temporary:
        to_image(pixels).save(temporary)
