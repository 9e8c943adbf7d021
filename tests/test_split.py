"""The split into training and held-out faces: recorded by content, copies on one side only."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import main
from FaceAging import FaceAging
from support import InputError, batches, pretrained
from support.batches import choose_evaluation_faces, train_val_split
from support.config import read_config
from support.dataset import Face, list_faces
from support.files import write_json
from support.images import find_copies
from support.labels import UNKNOWN, parse_person
from support.pretrained import INCLUDED_MODELS, fingerprints
from tests.conftest import TINY, make_faces, make_image
from tools import package_model

SEED = 2017


def contents(faces) -> set[bytes]:
    return {Path(face.path).read_bytes() for face in faces}


@pytest.fixture
def folder(tmp_path, drawn_folder):
    """A copy of the 60 synthetic faces, data/mine."""
    return Path(shutil.copytree(drawn_folder, tmp_path / "data" / "mine"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, faces):
    """The folder of a run of one epoch on the 60 synthetic faces."""
    notes = {"dataset": "mine", "unknown_gender": False}
    model = FaceAging(**TINY, save_dir=tmp_path_factory.mktemp("held out") / "save")
    model.train(faces, num_epochs=1, notes=notes)
    return model.save_dir


@pytest.fixture
def run(trained, folder, monkeypatch):
    """A copy of that run in the current folder, which contains the data set too."""
    monkeypatch.chdir(folder.parents[1])
    return Path(shutil.copytree(trained, "save"))


def evaluate(capsys) -> tuple[int, dict, str]:
    """Return the status of `--evaluate`, what it measured, and all that it printed."""
    status = main.main(["--evaluate"])
    path = Path("save/evaluation.json")
    printed = capsys.readouterr()
    return status, json.loads(path.read_text()) if path.exists() else {}, printed.out + printed.err


def remove_record(run: Path, **notes) -> None:
    """Remove the record of held-out faces, as in older runs."""
    config = read_config(run)
    del config["training"]["held_out"]
    config["training"] |= notes
    write_json(run / "config.json", config)


def test_data_set_without_copies_is_split_by_the_seed(faces):
    logged = []
    training, held_out, notes = train_val_split(faces, SEED, log=logged.append)
    record = notes["held_out"]
    shuffled = [faces[i] for i in np.random.default_rng(SEED).permutation(60)]
    assert (held_out, training) == (shuffled[:6], shuffled[6:]) and not logged
    assert list(record.values()) == [Path(face.path).name for face in held_out]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in record)


def test_copies_are_reported_and_stay_on_one_side(folder):
    before = len(list_faces(folder).faces)
    shutil.copytree(folder, folder / "again")
    faces, logged = list_faces(folder).faces, []
    assert len(faces) == 2 * before == len(find_copies([face.path for face in faces]))
    training, held_out, _ = train_val_split(faces, SEED, log=logged.append)
    assert len(held_out) == 12 and not contents(training) & contents(held_out)
    assert re.match(
        r"60 images are exact copies of others, such as .* of .*; \d+ of them, copies of held-out", logged[0]
    )


def test_copies_have_equal_bytes_and_missing_files_are_ignored(folder):
    faces = list_faces(folder).faces
    one, other, gone = (Path(face.path) for face in faces[:3])
    other.write_bytes(one.read_bytes()[:-1] + b"?")  # of the same size
    gone.unlink()
    assert find_copies([face.path for face in faces]) == {}


def test_held_out_faces_are_identified_after_additions_and_renaming(run, folder, capsys):
    held_out = train_val_split(list_faces(folder).faces, SEED).held_out
    status, expected, _ = evaluate(capsys)
    assert status == 0 and expected["held_out"] and expected["overall"]["faces"] == 6
    make_faces(folder / "more", number=3, seed=5)
    for i, face in enumerate(held_out[:2]):  # which also changes the order
        path = Path(face.path)
        path.rename(path.with_name(f"{face.age}_{face.gender}_0_2017010100000000{i}.jpg"))
    status, measured, _ = evaluate(capsys)
    assert status == 0 and measured["overall"] == expected["overall"]


def test_missing_held_out_faces_are_reported_and_rejected_if_all_are_missing(run, folder, capsys):
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


def test_run_without_a_record_requires_the_same_number_of_faces(run, folder, capsys):
    _, expected, _ = evaluate(capsys)
    remove_record(run)
    status, measured, printed = evaluate(capsys)
    assert status == 0 and measured == expected and "has no record of its held-out faces" in printed
    make_faces(folder / "more", number=3, seed=5)
    status, _, printed = evaluate(capsys)
    assert status == 2 and "made with 60 faces, not these 63; --evaluate DIR" in printed


def test_held_out_faces_with_copies_are_excluded_without_a_record(folder):
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


def test_renamed_face_is_rejected_before_training(run, folder, capsys):
    held_out = train_val_split(list_faces(folder).faces, SEED).held_out
    path = Path(held_out[0].path)
    path.rename(path.with_name("0_0_0_20170101000000000.jpg"))  # which changes the order of an epoch
    before = (run / "losses.csv").read_bytes()
    model = FaceAging.load(run)
    with pytest.raises(InputError, match="names, sizes, ages or genders of the faces are not those"):
        FaceAging(**{**TINY, "precision": model.precision}, save_dir=run).train(list_faces(folder).faces, num_epochs=2)
    assert (run / "losses.csv").read_bytes() == before


@pytest.fixture
def included(tmp_path, faces, monkeypatch):
    """An included model that was trained on the 60 faces but for those of a record."""
    folder = tmp_path / "included"
    folder.mkdir()
    training, _, notes = train_val_split(faces, SEED)
    for name in ("config.json", "weights.npz"):
        (folder / name).touch()
    np.save(folder / "trained_on.npy", fingerprints([face.path for face in training]))
    monkeypatch.setattr(pretrained, "INCLUDED_MODELS", {"aging": folder})
    return notes["held_out"]


@pytest.mark.parametrize("seed", [SEED, SEED + 1])
def test_held_out_faces_are_those_unseen_by_the_initial_model(included, folder, seed):
    renamed = folder.rename(folder.with_name("other"))  # the name of the data set does not matter
    listed = list_faces(renamed).faces
    training, held_out, notes = train_val_split(listed, seed, init_model="aging")
    assert notes["held_out"].keys() == included.keys() and len(training) == 54
    measured, notes = choose_evaluation_faces(held_out, training, "aging")
    assert measured == held_out
    assert notes == {"held_out": True, "init_model": "aging", "init_model_trained_on": 0}


def test_training_faces_of_the_initial_model_do_not_count_as_held_out(included, folder, capsys):
    for path in folder.iterdir():
        if path.name in included.values():
            path.unlink()
    listed, logged = list_faces(folder).faces, []
    training, held_out, _ = train_val_split(listed, SEED, {}, logged.append, init_model="aging")
    assert "included model aging was trained on all faces" in logged[0]
    measured, notes = choose_evaluation_faces(held_out, training, "aging")
    assert measured == held_out and not notes["held_out"] and notes["init_model_trained_on"] == 5
    make_faces(folder / "more", number=1, seed=5)
    new = list_faces(folder / "more").faces
    # held-out faces of a run older than the fingerprints
    measured, notes = choose_evaluation_faces(held_out + new, training, "aging")
    assert measured == new and notes["held_out"] and notes["init_model_trained_on"] == 5
    assert "aging was trained on 5 of 6 faces" in capsys.readouterr().out


def test_evaluation_records_the_initial_model(run, folder, included, capsys):
    config = read_config(run)
    config["training"]["init_model"] = "aging"
    config["training"]["held_out"] = train_val_split(list_faces(folder).faces, SEED + 1).notes["held_out"]
    write_json(run / "config.json", config)
    status, measured, printed = evaluate(capsys)
    seen = len(config["training"]["held_out"].keys() - included.keys())
    assert status == 0 and measured["init_model"] == "aging" and measured["init_model_trained_on"] == seen > 0
    assert measured["held_out"] == (seen < 6) and f"aging was trained on {seen} of 6 faces" in printed


PEOPLE = {
    "FG-NET": [f"{person:03}A{age:02}.JPG" for person in range(1, 25) for age in range(2, 42, 4)],
    "MORPH": [f"{person:06}_{i}M{20 + i}.JPG" for person in range(40) for i in range(5)],
    "CACD": [f"{20 + i}_Name{chr(65 + person)}_{i:04}.jpg" for person in range(20) for i in range(10)],
    "AgeDB": [f"{10 * person + i}_Name{chr(65 + person)}_{20 + i}_f.jpg" for person in range(20) for i in range(10)],
    "IMDB-WIKI": [f"{100 + person}_1980-01-01_{2000 + i}.jpg" for person in range(20) for i in range(10)],
    "aligned FG-NET": [f"{person:03}A{age:02}.JPG.png" for person in range(1, 25) for age in range(2, 42, 4)],
}


@pytest.mark.parametrize("convention", PEOPLE)
def test_people_are_held_out_as_a_whole_if_names_identify_them(convention):
    faces, logged = [Face(name, 30, UNKNOWN) for name in PEOPLE[convention]], []
    people = {parse_person(face.path) for face in faces}
    training, held_out, notes = train_val_split(faces, SEED, {}, logged.append)
    held_out_people = {parse_person(face.path) for face in held_out}
    assert len(held_out_people) == notes["people"] == len(people) // 10 and None not in held_out_people
    assert held_out_people.isdisjoint(parse_person(face.path) for face in training)
    assert {parse_person(face.path) for face in training} | held_out_people == people
    assert min(len(faces) // 10, 1) <= len(held_out) <= len(faces) // 10
    assert logged == [
        f"Held out: {len(held_out)} faces of {len(held_out_people)} people, whose other photos are not trained on"
    ]
    assert train_val_split(faces, SEED, log=logged.append)[:2] == (training, held_out)


def test_resumed_run_keeps_its_held_out_people(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "MOST_HELD_OUT", 5)  # of 20
    for name in PEOPLE["CACD"]:
        make_image(tmp_path / name, sum(map(ord, name)))
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + name.encode())  # no copies
    faces = list_faces(tmp_path, True).faces
    first = train_val_split(faces, SEED)
    config = {"training": first.notes | {"faces": 200}}
    assert train_val_split(faces, SEED, config) == first
    del config["training"]["people"]
    older = train_val_split(faces, SEED, config)
    assert older.held_out == first.held_out and len(older.training) == 200 - len(first.held_out)
    _, notes = choose_evaluation_faces(older.held_out, older.training, None)
    assert notes["people"] == notes["people_trained_on"] == 2
    _, notes = choose_evaluation_faces(first.held_out, first.training, None)
    assert notes["people"] == 2 and notes["people_trained_on"] == 0


def test_faces_of_one_person_are_split_by_face():
    faces = [Face(f"001A{age:02}.JPG", age, UNKNOWN) for age in range(40)]
    training, held_out, notes = train_val_split(faces, SEED)
    assert (len(training), len(held_out)) == (36, 4) and "people" not in notes


def test_packaged_model_keeps_the_record(run, tmp_path):
    package_model.pack(run, 8, tmp_path / "packed")
    assert read_config(tmp_path / "packed")["training"]["held_out"] == read_config(run)["training"]["held_out"]


# two of the 100 held-out faces of the model paper have copies that it was trained on
@pytest.mark.parametrize(("name", "faces"), [("aging", 100), ("paper", 98)])
def test_the_included_models_have_a_record_of_their_held_out_faces(name, faces):
    config = read_config(INCLUDED_MODELS[name])
    record = config["training"]["held_out"]
    assert len(record) == faces
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in record)
    with pytest.raises(InputError, match=f"{faces} of the {faces} faces held out of the training are not in this data"):
        train_val_split([], SEED, config)


def test_duplicate_path_counts_as_a_copy(faces):
    training, held_out, _ = train_val_split(list(faces) * 2, SEED)
    assert not contents(training) & contents(held_out)


def test_changed_held_out_faces_are_rejected_before_training(run, folder, faces):
    make_faces(folder / "more", number=1, seed=5)
    path = Path(train_val_split(list_faces(folder).faces, SEED, read_config(run)).held_out[0].path)
    path.unlink()
    with pytest.raises(InputError, match=r"1 of its held-out faces, first .*, are missing or have changed"):
        FaceAging(**TINY, save_dir=run).train(list_faces(folder).faces, num_epochs=2)


def change_label(folder: Path) -> None:
    path = next(path for path in folder.iterdir() if path.name.startswith("7"))
    path.rename(path.with_name("2" + path.name[1:]))


def change_table(folder: Path) -> None:
    (folder / "labels.csv").write_text(f"file,age\n{next(folder.iterdir()).name},33\n")


def replace_image(folder: Path) -> None:
    shutil.copy(*sorted(folder.iterdir())[20:22])


@pytest.mark.parametrize("change", [change_label, change_table, replace_image])
def test_resume_rejects_changed_labels_or_images(run, folder, change):
    change(folder)
    faces = list_faces(folder).faces
    with pytest.raises(InputError, match="names, sizes, ages or genders of the faces are not those"):
        FaceAging(**TINY, save_dir=run).train(faces, num_epochs=2)


@pytest.mark.parametrize("lost", ["file", "content"])
def test_run_without_its_config_is_rejected(run, folder, lost):
    if lost == "file":
        (run / "config.json").unlink()
    else:
        write_json(run / "config.json", read_config(run) | {"training": {}})
    with pytest.raises(InputError, match="model-5 has no config.json that records its training: restore it"):
        FaceAging(**TINY, save_dir=run).train(list_faces(folder).faces, num_epochs=2)


def test_copies_with_different_labels_are_reported(folder):
    path = next(folder.iterdir())
    shutil.copy(path, folder / "99_1_0_20170101000000999.jpg")
    logged = []
    train_val_split(list_faces(folder).faces, SEED, {}, logged.append)
    assert logged[1].startswith("1 images have copies with another age or gender, such as ") and path.name in logged[1]
