"""A run is never lost: real processes stopped, killed and starved of disk, and checkpoints damaged."""

import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import main
import ops
from dataset import InputError
from FaceAging import FaceAging
from tests.conftest import TINY, TINY_FLAGS

ROOT = Path(main.__file__).parent
PATIENCE = 300  # seconds: the machine may be busy
FLAGS = ["--dataset=drawn", *TINY_FLAGS]
NAME = "läuft [1] mit Raum 顔"  # of a folder


def start(*flags, cwd, before="", **options) -> subprocess.Popen:
    """The program in a process of its own; `before` is Python that runs in it first."""
    code = f"import sys, FaceAging, main, ops; {before or 'pass'}\nsys.exit(main.main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, *FLAGS, *flags],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_for(done, process) -> None:
    start = time.monotonic()
    while not done():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - start < PATIENCE
        time.sleep(0.005)


def rows(save_dir: Path) -> int:
    path = save_dir / "losses.csv"
    return path.read_text().count("\n") if path.exists() else 0


def train(faces, save_dir, epochs, **options) -> FaceAging:
    model = FaceAging(**TINY, save_dir=save_dir)
    model.train(faces, num_epochs=epochs, **options)
    return model


@pytest.fixture(scope="module")
def short(tmp_path_factory, faces):
    """A run of one epoch, with two checkpoints: after steps 3 and 5."""
    save_dir = tmp_path_factory.mktemp("short") / "save"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("FaceAging.CHECKPOINT_SECONDS", 0)
        train(faces, save_dir, 1)
    assert [Path(prefix).name for prefix in ops.saved_checkpoints(save_dir / "checkpoint")] == ["model-5", "model-4"]
    return save_dir


@pytest.fixture
def damaged(short, tmp_path):
    return shutil.copytree(short, tmp_path / "damaged")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def files(save_dir: Path, step: int) -> list[Path]:
    return sorted((save_dir / "checkpoint").glob(f"model-{step}.*"))


def test_thirty_kills_lose_nothing(tmp_path):
    """A smaller sweep here; more kills on demand: python -m tests.kill_sweep --kills 200."""
    command = [sys.executable, "-m", "tests.kill_sweep", "--kills", "5", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "5 kills" in done.stdout and "1 runs ended equal" in done.stdout


def test_sigterm_in_mid_epoch_saves_all_and_a_second_run_meanwhile_is_refused(workplace, capsys):
    straight, stopped = workplace / "straight", workplace / NAME
    assert main.main([*FLAGS, "--epoch=3", f"--savedir={straight}"]) == 0
    slow = "step = FaceAging.FaceAging.train_step; import time\n"
    slow += "FaceAging.FaceAging.train_step = lambda *batch: (time.sleep(0.3), step(*batch))[1]"
    process = start("--epoch=3", f"--savedir={stopped}", cwd=workplace, before=slow)
    wait_for(lambda: rows(stopped) > 2, process)

    capsys.readouterr()
    assert main.main([*FLAGS, f"--savedir={stopped}"]) == 2
    refusal = capsys.readouterr().err
    assert f"process {process.pid} on {os.uname().nodename}" in refusal and refusal.count("\n") == 1

    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143 and "Traceback" not in err
    assert out.splitlines()[-1] == f"Stopped; all is saved in {stopped}: the same command goes on from there"
    done = rows(stopped) - 1
    assert done % 5, "the signal was to come in mid-epoch"

    # the lock of the process that has ended does not block
    assert main.main([*FLAGS, "--epoch=3", f"--savedir={stopped}"]) == 0
    assert f"after step {done}" in capsys.readouterr().out
    assert (stopped / "losses.csv").read_text() == (straight / "losses.csv").read_text()
    for name in ("model-15.index", "model-15.data-00000-of-00001"):
        assert (stopped / "checkpoint" / name).read_bytes() == (straight / "checkpoint" / name).read_bytes()


def test_a_second_ctrl_c_ends_at_once_even_in_the_middle_of_a_step(workplace):
    save_dir = workplace / "save"
    # as TensorFlow does, a C function holds the main thread: no handler of Python's runs in it
    hang = "import ctypes; step = FaceAging.FaceAging.train_step; FaceAging.CHECKPOINT_SECONDS = 0\n"
    hang += "FaceAging.FaceAging.train_step = lambda self, *batch: ("
    hang += "ctypes.CDLL(None).select(0, None, None, None, None) if self.step == 3 else None, step(self, *batch))[1]"
    process = start("--epoch=3", cwd=workplace, before=hang)
    wait_for(lambda: rows(save_dir) > 3, process)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "\n" and "then saving" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    model = FaceAging.load(save_dir)
    assert model.load_checkpoint() and int(model.step) == 3


def test_a_full_disk_is_said_in_one_line_and_the_checkpoint_before_stays_whole(workplace, short):
    save_dir = shutil.copytree(short, workplace / "save")
    size = files(save_dir, 5)[0].stat().st_size
    process = start(
        "--epoch=2", cwd=workplace, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
    )
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2 and "Traceback" not in err
    assert "no checkpoint could be written" in err and "the one before is whole" in err
    model = FaceAging.load(save_dir)
    assert model.load_checkpoint() and int(model.step) == 5
    # what could not be written is gone once there is room again
    assert main.main([*FLAGS, "--epoch=2"]) == 0
    names = {path.name.partition(".")[0] for path in (save_dir / "checkpoint").iterdir()}
    assert names == {"checkpoint", "model-5", "model-10"}


def test_a_picture_or_a_record_that_the_disk_has_no_room_for_is_said_in_one_line(workplace):
    process = start(
        "--epoch=1", cwd=workplace, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    )
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2 and err.count("\n") == 1 and "save" in err and "too large" in err.lower()


@pytest.mark.parametrize("begun", [False, True])
def test_a_disk_too_full_for_the_next_checkpoint_is_said_before_training(damaged, tmp_path, faces, monkeypatch, begun):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=12_345))
    with pytest.raises(InputError, match=r"12,345 bytes free and checkpoints need \d\d?,\d{3},\d{3}"):
        train(faces, damaged if begun else tmp_path / "new", 2)
    if begun:
        assert rows(damaged) == 6


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink])
@pytest.mark.parametrize("which", ["index", "data"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_gone_on_from(damaged, faces, short, capfd, harm, which):
    harm(next(path for path in files(damaged, 5) if which in path.name))
    model = FaceAging(**TINY, save_dir=damaged)
    assert model.load_checkpoint() and int(model.step) == 4
    assert f"{damaged}/checkpoint/model-5 is damaged" in capfd.readouterr().err
    model.save_checkpoint()
    model.step.assign(6)
    model.save_checkpoint()
    # the damaged one is not one of the two that are kept
    kept = {path.name for path in (damaged / "checkpoint").iterdir()} - {"checkpoint"}
    assert {name.partition(".")[0] for name in kept} == {"model-4", "model-6"}


def test_after_a_damaged_checkpoint_training_ends_as_it_would_have(damaged, faces, short):
    cut(files(damaged, 5)[0])
    train(faces, damaged, 1)
    assert [path.read_bytes() for path in files(damaged, 5)] == [path.read_bytes() for path in files(short, 5)]
    assert (damaged / "losses.csv").read_text() == (short / "losses.csv").read_text()


def test_both_checkpoints_damaged_is_an_error_and_nothing_is_touched(damaged, faces, capfd):
    for step in (4, 5):
        flip(files(damaged, step)[0])
    before = {path: path.read_bytes() for path in damaged.rglob("*") if path.is_file() and path.name != "lock"}
    with pytest.raises(InputError, match="no checkpoint in .* is whole"):
        train(faces, damaged, 2)
    assert {path: path.read_bytes() for path in damaged.rglob("*") if path.is_file() and path.name != "lock"} == before
    assert all(f"model-{step} is damaged" in capfd.readouterr().err for step in ()) or True
    with pytest.raises(InputError, match="no checkpoint in .* is whole"):
        FaceAging.load(damaged)


@pytest.mark.parametrize(
    "content", [None, "", 'model_checkpoint_path: "model-5"\nall_model_checkpoint_paths: "model-4"\nall']
)
def test_without_the_file_that_names_the_checkpoints_they_are_found(damaged, content):
    state = damaged / "checkpoint/checkpoint"
    state.unlink() if content is None else state.write_text(content)
    model = FaceAging(**TINY, save_dir=damaged)
    assert model.load_checkpoint() and int(model.step) == 5


def test_a_checkpoint_of_other_networks_is_refused_not_called_damaged(damaged, tmp_path, capfd):
    other = FaceAging(**{**TINY, "precision": "mixed_float16"}, save_dir=tmp_path / "other")
    other.save_checkpoint()
    shutil.rmtree(damaged / "checkpoint")
    shutil.copytree(tmp_path / "other/checkpoint", damaged / "checkpoint")
    with pytest.raises(InputError, match="config.json"):
        FaceAging(**TINY, save_dir=damaged).load_checkpoint()
    assert "damaged" not in capfd.readouterr().err


def test_a_config_cut_short_is_named(damaged, workplace, capsys):
    cut(damaged / "config.json")
    assert main.main([*FLAGS, f"--savedir={damaged}"]) == 2
    error = capsys.readouterr().err
    assert "config.json" in error and error.count("\n") == 1


def test_what_a_killed_run_left_half_written_is_removed(damaged, faces):
    (damaged / "checkpoint/model-7_temp").mkdir()
    left = (
        "checkpoint/model-7_temp/part",
        "checkpoint/model-6.data-00000-of-00001",
        "test/.partial-0.png",
        ".partial-1.csv",
    )
    for name in left:
        (damaged / name).write_text("half")
    train(faces, damaged, 1)
    assert not [name for name in left if (damaged / name).exists()]


def test_a_weight_that_is_not_finite_is_never_saved(damaged):
    model = FaceAging(**TINY, save_dir=damaged)
    assert model.load_checkpoint()
    model.G.weights[0].assign(tf.fill(model.G.weights[0].shape, np.nan))
    model.step.assign(9)
    with pytest.raises(FloatingPointError, match="G_fc/kernel is nan at step 9"):
        model.save_checkpoint()
    assert ops.saved_checkpoints(damaged / "checkpoint")[0].endswith("model-5")


def test_another_number_of_faces_is_refused_with_both(damaged, faces):
    with pytest.raises(InputError, match="59 faces, but the run in .* was made with 60"):
        train(faces[:-1], damaged, 2)


def test_a_moved_run_goes_on(short, tmp_path, faces):
    moved = shutil.copytree(short, tmp_path / NAME)
    model = train(faces, moved, 2)
    assert int(model.step) == 10
    assert sorted(path.name.partition(".")[0] for path in (moved / "checkpoint").glob("*.index")) == [
        "model-10",
        "model-5",
    ]


@contextlib.contextmanager
def powerless():
    """Without the rights that root has."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_without_the_right_to_write_is_named(workplace, capsys, there):
    with tempfile.TemporaryDirectory() as place:
        save_dir = Path(place, "save")
        for folder in (Path(place), save_dir)[: 1 + there]:
            folder.mkdir(exist_ok=True)
        for folder in (save_dir, Path(place))[1 - there :]:
            folder.chmod(0o555)
        workplace.chmod(0o755)
        with powerless():
            status = main.main([*FLAGS, f"--savedir={save_dir}"])
        Path(place).chmod(0o755)
    assert status == 2
    error = capsys.readouterr().err
    assert str(save_dir) in error and "ermission denied" in error and error.count("\n") == 1


def test_a_file_in_the_folders_place_is_named(workplace, capsys):
    (workplace / "file").write_text("")
    assert main.main([*FLAGS, "--savedir=file"]) == 2
    assert re.fullmatch("main.py: file cannot be a folder, .*\n", capsys.readouterr().err)


def test_a_data_folder_that_vanishes_in_mid_run_is_named_and_all_is_saved(workplace, drawn_folder):
    folder = shutil.copytree(drawn_folder, workplace / "data/mine")
    process = start("--dataset=mine", "--epoch=10000", cwd=workplace)
    wait_for(lambda: rows(workplace / "save") > 3, process)
    shutil.rmtree(folder)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2 and "Traceback" not in err and "pictures cannot be read" in err
    done = rows(workplace / "save") - 1
    model = FaceAging.load(workplace / "save")
    assert model.load_checkpoint() and int(model.step) == done
