"""Package the included model from a run of tools.train_model: `python -m tools.package_model save/run [STEP ...]`.

- model: the run's E and G with 8-bit weights, each the mean over the last
  epochs, and how z of the faces that it was trained on is distributed;
- card: the numbers in support/pretrained/aging/README.md, measured on the run's held-out faces, which must be in data/;
- faces: demo/faces, twenty people who do not exist (`FaceAging.sample`), each of two at another age bin, one as male
  and one as female. They are taken as they come. Names are MORPH's: 03_1F13.png is the third, female, 13 years old.
  Those of an earlier call are removed;
- pictures: demo/ages.png (one of them at every age, large), demo/sample.png (all, and their reconstructions) and
  demo/test.png (ten of them at every age);
- training: demo/loss_epoch.png (the run's losses) and demo/demo_train.gif (the run's random faces, epoch by epoch).

The steps between the first and the last take the packed model, so that what is shown and measured is what ships.
"""

import argparse
import csv
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

import main
from support import pictures
from support.batches import train_val_split
from support.config import as_flag, read_config
from support.dataset import Face, find_dataset, image_names, list_faces
from support.errors import InputError
from support.files import atomic_write, write_json
from support.flags import to_path
from support.images import save_image
from support.labels import FEMALE, MALE, parse_name
from support.pretrained import DEFAULT_MODEL, INCLUDED_MODELS, PACKED
from support.terminal import make_streams_safe

with main.silence():
    import ops
    from FaceAging import FaceAging
    from support.checkpoints import saved_checkpoints
    from support.pretrained import load_quantized, quantize_weights
    from tools.train_model import kept_epochs

DEMO = Path(__file__).parents[1] / "demo"
FACES = DEMO / "faces"
FACES_SEED = 5
RACES = ("White", "Black", "Asian", "Indian", "other")  # UTKFace's own words for its codes 0 to 4
# measures of the card's tables, and their digits
KEPT = {"faces": 0, "L1": 4, "PSNR": 2, "SSIM": 3, "sharpness": 3, "label_movement": 4}
AGED = {"age_seen": 1, "centre_error": 1, "gender_obeyed": 2, "real_faces": 0, "real_age": 1, "real_age_seen": 1}
PERSON = {"faces": 0, "rebuilt_same": 2, "aged_same": 2, "others_same": 2, "rebuilt_strict": 2, "aged_strict": 2}
BEGIN, END = "<!-- numbers, written by tools.package_model -->", "<!-- end of numbers -->"
GIF_BYTES, GIF_SIDE = 4_000_000, 64  # of demo_train.gif, and pixels of a face in it
PICTURE_WIDTH = 1600  # pixels
SHOWN_LARGE, LARGE = 4, 256  # the number of the face in demo/ages.png, and its side there in pixels


def read_losses(run: Path) -> list[dict[str, str]]:
    with (run / "losses.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def faces_of(run: Path) -> tuple[list[Face], list[Face]]:
    """Returns (training, held out), the faces that a run was trained on and the others of its data set."""
    config = read_config(run)
    training, seed = config["training"], config["model"]["seed"]
    faces = list_faces(find_dataset(training["dataset"]), training["unknown_gender"]).faces
    return train_val_split(faces, seed, config)[:2]


def load_averaged(run: Path) -> FaceAging:
    """Returns a run's model with the mean of the weights kept after each of its last epochs.

    The weights of one epoch swing about that mean (stochastic weight averaging: Izmailov et al., UAI 2018).
    """
    model = FaceAging.load(run)
    variables = model.E.weights + model.G.weights
    epochs = []
    for path in kept_epochs(run):
        load_quantized(path, [model.E, model.G])
        epochs.append([variable.numpy() for variable in variables])
    for variable, values in zip(variables, zip(*epochs, strict=True), strict=bool(epochs)):
        variable.assign(np.mean(values, axis=0))
    return model


def pack(run: Path, bits: int = 8, folder: Path | None = None, faces: Sequence[Face] = ()) -> None:
    """Write the averaged E and G of a run into the folder, or else into support/pretrained/aging.

    With faces they carry the distribution of z over them, for `FaceAging.sample`.
    """
    folder = folder or INCLUDED_MODELS[DEFAULT_MODEL]
    model = load_averaged(run)
    if faces:
        model.fit_z(faces)
    quantize_weights(folder / PACKED, [model.E, model.G], bits, model.z_distribution)
    write_json(folder / "config.json", packed_config(run))


def packed_config(run: Path) -> dict:
    """Returns a run's config.json and with it how long it was trained, which a packed model's already tells."""
    config = read_config(run)
    if "steps" not in config["training"]:
        step = int(saved_checkpoints(run / "checkpoint")[0].rsplit("-", 1)[1])
        epochs = round(float(read_losses(run)[step - 1]["epoch"]), 2)
        config["training"] |= {"steps": step, "epochs": epochs, "averaged_epochs": len(kept_epochs(run))}
    return config


def write_card(run: Path) -> None:
    """Write the numbers of the packed model, and what packing costs, between the marks of its model card."""
    folder = INCLUDED_MODELS[DEFAULT_MODEL]
    model = FaceAging.load()
    trained_on, held_out = faces_of(folder)
    measured = model.evaluate(held_out, others=trained_on)
    lines = [
        BEGIN,
        "",
        f"{how_trained(read_config(folder))} Measured on the {measured['overall']['faces']} faces held out of "
        "training; a group of few faces says little.",
        "",
        *table("weights", {"8 bits, as shipped": measured["overall"], **costs_of_packing(run, held_out)}, KEPT),
        *table("age", measured["by_age"], KEPT),
        *table("gender", measured["by_gender"], KEPT),
        "By skin tone the set has only its own race labels, given by an algorithm and checked by people:",
        "",
        *table("race, as UTKFace has it", by_race(model, held_out), KEPT),
        *meanings(measured["units"], KEPT),
        "The ages and genders that a small network sees in the faces made, and in the real ones:",
        "",
        *table("age asked for", measured["aging"]["by_bin"], AGED),
        *meanings(measured["aging"]["units"], AGED),
    ]
    if "identity" in measured:
        people = measured["identity"]
        lines += ["Whether a face stays the person of the photo, by dlib's embedding:", ""]
        lines += table("age", {**people["by_bin"], "all": people["overall"]}, PERSON)
        lines += meanings(people["units"], PERSON)
    card = folder / "README.md"
    before, _, rest = card.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    with atomic_write(card) as path:
        path.write_text(before + "\n".join([*lines, END]) + after, encoding="utf-8")


def how_trained(config: dict) -> str:
    """Returns the card's sentences on what a packed model was trained with."""
    model, training = config["model"], config["training"]
    flags = {"loss_weights": as_flag(training["loss_weights"])}
    flags["learning_rate"] = f"{training['learning_rate']:g}"
    flags |= {flag: "True" for flag in ("balance", "flip") if training.get(flag)}
    says = (
        f"Trained for {amount(training, model['size_batch'])} of {training['dataset']} with "
        f"`{' '.join(f'--{flag} {value}' for flag, value in flags.items())}`, seed {model['seed']}, "
        f"{model['num_encoder_channels']} encoder and {model['num_gen_channels']} generator channels, "
        f"{model['num_z_channels']} numbers for z."
    )
    if narrow := training.get("widened_from"):
        says += (
            " Its networks began as those of a model of half the channels, trained for "
            f"{amount(narrow, narrow['size_batch'])} with `--learning_rate {narrow['learning_rate']:g}` and otherwise "
            "the same flags."
        )
    if (averaged := training["averaged_epochs"]) > 1:
        says += f" The weights are the mean of those after each of the last {averaged} epochs."
    return says


def amount(training: dict, size_batch: int) -> str:
    return f"{training['epochs']:g} epochs ({training['steps']:,} steps of {size_batch} faces)"


def costs_of_packing(run: Path, held_out: Sequence[Face]) -> dict[str, dict]:
    """Returns what is measured with weights of more bits, and with those of the last epoch alone."""
    with tempfile.TemporaryDirectory() as folder:
        pack(run, 16, Path(folder))
        models = {"float32": load_averaged(run), "float16": FaceAging.load(folder)}
    models["float32, of the last epoch alone"] = FaceAging.load(run)
    return {name: model.evaluate(held_out, identity=False)["overall"] for name, model in models.items()}


def by_race(model: FaceAging, held_out: Sequence[Face]) -> dict[str, dict]:
    groups = {}
    for code, race in enumerate(RACES):
        faces = [face for face in held_out if Path(face.path).name.split("_")[2:3] == [str(code)]]
        if faces:
            groups[race] = model.evaluate(faces, identity=False)["overall"]
    return groups


def table(head: str, groups: dict[str, dict], columns: dict[str, int]) -> list[str]:
    """Returns the lines of a table in Markdown, with an empty one behind; what is not known is left empty."""
    rows = [[head, *columns], ["---"] * (len(columns) + 1)]
    for name, row in groups.items():
        known = {measure: row.get(measure) for measure in columns}
        rows.append([name, *("" if known[m] is None else f"{known[m]:.{digits}f}" for m, digits in columns.items())])
    return [*(f"| {' | '.join(row)} |" for row in rows), ""]


def meanings(units: dict[str, str], columns: dict[str, int]) -> list[str]:
    return [*(f"- {name}: {units[name]}" for name in columns if name in units), ""]


def make_faces() -> None:
    model = FaceAging.load()
    ages = np.repeat([3, 8, 13, 18, 25, 35, 45, 55, 65, 78], 2)
    genders = np.tile([MALE, FEMALE], len(ages) // 2)
    order = np.random.default_rng(FACES_SEED).permutation(len(ages))  # that the first ten are of all ages
    z = model.sample(len(ages), FACES_SEED)
    for path in FACES.glob("[0-9][0-9]_1[MF][0-9][0-9].png"):
        path.unlink()
    images = model.generate(z, ages[order], genders[order])
    for number, (image, age, gender) in enumerate(zip(images, ages[order], genders[order], strict=True), 1):
        save_image(FACES / f"{number:02d}_1{'MF'[gender]}{age:02d}.png", image)


def shrunk(picture: np.ndarray, width: int = PICTURE_WIDTH) -> np.ndarray:
    image = Image.fromarray(picture)
    return np.asarray(image.resize((width, round(width * image.height / image.width)), Image.Resampling.LANCZOS))


def at_every_age(model: FaceAging, image: np.ndarray, gender: int) -> np.ndarray:
    """Returns two rows of one large face, young to old, with the age bins above: uint8 [H, W, 3]."""
    aged = model.age(image[np.newaxis], model.bins.centres, [gender])
    large = np.stack([Image.fromarray(face).resize((LARGE, LARGE), Image.Resampling.LANCZOS) for face in aged])
    middle = len(large) // 2
    rows = [
        pictures.sheet(large[np.newaxis, part], [""], model.bins.names[part])
        for part in (slice(middle), slice(middle, None))
    ]
    return np.concatenate(rows)


def draw_pictures() -> None:
    model = FaceAging.load()
    paths = [FACES / name for name in image_names(FACES)]
    faces = [parse_name(path.name) for path in paths]
    images = np.stack([ops.load_image(path, model.size_image, model.num_input_channels) for path in paths])
    save_image(DEMO / "ages.png", at_every_age(model, images[SHOWN_LARGE - 1], faces[SHOWN_LARGE - 1][2]))
    kept = model.age(images, [age for _, age, _ in faces], [gender for _, _, gender in faces])
    rows = np.stack([images[:10], kept[:10], images[10:20], kept[10:20]])
    save_image(DEMO / "sample.png", shrunk(pictures.sheet(rows, ["face", "as kept"] * 2)))

    with tempfile.TemporaryDirectory() as folder:
        FaceAging.load(save_dir=folder).test(paths[:10])
        sheets = [np.asarray(Image.open(Path(folder, f"test/test_as_{name}.png"))) for name in ("male", "female")]
    save_image(DEMO / "test.png", shrunk(np.concatenate(sheets, axis=1)))


def draw_training(run: Path) -> None:
    losses = read_losses(run)
    epochs, curve = ([float(row[name]) for row in losses] for name in ("epoch", "EG_loss"))
    pictures.plot_losses(DEMO / "loss_epoch.png", epochs, curve)
    model = FaceAging.load(run)
    frames = []
    for path in sorted((run / "random").glob("*.png")):
        grid = Image.open(path)
        size = [side * GIF_SIDE // model.size_image for side in grid.size]
        tiles = pictures.tiles(grid.resize(size, Image.Resampling.LANCZOS), GIF_SIDE)
        frames.append(pictures.sheet(tiles, model.bins.names, title=f"epoch {path.stem}"))
    if frames:
        frames += frames[-1:] * 4  # the end is looked at longer
        pictures.save_animation(DEMO / "demo_train.gif", frames, frame_seconds=0.4, max_bytes=GIF_BYTES)


STEPS = {
    "model": lambda run: pack(run, faces=faces_of(run)[0]),
    "card": write_card,
    "faces": lambda run: make_faces(),
    "pictures": lambda run: draw_pictures(),
    "training": draw_training,
}


def make(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tools.package_model", description=__doc__.split("\n", 1)[0])
    parser.add_argument("run", type=to_path, help="the folder of the run")
    parser.add_argument("steps", nargs="*", choices=[*STEPS, []], default=[], help="all of them where none is given")
    flags = parser.parse_args(argv)
    try:
        for step in flags.steps or STEPS:
            print(f"{step} ...", flush=True)
            STEPS[step](flags.run)
    except (InputError, OSError) as error:
        print(f"tools.package_model: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    make_streams_safe()
    sys.exit(make(sys.argv[1:]))
