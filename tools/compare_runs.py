"""Compare trained runs in one table: `python -m tools.compare_runs save/* --out save/comparison`.

For each run, the metrics of FaceAging.evaluate on the faces held out of its training: see docs/evaluation.md. Runs with
a losses.csv also have:

- train L1, G_img, D_img: means of the last 300 steps of EG_loss, G_img_loss, and D_img_loss_input + D_img_loss_G; near
  0, D_img dominates, and G receives no useful gradient;
- diversity: mean absolute difference between pairs of reconstructions, relative to that between the faces; 0 if all
  reconstructions are the same.

Prints Markdown, a row after each run, and writes all metrics to OUT.json. A run of another seed may hold out faces that
the age network was trained on: see real_age_mae.
"""

import functools
import sys
from pathlib import Path

import numpy as np

import main
from support import InputError
from support.batches import choose_evaluation_faces
from support.config import as_flag, read_config
from support.files import write_json
from support.flags import true_or_false
from support.images import read_images
from tools import command, make_parser, read_losses, run, split_of

with main.silence():
    import ops
    from FaceAging import FaceAging
    from support.evaluation import markdown

LAST_STEPS = 300
COLUMNS = {  # with their decimals
    **{"weights": 0, "step": 0, "L1": 4, "PSNR": 2, "SSIM": 3, "sharpness": 3, "z_KS": 3},
    **{"youngest": 1, "oldest": 1, "age_mae": 1, "rank_correlation": 2, "gender_accuracy": 3, "aged_sharpness": 2},
    **{"reconstruction_verification": 2, "aged_verification": 2, "reconstruction_verification_far1": 2},
    **{"aged_verification_far1": 2, "label_movement": 4, "diversity": 2, "train L1": 4, "G_img": 3, "D_img": 3},
    **{"real_age_mae": 1, "real_gender_accuracy": 2},
}


def pairwise_difference(images: np.ndarray) -> float:
    """Return the mean absolute difference over all pairs of images, uint8 [N, H, W, C]."""
    flat = images.reshape(len(images), -1).astype(np.int16)
    return float(np.mean([np.abs(flat[i] - flat[i + 1 :]).mean() for i in range(len(flat) - 1)]))


def late_losses(folder: Path) -> dict[str, float]:
    """Return the last step of losses.csv and means over its last steps; {} without the file."""
    rows = read_losses(folder)

    def late(*names: str) -> float:
        return float(np.mean([sum(row[name] for name in names) for row in rows[-LAST_STEPS:]]))

    if not rows:
        return {}
    losses = {"train L1": ["EG_loss"], "G_img": ["G_img_loss"], "D_img": ["D_img_loss_input", "D_img_loss_G"]}
    return {"step": int(rows[-1]["step"]), **{name: late(*columns) for name, columns in losses.items()}}


def measure(folder: Path, data_folder: Path, identity: bool = True) -> dict:
    """Return a run's row: the values of COLUMNS by name, as far as known, and all metrics under "metrics"."""
    model, training = FaceAging.load(folder), read_config(folder)["training"]
    trained_on, held_out, _ = split_of(folder, data_folder)
    held_out, _ = choose_evaluation_faces(held_out, trained_on, training.get("init_model"))
    metrics = model.evaluate(held_out, identity, sorted(trained_on))

    load_image = functools.partial(ops.load_image, size_image=model.size_image, channels=model.num_input_channels)
    images, read = read_images(held_out, load_image)
    rebuilt = model.age(images, [face.age for face in read], [face.gender for face in read])
    return {
        "run": folder.name,
        "weights": as_flag(training["loss_weights"]),
        **metrics["aging"]["overall"],
        **metrics.get("identity", {}).get("overall", {}),
        **metrics["overall"],
        "diversity": pairwise_difference(rebuilt) / pairwise_difference(images),
        **late_losses(folder),
        "metrics": metrics,
    }


@command
def compare_runs(argv: list[str]) -> int:
    parser = make_parser(compare_runs)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--out", type=Path, help="write OUT.json")
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder with the data sets")
    parser.add_argument("--identity", type=true_or_false, default=True, metavar="BOOL", help="measure identity, slow")
    flags = parser.parse_args(argv)
    rows = []
    for folder in flags.runs:
        if not read_config(folder):  # a log beside the runs
            continue
        try:
            rows.append(measure(folder, flags.data, flags.identity))
        except (InputError, OSError) as error:  # no checkpoint yet
            print(f"Skipped: {folder}: {error}", file=sys.stderr)
            continue
        table = markdown("run", {folder.name: rows[-1]}, COLUMNS).splitlines()
        print("\n".join(table if len(rows) == 1 else table[2:]), flush=True)
        if flags.out:  # after each run, so that a long comparison can be stopped
            write_json(flags.out.with_name(f"{flags.out.name}.json"), rows)
    return 0


if __name__ == "__main__":
    run(compare_runs)
