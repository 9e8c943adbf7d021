"""Muon: its update against Keras' own and against the singular value decomposition, its state, several devices."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import main
from FaceAging import MUON_RATE, FaceAging, TrainingPlan
from support import InputError
from support.config import RECIPES, read_config
from support.fast_ops import Adam, Muon
from support.losses import PRESETS, complete_weights
from tests.conftest import TINY_FLAGS
from tests.test_training import read_rows, same, weights_of

SMALL = {"size_image": 16, "num_encoder_channels": 4, "num_gen_channels": 32, "size_batch": 10}
AGING = {name: RECIPES["aging"][name] for name in ("loss_weights", "balance", "flip", "optimizer", "schedule")}
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
from tests.test_muon import losses_of, train
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
print(json.dumps([value.tolist() for value in train(strategy)]))
print(json.dumps(losses_of(strategy)))
"""


def gradients(step):
    """Return gradients of variables of SHAPES at a step, for the two halves of a batch: [2, *shape] each."""
    random = np.random.default_rng(step)
    return [random.normal(size=[2, *shape]).astype(np.float32) for shape in SHAPES]


def variables_of(random_seed=0):
    random = np.random.default_rng(random_seed)
    return [keras.Variable(random.normal(size=shape).astype(np.float32)) for shape in SHAPES]


def train(strategy=None, steps=3):
    """Return the values after some steps, in which each replica contributes the gradients of its part."""
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        variables, muon = variables_of(), Muon(RATE)
        muon.build(variables)

    @tf.function
    def step(parts):
        def update():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            single = strategy.num_replicas_in_sync == 1
            muon.apply([tf.reduce_sum(part, 0) if single else part[replica] for part in parts], variables)

        strategy.run(update)

    for number in range(steps):
        step([tf.constant(part) for part in gradients(number)])
    return [variable.numpy() for variable in variables]


def losses_of(strategy=None, steps=2):
    """Return the losses of some steps with the recipe aging on random images."""
    model = FaceAging(**SMALL, strategy=strategy)
    model.optimizer = "muon"
    for name in ("C_z", "C_img"):
        model.add_network(name)
    weights = {name: tf.constant(weight) for name, weight in complete_weights(AGING["loss_weights"]).items()}
    model._set_learning_rates(6e-4)
    random, found = np.random.default_rng(0), []
    for _ in range(steps):
        images = random.integers(0, 256, [10, 16, 16, 3], dtype=np.uint8)
        ages, genders = (np.eye(n, dtype=np.float32)[random.integers(0, n, 10)] * 2 - 1 for n in (10, 2))
        z_prior = random.uniform(-1, 1, [10, 50]).astype(np.float32)
        losses, _ = model.train_step(images, ages, genders, z_prior, weights)
        model.step.assign_add(1)
        found.append({name: float(loss) for name, loss in losses.items()})
    return found


def updates(optimizer, shape, steps=3, rate=RATE):
    """Return the updates of a variable by an optimizer in each step, divided by the learning rate."""
    random = np.random.default_rng(0)
    variable, found = keras.Variable(np.zeros(shape, np.float32)), []
    for _ in range(steps):
        before = variable.numpy()
        optimizer.apply([tf.constant(random.normal(size=shape).astype(np.float32))], [variable])
        found.append((variable.numpy() - before) / rate)
    return found


@pytest.mark.parametrize("shape", [[7, 5], [12, 40], [300, 40], [64, 64]])
def test_muon_equals_keras_on_matrices(shape):
    reference = keras.optimizers.Muon(RATE, weight_decay=None, adam_weight_decay=None)
    for one, other in zip(updates(Muon(RATE), shape), updates(reference, shape), strict=True):
        assert np.abs(one - other).max() < 1e-3 * np.abs(other).max()


@pytest.mark.parametrize("shape", [[5, 5, 3, 8], [5, 5, 2, 64], [12, 40], [600, 50]])
def test_update_is_orthogonal_with_the_norm_of_adam(shape):
    """After division by the factor that gives the RMS norm of Adam's updates, 0.2, all singular values are near 1."""
    matrix = updates(Muon(RATE), shape, steps=1)[0].reshape(-1, shape[-1])
    singular = np.linalg.svd(matrix / (0.2 * max(matrix.shape) ** 0.5), compute_uv=False)
    assert singular.min() > 0.6 and singular.max() < 1.3
    assert np.sqrt((matrix**2).mean()) == pytest.approx(0.2, rel=0.2)


def test_kernel_is_a_matrix_with_its_last_axis_as_columns():
    kernel, matrix = updates(Muon(RATE), [5, 5, 3, 8]), updates(Muon(RATE), [75, 8])
    assert all(np.array_equal(one.reshape(75, 8), other) for one, other in zip(kernel, matrix, strict=True))


def test_biases_are_updated_by_adam():
    adam = Adam(RATE, beta_1=0.5, epsilon=1e-8)
    assert all(np.array_equal(*pair) for pair in zip(updates(Muon(RATE), [8]), updates(adam, [8]), strict=True))


def test_update_in_bfloat16_is_close_to_float32():
    for shape in ([5, 5, 16, 32], [40, 12], [32, 32]):
        for one, other in zip(updates(Muon(RATE), shape), updates(Muon(RATE, bfloat16=True), shape), strict=True):
            assert (one * other).sum() > 0.97 * np.linalg.norm(one) * np.linalg.norm(other)
            assert np.abs(np.linalg.norm(other) / np.linalg.norm(one) - 1) < 0.1


@pytest.mark.parametrize("bfloat16", [False, True])
def test_updates_of_zero_and_low_rank_gradients_are_finite(bfloat16):
    variables, muon = variables_of(), Muon(RATE, bfloat16=bfloat16)
    before = [variable.numpy() for variable in variables]
    muon.apply([tf.zeros(shape) for shape in SHAPES], variables)
    assert all(np.array_equal(old, new) for old, new in zip(before, variables, strict=True))
    for _ in range(20):
        muon.apply([tf.fill(shape, 1e-6) for shape in SHAPES], variables)
    assert all(np.abs(new - old).max() < 20 * 5 * RATE for old, new in zip(before, variables, strict=True))


def test_state_is_restored_exactly(tmp_path):
    def steps(muon, variables, numbers):
        for number in numbers:
            muon.apply([tf.constant(part.sum(0)) for part in gradients(number)], variables)

    uninterrupted, expected_variables = Muon(RATE), variables_of()
    steps(uninterrupted, expected_variables, range(4))
    stopped, variables = Muon(RATE), variables_of()
    stopped.build(variables)
    steps(stopped, variables, range(2))
    path = tf.train.Checkpoint(muon=stopped, variables=[v.value for v in variables]).write(str(tmp_path / "state"))

    resumed, others = Muon(RATE), variables_of(1)
    resumed.build(others)
    tf.train.Checkpoint(muon=resumed, variables=[v.value for v in others]).restore(path).expect_partial()
    steps(resumed, others, range(2, 4))
    assert all(np.array_equal(one, other) for one, other in zip(expected_variables, others, strict=True))


def test_two_devices_equal_one_device():
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES], env=environment, capture_output=True, text=True, check=True
    )
    *_, values, losses = map(json.loads, done.stdout.splitlines()[-2:])
    for one, other in zip(train(), values, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    for one, other in zip(losses_of(), losses, strict=True):
        assert "G_class_loss" in one and one == pytest.approx(other, rel=1e-3, abs=1e-5)


def test_resumed_muon_run_equals_an_uninterrupted_one(tmp_path, faces):
    """With Muon, a schedule, and the losses of all auxiliary networks; the second half of it with C_img's."""

    def stop(_):
        signal.raise_signal(signal.SIGTERM)

    runs = {name: FaceAging(**SMALL, save_dir=tmp_path / name) for name in ("uninterrupted", "stopped", "resumed")}
    runs["resumed"].save_dir = runs["stopped"].save_dir
    for (name, model), on_epoch_end in zip(runs.items(), (None, stop, None), strict=True):
        assert model.train(faces, 2, 6e-4, **AGING, on_epoch_end=on_epoch_end) == (
            stop and 15 if name == "stopped" else None
        )
    uninterrupted, resumed = runs["uninterrupted"], runs["resumed"]
    assert same(weights_of(uninterrupted), weights_of(resumed))
    for name in ("C_z", "C_img"):
        weights = [[weight.numpy() for weight in run.networks[name].weights] for run in (uninterrupted, resumed)]
        assert same(*weights)
    assert (uninterrupted.save_dir / "losses.csv").read_text() == (resumed.save_dir / "losses.csv").read_text()
    rows = read_rows(uninterrupted.save_dir)
    assert [float(row["G_class_loss"]) > 0 for row in rows] == [False] * 5 + [True] * 5
    assert float(rows[0]["learning_rate"]) == 6e-4 and float(rows[-1]["learning_rate"]) < 6e-5

    again = FaceAging(**SMALL, save_dir=uninterrupted.save_dir)
    assert again.load_checkpoint() and again.optimizer == "muon"
    with pytest.raises(InputError, match="was made with muon, not adam"):
        FaceAging(**SMALL, save_dir=uninterrupted.save_dir).train(faces, 3)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0]),
        ("cosine", [1, 0.02 + 0.98 * (1 + math.sqrt(0.5)) / 2, 0.51, 0.02]),
    ],
)
def test_schedules_depend_on_the_position_among_all_epochs(schedule, expected):
    rates = [TrainingPlan(20, RATE, 1.0, schedule, {}).rate(epochs) for epochs in (0, 5, 10, 20)]
    assert rates == pytest.approx([RATE * factor for factor in expected])
    longer = TrainingPlan(40, RATE, 1.0, schedule, {})
    assert longer.rate(10) == pytest.approx(RATE * expected[1])
    assert longer.rate(-9) == RATE  # pre-training
    assert TrainingPlan(20, RATE, 0.5, "constant", {}).rate(4.5) == RATE / 4


def test_classifier_weight_starts_at_half_of_the_epochs():
    plan = TrainingPlan(20, RATE, 1.0, "constant", complete_weights({"classifier": 5e-3}))
    assert [float(plan.weights(epochs)["classifier"]) > 0 for epochs in (-1, 0, 9.9, 10, 19.9)] == [False] * 3 + [
        True
    ] * 2
    assert [float(plan.weights(epochs)["G_img"]) > 0 for epochs in (-1, 0)] == [False, True]
    assert complete_weights({"classifier": 0}) == PRESETS["default"]


def test_networks_with_adam_have_their_own_learning_rate():
    model = FaceAging(**SMALL)
    model.optimizer = "muon"
    for name in ("C_z", "C_img"):
        model.add_network(name)
    model._set_learning_rates(6e-4)
    rates = {name: float(optimizer.learning_rate) for name, optimizer in model.optimizers.items()}
    adam = 6e-4 / MUON_RATE
    assert rates == pytest.approx({"EG": 6e-4, "D_z": adam, "D_img": adam, "C_z": 5 * adam, "C_img": 2.5 * adam})


def test_muon_trains_in_bfloat16_and_rejects_float16(tmp_path, faces):
    FaceAging(**SMALL, save_dir=tmp_path / "bfloat16", precision="mixed_bfloat16").train(faces[:20], 1, **AGING)
    assert float(read_rows(tmp_path / "bfloat16")[-1]["EG_loss"]) < 1
    with pytest.raises(InputError, match="mixed_float16: use"):
        FaceAging(**SMALL, save_dir=tmp_path / "float16", precision="mixed_float16").train(faces, 1, optimizer="muon")
    assert not (tmp_path / "float16").exists()


def test_main_trains_with_the_aging_recipe_and_rejects_another_optimizer(workplace, capsys):
    flags = ["--dataset=drawn", "--recipe=aging", *TINY_FLAGS, "--image_size=16"]
    assert main.main([*flags, "--precision=mixed_float16", "--epoch=1"]) == 2
    assert "mixed_float16" in capsys.readouterr().err
    assert main.main([*flags, "--epoch=1"]) == 0
    assert "classifier" in capsys.readouterr().out
    training = read_config(workplace / "save")["training"]
    assert {name: training[name] for name in AGING} == AGING and training["learning_rate"] == 6e-4
    for flag in ("--optimizer=adam", "--schedule=linear", "--recipe=paper"):
        assert main.main([flag, "--epoch=2"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main.main(["--epoch=2"]) == 0
