"""Grids, labelled sheets, animations and loss curves."""

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from support.alignment import map_points
from support.files import atomic_write

GRID_COLUMNS = 10  # images in a row of a grid or sheet
MIN_FONT_SIZE = 12  # pixels: the smallest legible type
FONT_SHARE = 0.15  # size of the type relative to an image's height
TEXT_COLOR = (34, 34, 34)
FRAME_COLOR = (255, 64, 0)  # lines around a face in its photo
MANY_COLORS, FEW_COLORS = 256, 128  # the palette of a GIF, and of one that has to be smaller
FEW_COLORS_BYTES = 0.8  # size of a GIF of faces with FEW_COLORS relative to one with MANY_COLORS, as measured
PALETTE_PIXELS = 250_000  # pixels sampled for a palette
MIN_GIF_SIDE = 16  # pixels: smaller faces cannot be recognized
GIF_BYTES = 10_000_000  # the largest demo_train.gif
GIF_FRAMES, GIF_SIDE = 60, 1600  # the most epochs in demo_train.gif, and its longest side in pixels: bound the memory
LOSS_CYCLES = 50  # oscillations over a whole training above which the loss counts as noise
LOSS_COLOR = "#1f5a96"


def grid(images: np.ndarray, columns: int = GRID_COLUMNS, border: int = 0) -> np.ndarray:
    """Return images, uint8 [N, h, w, C], row by row as one grid: uint8 [H, W, C], white in empty cells.

    The grid is min(N, columns) images wide, with `border` white pixels between neighbours.
    """
    count, height, width, channels = images.shape
    columns = min(columns, count)
    lines = math.ceil(count / columns)
    # every image gets a border below and to the right; the outermost are cropped at the end
    cells = np.full((lines * columns, height + border, width + border, channels), 255, np.uint8)
    cells[:count, :height, :width] = images
    cells = cells.reshape(lines, columns, height + border, width + border, channels)
    canvas = cells.swapaxes(1, 2).reshape(lines * (height + border), columns * (width + border), channels)
    return canvas[: len(canvas) - border, : canvas.shape[1] - border]


def tiles(image: Image.Image, side: int) -> np.ndarray:
    """Return the images of a grid without borders, uint8 [rows, columns, side, side, C]."""
    pixels = np.asarray(image)
    rows, columns = (length // side for length in pixels.shape[:2])
    return pixels.reshape(rows, side, columns, side, -1).swapaxes(1, 2)


def sheet(
    rows: np.ndarray,
    row_labels: Sequence[str],
    column_labels: Sequence[str] | None = None,
    title: str | None = None,
    captions_below: bool = False,
) -> np.ndarray:
    """Return a labelled sheet, uint8 [H, W, 3], of images, uint8 [R, N, h, w, C] with C 1 or 3, at their own size.

    The R row labels are left of the rows, the N column labels above or below the columns and truncated to their width,
    the title above all. The title changes the size only if it is wider than the images. Raises ValueError for a wrong
    number of labels.
    """
    rows = _rgb(np.asarray(rows))
    _, columns, height, width, _ = rows.shape
    gap = 2 + height // 64
    font = ImageFont.load_default(max(MIN_FONT_SIZE, round(FONT_SHARE * height)))
    title_font = ImageFont.load_default(round(1.25 * font.size))
    line = sum(font.getmetrics())
    missing = max(0, line - height)  # small images are padded to the height of a line
    padding = (0, 0), (missing // 2, missing - missing // 2), (0, 0), (0, 0)
    cells = np.pad(rows.reshape(-1, height, width, 3), padding, constant_values=255)
    images = grid(cells, columns, gap)
    margin = 2 * gap
    labels_width = max(font.getlength(label) for label in row_labels)
    left = margin + (round(labels_width) + font.size // 2 if labels_width else 0)
    title_bottom = margin + (sum(title_font.getmetrics()) + gap if title else 0)
    above, below = (line + gap if column_labels and captions_below == side else 0 for side in (False, True))
    top = title_bottom + above
    right = left + max(images.shape[1], round(title_font.getlength(title)) if title else 0)
    canvas = Image.new("RGB", (right + margin, top + len(images) + below + margin), "white")
    canvas.paste(Image.fromarray(images), (left, top))

    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((left, margin), title, TEXT_COLOR, title_font)
    for label, row in zip(row_labels, range(len(rows)), strict=True):
        middle = top + row * (cells.shape[1] + gap) + cells.shape[1] / 2
        draw.text((left - font.size // 2, middle), label, TEXT_COLOR, font, anchor="rm")
    if column_labels:
        y = top + len(images) + gap if captions_below else title_bottom
        for label, column in zip(column_labels, range(columns), strict=True):
            centre = left + column * (width + gap) + width / 2
            draw.text((centre, y), _truncated(label, font, width), TEXT_COLOR, font, anchor="ma")
    return np.asarray(canvas)


def framed(photo: Image.Image, frames: Sequence[np.ndarray], side: int) -> Image.Image:
    """Return a photo shrunk to fit a white square of this side, with lines around faces, numbered if several.

    frames: float [2, 3] each, the map from a face's unit square to pixels of the photo.
    """
    scale = side / max(photo.size)
    small = photo.resize([max(1, round(scale * length)) for length in photo.size], Image.Resampling.LANCZOS)
    square = Image.new("RGB", (side, side), "white")
    left, top = ((side - length) // 2 for length in small.size)
    square.paste(small, (left, top))
    draw = ImageDraw.Draw(square)
    for number, frame in enumerate(frames, 1):
        corners = map_points(frame, np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)])) * scale + (left, top)
        draw.line([tuple(corner) for corner in corners.tolist()], FRAME_COLOR, max(1, side // 48 // len(frames)))
        if len(frames) > 1:
            font = ImageFont.load_default(max(12, round(scale * np.hypot(*frame[:, 0]) / 4)))
            middle = tuple(corners[:4].mean(axis=0).tolist())
            draw.text(middle, str(number), FRAME_COLOR, font, anchor="mm", stroke_width=2, stroke_fill="white")
    return square


class Frames:
    """The frames of an animation, loaded one at a time whenever they are iterated: load(item) for each item."""

    def __init__(self, load: Callable[..., np.ndarray], items: Sequence):
        self.load, self.items = load, items

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(self.load, self.items)


def save_animation(
    path: str | Path, frames: Sequence[np.ndarray] | Frames, frame_seconds: float, max_bytes: int | None = None
) -> None:
    """Write images of one size, uint8 [H, W, C] each with C 1 or 3, as an endless .gif or as a .mp4.

    A .mp4 gets a white line where a side is odd, as most players need even ones. A GIF larger than `max_bytes` gets
    fewer colours and then smaller images until it fits; equal consecutive frames are stored once. A GIF is written
    frame by frame. Raises ValueError if no GIF fits or for another suffix, ImportError, which names what to install,
    for a .mp4 without imageio's ffmpeg plugin.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".gif":
        data = _gif(frames, frame_seconds, max_bytes)
        with atomic_write(path) as temporary:
            temporary.write_bytes(data)
    elif suffix == ".mp4":
        stacked = _rgb(np.stack(list(frames)))
        odd = [(0, 0), *((0, side % 2) for side in stacked.shape[1:3]), (0, 0)]
        stacked = np.pad(stacked, odd, constant_values=255)
        with atomic_write(path) as temporary:
            iio.imwrite(temporary, stacked, plugin="FFMPEG", fps=1 / frame_seconds, macro_block_size=2)
    else:
        raise ValueError(f"{path}: an animation is a .gif or a .mp4")


def _gif(frames: Sequence[np.ndarray] | Frames, frame_seconds: float, max_bytes: int | None) -> bytes:
    """Return a GIF of at most `max_bytes`, with fewer colours and smaller images if necessary.

    Each pass reads the frames twice, one at a time: for the palette, and to write them.
    """
    width, height = Image.fromarray(_rgb(next(iter(frames)))).size
    size, colors, scale = (width, height), MANY_COLORS, 1.0
    while True:
        # one palette for all frames: uniform areas do not flicker, and what does not change costs nothing
        palette = _palette(_resized(frames, size), len(frames) * size[0] * size[1], colors)
        quantized = (image.quantize(palette=palette, dither=Image.Dither.NONE) for image in _resized(frames, size))
        file, options = io.BytesIO(), {"duration": 1000 * frame_seconds, "loop": 0}
        next(quantized).save(file, "GIF", save_all=True, append_images=quantized, **options)
        if max_bytes is None or file.tell() <= max_bytes:
            return file.getvalue()
        # the bytes are proportional to the area; aiming a little below the limit makes this end
        expected = file.tell() * (FEW_COLORS_BYTES if colors == MANY_COLORS else 1)
        scale *= min(1, (0.95 * max_bytes / expected) ** 0.5)
        colors = FEW_COLORS
        size = round(scale * width), round(scale * height)
        if min(size) < MIN_GIF_SIDE:
            raise ValueError(f"{len(frames)} frames do not fit into {max_bytes} bytes")


def _resized(frames: Iterable[np.ndarray], size: tuple[int, int]) -> Iterator[Image.Image]:
    for frame in frames:
        image = Image.fromarray(_rgb(frame))
        yield image if image.size == size else image.resize(size)


def _palette(images: Iterable[Image.Image], pixels: int, colors: int) -> Image.Image:
    """Return an image with the palette of every n-th of that many pixels."""
    step, start, sampled = pixels // PALETTE_PIXELS + 1, 0, []
    for image in images:
        flat = np.asarray(image).reshape(-1, 3)
        sampled.append(flat[-start % step :: step])
        start += len(flat)
    return Image.fromarray(np.concatenate(sampled)[np.newaxis]).quantize(colors)


def animate_training(path: Path, epochs: Iterable[str], size_image: int, bins: Sequence[str]) -> None:
    """Write a run's demo_train.gif: the test sheets of at most GIF_FRAMES of these epochs, in their order.

    The input faces are the top row. epochs: their names; those without a sheet in the folder test beside `path` are
    left out. bins: the names of the age bins, the rows of the sheets. Raises OSError and ValueError if a sheet is
    damaged or of another size.
    """
    test = path.parent / "test"
    paths = [test / f"{name}.png" for name in epochs if (test / f"{name}.png").is_file()]
    if len(paths) > GIF_FRAMES:
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, GIF_FRAMES).round().astype(int)]
    inputs = tiles(Image.open(test / "input.png"), size_image)

    def load(path: Path) -> np.ndarray:
        rows = np.concatenate([inputs, tiles(Image.open(path), size_image)])
        frame = Image.fromarray(sheet(rows, ["input", *bins], title=f"epoch {path.stem}"))
        frame.thumbnail((GIF_SIDE, GIF_SIDE))
        return np.asarray(frame)

    save_animation(path, Frames(load, paths), frame_seconds=0.5, max_bytes=GIF_BYTES)


def low_pass(losses: Sequence[float]) -> np.ndarray:
    """Return losses of N > 0 steps without oscillations of more than LOSS_CYCLES over all of them: float [N].

    A second-order Butterworth filter, run forwards and backwards so that it adds no delay.
    """
    from scipy.signal import butter, sosfiltfilt

    losses = np.asarray(losses, float)
    # N steps have N / 2 cycles at most: a short training has nothing to filter
    if len(losses) <= 2 * LOSS_CYCLES:
        return losses
    cutoff = 2 * LOSS_CYCLES / len(losses)  # as a fraction of the highest frequency
    # the ends are mirrored, not rotated about their last point: one outlier must not bend the curve
    padding = min(len(losses) - 1, round(4 / cutoff))
    return sosfiltfilt(butter(2, cutoff, output="sos"), losses, padtype="even", padlen=padding)


def plot_losses(path: str | Path, epochs: Sequence[float], losses: Sequence[float]) -> None:
    """Draw the reconstruction loss of N > 0 steps against the epoch (fractional), low-pass filtered over the raw curve.

    The suffix of `path` is one that matplotlib writes.
    """
    from matplotlib import style  # importing matplotlib is slow
    from matplotlib.figure import Figure

    with style.context("default"), atomic_write(path) as temporary:  # independent of the user's matplotlibrc
        figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
        axes = figure.subplots()
        axes.plot(epochs, losses, color=LOSS_COLOR, alpha=0.25, linewidth=0.8, label="every step")
        marker = "o" if len(losses) == 1 else None  # a line through one point is invisible
        axes.plot(epochs, low_pass(losses), color=LOSS_COLOR, linewidth=2, marker=marker, label="low-pass filtered")
        axes.set(xlabel="epoch", ylabel="reconstruction loss (mean L1)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, loc="upper right")
        figure.savefig(temporary)


def _rgb(images: np.ndarray) -> np.ndarray:
    """Return images [..., 1] or [..., 3] as [..., 3]."""
    return images.repeat(3, axis=-1) if images.shape[-1] == 1 else images


def _truncated(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Return the text, truncated to `width` pixels."""
    length = len(text)
    while length and font.getlength(text[:length] + "…" * (length < len(text))) > width:
        length -= 1
    return text[:length] + "…" * (length < len(text))
