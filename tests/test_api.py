"""Use from Python: Keras' settings and environment, export of the networks, arguments of encode and generate."""

import functools
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from FaceAging import FaceAging
from support import InputError
from support.pretrained import INCLUDED_MODELS
from tests.conftest import ROOT, TINY

SMALL = {**TINY, "size_image": 16}
NETWORKS = ("E", "G", "D_z", "D_img")
SETTINGS = f"""
import keras
import numpy as np
keras.config.set_image_data_format("channels_first")
keras.config.set_floatx("float64")
from FaceAging import FaceAging
model = FaceAging(**{SMALL})
model.optimizers
print(model.age(np.zeros([1, 16, 16, 3], np.uint8), [30], ["male"]).shape)
print(keras.config.image_data_format(), keras.config.floatx())
"""
FILES = f"""
import os, subprocess, sys
from FaceAging import FaceAging
import keras
code = "import os; print(*(os.environ.get(name) for name in ('KERAS_HOME', 'KERAS_BACKEND', 'KERAS_MAX_EPOCHS')))"
print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip())
print(keras.utils.get_file("copy", "file://" + os.path.abspath("original"), cache_subdir="models"))
model = FaceAging(**{SMALL})
for name in {NETWORKS}:
    getattr(model, name).save(name + ".keras")
"""


def run(program: str, cwd, **environment) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, "-c", program], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def model():
    return FaceAging(**SMALL)


def test_keras_settings_of_the_caller_are_ignored_and_kept(tmp_path):
    assert run(SETTINGS, tmp_path) == ["(1, 16, 16, 3)", "channels_first float64"]


def test_keras_environment_is_restored_and_saved_networks_load(tmp_path, model):
    (tmp_path / "original").write_text("content")
    home = tmp_path / "home"
    environment = {"KERAS_HOME": str(home), "KERAS_BACKEND": "jax", "KERAS_MAX_EPOCHS": "2"}
    inherited, *_, copy = run(FILES, tmp_path, **environment)
    assert inherited == f"{home} jax 2"
    assert copy == str(home / "models/copy")
    for name in NETWORKS:
        ours = getattr(model, name)  # the same seed
        loaded = keras.models.load_model(tmp_path / f"{name}.keras")
        inputs = [np.ones([2, *x.shape[1:]], np.float32) for x in ours.inputs]
        np.testing.assert_array_equal(*(network(inputs if inputs[1:] else inputs[0]) for network in (ours, loaded)))


def test_generate_broadcasts_one_z_to_all_ages(model):
    z = model.sample(3)
    assert model.generate(z[0], [30, 40], ["male"]).shape == (2, 16, 16, 3)
    np.testing.assert_array_equal(model.generate(z[0], [30], [0]), model.generate(z[:1], [30], [0]))


@pytest.mark.parametrize(
    ("shape", "ages", "message"),
    [
        ([3, 5], [30], r"z must be finite, \[N, 50\]"),
        ([3, 1], [30], r"z must be finite, \[N, 50\]"),
        ([3, 50], [30, 40], "3, 50.* 2 ages"),
        ([3, 50], [], "0 ages"),
        ([3, 50], [np.nan], "ages are numbers"),
        ([3, 50], [30, np.inf, 40], "ages are numbers"),
        ([3, 50], ["old"], "ages are numbers"),
    ],
)
def test_generate_rejects_other_shapes_and_non_finite_values(model, shape, ages, message):
    with pytest.raises(InputError, match=message):
        model.generate(np.zeros(shape), ages, [0])
    with pytest.raises(InputError, match="z must be finite"):
        model.generate(np.full([1, 50], np.nan), [30], [0])


@pytest.mark.parametrize("shape", [[2, 3, 64, 64], [1, 64, 64, 5], [1, 0, 64, 3], [64, 64, 3], [1, 64, 64, 2]])
def test_encode_rejects_arrays_that_are_not_channels_last_images(model, shape):
    with pytest.raises(InputError, match=r"images are uint8 \[N, H, W, C\] with C 1, 3 or 4"):
        model.encode(np.zeros(shape, np.uint8))


def test_transparent_arrays_are_composited_over_white(model):
    transparent, white = np.zeros([1, 32, 32, 4], np.uint8), np.full([1, 32, 32, 3], 255, np.uint8)
    transparent[:, :16, :, 3] = 255  # the upper half is opaque black
    white[:, :16] = 0
    np.testing.assert_array_equal(model.encode(transparent), model.encode(white))


def test_included_models_are_never_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for loaded in (FaceAging.load(), FaceAging.load(INCLUDED_MODELS["paper"])):
        assert loaded.save_dir.absolute() == tmp_path / "save"
    for folder in (INCLUDED_MODELS["aging"], INCLUDED_MODELS["paper"] / "run"):
        for make in (FaceAging.load, functools.partial(FaceAging, **SMALL)):
            with pytest.raises(InputError, match="is the folder of an included model, which is read-only"):
                make(save_dir=folder)
