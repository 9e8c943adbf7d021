"""Train a model for packaging: `python -m tools.train_model --savedir save/run`.

Takes main.py's flags; the defaults are half the channels. Writes after each epoch, beside the run:

- `random/NN.png`: ten random faces (columns; five male, five female) at every age bin (rows, young to old), at the
  same quantiles of the distribution of z after every epoch;
- `epochs/NN.npz`: the weights of E and G of the last epochs, of which tools.package_model takes the mean.
"""

from pathlib import Path

import main
from support.batches import epoch_name, train_val_split
from support.config import read_config
from support.figures import grid
from support.flags import parse_flags
from support.images import save_image
from support.labels import FEMALE, MALE
from tools import command, run

with main.silence():
    from FaceAging import FaceAging
    from support.pretrained import quantize_weights

DEFAULT_FLAGS = ["--num_encoder_channels=32", "--num_gen_channels=512"]
# The last epochs, whose weights are averaged: with a constant learning rate, 3 to 6 give about the same L1 on the
# held-out faces; where it decays, the last weights are used.
KEPT_EPOCHS = 4
RANDOM_GENDERS, RANDOM_SEED = [MALE] * 5 + [FEMALE] * 5, 2  # of the random faces


def kept_epochs(folder: Path) -> list[Path]:
    """Return the weight files of a run's last epochs, earliest first."""
    return sorted(folder.glob("epochs/[0-9]*.npz"), key=lambda path: int(path.stem))


def keep_epoch(model: FaceAging, training: list) -> None:
    """Write the weights and the random faces of the last epoch."""
    name = epoch_name(int(model.epoch) - 1)
    quantize_weights(model.save_dir / "epochs" / f"{name}.npz", [model.E, model.G], bits=16)
    constant = read_config(model.save_dir)["training"]["schedule"] == "constant"
    for path in kept_epochs(model.save_dir)[: -KEPT_EPOCHS if constant else -1]:
        path.unlink()
    model.fit_z(training[: main.FITTED_FACES])
    aged = model.at_every_age(model.sample(len(RANDOM_GENDERS), RANDOM_SEED), RANDOM_GENDERS)
    save_image(model.save_dir / "random" / f"{name}.png", grid(aged.reshape(-1, *aged.shape[2:]), len(RANDOM_GENDERS)))


@command
def train(argv: list[str]) -> int:
    flags, explicit = parse_flags(argv)
    if not read_config(flags.savedir):  # a resumed run has its own
        flags, explicit = parse_flags([*DEFAULT_FLAGS, *argv])
    listing = main.find_faces(flags, explicit)
    model = main.build(flags, listing)
    training = train_val_split(listing.faces, model.seed, read_config(model.save_dir), lambda _: None).training
    stop_signal = main.fit(model, listing.faces, flags, on_epoch_end=lambda model: keep_epoch(model, training))
    return 128 + stop_signal if stop_signal else 0


if __name__ == "__main__":
    run(train)
