"""Output streams, progress bars, shell commands, and the signals that stop a program."""

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
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path

from tqdm import tqdm

PROJECT = Path(__file__).parents[1]
FURTHER_THREADS = 8  # beside TensorFlow's pools: those that read images, tensorboard's, the progress bar's
LINE_SECONDS = 30  # between lines of progress, where there is no terminal for a bar


class SafeStream:
    """A text stream that never raises an error when it is written to.

    Characters that its encoding lacks are escaped (\\\\u4eba). Once it cannot be written, because its reader has ended
    (`| head`) or the disk is full, that is reported on stderr and further output is dropped.
    """

    def __init__(self, stream, name: str):
        if hasattr(stream, "reconfigure"):  # not in every development environment
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
        os.dup2(nowhere, self.stream.fileno())  # the stream's buffer is dropped too
        os.close(nowhere)
        if self.name != "stderr":
            print(f"{self.name} cannot be written any more ({error.strerror}), the program continues", file=sys.stderr)


def make_streams_safe() -> None:
    """Replace stdout and stderr by SafeStreams, once at the start of a program."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:  # closed by the shell (`>&-`): the next opened file would get its number
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            setattr(sys, name, os.fdopen(number, "w"))
        setattr(sys, name, SafeStream(getattr(sys, name), name))


def quiet() -> None:
    """Disable log messages of TensorFlow and Pillow that repeat exceptions; TF_CPP_MIN_LOG_LEVEL=0 shows them."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore", module="PIL")


def check_threads() -> None:
    """Raise RuntimeError if the system does not allow the threads that a training needs: TensorFlow would abort."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    end, threads = threading.Event(), []
    try:
        for _ in range(2 * cpus + FURTHER_THREADS):  # TensorFlow has two pools of a thread for each CPU
            threads.append(threading.Thread(target=end.wait, daemon=True))
            threads[-1].start()
    finally:
        end.set()


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Discard stderr, C++ included: TensorFlow logs during its import, before its log level applies.

    Afterwards TensorFlow's Python logs errors only.
    """
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
    """Return an iterable over the items that displays a bar or, without a terminal, passes lines to `log`.

    bar: arguments of tqdm, such as `unit` and `initial`.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        return ProgressLines(items, title, len(items) if total is None else total, log, bar)
    return tqdm(items, title, total, **bar)


class ProgressLines:
    """Progress as lines, LINE_SECONDS apart or one an item, whichever is longer."""

    def __init__(self, items: Iterable, title: str, total: int, log: Callable[[str], None], bar: dict):
        self.items, self.title, self.total, self.log = items, title, total, log
        self.done = bar.get("initial", 0)
        self.unit, self.scale = bar["unit"], bar.get("unit_scale", 1)
        self.postfix = ""

    def set_postfix_str(self, text: str) -> None:
        """Append this text to the lines from now on."""
        self.postfix = f", {text}"

    def __iter__(self) -> Iterator:
        # the first item is not timed: TensorFlow builds its graph in it
        first, begun, logged = self.done + 1, 0.0, time.monotonic()
        for item in self.items:
            yield item
            self.done += 1
            now = time.monotonic()
            if self.done == first:
                begun = now
            if now - logged >= LINE_SECONDS and self.done < self.total:
                left = ""
                if self.done > first:
                    seconds = (now - begun) / (self.done - first) * (self.total - self.done)
                    left = f", {timedelta(seconds=round(seconds))} left"
                done, total = self.done * self.scale, self.total * self.scale
                self.log(f"{self.title}: {self.unit} {done:,} of {total:,}{self.postfix}{left}")
                logged = now


def quoted(*words: str | Path) -> str:
    """Return the words quoted for this system's shell."""
    words = [str(word) for word in words]
    if os.name != "nt":
        return shlex.join(words)
    return " ".join(f'"{word}"' if re.search(r"[\s<>|&^()]", word) else word for word in words)


def python_command(*words: str | Path) -> str:
    """Return a command for this Python interpreter, as short as the user's PATH allows."""
    found = shutil.which("python")
    same = found and Path(found).parent.absolute() == Path(sys.executable).parent.absolute()
    return quoted("python" if same else sys.executable, *words)


def relative_path(path: Path) -> Path:
    """Return a path relative to the current folder."""
    try:
        return Path(os.path.relpath(path))
    except ValueError:  # on another drive of Windows
        return path


class StopSignal:
    """Context manager in which a signal that asks the program to stop only sets `number`.

    A second Ctrl-C or SIGTERM ends the process at once. Signals: Ctrl-C, SIGTERM, SIGHUP (a lost connection, unless
    nohup ignores it), SIGUSR1 and SIGXCPU (warnings of batch systems), as far as the system has them.

    A thread receives the signals: a Python handler would run only after TensorFlow has finished the current step.
    TensorFlow's PreemptionCheckpointHandler ignores Ctrl-C and needs its own checkpoint manager.
    """

    FORCED = (signal.SIGINT, signal.SIGTERM)
    SIGNALS = (*FORCED, *(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGXCPU") if hasattr(signal, name)))

    def __init__(self):
        self.number: int | None = None
        self.handlers = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():  # Python delivers signals to the main thread only
            ignored = {number for number in self.SIGNALS if signal.getsignal(number) == signal.SIG_IGN}
            numbers = [number for number in self.SIGNALS if number in self.FORCED or number not in ignored]
            self.handlers = {number: signal.signal(number, lambda *_: None) for number in numbers}
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
            number = received[0]
            if number not in self.handlers:
                continue
            if {self.number, number} <= set(self.FORCED):  # not SIGXCPU, which is sent every second
                os._exit(128 + number)
            if self.number is None:
                with contextlib.suppress(OSError):  # a closed terminal
                    print("\nFinishing this batch, then saving ...", file=sys.stderr, flush=True)
            self.number = number
