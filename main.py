"""Train the face-aging network, or show faces at every age: `python main.py --help` says how."""

import argparse
import math
import sys
from pathlib import Path

from dataset import AGE_BOUNDS, AgeBins, InputError, find_dataset, list_faces

LOSS_WEIGHTS = {  # of G_img_loss, E_z_loss and tv_loss, beside the reconstruction's 1
    "released": (1e-4, 0.0, 0.0),
    "2017": (1e-4, 1e-4, 1e-4),
    "paper": (0.01, 0.01, 0.1),  # section 4.1's 1 : 10 beside 100, divided by 100
}
PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")
# flags that a run remembers in its config.json, by their names there
REMEMBERED = {
    "image_size": "size_image",
    "channels": "num_input_channels",
    "num_encoder_channels": "num_encoder_channels",
    "num_gen_channels": "num_gen_channels",
    "age_bounds": "age_bounds",
    "batch_size": "size_batch",
    "precision": "precision",
    "seed": "seed",
    "dataset": "dataset",
    "learning_rate": "learning_rate",
    "loss_weights": "loss_weights",
    "balance": "balance",
    "unknown_gender": "unknown_gender",
}


def true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text} is neither True nor False")
    return text.lower() == "true"


def whole_number(text: str, low: int = 1) -> int:
    if not text.isdecimal() or int(text) < low:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from {low} up")
    return int(text)


def seed(text: str) -> int:
    return whole_number(text, low=0)


def power_of_two(text: str) -> int:
    number = whole_number(text, low=8)
    if number & (number - 1):
        raise argparse.ArgumentTypeError(f"{text} is not a power of two from 8 up")
    return number


def rate(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number between 0 and 1")
    return number


def loss_weights(text: str) -> tuple[float, ...]:
    if text in LOSS_WEIGHTS:
        return LOSS_WEIGHTS[text]
    try:
        weights = tuple(float(part) for part in text.split(","))
    except ValueError:
        weights = ()
    if len(weights) != 3 or not all(0 <= weight < math.inf for weight in weights):
        raise argparse.ArgumentTypeError(f"{text} is none of {', '.join(LOSS_WEIGHTS)}, nor three numbers G_img,E_z,tv")
    return weights


def age_bounds(text: str) -> tuple[int, ...]:
    try:
        return AgeBins([int(part) for part in text.split(",")]).bounds
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not a list of ages such as 10,20,40") from error


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="main.py",
        description="Age progression and regression of faces by a conditional adversarial autoencoder (CAAE).",
        epilog="Train: python main.py --dataset demo --image_size 64.  Age faces: python main.py --is_train False --testdir dir",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    flag = parser.add_argument_group("what to do").add_argument
    flag("--is_train", type=true_or_false, default=True, metavar="BOOL", help="True trains, False ages faces")
    flag("--epoch", type=whole_number, default=50, metavar="N", help="epochs in all, those before a resume counted in")
    flag("--dataset", default="UTKFace", metavar="NAME", help="faces to train on, in data/NAME; demo draws its own")
    flag("--savedir", type=Path, default=Path("save"), metavar="DIR", help="where a run is kept")
    flag("--testdir", type=Path, metavar="DIR", help="faces to age")

    flag = parser.add_argument_group("where to start").add_argument
    flag(
        "--use_trained_model",
        type=true_or_false,
        default=True,
        metavar="BOOL",
        help="True goes on from what savedir holds; False begins with ten epochs without adversaries",
    )
    flag(
        "--use_init_model",
        type=true_or_false,
        default=False,
        metavar="BOOL",
        help="start from the shipped model where savedir holds none",
    )

    flag = parser.add_argument_group("training (a run remembers these)").add_argument
    flag("--batch_size", type=whole_number, default=100, metavar="N", help="faces a step")
    flag("--learning_rate", type=rate, default=2e-4, metavar="RATE", help="of the three Adams")
    flag(
        "--loss_weights",
        type=loss_weights,
        default="2017",
        metavar="W",
        help=f"{', '.join(LOSS_WEIGHTS)}, or three numbers G_img,E_z,tv beside the reconstruction's 1",
    )
    flag("--precision", choices=PRECISIONS, default="auto", help="auto takes bfloat16 where the hardware has it")
    flag("--seed", type=seed, default=2017, metavar="N", help="of initial weights, held-out faces, order and z")
    flag("--balance", type=true_or_false, default=False, metavar="BOOL", help="draw the age bins equally")
    flag("--cache", type=true_or_false, default=False, metavar="BOOL", help="keep the read faces in memory")
    flag(
        "--unknown_gender",
        type=true_or_false,
        default=False,
        metavar="BOOL",
        help="train on faces without a gender too, both of its labels 0",
    )

    flag = parser.add_argument_group("network (a run remembers these)").add_argument
    flag("--image_size", type=power_of_two, default=128, metavar="N", help="pixels a side, a power of two")
    flag("--channels", type=int, choices=(1, 3), default=3, help="1 grey, 3 colour")
    flag("--num_encoder_channels", type=whole_number, default=64, metavar="N", help="of the encoder's first layer")
    flag("--num_gen_channels", type=whole_number, default=1024, metavar="N", help="of the generator's widest layer")
    flag(
        "--age_bounds",
        type=age_bounds,
        default=",".join(map(str, AGE_BOUNDS)),
        metavar="A,B,...",
        help="the last age in years of every bin but the open last one",
    )
    return parser


def parse_flags(argv: list[str] | None) -> tuple[argparse.Namespace, set[str]]:
    """The flags, and which of them were given."""
    parser = make_parser()
    flags = parser.parse_args(argv)
    untouched = argparse.Namespace(**dict.fromkeys(vars(flags)))  # argparse fills in no default where a value stands
    given = {name for name, value in vars(parser.parse_args(argv, untouched)).items() if value is not None}
    return flags, given


def recall(flags: argparse.Namespace, given: set[str], config: dict) -> None:
    """Take over what the run in savedir remembers. Raises InputError where a given flag says otherwise."""
    for name, key in REMEMBERED.items():
        if key not in config:
            continue
        value = tuple(config[key]) if isinstance(config[key], list) else config[key]
        if name in given and getattr(flags, name) not in (value, "auto"):
            raise InputError(
                f"--{name} is {getattr(flags, name)}, but the run in {flags.savedir} was made with {value}: "
                f"leave the flag out, or give another --savedir"
            )
        setattr(flags, name, value)


def train(flags: argparse.Namespace, given: set[str]) -> None:
    folder = find_dataset(flags.dataset)
    listing = list_faces(folder)
    print("Building graph ...", flush=True)
    from FaceAging import FaceAging, read_config
    from ops import best_precision

    recall(flags, given, read_config(flags.savedir))
    if flags.precision == "auto":
        flags.precision, reason = best_precision()
        print(f"Precision {flags.precision}: {reason}")
    model = FaceAging(
        size_image=flags.image_size,
        size_batch=flags.batch_size,
        num_input_channels=flags.channels,
        num_encoder_channels=flags.num_encoder_channels,
        num_categories=len(flags.age_bounds) + 1,
        num_gen_channels=flags.num_gen_channels,
        age_bounds=flags.age_bounds,
        save_dir=flags.savedir,
        precision=flags.precision,
        seed=flags.seed,
    )
    print("Training Mode")
    model.train(
        listing.faces,
        num_epochs=flags.epoch,
        learning_rate=flags.learning_rate,
        loss_weights=flags.loss_weights,
        use_trained_model=flags.use_trained_model,
        balance=flags.balance,
        notes={"dataset": flags.dataset},
    )


def test(flags: argparse.Namespace) -> None:
    if flags.testdir is None:
        raise InputError("--is_train False needs --testdir, the folder of the faces to age")
    paths = find_pictures(flags.testdir)
    print("Building graph ...", flush=True)
    from FaceAging import FaceAging

    print("Testing Mode")
    print("Loading pre-trained model ...", flush=True)
    model = FaceAging.load(flags.savedir)
    print("SUCCESS ^_^", flush=True)
    model.test(paths)
    print(f"Done! Results are saved as {model.save_dir / 'test' / 'test_as_xxx.png'}")


def main(argv: list[str] | None = None) -> int:
    flags, given = parse_flags(argv)
    try:
        if flags.is_train:
            train(flags, given)
        else:
            test(flags)
    except InputError as error:
        print(f"main.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
