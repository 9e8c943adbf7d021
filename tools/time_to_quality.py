"""Steps and minutes until reconstructions of held-out faces reach an L1, by recipe: `python -m tools.time_to_quality`.

The default target is what the paper's recipe reached after 12,002 steps. Reading, training and logging count; building
the networks and measuring do not. The faces stay in memory. A recipe whose learning rate decays is planned for
--planned_steps.
"""

import argparse
import contextlib
import functools
import math
import tempfile
import time
from pathlib import Path

import numpy as np

from support.batches import read_faces, train_val_split
from support.config import RECIPES
from support.dataset import find_dataset, list_faces
from support.files import write_json
from support.flags import whole_number
from tools import command, make_parser, run


class Finished(Exception):
    """The target or the limit is reached."""


class Watch:
    """A training step that measures the held-out L1 every `every` steps, and raises Finished at the end.

    rows: what was measured, (step, minutes, L1).
    """

    def __init__(self, model, held_out, flags: argparse.Namespace):
        self.model, self.train_step, self.flags = model, model.train_step, flags
        self.images, self.labels = held_out[0], held_out[1:]
        self.rows: list[tuple[int, float, float]] = []
        self.steps, self.measuring, self.began = 0, 0.0, time.perf_counter()

    def __call__(self, *arguments):
        if self.steps % self.flags.every == 0:
            self.measure()
        losses, outputs = self.train_step(*arguments)
        self.steps += 1
        return losses, outputs

    def measure(self) -> None:
        import ops

        paused = time.perf_counter()
        generated = self.model._images_of(self.model._z_of(self.images), *self.labels)
        error = float(np.abs(ops.normalize(self.images) - generated).mean())
        self.rows.append((self.steps, (paused - self.began - self.measuring) / 60, error))
        print("step {:,}, {:.1f} min: L1 {:.4f}".format(*self.rows[-1]), flush=True)
        self.measuring += time.perf_counter() - paused
        if error < self.flags.target or self.steps >= self.flags.limit_steps:
            raise Finished


def measure(name: str, faces: list, flags: argparse.Namespace) -> Watch:
    """Train by the recipe of this name until the target or the limit is reached."""
    from FaceAging import FaceAging
    from support.devices import best_precision

    recipe = dict(RECIPES[name])
    sizes = {flag: getattr(flags, flag) for flag in ("num_encoder_channels", "num_gen_channels")}
    sizes |= {"size_image": flags.image_size, "num_z_channels": recipe.pop("num_z_channels")}
    sizes |= {"size_batch": flags.batch_size or recipe["batch_size"], "precision": best_precision()[0]}
    del recipe["batch_size"]
    with tempfile.TemporaryDirectory() as folder:
        model = FaceAging(**sizes, save_dir=folder)
        model._load_image = functools.cache(model._load_image)
        training, held_out, _ = train_val_split(faces, model.seed)
        model.train_step = watch = Watch(model, read_faces(held_out, model.bins, model._load_image), flags)
        steps = flags.limit_steps if recipe["schedule"] == "constant" else flags.planned_steps
        with contextlib.suppress(Finished):
            model.train(faces, math.ceil(steps / (len(training) // model.size_batch)), **recipe)
            watch.measure()  # after the last planned step
    return watch


def table(watches: dict[str, Watch], target: float) -> str:
    """Return a Markdown table, and the last recipe's steps and minutes relative to the first one's."""
    rows = [f"| recipe | steps | minutes | held-out L1 | below {target:g} |", "|---|---|---|---|---|"]
    reached = {name: watch.rows[-1][2] < target for name, watch in watches.items()}
    for name, watch in watches.items():
        step, minutes, error = watch.rows[-1]
        rows.append(f"| {name} | {step:,} | {minutes:.1f} | {error:.4f} | {'yes' if reached[name] else 'no'} |")
    if len(watches) > 1 and reached[list(watches)[-1]]:
        (first, (steps, minutes, _)), *_, (last, (fewer, shorter, _)) = ((n, w.rows[-1]) for n, w in watches.items())
        bound = "" if reached[first] else "less than "
        ratios = f"{fewer / max(1, steps):.3f} of the steps and {shorter / minutes:.3f} of the minutes"
        rows.append(f"\n{last} takes {bound}{ratios} of {first}")
    return "\n".join(rows)


@command
def time_to_quality(argv: list[str]) -> int:
    parser = make_parser(time_to_quality)
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument("--dataset", default="UTKFace", metavar="NAME", help="the faces in data/NAME")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), help="in this order")
    parser.add_argument("--target", type=float, default=0.114, metavar="L1", help="pixels are within -1 and 1")
    numbers = {
        "every": (100, "steps from one measurement to the next"),
        "limit_steps": (12_000, "give up a recipe after so many steps"),
        "planned_steps": (3_300, "length of a training with a decaying learning rate"),
        "image_size": (128, "pixels a side"),
        "num_encoder_channels": (32, "of the encoder's first layer"),
        "num_gen_channels": (512, "of the generator's widest layer"),
        "batch_size": (None, "faces in a step, by default the recipe's"),
    }
    for name, (default, text) in numbers.items():
        parser.add_argument(f"--{name}", type=whole_number, default=default, metavar="N", help=text)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements to this file")
    flags = parser.parse_args(argv)
    faces, watches = list_faces(find_dataset(flags.dataset)).faces, {}
    for name in flags.recipes:
        print(f"Recipe {name}", flush=True)
        watches[name] = measure(name, faces, flags)
    print(table(watches, flags.target))
    if flags.json:
        write_json(flags.json, {name: watch.rows for name, watch in watches.items()})
    return 0


if __name__ == "__main__":
    run(time_to_quality)
