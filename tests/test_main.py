"""The command line as a user meets it: help, wrong flags, missing folders, none of them with TensorFlow."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import main
from FaceAging import FaceAging
from support.config import MODEL
from support.dataset import find_images
from support.errors import InputError
from support.flags import DEMO_FACES, make_parser, parse_flags
from tests.conftest import refuse_to_list

MAIN = Path(main.__file__)


def call(*flags, cwd, **environment):
    """Run the program in a process of its own in which neither TensorFlow nor ffmpeg can be imported."""
    code = (
        "import sys; sys.modules |= dict.fromkeys(['tensorflow', 'keras', 'imageio_ffmpeg']); "
        "import main; sys.exit(main.main())"
    )
    command = [sys.executable, "-c", code, *flags]
    environment = {"PYTHONPATH": str(MAIN.parent), **environment}
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )


def test_help_names_every_flag_with_its_default(tmp_path):
    done = call("--help", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    for flag in vars(make_parser().parse_args([])):
        assert f"--{flag} " in done.stdout
    for default in ("(default: 100)", "(default: 0.0002)", "(default: 2017)", "(default: UTKFace)"):
        assert default in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--epoch 0", "--epoch"),
        ("--epoch two", "--epoch"),
        ("--batch_size -5", "--batch_size"),
        ("--learning_rate 0", "--learning_rate"),
        ("--learning_rate nan", "--learning_rate"),
        ("--loss_weights 1,2", "--loss_weights"),
        ("--loss_weights 1,2,-3", "--loss_weights"),
        ("--loss_weights mine", "--loss_weights"),
        ("--image_size 100", "--image_size"),
        ("--channels 4", "--channels"),
        ("--num_gen_channels 0", "--num_gen_channels"),
        ("--precision float8", "--precision"),
        ("--seed -1", "--seed"),
        ("--seed 4294967296", "within 0-4294967295"),
        ("--epoch 10000000000000000000000", "--epoch"),
        (f"--num_z_channels {'9' * 5000}", "--num_z_channels"),
        ("--is_train maybe", "--is_train"),
        ("--age_bounds 10,5", "--age_bounds"),
        ("--is_train False --age old", "--age"),
        ("--is_train False --gender other", "--gender"),
        ("--age 30", "--is_train False"),
        ("--is_train False --testdir=", "--testdir: the name is empty"),
        ("--savedir=", "--savedir: the name is empty"),
        ("--dataset=", "--dataset: the name is empty"),
        ("--evaluate=", "--evaluate: the name is empty"),
        ("--is_train False --blend a.jpg \N{NO-BREAK SPACE}", "--blend"),
        ("--is_train False --testdir nowhere --animate mp4", "imageio[ffmpeg]"),
        ("--is_train False --testdir nowhere --blend a.jpg b.jpg", "--blend"),
        ("--is_train False --blend a.jpg b.jpg --animate gif", "--animate"),
        ("--is_train False --blend a.jpg b.jpg", "a.jpg"),
        ("--is_train False --blend a.jpg", "--blend"),
        ("--epochs 3 --wrong", "--wrong"),
    ],
)
def test_wrong_flag_is_named_with_status_2(tmp_path, flags, named):
    done = call(*flags.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert named in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_tilde_is_the_home_folder_wherever_a_path_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    given = ["--savedir=~/x", "--testdir=~/*.jpg", "--evaluate=~", "--dataset=~/faces", "--blend", "~/a", "~nobody$/b"]
    flags, _ = parse_flags(given)
    assert flags.savedir == tmp_path / "x" and flags.evaluate == str(tmp_path)
    assert flags.testdir == [str(tmp_path / "*.jpg")] and flags.dataset == str(tmp_path / "faces")
    assert flags.blend == [tmp_path / "a", Path("~nobody$/b")]
    assert parse_flags(["--evaluate"])[0].evaluate is False and "evaluate" in parse_flags(["--evaluate"])[1]


def test_the_faces_that_ship_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(find_images([str(DEMO_FACES)])) == 20


@pytest.mark.parametrize("made", [False, True])
def test_missing_data_set_says_where_to_get_it(tmp_path, made):
    if made:
        (tmp_path / "data" / "UTKFace").mkdir(parents=True)
    done = call(cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    for said in (str(Path("data/UTKFace")), "https://susanqq.github.io/UTKFace/", "--dataset demo"):
        assert said in line
    assert not (tmp_path / "save").exists()


def test_a_folder_of_files_that_are_no_faces_is_refused(tmp_path):
    folder = tmp_path / "data" / "mine"
    folder.mkdir(parents=True)
    (folder / "holiday.jpg").write_bytes(b"")
    done = call("--dataset", "mine", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "holiday.jpg" in done.stderr


def test_aging_without_pictures_is_refused(tmp_path):
    done = call("--is_train", "False", "--testdir", "nowhere", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "nowhere" in done.stderr


def test_testdir_is_a_folder_a_picture_or_a_pattern(tmp_path):
    names = ["a.jpg", "b.png", "c[1].jpg", "deeper/d.jpg", "notes.txt"]
    (tmp_path / "deeper").mkdir()
    for name in names:
        (tmp_path / name).touch()

    def found(*testdir):
        pictures = find_images([str(tmp_path / name) for name in testdir])
        return [path.relative_to(tmp_path).as_posix() for path in pictures]

    assert found("") == names[:4]
    assert found("b.png") == ["b.png"]
    assert found("c[1].jpg") == ["c[1].jpg"]
    assert found("?.*") == ["a.jpg", "b.png"]
    assert found("**/*.jpg") == ["a.jpg", "c[1].jpg", "deeper/d.jpg"]
    assert found("a.jpg", "b.png") == ["a.jpg", "b.png"]
    with pytest.raises(InputError, match="no images in .*gif"):
        found("*.gif")


def test_a_name_without_pictures_is_said_and_the_others_are_taken(tmp_path, capsys, monkeypatch):
    (tmp_path / "a.jpg").touch()
    for name in ("empty", "lost+found", "b/closed"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "b/c.jpg").touch()
    refuse_to_list(monkeypatch, "lost+found", "closed")
    names = ["a.jpg", "empty", "lost+found", "gone.jpg", "b", "x" * 300]
    paths = find_images([str(tmp_path / name) for name in names])
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == ["a.jpg", "b/c.jpg"]
    printed = capsys.readouterr().out
    for said in (
        "no images in .*empty",
        "lost.found: Permission denied",
        "no images in .*gone.jpg",
        "closed: a folder: Permission denied",
        "xxx",
    ):
        assert re.search(f"^Left out: .*{said}", printed, re.MULTILINE)


def test_the_flags_defaults_are_the_constructors():
    flags, _ = parse_flags([])
    parameters = inspect.signature(FaceAging).parameters
    for flag, parameter in MODEL.items():
        if flag != "precision":  # auto, on the command line
            assert getattr(flags, flag) == parameters[parameter].default, flag
    parameters = inspect.signature(FaceAging.train).parameters
    assert flags.loss_weights == parameters["loss_weights"].default
    assert flags.learning_rate == parameters["learning_rate"].default


def test_docs_flags_is_the_help(tmp_path):
    page = (MAIN.parent / "docs/flags.md").read_text(encoding="utf-8")
    assert f"```text\n{call('--help', cwd=tmp_path, COLUMNS='110').stdout}```\n" in page
