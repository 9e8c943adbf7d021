"""Training: the files of a run, resuming, pre-training, and invalid input."""

import contextlib
import csv
import io
import json
import math
import shutil
import tarfile
from collections import Counter
from functools import partial
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main
from FaceAging import FaceAging
from ops import load_image
from support import InputError
from support.batches import epoch_name, read_faces, train_val_split
from support.config import read_config
from support.dataset import list_faces
from support.files import locked
from support.images import save_image
from support.losses import PRESETS
from tests.conftest import TINY, TINY_FLAGS

LOSSES = [
    "EG_loss",
    "E_z_loss",
    "G_img_loss",
    "D_z_loss_prior",
    "D_z_loss_z",
    "D_img_loss_input",
    "D_img_loss_G",
    "tv_loss",
]
DAMAGED = (7, 8, 11)  # faces of the packed set
SETTINGS = {  # recorded by default, beside the loss weights
    **{"optimizer": "adam", "learning_rate": 2e-4, "schedule": "constant", "loss_weights": None},
    **{"balance": False, "flip": False},
}
STEPS = 5  # of an epoch: 60 faces, 6 of them held out, batches of 10


def read_rows(save_dir):
    with (save_dir / "losses.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_events(save_dir):
    events = EventAccumulator(str(save_dir / "summary"), size_guidance={"images": 0, "scalars": 0})
    return events.Reload()


def weights_of(model):
    networks = (model.E, model.G, model.D_z, model.D_img)
    return [weight.numpy() for network in networks for weight in network.weights]


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory, faces):
    """A run of two epochs."""
    model = FaceAging(**TINY, save_dir=tmp_path_factory.mktemp("run") / "save")
    assert model.train(faces, num_epochs=2) is None
    return model


def test_run_writes_the_documented_files(run):
    held_out = ["lock", "losses.csv", "loss_epoch.png", "demo_train.gif", "config.json"]
    folders = {
        "samples": {"01.png", "02.png"},
        "test": {"input.png", "01.png", "02.png"},
        "checkpoint": {"checkpoint", "model-10.index", "model-10.data-00000-of-00001"},
    }
    assert {path.name for path in run.save_dir.iterdir()} == {*held_out, *folders, "summary"}
    for folder, names in folders.items():
        assert {path.name for path in (run.save_dir / folder).iterdir()} == names


def test_losses_csv_has_a_row_per_batch(run):
    rows = read_rows(run.save_dir)
    assert [int(row["step"]) for row in rows] == list(range(1, 2 * STEPS + 1))
    assert [float(row["epoch"]) for row in rows] == pytest.approx([step / STEPS for step in range(1, 2 * STEPS + 1)])
    assert list(rows[0]) == ["step", "epoch", *LOSSES, "learning_rate"]
    assert all(math.isfinite(float(row[name])) for row in rows for name in LOSSES)


def test_tensorboard_reads_losses_and_images(run):
    events = read_events(run.save_dir)
    tags = events.Tags()
    assert set(tags["tensors"]) == {*LOSSES, "learning_rate", "held_out_EG_loss", "samples", "test"}
    for name in (*LOSSES, "learning_rate"):
        assert [event.step for event in events.Tensors(name)] == list(range(1, 2 * STEPS + 1))
    assert [event.step for event in events.Tensors("samples")] == [STEPS, 2 * STEPS]
    logged = [float(tf.make_ndarray(event.tensor_proto)) for event in events.Tensors("EG_loss")]
    assert logged == pytest.approx([float(row["EG_loss"]) for row in read_rows(run.save_dir)])


def test_histograms_are_logged_every_fifty_batches(tmp_path, faces):
    model = FaceAging(**{**TINY, "size_batch": 1}, save_dir=tmp_path)
    model.train(faces, num_epochs=1)  # 54 batches
    tensors = read_events(tmp_path).Tags()["tensors"]
    names = {"z", "z_prior", "D_z_logits", "D_z_prior_logits", "D_G_logits", "D_input_logits"}
    assert names <= set(tensors)
    assert [event.step for event in read_events(tmp_path).Tensors("z")] == [50]


def test_grids_of_training_have_the_documented_layout(run, faces):
    _, held_out, _ = train_val_split(faces, seed=2017)
    side = run.size_image
    assert len(held_out) == 6
    inputs, samples, aged = (iio.imread(run.save_dir / f) for f in ("test/input.png", "samples/02.png", "test/02.png"))
    assert inputs.shape == samples.shape == (side, 6 * side, 3)  # one row: six held-out faces
    assert aged.shape == (10 * side, 6 * side, 3)  # a column per face, a row per age bin
    images, _, _ = read_faces(held_out, run.bins, partial(load_image, size_image=side, channels=3))
    assert np.array_equal(inputs, np.concatenate(images, axis=1))
    z = run.encode(images)
    centres = run.bins.centres
    for row, age in enumerate(centres):
        expected = np.concatenate(run.generate(z, age, [face.gender for face in held_out]), axis=1)
        shown = aged[row * side : (row + 1) * side]
        assert np.abs(shown.astype(int) - expected).max() <= 1


def test_animation_has_a_frame_per_epoch(run):
    assert len(iio.imread(run.save_dir / "demo_train.gif", index=None)) == 2


def test_animation_ignores_other_images_in_the_folder(tmp_path, faces):
    """Aged faces, and grids of an earlier run of another size, are ignored."""
    for name in ("25_0_2_20170116174525125_8_male.png", "03.png", "p02.png", "1.png"):
        save_image(tmp_path / "test" / name, np.zeros([8, 8, 3], np.uint8))
    FaceAging(**TINY, save_dir=tmp_path).train(faces, num_epochs=2)
    assert len(iio.imread(tmp_path / "demo_train.gif", index=None)) == 2


def test_animation_includes_pretraining(tmp_path, faces):
    model = FaceAging(**TINY, save_dir=tmp_path)
    model.train(faces, num_epochs=1, use_trained_model=False)
    assert len(iio.imread(tmp_path / "demo_train.gif", index=None)) == 11


def test_unwritable_image_is_reported_once_and_training_continues(tmp_path, faces, run, capsys):
    for name in ("test/input.png", "loss_epoch.png", "demo_train.gif"):
        # a folder cannot be replaced, like a file that another program has open on Windows
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "samples").touch()
    model = FaceAging(**TINY, save_dir=tmp_path)
    model.train(faces, num_epochs=2)
    lines = capsys.readouterr().err.splitlines()
    for name, line in zip(["test/input.png", "samples/01.png", "loss_epoch.png", "demo_train.gif"], lines, strict=True):
        assert line.startswith(f"{tmp_path / name} cannot be written, training continues without it: ")
    assert same(weights_of(model), weights_of(run))
    assert FaceAging(**TINY, save_dir=tmp_path).load_checkpoint()


def test_damaged_grid_does_not_end_training(tmp_path, faces, capsys):
    FaceAging(**TINY, save_dir=tmp_path).train(faces, num_epochs=1)
    (tmp_path / "test/01.png").write_bytes(b"damaged")
    assert FaceAging(**TINY, save_dir=tmp_path).train(faces, num_epochs=2) is None
    assert capsys.readouterr().err.count("demo_train.gif cannot be written") == 1


def test_config_json_records_how_the_run_was_made(run):
    config = json.loads((run.save_dir / "config.json").read_text())
    assert config["model"] == run.config
    assert set(config["versions"]) == {"python", "tensorflow", "keras"}
    recorded = {name: config["training"][name] for name in SETTINGS}
    assert recorded == {**SETTINGS, "loss_weights": PRESETS["default"]}
    assert set(config["training"]) == {*SETTINGS, "init_model", "faces", "data", "held_out"}


def test_train_records_its_arguments_and_notes(tmp_path, faces):
    settings = {"learning_rate": 1e-3, "decay_rate": 0.5, "schedule": "linear", "balance": True, "flip": True}
    weights = {"G_img": 3e-4, "E_z": 2e-4, "tv": 1e-4}
    notes = {"dataset": "drawn", "learning_rate": 5.0}  # the arguments take precedence over the notes
    FaceAging(**TINY, save_dir=tmp_path).train(
        faces[:20], 1, loss_weights=list(weights.values()), notes=notes, **settings
    )
    training = read_config(tmp_path)["training"]
    assert training["dataset"] == "drawn" and training["loss_weights"] == weights
    assert {name: training[name] for name in settings} == settings


def test_runs_with_equal_seeds_are_bit_identical(run, tmp_path, faces):
    again = FaceAging(**TINY, save_dir=tmp_path)
    again.train(faces, num_epochs=2)
    assert same(weights_of(run), weights_of(again))
    assert (tmp_path / "losses.csv").read_text() == (run.save_dir / "losses.csv").read_text()


def test_resumed_run_equals_an_uninterrupted_one(run, tmp_path, faces):
    FaceAging(**TINY, save_dir=tmp_path).train(faces, num_epochs=1)
    resumed = FaceAging(**TINY, save_dir=tmp_path)
    resumed.train(faces, num_epochs=2)
    assert same(weights_of(run), weights_of(resumed))
    assert (tmp_path / "losses.csv").read_text() == (run.save_dir / "losses.csv").read_text()
    for name in ("EG_loss", "samples"):
        steps = [[event.step for event in read_events(path).Tensors(name)] for path in (tmp_path, run.save_dir)]
        assert steps[0] == steps[1]


def test_resumed_run_drops_rows_after_the_checkpoint(run, tmp_path, faces):
    model = FaceAging(**TINY, save_dir=tmp_path)
    model.train(faces, num_epochs=1)
    with (tmp_path / "losses.csv").open("a") as file:
        file.write("6,1.2,0.5\n7,1.")  # rows that a killed run wrote after its last checkpoint
    FaceAging(**TINY, save_dir=tmp_path).train(faces, num_epochs=2)
    assert (tmp_path / "losses.csv").read_text() == (run.save_dir / "losses.csv").read_text()


def test_pretraining_precedes_the_epochs_and_its_state_is_kept(tmp_path, faces, monkeypatch):
    for module in ("FaceAging", "support.batches"):
        monkeypatch.setattr(f"{module}.PRETRAINING_EPOCHS", 2)
    model = FaceAging(**TINY, save_dir=tmp_path)
    model.train(faces, num_epochs=1, use_trained_model=False)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["01.png", "p01.png", "p02.png"]
    rows = read_rows(tmp_path)
    assert [float(row["epoch"]) for row in rows] == pytest.approx([(step / STEPS) - 2 for step in range(1, 16)])
    # Adam's state is kept: nothing is initialised again after pre-training
    assert all(int(optimizer.iterations) == 3 * STEPS for optimizer in model.optimizers.values())


def test_pretraining_ignores_the_loss_weights(tmp_path, faces):
    """All loss weights are 0 in pre-training, so E and G do not depend on those of the training."""
    models = [FaceAging(**TINY, save_dir=tmp_path / name) for name in ("zero", "large")]
    for model, weight in zip(models, (0.0, 100.0), strict=True):
        model.train(faces, num_epochs=-8, loss_weights=[weight] * 3, use_trained_model=False)
    assert same(weights_of(models[0]), weights_of(models[1]))


def test_pretraining_is_numbered_p01_to_p10_and_epochs_from_01():
    assert [epoch_name(epoch) for epoch in (-9, 0, 1, 50)] == ["p01", "p10", "01", "50"]


def test_pretraining_over_a_trained_model_is_rejected(run, faces):
    with pytest.raises(InputError, match="another --savedir"):
        FaceAging(**TINY, save_dir=run.save_dir).train(faces, num_epochs=3, use_trained_model=False)


def test_data_set_smaller_than_a_batch_is_rejected(tmp_path, faces):
    with pytest.raises(InputError, match="--batch_size 54 or less"):
        FaceAging(**{**TINY, "size_batch": 55}, save_dir=tmp_path).train(faces)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cache", [False, True])
def test_cache_reads_each_image_once(tmp_path, faces, monkeypatch, cache):
    read = Counter()
    monkeypatch.setattr("ops.load_image", lambda path, *sizes: read.update([path]) or load_image(path, *sizes))
    FaceAging(**TINY, save_dir=tmp_path).train(faces[:40], num_epochs=2, cache=cache)
    training, _, _ = train_val_split(faces[:40], seed=2017)  # 36: three batches of ten an epoch
    reads = [read[face.path] for face in training]
    assert max(reads) == 1 if cache else sum(reads) == 60


def test_another_architecture_is_rejected(run, faces):
    other = FaceAging(**{**TINY, "num_gen_channels": 64}, save_dir=run.save_dir)
    with pytest.raises(InputError, match="num_gen_channels 32, not 64"):
        other.train(faces, num_epochs=3)


def test_finished_run_is_not_changed(run, faces, capsys):
    before = (run.save_dir / "losses.csv").read_text(), (run.save_dir / "checkpoint/model-10.index").stat().st_mtime_ns
    assert FaceAging(**TINY, save_dir=run.save_dir).train(faces, num_epochs=2) is None
    assert "All 2 epochs are done" in capsys.readouterr().out
    after = (run.save_dir / "losses.csv").read_text(), (run.save_dir / "checkpoint/model-10.index").stat().st_mtime_ns
    assert before == after


def test_log_without_a_checkpoint_is_replaced(run, tmp_path, faces):
    (tmp_path / "losses.csv").write_text("step,epoch\n1,0.2\n2,0.")
    FaceAging(**TINY, save_dir=tmp_path).train(faces, num_epochs=2)
    assert (tmp_path / "losses.csv").read_text() == (run.save_dir / "losses.csv").read_text()


def test_non_finite_loss_ends_training_and_is_named(tmp_path, faces):
    with pytest.raises(FloatingPointError, match="loss.* is .* at step"):
        FaceAging(**TINY, save_dir=tmp_path).train(faces, num_epochs=1, learning_rate=1e30)


def test_locked_folder_is_rejected(tmp_path, faces):
    with locked(tmp_path), pytest.raises(InputError, match=r"process \d+ on"):
        FaceAging(**TINY, save_dir=tmp_path).train(faces, num_epochs=1)


def test_main_trains_and_restores_the_flags_of_a_run(workplace, capsys):
    train = ["--dataset", "drawn", "--loss_weights", "0.01,0.1,0.001", "--channels", "1"]
    assert main.main([*train, *TINY_FLAGS, "--epoch", "1"]) == 0
    assert main.main(["--epoch", "2"]) == 0  # data set, sizes and weights come from config.json
    printed = capsys.readouterr().out
    assert "UTKFace names: 60 faces" in printed and "Resuming at epoch 02 after step 5" in printed
    assert "Epoch 02/02, step 10: L1 0." in printed  # one line per epoch without a terminal
    config = json.loads((workplace / "save/config.json").read_text())
    weights = {"G_img": 0.01, "E_z": 0.1, "tv": 0.001}
    flags = SETTINGS | {"dataset": "drawn", "loss_weights": weights, "unknown_gender": False}
    assert {name: config["training"][name] for name in flags} == flags
    assert set(config["training"]) == {*flags, "init_model", "faces", "data", "held_out"}
    assert iio.imread(workplace / "save/samples/02.png").shape == (32, 192)


def test_rejected_training_does_not_change_the_folder(tmp_path, faces):
    reference = shutil.copytree(Path(__file__).parent / "reference", tmp_path / "reference")
    before = sorted(reference.rglob("*"))
    with pytest.raises(InputError, match="another --savedir"):
        FaceAging(**TINY, save_dir=reference).train(faces, num_epochs=1)
    assert sorted(reference.rglob("*")) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file, not a folder"):
        FaceAging(**TINY, save_dir=tmp_path / "file").train(faces, num_epochs=1)


def test_main_rejects_a_flag_that_contradicts_the_run(workplace, capsys):
    assert main.main(["--dataset", "drawn", *TINY_FLAGS, "--epoch", "1"]) == 0
    capsys.readouterr()
    assert main.main(["--dataset", "drawn", "--epoch", "2", "--num_gen_channels", "64"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--num_gen_channels is 64" in error and "made with 32" in error


@pytest.fixture(scope="module")
def packed_set(tmp_path_factory, faces):
    """A folder with data/mine.tar.gz: 40 faces in a table, the ninth without a gender, three of them damaged."""
    folder = tmp_path_factory.mktemp("packed")
    (folder / "data").mkdir()
    table = ["file,age,gender"]
    with tarfile.open(folder / "data/mine.tar.gz", "w:gz") as archive:
        for number, face in enumerate(faces[:40]):
            content = Path(face.path).read_bytes()
            add(archive, f"mine/{number:02d}.jpg", content[:-500] if number in DAMAGED else content)
            table.append(f"{number:02d}.jpg,{face.age},{'' if number == 9 else 'mf'[face.gender]}")
        add(archive, "mine/labels.csv", "\n".join(table).encode())
    return folder


@pytest.fixture(scope="module")
def packed_run(packed_set):
    """(folder, printed output) of a training on packed_set with three age bins."""
    flags = ["--dataset=mine", "--age_bounds=20,50", "--balance=True", "--cache=True", "--epoch=2", *TINY_FLAGS]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(packed_set)
        assert main.main([*flags, "--unknown_gender=True"]) == 0
    return packed_set, printed.getvalue()


def test_missing_gender_is_rejected_with_the_flag_to_use(packed_set, monkeypatch, capsys):
    monkeypatch.chdir(packed_set)
    assert main.main(["--dataset=mine", "--savedir=refused", *TINY_FLAGS]) == 2
    assert "--unknown_gender True" in capsys.readouterr().err


def test_archived_data_set_is_labelled_by_its_table(packed_run):
    assert "labels.csv: 40 faces" in packed_run[1] and "21-50" in packed_run[1]


def test_damaged_faces_are_reported_once(packed_run):
    assert max(packed_run[1].count(f"{number:02d}.jpg") for number in DAMAGED) == 1


def test_custom_age_bins_are_recorded_and_rendered(packed_run, faces, monkeypatch):
    folder, _ = packed_run
    assert json.loads((folder / "save/config.json").read_text())["model"]["age_bounds"] == [20, 50]
    assert iio.imread(folder / "save/test/02.png").shape[0] == 3 * 32  # a row per bin
    monkeypatch.chdir(folder)
    assert main.main(["--is_train=False", f"--testdir={faces[0].path}"]) == 0
    assert iio.imread(folder / "save/test/test_as_male.png").shape[1] < 10 * 32  # the input and three ages


def test_run_with_missing_images_keeps_its_checkpoint(tmp_path, drawn_folder, run):
    folder = tmp_path / "faces"
    shutil.copytree(drawn_folder, folder)
    model = FaceAging(**TINY, save_dir=tmp_path / "save")
    model.train(list_faces(folder).faces, num_epochs=1)
    listed = list_faces(folder).faces
    held_out = {face.path for face in train_val_split(listed, seed=2017).held_out}
    for face in listed:
        if face.path not in held_out:
            Path(face.path).unlink()
    with pytest.raises(InputError, match="names, sizes, ages or genders of the faces are not those"):
        FaceAging(**TINY, save_dir=tmp_path / "save").train(listed, num_epochs=2)
    resumed = FaceAging(**TINY, save_dir=tmp_path / "save")
    assert resumed.load_checkpoint() and int(resumed.step) >= STEPS


def add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def test_model_saved_before_training_is_trained_and_resumed(tmp_path, faces):
    FaceAging(**TINY, save_dir=tmp_path).save_checkpoint()
    for epochs in (1, 2):
        assert FaceAging(**TINY, save_dir=tmp_path).train(faces[:30], num_epochs=epochs) is None
