"""Train the included model, keeping what its pictures need: `python -m tools.train_model --savedir save/run`.

Takes main.py's flags, with half the channels and batches of 64 where they are not given; goes on where it was stopped.
After each epoch, beside what every run writes:

- `random/NN.png`: ten people who do not exist (columns; five as male, five as female) at every age (rows, young to
  old). Each is the same place of the distribution of z after every epoch;
- `epochs/NN.npz`: the weights of E and G after each of the last epochs, of which tools.package_model takes the mean.
"""

import sys
from pathlib import Path

import numpy as np

import main
from support.batches import epoch_name, train_val_split
from support.config import read_config
from support.errors import InputError
from support.flags import parse_flags
from support.images import save_image
from support.labels import FEMALE, MALE
from support.pictures import grid
from support.terminal import make_streams_safe

with main.silence():
    from FaceAging import FaceAging
    from support.pretrained import quantize_weights

HALF = ["--num_encoder_channels=32", "--num_gen_channels=512", "--batch_size=64"]
KEPT_EPOCHS = 4  # epochs, the last ones, whose weights are averaged: by L1 on the held-out faces 3 to 6 do alike
RANDOM_FACES = [MALE] * 5 + [FEMALE] * 5


def random_faces(model: FaceAging, genders: list[int] = RANDOM_FACES, seed: int = 2) -> np.ndarray:
    """Returns people who do not exist, of the given genders, at every bin's centre: uint8 [bins, N, S, S, C]."""
    z = model.sample(len(genders), seed)
    bins = len(model.bins)
    aged = model.generate(np.tile(z, (bins, 1)), np.repeat(model.bins.centres, len(z)), np.tile(genders, bins))
    return aged.reshape(bins, len(z), *aged.shape[1:])


def kept_epochs(run: Path) -> list[Path]:
    """Returns the files that hold the weights of the last epochs of a run, earliest first."""
    return sorted(run.glob("epochs/[0-9]*.npz"), key=lambda path: int(path.stem))


def keep_epoch(model: FaceAging, training: list) -> None:
    """Keep the weights of the epoch just done and draw its sheet, unless a run before this one has."""
    name = epoch_name(int(model.epoch) - 1)
    sheet = model.save_dir / "random" / f"{name}.png"
    if sheet.exists():
        return
    quantize_weights(model.save_dir / "epochs" / f"{name}.npz", [model.E, model.G], bits=16)
    for path in kept_epochs(model.save_dir)[:-KEPT_EPOCHS]:
        path.unlink()
    model.fit_z(training[: main.FITTED_FACES])
    faces = random_faces(model)
    save_image(sheet, grid(faces.reshape(-1, *faces.shape[2:]), faces.shape[1]))


def train(argv: list[str]) -> int:
    flags, given = parse_flags(argv)
    try:
        if not read_config(flags.savedir):  # a run that goes on remembers its own
            flags, given = parse_flags([*HALF, *argv])
        listing = main.find_faces(flags, given)
        model, faces = main.build(flags, listing), listing.faces
        training = train_val_split(faces, model.seed, read_config(model.save_dir), lambda _: None).training
        model.load_checkpoint()
        while True:
            if model.batch == 0 and model.epoch > 1:
                keep_epoch(model, training)
            if model.epoch > flags.epoch:
                return 0
            # epoch by epoch, each by going on from the checkpoint of the one before
            if stop_signal := main.train_until(int(model.epoch), model, faces, flags):
                return 128 + stop_signal
    except (InputError, FloatingPointError) as error:
        print(f"tools.train_model: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    make_streams_safe()
    sys.exit(train(sys.argv[1:]))
