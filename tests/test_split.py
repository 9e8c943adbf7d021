"""The split into training and held-out faces: recorded by content, without copies on both sides."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import main
from FaceAging import FaceAging
from support.batches import find_copies, train_val_split
from support.config import read_config
from support.dataset import list_faces
from support.errors import InputError
from support.files import write_json
from support.flags import parse_flags
from support.pretrained import INCLUDED_MODELS
from tests.conftest import TINY, make_faces
from tools import package_model

SEED = 2017


def contents(faces) -> set[bytes]:
    return {Path(face.path).read_bytes() for face in faces}


@pytest.fixture
def folder(tmp_path, drawn_folder):
    """A data set of one's own, of the 60 drawn faces, in an empty place."""
    return Path(shutil.copytree(drawn_folder, tmp_path / "data" / "mine"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, faces):
    """A run of one epoch on the 60 drawn faces."""
    notes = {"dataset": "mine", "loss_weights": [1e-4] * 3, "balance": False, "unknown_gender": False}
    model = FaceAging(**TINY, save_dir=tmp_path_factory.mktemp("held out") / "save")
    model.train(faces, num_epochs=1, notes=notes)
    return model.save_dir


@pytest.fixture
def run(trained, folder, monkeypatch):
    """A copy of that run in the current folder, in which the data set lies too."""
    monkeypatch.chdir(folder.parents[1])
    return Path(shutil.copytree(trained, "save"))


def evaluate(capsys) -> tuple[int, dict, str]:
    """Returns the status of `--evaluate`, what it measured, and all that it printed."""
    status = main.main(["--evaluate"])
    path = Path("save/evaluation.json")
    printed = capsys.readouterr()
    return status, json.loads(path.read_text()) if path.exists() else {}, printed.out + printed.err


def forget(run: Path, **notes) -> None:
    """Make a run one of before there was a record of held-out faces."""
    config = read_config(run)
    del config["training"]["held_out"]
    config["training"] |= notes
    write_json(run / "config.json", config)


def test_a_set_without_copies_is_split_by_the_seed(faces):
    said = []
    training, held_out, record = train_val_split(faces, SEED, log=said.append)
    shuffled = [faces[i] for i in np.random.default_rng(SEED).permutation(60)]
    assert (held_out, training) == (shuffled[:6], shuffled[6:]) and not said
    assert list(record.values()) == [Path(face.path).name for face in held_out]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in record)


def test_copies_are_reported_and_kept_on_one_side(folder):
    before = len(list_faces(folder).faces)
    shutil.copytree(folder, folder / "again")
    faces, said = list_faces(folder).faces, []
    assert len(faces) == 2 * before == len(find_copies(faces))
    training, held_out, _ = train_val_split(faces, SEED, log=said.append)
    assert len(held_out) == 12 and not contents(training) & contents(held_out)
    assert re.match(r"60 images are exact copies of others, such as .* of .*; \d+ of them, copies of held-out", said[0])


def test_copies_have_the_same_bytes_and_missing_files_are_ignored(folder):
    faces = list_faces(folder).faces
    one, other, gone = (Path(face.path) for face in faces[:3])
    other.write_bytes(one.read_bytes()[:-1] + b"?")  # of the same size
    gone.unlink()
    assert find_copies(faces) == {}


def test_held_out_faces_are_found_after_additions_and_renaming(run, folder, capsys):
    held_out = train_val_split(list_faces(folder).faces, SEED).held_out
    status, expected, _ = evaluate(capsys)
    assert status == 0 and expected["held_out"] and expected["overall"]["faces"] == 6
    make_faces(folder / "more", number=3, seed=5)
    for i, face in enumerate(held_out[:2]):  # the order changes, too
        path = Path(face.path)
        path.rename(path.with_name(f"{face.age}_{face.gender}_0_2017010100000000{i}.jpg"))
    status, measured, _ = evaluate(capsys)
    assert status == 0 and measured["overall"] == expected["overall"]


def test_missing_held_out_faces_are_reported_and_refused_if_all_are(run, folder, capsys):
    held_out = train_val_split(list_faces(folder).faces, SEED).held_out
    Path(held_out[0].path).unlink()
    status, measured, printed = evaluate(capsys)
    assert status == 0 and measured["overall"]["faces"] == 5
    assert (
        f"1 of the 6 faces held out of the training are not in this data set, first {Path(held_out[0].path).name}"
        in printed
    )
    for face in held_out[1:]:
        Path(face.path).unlink()
    Path("save/evaluation.json").unlink()
    status, measured, printed = evaluate(capsys)
    assert status == 2 and not measured and "6 of the 6 faces held out" in printed and "--evaluate DIR" in printed


def test_a_run_without_a_record_is_measured_only_with_the_same_number_of_faces(run, folder, capsys):
    _, expected, _ = evaluate(capsys)
    forget(run)
    status, measured, printed = evaluate(capsys)
    assert status == 0 and measured == expected and "has no record of its held-out faces" in printed
    make_faces(folder / "more", number=3, seed=5)
    status, _, printed = evaluate(capsys)
    assert status == 2 and "made with 60 faces, not these 63; --evaluate DIR" in printed


def test_without_a_record_held_out_faces_with_copies_are_left_out(folder):
    shutil.copytree(folder, folder / "again")
    faces = list_faces(folder).faces
    shuffled = [faces[i] for i in np.random.default_rng(SEED).permutation(120)]
    held_out, training = shuffled[:12], shuffled[12:]
    assert contents(held_out) & contents(training)
    held_out = [face for face in held_out if Path(face.path).read_bytes() not in contents(training)]
    if held_out:
        split = train_val_split(faces, SEED, {"training": {"faces": 120}})
        assert (split.training, split.held_out) == (training, held_out)
    else:
        with pytest.raises(InputError, match="all held-out faces have copies"):
            train_val_split(faces, SEED, {"training": {"faces": 120}})


def test_a_renamed_face_is_refused_before_training(run, folder, capsys):
    held_out = train_val_split(list_faces(folder).faces, SEED).held_out
    path = Path(held_out[0].path)
    path.rename(path.with_name("0_0_0_20170101000000000.jpg"))  # which changes the order of an epoch
    before = (run / "losses.csv").read_bytes()
    model = FaceAging.load(run)
    with pytest.raises(InputError, match="names, ages or genders of the data set's faces are not those"):
        FaceAging(**{**TINY, "precision": model.precision}, save_dir=run).train(list_faces(folder).faces, num_epochs=2)
    assert (run / "losses.csv").read_bytes() == before


def test_starting_from_a_model_trained_on_held_out_faces_is_reported(run, folder, monkeypatch, capsys):
    monkeypatch.setattr("main.included_model", lambda name: run)
    monkeypatch.setattr("main.check_sizes", lambda _: None)
    for seed in (SEED, SEED + 1):
        flags, given = parse_flags(["--dataset=mine", "--savedir=new", "--use_init_model=True", f"--seed={seed}"])
        listing = main.find_faces(flags, given)
        ours, theirs = (contents(train_val_split(listing.faces, each).held_out) for each in (seed, SEED))
        seen = len(ours - theirs)
        assert (f"may have been trained on {seen} of the faces" in capsys.readouterr().out) == (seen > 0)


def test_a_packed_model_carries_the_record(run, tmp_path):
    package_model.pack(run, 8, tmp_path / "packed")
    assert read_config(tmp_path / "packed")["training"]["held_out"] == read_config(run)["training"]["held_out"]


# of the baseline's 100, UTKFace has two once more, under names that it was trained on
@pytest.mark.parametrize(("name", "faces"), [("aging", 100), ("paper", 98)])
def test_the_included_models_have_a_record_of_their_held_out_faces(name, faces):
    config = read_config(INCLUDED_MODELS[name])
    record = config["training"]["held_out"]
    assert len(record) == faces
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in record)
    with pytest.raises(InputError, match=f"{faces} of the {faces} faces held out of the training are not in this data"):
        train_val_split([], SEED, config)


def test_a_face_listed_twice_is_a_copy_of_itself(faces):
    training, held_out, _ = train_val_split(list(faces) * 2, SEED)
    assert not contents(training) & contents(held_out)


def test_changed_faces_of_the_same_number_are_refused_before_training(run, folder, faces):
    make_faces(folder / "more", number=1, seed=5)
    path = Path(train_val_split(list_faces(folder).faces, SEED, read_config(run)).held_out[0].path)
    path.unlink()
    with pytest.raises(InputError, match=r"1 of its held-out faces, first .*, are missing or have changed"):
        FaceAging(**TINY, save_dir=run).train(list_faces(folder).faces, num_epochs=2)
