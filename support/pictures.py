"""What people look at: grids, labelled sheets, films and curves; open it to change how a picture is laid out."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from support.alignment import apply
from support.files import atomic_write

IN_A_ROW = 10  # faces beside each other in a grid or on a sheet
MIN_TYPE = 12  # pixels: smaller type cannot be read
TYPE_SHARE = 0.15  # the type is this part of an image's height: in proportion on a sheet of any size
INK = (34, 34, 34)
FRAME_COLOR = (255, 64, 0)  # lines around a face in its photo
MANY_COLORS, FEW_COLORS = 256, 128  # the most colours that a GIF can have, and as many as ten faces can do with
FEW_COLORS_BYTES = 0.8  # a GIF of faces with FEW_COLORS has this part of the bytes, as measured
PALETTE_PIXELS = 250_000  # pixels looked at for a palette: more take longer and change nothing that is seen
MIN_GIF_SIDE = 16  # pixels: no face can be seen below it
GIF_BYTES = 10_000_000  # the largest demo_train.gif: it still loads in a browser at once
LOSS_CYCLES = 50  # what swings more often than this over a whole training is noise to the eye
LOSS_COLOR = "#1f5a96"


def grid(images: np.ndarray, columns: int = IN_A_ROW, border: int = 0) -> np.ndarray:
    """Returns images, uint8 [N, h, w, C], laid out row by row: uint8 [H, W, C], white where there is none.

    It is min(N, columns) images wide; `border` is the white between neighbours, in pixels.
    """
    count, height, width, channels = images.shape
    columns = min(columns, count)
    lines = math.ceil(count / columns)
    # every image gets a border below and to the right; the outermost are cut off at the end
    cells = np.full((lines * columns, height + border, width + border, channels), 255, np.uint8)
    cells[:count, :height, :width] = images
    cells = cells.reshape(lines, columns, height + border, width + border, channels)
    picture = cells.swapaxes(1, 2).reshape(lines * (height + border), columns * (width + border), channels)
    return picture[: len(picture) - border, : picture.shape[1] - border]


def sheet(
    rows: np.ndarray,
    row_labels: Sequence[str],
    column_labels: Sequence[str] | None = None,
    title: str | None = None,
    captions_below: bool = False,
) -> np.ndarray:
    """Returns a labelled sheet, uint8 [H, W, 3], of images, uint8 [R, N, h, w, C] with C 1 or 3, at their own size.

    `row_labels` (R of them) are to the left of the rows, `column_labels` (N) above or below the columns, shortened to
    a column's width, and the title is above all. A sheet's size depends on the title only where that is the wider.
    Raises ValueError where the number of labels is wrong.
    """
    rows = _rgb(np.asarray(rows))
    _, columns, height, width, _ = rows.shape
    gap = 2 + height // 64
    font = ImageFont.load_default(max(MIN_TYPE, round(TYPE_SHARE * height)))
    title_font = ImageFont.load_default(round(1.25 * font.size))
    line = sum(font.getmetrics())
    cells = _as_high(rows.reshape(-1, height, width, 3), line)
    pictures = grid(cells, columns, gap)

    margin = 2 * gap
    labels_width = max(font.getlength(label) for label in row_labels)
    left = margin + (round(labels_width) + font.size // 2 if labels_width else 0)
    title_bottom = margin + (sum(title_font.getmetrics()) + gap if title else 0)
    above, below = (line + gap if column_labels and captions_below == side else 0 for side in (False, True))
    top = title_bottom + above
    right = left + max(pictures.shape[1], round(title_font.getlength(title)) if title else 0)
    canvas = Image.new("RGB", (right + margin, top + len(pictures) + below + margin), "white")
    canvas.paste(Image.fromarray(pictures), (left, top))

    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((left, margin), title, INK, title_font)
    for label, row in zip(row_labels, range(len(rows)), strict=True):
        middle = top + row * (cells.shape[1] + gap) + cells.shape[1] / 2
        draw.text((left - font.size // 2, middle), label, INK, font, anchor="rm")
    if column_labels:
        y = top + len(pictures) + gap if captions_below else title_bottom
        for label, column in zip(column_labels, range(columns), strict=True):
            centre = left + column * (width + gap) + width / 2
            draw.text((centre, y), _shortened(label, font, width), INK, font, anchor="ma")
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
        corners = apply(frame, np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)])) * scale + (left, top)
        draw.line([tuple(corner) for corner in corners.tolist()], FRAME_COLOR, max(1, side // 48 // len(frames)))
        if len(frames) > 1:
            font = ImageFont.load_default(max(12, round(scale * np.hypot(*frame[:, 0]) / 4)))
            middle = tuple(corners[:4].mean(axis=0).tolist())
            draw.text(middle, str(number), FRAME_COLOR, font, anchor="mm", stroke_width=2, stroke_fill="white")
    return square


def save_animation(
    path: str | Path, frames: Sequence[np.ndarray], frame_seconds: float, max_bytes: int | None = None
) -> None:
    """Write images of one size, uint8 [H, W, C] each with C 1 or 3, as a .gif that loops for ever or as a .mp4.

    A .mp4 gets a white line where a side is odd, as most players want even ones. A GIF larger than `max_bytes` gets
    fewer colours and then smaller images until it fits; equal frames in a row are stored as one that is shown
    longer. Raises ValueError where no GIF fits or for another suffix, ImportError, which says what to install, for a
    .mp4 without imageio's ffmpeg plugin.
    """
    suffix = Path(path).suffix.lower()
    frames = _rgb(np.stack(frames))
    if suffix == ".gif":
        data = _gif(frames, frame_seconds, max_bytes)
        with atomic_write(path) as temporary:
            temporary.write_bytes(data)
    elif suffix == ".mp4":
        odd = [(0, 0), *((0, side % 2) for side in frames.shape[1:3]), (0, 0)]
        frames = np.pad(frames, odd, constant_values=255)
        with atomic_write(path) as temporary:
            iio.imwrite(temporary, frames, plugin="FFMPEG", fps=1 / frame_seconds, macro_block_size=2)
    else:
        raise ValueError(f"{path}: an animation is a .gif or a .mp4")


def animate_training(path: Path, epochs: Iterable[str], size_image: int, bins: Sequence[str]) -> None:
    """Write a run's demo_train.gif: the test sheets of these epochs, in their order, under the faces themselves.

    epochs: the names of the epochs; one whose sheet is not in the folder test beside `path` is left out. bins: the
    names of the age bins, which are the rows of the sheets. Raises OSError and ValueError where a sheet is damaged or
    of another size.
    """
    test = path.parent / "test"
    paths = [test / f"{name}.png" for name in epochs if (test / f"{name}.png").is_file()]
    inputs = tiles(Image.open(test / "input.png"), size_image)
    frames = [
        sheet(
            np.concatenate([inputs, tiles(Image.open(path), size_image)]), ["input", *bins], title=f"epoch {path.stem}"
        )
        for path in paths
    ]
    save_animation(path, frames, frame_seconds=0.5, max_bytes=GIF_BYTES)


def tiles(picture: Image.Image, side: int) -> np.ndarray:
    """Returns the images that a grid without gaps is made of, uint8 [rows, columns, side, side, C]."""
    pixels = np.asarray(picture)
    rows, columns = (length // side for length in pixels.shape[:2])
    return pixels.reshape(rows, side, columns, side, -1).swapaxes(1, 2)


def low_pass(losses: Sequence[float]) -> np.ndarray:
    """Returns losses of N > 0 steps without what swings more than LOSS_CYCLES times over all of them: float [N].

    A second-order Butterworth filter, run forwards and backwards so that nothing is shifted in time.
    """
    from scipy.signal import butter, sosfiltfilt

    losses = np.asarray(losses, float)
    # N steps hold N / 2 cycles at most: in a short training nothing is too fast
    if len(losses) <= 2 * LOSS_CYCLES:
        return losses
    cutoff = 2 * LOSS_CYCLES / len(losses)  # as butter takes it: a fraction of the fastest cycle that there is
    # the ends are mirrored, not turned about their last point: one loss out of line must not bend the curve
    padding = min(len(losses) - 1, round(4 / cutoff))
    return sosfiltfilt(butter(2, cutoff, output="sos"), losses, padtype="even", padlen=padding)


def plot_losses(path: str | Path, epochs: Sequence[float], losses: Sequence[float]) -> None:
    """Draw the reconstruction loss of N > 0 steps against the epoch (fractional within one), low-pass filtered.

    The curve as it was is behind. The suffix of `path` is one that matplotlib writes.
    """
    # slow to import, and needed once an epoch at most
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context("default"), atomic_write(path) as temporary:  # whatever the user's own matplotlibrc says
        _loss_figure(Figure, epochs, losses).savefig(temporary)


def _loss_figure(make, epochs: Sequence[float], losses: Sequence[float]):
    figure = make(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot(epochs, losses, color=LOSS_COLOR, alpha=0.25, linewidth=0.8, label="every step")
    marker = "o" if len(losses) == 1 else None  # a line through one point is not seen
    axes.plot(epochs, low_pass(losses), color=LOSS_COLOR, linewidth=2, marker=marker, label="low-pass filtered")
    axes.set(xlabel="epoch", ylabel="reconstruction loss (mean L1)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="upper right")
    return figure


def _as_high(images: np.ndarray, height: int) -> np.ndarray:
    """Returns images [N, H, W, C] with white above and below each that is lower than this height."""
    missing = max(0, height - images.shape[1])
    return np.pad(images, ((0, 0), (missing // 2, missing - missing // 2), (0, 0), (0, 0)), constant_values=255)


def _rgb(images: np.ndarray) -> np.ndarray:
    """Returns images [..., 1] or [..., 3] as [..., 3]."""
    return images.repeat(3, axis=-1) if images.shape[-1] == 1 else images


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Returns the text, or as much of its beginning as `width` pixels hold."""
    length = len(text)
    while length and font.getlength(text[:length] + "…" * (length < len(text))) > width:
        length -= 1
    return text[:length] + "…" * (length < len(text))


def _gif(frames: np.ndarray, frame_seconds: float, max_bytes: int | None) -> bytes:
    """Returns frames, uint8 [N, H, W, 3], as a GIF of at most `max_bytes`, with what colours and size that leaves."""
    shown, colors, scale = frames, MANY_COLORS, 1.0
    while True:
        # one palette serves all frames: even parts do not flicker, and what stands still costs nothing
        pixels = shown.reshape(1, -1, 3)
        palette = Image.fromarray(pixels[:, :: pixels.shape[1] // PALETTE_PIXELS + 1]).quantize(colors)
        shown = np.stack([_painted(frame, palette) for frame in shown])
        data = iio.imwrite("<bytes>", shown, extension=".gif", plugin="pillow", duration=1000 * frame_seconds, loop=0)
        if max_bytes is None or len(data) <= max_bytes:
            return data
        # the bytes go with the area; a little below the limit is aimed at, so that this ends
        expected = len(data) * (FEW_COLORS_BYTES if colors == MANY_COLORS else 1)
        scale *= min(1, (0.95 * max_bytes / expected) ** 0.5)
        colors = FEW_COLORS
        size = round(scale * frames.shape[2]), round(scale * frames.shape[1])
        if min(size) < MIN_GIF_SIDE:
            raise ValueError(f"{len(frames)} frames do not fit into {max_bytes} bytes")
        shown = np.stack([Image.fromarray(frame).resize(size) for frame in frames])


def _painted(frame: np.ndarray, palette: Image.Image) -> np.ndarray:
    """Returns a frame, uint8 [H, W, 3], with every pixel the nearest color of the palette."""
    image = Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
    return np.asarray(image.convert("RGB"))
