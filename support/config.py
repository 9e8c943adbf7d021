"""Hyperparameters with their defaults, recipes, and config.json, which records how a run was made."""

import dataclasses
import json
import math
import platform
from argparse import Namespace
from collections.abc import Sequence
from math import log2
from pathlib import Path

from support import InputError
from support.files import write_json
from support.labels import AGE_BOUNDS
from support.losses import PRESETS, complete_weights
from support.pretrained import included_model

LARGEST_SEED = 2**32 - 1  # the largest that NumPy's generator accepts
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
EPOCHS, LEARNING_RATE = 50, 2e-4  # defaults of training
OPTIMIZERS = ("adam", "muon")  # of E and G
# --schedule: the factor of the learning rate at a position of training, from 0 to 1
SCHEDULES = {
    "constant": lambda position: 1.0,
    "cosine": lambda position: 0.02 + 0.98 * (1 + math.cos(math.pi * position)) / 2,
    "linear": lambda position: 1 - position,
}
# the choices of the flags of these names
CHOICES = {"optimizer": OPTIMIZERS, "schedule": tuple(SCHEDULES), "precision": PRECISIONS}
# --recipe: the training flags that each sets; explicit flags take precedence
RECIPES = {
    "paper": {
        "loss_weights": PRESETS["default"],
        "num_z_channels": 50,
        "batch_size": 100,
        "optimizer": "adam",
        "learning_rate": LEARNING_RATE,
        "schedule": "constant",
        "balance": False,
        "flip": False,
    },
    "aging": {  # of the included model of the same name
        "loss_weights": PRESETS["aging"],
        "num_z_channels": 200,
        "batch_size": 32,
        "optimizer": "muon",
        "learning_rate": 6e-4,
        "schedule": "cosine",
        "balance": True,
        "flip": True,
    },
}
# config.json records these flags: MODEL_FLAGS under "model", by the names of Hyperparameters, TRAINING_FLAGS under
# "training"
SIZE_FLAGS = {
    "image_size": "size_image",
    "channels": "num_input_channels",
    "num_encoder_channels": "num_encoder_channels",
    "num_z_channels": "num_z_channels",
    "num_gen_channels": "num_gen_channels",
    "age_bounds": "age_bounds",
}
MODEL_FLAGS = {**SIZE_FLAGS, "batch_size": "size_batch", "precision": "precision", "seed": "seed"}
TRAINING_FLAGS = (
    "dataset",
    "optimizer",
    "learning_rate",
    "schedule",
    "loss_weights",
    "balance",
    "flip",
    "unknown_gender",
)


@dataclasses.dataclass(eq=False)
class Hyperparameters:
    """The hyperparameters of a model, as config.json records them; the defaults are the reference program's."""

    size_image: int = 128  # pixels a side, a power of two
    size_kernel: int = 5  # width of the convolutions in pixels
    size_batch: int = 100  # faces, on all devices together
    num_input_channels: int = 3  # 1 is grey, 3 is colour
    num_encoder_channels: int = 64  # of the encoder's first layer
    num_z_channels: int = 50  # length of the latent code
    num_categories: int = 10  # number of age bins
    num_gen_channels: int = 1024  # of the generator's widest layer
    tile_ratio: float = 1.0  # length of the tiled labels relative to z
    age_bounds: Sequence[int] = AGE_BOUNDS  # the last age of each bin but the last
    precision: str = "float32"  # a Keras dtype policy, one of PRECISIONS
    seed: int = 2017

    @property
    def config(self) -> dict:
        """The hyperparameters by name, as config.json records them."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(Hyperparameters)}
        return values | {"age_bounds": list(self.age_bounds)}


def _integer_rule(low: int = 1, high: int = 10**9) -> tuple:
    return f"a whole number within {low}-{high}", lambda value: type(value) is int and low <= value <= high


def _is_number(value) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def _is_loss_weights(value) -> bool:
    try:
        return type(value) in (list, dict) and bool(complete_weights(value))
    except (InputError, TypeError):
        return False


# The schema of config.json, which people edit: by name, a description of the values and a check.
BOOLEAN_RULE = ("true or false", lambda value: type(value) is bool)
MODEL_SCHEMA = {
    **{field.name: _integer_rule() for field in dataclasses.fields(Hyperparameters)},
    "tile_ratio": ("a number above 0", lambda value: _is_number(value) and value > 0),
    "age_bounds": ("a list of ages", lambda value: type(value) is list and all(map(_integer_rule(0)[1], value))),
    "precision": (f"one of {', '.join(PRECISIONS)}", lambda value: value in PRECISIONS),
    "seed": _integer_rule(0, LARGEST_SEED),
}
# required in config.json; the others have had one value in every run
REQUIRED = tuple(name for name in MODEL_SCHEMA if name not in ("size_kernel", "num_categories", "tile_ratio"))
TRAINING_SCHEMA = {
    "dataset": ("a name", lambda value: type(value) is str),
    "optimizer": (f"one of {', '.join(OPTIMIZERS)}", lambda value: value in OPTIMIZERS),
    "schedule": (f"one of {', '.join(SCHEDULES)}", lambda value: value in SCHEDULES),
    "learning_rate": ("a number from 0 up", _is_number),
    "decay_rate": ("a number from 0 up", _is_number),
    "loss_weights": ("weights of losses by name, or a list of three or five", _is_loss_weights),
    "balance": BOOLEAN_RULE,
    "flip": BOOLEAN_RULE,
    "unknown_gender": BOOLEAN_RULE,
    "faces": _integer_rule(),
}
# training flags that older runs lack, with the value that they were made with
OLD_RUN_DEFAULTS = {"flip": False, "optimizer": "adam", "schedule": "constant"}


def count_layers(size_image: int, size_kernel: int, num_gen_channels: int) -> int:
    """Return the number of stride-2 layers of E and of G.

    After those of E the feature map has 2 ** (size_kernel // 2) pixels a side, 4 at the defaults. Raises InputError if
    the image size is not a power of two, or if G's channels cannot be halved from layer to layer.
    """
    layers = int(log2(max(1, size_image))) - size_kernel // 2
    if size_image.bit_count() != 1 or layers < 1:
        smallest = 2 ** (size_kernel // 2 + 1)
        raise InputError(
            f"image size {size_image} is not a power of two that fits a kernel of {size_kernel}: use {smallest}, "
            f"{2 * smallest}, {4 * smallest} or a larger one"
        )
    if num_gen_channels < 1 or num_gen_channels % 2 ** (layers + 1):
        raise InputError(
            f"{num_gen_channels} generator channels cannot be halved {layers + 1} times: "
            f"use a multiple of {2 ** (layers + 1)}"
        )
    return layers


def read_config(save_dir: str | Path) -> dict:
    """Return the contents of save_dir/config.json, or {} if there is none.

    Its parts are "model", the Hyperparameters; "training", the training flags and records; and "versions". Loss weights
    are returned by name, also where an older run listed them. Raises InputError for a file that no run writes, naming
    the first wrong value.
    """
    path = Path(save_dir) / "config.json"
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        config = {name: dict(config[name]) for name in ("model", "training", "versions")}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is not the config.json of a run: correct it, or use another --savedir") from error
    for part, schema in (("model", MODEL_SCHEMA), ("training", TRAINING_SCHEMA)):
        wrong = [f"no {name}" for name in REQUIRED if part == "model" and name not in config[part]]
        for name, value in config[part].items():
            if name in schema and not schema[name][1](value):
                wrong.append(f"{name} {json.dumps(value)}, which is not {schema[name][0]}")
            elif name not in schema and part == "model":  # "training" may contain further notes
                wrong.append(f"{name}, an unknown name")
        if wrong:
            raise InputError(f"{path} has under {part} {wrong[0]}: correct it, or use another --savedir")
    training = config["training"] = OLD_RUN_DEFAULTS | config["training"]
    if "loss_weights" in training:
        training["loss_weights"] = complete_weights(training["loss_weights"])
    return config


def records_training(config: dict | None) -> bool:
    """Return whether the contents of a config.json are of a training, and not of a model saved before any."""
    return bool(config and config["training"].keys() & {"dataset", "faces", "held_out"})


def write_config(save_dir: Path, model: dict, training: dict) -> None:
    """Write config.json when a run begins, in the parts that `read_config` returns, unless it records a training."""
    before = read_config(save_dir)
    if records_training(before) or (before and not training):
        return
    import keras  # slow to import, and imported already wherever a run begins
    import tensorflow as tf

    versions = {"python": platform.python_version(), "tensorflow": tf.__version__, "keras": keras.__version__}
    write_json(save_dir / "config.json", {"model": model, "training": training, "versions": versions})


def dataset_name(text: str) -> str:
    """Return the name of a data set, which may be written data/NAME/."""
    return Path(text).as_posix().removeprefix("data/")


def restore_flags(flags: Namespace, explicit: set[str], config: dict, folder: Path) -> None:
    """Set the flags that the config of the run in the folder records. Raises InputError if an explicit one differs."""
    if not config:
        return
    recorded = {flag: config["model"][name] for flag, name in MODEL_FLAGS.items()}
    recorded |= {flag: config["training"][flag] for flag in TRAINING_FLAGS if flag in config["training"]}
    if "dataset" in recorded:
        recorded["dataset"] = dataset_name(recorded["dataset"])
    for flag, value in recorded.items():
        value = tuple(value) if isinstance(value, list) else value
        if flag in explicit and getattr(flags, flag) not in (value, "auto"):
            raise InputError(
                f"--{flag} is {as_flag(getattr(flags, flag))}, but the run in {folder} was made with {as_flag(value)}: "
                "omit the flag, or use another --savedir"
            )
        setattr(flags, flag, value)


def as_flag(value) -> str:
    """Return a flag's value as it is written on the command line."""
    if isinstance(value, dict):
        return ",".join(f"{name}={number:g}" for name, number in value.items())
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def check_sizes(flags: Namespace) -> None:
    """Raise InputError, with the flags to use, if training cannot start from the included model."""
    included = read_config(included_model(flags.pretrained))["model"]
    sizes = {flag: (as_flag(included[name]), as_flag(getattr(flags, flag))) for flag, name in SIZE_FLAGS.items()}
    differing = {flag: pair for flag, pair in sizes.items() if pair[0] != pair[1]}
    if differing:
        differences = ", ".join(f"{flag} {needed}, not {value}" for flag, (needed, value) in differing.items())
        fix = " ".join(f"--{flag} {needed}" for flag, (needed, _) in differing.items())
        raise InputError(f"the included model has {differences}: use {fix}, or omit --use_init_model")
