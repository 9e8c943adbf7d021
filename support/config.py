"""How a run was made: network sizes, loss weights, the schema of config.json, and the included models."""

import json
import math
import platform
from collections.abc import Sequence
from math import log2
from pathlib import Path

from support.errors import InputError
from support.files import write_json

LARGEST_SEED = 2**32 - 1  # NumPy's generator takes no larger one
DEMO = Path(__file__).parents[1] / "demo"

# Their names, in the order of --loss_weights. The first three are the paper's; the two others are not even computed
# where they weigh nothing.
WEIGHTED_LOSSES = ("G_img_loss", "E_z_loss", "tv_loss", "E_label_loss", "G_feature_loss")
OF_THE_PAPER = 3
COUNTS = (OF_THE_PAPER, len(WEIGHTED_LOSSES))  # how many weights may be given
PRESETS = {
    "released": (1e-4, 0.0, 0.0),
    "2017": (1e-4, 1e-4, 1e-4),
    "paper": (0.01, 0.01, 0.1),  # section 4.1 has 1 : 10 beside 100: divided by 100
    "aging": (3e-4, 1e-4, 1e-4, 2e-2, 0.3),  # measurements: docs/experiments.md
}


def by_name(weights: Sequence[float]) -> dict[str, float]:
    """Returns weights by the names of their losses: those of the paper's three, and of the others what is not 0."""
    named = zip(WEIGHTED_LOSSES, weights, strict=False)
    return {name: weight for name, weight in named if weight or name in WEIGHTED_LOSSES[:OF_THE_PAPER]}


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


def count_layers(size_image: int, size_kernel: int, num_gen_channels: int) -> int:
    """Returns how many layers of stride 2 E and G have.

    After those of E the feature map has 2 ** (size_kernel // 2) pixels a side, 4 at the defaults. Raises InputError
    where the sizes fit no network: the image must be a power of two, and each of G's layers has half the channels of
    the one before.
    """
    layers = int(log2(max(1, size_image))) - size_kernel // 2
    if size_image.bit_count() != 1 or layers < 1:
        smallest = 2 ** (size_kernel // 2 + 1)
        raise InputError(
            f"image size {size_image} is not a power of two that a kernel of {size_kernel} fits: take {smallest}, "
            f"{2 * smallest}, {4 * smallest} or a further one"
        )
    if num_gen_channels < 1 or num_gen_channels % 2 ** (layers + 1):
        raise InputError(
            f"{num_gen_channels} generator channels cannot be halved {layers + 1} times: "
            f"take a multiple of {2 ** (layers + 1)}"
        )
    return layers


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


def write_config(save_dir: Path, model: dict, training: dict) -> None:
    """Keep how a run was made, once, when it begins: in the parts that `read_config` returns."""
    if read_config(save_dir):
        return
    import keras  # both are there by now, but this room can be opened without them
    import tensorflow as tf

    versions = {"python": platform.python_version(), "tensorflow": tf.__version__, "keras": keras.__version__}
    write_json(save_dir / "config.json", {"model": model, "training": training, "versions": versions})
