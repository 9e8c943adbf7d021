"""What can be said on the command line, and what a run remembers of it; open it to add a flag."""

import argparse
import math
from pathlib import Path
from typing import NoReturn

from support.config import COUNTS, DEMO, LARGEST_SEED, OF_THE_PAPER, PRECISIONS, PRESETS, read_config
from support.errors import InputError, printable
from support.labels import AGE_BOUNDS, FEMALE, GENDER_NAMES, MALE, OLDEST, AgeBins
from support.pretrained import DEFAULT_MODEL, INCLUDED_MODELS, included_model
from support.terminal import python

GENDERS = {**{GENDER_NAMES[gender]: (gender,) for gender in (MALE, FEMALE)}, "both": (MALE, FEMALE)}
DEMO_FACES = DEMO / "faces"  # wherever the program is called from
AGING = {"testdir", "random", "gender", "age", "animate", "photo", "blend"}
MOST_RANDOM = 10_000  # people that --random draws at once
LARGEST = 10**9  # the largest whole number that a flag takes: a larger one is a slip
# What a run remembers in its config.json: the flags of MODEL under "model", by the names that the constructor of
# FaceAging has for them, and those of TRAINING under "training".
MODEL = {
    "image_size": "size_image",
    "channels": "num_input_channels",
    "num_encoder_channels": "num_encoder_channels",
    "num_z_channels": "num_z_channels",
    "num_gen_channels": "num_gen_channels",
    "age_bounds": "age_bounds",
    "batch_size": "size_batch",
    "precision": "precision",
    "seed": "seed",
}
SIZES = ("image_size", "channels", "num_encoder_channels", "num_z_channels", "num_gen_channels", "age_bounds")
TRAINING = ("dataset", "learning_rate", "loss_weights", "balance", "flip", "unknown_gender")


def true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text} is neither True nor False")
    return text.lower() == "true"


def place(text: str) -> str:
    """Returns the name of a folder, file or data set, with ~ for the home folder: shells leave it in --flag=~/x."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty (a variable that is not set?)")
    try:
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError:  # no such user: the name itself begins so
        return text


def to_path(text: str) -> Path:
    return Path(place(text))


def whole_number(text: str, low: int = 1, high: int = LARGEST) -> int:
    # a number of thousands of digits is not even looked at: Python refuses to read one
    if not text.isdecimal() or len(text) > 20 or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"{text[:40]} is not a whole number within {low}-{high}")
    return int(text)


def random_people(text: str) -> int:
    number = whole_number(text)
    if number > MOST_RANDOM:
        raise argparse.ArgumentTypeError(f"{text} people are more than {MOST_RANDOM:,}: draw them in parts, by --seed")
    return number


def seed(text: str) -> int:
    return whole_number(text, low=0, high=LARGEST_SEED)


def power_of_two(text: str) -> int:
    number = whole_number(text, low=8)
    if number.bit_count() != 1:
        raise argparse.ArgumentTypeError(f"{text} is not a power of two from 8 up")
    return number


def numbers(text: str) -> tuple[float, ...]:
    """Returns the numbers of a list such as 8,30,65, or (nan,) where it is none."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        return (math.nan,)


def ages(text: str) -> tuple[float, ...]:
    found = numbers(text)
    if not all(0 <= number <= OLDEST for number in found):
        raise argparse.ArgumentTypeError(f"{text} is not an age, or ages such as 8,30,65, within 0-{OLDEST} years")
    return found


def rate(text: str) -> float:
    found = numbers(text)
    if len(found) != 1 or not 0 < found[0] < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number between 0 and 1")
    return found[0]


def loss_weights(text: str) -> tuple[float, ...]:
    if text in PRESETS:
        return PRESETS[text]
    weights = numbers(text)
    if len(weights) not in COUNTS or not all(0 <= weight < math.inf for weight in weights):
        raise argparse.ArgumentTypeError(
            f"{text} is none of {', '.join(PRESETS)}, nor three numbers G_img,E_z,tv or five with label,feature"
        )
    return weights if any(weights[OF_THE_PAPER:]) else weights[:OF_THE_PAPER]


def age_bounds(text: str) -> tuple[int, ...]:
    try:
        return AgeBins([int(part) for part in text.split(",")]).bounds
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not a list of ages such as 10,20,40") from error


class OneLineParser(argparse.ArgumentParser):
    """argparse, but an error is one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help lists all flags)\n")


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of all flags, each with its help."""
    parser = OneLineParser(
        prog="main.py",
        description="Age progression and regression of faces by a conditional adversarial autoencoder (CAAE).",
        epilog="Train (python main.py --dataset demo), then age faces (python main.py --is_train False --testdir DIR).",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_doing(parser.add_argument_group("what to do").add_argument)
    _add_aging(parser.add_argument_group("aging, with --is_train False").add_argument)
    _add_beginning(parser.add_argument_group("where to start").add_argument)
    _add_training(parser.add_argument_group("training (a run remembers these)").add_argument)
    _add_network(parser.add_argument_group("network (a run remembers these)").add_argument)
    return parser


BOOL = {"type": true_or_false, "metavar": "BOOL"}
NUMBER = {"type": whole_number, "metavar": "N"}


def _add_doing(flag) -> None:
    flag("--is_train", **BOOL, default=True, help="True trains, False ages faces")
    flag("--epoch", **NUMBER, default=50, help="training ends when N epochs are done, those before a resume counted in")
    flag(
        "--dataset",
        type=place,
        default="UTKFace",
        metavar="NAME",
        help="the faces to train on are in data/NAME; demo is drawn",
    )
    flag("--savedir", type=to_path, default=Path("save"), metavar="DIR", help="a run is kept in DIR")
    flag(
        "--evaluate",
        nargs="?",
        type=place,
        const=False,  # without a folder: those held out
        metavar="DIR",
        help="the model is measured on a folder of labelled faces, or without one on those held out of its training",
    )


def _add_aging(flag) -> None:
    flag(
        "--testdir",
        nargs="+",
        type=place,
        metavar="DIR",
        help="the faces to age are in a folder, a picture, or a pattern such as 'dir/*.jpg'; without it "
        "demo/faces is taken",
    )
    flag(
        "--random",
        type=random_people,
        metavar="N",
        help="N people who do not exist are drawn instead, at every age; --seed draws others",
    )
    flag("--gender", choices=GENDERS, default="both", help="the faces are shown as male, as female or as both")
    flag("--age", type=ages, metavar="A,B,...", help="each face is shown at these ages in years, a picture per age")
    flag("--animate", choices=("gif", "mp4"), help="each face becomes a film from young to old and back")
    flag(
        "--align",
        **BOOL,
        default=False,
        help="True finds every face in a photo, at any size and angle, and levels and crops it first; for training it "
        "makes data/NAME_aligned of the photos in data/NAME, once",
    )
    flag("--photo", **BOOL, default=False, help="with --align: True shows where in its photo each face was found")
    flag("--blend", nargs=2, type=to_path, metavar="FACE", help="one face is blended into another, at both their ages")


def _add_beginning(flag) -> None:
    flag(
        "--use_trained_model",
        **BOOL,
        default=True,
        help="True goes on from what savedir holds; False begins with ten epochs without adversaries",
    )
    flag(
        "--use_init_model",
        **BOOL,
        default=False,
        help="True starts from a model that ships where savedir holds none",
    )
    flag(
        "--pretrained",
        choices=INCLUDED_MODELS,
        default=DEFAULT_MODEL,
        help="the model that ships, to start from, age faces with or measure, is the one trained with these "
        "--loss_weights; given, it is taken to age and to measure even where savedir holds one",
    )


def _add_training(flag) -> None:
    flag("--batch_size", **NUMBER, default=100, help="each step takes N faces")
    flag("--learning_rate", type=rate, default=2e-4, metavar="RATE", help="Adam learns at this rate")
    flag(
        "--loss_weights",
        type=loss_weights,
        default="2017",
        metavar="W",
        help=f"W is {', '.join(PRESETS)}, or numbers G_img,E_z,tv or G_img,E_z,tv,label,feature: the losses' "
        "weights beside the reconstruction's 1",
    )
    flag(
        "--precision",
        choices=("auto", *PRECISIONS),
        default="auto",
        help="auto takes bfloat16 where the hardware has it",
    )
    flag(
        "--seed",
        type=seed,
        default=2017,
        metavar="N",
        help="N fixes the initial weights, the held-out faces, their order and z",
    )
    flag("--balance", **BOOL, default=False, help="True draws the age bins equally often")
    flag("--flip", **BOOL, default=False, help="True mirrors half of the faces, left to right")
    flag("--cache", **BOOL, default=False, help="True keeps the read faces in memory")
    flag(
        "--unknown_gender",
        **BOOL,
        default=False,
        help="True trains on faces without a gender too, with both gender labels 0",
    )


def _add_network(flag) -> None:
    flag("--image_size", type=power_of_two, default=128, metavar="N", help="images are N pixels a side, a power of two")
    flag("--channels", type=int, choices=(1, 3), default=3, help="1 is grey, 3 is colour")
    flag("--num_encoder_channels", **NUMBER, default=64, help="the encoder's first layer has N channels")
    flag("--num_z_channels", **NUMBER, default=50, help="z has N numbers for a face")
    flag("--num_gen_channels", **NUMBER, default=1024, help="the generator's widest layer has N channels")
    flag(
        "--age_bounds",
        type=age_bounds,
        default=",".join(map(str, AGE_BOUNDS)),
        metavar="A,B,...",
        help="these are the last ages, in years, of all bins but the open last one",
    )


def parse_flags(argv: list[str] | None) -> tuple[argparse.Namespace, set[str]]:
    """Returns the flags, and the names of those that were given."""
    parser = make_parser()
    flags = parser.parse_args(argv)
    # argparse fills in no default where a value stands: parsed into a None for each, what is another was given
    untouched = argparse.Namespace(**dict.fromkeys(vars(flags)))
    given = {name for name, value in vars(parser.parse_args(argv, untouched)).items() if value is not None}
    return flags, given


def restore_flags(flags: argparse.Namespace, given: set[str], config: dict, folder: Path) -> None:
    """Take over the config of the run in the folder. Raises InputError where a given flag says otherwise."""
    if not config:
        return
    training = {"flip": False} | config["training"]  # runs before there was this flag did not mirror
    remembered = {flag: config["model"][name] for flag, name in MODEL.items()}
    remembered |= {flag: training[flag] for flag in TRAINING if flag in training}
    for flag, value in remembered.items():
        value = tuple(value) if isinstance(value, list) else value
        if flag in given and getattr(flags, flag) not in (value, "auto"):
            raise InputError(
                f"--{flag} is {getattr(flags, flag)}, but the run in {folder} was made with {value}: "
                f"leave the flag out, or give another --savedir"
            )
        setattr(flags, flag, value)


def check_sizes(flags: argparse.Namespace) -> None:
    """Raise InputError where a training cannot start from the model that ships, with the flags with which it can."""
    shipped = read_config(included_model(flags.pretrained))["model"]

    def written(value) -> str:
        return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

    sizes = {flag: (written(shipped[MODEL[flag]]), written(getattr(flags, flag))) for flag in SIZES}
    other = {flag: pair for flag, pair in sizes.items() if pair[0] != pair[1]}
    if other:
        said = ", ".join(f"{flag} {theirs}, not {ours}" for flag, (theirs, ours) in other.items())
        mend = " ".join(f"--{flag} {theirs}" for flag, (theirs, _) in other.items())
        raise InputError(f"the shipped model has {said}: give {mend}, or leave out --use_init_model")


def check_aging(flags: argparse.Namespace) -> None:
    """Raise InputError for what aging cannot do, before TensorFlow takes its seconds."""
    if flags.testdir and flags.blend:
        raise InputError("--is_train False takes either --testdir, the faces to age, or --blend, two of them")
    for name in ("testdir", "blend", "age", "animate", "align", "photo"):
        if flags.random and getattr(flags, name):
            raise InputError(f"--random draws people who do not exist, at every age: leave out --{name}")
    if flags.photo and (flags.blend or not flags.align):
        raise InputError("--photo shows where --align found a face to age: add --align True, leave out --blend")
    if flags.blend and flags.animate:
        raise InputError("--blend draws one picture: leave out --animate")
    for path in flags.blend or ():
        if not path.is_file():
            raise InputError(f"--blend: {printable(str(path))} is no file")
    if flags.animate == "mp4":
        try:
            import imageio_ffmpeg

            imageio_ffmpeg.get_ffmpeg_exe()
        except (ImportError, RuntimeError) as error:
            install = python("-m", "pip", "install", "imageio[ffmpeg]")
            raise InputError(f"--animate mp4 needs ffmpeg: {install}, or take gif") from error
