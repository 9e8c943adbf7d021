"""Files written whole or not at all, a folder locked for one process, config.json; open it where a file goes wrong."""

import json
import math
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
from support.weights import COUNTS

PARTIAL = re.compile(r"\.partial-[0-9a-f]{16}(\.\w+)?")  # what `write_whole` calls a file until it is whole
NAME_BYTES = 200  # the part of a file's name that is a photo's own: file systems take 255 bytes in all
LARGEST_SEED = 2**32 - 1  # NumPy's generator takes no larger one
DEMO = Path(__file__).parents[1] / "demo"
# the folders of the models that ship, by the --loss_weights that each was trained with; the first is the best one
SHIPPED_MODELS = {"aging": DEMO / "model", "2017": DEMO / "model_2017"}
BEST_MODEL = next(iter(SHIPPED_MODELS))
PACKED = "weights.npz"  # the file that holds the weights of a packed model


def _whole(low: int = 1, high: int = 10**9) -> tuple:
    return f"a whole number within {low}-{high}", lambda value: type(value) is int and low <= value <= high


def _numbers(value) -> bool:
    return type(value) is list and all(type(each) in (int, float) and 0 <= each < math.inf for each in value)


# What may stand in config.json, which people edit: by name, what a value is and whether one is.
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
BOOL = ("true or false", lambda value: type(value) is bool)
MODEL_KINDS = {
    "size_image": _whole(),
    "size_kernel": _whole(),
    "size_batch": _whole(),
    "num_input_channels": _whole(),
    "num_encoder_channels": _whole(),
    "num_z_channels": _whole(),
    "num_categories": _whole(),
    "num_gen_channels": _whole(),
    "tile_ratio": ("a number above 0", lambda value: type(value) in (int, float) and 0 < value < math.inf),
    "age_bounds": ("a list of ages", lambda value: _numbers(value) and all(type(each) is int for each in value)),
    "precision": (f"one of {', '.join(PRECISIONS)}", lambda value: value in PRECISIONS),
    "seed": _whole(0, LARGEST_SEED),
}
# those without which a run cannot go on
REMEMBERED = tuple(name for name in MODEL_KINDS if name not in ("size_kernel", "num_categories", "tile_ratio"))
TRAINING_KINDS = {
    "dataset": ("a name", lambda value: type(value) is str),
    "learning_rate": ("a number between 0 and 1", lambda value: type(value) is float and 0 < value < 1),
    "loss_weights": (
        f"{' or '.join(map(str, COUNTS))} numbers",
        lambda value: _numbers(value) and len(value) in COUNTS,
    ),
    "balance": BOOL,
    "flip": BOOL,
    "unknown_gender": BOOL,
    "faces": _whole(),
}


@contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
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
    with write_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def remove_partial(folder: Path, *subfolders: str) -> None:
    """Remove what a process that was killed within `write_whole` left in the folder and in these below it."""
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


def read_config(save_dir: str | Path) -> dict:
    """Returns what the run in save_dir remembers, or {} where there is none.

    Its parts are {"model": the constructor's arguments, "training": the flags of training, "versions"}. Raises
    InputError where config.json is not what a run writes, naming the first value that is wrong.
    """
    path = Path(save_dir) / "config.json"
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        config = {name: dict(config[name]) for name in ("model", "training", "versions")}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is not what a run writes: mend it, or give another --savedir") from error
    for part, kinds in (("model", MODEL_KINDS), ("training", TRAINING_KINDS)):
        wrong = [f"no {name}" for name in REMEMBERED if part == "model" and name not in config[part]]
        for name, value in config[part].items():
            if name in kinds and not kinds[name][1](value):
                wrong.append(f"{name} {json.dumps(value)}, which is not {kinds[name][0]}")
            elif name not in kinds and part == "model":  # under training there may be notes of any kind
                wrong.append(f"{name}, which no run writes")
        if wrong:
            raise InputError(f"{path} has under {part} {wrong[0]}: mend it, or give another --savedir")
    return config


def shipped_model(name: str) -> Path:
    """Returns the folder of the model that ships under this name. Raises InputError where there is none, or half."""
    if name not in SHIPPED_MODELS:
        raise InputError(f"no model {name} ships: take {' or '.join(SHIPPED_MODELS)}")
    folder = SHIPPED_MODELS[name]
    for part in ("config.json", PACKED):
        if not (folder / part).is_file():
            raise InputError(f"{folder} has no {part}: get it again from where the program came from")
    return folder


def write_config(save_dir: Path, model: dict, training: dict) -> None:
    """Keep how a run was made, once, when it begins: in the parts that `read_config` returns."""
    if read_config(save_dir):
        return
    import keras  # both are there by now, but this room can be opened without them
    import tensorflow as tf

    versions = {"python": platform.python_version(), "tensorflow": tf.__version__, "keras": keras.__version__}
    write_json(save_dir / "config.json", {"model": model, "training": training, "versions": versions})
