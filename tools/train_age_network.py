"""Train the small network that judges the age and gender of generated faces: `python -m tools.train_age_network`.

Trained on UTKFace's faces but the held-out ones, seed 2017, and but 1,000 more on which its own error is measured.
Each age bin is drawn equally often, so that the mean of the distribution over ages is not pulled to where most faces
are. Half of the pictures are blurred, as generated faces are; all are shifted, scaled, and changed in brightness and
colour a little, and half are mirrored. The weights are written in 8 bits; the error is that of the weights as shipped.
"""

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import main
from support.batches import epoch_order, train_val_split
from support.dataset import Face, find_dataset, list_faces
from support.errors import InputError
from support.images import BadImage
from support.labels import FEMALE, AgeBins

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with main.silence():
    import keras
    import tensorflow as tf

    import ops
    from support import devices, recognition
    from support.pretrained import load_quantized, quantize_weights

SEED = 2017
SIDE = 128  # pixels of the faces as they are read; the network sees them smaller
VALIDATION = 1000  # faces of the training set that are not trained on
EPOCHS, BATCH, RATE = 9, 128, 2e-3
BLUR = 4.0  # pixels of 128: the widest standard deviation of the blur
BLURRED = 2.0  # pixels of 128: about as blurred as generated faces are, for measuring
SHIFT, SCALE = 0.06, 0.1  # parts of the width


def read(faces: list[Face]) -> tuple[np.ndarray, list[Face]]:
    """(uint8 [N, 128, 128, 3], the faces) of those that can be read."""

    def load(face: Face) -> np.ndarray | None:
        try:
            return ops.load_image(face.path, SIDE, 3)
        except BadImage as error:
            print(f"Left out: {error}")
            return None

    with ThreadPoolExecutor() as pool:
        images = list(pool.map(load, faces))
    kept = [i for i, image in enumerate(images) if image is not None]
    return np.stack([images[i] for i in kept]), [faces[i] for i in kept]


def vary(images: np.ndarray, random: np.random.Generator) -> tf.Tensor:
    """Faces, uint8 [N, 128, 128, 3], as training sees them: float32 [N, 64, 64, 3] in about [-1, 1]."""
    count = len(images)
    sharp = recognition.sharpest(SIDE)
    draws = {
        "sigma": np.where(random.random(count) < 0.5, sharp, random.uniform(sharp, BLUR, count)),
        "shift": random.uniform(-SHIFT, SHIFT, [2, count]),
        "scale": random.uniform(1 - SCALE, 1 + SCALE, count),
        "mirror": np.where(random.random(count) < 0.5, -1, 1),
        # from grey (0) to stronger colours than the picture's (1.2)
        "colour": random.uniform(0, 1.2, [count, 1, 1, 1]),
        "contrast": random.uniform(0.8, 1.2, [count, 1, 1, 1]),
        "brightness": random.uniform(-0.2, 0.2, [count, 1, 1, 1]) + random.uniform(-0.05, 0.05, [count, 1, 1, 3]),
    }
    return varied(tf.constant(images), **{name: tf.constant(draw, tf.float32) for name, draw in draws.items()})


@tf.function
def varied(images, sigma, shift, scale, mirror, colour, contrast, brightness):
    rows = recognition.resampling(SIDE, sigma, shift[0], scale)
    columns = recognition.resampling(SIDE, sigma, shift[1], scale * mirror)
    x = recognition.resample(images, rows, columns)
    grey = tf.reduce_mean(x, axis=-1, keepdims=True)
    return contrast * (grey + colour * (x - grey)) + brightness


def targets(ages: np.ndarray) -> np.ndarray:
    """What the distribution should be: a Gaussian round the age, wider for the old, float32 [N, 101]."""
    ages = np.minimum(ages, recognition.AGES - 1)[:, np.newaxis]
    wide = np.exp(-0.5 * ((np.arange(recognition.AGES) - ages) / (1 + ages / 20)) ** 2)
    return (wide / wide.sum(axis=1, keepdims=True)).astype(np.float32)


def train(network: keras.Model, images: np.ndarray, faces: list[Face], epochs: int) -> None:
    """Train the network on faces, uint8 [N, 128, 128, 3]."""
    ages, genders = np.array([(face.age, face.gender == FEMALE) for face in faces], np.float32).T
    wanted = targets(ages)
    random = np.random.default_rng(SEED)
    steps = len(faces) // BATCH
    rate = keras.optimizers.schedules.CosineDecay(
        RATE / 20, epochs * steps - steps // 2, warmup_target=RATE, warmup_steps=steps // 2
    )
    optimizer = keras.optimizers.AdamW(rate, weight_decay=0.01)

    @tf.function
    def step(x, wanted, ages, genders):
        with tf.GradientTape() as tape:
            age_logits, gender_logits = network(x, training=True)
            error = tf.reduce_mean(tf.abs(recognition.years(age_logits) - ages))
            loss = (
                tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(wanted, age_logits))
                + 0.1 * error
                + tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(genders, gender_logits[:, 0]))
            )
        optimizer.apply(tape.gradient(loss, network.trainable_variables), network.trainable_variables)
        right = tf.reduce_mean(tf.cast((gender_logits[:, 0] > 0) == (genders > 0.5), tf.float32))
        return tf.stack([loss, error, right])

    for epoch in range(1, epochs + 1):
        begun, seen = time.monotonic(), []
        order = epoch_order(faces, AgeBins(), epoch, SEED, balance=True)
        for i in range(0, steps * BATCH, BATCH):
            chosen = order[i : i + BATCH]
            seen.append(step(vary(images[chosen], random), wanted[chosen], ages[chosen], genders[chosen]))
        loss, error, right = np.mean(seen, axis=0)
        print(
            f"Epoch {epoch}/{epochs}: loss {loss:.3f}, {error:.2f} years off, gender right in {right:.1%}, "
            f"{time.monotonic() - begun:.0f} s",
            flush=True,
        )


def blur(images: np.ndarray, sigma: float) -> np.ndarray:
    """Faces, uint8 [N, S, S, 3], seen through a Gaussian of `sigma` pixels."""
    from scipy.ndimage import gaussian_filter1d

    return gaussian_filter1d(gaussian_filter1d(images, sigma, axis=1), sigma, axis=2)


def measure(network: keras.Model, images: np.ndarray, faces: list[Face]) -> dict:
    """The network's own error on real faces, uint8 [N, 128, 128, 3], in all and by age bin."""
    bins = AgeBins()
    ages, genders = np.array([(face.age, face.gender == FEMALE) for face in faces]).T
    seen, female = recognition.ages_and_genders(images, network)
    right = (female > 0.5) == genders

    def errors(chosen) -> dict:
        return {
            "faces": int(chosen.sum()),
            "mean age": round(float(ages[chosen].mean()), 1),
            "mean age seen": round(float(seen[chosen].mean()), 1),
            "mean absolute error": round(float(np.abs(seen - ages)[chosen].mean()), 2),
            "gender right": round(float(right[chosen].mean()), 3),
        }

    index = bins.index(ages)
    by_bin = {name: errors(index == i) for i, name in enumerate(bins.names) if (index == i).any()}
    return {"all": errors(np.ones(len(faces), bool)), **by_bin}


def table(head: str, measured: dict) -> str:
    """What `measure` returned, in Markdown."""
    lines = [[head, *measured["all"]], ["---"] * (1 + len(measured["all"]))]
    lines += [[name, *map(str, row.values())] for name, row in measured.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def train_recognition(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tools.train_age_network", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder that holds UTKFace")
    parser.add_argument("--out", type=Path, default=recognition.WEIGHTS, help="the weights are written there")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    flags = parser.parse_args(argv)
    try:
        training, held_out, _ = train_val_split(list_faces(find_dataset("UTKFace", flags.data)).faces, SEED)
    except InputError as error:
        print(f"tools.train_age_network: {error}", file=sys.stderr)
        return 2
    validation, training = training[:VALIDATION], training[VALIDATION:]
    keras.utils.set_random_seed(SEED)
    keras.config.set_dtype_policy(devices.best_precision()[0])
    network = recognition.age_and_gender_network()
    keras.config.set_dtype_policy("float32")
    train(network, *read(training), flags.epochs)

    quantize_weights(flags.out, [network])
    shipped = recognition.age_and_gender_network()
    load_quantized(flags.out, [shipped])
    images, faces = read(held_out + validation)
    print(table("sharp", measure(shipped, images, faces)))
    print(table("blurred", measure(shipped, blur(images, BLURRED), faces)))
    return 0


if __name__ == "__main__":
    sys.exit(train_recognition(sys.argv[1:]))
