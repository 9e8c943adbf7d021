"""Begin a run at twice the width of another: `python -m demo.widen save/half save/full`, then demo.train in save/full.

Every channel of E and G is there twice, and what it sends to the next layer is shared out at random between the two.
So the wider networks compute what the narrower ones do, and training makes the two different: Net2WiderNet (Chen,
Goodfellow and Shlens, Net2Net, ICLR 2016). The discriminators and the label classifier begin anew, and so they learn
for an epoch before E and G do: against networks that know nothing yet E and G lose in a few hundred steps much of what
they had learned of ages and genders. Then all learn at a quarter of the rate.

The new folder gets config.json, with the flags that the training remembers, the same held-out faces and how long the
narrower networks were trained, and a checkpoint that the training goes on from. The narrower run may also be a packed
model, a folder like demo/model.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

import main
from support.dataset import Face, find_dataset, list_faces
from support.errors import InputError
from support.files import read_config, write_json
from support.flags import to_path
from support.held_out import split_off
from support.terminal import make_streams_safe, progress
from support.weights import by_name

with main.silence():
    import tensorflow as tf
    from keras import layers

    from demo.make import load_averaged, packed_config
    from FaceAging import C_Z_RATE, FaceAging

BATCH = 100  # the paper's, which goes with its full width
# of the narrower run's learning rate: at all of it the networks leave the mean over epochs that they begin from
RATE = 0.25
WIDTHS = ("num_encoder_channels", "num_gen_channels")


def widened(model: FaceAging, seed: int = 2017, **changes) -> FaceAging:
    """Returns a model of twice the channels that computes what this one computes; changes are of its other settings."""
    wide = FaceAging(**{**model.config, **{width: 2 * getattr(model, width) for width in WIDTHS}, **changes})
    random = np.random.default_rng(seed)
    for network, wide_network in ((model.E, wide.E), (model.G, wide.G)):
        for layer, wide_layer in zip(network.layers, wide_network.layers, strict=True):
            for variable, wide_variable in zip(layer.weights, wide_layer.weights, strict=True):
                wide_variable.assign(twice(variable.numpy(), wide_variable.shape, input_axis(layer), random))
    return wide


def input_axis(layer: layers.Layer) -> int:
    """Returns the axis of a layer's kernel that runs over its input channels."""
    return -1 if isinstance(layer, layers.Conv2DTranspose) else -2


def twice(values: np.ndarray, shape: tuple[int, ...], input_axis: int, random: np.random.Generator) -> np.ndarray:
    """Returns a kernel or bias repeated to the shape, its input channels in pairs that share each weight at random.

    The two of a pair lie side by side, also in the flattened maps in front of a fully connected layer.
    """
    axes = [axis for axis in range(values.ndim) if shape[axis] != values.shape[axis]]
    for axis in axes:
        values = values.repeat(2, axis)
    axis = values.ndim + input_axis
    if values.ndim == 1 or axis not in axes:  # a bias has no inputs
        return values
    first = random.uniform(size=[size // 2 if i == axis else size for i, size in enumerate(shape)])
    return values * np.stack([first, 1 - first], axis + 1).reshape(shape)


def train_discriminators(model: FaceAging, faces: list[Face], training: dict) -> None:
    """Train D_z, D_img and C_z for an epoch, against E and G as they are."""
    weights = {name: tf.constant(weight, tf.float32) for name, weight in by_name(training["loss_weights"]).items()}
    if "E_label_loss" in weights:
        model.add_label_classifier()
    rates = {"EG": 0.0, "C_z": C_Z_RATE * training["learning_rate"]}
    for name, optimizer in model.optimizers.items():
        optimizer.learning_rate.assign(rates.get(name, training["learning_rate"]))
    batches = model._batches(faces, training["balance"], training.get("flip", False), cache=False)
    for batch in progress(batches.of(0), "Training the discriminators", len(batches), unit="batch"):
        model.train_step(*batch, weights)


def begin(narrow: Path, folder: Path) -> None:
    """Write a run's networks, widened, into a folder to go on from. Raises InputError where that holds a run."""
    if read_config(folder):
        raise InputError(f"{folder} holds a run: give another folder")
    networks = load_averaged(narrow)
    config = packed_config(narrow)
    model, training = config["model"], config["training"]
    wide = widened(networks, precision=model["precision"], size_batch=BATCH, save_dir=folder)
    faces = list_faces(find_dataset(training["dataset"]), training["unknown_gender"]).faces
    train_discriminators(wide, split_off(faces, wide.seed, narrow)[0], training)
    done = {name: training.pop(name) for name in ("steps", "epochs", "averaged_epochs") if name in training}
    done |= {"size_batch": model["size_batch"], "learning_rate": training["learning_rate"]}
    training |= {"widened_from": done, "learning_rate": RATE * training["learning_rate"]}
    write_json(folder / "config.json", config | {"model": wide.config})
    wide.save_checkpoint()


def widen(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="demo.widen", description=__doc__.split("\n", 1)[0])
    parser.add_argument("narrow", type=to_path, help="the folder of the run, or of the packed model, to begin from")
    parser.add_argument("folder", type=to_path, help="the folder of the new run")
    arguments = parser.parse_args(argv)
    try:
        begin(arguments.narrow, arguments.folder)
    except (InputError, OSError) as error:
        print(f"demo.widen: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    make_streams_safe()
    sys.exit(widen(sys.argv[1:]))
