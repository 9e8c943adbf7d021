"""Compare trained runs, such as those of different loss weights, in one table:

    python -m tests.tools.compare_weights save/weights/* --out save/weights/comparison

For each run, on the faces held out of its own training: what `FaceAging.evaluate` measures (its MEASURES say the
units), and

- train L1, G_img, D_img: means of the last 300 steps of EG_loss, of G_img_loss, and of D_img_loss_input + D_img_loss_G.
  Where the last is near 0, D_img has won and teaches G nothing.
- diversity: mean absolute difference between pairs of reconstructions, relative to that between the faces; 0 where all
  faces look alike.
- whether the age label moves the picture in the right direction, by an age regressor that looks at each face at the
  centre of each bin: the rank correlation with that age (Spearman, mean over faces), the correlation over all pictures
  (Pearson), the slope in years per year, and the mean age seen at the youngest and at the oldest bin.

The table is printed in Markdown, and written with all digits to OUT.csv and OUT.json. The regressor, a small network
for pictures of 64 pixels, is trained on the real faces that are not held out with seed 2017 where the file --regressor
is not there yet. It shrinks ages towards the middle: compare its slope with that on real faces, which is printed. A run
of another seed holds out faces that the regressor has seen, though never what the run makes of them.
"""

import argparse
import csv
import functools
import io
import json
import os
import sys
from pathlib import Path

import numpy as np

import main
from support.batches import epoch_order, read_faces, split
from support.dataset import find_dataset, list_faces
from support.errors import InputError
from support.files import read_config, write_whole
from support.held_out import held_out_of
from support.images import BadPicture
from support.labels import AgeBins

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with main.silence():
    import keras
    import tensorflow as tf
    from keras import layers
    from scipy.stats import linregress, spearmanr

    import ops
    from FaceAging import FaceAging

SIDE = 64  # pixels of the regressor's pictures
BLURRED = 24  # pixels that half of them are shrunk to and enlarged from: generated faces are blurred
EPOCHS, BATCH, SEED = 10, 64, 2017
LAST_STEPS = 300
COLUMNS = {  # of the printed table, with the digits
    "steps": 0,
    "L1": 4,
    "train L1": 4,
    "PSNR": 2,
    "SSIM": 3,
    "z_KS": 3,
    "z_KS_pooled": 3,
    "sharpness": 3,
    "diversity": 2,
    "label_movement": 4,
    "age Spearman": 2,
    "age Pearson": 2,
    "age slope": 3,
    "age at youngest": 1,
    "age at oldest": 1,
    "G_img": 3,
    "D_img": 3,
}


def make_regressor() -> keras.Model:
    """A network from pictures, [N, 64, 64, 3] in [-1, 1], to ages in years, [N, 1]."""
    images = x = keras.Input([SIDE, SIDE, 3])
    for channels in (32, 64, 128, 192):
        x = layers.Conv2D(channels, 3, strides=2, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.Dropout(0.3)(layers.Flatten()(x))
    x = layers.Dense(128, activation="relu")(x)
    return keras.Model(images, layers.Rescaling(25.0, offset=40.0)(layers.Dense(1)(x)))


def shrink(images: np.ndarray) -> tf.Tensor:
    """Pictures, uint8 [N, H, W, C], as the regressor sees them: float32 [N, 64, 64, 3] in [-1, 1]."""
    images = ops.normalize(images)
    if images.shape[-1] == 1:
        images = tf.repeat(images, 3, axis=-1)
    return tf.image.resize(images, [SIDE, SIDE], antialias=True)


def read(faces) -> tuple[np.ndarray, list]:
    """(uint8 [N, 64, 64, 3], the faces) of those that can be read."""
    images, kept = [], []
    for face in faces:
        try:
            images.append(ops.load_image(face.path, SIDE, 3))
            kept.append(face)
        except BadPicture as error:
            print(f"Left out: {error}")
    return np.stack(images), kept


def train_regressor(path: Path, faces) -> keras.Model:
    """Train the regressor on all but the held-out faces, each age bin equally often, and keep it."""
    keras.utils.set_random_seed(SEED)
    images, faces = read(split(faces, SEED)[0])
    ages = np.array([face.age for face in faces], np.float32)[:, np.newaxis]
    model = make_regressor()
    steps = EPOCHS * (len(faces) // BATCH)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, steps)), loss="mae")
    random = np.random.default_rng(SEED)
    for epoch in range(1, EPOCHS + 1):
        order = epoch_order(faces, AgeBins(), epoch, SEED, balance=True)
        losses = []
        for i in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[i : i + BATCH]
            x = shrink(images[chosen])
            x = tf.where(random.uniform(size=[BATCH, 1, 1, 1]) < 0.5, x, x[:, :, ::-1])
            blurred = tf.image.resize(tf.image.resize(x, [BLURRED, BLURRED], antialias=True), [SIDE, SIDE])
            x = tf.where(random.uniform(size=[BATCH, 1, 1, 1]) < 0.5, x, blurred)
            losses.append(float(model.train_on_batch(x, ages[chosen])))
        print(f"Regressor, epoch {epoch}/{EPOCHS}: mean absolute error {np.mean(losses):.2f} years", flush=True)
    with write_whole(path) as temporary:
        model.save(temporary)
    return model


def ages_seen(regressor: keras.Model, images: np.ndarray) -> np.ndarray:
    """The ages in years, float [N], that the regressor sees in pictures, uint8 [N, H, W, C]."""
    return regressor.predict(shrink(images), batch_size=100, verbose=0)[:, 0]


def get_regressor(path: Path, data_folder: Path) -> keras.Model:
    faces = list_faces(find_dataset("UTKFace", data_folder)).faces
    regressor = keras.models.load_model(path) if path.exists() else train_regressor(path, faces)
    images, held_out = read(split(faces, SEED)[1])
    ages = np.array([face.age for face in held_out])
    seen = ages_seen(regressor, images)
    fit = linregress(ages, seen)
    print(
        f"Regressor on {len(ages)} held-out real faces: mean absolute error {np.abs(seen - ages).mean():.1f} years, "
        f"Pearson {fit.rvalue:.2f}, slope {fit.slope:.2f}",
        flush=True,
    )
    return regressor


def pairwise_difference(images: np.ndarray) -> float:
    """The mean absolute difference between two of the pictures, uint8 [N, H, W, C], over all pairs."""
    flat = images.reshape(len(images), -1).astype(np.int16)
    return float(np.mean([np.abs(flat[i] - flat[i + 1 :]).mean() for i in range(len(flat) - 1)]))


def compare(folder: Path, regressor: keras.Model, data_folder: Path) -> dict:
    """The row of a run."""
    config = read_config(folder)
    model = FaceAging.load(folder)
    training = config["training"]
    faces = list_faces(find_dataset(training["dataset"], data_folder), training.get("unknown_gender", False)).faces
    held_out = held_out_of(config, faces, model.seed)
    measured = model.evaluate(held_out)

    load_image = functools.partial(ops.load_image, size_image=model.size_image, channels=model.num_input_channels)
    images, _, _ = read_faces(held_out, model.bins, load_image)
    genders = [face.gender for face in held_out]
    z = model.encode(images)
    kept = model.generate(z, [face.age for face in held_out], genders)
    centres = np.array(model.bins.centres)
    seen = np.array([ages_seen(regressor, model.generate(z, age, genders)) for age in centres])  # [bins, N]
    fit = linregress(np.repeat(centres, len(z)), seen.ravel())

    with (folder / "losses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    def late(*names: str) -> float:
        return float(np.mean([sum(float(row[name]) for name in names) for row in rows[-LAST_STEPS:]]))

    return {
        "run": folder.name,
        "G_img,E_z,tv": ",".join(f"{weight:g}" for weight in training["loss_weights"]),
        "seed": model.seed,
        "balance": training["balance"],
        "steps": int(rows[-1]["step"]),
        **{name: value for name, value in measured["overall"].items() if name != "label_movement_by_bin"},
        "train L1": late("EG_loss"),
        "diversity": pairwise_difference(kept) / pairwise_difference(images),
        "age Spearman": float(np.nanmean([spearmanr(centres, one).statistic for one in seen.T])),
        "age Pearson": float(fit.rvalue),
        "age slope": float(fit.slope),
        "age at youngest": float(seen[0].mean()),
        "age at oldest": float(seen[-1].mean()),
        "G_img": late("G_img_loss"),
        "D_img": late("D_img_loss_input", "D_img_loss_G"),
        "label_movement_by_bin": measured["overall"]["label_movement_by_bin"],
        "ages seen": [round(float(age), 1) for age in seen.mean(axis=1)],
    }


def table(rows: list[dict]) -> str:
    """The rows in Markdown."""
    heads = ["run", "G_img,E_z,tv", "seed", "balance", *COLUMNS]
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        lines.append([str(row[name]) if name not in COLUMNS else f"{row[name]:.{COLUMNS[name]}f}" for name in heads])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def compare_runs(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tests.tools.compare_weights", description=__doc__.split("\n", 1)[0])
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs; without any only the regressor is made")
    parser.add_argument("--out", type=Path, help="OUT.csv and OUT.json are written")
    parser.add_argument("--regressor", type=Path, default=Path("save/age_regressor.keras"))
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder that holds the data sets")
    flags = parser.parse_args(argv)
    regressor = get_regressor(flags.regressor, flags.data)
    rows = []
    for folder in flags.runs:
        if not read_config(folder):  # a log beside the runs
            continue
        try:
            rows.append(compare(folder, regressor, flags.data))
        except (InputError, OSError) as error:  # one that has no checkpoint yet
            print(f"Left out: {folder}: {error}", file=sys.stderr)
            continue
        print(f"{folder} measured", flush=True)
        if flags.out:
            write(flags.out, rows)
    print(table(rows))
    return 0


def write(out: Path, rows: list[dict]) -> None:
    """The rows as OUT.csv and OUT.json, after each run, that a long comparison can be stopped."""
    text = io.StringIO()
    plain = [{name: value for name, value in row.items() if not isinstance(value, dict | list)} for row in rows]
    writer = csv.DictWriter(text, plain[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain)
    for suffix, content in ((".csv", text.getvalue()), (".json", json.dumps(rows, indent=2) + "\n")):
        with write_whole(out.with_name(out.name + suffix)) as temporary:
            temporary.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(compare_runs(sys.argv[1:]))
