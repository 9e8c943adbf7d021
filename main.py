"""Train the face-aging network, or show faces at every age: `python main.py --help` says how."""

import argparse
import contextlib
import io
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from support.batches import split
from support.dataset import Face, describe, find_dataset, find_pictures, list_faces
from support.errors import InputError, printable
from support.files import SHIPPED_MODEL, read_config, write_json
from support.labels import AGE_BOUNDS, FEMALE, MALE, OLDEST, AgeBins

LOSS_WEIGHTS = {  # of G_img_loss, E_z_loss and tv_loss, beside the reconstruction's 1
    "released": (1e-4, 0.0, 0.0),
    "2017": (1e-4, 1e-4, 1e-4),
    "paper": (0.01, 0.01, 0.1),  # section 4.1's 1 : 10 beside 100, divided by 100
}
GENDERS = {"male": (MALE,), "female": (FEMALE,), "both": (MALE, FEMALE)}
DEMO_FACES = "demo/faces"
AGING = {"testdir", "gender", "age", "animate", "align", "blend"}
PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")
# what a run remembers in its config.json: flags under "model" by their names there, flags under "training"
MODEL = {
    "image_size": "size_image",
    "channels": "num_input_channels",
    "num_encoder_channels": "num_encoder_channels",
    "num_gen_channels": "num_gen_channels",
    "age_bounds": "age_bounds",
    "batch_size": "size_batch",
    "precision": "precision",
    "seed": "seed",
}
SIZES = ("image_size", "channels", "num_encoder_channels", "num_gen_channels", "age_bounds")
TRAINING = ("dataset", "learning_rate", "loss_weights", "balance", "unknown_gender")


def true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text} is neither True nor False")
    return text.lower() == "true"


def whole_number(text: str, low: int = 1) -> int:
    if not text.isdecimal() or int(text) < low:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from {low} up")
    return int(text)


def ages(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = (math.nan,)
    if not all(0 <= number <= OLDEST for number in numbers):
        raise argparse.ArgumentTypeError(f"{text} is not an age, or ages such as 8,30,65, within 0-{OLDEST} years")
    return numbers


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


class OneLineParser(argparse.ArgumentParser):
    """argparse, but an error is one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help lists all flags)\n")


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="main.py",
        description="Age progression and regression of faces by a conditional adversarial autoencoder (CAAE).",
        epilog="Train: python main.py --dataset demo.  Age faces: python main.py --is_train False --testdir dir",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    flag = parser.add_argument_group("what to do").add_argument
    flag("--is_train", type=true_or_false, default=True, metavar="BOOL", help="True trains, False ages faces")
    flag("--epoch", type=whole_number, default=50, metavar="N", help="epochs in all, those before a resume counted in")
    flag("--dataset", default="UTKFace", metavar="NAME", help="faces to train on, in data/NAME; demo draws its own")
    flag("--savedir", type=Path, default=Path("save"), metavar="DIR", help="where a run is kept")
    flag(
        "--evaluate",
        nargs="?",
        const="",
        metavar="DIR",
        help="measure the model on a folder of labelled faces, or without one on the faces held out of its training",
    )

    flag = parser.add_argument_group("aging, with --is_train False").add_argument
    flag(
        "--testdir",
        nargs="+",
        metavar="DIR",
        help=f"faces to age: a folder, a picture, or a pattern such as 'dir/*.jpg'; {DEMO_FACES} where not given",
    )
    flag("--gender", choices=GENDERS, default="both", help="as which the faces are shown")
    flag("--age", type=ages, metavar="A,B,...", help="exact ages in years: a picture per face and age")
    flag("--animate", choices=("gif", "mp4"), help="a film of each face from young to old and back")
    flag(
        "--align",
        type=true_or_false,
        default=False,
        metavar="BOOL",
        help="find, level and crop the faces of photos first (pip install 'opencv-python-headless<5')",
    )
    flag("--blend", nargs=2, type=Path, metavar="FACE", help="the way from one face to another, at both their ages")

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
    if not config:
        return
    remembered = {name: config["model"][key] for name, key in MODEL.items()}
    remembered |= {name: config["training"][name] for name in TRAINING if name in config["training"]}
    for name, value in remembered.items():
        value = tuple(value) if isinstance(value, list) else value
        if name in given and getattr(flags, name) not in (value, "auto"):
            raise InputError(
                f"--{name} is {getattr(flags, name)}, but the run in {flags.savedir} was made with {value}: "
                f"leave the flag out, or give another --savedir"
            )
        setattr(flags, name, value)


def check_sizes(flags: argparse.Namespace) -> None:
    """Raise InputError where a training cannot start from the shipped model, with the flags with which it can."""
    shipped = read_config(SHIPPED_MODEL).get("model")
    if not shipped:
        raise InputError(f"no model ships in {SHIPPED_MODEL}: leave out --use_init_model")

    def written(value) -> str:
        return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

    sizes = {name: (written(shipped[MODEL[name]]), written(getattr(flags, name))) for name in SIZES}
    other = {name: pair for name, pair in sizes.items() if pair[0] != pair[1]}
    if other:
        said = ", ".join(f"{name} {theirs}, not {ours}" for name, (theirs, ours) in other.items())
        mend = " ".join(f"--{name} {theirs}" for name, (theirs, _) in other.items())
        raise InputError(f"the shipped model has {said}: give {mend}, or leave out --use_init_model")


def quiet() -> None:
    """Have TensorFlow and Pillow not write what reaches us as exceptions too; TF_CPP_MIN_LOG_LEVEL=0 shows all."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore", module="PIL")


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Within it, drop what is written to stderr by C++ too: TensorFlow logs while it is imported, before its log level
    counts. From then on its Python speaks of errors only."""
    quiet()
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        logging.getLogger("tensorflow").setLevel(logging.ERROR)


def check_aging(flags: argparse.Namespace) -> None:
    """Raise InputError for what aging cannot do, before TensorFlow takes its seconds."""
    if flags.testdir and flags.blend:
        raise InputError("--is_train False takes either --testdir, the faces to age, or --blend, two of them")
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
            raise InputError('--animate mp4 needs ffmpeg: pip install "imageio[ffmpeg]", or take gif') from error


def prepare(flags: argparse.Namespace, given: set[str]):
    """(FaceAging, faces) to train as the flags say, which take over what the run in savedir remembers."""
    config = read_config(flags.savedir)
    recall(flags, given, config)  # first: it says which data set to look for
    if flags.use_init_model and not config:
        check_sizes(flags)
    if "TF_CONFIG" in os.environ and not Path("data", flags.dataset).is_dir():
        raise InputError(
            f"there is no data/{flags.dataset} yet, and several workers would make it at once: run the same command "
            "on one machine without TF_CONFIG first, and stop it when it trains"
        )
    listing = list_faces(find_dataset(flags.dataset), flags.unknown_gender)
    print("Building graph ...", flush=True)
    with silence():
        from FaceAging import FaceAging
        from support.devices import Devices, best_precision, choose_strategy

        shared = choose_strategy()
    if not Devices(shared).is_chief:
        sys.stdout = io.StringIO()  # the chief speaks for all
    if flags.precision == "auto":
        flags.precision, reason = best_precision()
        print(f"Precision {flags.precision}: {reason}")
    print(describe(listing, AgeBins(flags.age_bounds)), flush=True)
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
        strategy=shared,
    )
    return model, listing.faces


def train_until(epoch: int, model, faces: list[Face], flags: argparse.Namespace) -> int | None:
    """Train as the flags say until so many epochs are done; gives the signal that stopped it, if one did."""
    return model.train(
        faces,
        num_epochs=epoch,
        learning_rate=flags.learning_rate,
        loss_weights=flags.loss_weights,
        use_trained_model=flags.use_trained_model,
        use_init_model=flags.use_init_model,
        balance=flags.balance,
        cache=flags.cache,
        notes={name: getattr(flags, name) for name in TRAINING},
    )


def train(flags: argparse.Namespace, given: set[str]) -> int:
    model, faces = prepare(flags, given)
    print("Training Mode")
    stopped_by = train_until(flags.epoch, model, faces, flags)
    if stopped_by:
        print(f"Stopped; all is saved in {flags.savedir}: the same command goes on from there")
        return 128 + stopped_by
    print(f"Done! The run is in {flags.savedir}: python main.py --is_train False --testdir DIR ages faces with it")
    return 0


def load(flags: argparse.Namespace, given: set[str]):
    """The model in savedir or, where none is yet, the one that ships; what it makes goes to savedir in any case."""
    print("Building graph ...", flush=True)
    with silence():
        from FaceAging import FaceAging
        from support.checkpoints import saved_checkpoints

    print("Testing Mode")
    print("Loading pre-trained model ...", flush=True)
    folder = flags.savedir
    if not saved_checkpoints(folder / "checkpoint") and not saved_checkpoints(folder):
        print(f"{printable(str(folder))} holds no trained model: taking the one that ships")
        folder = SHIPPED_MODEL
    recall(flags, given, read_config(folder))
    model = FaceAging.load(folder)
    model.save_dir = flags.savedir
    print("SUCCESS ^_^", flush=True)
    return model


def evaluate(flags: argparse.Namespace, given: set[str]) -> int:
    if flags.evaluate:
        folder = Path(flags.evaluate)
        if not folder.is_dir():
            raise InputError(f"--evaluate: {printable(flags.evaluate)} is no folder")
        faces = list_faces(folder, flags.unknown_gender).faces
    model = load(flags, given - {"unknown_gender"})  # a run's own holds for the faces of its training
    if not flags.evaluate:
        folder = find_dataset(flags.dataset)
        others, faces = split(list_faces(folder, flags.unknown_gender).faces, flags.seed)
    measured = {
        "folder": str(folder),
        "held_out": not flags.evaluate,
        **model.evaluate(faces, others=faces if flags.evaluate else others),
    }
    path = flags.savedir / "evaluation.json"
    write_json(path, measured)
    names = list(measured["units"])
    print("".join(f"{name:>15}" for name in ("", *names)))
    for group, row in {"all": measured["overall"], **measured["by_age"], **measured["by_gender"]}.items():
        print("".join(f"{value:>15}" for value in (group, *(row[name] for name in names))))
    for name, unit in measured["units"].items():
        print(f"{name}: {unit}")
    from support.aging_measures import table  # brings TensorFlow

    print(table(measured))
    print(f"Done! Results are saved as {printable(str(path))}")
    return 0


def test(flags: argparse.Namespace, given: set[str]) -> int:
    check_aging(flags)
    paths = flags.blend or find_pictures(flags.testdir or [DEMO_FACES])
    model = load(flags, given)
    if flags.blend:
        genders = () if flags.gender == "both" else GENDERS[flags.gender] * 2
        blended = model.blend(*paths, flags.age or (), genders, flags.align)
        print(f"Done! Results are saved as {printable(str(blended))}")
        return 0
    aged = model.test(paths, GENDERS[flags.gender], flags.age or (), flags.animate, flags.align)
    print(f"{aged:,} face{'s' * (aged > 1)} aged")
    name = paths[0].stem if aged == len(paths) == 1 else "NAME"
    drawn = [f"{name}_AGE_xxx.png"] * bool(flags.age) + [f"{name}_xxx.{flags.animate}"] * bool(flags.animate)
    for name in drawn or ["test_as_xxx.png"]:
        print(f"Done! Results are saved as {printable(str(model.save_dir / 'test' / name))}")
    return 0


def main(argv: list[str] | None = None) -> int:
    flags, given = parse_flags(argv)
    quiet()
    try:
        if flags.is_train and given & AGING:
            raise InputError(f"--{min(given & AGING)} is for aging faces: add --is_train False")
        if flags.evaluate is not None:
            return evaluate(flags, given)
        return train(flags, given) if flags.is_train else test(flags, given)
    except (InputError, FloatingPointError) as error:
        print(f"main.py: {error}", file=sys.stderr)
    except OSError as error:  # no right to write, a full disk
        print(f"main.py: {error.filename or flags.savedir}: {error.strerror or error}", file=sys.stderr)
    except KeyboardInterrupt:  # before or after training, which stops in its own way
        print("main.py: stopped", file=sys.stderr)
        return 130
    return 2


if __name__ == "__main__":
    sys.exit(main())
