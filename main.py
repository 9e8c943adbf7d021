"""Train the face-aging networks, age faces, or evaluate a model: see `python main.py --help`."""

import argparse
import os
import sys
from pathlib import Path

from support import InputError, exhausted, printable
from support.alignment import align_dataset, aligned_name, alignment_warning, photos_name
from support.batches import choose_evaluation_faces, train_val_split
from support.config import MODEL_FLAGS, check_sizes, read_config, restore_flags
from support.dataset import Face, Listing, describe, find_dataset, find_images, list_faces
from support.files import output_name, writable, write_json
from support.flags import AGING_FLAGS, DEMO_FACES, GENDER_CHOICES, check_aging, parse_flags
from support.labels import AgeBins
from support.pretrained import included_model, included_name
from support.terminal import PROJECT, check_threads, make_streams_safe, python_command, quiet, relative_path, silence

FITTED_FACES = 2000  # faces that the distribution of z is fitted to

# Modules that import TensorFlow, which takes seconds, are imported after flags and folders have been checked.


def find_faces(flags: argparse.Namespace, explicit: set[str]) -> Listing:
    """Return the faces to train on, with the flags restored that the run in savedir records."""
    config = read_config(flags.savedir)
    if flags.align and ("dataset" in explicit or not config):
        flags.dataset = aligned_name(flags.dataset)
    restore_flags(flags, explicit, config, flags.savedir)  # first: it sets the data set
    if flags.use_init_model and not config:
        check_sizes(flags)
    if "TF_CONFIG" in os.environ and not Path("data", flags.dataset).is_dir():
        raise InputError(
            f"there is no data/{flags.dataset} yet, and several workers would create it at once: run the same command "
            "on one machine without TF_CONFIG first, and stop it when it trains"
        )
    photos = photos_name(flags.dataset) if flags.align else ""
    if photos and not Path("data", flags.dataset).is_dir():
        align_dataset(find_dataset(photos), Path("data", flags.dataset), flags.unknown_gender)
    return list_faces(find_dataset(flags.dataset), flags.unknown_gender)


def build(flags: argparse.Namespace, listing: Listing):
    """Return the FaceAging to train."""
    print("Building graph ...", flush=True)
    check_threads()
    with silence():
        from FaceAging import FaceAging
        from support.devices import Devices, best_precision, choose_strategy

        strategy = choose_strategy()
    devices = Devices(strategy)
    log = devices.log
    if flags.precision == "auto":
        flags.precision, reason = best_precision()
        log(f"Precision {flags.precision}: {reason}")
    log(describe(listing, AgeBins(flags.age_bounds)))
    if devices.is_chief and (doubt := alignment_warning(listing.faces)):
        print(doubt, file=sys.stderr)
    return FaceAging(
        **{name: getattr(flags, flag) for flag, name in MODEL_FLAGS.items()},
        num_categories=len(flags.age_bounds) + 1,
        save_dir=flags.savedir,
        strategy=strategy,
    )


def fit(model, faces: list[Face], flags: argparse.Namespace, on_epoch_end=None) -> int | None:
    """Train `model` as the flags set; see FaceAging.train."""
    names = "learning_rate", "optimizer", "schedule", "loss_weights", "balance", "flip", "use_trained_model", "cache"
    return model.train(
        faces,
        num_epochs=flags.epoch,
        init_model=flags.pretrained if flags.use_init_model else None,
        notes={"dataset": flags.dataset, "unknown_gender": flags.unknown_gender},
        on_epoch_end=on_epoch_end,
        **{name: getattr(flags, name) for name in names},
    )


def train(flags: argparse.Namespace, explicit: set[str]) -> int:
    listing = find_faces(flags, explicit)
    model = build(flags, listing)
    log = model.devices.log
    log("Training Mode")
    stop_signal = fit(model, listing.faces, flags)
    if stop_signal:
        log(f"Stopped and saved in {printable(flags.savedir)}: the same command resumes")
        return 128 + stop_signal
    where = () if flags.savedir == Path("save") else ("--savedir", flags.savedir)
    log(
        f"Done! The run is in {printable(flags.savedir)}. To age the demo faces with it, or your own with "
        f"--testdir DIR:\n{python_command(relative_path(PROJECT / 'main.py'), '--is_train', 'False', *where)}"
    )
    return 0


def load(flags: argparse.Namespace, explicit: set[str]):
    """Return the model to age with or measure, and its folder: the run in savedir or an included model.

    An included model is used if savedir has no model or --pretrained is explicit. Results go to savedir or, if it is
    read-only, to `save` in the current folder.
    """
    print("Building graph ...", flush=True)
    check_threads()
    with silence():
        from FaceAging import FaceAging
        from support.checkpoints import has_model

    print("Testing Mode")
    print("Loading pre-trained model ...", flush=True)
    folder = flags.savedir
    if "pretrained" in explicit or not has_model(folder):
        if "pretrained" not in explicit:
            print(f"{printable(folder)} has no trained model: using the included one")
        folder = included_model(flags.pretrained)
    restore_flags(flags, explicit, read_config(folder), folder)
    save_dir = flags.savedir
    if not writable(save_dir):
        save_dir = Path("save")
        print(f"{printable(flags.savedir)} is read-only: results go to {save_dir.absolute()}")
    model = FaceAging.load(folder, save_dir=save_dir)
    print("SUCCESS ^_^", flush=True)
    return model, folder


def evaluate(flags: argparse.Namespace, explicit: set[str]) -> int:
    if flags.evaluate:
        folder = Path(flags.evaluate)
        if not folder.is_dir():
            raise InputError(f"--evaluate: {printable(flags.evaluate)} is not a folder: give one of labelled faces")
        faces = list_faces(folder, flags.unknown_gender).faces
    # the recorded unknown_gender applies to the training faces only
    model, source = load(flags, explicit - {"unknown_gender"})
    config, training = read_config(source), ()
    if not flags.evaluate:
        folder = find_dataset(flags.dataset)
        listed = list_faces(folder, flags.unknown_gender).faces
        split = train_val_split(listed, flags.seed, config)
        training, faces = sorted(split.training), split.held_out
    name = config.get("training", {}).get("init_model") or included_name(source)
    faces, notes = choose_evaluation_faces(faces, training, name)
    metrics = model.evaluate(faces, others=training or faces, detail=flags.detail)
    metrics = {"folder": str(folder), **notes, **metrics}
    from support.evaluation import report

    print(report(metrics), flush=True)
    path = model.save_dir / "evaluation.json"
    write_json(path, metrics)  # last: an error here leaves the table
    print(f"Done! Results are saved as {printable(path)}")
    return 0


def test(flags: argparse.Namespace, explicit: set[str]) -> int:
    check_aging(flags)
    if flags.random:
        return draw_random(flags, explicit)
    paths = flags.blend or find_images(flags.testdir or [str(relative_path(DEMO_FACES))])
    model, _ = load(flags, explicit)
    options = {"detail": flags.detail, "own_ages": flags.own_age or (), "own_genders": flags.own_gender or ()}
    if flags.paste:
        return paste(flags, explicit, model, paths, options)
    if flags.blend:
        genders = () if flags.gender == "both" else GENDER_CHOICES[flags.gender] * 2
        drawn = [model.blend(*paths, flags.age or (), genders, flags.align, **options)]
    else:
        chosen = GENDER_CHOICES[flags.gender], flags.age or (), flags.animate, flags.align, flags.photo
        aged = model.test(paths, *chosen, **options)
        print(f"{aged:,} {'face' if aged == 1 else 'faces'} aged")
        folder = model.save_dir / "test"
        name = output_name(paths[0]) if aged == len(paths) == 1 else "NAME"
        drawn = [folder / f"{name}_AGE_xxx.png"] if flags.age else []
        drawn += [folder / f"{name}_xxx.{flags.animate}"] if flags.animate else []
        drawn = drawn or [folder / "test_as_xxx.png"]
    for path in drawn:
        print(f"Done! Results are saved as {printable(path)}")
    return 0


def paste(flags: argparse.Namespace, explicit: set[str], model, paths: list[Path], options: dict) -> int:
    """Write photos with their faces aged in place, by default at the centre of every age bin."""
    genders = GENDER_CHOICES[flags.gender] if "gender" in explicit else ()
    if "detail" not in explicit:
        options["detail"] = 1.0
    options |= {"years": flags.years or (), "animate": flags.animate, "align": flags.align}
    options |= {"faces": (flags.face,) if flags.face else ()}
    options |= {"film_side": flags.film_size} if flags.film_size else {}
    ages = flags.age or (() if flags.years or flags.animate else model.bins.centres)
    count = model.age_photos(paths, ages, genders, **options)
    print(f"{count:,} {'photo' if count == 1 else 'photos'} aged")
    print(f"Done! Results are saved in {printable(model.save_dir / 'test')}")
    return 0


def draw_random(flags: argparse.Namespace, explicit: set[str]) -> int:
    seed = flags.seed  # of the random faces, not of the run
    model, source = load(flags, explicit - {"seed"})
    if not model.z_distribution:
        fit_z(model, source, flags)
    model.draw_random(flags.random, GENDER_CHOICES[flags.gender], seed)
    print(f"Done! Results are saved as {printable(model.save_dir / 'test' / 'random_as_xxx.png')}")
    return 0


def fit_z(model, source: Path, flags: argparse.Namespace) -> None:
    """Fit the distribution of z to faces that the run was trained on, if they are still in data/."""
    try:
        faces = list_faces(find_dataset(flags.dataset), flags.unknown_gender).faces
        training = train_val_split(faces, model.seed, read_config(source), lambda _: None).training
        model.fit_z(training[:FITTED_FACES])
    except InputError as error:
        print(f"z is sampled from U(-1, 1), less realistic, because its distribution cannot be fitted: {error}")


def main(argv: list[str] | None = None) -> int:
    flags, explicit = parse_flags(argv)
    quiet()
    try:
        aging = explicit & AGING_FLAGS
        if flags.evaluate is not None and aging:
            raise InputError(f"--{min(aging)} is for aging faces: omit it, or --evaluate")
        if flags.evaluate is None and flags.is_train and (aging := aging | explicit & {"detail"}):
            raise InputError(f"--{min(aging)} is for aging faces: add --is_train False")
        if flags.is_train and flags.evaluate is None and "pretrained" in explicit and not flags.use_init_model:
            raise InputError("--pretrained selects the model to start from: add --use_init_model True")
        if flags.evaluate is not None:
            return evaluate(flags, explicit)
        return train(flags, explicit) if flags.is_train else test(flags, explicit)
    except (InputError, FloatingPointError) as error:
        print(f"main.py: {error}", file=sys.stderr)
    except OSError as error:  # no permission to write, a full disk
        print(f"main.py: {error.filename or flags.savedir}: {error.strerror or error}", file=sys.stderr)
    except KeyboardInterrupt:  # before or after training, which has its own handler
        print("main.py: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if not (message := exhausted(error)):
            raise
        print(f"main.py: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    make_streams_safe()
    sys.exit(main())
