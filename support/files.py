"""Files written whole or not at all, a folder locked for one process."""

import json
import os
import platform
import re
import secrets
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from support.errors import InputError

PARTIAL = re.compile(r"\.partial-[0-9a-f]{16}(\.\w+)?")  # what `atomic_write` calls a file until it is whole
NAME_BYTES = 200  # the part of a file's name that is a photo's own: file systems take 255 bytes in all


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a temporary name beside `path` to write to; when the block ends, that file becomes `path`.

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
        if error.errno:  # the error shall name the file that a user knows; that of a full disk names none
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def shortened(name: str, most: int = NAME_BYTES) -> str:
    """Returns the name, or as much of its beginning as `most` bytes hold: a letter may be four."""
    while len(os.fsencode(name)) > most:
        name = name[:-1]
    return name


def write_json(path: str | Path, content: dict) -> None:
    """Write a dict as JSON that people can read."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def remove_temporaries(folder: Path, *subfolders: str) -> None:
    """Remove what a process that was killed within `atomic_write` left in the folder and in these below it."""
    for part in (folder, *(folder / name for name in subfolders)):
        for path in part.glob(".partial-*"):
            if PARTIAL.fullmatch(path.name) and path.is_file():
                path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Have the names of a folder's files reach the disk itself."""
    if os.name == "posix":  # Windows cannot open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder, made if need be, for this process alone; the system lets go of it however the process ends.

    The file `lock` in it says which process holds it. Raises InputError, with the other's host and process, where
    another holds it, and where the folder's name is a file's. Prints a warning where the file system has no locks.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{folder} cannot be a folder, there is a file: give another --savedir") from error
    path = folder / "lock"
    path.open("ab").close()  # raises PermissionError where nothing may be written
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(path, timeout=0, fallback_to_soft=False))
        except Timeout as error:
            raise InputError(
                f"{folder} is being trained in by {_read_holder(path) or 'another process'}: "
                "wait for it, or give another --savedir"
            ) from error
        except OSError as error:  # on some network file systems
            print(f"{folder} cannot be locked ({error.strerror}): do not train twice into it", file=sys.stderr)
        _write_holder(path)
        yield


# Windows lets nobody read or write the first byte of a locked file: the holder's name begins after it.


def _write_holder(path: Path) -> None:
    with path.open("rb+") as file:
        file.seek(1)
        file.write(f"process {os.getpid()} on {platform.node()}\n".encode())
        file.truncate()


def _read_holder(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(1)
        return file.read().decode(errors="replace").strip()
