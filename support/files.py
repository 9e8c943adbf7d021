"""Atomic file writes, removal of temporary files, and a lock on a run's folder."""

import contextlib
import errno
import itertools
import json
import os
import platform
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from support import InputError

PARTIAL = re.compile(r"\.partial-[0-9a-f]{16}(\.\w+)?")  # names of `atomic_write`'s temporary files
NAME_BYTES = 200  # the part of an output's name that comes from the photo; file systems allow 255 bytes in all
REPLACE_SECONDS = 2  # for how long a file that another program keeps open, such as a virus scanner, is retried
# what fsync of a folder raises on file systems without it: VirtualBox, SMB, some FUSE
NO_FOLDER_SYNC = (errno.EIO, errno.EACCES, errno.EINVAL, errno.ENOTTY, errno.EOPNOTSUPP)


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; after the block, the file written there replaces `path`.

    Parent folders are created. The temporary name has the suffix of `path`, from which writers infer the format. After
    an error, KeyboardInterrupt included, the temporary file is removed and an earlier `path` is unchanged. Raises
    OSError if the folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".partial-{secrets.token_hex(8)}{path.suffix}")
    try:
        yield temporary
        # without it, a power loss just after the replacement can leave an empty file under the final name
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        _replace(temporary, path)
    except OSError as error:
        if error.errno:  # name the final file; the error of a full disk names none
            error.filename = str(path)
        raise
    finally:
        remove(temporary)


def _replace(temporary: Path, path: Path) -> None:
    deadline = time.monotonic() + REPLACE_SECONDS
    while True:
        try:
            temporary.replace(path)
            return
        except PermissionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def remove(path: Path) -> None:
    """Remove a temporary file; one that another program keeps open on Windows is left for the next run."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        path.unlink()


def remove_temporaries(folder: Path, *subfolders: str) -> None:
    """Remove the temporary files that a killed `atomic_write` left in the folder and in these subfolders."""
    for part in (folder, *(folder / name for name in subfolders)):
        for path in part.glob(".partial-*"):
            if PARTIAL.fullmatch(path.name) and path.is_file():
                remove(path)


def shortened(name: str, most: int = NAME_BYTES) -> str:
    """Return the longest beginning of the name that fits into `most` bytes."""
    while len(os.fsencode(name)) > most:
        name = name[:-1]
    return name


def output_name(path: str | Path) -> str:
    """Return the prefix of the output files of a photo: its own name, shortened if too long."""
    return shortened(Path(path).stem)


def unique_name(name: str, names: set[str]) -> str:
    """Return the name, numbered from _2 where `names` has it, and add it there; case is ignored."""
    numbered = (f"{name}_{number}" for number in itertools.count(2))
    free = next(option for option in itertools.chain([name], numbered) if option.casefold() not in names)
    names.add(free.casefold())
    return free


def write_json(path: str | Path, content: dict) -> None:
    """Write a dict as indented JSON."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def sync_folder(folder: Path) -> None:
    """Synchronise a folder's entries to the disk, if the file system supports it."""
    if os.name != "posix":  # Windows cannot open a folder
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise


def writable(folder: Path) -> bool:
    """Return whether files can be created in the folder or, if it does not exist, in its nearest parent that does."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS)
    return True


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create the folder if necessary and lock it for this process; the lock ends with the process at the latest.

    The file `lock` in it names the process. Raises InputError, with the other's host and process, if another process
    has the lock, or if `folder` is a file. Prints a warning if the file system has no locks.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{folder} is a file, not a folder: use another --savedir") from error
    path = folder / "lock"
    path.open("ab").close()  # raises PermissionError if the folder cannot be written
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(FileLock(path, timeout=0, fallback_to_soft=False))
        except Timeout as error:
            raise InputError(
                f"{folder} is in use by another training, {_read_holder(path) or 'an unknown process'}: "
                "wait for its end, or use another --savedir"
            ) from error
        except OSError as error:  # on some network file systems
            print(f"{folder} cannot be locked ({error.strerror}): start only one training in it", file=sys.stderr)
        # Windows allows no access to the first byte of a locked file: the description of the process begins after it
        with path.open("rb+") as file:
            file.seek(1)
            file.write(f"process {os.getpid()} on {platform.node()}\n".encode())
            file.truncate()
        yield


def _read_holder(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(1)
        return file.read().decode(errors="replace").strip()
