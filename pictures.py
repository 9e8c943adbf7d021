"""What people look at: grids, labelled sheets, animations and curves, each written whole; and measures of pictures."""

import csv
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFont
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.event_file_writer import EventFileWriter

MIN_TYPE = 12  # pixels; smaller type cannot be read
TYPE_SHARE = 0.15  # of a picture's height: type in proportion on a sheet of any size
INK = (34, 34, 34)
MANY_COLORS, FEW_COLORS = 256, 128  # of a GIF: all that the format has, and what ten faces can do with
FEW_COLORS_BYTES = 0.8  # what FEW_COLORS leave of a GIF's bytes, measured on faces
PALETTE_PIXELS = 250_000  # looked at for a palette; more take longer and change nothing to see
MIN_GIF_SIDE = 16  # pixels; no face can be seen below it
LOSS_CYCLES = 50  # a loss that swings more often than this over its record is noise to the eye
LOSS_COLOR = "#1f5a96"
SSIM_SIGMA, SSIM_RADIUS = 1.5, 5  # pixels: a Gaussian window of 11 x 11
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2  # for pixels in [0, 1]
GREY = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R 601


@contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, to be written by name; what is written there becomes `path`.

    Parent folders are made. The temporary name starts with ".partial-" and has the suffix of `path`, by which writers
    know the format. After an error, KeyboardInterrupt too, it is gone and an earlier `path` is as it was.
    Raises OSError where the folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".partial-{secrets.token_hex(8)}{path.suffix}")
    try:
        yield temporary
        # without this a power loss just after the move can leave an empty file under the final name
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno:  # name the file that a user knows; a full disk names none
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial(folder: Path, *subfolders: str) -> None:
    """Remove what a process that was killed while in `write_whole` left in the folder and these within it."""
    for part in (folder, *(folder / name for name in subfolders)):
        for path in part.glob(".partial-*"):
            path.unlink(missing_ok=True)


def grid(images: np.ndarray, columns: int = 10, border: int = 0) -> np.ndarray:
    """Lay pictures, uint8 [N, h, w, C], out row by row: uint8 [H, W, C], white where there is none.

    It is min(N, columns) pictures wide; `border` is the white between neighbours, in pixels.
    """
    count, height, width, channels = images.shape
    columns = min(columns, count)
    lines = -(-count // columns)
    # a border below and to the right of every picture; the outermost are cut off at the end
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
) -> np.ndarray:
    """Draw a labelled sheet, uint8 [H, W, 3], of pictures, uint8 [R, N, h, w, C] with C 1 or 3, at their own size.

    `row_labels` (R of them) stand to the left of the rows, `column_labels` (N) above the columns, shortened to a
    column's width, and the title above all. A sheet's size depends on the title only where that is the wider.
    Raises ValueError where the number of labels is wrong.
    """
    rows = _rgb(np.asarray(rows))
    _, columns, height, width, _ = rows.shape
    gap = 2 + height // 64
    font = ImageFont.load_default(max(MIN_TYPE, round(TYPE_SHARE * height)))
    title_font = ImageFont.load_default(round(1.25 * font.size))
    line = sum(font.getmetrics())
    # a picture lower than its label gets white above and below
    missing = max(0, line - height)
    cells = np.pad(
        rows.reshape(-1, height, width, 3),
        ((0, 0), (missing // 2, missing - missing // 2), (0, 0), (0, 0)),
        constant_values=255,
    )
    pictures = grid(cells, columns, gap)

    margin = 2 * gap
    labels_width = max(font.getlength(label) for label in row_labels)
    left = margin + (round(labels_width) + font.size // 2 if labels_width else 0)
    title_bottom = margin + (sum(title_font.getmetrics()) + gap if title else 0)
    top = title_bottom + (line + gap if column_labels else 0)
    right = left + max(pictures.shape[1], round(title_font.getlength(title)) if title else 0)
    canvas = Image.new("RGB", (right + margin, top + len(pictures) + margin), "white")
    canvas.paste(Image.fromarray(pictures), (left, top))

    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((left, margin), title, INK, title_font)
    for label, row in zip(row_labels, range(len(rows)), strict=True):
        middle = top + row * (cells.shape[1] + gap) + cells.shape[1] / 2
        draw.text((left - font.size // 2, middle), label, INK, font, anchor="rm")
    if column_labels:
        for label, column in zip(column_labels, range(columns), strict=True):
            centre = left + column * (width + gap) + width / 2
            draw.text((centre, title_bottom), _shortened(label, font, width), INK, font, anchor="ma")
    return np.asarray(canvas)


def to_image(picture: np.ndarray) -> Image.Image:
    """A picture, uint8 [H, W, C] with C 1 or 3, as one of Pillow's."""
    return Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)


def save_image(path: str | Path, image: np.ndarray) -> None:
    """Write one picture, uint8 [H, W, C] with C 1 or 3, in the format of the path's suffix."""
    with write_whole(path) as temporary:
        to_image(image).save(temporary)


def save_animation(
    path: str | Path, frames: Sequence[np.ndarray], frame_seconds: float, max_bytes: int | None = None
) -> None:
    """Write pictures of one size, uint8 [H, W, C] each with C 1 or 3, as a .gif that loops for ever or as a .mp4.

    A .mp4 gets a white line where a side is odd, as most players want even ones. A GIF larger than `max_bytes` gets
    fewer colours and then smaller pictures until it fits; equal frames in a row are stored as one that is shown
    longer. Raises ValueError where no GIF fits or for another suffix, ImportError, which says what to install, for a
    .mp4 without imageio's ffmpeg plugin.
    """
    suffix = Path(path).suffix.lower()
    frames = _rgb(np.stack(frames))
    if suffix == ".gif":
        data = _gif(frames, frame_seconds, max_bytes)
        with write_whole(path) as temporary:
            temporary.write_bytes(data)
    elif suffix == ".mp4":
        odd = [(0, 0), *((0, side % 2) for side in frames.shape[1:3]), (0, 0)]
        frames = np.pad(frames, odd, constant_values=255)
        with write_whole(path) as temporary:
            iio.imwrite(temporary, frames, plugin="FFMPEG", fps=1 / frame_seconds, macro_block_size=2)
    else:
        raise ValueError(f"{path}: an animation is a .gif or a .mp4")


def low_pass(losses: Sequence[float]) -> np.ndarray:
    """Losses of N > 0 steps without what swings more than LOSS_CYCLES times over the record: float [N].

    A second-order Butterworth filter, run forwards and backwards so that nothing is shifted in time.
    """
    from scipy.signal import butter, sosfiltfilt

    losses = np.asarray(losses, float)
    # N steps hold N / 2 cycles at most: in a short record nothing is too fast
    if len(losses) <= 2 * LOSS_CYCLES:
        return losses
    cutoff = 2 * LOSS_CYCLES / len(losses)  # as butter takes it: a fraction of the fastest cycle that there is
    # ends are mirrored, not turned about their last point: one loss out of line must not bend the curve
    padding = min(len(losses) - 1, round(4 / cutoff))
    return sosfiltfilt(butter(2, cutoff, output="sos"), losses, padtype="even", padlen=padding)


def plot_losses(path: str | Path, epochs: Sequence[float], losses: Sequence[float]) -> None:
    """Draw the reconstruction loss of N > 0 steps against the epoch (fractional within one), low-pass filtered.

    The curve as it was is behind. The suffix of `path` is one that matplotlib writes.
    """
    # slow to import, and needed once an epoch at most
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot(epochs, losses, color=LOSS_COLOR, alpha=0.25, linewidth=0.8, label="every step")
    marker = "o" if len(losses) == 1 else None  # a line through one point is not seen
    axes.plot(epochs, low_pass(losses), color=LOSS_COLOR, linewidth=2, marker=marker, label="low-pass filtered")
    axes.set(xlabel="epoch", ylabel="reconstruction loss (mean L1)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="upper right")
    with write_whole(path) as temporary:
        figure.savefig(temporary)


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """The structural similarity of two pictures, float [H, W, C] in [0, 1]; 1 where they are equal.

    The mean over channels and over all places of the window within them (Wang, Bovik, Sheikh and Simoncelli 2004).
    """
    from scipy.ndimage import gaussian_filter

    def blur(x):
        return gaussian_filter(x, SSIM_SIGMA, radius=SSIM_RADIUS, axes=(0, 1))

    a, b = first.astype(np.float64), second.astype(np.float64)
    mean_a, mean_b = blur(a), blur(b)
    variances = blur(a * a) - mean_a**2 + blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    likeness = (2 * mean_a * mean_b + SSIM_C1) / (mean_a**2 + mean_b**2 + SSIM_C1)
    likeness *= (2 * covariance + SSIM_C2) / (variances + SSIM_C2)
    margin = min(SSIM_RADIUS, (min(a.shape[:2]) - 1) // 2)
    return float(likeness[margin:-margin, margin:-margin].mean())


def sharpness(image: np.ndarray) -> float:
    """The variance of the Laplacian of a picture, float [H, W, C], made grey, in squared units of its own."""
    from scipy.ndimage import laplace

    return float(laplace(image @ GREY if image.shape[-1] == 3 else image[..., 0]).var())


class Record:
    """What a training writes down: summary/ for tensorboard and losses.csv, cut to the step that it goes on from."""

    def __init__(self, save_dir: Path, step: int):
        self.path = save_dir / "losses.csv"
        text = self.path.read_text(errors="replace") if self.path.exists() else ""
        header, *rows = text.splitlines(keepends=True) or [""]
        # what a killed run wrote past its checkpoint, half a row maybe
        done = {str(number) for number in range(1, step + 1)}
        rows = [row for row in rows if row.endswith("\n") and row.split(",")[0] in done]
        self.empty = not rows
        with write_whole(self.path) as temporary:
            temporary.write_text("".join([header, *rows]) if rows else "")
        summary_dir = str(save_dir / "summary")
        # on reading this, tensorboard drops what a run wrote past the step that this one goes on from
        start = Event(wall_time=time.time(), step=step + 1, session_log=SessionLog(status=SessionLog.START))
        log = EventFileWriter(summary_dir)
        log.add_event(start)
        log.close()
        self.file = self.path.open("a", newline="", buffering=1)
        self.summary = tf.summary.create_file_writer(summary_dir)

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *_) -> None:
        self.summary.close()
        self.file.close()

    def flush(self) -> None:
        self.summary.flush()
        self.file.flush()
        os.fsync(self.file.fileno())

    def write_step(self, step: int, epoch: float, losses: dict[str, float], rate: float) -> None:
        row = {"step": step, "epoch": f"{epoch:.4f}", **losses, "learning_rate": rate}
        writer = csv.DictWriter(self.file, row, lineterminator="\n")
        if self.empty:
            writer.writeheader()
        writer.writerow(row)
        self.empty = False
        with self.summary.as_default(step):
            for name, value in {**losses, "learning_rate": rate}.items():
                tf.summary.scalar(name, value)

    def write_histograms(self, step: int, values: dict[str, tf.Tensor]) -> None:
        with self.summary.as_default(step):
            for name, value in values.items():
                tf.summary.histogram(name, value)

    def write_epoch(self, step: int, sheets: dict[str, np.ndarray], loss: float) -> None:
        with self.summary.as_default(step):
            tf.summary.scalar("held_out_EG_loss", loss)
            for name, sheet in sheets.items():
                tf.summary.image(name, sheet[None])

    def read(self, column: str, last: int | None = None) -> np.ndarray:
        """A column of losses.csv, of its last rows or of all."""
        with self.path.open(newline="") as file:
            values = [float(row[column]) for row in csv.DictReader(file)]
        return np.array(values[-last:] if last else values)


def _rgb(images: np.ndarray) -> np.ndarray:
    """[..., 1] or [..., 3] -> [..., 3]"""
    return images.repeat(3, axis=-1) if images.shape[-1] == 1 else images


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """`text`, or as much of its beginning as `width` pixels hold."""
    length = len(text)
    while length and font.getlength(text[:length] + "…" * (length < len(text))) > width:
        length -= 1
    return text[:length] + "…" * (length < len(text))


def _gif(frames: np.ndarray, frame_seconds: float, max_bytes: int | None) -> bytes:
    """Frames, uint8 [N, H, W, 3], as a GIF of at most `max_bytes`, with what colours and size that leaves."""
    shown, colors, scale = frames, MANY_COLORS, 1.0
    while True:
        # one palette for all frames: even parts do not flicker, and what stands still costs nothing
        pixels = shown.reshape(1, -1, 3)
        palette = Image.fromarray(pixels[:, :: pixels.shape[1] // PALETTE_PIXELS + 1]).quantize(colors)
        shown = np.stack([_painted(frame, palette) for frame in shown])
        data = iio.imwrite("<bytes>", shown, extension=".gif", plugin="pillow", duration=1000 * frame_seconds, loop=0)
        if max_bytes is None or len(data) <= max_bytes:
            return data
        # bytes go with the area; a little below the limit, so that it ends
        expected = len(data) * (FEW_COLORS_BYTES if colors == MANY_COLORS else 1)
        scale *= min(1, (0.95 * max_bytes / expected) ** 0.5)
        colors = FEW_COLORS
        size = round(scale * frames.shape[2]), round(scale * frames.shape[1])
        if min(size) < MIN_GIF_SIDE:
            raise ValueError(f"{len(frames)} frames do not fit into {max_bytes} bytes")
        shown = np.stack([Image.fromarray(frame).resize(size) for frame in frames])


def _painted(frame: np.ndarray, palette: Image.Image) -> np.ndarray:
    """A frame, uint8 [H, W, 3], with every pixel the nearest color of the palette."""
    image = Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
    return np.asarray(image.convert("RGB"))
