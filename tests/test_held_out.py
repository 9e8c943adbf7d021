"""Held out means held out: remembered by content, whatever becomes of the folder, and no copy of them trained on."""

import json
import re
import shutil
from pathlib import Path

import pytest

import main
from FaceAging import FaceAging
from support.batches import split
from support.config import read_config
from support.dataset import list_faces
from support.draw_faces import draw_dataset
from support.errors import InputError
from support.files import write_json
from support.flags import parse_flags
from support.held_out import find_copies, held_out_of, split_off
from support.pretrained import INCLUDED_MODELS
from tests.conftest import TINY
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


def test_a_set_without_copies_is_split_as_ever_and_nothing_is_said(faces, tmp_path):
    said = []
    training, held_out, record = split_off(faces, SEED, tmp_path, said.append)
    assert (training, held_out) == split(faces, SEED) and not said
    assert list(record.values()) == [Path(face.path).name for face in held_out]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in record)


def test_copies_are_found_said_and_kept_on_one_side(folder, tmp_path):
    before = len(list_faces(folder).faces)
    shutil.copytree(folder, folder / "again")
    faces, said = list_faces(folder).faces, []
    assert len(faces) == 2 * before == len(find_copies(faces))
    training, held_out, _ = split_off(faces, SEED, tmp_path, said.append)
    assert held_out == split(faces, SEED)[1] and not contents(training) & contents(held_out)
    assert re.match(
        r"60 pictures are exact copies of others, such as .* of .*; \d+ of them, copies of held-out", said[0]
    )


def test_copies_are_of_the_same_bytes_and_files_that_are_gone_do_not_matter(folder):
    faces = list_faces(folder).faces
    one, other, gone = (Path(face.path) for face in faces[:3])
    other.write_bytes(one.read_bytes()[:-1] + b"?")  # of the same size
    gone.unlink()
    assert find_copies(faces) == {}


def test_a_run_remembers_its_held_out_faces_whatever_is_added_or_renamed(run, folder, capsys):
    held_out = split(list_faces(folder).faces, SEED)[1]
    status, expected, _ = evaluate(capsys)
    assert status == 0 and expected["held_out"] and expected["overall"]["faces"] == 6
    draw_dataset(folder / "more", number=3, seed=5)
    for i, face in enumerate(held_out[:2]):  # the order changes, too
        path = Path(face.path)
        path.rename(path.with_name(f"{face.age}_{face.gender}_0_2017010100000000{i}.jpg"))
    status, measured, _ = evaluate(capsys)
    assert status == 0 and measured["overall"] == expected["overall"]


def test_held_out_faces_that_are_gone_are_said_and_all_gone_are_refused(run, folder, capsys):
    held_out = split(list_faces(folder).faces, SEED)[1]
    Path(held_out[0].path).unlink()
    status, measured, printed = evaluate(capsys)
    assert status == 0 and measured["overall"]["faces"] == 5
    assert (
        f"1 of the 6 faces held out of the training are not in this data set, such as {Path(held_out[0].path).name}"
        in printed
    )
    for face in held_out[1:]:
        Path(face.path).unlink()
    Path("save/evaluation.json").unlink()
    status, measured, printed = evaluate(capsys)
    assert status == 2 and not measured and "6 of the 6 faces held out" in printed and "--evaluate DIR" in printed


def test_a_run_without_a_record_is_measured_only_on_as_many_faces(run, folder, capsys):
    _, expected, _ = evaluate(capsys)
    forget(run)
    status, measured, printed = evaluate(capsys)
    assert status == 0 and measured == expected and "kept no record of its held-out faces" in printed
    draw_dataset(folder / "more", number=3, seed=5)
    status, _, printed = evaluate(capsys)
    assert status == 2 and "made with 60 faces, not these 63; --evaluate DIR" in printed


def test_without_a_record_faces_of_which_a_copy_was_trained_on_do_not_count(folder):
    shutil.copytree(folder, folder / "again")
    faces = list_faces(folder).faces
    training, held_out = split(faces, SEED)
    assert contents(held_out) & contents(training)
    held_out = [face for face in held_out if Path(face.path).read_bytes() not in contents(training)]
    if held_out:
        assert held_out_of({"training": {"faces": 120}}, faces, SEED) == held_out
    else:
        with pytest.raises(InputError, match="copies of all its held-out faces"):
            held_out_of({"training": {"faces": 120}}, faces, SEED)


def test_a_run_from_before_goes_on_with_the_faces_it_was_trained_on(run, folder):
    shutil.copytree(folder, folder / "again")
    faces = list_faces(folder).faces
    forget(run, faces=120)
    training, held_out, _ = split_off(faces, SEED, run)
    assert (training, held_out) == split(faces, SEED)


def test_other_faces_of_the_same_number_are_refused_before_training(run, folder, capsys):
    held_out = split(list_faces(folder).faces, SEED)[1]
    path = Path(held_out[0].path)
    path.rename(path.with_name("0_0_0_20170101000000000.jpg"))  # its place in the order is another
    before = (run / "losses.csv").read_bytes()
    model = FaceAging.load(run)
    with pytest.raises(InputError, match="the data set is not the one that the run in save was made with"):
        FaceAging(**{**TINY, "precision": model.precision}, save_dir=run).train(list_faces(folder).faces, num_epochs=2)
    assert (run / "losses.csv").read_bytes() == before


def test_starting_from_a_model_that_saw_the_held_out_faces_is_said(run, folder, monkeypatch, capsys):
    monkeypatch.setattr("main.included_model", lambda name: run)
    monkeypatch.setattr("main.check_sizes", lambda _: None)
    for seed in (SEED, SEED + 1):
        flags, given = parse_flags(["--dataset=mine", "--savedir=new", "--use_init_model=True", f"--seed={seed}"])
        listing = main.find_faces(flags, given)
        ours, theirs = (contents(split(listing.faces, each)[1]) for each in (seed, SEED))
        seen = len(ours - theirs)
        assert (f"may have been trained on {seen} of the faces" in capsys.readouterr().out) == (seen > 0)


def test_a_packed_model_carries_the_record(run, tmp_path):
    package_model.pack(run, 8, tmp_path / "packed")
    assert read_config(tmp_path / "packed")["training"]["held_out"] == read_config(run)["training"]["held_out"]


# of the baseline's 100, UTKFace has two once more, under names that it was trained on
@pytest.mark.parametrize(("name", "faces"), [("aging", 100), ("paper", 98)])
def test_the_models_that_ship_know_their_held_out_faces(name, faces):
    config = read_config(INCLUDED_MODELS[name])
    record = config["training"]["held_out"]
    assert len(record) == faces
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in record)
    with pytest.raises(InputError, match=f"{faces} of the {faces} faces held out of the training are not in this data"):
        held_out_of(config, [], SEED)


def test_a_face_that_is_given_twice_is_a_copy_of_itself(faces, tmp_path):
    training, held_out, _ = split_off(list(faces) * 2, SEED, tmp_path)
    assert not contents(training) & contents(held_out)
