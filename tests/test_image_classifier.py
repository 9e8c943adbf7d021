"""C_img: its input, seeded augmentation, labels and dropout, and its losses."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from FaceAging import FaceAging
from support.labels import AgeBins, gender_labels
from support.losses import (
    BRIGHTNESS,
    CONTRAST,
    DROPOUT,
    LUMA,
    SharedRandom,
    Step,
    augmented_luma,
    classifier_losses,
    image_classifier,
    other_labels,
)

SMALL = {"size_image": 16, "num_encoder_channels": 4, "num_gen_channels": 32, "size_batch": 8}
AGES = (3, 25, 45, 80, 12, 33, 61, 8)
TWO_DEVICES = """
import json, sys
import support
import tensorflow as tf
cpu, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from tests.test_image_classifier import draws
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
drawn = tf.function(lambda: strategy.run(lambda: draws(4)))()
print(json.dumps([tf.concat(strategy.experimental_local_results(x), 0).numpy().tolist() for x in drawn]))
"""


def seed(step=1):
    return tf.constant([2017, step])


def random_images(channels=3, size=16, number=8):
    return np.random.default_rng(0).uniform(-1, 1, [number, size, size, channels]).astype(np.float32)


def labels():
    return AgeBins().one_hot(AGES), gender_labels([0, 1] * 4)


def draws(rows, step=1):
    """Return the random tensors of a step: augmented grey images, dropout and other labels, [rows, ...] each."""
    random = SharedRandom(seed(step), rows)
    ages = tf.one_hot([3] * rows, 10) * 2 - 1
    return augmented_luma(tf.zeros([rows, 16, 16, 1]), random), random.dropout(20), *other_labels(ages, random)


@pytest.fixture(scope="module")
def step():
    """The input of the losses at a training step."""
    model = FaceAging(**SMALL)
    ages, genders = labels()
    networks = {**model.networks, "C_img": image_classifier(model)}
    out = {"z": model.E(random_images())}
    return Step(networks, random_images(), ages, genders, out, seed(), {"classifier": tf.constant(1.0)})


@pytest.mark.parametrize(("size", "channels"), [(16, 3), (32, 1), (128, 3)])
def test_classifier_is_built_for_every_image_size(size, channels):
    hyperparameters = SimpleNamespace(size_image=size, num_categories=7, num_input_channels=channels)
    network = image_classifier(hyperparameters)
    luma = augmented_luma(tf.constant(random_images(channels, size, 2)), SharedRandom(seed(), 2))
    ages, genders = network([luma, tf.ones([2, network.inputs[1].shape[-1]])])
    assert (ages.shape, genders.shape) == ((2, 7), (2, 2))


def test_classifier_ignores_colour(step):
    """Images of other colours and the same luma get the same logits."""
    images = random_images() / 2
    red = np.random.default_rng(1).uniform(-0.3, 0.3, images.shape[:3])
    blue = np.random.default_rng(2).uniform(-0.3, 0.3, images.shape[:3])
    green = -(LUMA[0] * red + LUMA[2] * blue) / LUMA[1]
    coloured = images + np.stack([red, green, blue], axis=-1).astype(np.float32)
    assert np.abs(coloured - images).mean() > 0.1
    C_img = step.networks["C_img"]
    factors = tf.ones([len(images), C_img.inputs[1].shape[-1]])
    lumas = [augmented_luma(tf.constant(x), SharedRandom(seed(), len(images))) for x in (images, coloured)]
    for one, other in zip(*(C_img([luma, factors]) for luma in lumas), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_random_tensors_depend_on_seed_and_step_only():
    assert all(np.array_equal(*pair) for pair in zip(draws(8), draws(8), strict=True))
    assert not any(np.array_equal(*pair) for pair in zip(draws(8), draws(8, step=2), strict=True))
    augmented, keep, ages, _ = draws(8)
    for rows in (augmented, keep, ages):
        assert len({row.numpy().tobytes() for row in rows}) > 2  # each image has its own


def test_random_tensors_do_not_depend_on_the_number_of_devices():
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES], env=environment, capture_output=True, text=True, check=True
    )
    for one, other in zip(draws(8), json.loads(done.stdout.splitlines()[-1]), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_augmentation_stays_within_its_ranges():
    size, number = 32, 200
    spot = np.zeros([number, size, size, 1], np.float32)
    spot[:, 16, 16] = 40
    augmented = augmented_luma(tf.constant(spot), SharedRandom(seed(), number)).numpy()[..., 0]
    places = np.array([np.unravel_index(image.argmax(), image.shape) for image in augmented]) - 16
    assert set(places[:, 0]) == set(places[:, 1]) == {-2, -1, 0, 1, 2}
    assert (places[:, 0] != places[:, 1]).any()
    peaks = augmented.max(axis=(1, 2)) / 40
    assert 1 - CONTRAST - 0.05 < peaks.min() < 0.8 and 1.2 < peaks.max() < 1 + CONTRAST + 0.05
    means = np.median(augmented, axis=(1, 2))
    assert -BRIGHTNESS - 0.05 < means.min() < -0.1 and 0.1 < means.max() < BRIGHTNESS + 0.05


def test_augmentation_passes_the_gradient_to_the_source_pixels():
    images = tf.constant(random_images(1))
    with tf.GradientTape() as tape:
        tape.watch(images)
        total = tf.reduce_sum(augmented_luma(images, SharedRandom(seed(), 8)))
    gradient = tape.gradient(total, images).numpy()
    assert (gradient >= 0).all() and gradient[:, 1:-1, 1:-1].mean() == pytest.approx(1, abs=CONTRAST)


def test_dropout_preserves_the_mean():
    keep = SharedRandom(seed(), 8).dropout(2000).numpy()
    assert (keep == 0).mean() == pytest.approx(DROPOUT, abs=0.02) and keep.mean() == pytest.approx(1, abs=0.03)


def test_other_labels_are_one_hot_in_another_bin():
    ages = np.repeat(labels()[0], 20, axis=0)
    others, genders = (x.numpy() for x in other_labels(tf.constant(ages), SharedRandom(seed(), len(ages))))
    for drawn in (others, genders):
        assert set(np.unique(drawn)) == {-1, 1} and ((drawn == 1).sum(axis=1) == 1).all()
        assert ((drawn == 1).sum(axis=0) > 0).all()
    assert (others.argmax(axis=1) != ages.argmax(axis=1)).all()


def test_losses_start_at_chance_level_and_train_their_networks(step):
    C_img, (E, G) = step.networks["C_img"], (step.networks[name] for name in "EG")
    with tf.GradientTape(persistent=True) as tape:
        losses = classifier_losses(step._replace(out={"z": E(step.images)}))
    assert float(losses["G_class_loss"]) == pytest.approx(np.log(10) + np.log(2), abs=0.7)
    for name, variables in (
        ("G_class_loss", E.trainable_variables + G.trainable_variables),
        ("C_img_loss", C_img.trainable_variables),
    ):
        gradients = tape.gradient(losses[name], variables)
        assert all(gradient is not None and np.isfinite(gradient).all() for gradient in gradients)
    # C_img's loss does not depend on G
    assert all(gradient is None for gradient in tape.gradient(losses["C_img_loss"], G.trainable_variables))


def test_classifier_learns(step):
    C_img, optimizer = step.networks["C_img"], tf.keras.optimizers.Adam(5e-3)
    found = []
    for number in range(60):
        with tf.GradientTape() as tape:
            loss = classifier_losses(step._replace(seed=seed(number)))["C_img_loss"]
        optimizer.apply(tape.gradient(loss, C_img.trainable_variables), C_img.trainable_variables)
        found.append(float(loss))
    assert np.mean(found[-10:]) < 0.5 * np.mean(found[:10])


def test_generator_loss_is_zero_while_the_weight_is_zero(step):
    losses = classifier_losses(step._replace(weights={"classifier": tf.constant(0.0)}))
    assert float(losses["G_class_loss"]) == 0 and float(losses["C_img_loss"]) > 0
