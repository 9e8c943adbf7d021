"""A data set of photos made into one of aligned faces, once; open it where --align meets --dataset."""

import csv
import shutil
from collections import Counter
from pathlib import Path

from PIL import Image

from support import finder  # noqa: F401  (with TensorFlow, as long as main keeps its log quiet)
from support.alignment import find_faces
from support.dataset import COLUMNS, TABLE, Listing, first_names
from support.errors import InputError
from support.files import atomic_write
from support.images import BadPicture, read_image
from support.labels import GENDER_NAMES
from support.terminal import progress


def align_dataset(listing: Listing, photos: Path, aligned: Path) -> None:
    """Find the face in every photo of a data set, and write the faces and their labels as the data set `aligned`.

    It appears whole or not at all. A face keeps its photo's name, with .png behind it, and its labels in labels.csv. A
    photo without a face is left out, and one with several, as its labels do not say whose they are; how many, why, and
    some names are printed. Raises InputError where no face is left, or mtcnn is not there.
    """
    partial = aligned.with_name(f".{aligned.name}.aligning")
    shutil.rmtree(partial, ignore_errors=True)  # what a run that was killed left
    rows, left_out = [], dict(listing.skipped)
    try:
        for face in progress(listing.faces, f"Aligning {photos}", unit="photo"):
            name = Path(face.path).relative_to(photos).as_posix()
            try:
                found = find_faces(read_image(face.path)).faces
            except BadPicture as error:
                left_out[name] = error.reason
                continue
            if len(found) != 1:
                left_out[name] = "several faces" if found else "no face found"
                continue
            with atomic_write(partial / f"{name}.png") as path:
                Image.fromarray(found[0].image).save(path)
            rows.append((f"{name}.png", face.age, GENDER_NAMES.get(face.gender, "")))
        if not rows:
            raise InputError(f"no photo in {photos} shows one face to train on{first_names(list(left_out))}")
        with (partial / TABLE).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
        partial.rename(aligned)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{len(rows):,} faces of {len(rows) + len(left_out):,} photos aligned in {aligned}")
    for reason, count in Counter(left_out.values()).most_common():
        names = [name for name, why in left_out.items() if why == reason]
        print(f"  {count:,} left out, {reason}{first_names(names)}")
