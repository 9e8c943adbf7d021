"""A training run: checks before it starts, its folder's lock, checkpoints in time, and its log."""

import contextlib
import csv
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tqdm import tqdm

from support import InputError, first_names, reason
from support.checkpoints import FOLDER, check_architecture, remove_leftovers, saved_checkpoints
from support.config import read_config, records_training, write_config
from support.devices import Devices, translate_lost_workers, translate_out_of_memory
from support.figures import plot_losses
from support.files import atomic_write, locked, remove_temporaries
from support.images import save_image
from support.terminal import StopSignal, progress

HISTOGRAM_STEPS = 50  # steps between histograms of z and the logits
CHECKPOINT_SECONDS = 600  # between checkpoints within an epoch


def check_beginning(save_dir: Path, use_trained_model: bool, notes: dict, config: dict) -> None:
    """Raise InputError if training would overwrite or spoil a run in save_dir. Writes nothing.

    notes: what config.json records of the data set: "faces", their number, "held_out", the record of those held out,
    and "data", the digest of all.
    """
    before = read_config(save_dir)
    found = saved_checkpoints(save_dir / FOLDER)
    if found and not use_trained_model:
        raise InputError(
            f"{save_dir} has a trained model, which --use_trained_model False would overwrite: use another --savedir, "
            "or omit the flag to resume the run"
        )
    by_hand = before and found and found[0].endswith("-0")  # by save_checkpoint, before any training
    if found and not records_training(before) and not by_hand:
        raise InputError(
            f"{found[0]} has no config.json that records its training: restore it, or use another --savedir"
        )
    kept = notes | before.get("training", {})
    if kept["faces"] != notes["faces"]:  # the order of an epoch depends on all faces
        raise InputError(
            f"the data set has {notes['faces']:,} faces, but the run in {save_dir} was made with {kept['faces']:,}: "
            "use the same faces, or another --savedir"
        )
    if kept["held_out"].keys() != notes["held_out"].keys():
        others = [name for digest, name in kept["held_out"].items() if digest not in notes["held_out"]]
        raise InputError(
            f"the data set is not the one that the run in {save_dir} was made with: {len(others):,} of its held-out "
            f"faces{first_names(others)}, are missing or have changed: use the same faces, or another --savedir"
        )
    if kept["data"] != notes["data"]:
        raise InputError(
            f"the names, sizes, ages or genders of the faces are not those that the run in {save_dir} began with: "
            "restore them (images, labels.csv, file and folder names), or use another --savedir"
        )
    check_architecture(save_dir, config)


def check_finite(values: dict[str, float], step: int) -> None:
    """Raise FloatingPointError, naming the first value that is not finite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{name} is {value} at step {step}: the last checkpoint is kept; "
                "lower --learning_rate or --loss_weights, or use --precision float32"
            )


class Run:
    """Context manager for a run's folder: lock, log, stop signal, checkpoints.

    `folder` is save_dir for the chief; other workers write the same files to a temporary folder, which is removed at
    the end. `stop_signal` is the number of the signal that asked this training to stop, or None.
    line: function that formats the losses, floats by name, for the progress bar and the line of each epoch.
    """

    def __init__(self, save_dir: Path, devices: Devices, line: Callable[[dict[str, float]], str]):
        self.folder = save_dir
        self.devices = devices
        self.line = line
        self.stop_signal: int | None = None
        self.failed: set[str] = set()  # kinds of image files that could not be written

    def __enter__(self) -> "Run":
        with contextlib.ExitStack() as stack:
            stack.enter_context(translate_out_of_memory())
            if self.devices.is_chief:
                stack.enter_context(locked(self.folder))
                remove_temporaries(self.folder, "samples", "test", FOLDER)
                remove_leftovers(self.folder / FOLDER)
            if self.devices.world_size > 1:
                stack.enter_context(translate_lost_workers())
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *error) -> bool | None:
        return self.stack.__exit__(*error)

    def open(self, config: dict, notes: dict, step: int) -> None:
        """Write config.json if there is none, open the log after `step`, and receive stop signals from now on."""
        if not self.devices.is_chief:
            self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.config = config, notes
        write_config(self.folder, *self.config)
        self.training_log = self.stack.enter_context(TrainingLog(self.folder, step))
        self.signals = self.stack.enter_context(StopSignal())
        self.saved_at = time.monotonic()

    def progress(self, batches: Iterable, title: str, done: int, total: int) -> Iterable:
        """Return the batches of an epoch as an iterable that displays the progress; `done` of `total` are trained."""
        self.title, self.total = title, total
        self.bar = progress(batches, title, total, self.devices.log, initial=done, unit="batch")
        return self.bar

    def log(self, step: int, epoch: float, losses: dict, outputs: dict, learning_rate: float) -> None:
        """Log a step, with histograms of the outputs every HISTOGRAM_STEPS steps; poll the stop signal.

        Waits for the device to finish the step. `epoch` is the number of epochs done, as a fraction. Raises
        FloatingPointError if a loss is not finite.
        """
        losses = {name: float(loss) for name, loss in losses.items()}
        check_finite(losses, step)
        histograms = {} if step % HISTOGRAM_STEPS else outputs
        self.training_log.write_step(step, epoch, losses, learning_rate, histograms)
        self.bar.set_postfix_str(self.line(losses))
        self.poll()

    def log_epoch(self, step: int, name: str, grids: dict[str, np.ndarray], held_out_loss: float) -> None:
        """Log the end of an epoch: its image grids, the loss curve, and a line with its mean losses.

        name: of the epoch; grids: uint8 [H, W, C], by the folder that each is written to.
        """
        log = self.training_log
        for folder, grid in grids.items():
            self.draw(f"{folder}/{name}.png", save_image, grid)
        log.write_epoch(step, grids, held_out_loss)
        self.draw("loss_epoch.png", plot_losses, log.columns["epoch"], log.columns["EG_loss"])
        means = {name: np.nanmean(log.columns[name][-self.total :]) for name in log.losses}
        self.devices.log(f"{self.title}, step {step}: {self.line(means)}, held-out L1 {held_out_loss:.4f}")
        self.poll()

    def draw(self, name: str, draw: Callable, *arguments) -> None:
        """Call draw(path, *arguments), which writes the image file of this name in the folder.

        An error does not end training: the first one of each kind of image is reported on stderr.
        """
        try:
            draw(self.folder / name, *arguments)
        except Exception as error:  # image libraries raise nearly anything for a file that another program damaged
            kind = name.partition("/")[0]
            if self.devices.is_chief and kind not in self.failed:
                line = f"{self.folder / name} cannot be written, training continues without it: {reason(error)}"
                tqdm.write(line, file=sys.stderr)
            self.failed.add(kind)

    def poll(self) -> None:
        """Set `stop_signal`; all workers exchange theirs, so that all stop after the same batch."""
        stop_signal = self.signals.number
        if self.devices.world_size > 1 and self.devices.sum_of_workers(stop_signal or 0):
            stop_signal = stop_signal or signal.SIGTERM
        self.stop_signal = stop_signal

    @property
    def save_is_due(self) -> bool:
        """Whether the last checkpoint is older than CHECKPOINT_SECONDS, or the training was asked to stop."""
        return bool(self.stop_signal) or time.monotonic() - self.saved_at > CHECKPOINT_SECONDS

    def save(self, save_checkpoint: Callable) -> None:
        """Synchronise the log to the disk, then save a checkpoint if this is the chief."""
        self.training_log.flush()
        if self.devices.is_chief:
            write_config(self.folder, *self.config)  # if it was deleted meanwhile
            save_checkpoint()
        self.saved_at = time.monotonic()


class TrainingLog:
    """losses.csv, and summary/ for tensorboard; both continue after the step that training resumes from.

    `columns` is the content of losses.csv, floats by column, NaN where a loss was not computed; `losses` are the names
    of the losses of the last step.
    """

    def __init__(self, save_dir: Path, step: int):
        self.path = save_dir / "losses.csv"
        names, rows = read_losses(self.path, step)
        self.columns = {name: [float(row[i] or "nan") for row in rows] for i, name in enumerate(names)}
        self.losses: list[str] = []
        self._open([names, *rows] if rows else [])
        self.summary_dir = str(save_dir / "summary")
        # on reading this event, tensorboard drops later steps of an earlier session
        start = Event(wall_time=time.time(), step=step + 1, session_log=SessionLog(status=SessionLog.START))
        writer = EventFileWriter(self.summary_dir)
        writer.add_event(start)
        writer.close()
        self.summary = tf.summary.create_file_writer(self.summary_dir)

    def __enter__(self) -> "TrainingLog":
        return self

    def __exit__(self, *_) -> None:
        with contextlib.closing(self.file), self._translate_summary_errors():
            self.summary.close()

    def _open(self, rows: list[list[str]]) -> None:
        """Replace losses.csv by these rows, header first, and open it for appending; lines end in \\n everywhere."""
        with atomic_write(self.path) as temporary:
            temporary.write_text("".join(f"{','.join(row)}\n" for row in rows), encoding="utf-8", newline="\n")
        self.file = self.path.open("a", encoding="utf-8", newline="", buffering=1)

    @contextlib.contextmanager
    def _translate_summary_errors(self) -> Iterator[None]:
        """Raise InputError within it where TensorFlow cannot write to summary/."""
        try:
            yield
        except tf.errors.OpError as error:
            # TensorFlow's message begins with the file
            raise InputError(f"{self.summary_dir} cannot be written: {reason(error).rpartition('; ')[2]}") from error

    def flush(self) -> None:
        """Synchronise the log to the disk."""
        with self._translate_summary_errors():
            self.summary.flush()
        self.file.flush()
        os.fsync(self.file.fileno())

    def write_step(self, step: int, epoch: float, losses: dict, learning_rate: float, histograms: dict) -> None:
        row = {"step": step, "epoch": f"{epoch:.4f}", **losses, "learning_rate": learning_rate}
        if row.keys() - self.columns.keys():
            self._add_columns(list(row))
        self.losses = list(losses)
        csv.DictWriter(self.file, list(self.columns), restval="", lineterminator="\n").writerow(row)
        for name, values in self.columns.items():
            values.append(float(row.get(name, "nan")))
        with self._translate_summary_errors(), self.summary.as_default(step):
            for name, value in {**losses, "learning_rate": learning_rate}.items():
                tf.summary.scalar(name, value)
            for name, value in histograms.items():
                tf.summary.histogram(name, value)

    def _add_columns(self, names: list[str]) -> None:
        """Write the header, with the columns of a loss that the run did not have before, empty in earlier rows."""
        self.file.close()
        _, *rows = [line.split(",") for line in self.path.read_text(encoding="utf-8").splitlines()] or [[]]
        new = [name for name in names if name not in self.columns]
        self.columns |= {name: [math.nan] * len(rows) for name in new}
        self._open([list(self.columns), *(row + [""] * len(new) for row in rows)])

    def write_epoch(self, step: int, grids: dict[str, np.ndarray], held_out_loss: float) -> None:
        with self._translate_summary_errors(), self.summary.as_default(step):
            tf.summary.scalar("held_out_EG_loss", held_out_loss)
            for name, grid in grids.items():
                tf.summary.image(name, grid[None])


def read_losses(path: Path, step: int) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of losses.csv up to `step`; both are empty if there are none.

    A killed run may have written later steps and an incomplete last line, which are dropped. A file with other lines
    that no run writes is copied to losses_damaged1.csv, or the next free number, and reported on stderr.
    """
    if not path.exists():
        return [], []
    # utf-8-sig, as spreadsheets write it
    lines = path.read_bytes().decode("utf-8-sig", errors="replace").replace("\r\n", "\n").split("\n")[:-1]
    names, *rows = [line.split(",") for line in lines if line] or [[]]
    valid = [row for row in rows if len(row) == len(names) and all(map(_is_number, row))]
    if names and not {"step", "epoch", "EG_loss"} <= set(names):
        valid = []
    kept = [row for row in valid if row[names.index("step")].isdigit() and 1 <= int(row[names.index("step")]) <= step]
    if len(valid) < len(rows):
        number = 1
        while (copy := path.with_name(f"losses_damaged{number}.csv")).exists():
            number += 1
        shutil.copyfile(path, copy)
        print(
            f"{path} has {len(rows) - len(valid):,} lines that no training wrote: it is kept as {copy.name}, and "
            f"training continues with its {len(kept):,} valid rows",
            file=sys.stderr,
        )
    return (names, kept) if kept else ([], [])


def _is_number(cell: str) -> bool:
    try:
        return not cell or math.isfinite(float(cell))
    except ValueError:
        return False
