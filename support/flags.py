"""The command line's flags."""

import argparse
import math
from functools import partial
from pathlib import Path
from typing import NoReturn

from support import InputError, printable
from support.config import CHOICES, EPOCHS, LARGEST_SEED, LEARNING_RATE, RECIPES, Hyperparameters, dataset_name
from support.labels import AGE_BOUNDS, FEMALE, MALE, OLDEST, AgeBins
from support.losses import OLD_PRESETS, PRESETS, TERMS, UNNAMED_COUNTS, complete_weights
from support.pretrained import DEFAULT_MODEL, INCLUDED_MODELS, OLD_MODEL_NAMES
from support.terminal import PROJECT, python_command

GENDER_CHOICES = {"male": (MALE,), "female": (FEMALE,), "both": (MALE, FEMALE)}
DEMO_FACES = PROJECT / "demo" / "faces"
DETAIL_FLAGS = {"own_age", "own_gender"}  # flags of aging that --detail or --paste uses
PASTE_FLAGS = {"face", "years", "film_size"}  # flags of aging that --paste uses
AGING_FLAGS = {"testdir", "random", "gender", "age", "animate", "photo", "blend", "paste", *DETAIL_FLAGS, *PASTE_FLAGS}
MAX_INTEGER = 10**9  # the largest whole number that a flag accepts
# Types of flags: each returns the value of a text, or raises ArgumentTypeError.


def true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text} is neither True nor False")
    return text.lower() == "true"


def place(text: str) -> str:
    """Return the name of a folder, file or data set, with ~ expanded, which shells do not do in --flag=~/x."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty (an unset variable?)")
    try:
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError:  # no such user: a name that starts with ~
        return text


def dataset(text: str) -> str:
    return dataset_name(place(text))


def to_path(text: str) -> Path:
    return Path(place(text))


def whole_number(text: str, low: int = 1, high: int = MAX_INTEGER) -> int:
    if not text.isdecimal() or len(text) > 20 or not low <= int(text) <= high:  # int() rejects thousands of digits
        raise argparse.ArgumentTypeError(f"{text[:40]} is not a whole number within {low}-{high}")
    return int(text)


def power_of_two(text: str) -> int:
    number = whole_number(text, low=8)
    if number.bit_count() != 1:
        raise argparse.ArgumentTypeError(f"{text} is not a power of two from 8 up")
    return number


def numbers(text: str) -> tuple[float, ...]:
    """Return the numbers of a list such as 8,30,65, or (nan,) for any other text."""
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        return (math.nan,)


def ages(text: str) -> tuple[float, ...]:
    found = numbers(text)
    if not all(0 <= number <= OLDEST for number in found):
        raise argparse.ArgumentTypeError(f"{text} is not an age, or ages such as 8,30,65, within 0-{OLDEST} years")
    return found


def years(text: str) -> tuple[float, ...]:
    found = numbers(text)
    if not all(abs(number) <= OLDEST for number in found):
        raise argparse.ArgumentTypeError(f"{text} is not a number of years, or numbers such as -10,+20")
    return found


def genders(text: str) -> tuple[int, ...]:
    if not all(part in ("male", "female") for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text} is not male, female or a list of them")
    return tuple(GENDER_CHOICES[part][0] for part in text.split(","))


def share(text: str) -> float:
    found, *others = numbers(text)
    if others or not 0 <= found <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number within 0-1")
    return found


def rate(text: str) -> float:
    if (found := share(text)) in (0, 1):
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return found


def loss_weights(text: str) -> dict[str, float]:
    """Return the weights by name: all of a preset or of three or five numbers, or some, as in G_img=3e-4,label=0.02."""
    absent, text = dict.fromkeys(TERMS, 0.0), OLD_PRESETS.get(text, text)
    if text in PRESETS:
        return absent | PRESETS[text]
    try:
        if "=" in text:
            weights = {name.strip(): float(weight) for name, weight in (part.split("=") for part in text.split(","))}
            complete_weights(weights)
            return weights
        if len(numbers(text)) in UNNAMED_COUNTS:
            return absent | complete_weights(numbers(text))
        reason = f"neither {', '.join(PRESETS)} nor weights by name"
    except InputError as error:
        reason = str(error)
    except ValueError:
        reason = "not a list of weights by name"
    raise argparse.ArgumentTypeError(f"{text}: {reason}, such as G_img=3e-4,label=0.02")


def age_bounds(text: str) -> tuple[int, ...]:
    try:
        return AgeBins([int(part) for part in text.split(",")]).bounds
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not a list of ages such as 10,20,40") from error


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults, except where there is none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help lists all flags)\n")


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="main.py",
        description="Age progression and regression of faces by a conditional adversarial autoencoder (CAAE).",
        epilog="Train: python main.py --dataset demo. Age faces: python main.py --is_train False --testdir DIR.",
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )
    groups = {
        "task": _add_task,
        "aging, with --is_train False": _add_aging,
        "aging within a photo, with --is_train False": _add_photo,
        "initial weights": _add_start,
        "training (config.json records these, except --recipe and --cache)": _add_training,
        "networks (config.json records these)": _add_network,
    }
    for title, add in groups.items():
        add(parser.add_argument_group(title).add_argument)
    return parser


BOOLEAN = {"type": true_or_false, "metavar": "BOOL"}
COUNT = {"type": whole_number, "metavar": "N"}
FACE_COUNT = {"type": partial(whole_number, high=10_000), "metavar": "N"}
PIXEL_COUNT = {"type": partial(whole_number, low=16, high=8192), "metavar": "N"}


def _add_task(flag) -> None:
    flag("--is_train", **BOOLEAN, default=True, help="True trains, False ages faces")
    flag("--epoch", **COUNT, default=EPOCHS, help="total number of epochs, including those before a resume")
    flag("--dataset", type=dataset, default="UTKFace", metavar="NAME", help="train on the faces in data/NAME")
    flag("--savedir", type=to_path, default=Path("save"), metavar="DIR", help="folder of the run")
    flag(
        "--evaluate",
        nargs="?",
        type=place,
        const=False,  # without a folder: the held-out faces
        metavar="DIR",
        help="measure the model on a folder of labelled faces, or on the faces held out of its training",
    )


def _add_aging(flag) -> None:
    flag(
        "--testdir",
        nargs="+",
        type=place,
        metavar="DIR",
        help="faces to age: a folder, an image, or a pattern such as 'dir/*.jpg'; demo/faces if omitted",
    )
    flag("--random", **FACE_COUNT, help="generate N random faces at every age; --seed selects them")
    flag("--gender", choices=GENDER_CHOICES, default="both", help="gender labels of the aged faces")
    flag("--age", type=ages, metavar="A,B,...", help="write one image of each face for each of these ages in years")
    flag("--animate", choices=("gif", "mp4"), help="write a film of each face from young to old and back")
    flag(
        "--align",
        **BOOLEAN,
        default=False,
        help="True finds every face in a photo and crops it like the training faces; in training it makes "
        "data/NAME_aligned from the photos in data/NAME, once",
    )
    flag("--photo", **BOOLEAN, default=False, help="with --align: True shows where in its photo each face was found")
    flag("--blend", nargs=2, type=to_path, metavar="FACE", help="blend one face into another, at both their ages")


def _add_photo(flag) -> None:
    flag(
        "--detail",
        type=share,
        default=0.0,
        metavar="D",
        help="share, 0 to 1, of the photo's own detail that an aged face keeps; 1 with --paste unless given",
    )
    flag(
        "--own_age",
        type=ages,
        metavar="A,B,...",
        help="people's ages in years, if the file name has none; estimated if omitted",
    )
    flag("--own_gender", type=genders, metavar="G,H,...", help="likewise their genders, male or female")
    flag(
        "--paste",
        **BOOLEAN,
        default=False,
        help="True writes whole photos with every face aged in place, each as its own gender unless --gender is given",
    )
    flag("--face", **COUNT, help="with --paste: age face N only, from left to right")
    flag("--years", type=years, metavar="+Y,-Z,...", help="with --paste: ages relative to everyone's own (--years=-10)")
    flag("--film_size", **PIXEL_COUNT, help="with --paste: the longer side of a film (default: 1080)")


def _add_start(flag) -> None:
    flag(
        "--use_trained_model",
        **BOOLEAN,
        default=True,
        help="True resumes the run in savedir; False starts with ten epochs at loss weights 0",
    )
    flag("--use_init_model", **BOOLEAN, default=False, help="True starts a new run from an included model")
    flag(
        "--pretrained",
        type=lambda text: OLD_MODEL_NAMES.get(text, text),
        choices=INCLUDED_MODELS,
        default=DEFAULT_MODEL,
        help="included model to age with, measure or start from; if given, it takes precedence over savedir's model",
    )


def _add_training(flag) -> None:
    flag(
        "--recipe",
        choices=RECIPES,
        default="paper",
        help="paper: as in the paper; aging: additional losses and Muon, as the included model of that name "
        f"(docs/experiments.md). A recipe sets {', '.join(RECIPES['aging'])}, unless they are given",
    )
    flag("--batch_size", **COUNT, default=Hyperparameters.size_batch, help="faces in a step")
    flag("--optimizer", choices=CHOICES["optimizer"], default="adam", help="of E and G; the others always use Adam")
    flag("--learning_rate", type=rate, default=LEARNING_RATE, metavar="RATE", help="of E and G; muon: about 6e-4")
    flag("--schedule", choices=CHOICES["schedule"], default="constant", help="of the learning rate over all epochs")
    flag(
        "--loss_weights",
        type=loss_weights,
        metavar="W",
        help=f"weights relative to the reconstruction loss: {', '.join(PRESETS)}, or by name, such as "
        f"G_img=3e-4,label=0.02. {'; '.join(f'{name}: {term.meaning}' for name, term in TERMS.items())}",
    )
    flag("--precision", choices=("auto", *CHOICES["precision"]), default="auto", help="auto: bfloat16 where supported")
    flag(
        "--seed",
        type=partial(whole_number, low=0, high=LARGEST_SEED),
        default=Hyperparameters.seed,
        metavar="N",
        help="of initial weights, held-out faces, order of faces and z",
    )
    flag("--balance", **BOOLEAN, default=False, help="True samples all age bins equally often")
    flag("--flip", **BOOLEAN, default=False, help="True mirrors a random half of the faces")
    flag("--cache", **BOOLEAN, default=False, help="True keeps decoded faces in memory")
    flag(
        "--unknown_gender",
        **BOOLEAN,
        default=False,
        help="True trains also on faces of unknown gender, with both gender labels 0",
    )


def _add_network(flag) -> None:
    default = Hyperparameters
    flag("--image_size", type=power_of_two, default=default.size_image, metavar="N", help="pixels a side")
    flag("--channels", type=int, choices=(1, 3), default=default.num_input_channels, help="1 is grey, 3 is colour")
    flag("--num_encoder_channels", **COUNT, default=default.num_encoder_channels, help="of the encoder's first layer")
    flag("--num_z_channels", **COUNT, default=default.num_z_channels, help="length of the latent code z")
    flag("--num_gen_channels", **COUNT, default=default.num_gen_channels, help="of the generator's widest layer")
    flag(
        "--age_bounds",
        type=age_bounds,
        default=",".join(map(str, AGE_BOUNDS)),
        metavar="A,B,...",
        help="last age, in years, of each bin but the open last one",
    )


def parse_flags(argv: list[str] | None) -> tuple[argparse.Namespace, set[str]]:
    """Return the flags, and the names of the explicit ones, which include those that an explicit --recipe sets."""
    parser = make_parser()
    flags = parser.parse_args(argv)
    # argparse applies no default to an attribute that exists: with None everywhere, only given flags differ
    untouched = argparse.Namespace(**dict.fromkeys(vars(flags)))
    explicit = {name for name, value in vars(parser.parse_args(argv, untouched)).items() if value is not None}
    recipe = RECIPES[flags.recipe]
    for flag in recipe.keys() - explicit:
        setattr(flags, flag, recipe[flag])
    flags.loss_weights = complete_weights(flags.loss_weights, recipe["loss_weights"])
    return flags, explicit | (recipe.keys() if "recipe" in explicit else set())


def check_aging(flags: argparse.Namespace) -> None:
    """Raise InputError for flags of aging that exclude each other, before TensorFlow is loaded."""
    faces = "testdir", "blend", "age", "animate", "align", "photo", "detail"
    rules = [(flags.testdir and flags.blend, "--testdir and --blend exclude each other: use one of them")]
    rules += [(flags.random and getattr(flags, name), f"--random excludes --{name}: omit one") for name in faces]
    needs = (DETAIL_FLAGS, flags.detail or flags.paste, "detail 1"), (PASTE_FLAGS, flags.paste, "paste True")
    for names, used, fix in needs:
        used_flags = [name for name in sorted(names) if getattr(flags, name) is not None]
        rules += [(not used, f"--{name} is for --{fix.split()[0]}: add --{fix}") for name in used_flags]
    other = flags.random or flags.blend or flags.photo
    rules += [
        (flags.paste and other, "--paste writes whole photos: omit --random, --blend and --photo"),
        (flags.photo and (flags.blend or not flags.align), "--photo needs --align True and excludes --blend"),
        (flags.blend and flags.animate, "--blend writes one image: omit --animate"),
    ]
    rules += [
        (not path.is_file(), f"--blend: {printable(path)} is not a file: give two images") for path in flags.blend or ()
    ]
    for broken, message in rules:
        if broken:
            raise InputError(message)
    if flags.animate == "mp4":
        try:
            import imageio_ffmpeg

            imageio_ffmpeg.get_ffmpeg_exe()
        except (ImportError, RuntimeError) as error:
            install = python_command("-m", "pip", "install", "imageio[ffmpeg]")
            raise InputError(f"--animate mp4 needs ffmpeg: {install}, or use gif") from error
