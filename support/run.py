"""One training's folder: its log, and how a training is stopped; open it where a run does not go on as it should."""

import csv
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from support.files import write_whole


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


class StopRequest:
    """Within it the first Ctrl-C or SIGTERM is only noted, in `signal`; a second one ends the program at once.

    A thread listens for them: a handler of Python's would wait for TensorFlow to come back from the step in hand.
    """

    def __init__(self):
        self.signal = None
        self.handlers = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python hears no signals
            ours = (signal.SIGINT, signal.SIGTERM)
            self.handlers = {number: signal.signal(number, lambda *_: None) for number in ours}
            self.ear, self.mouth = socket.socketpair()  # Windows takes a socket, no pipe
            self.mouth.setblocking(False)
            self.wakeup = signal.set_wakeup_fd(self.mouth.fileno())
            self.listener = threading.Thread(target=self._listen, daemon=True)
            self.listener.start()
        return self

    def __exit__(self, *_) -> None:
        if self.handlers:
            signal.set_wakeup_fd(self.wakeup)
            for number, handler in self.handlers.items():
                signal.signal(number, handler)
            self.mouth.close()
            self.listener.join()
            self.ear.close()

    def _listen(self) -> None:
        while heard := self.ear.recv(1):
            if heard[0] in self.handlers:
                if self.signal:
                    os._exit(128 + heard[0])
                self.signal = heard[0]
                print("\nFinishing this batch, then saving ...", file=sys.stderr, flush=True)
