"""Measure the speed of this machine: `python -m tools.benchmark [--full] [--json FILE]`.

Each row is measured in its own process, and so is its memory. Compared times are medians of alternating measurements in
one process. Without --full it takes less than eight minutes on two otherwise idle cores.
"""

import contextlib
import functools
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from support.files import write_json
from support.labels import gender_labels
from support.terminal import PROJECT, quiet
from tools import make_parser, run

BATCH = 100
MATRIX = 4096  # side of the matrices whose product gives the machine's rate
# multiply-adds per face at the default size: of a step, of encoding, of generating one image
STEP, ENCODE, GENERATE = 6.9e9, 0.86e9, 1.28e9
ROUNDS = 7
LOOP_STEPS, WARM_UP = 24, 2


class Enough(Exception):
    """Ends a training."""


def clock(function: Callable) -> float:
    """Return the seconds of a call that returns a tensor or a dict of tensors."""
    began = time.perf_counter()
    result = function()
    for value in result.values() if isinstance(result, dict) else [result]:
        value.numpy()
    return time.perf_counter() - began


def alternate(*functions: Callable, rounds: int = ROUNDS) -> list[float]:
    """Return the median seconds of each function, called in turn."""
    times = [[clock(function) for function in functions] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def peak_gb() -> float:
    """Return the largest resident memory of the process so far; Linux counts it in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def matrix_product(precision: str) -> Callable:
    """Return a function that multiplies two matrices in the precision's compute type."""
    import tensorflow as tf

    dtype = precision.removeprefix("mixed_")
    a, b = (tf.cast(tf.random.normal([MATRIX, MATRIX]), dtype) for _ in range(2))
    product = tf.function(lambda: tf.linalg.matmul(a, b)[0, 0])
    product()
    return product


def gflops(seconds: float, multiply_adds: float) -> float:
    return 2 * multiply_adds / seconds / 1e9


def make_step(model) -> Callable:
    """Return a function that runs train_step on a random batch and returns the losses."""
    import numpy as np
    import tensorflow as tf

    from support.losses import PAPER_TERMS

    random = np.random.default_rng(0)
    images = random.integers(0, 256, [model.size_batch, *[model.size_image] * 2, 3], dtype=np.uint8)
    ages, genders = random.integers(0, 100, model.size_batch), random.integers(0, 2, model.size_batch)
    z_prior = random.uniform(-1, 1, [model.size_batch, model.num_z_channels]).astype(np.float32)
    batch = images, model.bins.one_hot(ages), gender_labels(genders), z_prior
    weights, step = dict.fromkeys(PAPER_TERMS, tf.constant(1e-4)), model.train_step
    return lambda: step(*batch, weights)[0]


def demo_faces(folder: str, number: int) -> list:
    """Unpack the demo data set into the folder, reduce it to this number of faces, and return them."""
    from support.dataset import DEMO, find_dataset, list_faces

    faces = list_faces(find_dataset(DEMO, folder)).faces
    for face in faces[number:]:
        Path(face.path).unlink()
    return faces[:number]


def measure_step(precision: str) -> dict:
    """The step alone, and the matrix product."""
    began = time.perf_counter()
    from FaceAging import FaceAging

    step = make_step(FaceAging(size_batch=BATCH, precision=precision))
    clock(step)
    first = time.perf_counter() - began
    clock(step)
    peak = peak_gb()
    seconds, product = alternate(step, matrix_product(precision))
    speed, product_speed = gflops(seconds, STEP * BATCH), gflops(product, MATRIX**3)
    return {
        "seconds a step": seconds,
        "images/s": BATCH / seconds,
        "GFLOP/s": speed,
        "matrix product GFLOP/s": product_speed,
        "relative to the matrix product": speed / product_speed,
        "start-up to the end of the first step, s": first,
        "peak memory, GB": peak,
    }


def measure_loop(precision: str) -> dict:
    """Steps of the training loop, and the step alone before and after it."""
    from FaceAging import FaceAging

    with tempfile.TemporaryDirectory() as folder:
        faces = demo_faces(folder, 500) * (BATCH * (LOOP_STEPS + 4) // 400 + 2)  # copies of held-out faces are removed
        model = FaceAging(size_batch=BATCH, precision=precision, save_dir=Path(folder) / "save")
        bare_step, step, starts = model.train_step, make_step(model), []

        def timed_step(*arguments):
            starts.append(time.perf_counter())
            if len(starts) > LOOP_STEPS + WARM_UP:
                raise Enough
            return bare_step(*arguments)

        step()
        (before,) = alternate(step)
        model.train_step = timed_step
        with contextlib.suppress(Enough):
            model.train(faces, num_epochs=1)
        (after,) = alternate(step)
    periods = [end - start for start, end in zip(starts[WARM_UP:], starts[WARM_UP + 1 :], strict=False)]
    seconds, alone = statistics.median(periods), (before + after) / 2
    ratios = {"seconds a step": seconds, "step alone, s": alone, "loop / step alone": seconds / alone}
    return {**ratios, "peak memory, GB": peak_gb()}


def measure_pipeline() -> dict:
    """Reading, decoding and resizing alone."""
    import ops
    from support.batches import BatchLoader
    from support.labels import AgeBins

    with tempfile.TemporaryDirectory() as folder:
        faces = demo_faces(folder, 1000)
        load_image = functools.partial(ops.load_image, size_image=128, channels=3)
        loader = BatchLoader(faces, AgeBins(), load_image, size_batch=BATCH, num_z_channels=50, seed=0)
        began = time.perf_counter()
        images = sum(len(batch[0]) for batch in loader.of(1))
        seconds = time.perf_counter() - began
    return {"images/s": images / seconds, "peak memory, GB": peak_gb()}


def measure_aging(number: int, rounds: int) -> dict:
    """Encoding faces and generating each at ten ages as male and as female, without the sheets."""
    import numpy as np
    import tensorflow as tf

    from FaceAging import FaceAging

    model = FaceAging()
    images = np.random.default_rng(0).integers(0, 256, [10, 128, 128, 3], dtype=np.uint8)

    def age_faces():
        for _ in range(number // len(images)):  # a sheet of ten at a time, as main.py does
            z = model.encode(images)
            for gender in (0, 1):
                model.at_every_age(z, [gender])
        return tf.zeros([])

    clock(age_faces)
    seconds, product = alternate(age_faces, matrix_product("float32"), rounds=rounds)
    speed = gflops(seconds, number * (ENCODE + 2 * len(model.bins) * GENERATE))
    return {
        "seconds": seconds,
        "faces/s": number / seconds,
        "relative to the matrix product": speed / gflops(product, MATRIX**3),
        "peak memory, GB": peak_gb(),
    }


def time_main(*flags: str, rounds: int = ROUNDS) -> dict:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run([sys.executable, PROJECT / "main.py", *flags], check=True)
        times.append(time.perf_counter() - began)
    return {"seconds": statistics.median(times)}


def measure_test_mode() -> dict:
    """`main.py --is_train False` on ten faces, the whole process, with a model of the default size."""
    from FaceAging import FaceAging

    with tempfile.TemporaryDirectory() as folder:
        faces = demo_faces(folder, 10)
        FaceAging(save_dir=Path(folder) / "save").save_checkpoint()
        where = "--savedir", f"{folder}/save", "--testdir", str(Path(faces[0].path).parent)
        return time_main("--is_train", "False", *where, rounds=3)


ROWS = {  # the function and its arguments; the rows of LONG only with --full
    "step alone, mixed_bfloat16": (measure_step, "mixed_bfloat16"),
    "step alone, float32": (measure_step, "float32"),
    "training loop, mixed_bfloat16": (measure_loop, "mixed_bfloat16"),
    "training loop, float32": (measure_loop, "float32"),
    "input pipeline alone": (measure_pipeline,),
    "aging 10 faces, float32": (measure_aging, 10, ROUNDS),
    "aging 500 faces, float32": (measure_aging, 500, 1),
    "main.py --help": (time_main, "--help"),
    "test mode on 10 faces": (measure_test_mode,),
}
LONG = ("training loop, float32", "aging 500 faces, float32")


def machine() -> dict:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    values = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
    return {
        "cpu": values.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "bfloat16": [flag for flag in ("amx_bf16", "avx512_bf16") if flag in values.get("flags", "").split()],
        "load before": os.getloadavg()[0],
    }


def mute() -> None:
    """Discard the output of this process and of those that it starts."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


def benchmark(argv: list[str]) -> int:
    parser = make_parser(benchmark)
    parser.add_argument("--full", action="store_true", help="measure the long rows too")
    parser.add_argument("--json", type=Path, default=Path("benchmark.json"), help="the file to write")
    flags = parser.parse_args(argv)
    quiet()
    report = {"machine": machine()}
    print(", ".join(f"{name} {value}" for name, value in report["machine"].items()), flush=True)
    for row in ROWS if flags.full else [row for row in ROWS if row not in LONG]:
        with ProcessPoolExecutor(1, get_context("spawn"), initializer=mute) as process:
            report[row] = process.submit(*ROWS[row]).result()
        print(f"\n{row}", *(f"  {name:45}{value:12.3f}" for name, value in report[row].items()), sep="\n", flush=True)
    write_json(flags.json, report)
    print(f"\nwritten to {flags.json}")
    return 0


if __name__ == "__main__":
    run(benchmark)
