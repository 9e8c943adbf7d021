"""Reading image files: formats, modes, orientation, colours, size limits, and damaged files."""

import io
import os
import re
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

import main
from ops import load_image
from support import InputError, dataset, images
from support.dataset import image_names, list_faces
from support.images import BadImage, open_image, read_image

ROOT = Path(main.__file__).parent
SIZE = 32
MUTANTS = 1000
SECONDS_AN_IMAGE = 5
ORIENTATION = 0x0112  # the EXIF tag
STORED_AS = {  # how a camera stores an upright image, by the EXIF orientation
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
    """A smooth image whose corners differ: red grows to the right, green downwards, blue is 90."""
    red = np.broadcast_to(np.linspace(20, 220, width), (height, width))
    green = np.broadcast_to(np.linspace(200, 40, height)[:, np.newaxis], (height, width))
    return Image.fromarray(np.stack([red, green, np.full_like(red, 90)], axis=-1).astype(np.uint8))


def expected(image: Image.Image, mode: str = "RGB", size: int = SIZE) -> np.ndarray:
    """The central square of an upright image, resized by Pillow itself."""
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


PHONES_AND_BROWSERS = ["a.jfif", "a.jpe", "a.gif", "a.mpo", "a.avif", "a.jp2"]


@pytest.mark.parametrize("name", PHONES_AND_BROWSERS)
def test_phone_and_browser_formats_are_found_in_a_folder_and_read(tmp_path, name):
    path = saved(tmp_path / name, scene())
    assert image_names(tmp_path) == [name]
    assert difference(load_image(path, SIZE, 3), expected(scene())) < 9  # a GIF has 256 colours


def test_known_suffixes_are_those_of_the_formats_read():
    known = (*images.formats(), "MPO")
    for suffix, name in Image.registered_extensions().items():
        assert (suffix in images.suffixes()) == (name in known)
    assert "EPS" in Image.OPEN and "EPS" not in images.formats()  # it would run another program
    assert images.unsupported_reason("notes.txt") == images.unsupported_reason("001A02.pts") == ""


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"  # the beginning of a phone's image


def test_heic_without_pillow_heif_is_skipped_with_the_install_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    for one in (images.formats, images.suffixes):
        one.cache_clear()
    for name in ("25_1_3_20170116174525125.heic", "25_1_3_20170116174525125.jpg", "26_1_3_20170116174525125.cr2"):
        (tmp_path / name).write_bytes(HEIC)
    saved(tmp_path / "27_1_3_20170116174525125.jpg", scene())
    monkeypatch.setattr(dataset, "MAX_BAD_SHARE", 1.0)
    assert list_faces(tmp_path).skipped == [
        ("25_1_3_20170116174525125.heic", "a HEIC image: pip install pillow-heif"),
        ("25_1_3_20170116174525125.jpg", "a HEIC image: pip install pillow-heif"),
        ("26_1_3_20170116174525125.cr2", "cr2 is not read: save it as JPEG or PNG"),
    ]
    dataset.find_images([str(tmp_path)])
    assert re.search("^Left out: .*heic: a HEIC image: pip install pillow-heif$", capsys.readouterr().out, re.M)
    images.formats.cache_clear()
    images.suffixes.cache_clear()


def test_heic_is_read_with_pillow_heif(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    path = saved(tmp_path / "a.heic", scene())
    assert image_names(tmp_path) == ["a.heic"]
    assert difference(load_image(path, SIZE, 3), expected(scene())) < 4


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.png", "a.webp", "a.bmp", "a.tif", "a.TIFF"])
def test_every_format_is_read(tmp_path, name):
    pixels = load_image(saved(tmp_path / name, scene()), SIZE, 3)
    assert difference(pixels, expected(scene())) < 4  # jpg and webp lose a little


@pytest.mark.parametrize("size", [(200, 200), (128, 128), (37, 91), (640, 480), (3, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_equals_pillows_antialiased_bilinear(tmp_path, size, channels):
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    path = saved(tmp_path / "noise.png", Image.fromarray(noise))
    pixels = load_image(path, 128, channels)
    assert difference(pixels, expected(Image.fromarray(noise), "L" if channels == 1 else "RGB", 128)) <= 1


def test_format_is_detected_by_content(tmp_path):
    saved(tmp_path / "a.png", scene()).rename(tmp_path / "a.jpg")
    assert difference(load_image(tmp_path / "a.jpg", SIZE, 3), expected(scene())) == 0


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_every_mode_of_png_is_read_as_by_pillow(tmp_path, mode):
    image = scene().convert(mode)
    path = saved(tmp_path / "a.png", image)
    assert difference(load_image(path, SIZE, 3), expected(image)) < 1
    assert difference(load_image(path, SIZE, 1), expected(image, "L")) < 1


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_cmyk_is_converted_to_rgb(tmp_path, name):
    path = saved(tmp_path / name, scene().convert("CMYK"))
    assert difference(load_image(path, SIZE, 3), expected(scene())) < 4


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bit_grey_keeps_its_brightness(tmp_path, name, order):
    grey = scene().convert("L")
    path = saved(tmp_path / name, Image.fromarray((np.asarray(grey).astype(np.uint16) * 257).astype(order)))
    assert difference(load_image(path, SIZE, 3), expected(grey)) < 1


def test_32_bit_pixels_are_rejected(tmp_path):
    path = saved(tmp_path / "a.tif", Image.fromarray(np.ones((8, 8), np.float32)))
    with pytest.raises(InputError, match="a.tif: 32-bit"):
        load_image(path, SIZE, 3)


def test_transparent_pixels_are_composited_over_white(tmp_path):
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
def test_exif_orientation_is_applied(tmp_path, name, orientation):
    upright = scene()
    stored = upright.transpose(STORED_AS[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = saved(tmp_path / name, stored, exif=exif)
    assert difference(load_image(path, SIZE, 3), expected(upright)) < 4


@pytest.mark.parametrize("path", [b"\xff\xd8", b"", b"not an image", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"BM"])
def test_invalid_image_files_are_rejected_with_their_name(tmp_path, path):
    file = tmp_path / "1_0_0_20170112213500903.jpg"
    file.write_bytes(path)
    with pytest.raises(InputError, match=file.name):
        load_image(file, SIZE, 3)


def test_reasons_for_a_bad_image_are_distinguished(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    names = {"empty.jpg": "empty file", "folder.jpg": "no such file", "missing.jpg": "no such file"}
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.jpg")
        names["pipe.jpg"] = "no such file"
    for name, reason in names.items():
        with pytest.raises(BadImage) as error:
            load_image(tmp_path / name, SIZE, 3)
        assert error.value.reason == reason and name in str(error.value)


def huge_png(width: int, height: int) -> bytes:
    """A PNG with this size in its header only."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "PNG")
    header = file.getvalue()
    chunk = b"IHDR" + width.to_bytes(4) + height.to_bytes(4) + header[24:29]
    return header[:12] + chunk + zlib.crc32(chunk).to_bytes(4) + header[33:]


@pytest.mark.parametrize("size", [(50_000, 50_000), (13_000, 10_000), (12_801, 10_000)])
def test_huge_images_are_rejected_before_decoding(tmp_path, size):
    (tmp_path / "huge.png").write_bytes(huge_png(*size))
    began = time.monotonic()
    with pytest.raises(BadImage, match="huge.png: more than 128,000,000 pixels"):
        load_image(tmp_path / "huge.png", SIZE, 3)
    assert time.monotonic() - began < 1


def test_108_megapixels_are_read_in_bounded_memory(tmp_path):
    resource = pytest.importorskip("resource")  # not on Windows
    del resource
    path = tmp_path / "phone.jpg"
    scene().resize((12_000, 9_000)).save(path, quality=50)
    code = f"""import resource
from ops import load_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
shape = load_image({str(path)!r}, {SIZE}, 3).shape
print(*shape, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    *shape, kilobytes = map(int, done.stdout.split())
    assert shape == [SIZE, SIZE, 3] and kilobytes < 200_000, done.stderr  # 432 MB as it is


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK"])
def test_large_image_is_reduced(tmp_path, mode, monkeypatch):
    image = scene(600, 400).convert(mode)
    path = saved(tmp_path / "a.tif", image)
    whole = load_image(path, SIZE, 3)
    monkeypatch.setattr(images, "MAX_READ_PIXELS", 60_000)
    assert images.read_image(path).size == (300, 200)
    assert difference(load_image(path, SIZE, 3), whole) < 2


def display_p3() -> bytes:
    """The ICC profile of phones' displays: that of sRGB with other primaries (s15Fixed16 XYZ, adapted to D50)."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    primaries = {
        b"rXYZ": (0.5151, 0.2412, -0.0011),
        b"gXYZ": (0.2920, 0.6922, 0.0419),
        b"bXYZ": (0.1571, 0.0666, 0.7841),
    }
    for tag, xyz in primaries.items():
        at = profile.index(tag)
        offset = int.from_bytes(profile[at + 4 : at + 8])
        profile[offset + 8 : offset + 20] = b"".join(round(65536 * x).to_bytes(4, signed=True) for x in xyz)
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "a P3".encode("utf-16-be"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_colour_profiles_are_applied(tmp_path, mode):
    image = Image.new("RGB", (40, 40), (200, 120, 100))
    image = image.quantize(2) if mode == "P" else image.convert(mode)
    pixel = load_image(saved(tmp_path / "p3.png", image, icc_profile=display_p3()), SIZE, 3)[0, 0].astype(int)
    if mode == "L":
        assert np.ptp(pixel) == 0
    else:
        assert pixel[0] - 200 > 5 and abs(pixel - (213, 117, 96)).max() < 4
    same = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (same, b"broken"):
        path = saved(tmp_path / "same.png", image, icc_profile=profile)
        assert difference(load_image(path, SIZE, 3), expected(image)) == 0


def test_truncated_image_passes_only_the_header_check(tmp_path):
    path = saved(tmp_path / "cut.png", scene(300, 300))
    path.write_bytes(path.read_bytes()[:-300])
    with open_image(path) as image:
        assert image.size == (300, 300)
    with pytest.raises(BadImage, match="cut.png: .*truncated"):
        load_image(path, SIZE, 3)


def test_pillows_warnings_do_not_reach_the_terminal(tmp_path):
    path = saved(tmp_path / "a.tif", scene(), compression="tiff_lzw")
    content = path.read_bytes()
    path.write_bytes(content[:-20])  # the tags lie at the end
    code = f"""import warnings, main
from support.images import open_image
main.quiet()
with open_image({str(path)!r}) as image: image.load()"""
    noisy = code.replace("main.quiet()", "main.quiet(); warnings.simplefilter('always')")
    stderr = [
        subprocess.run([sys.executable, "-c", each], capture_output=True, cwd=ROOT).stderr for each in (code, noisy)
    ]
    assert b"Warning" not in stderr[0] and b"Warning" in stderr[1]


def test_unprintable_names_are_escaped():
    assert str(BadImage("a\nb\udce9.jpg", "empty file")) == r"'a\nb\udce9.jpg': empty file"


def mutants(random: np.random.Generator, count: int) -> list[tuple[str, bytes]]:
    """(suffix, content) of images with flipped bits, cut ends, or another file's beginning."""
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
            # most of them near the beginning, with sizes and offsets
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


def test_mutated_images_are_read_or_rejected_with_their_name(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "MAX_BAD_SHARE", 1.0)
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
        assert time.monotonic() - began < SECONDS_AN_IMAGE, path.name
    assert 0.2 * MUTANTS < len(named) < 0.95 * MUTANTS  # some, but not all, are invalid


def test_error_message_contains_the_path_once(tmp_path, monkeypatch):
    path = tmp_path / "20_0_0_20170116174525000.jpg"
    Image.new("RGB", (9, 9)).save(path)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert str(caught.value) == f"{path}: Permission denied"
