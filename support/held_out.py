"""Held-out faces, and that they stay so: remembered by content, no copy trained on; open it to trust a measurement."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.batches import split
from support.config import read_config
from support.dataset import Face
from support.errors import InputError, printable

FILES_A_TASK = 500  # a future for each of 163,446 files would cost more than reading them
Record = dict[str, str]  # file name by SHA-256, of each held-out face: what config.json keeps of them as "held_out"


def split_off(
    faces: Sequence[Face], seed: int, save_dir: str | Path, say: Callable[[str], None] = print
) -> tuple[list[Face], list[Face], Record]:
    """Returns (training, held out, the record of these) for the run in save_dir.

    That is `split`, but without those training faces that are exact copies of held-out ones; `say` tells of copies. A
    run that began before there was a record goes on with all the faces that it was trained on.
    """
    training, held_out = split(faces, seed)
    config = read_config(save_dir)
    if not config or "held_out" in config["training"]:
        copies = find_copies(faces)
        kept = _without_copies(training, held_out, copies)
        if copies:
            first, second = _pair(copies)
            say(
                f"{len(copies) - len(set(copies.values())):,} pictures are exact copies of others, such as "
                f"{printable(second)} of {printable(first)}; {len(training) - len(kept):,} of them, copies of held-out "
                "faces, are not trained on"
            )
        training = kept
    names = [Path(face.path).name for face in held_out]
    digests = _digests([face.path for face in held_out])
    return training, held_out, {digest: name for digest, name in zip(digests, names, strict=True) if digest}


def held_out_of(config: dict, faces: Sequence[Face], seed: int, say: Callable[[str], None] = print) -> list[Face]:
    """Returns those faces that were held out of a training, by what its config.json keeps, in the order of the record.

    Where it keeps no record, they are what the seed says, but only of as many faces as it was made with, and without
    those of which a copy was trained on. Raises InputError where that cannot be known, and where none is left.
    """
    training = config.get("training", {})
    if "held_out" in training:
        record = training["held_out"]
        names = set(record.values())
        found = _by_content([face for face in faces if Path(face.path).name in names])
        if not record.keys() <= found.keys():  # some may have been given other names
            found = _by_content(faces) | found
        held_out = [found[digest] for digest in record if digest in found]
        if missing := [record[digest] for digest in record if digest not in found]:
            lost = f"{len(missing):,} of the {len(record):,} faces held out of the training are not in this data set"
            if not held_out:
                raise InputError(f"{lost}: --evaluate DIR measures on a folder of other faces")
            say(f"{lost}, such as {printable(missing[0])}: measured on the others")
        return held_out
    if training.get("faces") != len(faces):
        raise InputError(
            "which faces were held out of the training is not known: the run kept no record of them, and was made with "
            f"{training.get('faces', 'other')} faces, not these {len(faces):,}; --evaluate DIR measures on a folder"
        )
    trained, held_out = split(faces, seed)
    apart = _without_copies(held_out, trained, find_copies(faces))
    if not apart:
        raise InputError("the training saw copies of all its held-out faces: --evaluate DIR measures on a folder")
    say(f"The run kept no record of its held-out faces: taken by its seed, {len(apart):,} of which it saw no copy")
    return apart


def parts_of(config: dict, faces: Sequence[Face], seed: int) -> tuple[list[Face], list[Face]]:
    """Returns (the others, those held out of a training): see `held_out_of`."""
    held_out = held_out_of(config, faces, seed)
    apart = set(held_out)
    return [face for face in faces if face not in apart], held_out


def seen_before(config: dict, faces: Sequence[Face], seed: int) -> int:
    """Returns how many of the faces that a run of this seed holds out were not held out of the training of `config`."""
    record = config.get("training", {}).get("held_out", {})
    return sum(digest not in record for digest in _digests([face.path for face in split(faces, seed)[1]]))


def warn_of_seen(shipped: dict, dataset: str, faces: Sequence[Face], seed: int) -> None:
    """Say where the shipped model, which a run starts from, may know faces that the run holds out."""
    seen = seen_before(shipped, faces, seed) if dataset == shipped["training"]["dataset"] else 0
    if seen:
        print(
            f"The shipped model may have been trained on {seen:,} of the faces that this run holds out: what is "
            f"measured on them says too much (with --seed {shipped['model']['seed']}, its own, on fewer of them)"
        )


def find_copies(faces: Sequence[Face]) -> dict[str, str]:
    """Returns the SHA-256, by path, of each picture of which the set holds another of the very same bytes.

    Only files of equal size are read.
    """
    by_size = defaultdict(list)
    for face in faces:
        try:
            by_size[Path(face.path).stat().st_size].append(face.path)
        except OSError:  # gone since it was listed: whoever reads it names it
            continue
    paths = [path for group in by_size.values() if len(group) > 1 for path in group]
    digests = _digests(paths)
    times = Counter(digests)
    return {path: digest for path, digest in zip(paths, digests, strict=True) if digest and times[digest] > 1}


def _without_copies(faces: Sequence[Face], others: Sequence[Face], copies: dict[str, str]) -> list[Face]:
    """Returns those faces of which the others hold no copy."""
    theirs = {copies[face.path] for face in others if face.path in copies}
    return [face for face in faces if copies.get(face.path) not in theirs]


def _pair(copies: dict[str, str]) -> tuple[str, str]:
    """Returns the paths of two pictures that are equal; they are the same path where it was given twice."""
    digest = next(iter(copies.values()))
    paths = [path for path, other in copies.items() if other == digest]
    return paths[0], paths[-1]


def _by_content(faces: Sequence[Face]) -> dict[str, Face]:
    digests = _digests([face.path for face in faces])
    return {digest: face for digest, face in zip(digests, faces, strict=True) if digest}


def _digests(paths: Sequence[str]) -> list[str]:
    """Returns the SHA-256 of each file's content, "" where it cannot be read."""
    parts = [paths[i : i + FILES_A_TASK] for i in range(0, len(paths), FILES_A_TASK)]
    with ThreadPoolExecutor() as readers:
        return [digest for part in readers.map(lambda part: [_digest(path) for path in part], parts) for digest in part]


def _digest(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return ""
