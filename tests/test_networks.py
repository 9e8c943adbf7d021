"""Networks, losses and gradients, compared with the reference program at a small size."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import ops
from FaceAging import FaceAging, objectives
from support import InputError, fast_ops
from support.losses import PAPER_TERMS
from support.pretrained import reference_name
from tests.conftest import TINY

REFERENCE = Path(__file__).parent / "reference"


def weigh(weight):
    """The paper's three losses, all with this weight."""
    return {name: tf.constant(weight) for name in PAPER_TERMS}


@pytest.fixture(scope="module")
def io():
    """A batch, and the outputs, losses and gradient norms that the reference program computed for it."""
    return dict(np.load(REFERENCE / "io.npz"))


@pytest.fixture(scope="module")
def model():
    model = FaceAging(size_image=32, num_encoder_channels=8, num_gen_channels=64, save_dir=REFERENCE)
    assert model.load_checkpoint()
    return model


@pytest.fixture(scope="module")
def batch(io):
    return io["images"], io["age"], io["gender"], io["z_prior"]


def test_parameter_counts_equal_the_released_checkpoint():
    model = FaceAging()
    counts = {
        network.name: sum(int(np.prod(weight.shape)) for weight in network.trainable_weights)
        for network in (model.E, model.G, model.D_z, model.D_img)
    }
    assert counts == {"E": 18_234_034, "G": 19_948_195, "D_z": 6_001, "D_img": 8_677_137}


def test_outputs_equal_the_reference_program(model, io, batch):
    out = model.forward(*batch)
    for name in ("z", "D_z_logits", "D_z_prior_logits", "D_G_logits", "D_input_logits"):
        np.testing.assert_allclose(out[name], io[name], atol=1e-4, err_msg=name)
    np.testing.assert_allclose(out["G"][:10], io["G"], atol=1e-4)


def test_losses_equal_the_reference_program(model, io, batch):
    losses = model.losses(*batch)
    assert set(losses) == {name for name in io if "_loss" in name and not name.startswith("loss_weights")}
    for name, loss in losses.items():
        assert float(loss) == pytest.approx(float(io[name]), abs=1e-4), name


def test_gradient_norms_equal_the_reference_program(model, io, batch):
    g_img, e_z, tv = io["loss_weights_G_img_E_z_tv"]
    with tf.GradientTape(persistent=True) as tape:
        losses = model.losses(*batch)
        minimised = objectives(losses, dict(zip(PAPER_TERMS, (g_img, e_z, tv), strict=False)))
    norms = {}
    for name, objective in minimised.items():
        for variable, gradient in zip(
            model.variables[name], tape.gradient(objective, model.variables[name]), strict=True
        ):
            norms[f"{name}/{reference_name(variable)}"] = float(tf.norm(gradient))
    assert set(norms) == set(io["gradient_names"])
    for name, norm in zip(io["gradient_names"], io["gradient_norms"], strict=True):
        # a bias before a batch norm has no effect: its gradient is a rounding error
        assert norms[name] == pytest.approx(norm, rel=1e-3, abs=1e-6), name


def test_reference_checkpoint_reproduces_the_sheet_of_the_reference_program(io):
    model = FaceAging.load(REFERENCE)  # sizes are inferred from the shapes of the variables
    assert (model.size_image, model.num_gen_channels) == (32, 64)
    pixels = np.rint((io["images"][:10] + 1) * 127.5).astype(np.uint8)
    z, labels = model.encode(pixels), model.bins.interpolated(model.bins.centres)
    aged = np.stack(
        [model.G([z, label[None].repeat(10, axis=0), io["gender"][:10]], training=False) for label in labels]
    )
    aged = aged.swapaxes(2, 3).reshape(10, 320, 32, 3).swapaxes(1, 2).reshape(320, 320, 3)
    expected = np.asarray(Image.open(REFERENCE / "ladder.png")).astype(float)
    # that program's imsave stretched a sheet's darkest and lightest value to black and white
    stretched = (aged - aged.min()) / (aged.max() - aged.min()) * 255
    assert np.abs(stretched - expected).max() < 1.5


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_losses_are_near_float32(precision, batch):
    full, mixed = (FaceAging(**TINY, precision=p) for p in ("float32", precision))
    assert {weight.dtype for weight in mixed.G.trainable_weights} == {"float32"}
    expected, losses = full.losses(*batch), mixed.losses(*batch)
    for name, loss in losses.items():
        assert loss.dtype == tf.float32
        assert float(loss) == pytest.approx(float(expected[name]), abs=0.02), name


def test_float16_skips_a_step_that_overflows_and_lowers_its_scale(batch):
    model = FaceAging(**TINY, precision="mixed_float16")
    model.optimizers["EG"].dynamic_scale.assign(1e30)
    before = [weight.numpy() for weight in model.E.trainable_weights]
    model.train_step((batch[0] * 127.5 + 127.5).astype(np.uint8), *batch[1:], weigh(0.0))
    assert all(np.array_equal(a, b) for a, b in zip(before, model.E.trainable_weights, strict=True))
    assert float(model.optimizers["EG"].dynamic_scale) < 1e30


def test_train_step_computes_all_gradients_before_the_updates(batch):
    """Adam's first step is the sign of the gradient at the old weights, times the learning rate."""
    model = FaceAging(**TINY)
    images = (batch[0] * 127.5 + 127.5).astype(np.uint8)
    batch = (ops.normalize(images), *batch[1:])
    with tf.GradientTape() as tape:
        losses = model.losses(*batch)
        objective = losses["D_img_loss_input"] + losses["D_img_loss_G"]
    weight = model.D_img.get_layer("D_img_fc2").kernel
    gradient = tape.gradient(objective, weight).numpy()
    before = weight.numpy()
    model.train_step(images, *batch[1:], weigh(1e-4))
    rate = float(model.optimizers["D_img"].learning_rate)
    np.testing.assert_allclose(weight.numpy() - before, -rate * np.sign(gradient), atol=0.1 * rate)


def test_the_seed_fixes_the_initial_weights():
    first, same, other = (FaceAging(**TINY, seed=seed) for seed in (1, 1, 2))
    weights = [model.G.get_layer("G_fc").kernel.numpy() for model in (first, same, other)]
    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


def test_initial_weights_have_the_distribution_of_the_reference_program():
    model = FaceAging()
    for network, layer, truncated in (
        (model.E, "E_conv3", True),
        (model.G, "G_deconv1", False),
        (model.G, "G_fc", False),
    ):
        weights = network.get_layer(layer).kernel.numpy()
        assert (np.abs(weights).max() <= 0.04) == truncated  # two standard deviations
        assert weights.std() == pytest.approx(0.02 * (0.88 if truncated else 1), rel=0.02)
        assert not network.get_layer(layer).bias.numpy().any()


def test_constructing_writes_nothing(tmp_path):
    FaceAging(**TINY, save_dir=tmp_path / "save")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "sizes", [{"size_image": 96}, {"size_image": 4}, {"num_gen_channels": 100}, {"num_categories": 8}]
)
def test_invalid_sizes_are_rejected(sizes):
    with pytest.raises(ValueError):
        FaceAging(**sizes)


def test_total_variation_equals_the_reference_program():
    images = np.zeros([2, 4, 4, 1], np.float32)
    images[0, 1, 2] = 3.0  # four differences of 3, two along either axis
    assert float(fast_ops.total_variation(images)) == pytest.approx((2 * 9 / 2 / 4 + 2 * 9 / 2 / 4) / 2)


def test_network_larger_than_the_memory_is_rejected():
    with pytest.raises(InputError, match="not enough memory"):
        FaceAging(num_z_channels=10**9)  # weights of 200 TB


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_outside_the_range_of_numpy_is_rejected(seed):
    with pytest.raises(InputError, match="within 0-4294967295"):
        FaceAging(seed=seed)
