"""Grids, sheets, animations, loss curves, and atomic file writes."""

import stat
import sys
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from support import figures
from support.files import atomic_write
from support.images import save_image

AGES = ["input", "0-5", "6-10", "11-15", "16-20", "21-30", "31-40", "41-50", "51-60", "61-70", "71+"]


def noise(*shape: int) -> np.ndarray:
    """Return random images, each of which occurs once on a canvas."""
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def place(canvas: np.ndarray, image: np.ndarray) -> tuple[int, int]:
    """Return (row, column) of the upper left corner of the image on the canvas, which must contain it exactly once."""
    height, width = image.shape[:2]
    corners = np.argwhere((canvas == image[0, 0]).all(axis=-1))
    found = [(y, x) for y, x in corners if np.array_equal(canvas[y : y + height, x : x + width], image)]
    assert len(found) == 1
    return found[0]


def inked(area: np.ndarray) -> bool:
    return bool((area < 128).any())


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_is_filled_row_by_row_and_padded_with_white(channels):
    images = noise(7, 5, 6, channels)
    canvas = figures.grid(images, columns=3)
    assert canvas.shape == (15, 18, channels)
    for i, image in enumerate(images):
        assert place(canvas, image) == (i // 3 * 5, i % 3 * 6)
    assert (canvas[10:, 6:] == 255).all()


def test_grid_border_is_white_and_between_images_only():
    canvas = figures.grid(np.zeros((4, 5, 6, 3), np.uint8), columns=2, border=3)
    assert canvas.shape == (13, 15, 3)
    assert (canvas[5:8] == 255).all()
    assert (canvas[:, 6:9] == 255).all()
    assert canvas.sum() == 255 * (3 * 15 + 10 * 3) * 3


def test_grid_of_few_images_has_no_empty_columns():
    assert figures.grid(noise(2, 5, 6, 3)).shape == (5, 12, 3)


@pytest.mark.parametrize("size, count", [(32, 10), (32, 1), (128, 3)])
def test_sheet_has_a_row_per_label_and_a_column_per_face(size, count):
    rows = noise(len(AGES), count, size, size, 3)
    canvas = figures.sheet(rows, AGES)
    places = np.array([[place(canvas, image) for image in row] for row in rows])  # [R, N, 2]
    assert (places[..., 0] == places[:, :1, 0]).all()
    assert (places[..., 1] == places[:1, :, 1]).all()
    gaps = np.concatenate([np.diff(places[:, 0, 0]), np.diff(places[0, :, 1])]) - size
    assert len(set(gaps)) == 1
    assert 1 <= gaps[0] <= size / 8


@pytest.mark.parametrize("size", [8, 32, 128, 256])
def test_row_labels_are_level_with_their_images(size):
    rows = noise(len(AGES), 1, size, size, 3)
    canvas = figures.sheet(rows, AGES)
    ends = []
    for row in rows:
        top, left = place(canvas, row[0])
        middle = top + size / 2
        reach = max(size, 18) / 2
        area = canvas[max(0, round(middle - reach)) : round(middle + reach), : left - 1].min(axis=-1) < 128
        lines, columns = np.nonzero(area)
        assert np.ptp(lines) >= 7
        assert abs(lines.mean() - reach) < 0.12 * max(size, 18)
        ends.append(left - columns.max())
        assert columns.min() >= 2
    assert max(ends) - min(ends) <= max(2, size // 40)


def test_row_labels_are_beside_their_rows():
    rows = np.full((3, 1, 64, 64, 3), 99, np.uint8)
    canvas = figures.sheet(rows, ["", "11-15", ""])
    inked_lines = np.nonzero((canvas < 50).any(axis=(1, 2)))[0]
    assert abs(inked_lines.mean() - len(canvas) / 2) < 4


def test_row_labels_of_small_images_do_not_overlap():
    canvas = figures.sheet(np.full((5, 1, 4, 4, 3), 200, np.uint8), ["Mg"] * 5)
    inked_lines = (canvas < 128).any(axis=(1, 2))
    assert (np.diff(inked_lines.astype(int)) == 1).sum() == 5


def test_title_and_column_labels_are_above_the_images():
    rows = noise(2, 3, 64, 64, 3)
    plain = figures.sheet(rows, ["a", "b"])
    labelled = figures.sheet(rows, ["a", "b"], ["one", "two", "three"], "Aged as female")
    top, left = place(labelled, rows[0, 0])
    assert np.array_equal(plain[place(plain, rows[0, 0])[0] :], labelled[top:])
    for column in range(3):
        x = place(labelled, rows[0, column])[1]
        assert inked(labelled[top - 16 : top, x : x + 64])
    assert inked(labelled[: top - 20, left:])


def test_long_column_labels_stay_within_their_columns():
    rows = np.full((1, 2, 64, 64, 3), 99, np.uint8)
    canvas = figures.sheet(rows, [""], ["26_1_2_20170116184024662.jpg.chip.jpg", ""])
    columns = np.nonzero((canvas < 50).any(axis=(0, 2)))[0]
    assert columns.max() < canvas.shape[1] / 2


def test_wide_title_is_not_truncated():
    rows = np.full((1, 1, 32, 32, 3), 255, np.uint8)
    canvas = figures.sheet(rows, [""], title="A long title above a single small face")
    assert (canvas[:, -2:] == 255).all()
    assert canvas.shape[1] > 200


def test_sheet_size_does_not_depend_on_column_labels():
    shapes = {figures.sheet(noise(1, 1, 32, 32, 3), [""], [f"{age} years"]).shape for age in (0, 8, 88, 100)}
    assert len(shapes) == 1


def test_grey_images_make_an_rgb_sheet():
    rows = noise(2, 2, 32, 32, 1)
    canvas = figures.sheet(rows, ["a", "b"])
    assert canvas.shape[-1] == 3
    place(canvas, rows[1, 0].repeat(3, axis=-1))


@pytest.mark.parametrize("labels", [(["a"], None), (["a", "b", "c"], None), (["a", "b"], ["one"])])
def test_wrong_number_of_labels_is_rejected(labels):
    with pytest.raises(ValueError):
        figures.sheet(noise(2, 2, 32, 32, 3), *labels)


def test_atomic_write_replaces_the_earlier_file(tmp_path):
    path = tmp_path / "a folder" / "deeper" / "bild ü.txt"
    for text in ("first", "second"):
        with atomic_write(path) as temporary:
            assert temporary.parent == path.parent
            assert temporary.name.startswith(".")
            assert temporary.suffix == ".txt"
            temporary.write_text(text)
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_atomic_write_keeps_the_earlier_file_after_an_error(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("earlier")
    with pytest.raises(error), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_unknown_image_format_leaves_no_file(tmp_path):
    with pytest.raises(ValueError):
        save_image(tmp_path / "a.unheard_of", noise(4, 4, 3))
    assert list(tmp_path.iterdir()) == []


def test_saved_image_has_default_permissions(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    save_image(tmp_path / "a.png", noise(4, 4, 3))
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("channels", [1, 3])
def test_saved_image_is_read_unchanged(tmp_path, channels):
    image = noise(9, 7, channels)
    save_image(tmp_path / "a.png", image)
    with Image.open(tmp_path / "a.png") as read:
        assert np.array_equal(np.asarray(read).reshape(image.shape), image)


def fading(count: int, size: int, channels: int = 3) -> np.ndarray:
    """Return frames, uint8 [count, size, size, channels], each of which differs from the one before."""
    shades = np.linspace(0, 1, count)[:, None, None, None]
    return (shades * noise(size, size, channels)).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_gif_has_every_frame_its_duration_and_loops(tmp_path, channels):
    path = tmp_path / "a.gif"
    figures.save_animation(path, list(fading(12, 32, channels)), 0.08)
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"], gif.info["loop"]) == (12, (32, 32), 80, 0)


def test_gif_keeps_colours_and_order(tmp_path):
    colors = [(250, 20, 30), (20, 240, 40), (30, 20, 230), (255, 255, 255), (128, 120, 110)]
    frames = [np.full((32, 32, 3), color, np.uint8) for color in colors]
    figures.save_animation(tmp_path / "a.gif", frames, 0.1)
    with Image.open(tmp_path / "a.gif") as gif:
        for i, color in enumerate(colors):
            gif.seek(i)
            assert np.abs(np.array(gif.convert("RGB").getpixel((5, 5))) - color).max() <= 4


def test_gif_is_reduced_only_if_it_exceeds_the_limit(tmp_path):
    frames = fading(10, 96)
    figures.save_animation(tmp_path / "free.gif", frames, 0.1)
    free = (tmp_path / "free.gif").stat().st_size
    figures.save_animation(tmp_path / "same.gif", frames, 0.1, max_bytes=free)
    assert (tmp_path / "same.gif").read_bytes() == (tmp_path / "free.gif").read_bytes()
    sizes = []
    for limit in (free * 9 // 10, free // 4):
        figures.save_animation(tmp_path / "small.gif", frames, 0.1, max_bytes=limit)
        assert limit / 3 < (tmp_path / "small.gif").stat().st_size <= limit
        with Image.open(tmp_path / "small.gif") as gif:
            assert gif.n_frames == 10
            sizes.append(gif.size[0])
    assert sizes[0] == 96  # fewer colours suffice
    assert 32 < sizes[1] < 96


def test_unreachable_size_limit_is_an_error(tmp_path):
    path = tmp_path / "a.gif"
    path.write_bytes(b"earlier")
    with pytest.raises(ValueError, match="do not fit"):
        figures.save_animation(path, fading(10, 64), 0.1, max_bytes=100)
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_animation_of_another_format_is_rejected(tmp_path):
    with pytest.raises(ValueError, match="gif.*mp4"):
        figures.save_animation(tmp_path / "a.png", fading(2, 32), 0.1)
    assert list(tmp_path.iterdir()) == []


def test_mp4_without_ffmpeg_names_the_package_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ImportError, match=r"pip install imageio\[ffmpeg\]"):
        figures.save_animation(tmp_path / "a.mp4", fading(2, 32), 0.1)
    assert list(tmp_path.iterdir()) == []


def test_mp4_of_odd_size_is_padded(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    import imageio.v3 as iio

    figures.save_animation(tmp_path / "a.mp4", fading(12, 65), 0.1)
    assert iio.imread(tmp_path / "a.mp4", plugin="FFMPEG").shape == (12, 66, 66, 3)


@pytest.mark.parametrize("count", [1, 2, 5, 100, 101, 1000])
def test_loss_curve_of_any_length_is_drawn(tmp_path, count):
    losses = 0.15 + 0.3 * np.exp(-np.arange(count) / 100)
    figures.plot_losses(tmp_path / "loss_epoch.png", (1 + np.arange(count)) / 230, losses)
    with Image.open(tmp_path / "loss_epoch.png") as image:
        blue = np.asarray(image.convert("RGB")).astype(int)
    # below the legend, which has the curve's colour
    curve = (blue[..., 2] - blue[..., 0] > 80)[image.height // 4 :]
    assert curve.sum() > 50


def test_low_pass_removes_noise_without_delay():
    count = 2000
    trend = 0.15 + 0.3 / (1 + np.exp((np.arange(count) - count / 2) / 60))
    noisy = trend + np.random.default_rng(0).normal(0, 0.02, count)
    smooth = figures.low_pass(noisy)
    assert np.abs(smooth - trend).std() < 0.006
    # the midpoint of the decrease is at the same step
    assert abs(np.argmax(smooth < 0.3) - count / 2) < 15


def test_training_animation_has_bounded_memory_and_frames(tmp_path):
    side, bins = 16, [str(i) for i in range(10)]
    names = [f"{epoch:02d}" for epoch in range(1, 201)]
    for name in ("input", *names):
        seed = 0 if name == "input" else int(name)
        rows = np.random.default_rng(seed).integers(0, 256, (1 if name == "input" else 10, side, 10 * side, 3))
        save_image(tmp_path / f"test/{name}.png", np.concatenate(rows.astype(np.uint8)))
    tracemalloc.start()
    figures.animate_training(tmp_path / "demo_train.gif", names, side, bins)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    with Image.open(tmp_path / "demo_train.gif") as gif:
        assert gif.n_frames == figures.GIF_FRAMES
        frame = gif.width * gif.height * 3
    assert peak < 100 * frame  # 200 frames at once took 800 * frame
