"""Train the network that estimates age and gender of generated faces: `python -m tools.train_age_network`.

Trained on UTKFace without the held-out faces of seed 2017 and without 1,000 more, on which its error is measured. Age
bins are sampled equally often, so that estimates are not biased towards frequent ages. Half of the images are blurred,
as generated faces are; all are shifted, scaled and changed in brightness and colour, half are mirrored. The weights are
written in 8 bits, and measured so.
"""

import functools
import time
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

import main
from support.batches import epoch_order, read_images, train_val_split
from support.dataset import Face, find_dataset, list_faces
from support.labels import FEMALE, AgeBins
from tools import command, make_parser, run

with main.silence():
    import keras
    import tensorflow as tf

    import ops
    from support import devices, recognition
    from support.evaluation import markdown
    from support.pretrained import load_quantized, quantize_weights

SEED = 2017
SIDE = 128  # pixels of the faces as they are read; the network's input is smaller
VALIDATION = 1000  # faces of the training set that are not trained on
EPOCHS, BATCH, RATE = 9, 128, 2e-3
BLUR = 4.0  # pixels of 128: the largest standard deviation of the blur
BLURRED = 2.0  # pixels of 128: about the blur of generated faces, for measuring
SHIFT, SCALE = 0.06, 0.1  # relative to the width
COLUMNS = {"real_faces": 0, "real_age": 1, "real_estimated_age": 1, "real_age_mae": 2, "real_gender_accuracy": 3}


def augment(images: np.ndarray, random: np.random.Generator) -> tf.Tensor:
    """Return randomly changed faces, uint8 [N, 128, 128, 3], as float32 [N, 64, 64, 3] in about [-1, 1]."""
    count = len(images)
    sharp = recognition.min_sigma(SIDE)
    draws = {
        "sigma": np.where(random.random(count) < 0.5, sharp, random.uniform(sharp, BLUR, count)),
        "shift": random.uniform(-SHIFT, SHIFT, [2, count]),
        "scale": random.uniform(1 - SCALE, 1 + SCALE, count),
        "mirror": np.where(random.random(count) < 0.5, -1, 1),
        "colour": random.uniform(0, 1.2, [count, 1, 1, 1]),  # from grey (0) to saturated (1.2)
        "contrast": random.uniform(0.8, 1.2, [count, 1, 1, 1]),
        "brightness": random.uniform(-0.2, 0.2, [count, 1, 1, 1]) + random.uniform(-0.05, 0.05, [count, 1, 1, 3]),
    }
    return augmented(tf.constant(images), **{name: tf.constant(draw, tf.float32) for name, draw in draws.items()})


@tf.function
def augmented(images, sigma, shift, scale, mirror, colour, contrast, brightness):
    rows = recognition.resampling(SIDE, sigma, shift[0], scale)
    columns = recognition.resampling(SIDE, sigma, shift[1], scale * mirror)
    x = recognition.resample(images, rows, columns)
    grey = tf.reduce_mean(x, axis=-1, keepdims=True)
    return contrast * (grey + colour * (x - grey)) + brightness


def targets(ages: np.ndarray) -> np.ndarray:
    """Return target distributions, Gaussians around the ages, wider for older ones: float32 [N, 101]."""
    ages = np.minimum(ages, recognition.AGES - 1)[:, np.newaxis]
    wide = np.exp(-0.5 * ((np.arange(recognition.AGES) - ages) / (1 + ages / 20)) ** 2)
    return (wide / wide.sum(axis=1, keepdims=True)).astype(np.float32)


def train_step_of(network: keras.Model, optimizer: keras.optimizers.Optimizer) -> tf.types.experimental.GenericFunction:
    """Return the training step, a function of a batch that returns [loss, age error, gender accuracy]."""

    @tf.function
    def step(x, distributions, ages, genders):
        with tf.GradientTape() as tape:
            age_logits, gender_logits = network(x, training=True)
            error = tf.reduce_mean(tf.abs(recognition.years(age_logits) - ages))
            loss = (
                tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(distributions, age_logits))
                + 0.1 * error
                + tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(genders, gender_logits[:, 0]))
            )
        optimizer.apply(tape.gradient(loss, network.trainable_variables), network.trainable_variables)
        correct = tf.reduce_mean(tf.cast((gender_logits[:, 0] > 0) == (genders > 0.5), tf.float32))
        return tf.stack([loss, error, correct])

    return step


def train(network: keras.Model, images: np.ndarray, faces: list[Face], epochs: int) -> None:
    """Train the network on faces, uint8 [N, 128, 128, 3]."""
    ages, genders = np.array([(face.age, face.gender == FEMALE) for face in faces], np.float32).T
    distributions = targets(ages)
    random = np.random.default_rng(SEED)
    steps = len(faces) // BATCH
    rate = keras.optimizers.schedules.CosineDecay(
        RATE / 20, epochs * steps - steps // 2, warmup_target=RATE, warmup_steps=steps // 2
    )
    step = train_step_of(network, keras.optimizers.AdamW(rate, weight_decay=0.01))
    for epoch in range(1, epochs + 1):
        begun, results = time.monotonic(), []
        order = epoch_order(faces, AgeBins(), epoch, SEED, balance=True)
        for i in range(0, steps * BATCH, BATCH):
            chosen = order[i : i + BATCH]
            results.append(step(augment(images[chosen], random), distributions[chosen], ages[chosen], genders[chosen]))
        loss, error, correct = np.mean(results, axis=0)
        line = f"Epoch {epoch}/{epochs}: loss {loss:.3f}, error {error:.2f} years, gender accuracy {correct:.1%}"
        print(f"{line}, {time.monotonic() - begun:.0f} s", flush=True)


def table(head: str, network: keras.Model, images: np.ndarray, faces: list[Face]) -> str:
    """Return the network's errors on real faces, uint8 [N, 128, 128, 3], by age bin, in Markdown."""
    bins = AgeBins()
    ages, genders = np.array([(face.age, face.gender == FEMALE) for face in faces]).T
    estimated, female = recognition.ages_and_genders(images, network)
    index = bins.index(ages)
    values = ages, estimated, np.abs(estimated - ages), (female > 0.5) == genders
    groups = {"all": np.ones(len(faces), bool), **{name: index == i for i, name in enumerate(bins.names)}}
    rows = {
        name: dict(zip(COLUMNS, [chosen.sum(), *(value[chosen].mean() for value in values)], strict=True))
        for name, chosen in groups.items()
        if chosen.any()
    }
    return markdown(head, rows, COLUMNS)


@command
def train_age_network(argv: list[str]) -> int:
    parser = make_parser(train_age_network)
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder with UTKFace")
    parser.add_argument("--out", type=Path, default=recognition.WEIGHTS, help="the file to write the weights to")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    flags = parser.parse_args(argv)
    training, held_out, _ = train_val_split(list_faces(find_dataset("UTKFace", flags.data)).faces, SEED)
    validation, training = training[:VALIDATION], training[VALIDATION:]
    keras.utils.set_random_seed(SEED)
    keras.config.set_dtype_policy(devices.best_precision()[0])
    network = recognition.age_and_gender_network()
    keras.config.set_dtype_policy("float32")
    load_image = functools.partial(ops.load_image, size_image=SIDE, channels=3)
    train(network, *read_images(training, load_image), flags.epochs)

    quantize_weights(flags.out, [network])
    quantized = recognition.age_and_gender_network()
    load_quantized(flags.out, [quantized])
    images, faces = read_images(held_out + validation, load_image)
    blurred = gaussian_filter(images, (0, BLURRED, BLURRED, 0))
    print(table("sharp", quantized, images, faces))
    print(table("blurred", quantized, blurred, faces))
    return 0


if __name__ == "__main__":
    run(train_age_network)
