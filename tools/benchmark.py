"""How fast the program is on this machine: `python -m tools.benchmark [--full] [--json FILE]`.

Each row is measured in a process of its own, so that its memory is its own; what is compared is measured in one
process, in turn, and given as the median. Leave the machine alone meanwhile. Without --full it takes less than eight
minutes on two cores.
"""

import argparse
import contextlib
import functools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support.labels import gender_labels

ROOT = Path(__file__).parents[1]
PRECISIONS = ("mixed_bfloat16", "float32")
BATCH = 100
MATRIX = 4096  # a side of the matrices whose product is the machine's rate
# multiply-adds per face at the default size: all of a step, and of encoding and generating a face once
STEP, ENCODE, GENERATE = 6.9e9, 0.86e9, 1.28e9
AGES = 10  # each as male and as female: 20 pictures a face
ROUNDS = 7
LOOP_STEPS = 24
WARM_UP = 2  # steps


def clock(function, *arguments) -> float:
    """Seconds that a call takes; it gives a tensor, or a dict of tensors, that is waited for."""
    began = time.perf_counter()
    result = function(*arguments)
    for value in result.values() if isinstance(result, dict) else [result]:
        value.numpy()
    return time.perf_counter() - began


def peak_gb() -> float:
    """The process' largest resident memory so far; Linux counts it in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def matrix_product(precision: str):
    """A function that multiplies two matrices in the precision's compute type."""
    import tensorflow as tf

    dtype = precision.removeprefix("mixed_")
    a, b = (tf.cast(tf.random.normal([MATRIX, MATRIX]), dtype) for _ in range(2))
    product = tf.function(lambda: tf.linalg.matmul(a, b)[0, 0])
    product()
    return product


def rate(seconds: float, multiply_adds: float) -> float:
    """GFLOP/s"""
    return 2 * multiply_adds / seconds / 1e9


def random_batch(model):
    import numpy as np

    random = np.random.default_rng(0)
    images = random.integers(0, 256, [model.size_batch, *[model.size_image] * 2, 3], dtype=np.uint8)
    ages, genders = random.integers(0, 100, model.size_batch), random.integers(0, 2, model.size_batch)
    z_prior = random.uniform(-1, 1, [model.size_batch, model.num_z_channels]).astype(np.float32)
    return images, model.bins.one_hot(ages), gender_labels(genders), z_prior


def demo_faces(folder: str, number: int) -> list:
    """Unpack the demo data set into the folder, and return so many of its faces; the others are removed."""
    from support.dataset import DEMO, find_dataset, list_faces

    faces = list_faces(find_dataset(DEMO, folder)).faces
    for face in faces[number:]:
        Path(face.path).unlink()
    return faces[:number]


def measure_step(precision: str) -> dict:
    """The bare step, in turn with the matrix product."""
    began = time.perf_counter()
    import tensorflow as tf

    from FaceAging import FaceAging
    from support.losses import PAPER_TERMS

    model = FaceAging(size_batch=BATCH, precision=precision)
    batch = random_batch(model)
    weights = dict.fromkeys(PAPER_TERMS, tf.constant(1e-4))

    def step():
        return model.train_step(*batch, weights)[0]

    clock(step)
    first = time.perf_counter() - began
    peak_after = clock(step) and peak_gb()
    product = matrix_product(precision)
    steps, products = zip(*((clock(step), clock(product)) for _ in range(ROUNDS)), strict=True)
    seconds, product_rate = statistics.median(steps), rate(statistics.median(products), MATRIX**3)
    return {
        "seconds a step": seconds,
        "images/s": BATCH / seconds,
        "GFLOP/s": rate(seconds, STEP * BATCH),
        "matrix product GFLOP/s": product_rate,
        "share of the matrix product": rate(seconds, STEP * BATCH) / product_rate,
        "start-up to the end of the first step, s": first,
        "peak memory, GB": peak_after,
    }


def measure_loop(precision: str) -> dict:
    """Steps within an epoch of the real training loop, beside the bare step just before and after it."""
    import tensorflow as tf

    from FaceAging import FaceAging
    from support.losses import PAPER_TERMS

    class Enough(Exception):
        pass

    with tempfile.TemporaryDirectory() as folder:
        faces = demo_faces(folder, 500) * (BATCH * (LOOP_STEPS + 4) // 400 + 2)  # copies of held-out faces go
        model = FaceAging(size_batch=BATCH, precision=precision, save_dir=Path(folder) / "save")
        batch = random_batch(model)
        weights = dict.fromkeys(PAPER_TERMS, tf.constant(1e-4))
        bare_step, starts = model.train_step, []

        def timed_step(*arguments):
            starts.append(time.perf_counter())
            if len(starts) > LOOP_STEPS + WARM_UP:
                raise Enough
            return bare_step(*arguments)

        def bare() -> list[float]:
            return [clock(lambda: bare_step(*batch, weights)[0]) for _ in range(ROUNDS)]

        bare_step(*batch, weights)
        before = bare()
        model.train_step = timed_step
        with contextlib.suppress(Enough):
            model.train(faces, num_epochs=1)
        after = bare()
    periods = [end - start for start, end in zip(starts[WARM_UP:], starts[WARM_UP + 1 :], strict=False)]
    seconds, bare_seconds = statistics.median(periods), statistics.median(before + after)
    return {
        "seconds a step": seconds,
        "bare step, s": bare_seconds,
        "loop / bare step": seconds / bare_seconds,
        "peak memory, GB": peak_gb(),
    }


def measure_pipeline() -> dict:
    """Reading, decoding and resizing alone."""
    import ops
    from support.batches import BatchLoader
    from support.labels import AgeBins

    with tempfile.TemporaryDirectory() as folder:
        faces = demo_faces(folder, 1000)
        began = time.perf_counter()
        load_image = functools.partial(ops.load_image, size_image=128, channels=3)
        batches = BatchLoader(faces, AgeBins(), load_image, size_batch=BATCH, num_z_channels=50, seed=0).of(1)
        images = sum(len(batch[0]) for batch in batches)
        seconds = time.perf_counter() - began
    return {"images/s": images / seconds, "peak memory, GB": peak_gb()}


def measure_aging(number: str) -> dict:
    """Encoding faces and generating each at ten ages as male and as female, without drawing the sheets."""
    import numpy as np
    import tensorflow as tf

    from FaceAging import FaceAging

    model = FaceAging()
    number = int(number)
    pictures = np.random.default_rng(0).integers(0, 256, [10, 128, 128, 3], dtype=np.uint8)

    def age_faces():
        for _ in range(number // len(pictures)):  # a sheet of ten at a time, as test mode does
            z = model.encode(pictures)
            for gender in (0, 1):
                model.generate(np.tile(z, [AGES, 1]), np.repeat(model.bins.centres, len(z)), gender)
        return tf.zeros([])

    clock(age_faces)
    product = matrix_product("float32")
    rounds = ROUNDS if number <= 10 else 1
    times, products = zip(*((clock(age_faces), clock(product)) for _ in range(rounds)), strict=True)
    seconds = statistics.median(times)
    share = rate(seconds, number * (ENCODE + 2 * AGES * GENERATE)) / rate(statistics.median(products), MATRIX**3)
    return {
        "seconds": seconds,
        "faces/s": number / seconds,
        "share of the matrix product": share,
        "peak memory, GB": peak_gb(),
    }


def measure_help() -> dict:
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        subprocess.run([sys.executable, str(ROOT / "main.py"), "--help"], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
    return {"seconds": statistics.median(times)}


def measure_test_mode() -> dict:
    """`main.py --is_train False` on ten faces, the whole process, with a model of the default size."""
    from FaceAging import FaceAging

    with tempfile.TemporaryDirectory() as folder:
        demo_faces(folder, 10)
        FaceAging(save_dir=Path(folder) / "save").save_checkpoint()
        command = [sys.executable, str(ROOT / "main.py"), "--is_train", "False"]
        command += ["--savedir", str(Path(folder) / "save"), "--testdir", str(Path(folder) / "demo")]
        times = []
        for _ in range(3):
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - began)
    return {"seconds": statistics.median(times)}


PARTS = {
    "step": measure_step,
    "loop": measure_loop,
    "pipeline": measure_pipeline,
    "aging": measure_aging,
    "help": measure_help,
    "test_mode": measure_test_mode,
}


def rows(full: bool) -> dict[str, list[str]]:
    """What is measured: the title of a row, and the part with its argument."""
    measured = {f"bare step, {precision}": ["step", precision] for precision in PRECISIONS}
    measured |= {"training loop, mixed_bfloat16": ["loop", "mixed_bfloat16"]}
    measured |= {"input pipeline alone": ["pipeline"], "aging 10 faces, float32": ["aging", "10"]}
    if full:
        measured |= {"training loop, float32": ["loop", "float32"], "aging 500 faces, float32": ["aging", "500"]}
    return measured | {"main.py --help": ["help"], "test mode on 10 faces": ["test_mode"]}


def machine() -> dict:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "bfloat16": [flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags],
        "load before": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the long rows too")
    parser.add_argument("--json", type=Path, default=Path("benchmark.json"), help="where the figures go")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if flags.part:
        result = PARTS[flags.part[0]](*flags.part[1:])
        flags.json.write_text(json.dumps(result))
        return
    report = {"machine": machine()}
    print(", ".join(f"{name} {value}" for name, value in report["machine"].items()), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "part.json"
        for title, part in rows(flags.full).items():
            command = [sys.executable, "-m", "tools.benchmark", "--json", str(answer), "--part", *part]
            subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            report[title] = json.loads(answer.read_text())
            print(f"\n{title}")
            for name, value in report[title].items():
                print(f"  {name:45}{value:12.3f}", flush=True)
    flags.json.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\nwritten to {flags.json}")


if __name__ == "__main__":
    main()
