"""The model that ships: how it is packed, who takes it; and what --evaluate measures."""

import csv
import json
from functools import partial
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

import main
from demo import make, train
from FaceAging import FaceAging
from ops import load_image, normalize
from support import recognition
from support.batches import read_faces, split
from support.checkpoints import pack_weights, unpack_weights
from support.dataset import parse_name
from support.errors import InputError
from support.evaluation import MEASURES, sharpness, ssim
from support.files import read_config
from tests.conftest import TINY, TINY_FLAGS
from tests.tools import compare_runs


@pytest.fixture(scope="module")
def run(tmp_path_factory, faces):
    """A run of one epoch."""
    model = FaceAging(**TINY, save_dir=tmp_path_factory.mktemp("run") / "save")
    notes = {"dataset": "drawn", "loss_weights": [1e-4] * 3, "balance": False, "unknown_gender": False}
    assert model.train(faces, num_epochs=1, learning_rate=0.01, notes=notes) is None
    return model


@pytest.fixture(scope="module")
def packed(run, tmp_path_factory):
    """A folder like demo/model."""
    folder = tmp_path_factory.mktemp("packed") / "model"
    make.pack(run.save_dir, 8, folder)
    return folder


@pytest.fixture
def shipped(packed, monkeypatch):
    """The packed model in the place of the one that ships."""
    for module in ("main", "FaceAging", "support.flags"):
        monkeypatch.setattr(f"{module}.SHIPPED_MODEL", packed)
    return packed


@pytest.mark.parametrize(("bits", "steps"), [(8, 127), (16, 1024)])
def test_packed_weights_are_off_by_half_a_step_at_most(run, tmp_path, bits, steps):
    pack_weights(tmp_path / "weights.npz", [run.E, run.G], bits)
    other = FaceAging(**{**TINY, "seed": 3})
    unpack_weights(tmp_path / "weights.npz", [other.E, other.G])
    for network in ("E", "G"):
        for ours, theirs in zip(getattr(run, network).weights, getattr(other, network).weights, strict=True):
            values, error = ours.numpy(), np.abs(theirs.numpy() - ours.numpy())
            if values.ndim == 1:
                assert not error.any()
                continue
            output = values.ndim - (2 if "deconv" in ours.path else 1)
            others = tuple(axis for axis in range(values.ndim) if axis != output)
            assert (error.max(axis=others) <= 1.001 * np.abs(values).max(axis=others) / steps / 2).all()


def test_a_packed_model_ages_faces_as_the_run_that_it_was_made_of(run, packed, faces):
    assert (packed / "weights.npz").stat().st_size < 0.4 * 4 * (run.E.count_params() + run.G.count_params())
    assert read_config(packed)["training"]["steps"] == 5
    images = np.stack([load_image(face.path, 32, 3) for face in faces[:5]])
    theirs, ours = (model.age(images, 30, 0).astype(int) for model in (FaceAging.load(packed), run))
    assert np.abs(theirs - ours).max() <= 3


@pytest.mark.parametrize("damage", ["cut", "empty", "pickle", "another network's"])
def test_damaged_weights_are_refused_in_one_line(packed, tmp_path, damage):
    content = (packed / "weights.npz").read_bytes()
    (tmp_path / "config.json").write_bytes((packed / "config.json").read_bytes())
    path = tmp_path / "weights.npz"
    path.write_bytes({"cut": content[: len(content) // 2]}.get(damage, b""))
    if damage == "pickle":
        np.savez(path, **{"E_conv0/w": np.array([{}], object)})
    elif damage == "another network's":
        other = FaceAging(**{**TINY, "num_gen_channels": 64})
        pack_weights(path, [other.E, other.G])
    with pytest.raises(InputError, match="weights.npz is not a whole set of weights: get it again"):
        FaceAging.load(tmp_path)


def test_shipped_model_ages_where_there_is_none(shipped, faces, tmp_path, capsys):
    save_dir = tmp_path / "none"
    assert main.main(["--is_train=False", "--savedir", str(save_dir), "--testdir", faces[0].path]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert f"{save_dir} holds no trained model: taking the one that ships" in printed
    assert {path.name for path in (save_dir / "test").iterdir()} == {"test_as_male.png", "test_as_female.png"}
    assert FaceAging.load().save_dir == shipped


def test_training_can_start_from_the_shipped_model(shipped, run, faces, tmp_path):
    model = FaceAging(**{**TINY, "seed": 3}, save_dir=tmp_path / "save")
    model.train(faces, num_epochs=1, learning_rate=1e-12, use_init_model=True)
    for ours, theirs in zip(model.E.weights, run.E.weights, strict=True):
        assert np.abs(ours.numpy() - theirs.numpy()).max() <= np.abs(theirs.numpy()).max() / 100


def test_shipped_model_of_other_sizes_is_refused(shipped, workplace, capsys):
    flags = ["--dataset=drawn", *TINY_FLAGS, "--num_gen_channels=64", "--num_encoder_channels=8"]
    assert main.main([*flags, "--use_init_model=True"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for said in ("num_gen_channels 32, not 64", "--num_encoder_channels 4 --num_gen_channels 32"):
        assert said in error
    assert not (workplace / "save").exists()


def test_the_model_that_ships_ages_the_faces_that_ship(tmp_path, monkeypatch, capsys):
    """The first command of the README."""
    monkeypatch.chdir(Path(main.__file__).parent)
    assert main.main(["--is_train", "False", "--savedir", str(tmp_path)]) == 0
    aged = len(list(make.FACES.glob("*.png")))
    assert aged >= 12 and f"{aged} faces aged" in capsys.readouterr().out
    assert iio.imread(tmp_path / "test/test_as_male.png").std() > 20
    assert (make.SHIPPED_MODEL / "weights.npz").stat().st_size < 80e6


def test_demo_train_and_make_make_what_ships(workplace, monkeypatch):
    flags = ["--dataset=drawn", *TINY_FLAGS, "--precision=float32", "--learning_rate=0.01"]
    assert train.train([*flags, "--epoch=1"]) == 0
    assert train.train(["--epoch=2"]) == 0
    with (workplace / "save/held_out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["step"], row["faces"]) for row in rows] == [("1", "5", "6"), ("2", "10", "6")]
    sheets = [iio.imread(workplace / f"save/random/{name}.png") for name in ("01", "02")]
    assert sheets[0].shape == sheets[1].shape == (320, 320, 3)  # ten z, ten ages
    assert not np.array_equal(*sheets)

    demo = workplace / "demo"
    for module in ("main", "FaceAging", "support.flags", "demo.make"):
        monkeypatch.setattr(f"{module}.SHIPPED_MODEL", demo / "model")
    monkeypatch.setattr(make, "DEMO", demo)
    monkeypatch.setattr(make, "FACES", demo / "faces")
    card = Path(main.__file__).parent / "demo/model/README.md"
    (demo / "model").mkdir(parents=True)
    (demo / "model/README.md").write_text(card.read_text(encoding="utf-8"), encoding="utf-8")
    assert make.make(["save"]) == 0
    assert make.make(["save", "card"]) == 0  # written over, not twice
    written = (demo / "model/README.md").read_text(encoding="utf-8")
    assert written.count(make.BEGIN) == written.count("| 8 bits, as shipped | 6 |") == written.count("| 71+ |") == 1
    assert {path.name for path in demo.iterdir()} == {
        *("model", "faces", "sample.png", "test.png", "loss_epoch.png", "demo_train.gif")
    }
    named = [parse_name(path.name) for path in (demo / "faces").iterdir()]
    assert len(named) == 20 and {gender for _, _, gender in named} == {0, 1}


def test_the_table_of_runs_has_a_row_a_run_with_every_number(run, workplace, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recognition, "dlib_models", lambda: None)
    monkeypatch.setattr(recognition, "embeddings", lambda images: images.reshape(len(images), -1)[:, :128] / 255.0)
    (tmp_path / "empty").mkdir()
    assert compare_runs.compare_runs([str(run.save_dir)] * 2 + ["empty", "--out=table", "--data=data"]) == 0
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [row["run"] for row in rows] == ["save", "save"] and rows[0] == rows[1]
    assert all(np.isfinite(rows[0][name]) for name in set(compare_runs.COLUMNS) - {"rebuilt_strict", "aged_strict"})
    printed = capsys.readouterr().out.splitlines()
    assert printed[2] == printed[3] and printed[3].startswith("| save | 0.0001,0.0001,0.0001 | 5 |")
    assert len({line.count("|") for line in printed}) == 1


def test_ssim_is_that_of_wang_and_others():
    random = np.random.default_rng(0)
    a = random.uniform(size=(48, 48, 3))
    b = np.clip(a + 0.2 * random.standard_normal(a.shape), 0, 1)
    # what scikit-image 0.26 gives: structural_similarity with gaussian_weights, sigma 1.5, use_sample_covariance=False
    assert ssim(a[None], b[None])[0] == pytest.approx(0.82575302, abs=1e-6)
    assert ssim(a[None], a[None])[0] == pytest.approx(1)
    assert ssim(a[None, :8, :8], a[None, :8, :8])[0] == pytest.approx(1)  # smaller than the window


def test_sharpness_is_the_variance_of_the_laplacian():
    checks = np.indices((16, 16)).sum(axis=0)[..., np.newaxis] % 2 * 2.0 - 1  # -1 and 1 by turns
    inside = np.pad(np.zeros((4, 4, 3)), ((8, 8), (8, 8), (0, 0)))
    assert sharpness(inside) == 0
    assert sharpness(checks) > 30  # 8 times the value itself but at the edges
    assert sharpness(np.repeat(checks, 3, axis=-1)) == pytest.approx(sharpness(checks))


def test_what_is_measured_is_what_the_names_say(run, faces):
    measured = run.evaluate(faces)
    images, ages, genders = read_faces(faces, run.bins, partial(load_image, size_image=32, channels=3))
    z = run.encode(images)
    x, made = normalize(images).numpy(), run.G([z, ages, genders], training=False).numpy()
    assert measured["overall"]["L1"] == pytest.approx(np.abs(x - made).mean(), abs=2e-5)
    assert measured["units"] == MEASURES and set(MEASURES) < set(measured["overall"])
    young, old = (
        run.G([z, run.bins.one_hot([age]).repeat(len(z), axis=0), genders], training=False).numpy() for age in (3, 8)
    )
    assert measured["overall"]["label_movement_by_bin"]["0-5 to 6-10"] == pytest.approx(
        np.abs(old - young).mean(), abs=2e-5
    )
    ordered = np.sort(z.ravel())
    above = np.arange(1, ordered.size + 1) / ordered.size - (ordered + 1) / 2
    distance = max(above.max(), (1 / ordered.size - above).max())
    assert measured["overall"]["z_KS_pooled"] == pytest.approx(distance, abs=2e-5)
    for groups in (measured["by_age"], measured["by_gender"]):
        assert sum(group["faces"] for group in groups.values()) == len(faces)
        mean = sum(group["faces"] * group["L1"] for group in groups.values()) / len(faces)
        assert mean == pytest.approx(measured["overall"]["L1"], abs=2e-5)
    assert json.loads(json.dumps(measured)) == measured


def test_main_measures_a_folder_or_the_held_out_faces(run, workplace, faces, drawn_folder, capsys):
    save_dir = str(run.save_dir)
    assert main.main(["--evaluate", str(drawn_folder), "--savedir", save_dir]) == 0
    assert "label_movement" in capsys.readouterr().out
    measured = json.loads((run.save_dir / "evaluation.json").read_text())
    assert measured["overall"]["faces"] == 60 and not measured["held_out"]
    assert main.main(["--savedir", save_dir, "--evaluate"]) == 0
    measured = json.loads((run.save_dir / "evaluation.json").read_text())
    _, held_out = split(faces, run.seed)
    assert measured["overall"] == run.evaluate(held_out)["overall"] and measured["held_out"]


@pytest.mark.parametrize("content", ["nothing", "an unlabelled picture", "no folder"])
def test_a_folder_that_cannot_be_measured_is_refused_in_one_line(run, tmp_path, capsys, content):
    folder = tmp_path / "faces"
    if content != "no folder":
        folder.mkdir()
    if content == "an unlabelled picture":
        Image.new("RGB", (40, 40)).save(folder / "me.png")
    assert main.main(["--evaluate", str(folder), "--savedir", str(tmp_path / "save")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(folder) in error
    assert not (tmp_path / "save").exists()
