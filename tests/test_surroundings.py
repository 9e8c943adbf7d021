"""What surrounds the program: streams, terminals, the user's own settings. Real processes, as a user starts them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import main
from support import terminal
from support.pretrained import DEFAULT_MODEL, INCLUDED_MODELS
from tests.conftest import TINY_FLAGS

MAIN = Path(main.__file__)
PATIENCE = 570  # seconds: CI machines are loaded
NAME = "20_0_2_20170116174525125 人.jpg"  # fits UTKFace's names


def call(*flags, cwd, shell="", program=MAIN, **environment):
    """Run main.py in a process of its own; `shell` is what a shell is told behind the command."""
    words = [sys.executable, program, *flags]
    return subprocess.run(
        f"{terminal.quoted(*words)} {shell}" if shell else words,
        shell=bool(shell),
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        timeout=PATIENCE,
    )


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "save/checkpoint").glob("*.index"))


@pytest.fixture
def place(tmp_path, drawn_folder):
    """A folder to work in, with a data set of its own of drawn faces."""
    shutil.copytree(drawn_folder, tmp_path / "data/drawn")
    return tmp_path


def test_a_name_that_stdout_cannot_encode_ends_no_training(place):
    face = next((place / "data/drawn").glob("*.jpg"))
    (place / "data/drawn" / NAME).write_bytes(face.read_bytes()[:-500])  # its header can be read, its pixels cannot
    done = call("--dataset=drawn", "--epoch=1", *TINY_FLAGS, cwd=place, PYTHONIOENCODING="cp1252")
    assert (done.returncode, done.stderr) == (0, b"")
    said = done.stdout.decode("cp1252")
    assert f"Replaced by another face: data{os.sep}drawn{os.sep}{NAME.replace('人', chr(92) + 'u4eba')}" in said
    assert kept(place) == ["model-5.index"]


@pytest.mark.skipif(os.name != "posix", reason="file names of bytes")
def test_a_name_that_is_no_text_is_printed_too(place):
    path = os.fsencode(place) + b"/data/drawn/20_0_2_20170116174525125\xff.jpg"
    Path(os.fsdecode(path)).write_bytes(b"")
    (place / "data/drawn/20_0_2_20170116174525126\n.jpg").write_bytes(b"")
    done = call("--is_train=False", "--testdir=data/drawn", "--age=30", cwd=place)
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert b"5125\\udcff.jpg'" in done.stderr + done.stdout


@pytest.mark.skipif(os.name != "posix", reason="a shell's pipes")
@pytest.mark.parametrize(
    ("shell", "said"),
    [("| head -1", "Broken pipe"), (">/dev/full", "No space left"), (">&-", ""), ("2>&1 | head -1", ""), ("2>&-", "")],
)
def test_a_training_goes_on_when_nobody_listens(place, shell, said):
    done = call("--dataset=drawn", "--epoch=1", *TINY_FLAGS, cwd=place, shell=shell)
    assert kept(place) == ["model-5.index"]
    lines = done.stderr.decode().splitlines()
    expected = f"stdout cannot be written any more ({said}"
    assert len(lines) == bool(said) and all(line.startswith(expected) for line in lines)


def test_without_a_terminal_lines_tell_how_far_it_is(monkeypatch):
    clock = iter(range(0, 100_000, 20))  # a step takes 20 s
    monkeypatch.setattr("support.terminal.time.monotonic", lambda: next(clock))
    said = []
    lines = terminal.progress(iter(range(10)), "Epoch 01/50", 12, said.append, unit="batch", initial=2)
    for number in lines:
        lines.set_postfix_str(f"EG 0.{number}")
    assert said[0] == "Epoch 01/50: batch 4 of 12, EG 0.1, 0:02:40 left"
    assert len(said) == 4


def test_a_long_training_says_losses_and_time_left(place):
    code = f"import sys; sys.path.insert(0, {str(MAIN.parent)!r}); import main; from support import terminal\n"
    code += "terminal.LINE_SECONDS = 0\nsys.exit(main.main())"
    words = [sys.executable, "-c", code, "--dataset=drawn", "--epoch=1", *TINY_FLAGS]
    done = subprocess.run(words, cwd=place, capture_output=True, text=True, timeout=PATIENCE)
    lines = [line for line in done.stdout.splitlines() if line.startswith("Epoch 01/01: batch")]
    assert [line.split(",")[0] for line in lines] == [f"Epoch 01/01: batch {batch} of 5" for batch in range(1, 5)]
    assert all(" EG 0." in line for line in lines) and all(line.endswith(" left") for line in lines[1:])


@pytest.mark.skipif(os.name != "posix", reason="a shell of POSIX")
def test_the_command_printed_at_the_end_works_where_it_is_printed(place):
    done = call("--dataset=drawn", "--epoch=1", "--savedir", "save/of mine", *TINY_FLAGS, cwd=place)
    command = done.stdout.decode().splitlines()[-1]
    aged = subprocess.run(command, shell=True, cwd=place, capture_output=True, text=True, timeout=PATIENCE)
    assert aged.returncode == 0, aged.stderr
    assert "that ships" not in aged.stdout
    assert (place / "save/of mine/test/test_as_male.png").exists() and not (place / "save/test").exists()


def test_a_command_names_the_python_that_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert terminal.python("-m", "pip", "install", "a<5") == "python -m pip install 'a<5'"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert terminal.python("main.py") == terminal.quoted(sys.executable, "main.py")


def test_a_refused_flag_names_the_model_that_was_made_otherwise(place):
    done = call("--is_train=False", "--image_size=64", cwd=place)
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert f"the run in {INCLUDED_MODELS[DEFAULT_MODEL]} was made with 128" in line


SETTINGS = [
    {"floatx": "float64", "epsilon": 0.5, "backend": "jax", "image_data_format": "channels_first"},
    {"floatx": "int8"},
    [],
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_users_keras_settings_do_not_reach_us(place, settings):
    home = place / "home"
    (home / ".keras").mkdir(parents=True)
    (home / ".keras/keras.json").write_text(json.dumps(settings))
    flags = ["--dataset=drawn", "--epoch=1", "--precision=float32", *TINY_FLAGS]
    for save_dir, backend in (("plain", "tensorflow"), ("other", "jax")):
        user = {"HOME": str(home), "KERAS_HOME": str(home / ".keras")} if save_dir == "other" else {}
        done = call(*flags, f"--savedir={save_dir}", cwd=place, KERAS_BACKEND=backend, **user)
        assert (done.returncode, done.stderr) == (0, b"")
    assert (place / "plain/losses.csv").read_bytes() == (place / "other/losses.csv").read_bytes()
