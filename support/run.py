"""One training's folder: locked, logged, stopped and saved in time; open it where a run does not go on as it should."""

import contextlib
import csv
import math
import os
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

from support.checkpoints import FOLDER, check_architecture, remove_leftovers, saved_checkpoints
from support.config import read_config, write_config
from support.devices import Devices, translate_lost_workers, translate_out_of_memory
from support.errors import InputError, first_names, reason
from support.files import atomic_write, locked, remove_temporaries
from support.images import save_image
from support.pictures import plot_losses
from support.terminal import StopSignal, progress

HISTOGRAM_STEPS = 50  # steps from one histogram of z and the logits to the next
CHECKPOINT_SECONDS = 600  # seconds from one checkpoint within an epoch to the next


def check_beginning(save_dir: Path, use_trained_model: bool, notes: dict, config: dict) -> None:
    """Raise InputError where training would spoil what save_dir holds; nothing has been written yet.

    notes: what config.json keeps of the data set: "faces", their number, "held_out", their record, and "labels".
    """
    before = read_config(save_dir)
    found = saved_checkpoints(save_dir / FOLDER)
    if found and not use_trained_model:
        raise InputError(
            f"{save_dir} holds a trained model, which --use_trained_model False would overwrite: "
            "give another --savedir to keep both, or leave the flag out to go on with it"
        )
    if found and not before:
        raise InputError(
            f"{found[0]} came without a config.json, so it is not of a run of this program: "
            "to keep it, train into another --savedir"
        )
    kept = notes | before.get("training", {})
    if kept["faces"] != notes["faces"]:  # the order of an epoch depends on all faces
        raise InputError(
            f"the data set has {notes['faces']:,} faces, but the run in {save_dir} was made with {kept['faces']:,}: "
            "continue with the same faces, or give another --savedir"
        )
    if kept["held_out"].keys() != notes["held_out"].keys():
        others = [name for digest, name in kept["held_out"].items() if digest not in notes["held_out"]]
        raise InputError(
            f"the data set is not the one that the run in {save_dir} was made with: {len(others):,} of its held-out "
            f"faces{first_names(others)}, are missing or have changed: continue with the same faces, or give another "
            "--savedir"
        )
    if kept["labels"] != notes["labels"]:
        raise InputError(
            f"the names, ages or genders of the data set's faces are not those that the run in {save_dir} began with: "
            "restore them (labels.csv, file and folder names), or give another --savedir"
        )
    check_architecture(save_dir, config)


def check_finite(values: dict[str, float], step: int) -> None:
    """Raise FloatingPointError, which names it, where a value is not finite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{name} is {value} at step {step}: the last checkpoint is kept; "
                "lower --learning_rate or --loss_weights, or take --precision float32"
            )


class Run:
    """A training's hold on its folder, from the lock to the last line of the log.

    `folder` is save_dir for the chief; other workers write the same files to a temporary folder, which is removed at
    the end. `stop_signal` is the number of the signal that asked this training to stop, or None.
    line: function that formats the losses, floats by name, for the progress bar and the line of each epoch.
    """

    def __init__(self, save_dir: Path, devices: Devices, line: Callable[[dict[str, float]], str]):
        self.folder = save_dir
        self.devices = devices
        self.line = line
        self.stop_signal: int | None = None
        self.not_drawn: set[str] = set()  # kinds of pictures that could not be drawn

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
        """Begin to write: config.json, unless it is there, and the log from `step` on. Ctrl-C is heard from here on."""
        if not self.devices.is_chief:
            self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        write_config(self.folder, config, notes)
        self.training_log = self.stack.enter_context(TrainingLog(self.folder, step))
        self.signals = self.stack.enter_context(StopSignal())
        self.saved_at = time.monotonic()

    def progress(self, batches: Iterable, title: str, done: int, total: int) -> Iterable:
        """Yields the batches of an epoch, while a bar or lines show how far it is; `done` of `total` lie behind."""
        self.title, self.total = title, total
        self.bar = progress(batches, title, total, self.devices.log, initial=done, unit="batch")
        return self.bar

    def log(self, step: int, epoch: float, losses: dict, outputs: dict, learning_rate: float) -> None:
        """Log a step, with histograms of the outputs every HISTOGRAM_STEPS steps, and learn whether to stop.

        It waits for the device to finish the step. `epoch` is the number of epochs done, with the part of this one.
        Raises FloatingPointError where a loss is not finite.
        """
        losses = {name: float(loss) for name, loss in losses.items()}
        check_finite(losses, step)
        self.training_log.write_step(step, epoch, losses, learning_rate)
        if step % HISTOGRAM_STEPS == 0:
            self.training_log.write_histograms(step, outputs)
        self.bar.set_postfix_str(self.line(losses))
        self.poll()

    def log_epoch(self, step: int, name: str, sheets: dict[str, np.ndarray], held_out_loss: float) -> None:
        """Log the end of an epoch: the sheets drawn for it, the loss curve so far, and a line with its mean losses.

        name: what the epoch is called; sheets: uint8 [H, W, C], by the folder that each is kept in.
        """
        log = self.training_log
        for folder, sheet in sheets.items():
            self.draw(f"{folder}/{name}.png", save_image, sheet)
        log.write_epoch(step, sheets, held_out_loss)
        self.draw("loss_epoch.png", plot_losses, log.columns["epoch"], log.columns["EG_loss"])
        means = {name: np.mean(log.columns[name][-self.total :]) for name in log.losses}
        self.devices.log(f"{self.title}, step {step}: {self.line(means)}, held-out L1 {held_out_loss:.4f}")
        self.poll()

    def draw(self, name: str, draw: Callable, *arguments) -> None:
        """Call draw(path, *arguments), by which the picture of this name in the folder is drawn and written.

        A picture never ends a training: where it cannot be drawn or written, that is said on stderr, once for all
        pictures of a kind, and the training goes on without it.
        """
        try:
            draw(self.folder / name, *arguments)
        except Exception as error:  # libraries that draw raise nearly anything for a file that another program harmed
            kind = name.partition("/")[0]
            if self.devices.is_chief and kind not in self.not_drawn:
                line = f"{self.folder / name} cannot be drawn, training goes on without it: {reason(error)}"
                tqdm.write(line, file=sys.stderr)
            self.not_drawn.add(kind)

    def poll(self) -> None:
        """Learn whether to stop; all workers ask each other, so that all stop at the same batch."""
        stop_signal = self.signals.number
        if self.devices.world_size > 1 and self.devices.sum_of_workers(stop_signal or 0):
            stop_signal = stop_signal or signal.SIGTERM
        self.stop_signal = stop_signal

    @property
    def save_is_due(self) -> bool:
        """Whether the last checkpoint is so old, or the training has been asked to stop."""
        return bool(self.stop_signal) or time.monotonic() - self.saved_at > CHECKPOINT_SECONDS

    def save(self, save_checkpoint: Callable) -> None:
        """Bring the log to the disk and then, if this is the chief, save a checkpoint: it is never ahead of the log."""
        self.training_log.flush()
        if self.devices.is_chief:
            save_checkpoint()
        self.saved_at = time.monotonic()


class TrainingLog:
    """What a training writes down: losses.csv, and summary/ for tensorboard, both cut to the step that it goes on from.

    `columns` holds all of losses.csv, floats by name of the column; `losses` are the names of the losses among them.
    """

    def __init__(self, save_dir: Path, step: int):
        path = save_dir / "losses.csv"
        text = path.read_text(errors="replace") if path.exists() else ""
        header, *rows = text.splitlines(keepends=True) or [""]
        # a run that was killed may have written past its checkpoint, and half a row
        done = {str(number) for number in range(1, step + 1)}
        rows = [row for row in rows if row.endswith("\n") and row.split(",")[0] in done]
        self.columns: dict[str, list[float]] = {}
        for row in csv.DictReader([header, *rows]):
            self._remember(row)
        with atomic_write(path) as temporary:
            temporary.write_text("".join([header, *rows]) if rows else "")
        self.summary_dir = str(save_dir / "summary")
        # on reading this event, tensorboard drops what a run wrote past the step that this one goes on from
        start = Event(wall_time=time.time(), step=step + 1, session_log=SessionLog(status=SessionLog.START))
        writer = EventFileWriter(self.summary_dir)
        writer.add_event(start)
        writer.close()
        self.file = path.open("a", newline="", buffering=1)
        self.summary = tf.summary.create_file_writer(self.summary_dir)

    def __enter__(self) -> "TrainingLog":
        return self

    def __exit__(self, *_) -> None:
        with contextlib.closing(self.file), self._summary_named():
            self.summary.close()

    @contextlib.contextmanager
    def _summary_named(self) -> Iterator[None]:
        """Within it what TensorFlow raises where summary/ cannot be written is an InputError."""
        try:
            yield
        except tf.errors.OpError as error:
            # TensorFlow has the file first, which is one of that folder's
            raise InputError(f"{self.summary_dir} cannot be written: {reason(error).rpartition('; ')[2]}") from error

    def _remember(self, row: dict) -> None:
        for name, value in row.items():
            self.columns.setdefault(name, []).append(float(value))

    @property
    def losses(self) -> list[str]:
        return [name for name in self.columns if name not in ("step", "epoch", "learning_rate")]

    def flush(self) -> None:
        """Bring what was written to the disk itself."""
        with self._summary_named():
            self.summary.flush()
        self.file.flush()
        os.fsync(self.file.fileno())

    def write_step(self, step: int, epoch: float, losses: dict[str, float], learning_rate: float) -> None:
        row = {"step": step, "epoch": f"{epoch:.4f}", **losses, "learning_rate": learning_rate}
        writer = csv.DictWriter(self.file, row, lineterminator="\n")
        if not self.columns:
            writer.writeheader()
        writer.writerow(row)
        self._remember(row)
        with self._summary_named(), self.summary.as_default(step):
            for name, value in {**losses, "learning_rate": learning_rate}.items():
                tf.summary.scalar(name, value)

    def write_histograms(self, step: int, values: dict[str, tf.Tensor]) -> None:
        with self._summary_named(), self.summary.as_default(step):
            for name, value in values.items():
                tf.summary.histogram(name, value)

    def write_epoch(self, step: int, sheets: dict[str, np.ndarray], held_out_loss: float) -> None:
        with self._summary_named(), self.summary.as_default(step):
            tf.summary.scalar("held_out_EG_loss", held_out_loss)
            for name, sheet in sheets.items():
                tf.summary.image(name, sheet[None])
