"""Any file a user may have among the faces is read as a viewer shows it, or named: never a traceback, never a hang."""

import io
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main
from ops import load_image
from support import dataset
from support.dataset import list_faces
from support.errors import InputError
from support.images import BadPicture, open_picture

ROOT = Path(main.__file__).parent
SIZE = 32
MUTANTS = 1000
SECONDS_A_PICTURE = 5
ORIENTATION = 0x0112  # the EXIF tag
STORED_AS = {  # what a camera did to the upright picture, by the orientation it wrote
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")


def scene(width: int = 60, height: int = 40) -> Image.Image:
    """A smooth picture whose corners differ: red grows to the right, green downwards, blue is 90."""
    red = np.broadcast_to(np.linspace(20, 220, width), (height, width))
    green = np.broadcast_to(np.linspace(200, 40, height)[:, np.newaxis], (height, width))
    return Image.fromarray(np.stack([red, green, np.full_like(red, 90)], axis=-1).astype(np.uint8))


def expected(image: Image.Image, mode: str = "RGB", size: int = SIZE) -> np.ndarray:
    """The centred square of an upright picture, resized by Pillow itself."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.convert(mode).crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR)).reshape(size, size, -1)


def difference(pixels: np.ndarray, other: np.ndarray) -> float:
    assert pixels.shape == other.shape and pixels.dtype == other.dtype == np.uint8
    return np.abs(pixels.astype(float) - other).mean()


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.png", "a.webp", "a.bmp", "a.tif", "a.TIFF"])
def test_every_format_is_read_as_drawn(tmp_path, name):
    pixels = load_image(saved(tmp_path / name, scene()), SIZE, 3)
    assert difference(pixels, expected(scene())) < 4  # jpg and webp lose a little


@pytest.mark.parametrize("size", [(200, 200), (128, 128), (37, 91), (640, 480), (3, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_equals_pillows_antialiased_bilinear(tmp_path, size, channels):
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    path = saved(tmp_path / "noise.png", Image.fromarray(noise))
    pixels = load_image(path, 128, channels)
    assert difference(pixels, expected(Image.fromarray(noise), "L" if channels == 1 else "RGB", 128)) <= 1


def test_content_counts_and_not_the_suffix(tmp_path):
    saved(tmp_path / "a.png", scene()).rename(tmp_path / "a.jpg")
    assert difference(load_image(tmp_path / "a.jpg", SIZE, 3), expected(scene())) == 0


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_every_mode_of_png_is_read_as_pillow_shows_it(tmp_path, mode):
    image = scene().convert(mode)
    path = saved(tmp_path / "a.png", image)
    assert difference(load_image(path, SIZE, 3), expected(image)) < 1
    assert difference(load_image(path, SIZE, 1), expected(image, "L")) < 1


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_cmyk_is_read_in_its_colours(tmp_path, name):
    path = saved(tmp_path / name, scene().convert("CMYK"))
    assert difference(load_image(path, SIZE, 3), expected(scene())) < 4


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bit_grey_keeps_its_brightness(tmp_path, name, order):
    grey = scene().convert("L")
    path = saved(tmp_path / name, Image.fromarray((np.asarray(grey).astype(np.uint16) * 257).astype(order)))
    assert difference(load_image(path, SIZE, 3), expected(grey)) < 1


def test_32_bit_pixels_are_refused_since_their_white_is_not_known(tmp_path):
    path = saved(tmp_path / "a.tif", Image.fromarray(np.ones((8, 8), np.float32)))
    with pytest.raises(InputError, match="a.tif: 32-bit"):
        load_image(path, SIZE, 3)


def test_transparent_pixels_become_white(tmp_path):
    half = scene().convert("RGBA")
    half.putalpha(128)
    clear = scene().quantize(8)
    clear.info["transparency"] = 0
    for name, image in {"rgba.png": half, "rgba.webp": half, "palette.png": clear, "rgba.tif": half}.items():
        path = saved(tmp_path / name, image)
        white = Image.new("RGBA", image.size, "white")
        over = Image.alpha_composite(white, image.convert("RGBA"))
        assert difference(load_image(path, SIZE, 3), expected(over)) < 3, name
        assert difference(load_image(path, SIZE, 3), expected(image)) > 5, name


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_exif_turns_the_picture_upright(tmp_path, name, orientation):
    upright = scene()
    stored = upright.transpose(STORED_AS[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = saved(tmp_path / name, stored, exif=exif)
    assert difference(load_image(path, SIZE, 3), expected(upright)) < 4


@pytest.mark.parametrize("path", [b"\xff\xd8", b"", b"no picture", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"BM"])
def test_what_is_no_picture_is_named(tmp_path, path):
    file = tmp_path / "1_0_0_20170112213500903.jpg"
    file.write_bytes(path)
    with pytest.raises(InputError, match=file.name):
        load_image(file, SIZE, 3)


def test_reasons_for_a_bad_picture_are_told_apart(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    names = {"empty.jpg": "empty file", "folder.jpg": "no such file", "missing.jpg": "no such file"}
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.jpg")
        names["pipe.jpg"] = "no such file"
    for name, reason in names.items():
        with pytest.raises(BadPicture) as error:
            load_image(tmp_path / name, SIZE, 3)
        assert error.value.reason == reason and name in str(error.value)


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header alone says its size."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "PNG")
    header = file.getvalue()
    chunk = b"IHDR" + width.to_bytes(4) + height.to_bytes(4) + header[24:29]
    return header[:12] + chunk + zlib.crc32(chunk).to_bytes(4) + header[33:]


@pytest.mark.parametrize("size", [(50_000, 50_000), (12_000, 10_000), (10_001, 10_000)])
def test_huge_pictures_are_refused_before_decoding(tmp_path, size):
    (tmp_path / "huge.png").write_bytes(huge_png(*size))
    began = time.monotonic()
    with pytest.raises(BadPicture, match="huge.png: more than 100,000,000 pixels"):
        load_image(tmp_path / "huge.png", SIZE, 3)
    assert time.monotonic() - began < 1


def test_a_truncated_picture_passes_its_header_and_fails_to_decode(tmp_path):
    path = saved(tmp_path / "cut.png", scene(300, 300))
    path.write_bytes(path.read_bytes()[:-300])
    with open_picture(path) as image:
        assert image.size == (300, 300)
    with pytest.raises(BadPicture, match="cut.png: .*truncated"):
        load_image(path, SIZE, 3)


def test_pillows_warnings_do_not_reach_the_terminal(tmp_path):
    path = saved(tmp_path / "a.tif", scene(), compression="tiff_lzw")
    content = path.read_bytes()
    path.write_bytes(content[:-20])  # the tags lie at the end
    code = f"""import warnings, main
from support.images import open_picture
main.quiet()
with open_picture({str(path)!r}) as image: image.load()"""
    noisy = code.replace("main.quiet()", "main.quiet(); warnings.simplefilter('always')")
    stderr = [
        subprocess.run([sys.executable, "-c", each], capture_output=True, cwd=ROOT).stderr for each in (code, noisy)
    ]
    assert b"Warning" not in stderr[0] and b"Warning" in stderr[1]


def test_a_name_that_cannot_be_printed_is_named_escaped():
    assert str(BadPicture("a\nb\udce9.jpg", "empty file")) == r"'a\nb\udce9.jpg': empty file"


def mutants(random: np.random.Generator, count: int) -> list[tuple[str, bytes]]:
    """(suffix, content) of pictures with bits flipped, tails cut, or another file's head put on."""
    sources = []
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for suffix, mode, options in [
        (".jpg", "RGB", {"exif": exif}),
        (".jpg", "L", {}),
        (".jpg", "CMYK", {"progressive": True}),
        (".png", "RGBA", {}),
        (".png", "P", {}),
        (".webp", "RGB", {}),
        (".bmp", "RGB", {}),
        (".tif", "RGB", {"compression": "tiff_lzw"}),
        (".tif", "CMYK", {}),
        (".gif", "P", {}),
    ]:
        file = io.BytesIO()
        scene().convert(mode).save(file, Image.registered_extensions()[suffix], **options)
        sources.append((suffix, file.getvalue()))
    made = []
    for _ in range(count):
        suffix, content = sources[random.integers(len(sources))]
        kind = random.integers(3)
        if kind == 0:
            flipped = np.frombuffer(content, np.uint8).copy()
            # most of them in the head, where a format keeps its sizes and offsets
            places = np.minimum(random.exponential(100, random.integers(1, 9)).astype(int), len(content) - 1)
            flipped[places] ^= (1 << random.integers(0, 8, len(places))).astype(np.uint8)
            content = flipped.tobytes()
        elif kind == 1:
            content = content[: random.integers(len(content))]
        else:
            head = sources[random.integers(len(sources))][1]
            cut = random.integers(4, 200)
            content = head[:cut] + content[cut:]
        made.append((suffix.replace(".gif", ".png"), content))
    return made


def test_mutated_pictures_are_read_or_named(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "BAD_SHARE", 1.0)
    for i, (suffix, content) in enumerate(mutants(np.random.default_rng(3), MUTANTS)):
        (tmp_path / f"{i % 100}_0_0_{20170101 + i}{suffix}").write_bytes(content)
    listing = list_faces(tmp_path)
    assert len(listing.faces) + len(listing.skipped) == MUTANTS
    named = dict(listing.skipped)
    for path in sorted(tmp_path.iterdir()):
        began = time.monotonic()
        try:
            pixels = load_image(path, SIZE, 3)
            assert pixels.shape == (SIZE, SIZE, 3) and pixels.dtype == np.uint8
            assert path.name not in named
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            named[path.name] = str(error)
        assert time.monotonic() - began < SECONDS_A_PICTURE, path.name
    assert 0.2 * MUTANTS < len(named) < 0.95 * MUTANTS  # the mutator neither spares nor ruins them all
