"""What the user sees of a program at work: streams, progress, commands; open it where something is printed wrongly."""

import contextlib
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

from tqdm import tqdm

PROJECT = Path(__file__).parents[1]
LINE_SECONDS = 30  # seconds from one line of progress to the next, where there is no terminal for a bar


class SafeStream:
    """A text stream that can be printed to whatever is printed, and whatever becomes of its other end.

    What its encoding lacks is written as an escape (\\\\u4eba). Once it cannot be written any more, as its reader has
    ended (`| head`) or the disk is full, that is said on stderr, and what is printed from then on is dropped: it is no
    reason to end a training.
    """

    def __init__(self, stream, name: str):
        if hasattr(stream, "reconfigure"):  # that of a development environment may be of another kind
            stream.reconfigure(errors="backslashreplace")
        self.stream = stream
        self.name = name

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())  # what the stream still holds is dropped too
        os.close(nowhere)
        if self.name != "stderr":
            print(f"{self.name} cannot be written any more ({error.strerror}): the work goes on", file=sys.stderr)


def make_streams_safe() -> None:
    """Have stdout and stderr be such streams from now on; call it once, at the start of a program."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:  # closed from the start (`>&-`): the next file opened would take its number
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            setattr(sys, name, os.fdopen(number, "w"))
        setattr(sys, name, SafeStream(getattr(sys, name), name))


def quiet() -> None:
    """Have TensorFlow and Pillow not print what reaches us as exceptions too; TF_CPP_MIN_LOG_LEVEL=0 shows all."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore", module="PIL")


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Within it, drop what is written to stderr by C++ too: TensorFlow logs while it is imported, before its log level
    counts. From then on its Python speaks of errors only."""
    quiet()
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        logging.getLogger("tensorflow").setLevel(logging.ERROR)


def progress(items: Iterable, title: str, total: int | None = None, log: Callable[[str], None] = print, **bar):
    """Returns an iterable over the items that shows how far it is: a bar, or a line now and then without a terminal.

    bar: what tqdm takes for its bar, such as `unit` and `initial`. A line is passed to `log`.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        return Lines(items, title, len(items) if total is None else total, log, bar)
    return tqdm(items, title, total, **bar)


class Lines:
    """What stands for a progress bar where there is no terminal: lines, LINE_SECONDS or one item apart."""

    def __init__(self, items: Iterable, title: str, total: int, log: Callable[[str], None], bar: dict):
        self.items, self.title, self.total, self.log = items, title, total, log
        self.done = bar.get("initial", 0)
        self.unit, self.scale = bar["unit"], bar.get("unit_scale", 1)
        self.postfix = ""

    def set_postfix_str(self, text: str) -> None:
        """Have this stand in the lines from now on."""
        self.postfix = f", {text}"

    def __iter__(self) -> Iterator:
        # the first item is left out of the pace: TensorFlow builds its graph in it
        first, begun, said = self.done + 1, 0.0, time.monotonic()
        for item in self.items:
            yield item
            self.done += 1
            now = time.monotonic()
            if self.done == first:
                begun = now
            if now - said >= LINE_SECONDS and self.done < self.total:
                left = ""
                if self.done > first:
                    seconds = (now - begun) / (self.done - first) * (self.total - self.done)
                    left = f", {timedelta(seconds=round(seconds))} left"
                done, total = self.done * self.scale, self.total * self.scale
                self.log(f"{self.title}: {self.unit} {done:,} of {total:,}{self.postfix}{left}")
                said = now


def quoted(*words: str | Path) -> str:
    """Returns the words as a command that this system's shell takes for just these words."""
    words = [str(word) for word in words]
    if os.name != "nt":
        return shlex.join(words)
    return " ".join(f'"{word}"' if re.search(r"[\s<>|&^()]", word) else word for word in words)


def python(*words: str | Path) -> str:
    """Returns the command that has this Python, called as the user can call it from here, do what the words say."""
    found = shutil.which("python")
    same = found and Path(found).parent.absolute() == Path(sys.executable).parent.absolute()
    return quoted("python" if same else sys.executable, *words)


def from_here(path: Path) -> Path:
    """Returns a path within the project as it is called from the current folder."""
    try:
        return Path(os.path.relpath(path))
    except ValueError:  # on another drive of Windows
        return path


class StopSignal:
    """Context manager in which the first SIGINT or SIGTERM only sets `number`; a second one ends the process.

    A thread receives the signals: a Python handler would run only after TensorFlow has finished the current step.
    TensorFlow's PreemptionCheckpointHandler ignores SIGINT and needs its own checkpoint manager.
    """

    SIGNALS: Sequence[int] = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.number: int | None = None
        self.handlers = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():  # Python delivers signals to the main thread only
            self.handlers = {number: signal.signal(number, lambda *_: None) for number in self.SIGNALS}
            # Python writes each signal's number to this descriptor; on Windows it must be a socket, not a pipe
            self.receiver, self.sender = socket.socketpair()
            self.sender.setblocking(False)
            self.wakeup = signal.set_wakeup_fd(self.sender.fileno())
            self.listener = threading.Thread(target=self._listen, daemon=True)
            self.listener.start()
        return self

    def __exit__(self, *_) -> None:
        if self.handlers:
            signal.set_wakeup_fd(self.wakeup)
            for number, handler in self.handlers.items():
                signal.signal(number, handler)
            self.sender.close()
            self.listener.join()
            self.receiver.close()

    def _listen(self) -> None:
        while received := self.receiver.recv(1):
            if received[0] in self.handlers:
                if self.number:
                    os._exit(128 + received[0])
                self.number = received[0]
                print("\nFinishing this batch, then saving ...", file=sys.stderr, flush=True)
