"""The included models: packing, loading, --pretrained, and the tools that make them."""

import json
import shutil
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

import main
from FaceAging import FaceAging
from ops import load_image
from support import InputError, recognition
from support.config import read_config
from support.dataset import parse_name
from support.pretrained import INCLUDED_MODELS, load_quantized, quantize_weights
from tests.conftest import TINY, TINY_FLAGS
from tools import compare_runs, package_model, train_model


@pytest.fixture(scope="module")
def packed(run, tmp_path_factory):
    """A folder like support/pretrained/aging."""
    folder = tmp_path_factory.mktemp("packed") / "model"
    package_model.pack(run.save_dir, 8, folder)
    return folder


@pytest.fixture
def included(packed, monkeypatch):
    """The packed model in place of the default included model."""
    monkeypatch.setitem(INCLUDED_MODELS, "aging", packed)
    return packed


@pytest.mark.parametrize(("bits", "steps"), [(8, 127), (16, 1024)])
def test_quantization_error_is_at_most_half_a_step(run, tmp_path, bits, steps):
    quantize_weights(tmp_path / "weights.npz", [run.E, run.G], bits)
    other = FaceAging(**{**TINY, "seed": 3})
    load_quantized(tmp_path / "weights.npz", [other.E, other.G])
    for network in ("E", "G"):
        for expected, loaded in zip(getattr(run, network).weights, getattr(other, network).weights, strict=True):
            values, error = expected.numpy(), np.abs(loaded.numpy() - expected.numpy())
            if values.ndim == 1:
                assert not error.any()
                continue
            scaled = 0 if "fc" in expected.path else 2 if "deconv" in expected.path else 3
            others = tuple(axis for axis in range(values.ndim) if axis != scaled)
            assert (error.max(axis=others) <= 1.001 * np.abs(values).max(axis=others) / steps / 2).all()


def test_packaged_model_equals_its_run_within_quantization(run, packed, faces):
    assert (packed / "weights.npz").stat().st_size < 0.4 * 4 * (run.E.count_params() + run.G.count_params())
    assert read_config(packed)["training"]["steps"] == 5
    images = np.stack([load_image(face.path, 32, 3) for face in faces[:5]])
    packaged, original = (model.age(images, 30, 0).astype(int) for model in (FaceAging.load(packed), run))
    assert np.abs(packaged - original).max() <= 3


@pytest.mark.parametrize("damage", ["cut", "empty", "pickle", "another network's"])
def test_damaged_weights_are_rejected_in_one_line(packed, tmp_path, damage):
    content = (packed / "weights.npz").read_bytes()
    (tmp_path / "config.json").write_bytes((packed / "config.json").read_bytes())
    path = tmp_path / "weights.npz"
    path.write_bytes({"cut": content[: len(content) // 2]}.get(damage, b""))
    if damage == "pickle":
        np.savez(path, **{"E_conv0/w": np.array([{}], object)})
    elif damage == "another network's":
        other = FaceAging(**{**TINY, "num_gen_channels": 64})
        quantize_weights(path, [other.E, other.G])
    with pytest.raises(InputError, match="weights.npz is not a complete set of weights"):
        FaceAging.load(tmp_path)


def test_included_model_is_used_if_savedir_has_none(included, faces, tmp_path, capsys):
    save_dir = tmp_path / "none"
    assert main.main(["--is_train=False", "--savedir", str(save_dir), "--testdir", faces[0].path]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert f"{save_dir} has no trained model: using the included one" in printed
    assert {path.name for path in (save_dir / "test").iterdir()} == {"test_as_male.png", "test_as_female.png"}
    assert FaceAging.load().save_dir == included


@pytest.fixture(scope="module")
def other_packed(tmp_path_factory, faces):
    """A packed model of other weights and sizes."""
    folder = tmp_path_factory.mktemp("other")
    other = FaceAging(**{**TINY, "seed": 3, "num_z_channels": 7}, save_dir=folder / "run")
    assert other.train(faces, num_epochs=1, notes={"dataset": "drawn"}) is None
    package_model.pack(other.save_dir, 8, folder / "packed")
    return folder / "packed"


@pytest.fixture
def two_included(included, other_packed, tmp_path, monkeypatch):
    """A copy of that model in place of the included baseline."""
    monkeypatch.setitem(INCLUDED_MODELS, "paper", Path(shutil.copytree(other_packed, tmp_path / "baseline")))
    return included, tmp_path / "baseline"


def test_pretrained_takes_precedence_over_savedir(two_included, run, faces, tmp_path, capsys):
    (tmp_path / "few").mkdir()
    for face in faces[:4]:
        shutil.copy(face.path, tmp_path / "few")
    aging, measuring = ["--is_train=False", "--testdir", faces[0].path], ["--evaluate", str(tmp_path / "few")]
    lengths = {"aging": FaceAging.load().num_z_channels, "paper": FaceAging.load(pretrained="2017").num_z_channels}
    assert lengths == {"aging": 50, "paper": 7}
    sheets = {}
    for name, flags in {
        "run": [],
        "aging": ["--pretrained=aging"],
        "paper": ["--pretrained=2017"],
    }.items():
        place = tmp_path / name
        shutil.copytree(run.save_dir, place)
        assert main.main([*aging, "--savedir", str(place), *flags]) == 0
        sheets[name] = iio.imread(place / "test/test_as_male.png").astype(int)
        assert main.main([*measuring, "--savedir", str(place), *flags]) == 0
        measured = json.loads((place / "evaluation.json").read_text())["overall"]["L1"]
        sheets[name] = sheets[name], measured
    assert "using the included one" not in capsys.readouterr().out  # since --pretrained is given
    assert np.abs(sheets["run"][0] - sheets["aging"][0]).max() <= 3  # the same weights, in 8 bits
    assert np.abs(sheets["run"][0] - sheets["paper"][0]).max() > 3
    assert sheets["run"][1] == pytest.approx(sheets["aging"][1], abs=1e-3) != sheets["paper"][1]


def test_training_starts_from_the_model_that_pretrained_selects(two_included, faces, tmp_path):
    _, baseline = two_included
    model = FaceAging(**{**TINY, "num_z_channels": 7}, save_dir=tmp_path / "save")
    model.train(faces, num_epochs=1, learning_rate=1e-12, init_model="2017")
    loaded = FaceAging.load(baseline)
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(model.E.weights, loaded.E.weights, strict=True))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pretrained=2018"], "invalid choice: '2018'"),
        (["--pretrained=2017"], "--pretrained selects the model to start from: add --use_init_model True"),
        (["--use_init_model=True", "--pretrained=2017"], "num_z_channels 7, not"),
    ],
)
def test_invalid_use_of_pretrained_is_rejected(two_included, workplace, capsys, flags, message):
    try:
        status = main.main(["--dataset=drawn", *TINY_FLAGS, *flags])
    except SystemExit as error:
        status = error.code
    assert status == 2 and message in capsys.readouterr().err.splitlines()[-1]
    assert not (workplace / "save").exists()


@pytest.mark.parametrize("part", ["weights.npz", "config.json"])
@pytest.mark.parametrize("flags", [["--is_train=False"], ["--evaluate", "drawn"], ["--use_init_model=True"]])
def test_incomplete_included_model_is_rejected_in_one_line(two_included, workplace, drawn_folder, capsys, part, flags):
    _, baseline = two_included
    (baseline / part).unlink()
    (baseline / "README.md").write_text("The card")
    flags = [str(drawn_folder) if flag == "drawn" else flag for flag in flags]
    assert main.main(["--dataset=drawn", "--pretrained=2017", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{baseline} has no {part}: install the program again" in line
    assert not (workplace / "save").exists()


def test_training_can_start_from_the_included_model(included, run, faces, tmp_path):
    model = FaceAging(**{**TINY, "seed": 3}, save_dir=tmp_path / "save")
    model.train(faces, num_epochs=1, learning_rate=1e-12, init_model="aging")
    for weight, expected in zip(model.E.weights, run.E.weights, strict=True):
        assert np.abs(weight.numpy() - expected.numpy()).max() <= np.abs(expected.numpy()).max() / 100


def test_included_model_of_other_sizes_is_rejected_with_the_flags(included, workplace, capsys):
    flags = ["--dataset=drawn", *TINY_FLAGS, "--num_gen_channels=64", "--num_encoder_channels=8"]
    assert main.main([*flags, "--use_init_model=True"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for part in ("num_gen_channels 32, not 64", "--num_encoder_channels 4 --num_gen_channels 32"):
        assert part in error
    assert not (workplace / "save").exists()


def test_included_model_ages_the_demo_faces(tmp_path, monkeypatch, capsys):
    """The first command of the README."""
    monkeypatch.chdir(Path(main.__file__).parent)
    assert main.main(["--is_train", "False", "--savedir", str(tmp_path)]) == 0
    aged = len(list(package_model.FACES.glob("*.png")))
    assert aged >= 12 and f"{aged} faces aged" in capsys.readouterr().out
    assert iio.imread(tmp_path / "test/test_as_male.png").std() > 20
    assert sum((folder / "weights.npz").stat().st_size for folder in INCLUDED_MODELS.values()) < 80e6


def test_train_model_and_package_model(workplace, monkeypatch):
    flags = ["--dataset=drawn", *TINY_FLAGS, "--precision=float32", "--learning_rate=0.01"]
    assert train_model.train([*flags, "--epoch=1"]) == 0
    assert train_model.train(["--epoch=2"]) == 0
    kept = train_model.kept_epochs(workplace / "save")
    assert [path.name for path in kept] == ["01.npz", "02.npz"]
    averaged, last = package_model.load_averaged(workplace / "save"), FaceAging.load(workplace / "save")
    first = FaceAging.load(workplace / "save")
    load_quantized(kept[0], [first.E, first.G])
    for mean, one, two in zip(averaged.G.weights, first.G.weights, last.G.weights, strict=True):
        np.testing.assert_allclose(mean, (one.numpy() + two.numpy()) / 2, atol=2e-3)
        assert not np.allclose(one, two, atol=1e-3)
    sheets = [iio.imread(workplace / f"save/random/{name}.png") for name in ("01", "02")]
    assert sheets[0].shape == sheets[1].shape == (320, 320, 3)  # ten z, ten ages
    assert not np.array_equal(*sheets)

    demo = workplace / "demo"
    monkeypatch.setitem(INCLUDED_MODELS, "aging", demo / "model")
    monkeypatch.setattr(package_model, "DEMO", demo)
    monkeypatch.setattr(package_model, "FACES", demo / "faces")
    card = Path(main.__file__).parent / "support/pretrained/aging/README.md"
    (demo / "model").mkdir(parents=True)
    (demo / "model/README.md").write_text(card.read_text(encoding="utf-8"), encoding="utf-8")
    assert package_model.package(["save"]) == 0
    assert package_model.package(["save", "card"]) == 0  # replaced, not appended
    written = (demo / "model/README.md").read_text(encoding="utf-8")
    assert (
        written.count(package_model.BEGIN)
        == written.count("| 8 bits, as included | 6 |")
        == written.count("| requested age |")
        == 1
    )
    assert {path.name for path in demo.iterdir()} == {
        *("model", "faces", "ages.png", "sample.png", "test.png", "loss_epoch.png", "demo_train.gif")
    }
    named = [parse_name(path.name) for path in (demo / "faces").iterdir()]
    assert len(named) == 20 and {gender for _, _, gender in named} == {0, 1}


def test_card_of_the_included_model_has_the_sentences_of_package_model():
    folder = INCLUDED_MODELS["aging"]
    card = (folder / "README.md").read_text(encoding="utf-8")
    for sentence in (
        package_model.training_summary(read_config(folder)),
        package_model.AGING_TITLE,
        package_model.IDENTITY_TITLE,
    ):
        assert sentence in card


def test_compare_runs_prints_a_row_per_run(run, workplace, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recognition, "dlib_models", lambda: None)
    monkeypatch.setattr(recognition, "embeddings", lambda images: images.reshape(len(images), -1)[:, :128] / 255.0)
    (tmp_path / "empty").mkdir()
    assert compare_runs.compare_runs([str(run.save_dir)] * 2 + ["empty", "--out=table", "--data=data"]) == 0
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [row["run"] for row in rows] == ["save", "save"] and rows[0] == rows[1]
    unknown = {"reconstruction_verification_far1", "aged_verification_far1"}
    assert all(np.isfinite(rows[0][name]) for name in {*compare_runs.COLUMNS} - unknown - {"weights"})
    printed = capsys.readouterr().out.splitlines()
    assert printed[2] == printed[3] and printed[3].startswith("| save | G_img=0.0001,E_z=0.0001,tv=0.0001 | 5 |")
    assert len({line.count("|") for line in printed}) == 1
