"""The command line: flags and folders, checked without TensorFlow; streams, signals, threads; real processes."""

import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from FaceAging import FaceAging
from support import InputError, terminal
from support.config import MODEL_FLAGS
from support.dataset import find_images
from support.flags import DEMO_FACES, make_parser, parse_flags
from support.pretrained import DEFAULT_MODEL, INCLUDED_MODELS
from tests.conftest import ROOT, TINY_FLAGS, refuse_to_list

PATIENCE = 570  # seconds; CI machines are loaded
NAME = "20_0_2_20170116174525125 人.jpg"  # fits UTKFace's names
WITHOUT_TENSORFLOW = "import sys; sys.modules |= dict.fromkeys(['tensorflow', 'keras', 'imageio_ffmpeg'])\n"
MAIN = "import sys, main\nmain.make_streams_safe()\nsys.exit(main.main())"


def execute(code: str, *flags, cwd, shell="", **environment):
    """Run Python code in a process of its own; `shell` follows the command in a shell."""
    words = [sys.executable, "-c", code, *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    command = f"{terminal.quoted(*words)} {shell}" if shell else words
    options = {"cwd": cwd, "env": environment, "shell": bool(shell), "timeout": PATIENCE, "capture_output": True}
    return subprocess.run(command, **options, encoding=encoding, errors="replace")


def call(*flags, cwd, before="", **environment):
    """Run main.py in a process in which neither TensorFlow nor ffmpeg can be imported."""
    return execute(WITHOUT_TENSORFLOW + before + MAIN, *flags, cwd=cwd, **environment)


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
def test_invalid_flag_is_named_with_status_2(tmp_path, flags, named):
    done = call(*flags.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert named in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_tilde_is_expanded_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    given = ["--savedir=~/x", "--testdir=~/*.jpg", "--evaluate=~", "--dataset=~/faces", "--blend", "~/a", "~unknown$/b"]
    flags, _ = parse_flags(given)
    assert flags.savedir == tmp_path / "x" and flags.evaluate == str(tmp_path)
    assert flags.testdir == [str(tmp_path / "*.jpg")] and flags.dataset == str(tmp_path / "faces")
    assert flags.blend == [tmp_path / "a", Path("~unknown$/b")]
    assert parse_flags(["--evaluate"])[0].evaluate is False and "evaluate" in parse_flags(["--evaluate"])[1]


def test_demo_faces_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(find_images([str(DEMO_FACES)])) == 20


@pytest.mark.parametrize("made", [False, True])
def test_missing_data_set_is_reported_with_its_source(tmp_path, made):
    if made:
        (tmp_path / "data" / "UTKFace").mkdir(parents=True)
    done = call(cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    for part in (str(Path("data/UTKFace")), "https://susanqq.github.io/UTKFace/", "--dataset demo"):
        assert part in line
    assert not (tmp_path / "save").exists()


def test_folder_without_labelled_faces_is_rejected(tmp_path):
    folder = tmp_path / "data" / "mine"
    folder.mkdir(parents=True)
    (folder / "holiday.jpg").write_bytes(b"")
    done = call("--dataset", "mine", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "holiday.jpg" in done.stderr


def test_aging_without_images_is_rejected(tmp_path):
    done = call("--is_train", "False", "--testdir", "nowhere", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "nowhere" in done.stderr


def test_testdir_is_a_folder_an_image_or_a_pattern(tmp_path):
    names = ["a.jpg", "b.png", "c[1].jpg", "deeper/d.jpg", "notes.txt"]
    (tmp_path / "deeper").mkdir()
    for name in names:
        (tmp_path / name).touch()

    def found(*testdir):
        images = find_images([str(tmp_path / name) for name in testdir])
        return [path.relative_to(tmp_path).as_posix() for path in images]

    assert found("") == names[:4]
    assert found("b.png") == ["b.png"]
    assert found("c[1].jpg") == ["c[1].jpg"]
    assert found("?.*") == ["a.jpg", "b.png"]
    assert found("**/*.jpg") == ["a.jpg", "c[1].jpg", "deeper/d.jpg"]
    assert found("a.jpg", "b.png") == ["a.jpg", "b.png"]
    with pytest.raises(InputError, match="no images in .*gif"):
        found("*.gif")


def test_testdir_without_images_is_reported_and_the_others_are_used(tmp_path, capsys, monkeypatch):
    (tmp_path / "a.jpg").touch()
    for name in ("empty", "lost+found", "b/closed"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "b/c.jpg").touch()
    refuse_to_list(monkeypatch, "lost+found", "closed")
    names = ["a.jpg", "empty", "lost+found", "gone.jpg", "b", "x" * 300]
    paths = find_images([str(tmp_path / name) for name in names])
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == ["a.jpg", "b/c.jpg"]
    printed = capsys.readouterr().out
    for part in (
        "no images in .*empty",
        "lost.found: Permission denied",
        "no images in .*gone.jpg",
        "closed: a folder: Permission denied",
        "xxx",
    ):
        assert re.search(f"^Left out: .*{part}", printed, re.MULTILINE)


def test_flag_defaults_equal_those_of_the_class():
    flags, _ = parse_flags([])
    parameters = inspect.signature(FaceAging).parameters
    for flag, parameter in MODEL_FLAGS.items():
        if flag != "precision":  # auto, on the command line
            assert getattr(flags, flag) == parameters[parameter].default, flag
    parameters = inspect.signature(FaceAging.train).parameters
    assert flags.loss_weights == parameters["loss_weights"].default
    assert flags.learning_rate == parameters["learning_rate"].default


def test_docs_flags_equals_the_help(tmp_path):
    page = (ROOT / "docs/flags.md").read_text(encoding="utf-8")
    assert f"```text\n{call('--help', cwd=tmp_path, COLUMNS='110').stdout}```\n" in page


# Streams, signals and threads, in processes without TensorFlow.


@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell's redirections")
@pytest.mark.parametrize(
    ("shell", "reported"),
    [("| head -1", "Broken pipe"), (">/dev/full", "No space left"), (">&-", ""), ("2>&1 | head -1", ""), ("2>&-", "")],
)
def test_program_continues_when_its_output_cannot_be_written(tmp_path, shell, reported):
    code = """
import sys
from pathlib import Path
from support.terminal import make_streams_safe
make_streams_safe()
for line in range(20_000):
    print(line)
    print(line, file=sys.stderr if "both" in sys.argv else sys.stdout, flush=True)
Path("done").touch()
"""
    done = execute(code, *(["both"] if "2>" in shell else []), cwd=tmp_path, shell=shell)
    assert (tmp_path / "done").exists()
    lines = done.stderr.splitlines()
    assert len(lines) == bool(reported)
    assert all(line.startswith(f"stdout cannot be written any more ({reported}") for line in lines)


@pytest.mark.skipif(os.name != "posix", reason="signals that Windows lacks")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU"])
def test_stop_signals_are_recorded_and_a_second_ctrl_c_or_sigterm_exits(tmp_path, name):
    code = f"""
import os, signal, time
from support.terminal import StopSignal
with StopSignal() as stop:
    for times in range(2):
        os.kill(os.getpid(), signal.{name})
        while not stop.number:
            time.sleep(0.01)
    time.sleep(0.5)
print("saved", stop.number)
"""
    done = execute(code, cwd=tmp_path)
    number = getattr(signal, name)
    assert done.stderr == "\nFinishing this batch, then saving ...\n"
    forced = name in ("SIGINT", "SIGTERM")
    assert (done.returncode, done.stdout) == ((128 + number, "") if forced else (0, f"saved {number:d}\n"))


@pytest.mark.skipif(os.name != "posix", reason="a POSIX terminal")
@pytest.mark.parametrize("nohup", [False, True])
def test_sighup_is_a_stop_signal_except_under_nohup(tmp_path, nohup):
    program = f"""
import signal, time
from pathlib import Path
from support.terminal import StopSignal, make_streams_safe
make_streams_safe()
if {nohup}:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
with StopSignal() as stop:
    Path("ready").touch()
    for _ in range(100):
        time.sleep(0.02)
print("after the terminal")
Path("result").write_text(str(stop.number))
"""
    code = f"""
import os, pty, sys, time
process, terminal = pty.fork()
if not process:
    os.execv(sys.executable, [sys.executable, "-c", {program!r}])
while not os.path.exists("ready"):
    time.sleep(0.01)
os.close(terminal)
os.waitpid(process, 0)
"""
    execute(code, cwd=tmp_path)
    assert (tmp_path / "result").read_text() == str(None if nohup else signal.SIGHUP.value)


@pytest.mark.parametrize(
    ("flags", "error", "reported"),
    [
        ("--is_train=True", RuntimeError("can't start new thread"), "allows no more threads, or memory"),
        ("--is_train=False", RuntimeError("can't start new thread"), "allows no more threads, or memory"),
        ("--is_train=True", MemoryError(), "not enough memory: use a smaller --batch_size"),
        ("--is_train=True", RuntimeError("std::bad_alloc"), "not enough memory: use a smaller --batch_size"),
        ("--is_train=True", ImportError("x.so: failed to map segment"), "not enough memory to load TensorFlow: x.so"),
    ],
)
def test_exhausted_threads_or_memory_are_reported_in_one_line(place, flags, error, reported):
    before = f"import threading\ndef start(*_):\n    raise {error!r}\nthreading._start_new_thread = start\n"
    done = call("--dataset=drawn", flags, cwd=place, before=before)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and reported in done.stderr


def test_progress_is_printed_as_lines_without_a_terminal(monkeypatch):
    clock = iter(range(0, 100_000, 20))  # a step takes 20 s
    monkeypatch.setattr("support.terminal.time.monotonic", lambda: next(clock))
    logged = []
    lines = terminal.progress(iter(range(10)), "Epoch 01/50", 12, logged.append, unit="batch", initial=2)
    for number in lines:
        lines.set_postfix_str(f"EG 0.{number}")
    assert logged[0] == "Epoch 01/50: batch 4 of 12, EG 0.1, 0:02:40 left"
    assert len(logged) == 4


def test_python_command_is_that_of_the_running_interpreter(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert terminal.python_command("-m", "pip", "install", "a<5") == "python -m pip install 'a<5'"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert terminal.python_command("main.py") == terminal.quoted(sys.executable, "main.py")


# Processes with TensorFlow.


@pytest.fixture
def place(tmp_path, drawn_folder):
    """A folder to work in, with a copy of the synthetic faces as data/drawn."""
    shutil.copytree(drawn_folder, tmp_path / "data/drawn")
    return tmp_path


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoint").glob("*.index"))


def test_training_prints_losses_unreadable_faces_and_a_working_command(place):
    face = next((place / "data/drawn").glob("*.jpg"))
    (place / "data/drawn" / NAME).write_bytes(face.read_bytes()[:-500])  # a valid header, truncated pixels
    code = f"from support import terminal\nterminal.LINE_SECONDS = 0\n{MAIN}"
    flags = ["--dataset=drawn", "--epoch=1", "--savedir=save/of mine", *TINY_FLAGS]
    done = execute(code, *flags, cwd=place, PYTHONIOENCODING="cp1252")  # which cannot encode NAME
    assert done.returncode == 0 and checkpoints(place / "save/of mine") == ["model-5.index"]
    assert not [line for line in done.stderr.splitlines() if "do not look like aligned faces" not in line]
    *lines, command = done.stdout.splitlines()
    assert f"Replaced by another face: data{os.sep}drawn{os.sep}{NAME.replace('人', chr(92) + 'u4eba')}" in done.stdout
    progress = [line for line in lines if line.startswith("Epoch 01/01: batch")]
    assert [line.split(",")[0] for line in progress] == [f"Epoch 01/01: batch {batch} of 5" for batch in range(1, 5)]
    assert all(" L1 0." in line for line in progress) and all(line.endswith(" left") for line in progress[1:])

    if os.name == "posix":  # cmd.exe is not the shell that the command is quoted for
        aged = subprocess.run(command, shell=True, cwd=place, capture_output=True, text=True, timeout=PATIENCE)
        assert aged.returncode == 0, aged.stderr
        assert "included" not in aged.stdout
        assert (place / "save/of mine/test/test_as_male.png").exists() and not (place / "save/test").exists()


@pytest.mark.skipif(os.name != "posix", reason="file names of bytes")
def test_undecodable_file_name_is_printed(place):
    path = os.fsencode(place) + b"/data/drawn/20_0_2_20170116174525125\xff.jpg"
    Path(os.fsdecode(path)).write_bytes(b"")
    (place / "data/drawn/20_0_2_20170116174525126\n.jpg").write_bytes(b"")
    done = execute(MAIN, "--is_train=False", "--testdir=data/drawn", "--age=30", "--gender=male", cwd=place)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert "5125\\udcff.jpg'" in done.stderr + done.stdout


def test_contradicting_flag_is_rejected_with_the_folder_of_the_run(tmp_path):
    done = execute(MAIN, "--is_train=False", "--image_size=64", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"the run in {INCLUDED_MODELS[DEFAULT_MODEL]} was made with 128" in line


@pytest.mark.parametrize(
    "settings",
    [
        {"floatx": "float64", "epsilon": 0.5, "backend": "jax", "image_data_format": "channels_first"},
        {"floatx": "int8"},
        [],
    ],
)
def test_keras_settings_of_the_user_are_ignored(tmp_path, settings):
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras/keras.json").write_text(json.dumps(settings))
    code = "import support, keras\nfrom keras.config import *\n"
    code += "print(backend(), floatx(), epsilon(), image_data_format())"
    done = execute(code, cwd=tmp_path, KERAS_BACKEND="jax", HOME=str(tmp_path), KERAS_HOME=str(tmp_path / ".keras"))
    assert done.stdout == "tensorflow float32 1e-07 channels_last\n", done.stderr
