"""Compare trained runs, such as those of different loss weights, in one table:

    python -m tools.compare_runs save/weights/* support/pretrained/aging --out save/weights/comparison

For each run, on the faces held out of its own training, what `FaceAging.evaluate` measures: the units of MEASURES, of
support.aging_measures.AGING_MEASURES and of IDENTITY_MEASURES, where dlib is installed (--identity False leaves it
out, which is faster). And, of a run that has kept its losses:

- train L1, G_img, D_img: means of the last 300 steps of EG_loss, of G_img_loss, and of D_img_loss_input + D_img_loss_G.
  Where the last is near 0, D_img has won and teaches G nothing.
- diversity: mean absolute difference between pairs of reconstructions, relative to that between the faces; 0 where all
  faces look alike.

The table is printed in Markdown, a row as soon as it is measured, and everything that was measured is written to
OUT.json. How far the network is right that sees the ages stands in two columns of its own, real_age_error and
real_gender_right; a run of another seed holds out faces that this network was trained on.
"""

import argparse
import csv
import functools
import os
import sys
from pathlib import Path

import numpy as np

import main
from support.batches import read_images, train_val_split
from support.config import as_flag, read_config
from support.dataset import find_dataset, list_faces
from support.errors import InputError
from support.files import write_json
from support.flags import true_or_false

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with main.silence():
    import ops
    from FaceAging import FaceAging

LAST_STEPS = 300
COLUMNS = {  # of the printed table, with the digits
    "step": 0,
    "L1": 4,
    "PSNR": 2,
    "SSIM": 3,
    "sharpness": 3,
    "z_KS": 3,
    "youngest": 1,
    "oldest": 1,
    "centre_error": 1,
    "rank_correlation": 2,
    "gender_obeyed": 3,
    "rebuilt_same": 2,
    "aged_same": 2,
    "rebuilt_strict": 2,
    "aged_strict": 2,
    "label_movement": 4,
    "diversity": 2,
    "train L1": 4,
    "G_img": 3,
    "D_img": 3,
    "real_age_error": 1,
    "real_gender_right": 2,
}


def pairwise_difference(images: np.ndarray) -> float:
    """The mean absolute difference between two of the pictures, uint8 [N, H, W, C], over all pairs."""
    flat = images.reshape(len(images), -1).astype(np.int16)
    return float(np.mean([np.abs(flat[i] - flat[i + 1 :]).mean() for i in range(len(flat) - 1)]))


def late_losses(path: Path) -> dict:
    """The step that losses.csv has come to and means of its last steps; nothing where there is no such file."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))

    def late(*names: str) -> float:
        return float(np.mean([sum(float(row[name]) for name in names) for row in rows[-LAST_STEPS:]]))

    return {
        "step": int(rows[-1]["step"]),
        "train L1": late("EG_loss"),
        "G_img": late("G_img_loss"),
        "D_img": late("D_img_loss_input", "D_img_loss_G"),
    }


def measure(folder: Path, data_folder: Path, identity: bool = True) -> dict:
    """The row of a run: the numbers of COLUMNS by name, those that there are, and under "measured" all the rest."""
    model = FaceAging.load(folder)
    training = read_config(folder)["training"]
    faces = list_faces(find_dataset(training["dataset"], data_folder), training.get("unknown_gender", False)).faces
    training, held_out, _ = train_val_split(faces, model.seed, read_config(folder))
    measured = model.evaluate(held_out, identity, sorted(training))

    load_image = functools.partial(ops.load_image, size_image=model.size_image, channels=model.num_input_channels)
    images, read = read_images(held_out, load_image)
    rebuilt = model.generate(model.encode(images), [face.age for face in read], [face.gender for face in read])
    return {
        "run": folder.name,
        "weights": as_flag(training["loss_weights"]),
        **measured["overall"],
        **measured["aging"]["overall"],
        **measured.get("identity", {}).get("overall", {}),
        "diversity": pairwise_difference(rebuilt) / pairwise_difference(images),
        **late_losses(folder / "losses.csv"),
        "measured": measured,
    }


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def row_line(row: dict) -> str:
    """The row in Markdown; what is not known is left empty."""
    numbers = [f"{row[name]:.{digits}f}" if row.get(name) is not None else "" for name, digits in COLUMNS.items()]
    return line([row["run"], row["weights"], *numbers])


def compare_runs(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tools.compare_runs", description=__doc__.split("\n", 1)[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--out", type=Path, help="OUT.json is written")
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder that holds the data sets")
    parser.add_argument(
        "--identity",
        type=true_or_false,
        default=True,
        metavar="BOOL",
        help="compare people by dlib, slow",
    )
    flags = parser.parse_args(argv)
    heads = ["run", "weights", *COLUMNS]
    print(f"{line(heads)}\n{line(['---'] * len(heads))}", flush=True)
    rows = []
    for folder in flags.runs:
        try:
            if not read_config(folder):  # a log beside the runs
                continue
            rows.append(measure(folder, flags.data, flags.identity))
        except (InputError, OSError) as error:  # one that has no checkpoint yet
            print(f"Left out: {folder}: {error}", file=sys.stderr)
            continue
        print(row_line(rows[-1]), flush=True)
        if flags.out:  # after each run, that a long comparison can be stopped
            write_json(flags.out.with_name(f"{flags.out.name}.json"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(compare_runs(sys.argv[1:]))
