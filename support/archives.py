"""Packed data sets, unpacked whole or not at all; open it to take another kind of archive."""

import gzip
import shutil
import stat
import tarfile
import zipfile
import zlib
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from support.errors import InputError, printable

SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")
READ_AT_ONCE = 1 << 20  # bytes
TAR_END = 1024  # bytes, all of them 0, at the end of every tar


def archive_of(name: str, folder: Path) -> Path | None:
    """Returns the archive in which a data set of this name is still packed in the folder, or None."""
    return next((path for suffix in SUFFIXES if (path := folder / (name + suffix)).is_file()), None)


def archives_in(folder: Path) -> dict[str, str]:
    """Returns the archives in a folder, which may be absent: by file name the name of the data set in it."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return {name: name.removesuffix(suffix) for name in names for suffix in SUFFIXES if name.endswith(suffix)}


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the archive, or the one folder it holds, as `folder`: whole or, with an InputError, not at all."""
    partial = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(partial, ignore_errors=True)  # a run that was killed may have left one
    try:
        (_unpack_zip if archive.suffix == ".zip" else _unpack_tar)(archive, partial)
        partial.mkdir(exist_ok=True)  # of an empty archive
        held = [path for path in partial.iterdir() if path.name != "__MACOSX"]  # macOS adds it to what it packs
        if folder.exists():
            folder.rmdir()
        (held[0] if len(held) == 1 and held[0].is_dir() else partial).rename(folder)
    except (OSError, EOFError, ValueError, OverflowError, RuntimeError, zlib.error) as error:
        raise InputError(f"{archive} cannot be unpacked: {error}") from error
    except (tarfile.TarError, zipfile.BadZipFile) as error:
        raise InputError(f"{archive} cannot be unpacked: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unpack_tar(archive: Path, folder: Path) -> None:
    with ExitStack() as stack:
        file = stack.enter_context(archive.open("rb"))
        size = archive.stat().st_size
        packed = archive.suffix != ".tar"
        if not packed:  # what is compressed has a checksum instead
            file.seek(max(0, size - TAR_END))
            if file.read() != bytes(TAR_END):
                raise ValueError("its end is missing")
            file.seek(0)
        bar = tqdm.wrapattr(file, "read", size, desc=f"Unpacking {archive}", disable=None)
        stream = stack.enter_context(bar)
        if packed:
            stream = stack.enter_context(gzip.open(stream))
        with tarfile.open(fileobj=stream, mode="r|") as members:
            for member in members:
                if not member.isfile() and not member.isdir():
                    raise ValueError(f"it holds a link or a device, {printable(member.name)}")
                members.extract(member, folder, filter="data")  # refuses what would leave the folder
        while stream.read(READ_AT_ONCE):  # up to the checksum: tarfile takes an archive cut at a header for whole
            pass


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as members:
        for member in tqdm(members.infolist(), f"Unpacking {archive}", delay=2, disable=None):
            kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where it was packed on Windows
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ValueError(f"it holds a link or a device, {printable(member.filename)}")
            if ".." in PurePosixPath(member.filename.replace("\\", "/")).parts:
                raise ValueError(f"{printable(member.filename)} would leave the folder")
            if member.flag_bits & 1:
                raise ValueError("it is locked with a password: unpack it by hand")
            members.extract(member, folder)  # raises BadZipFile for a wrong checksum
