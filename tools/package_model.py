"""Package the included model from a run of tools.train_model: `python -m tools.package_model save/run [STEP ...]`.

- model: E and G with 8-bit weights, the mean over the last epochs, and the distribution of z over the training faces;
- card: the numbers in support/pretrained/aging/README.md, measured on the held-out faces of the run's data set;
- faces: demo/faces, twenty random faces, two of each age bin, one male and one female, not selected. Named as in MORPH:
  03_1F13.png is the third, female, 13 years old. Replaces earlier ones;
- figures: demo/ages.png (a face at every age bin, large), demo/sample.png (all and their reconstructions) and
  demo/test.png (ten of them at every age bin);
- training: demo/loss_epoch.png (the run's losses) and demo/demo_train.gif (the run's random faces, epoch by epoch).

Steps card, faces and figures use the packaged model.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

import main
from support import figures
from support.config import TRAINING_FLAGS, as_flag, read_config
from support.dataset import Face, image_names
from support.files import atomic_write, write_json
from support.flags import to_path
from support.images import save_image
from support.labels import FEMALE, MALE, parse_name
from support.pretrained import DEFAULT_MODEL, FINGERPRINTS_FILE, INCLUDED_MODELS, WEIGHTS_FILE, fingerprints
from tools import command, make_parser, read_losses, run, split_of

with main.silence():
    import ops
    from FaceAging import FaceAging
    from support.checkpoints import saved_checkpoints
    from support.evaluation import METRICS, markdown
    from support.pretrained import load_quantized, quantize_weights
    from tools.train_model import kept_epochs

DEMO = main.PROJECT / "demo"
FACES = DEMO / "faces"
FACES_SEED = 5
RACES = ("White", "Black", "Asian", "Indian", "other")  # UTKFace's codes 0 to 4
# columns of the card's tables, with their decimals
RECONSTRUCTION_COLUMNS = {"faces": 0, "L1": 4, "PSNR": 2, "SSIM": 3, "sharpness": 3, "label_movement": 4}
AGING_COLUMNS = {"estimated_age": 1, "age_mae": 1, "gender_accuracy": 2, "aged_sharpness": 2}
AGING_COLUMNS |= {"real_faces": 0, "real_age": 1, "real_estimated_age": 1}
IDENTITY_COLUMNS = {"faces": 0, "reconstruction_verification": 2, "aged_verification": 2, "false_accept_rate": 2}
IDENTITY_COLUMNS |= {"reconstruction_verification_far1": 2, "aged_verification_far1": 2}
AGING_TITLE = "Age and gender of generated and of real faces, estimated by the age network:"
IDENTITY_TITLE = "Identity, measured by dlib's face embedding:"
BEGIN, END = "<!-- numbers, written by tools.package_model -->", "<!-- end of numbers -->"
GIF_BYTES, GIF_SIDE = 4_000_000, 64  # of demo_train.gif, and pixels of a face in it
WIDTH = 1600  # pixels of the large figures
LARGE_FACE, LARGE = 4, 256  # the number of the face in demo/ages.png, and its side in pixels


def load_averaged(folder: Path) -> FaceAging:
    """Return a run's model with the mean of the weights after each of its last epochs.

    Stochastic weight averaging: Izmailov et al., UAI 2018.
    """
    model = FaceAging.load(folder)
    variables = model.E.weights + model.G.weights
    epochs = []
    for path in kept_epochs(folder):
        load_quantized(path, [model.E, model.G])
        epochs.append([variable.numpy() for variable in variables])
    for variable, values in zip(variables, zip(*epochs, strict=True), strict=bool(epochs)):
        variable.assign(np.mean(values, axis=0))
    return model


def pack(source: Path, bits: int = 8, folder: Path | None = None, faces: Sequence[Face] = ()) -> None:
    """Write the averaged E and G of a run to `folder`, by default that of the included model.

    With the faces trained on, their fingerprints are written too, and the weights carry the distribution of z over
    them, for `FaceAging.sample`.
    """
    folder = folder or INCLUDED_MODELS[DEFAULT_MODEL]
    model = load_averaged(source)
    if faces:
        model.fit_z(faces)
    quantize_weights(folder / WEIGHTS_FILE, [model.E, model.G], bits, model.z_distribution)
    if faces:
        np.save(folder / FINGERPRINTS_FILE, np.sort(fingerprints([face.path for face in faces])))
    config = read_config(source)
    if "steps" not in config["training"]:  # a packed model has them
        step = int(saved_checkpoints(source / "checkpoint")[0].rsplit("-", 1)[1])
        epochs = round(read_losses(source)[step - 1]["epoch"], 2)
        config["training"] |= {"steps": step, "epochs": epochs, "averaged_epochs": len(kept_epochs(source))}
    write_json(folder / "config.json", config)


def write_card(source: Path) -> None:
    """Write the metrics of the packaged model, and the cost of packing, between the marks of its model card."""
    folder = INCLUDED_MODELS[DEFAULT_MODEL]
    model = FaceAging.load()
    training, held_out, _ = split_of(folder)
    metrics = model.evaluate(held_out, others=training)
    count = metrics["overall"]["faces"]
    packings = {"8 bits, as included": metrics["overall"], **packing_costs(source, held_out)}
    parts = [
        BEGIN,
        f"{training_summary(read_config(folder))} Measured on the {count} faces held out of training; the results of "
        "small groups are uncertain.",
        markdown("weights", packings, RECONSTRUCTION_COLUMNS),
        markdown("age", metrics["by_age"], RECONSTRUCTION_COLUMNS),
        markdown("gender", metrics["by_gender"], RECONSTRUCTION_COLUMNS),
        "By race, as labelled in the data set:",
        markdown("race", by_race(model, held_out), RECONSTRUCTION_COLUMNS),
        meanings(RECONSTRUCTION_COLUMNS),
        AGING_TITLE,
        markdown("requested age", metrics["aging"]["by_bin"], AGING_COLUMNS),
        meanings(AGING_COLUMNS),
    ]
    if identity := metrics.get("identity"):
        rows = {**identity["by_bin"], "all": identity["overall"]}
        parts += [IDENTITY_TITLE, markdown("age", rows, IDENTITY_COLUMNS), meanings(IDENTITY_COLUMNS)]
    card = folder / "README.md"
    before, _, rest = card.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    with atomic_write(card) as path:
        path.write_text(before + "\n\n".join([*parts, END]) + after, encoding="utf-8")


def meanings(columns: dict[str, int]) -> str:
    return "\n".join(f"- {name}: {METRICS[name]}" for name in columns)


def training_summary(config: dict) -> str:
    """Return the card's sentences on the training of a packed model."""
    model, training = config["model"], config["training"]
    values = {flag: training[flag] for flag in TRAINING_FLAGS if training.get(flag) and flag != "dataset"}
    flags = " ".join(f"--{flag} {as_flag(value)}" for flag, value in values.items())
    summary = (
        f"Trained for {training['epochs']:g} epochs ({training['steps']:,} steps of {model['size_batch']} faces) on "
        f"{training['dataset']} with `{flags}`, seed {model['seed']}, {model['num_encoder_channels']} encoder, "
        f"{model['num_gen_channels']} generator and {model['num_z_channels']} z channels."
    )
    if (averaged := training["averaged_epochs"]) > 1:
        summary += f" The weights are the mean of those after each of the last {averaged} epochs."
    return summary


def packing_costs(source: Path, held_out: Sequence[Face]) -> dict[str, dict]:
    """Return the metrics with weights of more bits, and with those of the last epoch alone if epochs are averaged."""
    with tempfile.TemporaryDirectory() as folder:
        pack(source, 16, Path(folder))
        models = {"float32": load_averaged(source), "float16": FaceAging.load(folder)}
    if len(kept_epochs(source)) > 1:
        models["float32, of the last epoch alone"] = FaceAging.load(source)
    return {name: model.evaluate(held_out, identity=False)["overall"] for name, model in models.items()}


def by_race(model: FaceAging, held_out: Sequence[Face]) -> dict[str, dict]:
    codes = [Path(face.path).name.split("_")[2:3] for face in held_out]
    groups = {
        race: [face for face, code in zip(held_out, codes, strict=True) if code == [str(i)]]
        for i, race in enumerate(RACES)
    }
    return {race: model.evaluate(faces, identity=False)["overall"] for race, faces in groups.items() if faces}


def make_faces() -> None:
    model = FaceAging.load()
    ages = np.repeat([3, 8, 13, 18, 25, 35, 45, 55, 65, 78], 2)
    genders = np.tile([MALE, FEMALE], len(ages) // 2)
    order = np.random.default_rng(FACES_SEED).permutation(len(ages))  # the first ten are of all ages
    images = model.generate(model.sample(len(ages), FACES_SEED), ages[order], genders[order])
    for path in FACES.glob("[0-9][0-9]_1[MF][0-9][0-9].png"):
        path.unlink()
    for number, (image, age, gender) in enumerate(zip(images, ages[order], genders[order], strict=True), 1):
        save_image(FACES / f"{number:02d}_1{'MF'[gender]}{age:02d}.png", image)


def resized(image: np.ndarray, width: int, height: int | None = None) -> np.ndarray:
    height = height or round(width * len(image) / image.shape[1])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


def draw_figures() -> None:
    model = FaceAging.load()
    paths = [FACES / name for name in image_names(FACES)]
    _, ages, genders = zip(*(parse_name(path.name) for path in paths), strict=True)
    images = np.stack([ops.load_image(path, model.size_image, model.num_input_channels) for path in paths])

    i, bins = LARGE_FACE - 1, model.bins.names
    aged = model.at_every_age(model.encode(images[i : i + 1]), genders[i])
    large, half = np.stack([resized(face, LARGE) for (face,) in aged]), len(bins) // 2
    parts = [figures.sheet(large[np.newaxis, part], [""], bins[part]) for part in (slice(half), slice(half, None))]
    save_image(DEMO / "ages.png", np.concatenate(parts))

    rebuilt = model.age(images, ages, genders)
    rows = np.stack([images[:10], rebuilt[:10], images[10:20], rebuilt[10:20]])
    save_image(DEMO / "sample.png", resized(figures.sheet(rows, ["input", "reconstruction"] * 2), WIDTH))

    with tempfile.TemporaryDirectory() as folder:
        FaceAging.load(save_dir=folder).test(paths[:10])
        sheets = [np.asarray(Image.open(Path(folder, f"test/test_as_{name}.png"))) for name in ("male", "female")]
    save_image(DEMO / "test.png", resized(np.concatenate(sheets, axis=1), WIDTH))


def draw_training(source: Path) -> None:
    losses = read_losses(source)
    figures.plot_losses(DEMO / "loss_epoch.png", *([row[name] for row in losses] for name in ("epoch", "EG_loss")))
    model = FaceAging.load(source)

    def frame(path: Path) -> np.ndarray:
        grid = np.asarray(Image.open(path))
        height, width = (side * GIF_SIDE // model.size_image for side in grid.shape[:2])
        rows = figures.tiles(Image.fromarray(resized(grid, width, height)), GIF_SIDE)
        return figures.sheet(rows, model.bins.names, title=f"epoch {path.stem}")

    if paths := sorted((source / "random").glob("*.png")):
        frames = figures.Frames(frame, paths + paths[-1:] * 4)  # the last one is shown longer
        figures.save_animation(DEMO / "demo_train.gif", frames, frame_seconds=0.4, max_bytes=GIF_BYTES)


STEPS = {
    "model": lambda source: pack(source, faces=split_of(source).training),
    "card": write_card,
    "faces": lambda source: make_faces(),
    "figures": lambda source: draw_figures(),
    "training": draw_training,
}


@command
def package(argv: list[str]) -> int:
    parser = make_parser(package)
    parser.add_argument("run", type=to_path, help="the folder of the run")
    parser.add_argument("steps", nargs="*", choices=[*STEPS, []], default=[], help="by default all of them")
    flags = parser.parse_args(argv)
    for step in flags.steps or STEPS:
        print(f"{step} ...", flush=True)
        STEPS[step](flags.run)
    return 0


if __name__ == "__main__":
    run(package)
