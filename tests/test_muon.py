"""Muon: its update against Keras' own and against the singular value decomposition, its state, several devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from support.fast_ops import Adam, Muon

RATE = 1e-3
# a convolution's kernel, a transposed one's, a wide and a tall matrix, a bias
SHAPES = ([5, 5, 3, 8], [5, 5, 8, 16], [12, 40], [40, 12], [8])
# both replicas get the sum of their gradients
TWO_DEVICES = """
import json, sys
import support
import tensorflow as tf
cpu, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from tests.test_muon import gradients, train
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
print(json.dumps([value.tolist() for value in train(strategy)]))
"""


def gradients(step):
    """Gradients of variables of SHAPES at a step, of two parts of a batch: [2, *shape] each."""
    random = np.random.default_rng(step)
    return [random.normal(size=[2, *shape]).astype(np.float32) for shape in SHAPES]


def variables_of(random_seed=0):
    random = np.random.default_rng(random_seed)
    return [keras.Variable(random.normal(size=shape).astype(np.float32)) for shape in SHAPES]


def train(strategy=None, steps=3):
    """The values after some steps, in which each replica contributes its part's gradients."""
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        variables, muon = variables_of(), Muon(RATE)
        muon.build(variables)

    @tf.function
    def step(parts):
        def update():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            alone = strategy.num_replicas_in_sync == 1
            muon.apply([tf.reduce_sum(part, 0) if alone else part[replica] for part in parts], variables)

        strategy.run(update)

    for number in range(steps):
        step([tf.constant(part) for part in gradients(number)])
    return [variable.numpy() for variable in variables]


def updates(optimizer, shape, steps=3, rate=RATE):
    """What an optimizer adds to a variable of a shape in each of some steps, per learning rate."""
    random = np.random.default_rng(0)
    variable, found = keras.Variable(np.zeros(shape, np.float32)), []
    for _ in range(steps):
        before = variable.numpy()
        optimizer.apply([tf.constant(random.normal(size=shape).astype(np.float32))], [variable])
        found.append((variable.numpy() - before) / rate)
    return found


@pytest.mark.parametrize("shape", [[7, 5], [12, 40], [300, 40], [64, 64]])
def test_on_matrices_it_equals_keras(shape):
    theirs = keras.optimizers.Muon(RATE, weight_decay=None, adam_weight_decay=None)
    for our, their in zip(updates(Muon(RATE), shape), updates(theirs, shape), strict=True):
        assert np.abs(our - their).max() < 1e-3 * np.abs(their).max()


@pytest.mark.parametrize("shape", [[5, 5, 3, 8], [5, 5, 2, 64], [12, 40], [600, 50]])
def test_the_update_is_orthogonal_and_as_long_as_adams(shape):
    """All singular values are near 1 but for the factor by which the mean square is that of Adam's, 0.2."""
    matrix = updates(Muon(RATE), shape, steps=1)[0].reshape(-1, shape[-1])
    singular = np.linalg.svd(matrix / (0.2 * max(matrix.shape) ** 0.5), compute_uv=False)
    assert singular.min() > 0.6 and singular.max() < 1.3
    assert np.sqrt((matrix**2).mean()) == pytest.approx(0.2, rel=0.2)


def test_a_kernel_is_a_matrix_of_its_last_axis():
    kernel, matrix = updates(Muon(RATE), [5, 5, 3, 8]), updates(Muon(RATE), [75, 8])
    assert all(np.array_equal(one.reshape(75, 8), other) for one, other in zip(kernel, matrix, strict=True))


def test_biases_are_left_to_adam():
    adam = Adam(RATE, beta_1=0.5, epsilon=1e-8)
    assert all(np.array_equal(*pair) for pair in zip(updates(Muon(RATE), [8]), updates(adam, [8]), strict=True))


def test_long_products_in_bfloat16_point_the_same_way():
    for shape in ([5, 5, 16, 32], [40, 12], [32, 32]):
        for one, other in zip(
            updates(Muon(RATE), shape), updates(Muon(RATE, long_dtype="bfloat16"), shape), strict=True
        ):
            assert (one * other).sum() > 0.97 * np.linalg.norm(one) * np.linalg.norm(other)
            assert np.abs(np.linalg.norm(other) / np.linalg.norm(one) - 1) < 0.1


@pytest.mark.parametrize("long_dtype", ["float32", "bfloat16"])
def test_gradients_of_zero_and_of_low_rank_stay_finite(long_dtype):
    variables, muon = variables_of(), Muon(RATE, long_dtype=long_dtype)
    before = [variable.numpy() for variable in variables]
    muon.apply([tf.zeros(shape) for shape in SHAPES], variables)
    assert all(np.array_equal(old, new) for old, new in zip(before, variables, strict=True))
    for _ in range(20):
        muon.apply([tf.fill(shape, 1e-6) for shape in SHAPES], variables)
    assert all(np.abs(new - old).max() < 20 * 5 * RATE for old, new in zip(before, variables, strict=True))


def test_its_state_is_restored_bit_by_bit(tmp_path):
    def steps(muon, variables, numbers):
        for number in numbers:
            muon.apply([tf.constant(part.sum(0)) for part in gradients(number)], variables)

    straight, straights = Muon(RATE), variables_of()
    steps(straight, straights, range(4))
    stopped, variables = Muon(RATE), variables_of()
    stopped.build(variables)
    steps(stopped, variables, range(2))
    path = tf.train.Checkpoint(muon=stopped, variables=[v.value for v in variables]).write(str(tmp_path / "state"))

    resumed, others = Muon(RATE), variables_of(1)
    resumed.build(others)
    tf.train.Checkpoint(muon=resumed, variables=[v.value for v in others]).restore(path).expect_partial()
    steps(resumed, others, range(2, 4))
    assert all(np.array_equal(one, other) for one, other in zip(straights, others, strict=True))


def test_two_devices_sum_their_gradients_first():
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES], env=environment, capture_output=True, text=True, check=True
    )
    shared = json.loads(done.stdout.splitlines()[-1])
    for one, other in zip(train(), shared, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
