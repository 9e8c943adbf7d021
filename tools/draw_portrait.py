"""Draw demo/grace_hopper.jpg and .gif: a photo, aged in place by the included model. `python -m tools.draw_portrait`

The photo is Grace Hopper's official portrait, United States Navy, 1984, public domain; matplotlib contains it.
"""

import tempfile
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from FaceAging import FaceAging
from support.figures import save_animation, sheet
from support.terminal import PROJECT

PHOTO = Path(matplotlib.get_data_path(), "sample_data/grace_hopper.jpg")
OWN_AGE = 77
AGES = (5, 10, 20, 35, 50, 65)
HEAD = (95, 10, 415, 385)  # the part of the photo that is drawn at every age: left, top, right, bottom
WIDTH, FILM_WIDTH = 256, 384  # pixels
FILM_BYTES = 2_000_000


def main() -> None:
    photo = Image.open(PHOTO).convert("RGB")
    with tempfile.TemporaryDirectory() as folder:
        model = FaceAging.load(save_dir=folder)
    images = [np.asarray(photo), *model.age_photo(PHOTO, AGES, "female", own_ages=[OWN_AGE], own_genders=["female"])]
    left, top, right, bottom = HEAD
    row = np.stack([resized(image[top:bottom, left:right], WIDTH) for image in images])
    captions = ["photo", *(f"{age} years" for age in AGES)]
    drawn = sheet(row[np.newaxis], [""], captions, captions_below=True)
    Image.fromarray(drawn).save(PROJECT / "demo/grace_hopper.jpg", quality=90)

    older = np.linspace(3, OWN_AGE, 24)
    film = model.age_photo(PHOTO, older, "female", own_ages=[OWN_AGE], own_genders=["female"])
    frames = [resized(image, FILM_WIDTH) for image in [*film, *film[-2:0:-1]]]
    save_animation(PROJECT / "demo/grace_hopper.gif", frames, 0.1, FILM_BYTES)


def resized(image: np.ndarray, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, round(width * image.shape[0] / image.shape[1]))))


if __name__ == "__main__":
    main()
