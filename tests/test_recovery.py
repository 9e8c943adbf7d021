"""Recovery: stopped and killed processes, full and read-only disks, damaged checkpoints and logs."""

import contextlib
import errno
import functools
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import main
from FaceAging import FaceAging
from support import InputError
from support.checkpoints import OBJECT_GRAPH, saved_checkpoints
from support.files import NO_FOLDER_SYNC, remove_temporaries, write_json
from support.run import TrainingLog
from tests.conftest import TINY, TINY_FLAGS

ROOT = Path(main.__file__).parent
PATIENCE = 600  # seconds; the machine may be busy
SMALL = {**TINY, "size_image": 16}
FLAGS = ["--dataset=drawn", *TINY_FLAGS, "--image_size=16"]
NAME = "läuft mit Raum 顔"  # of a folder
HELD_STEP = 7  # of three epochs of five steps: within an epoch
# Python code that the process runs first: that step creates a file and waits for another file, or within TensorFlow
HOLD = f"""
import time, tensorflow as tf
from pathlib import Path
step = FaceAging.FaceAging.train_step
def held(model, *batch):
    if model.step == {HELD_STEP}:
        Path("held").touch()
        wait()
    return step(model, *batch)
def wait():
    while not Path("go").exists():
        time.sleep(0.01)
FaceAging.FaceAging.train_step = held
"""
HANG = HOLD + "wait = tf.queue.FIFOQueue(1, tf.int32).dequeue\n"


def start(*flags, cwd, before="", file_size=None) -> subprocess.Popen:
    """Start main.py in a process in which no file can become larger than `file_size` bytes."""
    limit = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({file_size}, {file_size}))" if file_size else ""
    code = (
        f"import sys, resource, main\nwith main.silence(): import FaceAging\n{before}\n{limit}\nsys.exit(main.main())"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *FLAGS, *flags],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
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


def train(faces, save_dir, epochs) -> FaceAging:
    model = FaceAging(**SMALL, save_dir=save_dir)
    model.train(faces, num_epochs=epochs)
    return model


def step_in(save_dir: Path) -> int:
    """Return the step of the checkpoint that training would resume from, after reading all of it."""
    model = FaceAging.load(save_dir)
    assert model.load_checkpoint()
    return int(model.step)


@pytest.fixture(scope="module")
def short(tmp_path_factory, faces):
    """A run of one epoch, with two checkpoints: after steps 4 and 5."""
    save_dir = tmp_path_factory.mktemp("short") / "save"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("support.run.CHECKPOINT_SECONDS", 0)
        train(faces, save_dir, 1)
    assert [Path(prefix).name for prefix in saved_checkpoints(save_dir / "checkpoint")] == ["model-5", "model-4"]
    return save_dir


@pytest.fixture
def copy(short, tmp_path):
    return shutil.copytree(short, tmp_path / "copy")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def tensors(save_dir: Path) -> dict[str, bytes]:
    """Return the tensors of the latest checkpoint, without the object graph, in which Keras numbers names."""
    reader = tf.train.load_checkpoint(saved_checkpoints(save_dir / "checkpoint")[0])
    names = reader.get_variable_to_shape_map().keys() - {OBJECT_GRAPH}
    return {name: reader.get_tensor(name).tobytes() for name in names}


def kept(save_dir: Path) -> set[str]:
    return {path.name.partition(".")[0] for path in (save_dir / "checkpoint").iterdir()} - {"checkpoint"}


@pytest.mark.slow
def test_killed_runs_resume_without_loss(tmp_path):
    """A few kills; for more: python -m tools.kill_sweep --kills 200."""
    command = [sys.executable, "-m", "tools.kill_sweep", "--kills", "5", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("5 kills") and re.search(r"[1-9] runs ended equal", done.stdout)


@pytest.mark.slow
def test_sigterm_within_an_epoch_saves_and_the_run_resumes_exactly(workplace, capsys):
    straight, stopped = workplace / "straight", workplace / NAME
    assert main.main([*FLAGS, "--epoch=3", f"--savedir={straight}"]) == 0
    process = start("--epoch=3", f"--savedir={stopped}", cwd=workplace, before=HOLD)
    wait_for((workplace / "held").exists, process)

    capsys.readouterr()
    assert main.main([*FLAGS, f"--savedir={stopped}"]) == 2
    refusal = capsys.readouterr().err
    assert f"process {process.pid} on {os.uname().nodename}" in refusal and refusal.count("\n") == 1

    process.send_signal(signal.SIGTERM)
    assert [process.stderr.readline() for _ in range(2)] == ["\n", "Finishing this batch, then saving ...\n"]
    (workplace / "go").touch()
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143 and err == ""
    assert out.splitlines()[-1] == f"Stopped and saved in {stopped}: the same command resumes"

    # the lock of a process that has ended does not block
    assert main.main([*FLAGS, "--epoch=3", f"--savedir={stopped}"]) == 0
    assert f"Resuming at epoch 02 after step {HELD_STEP + 1}" in capsys.readouterr().out
    assert (stopped / "losses.csv").read_text() == (straight / "losses.csv").read_text()
    assert tensors(stopped) == tensors(straight)


@pytest.mark.slow
def test_second_ctrl_c_exits_immediately(workplace, short):
    save_dir = shutil.copytree(short, workplace / "save")
    process = start("--epoch=3", cwd=workplace, before=HANG)
    wait_for((workplace / "held").exists, process)
    process.send_signal(signal.SIGINT)
    assert [process.stderr.readline() for _ in range(2)] == ["\n", "Finishing this batch, then saving ...\n"]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert step_in(save_dir) == 5


@pytest.mark.slow
def test_full_disk_keeps_the_previous_checkpoint(workplace, short):
    save_dir = shutil.copytree(short, workplace / "save")
    size = (save_dir / "checkpoint/model-5.data-00000-of-00001").stat().st_size
    _, err = start("--epoch=2", cwd=workplace, file_size=size // 2).communicate(timeout=PATIENCE)
    assert err.count("\n") == 1 and "could not be written" in err and "the previous one is complete" in err
    assert step_in(save_dir) == 5
    # incomplete files are removed once there is space again
    assert main.main([*FLAGS, "--epoch=2"]) == 0
    assert kept(save_dir) == {"model-5", "model-10"}


@pytest.mark.slow
@pytest.mark.parametrize("file_size", [1_000, 30_000])  # too small for an image, for tensorboard's record
def test_full_disk_ends_training_with_one_line(workplace, file_size):
    process = start("--epoch=1", cwd=workplace, file_size=file_size)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    *images, line = err.splitlines()
    assert line.startswith("main.py: ") and "save" in line and "too large" in line.lower()
    assert all("training continues without it" in image for image in images)


@pytest.mark.parametrize("begun", [False, True])
def test_too_little_disk_space_is_reported_before_training(copy, tmp_path, faces, monkeypatch, begun):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=12_345))
    with pytest.raises(InputError, match=r"12,345 bytes free and checkpoints need \d{1,2},\d{3},\d{3}"):
        train(faces, copy if begun else tmp_path / "new", 2)
    assert rows(copy) == 6


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001"])
def test_damaged_checkpoint_is_reported_and_the_previous_one_loaded(copy, capsys, damage, suffix):
    damage(copy / f"checkpoint/model-5{suffix}")
    model = FaceAging(**SMALL, save_dir=copy)
    assert model.load_checkpoint() and int(model.step) == 4
    assert f"{copy}/checkpoint/model-5 is damaged" in capsys.readouterr().err
    model.step.assign(6)
    model.save_checkpoint()
    assert kept(copy) == {"model-4", "model-6"}


def test_training_from_the_previous_checkpoint_gives_the_same_result(copy, faces, short):
    cut(copy / "checkpoint/model-5.data-00000-of-00001")
    train(faces, copy, 1)
    assert tensors(copy) == tensors(short)
    assert (copy / "losses.csv").read_text() == (short / "losses.csv").read_text()


def test_only_damaged_checkpoints_are_an_error(copy, faces, capsys):
    for step in (4, 5):
        flip(copy / f"checkpoint/model-{step}.index")

    def content():
        return {path: path.read_bytes() for path in copy.rglob("*") if path.is_file() and path.name != "lock"}

    before = content()
    with pytest.raises(InputError, match="all checkpoints in .* are damaged"):
        train(faces, copy, 2)
    reported = capsys.readouterr().err
    assert "model-4 is damaged" in reported and "model-5 is damaged" in reported
    with pytest.raises(InputError, match="all checkpoints in .* are damaged"):
        FaceAging.load(copy)
    assert content() == before


@pytest.mark.parametrize(
    "content", [None, "", 'model_checkpoint_path: "model-5"\nall_model_checkpoint_paths: "model-4"\nall_mod']
)
def test_checkpoints_are_found_without_the_state_file(copy, content):
    state = copy / "checkpoint/checkpoint"
    state.unlink() if content is None else state.write_text(content)
    assert step_in(copy) == 5


def test_checkpoint_of_other_networks_is_rejected(copy, tmp_path, capsys):
    FaceAging(**{**SMALL, "precision": "mixed_float16"}, save_dir=tmp_path / "other").save_checkpoint()
    shutil.rmtree(copy / "checkpoint")
    shutil.copytree(tmp_path / "other/checkpoint", copy / "checkpoint")
    with pytest.raises(InputError, match="does not match config.json"):
        FaceAging(**SMALL, save_dir=copy).load_checkpoint()
    assert "damaged" not in capsys.readouterr().err


def test_checkpoint_identifies_layers_by_name(copy):
    names = set(tensors(copy))
    assert any(name.startswith("E/E_conv0/") for name in names)
    assert not any("_operations" in name for name in names)


def test_truncated_config_is_rejected(copy, capsys):
    cut(copy / "config.json")
    assert main.main([*FLAGS, f"--savedir={copy}"]) == 2
    error = capsys.readouterr().err
    assert "config.json" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("model", "size_image", "128"),
        ("model", "num_z_channels", 50.5),
        ("model", "age_bounds", 5),
        ("model", "age_bounds", [20, "50"]),
        ("model", "precision", "float8"),
        ("model", "seed", 2**32),
        ("model", "seed", None),
        ("model", "colour", "red"),
        ("training", "learning_rate", "fast"),
        ("training", "loss_weights", [1, 2, None]),
        ("training", "balance", "yes"),
    ],
)
@pytest.mark.parametrize("doing", ["--is_train=True", "--is_train=False"])
def test_config_with_an_invalid_value_is_rejected_with_its_name(copy, faces, capsys, part, name, value, doing):
    config = json.loads((copy / "config.json").read_text())
    config[part][name] = value
    (copy / "config.json").write_text(json.dumps(config))
    assert main.main(["--dataset=drawn", doing, f"--savedir={copy}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "config.json" in line and name in line and "correct it" in line


def test_config_without_a_required_value_is_rejected(copy, capsys):
    config = json.loads((copy / "config.json").read_text())
    del config["model"]["seed"]
    (copy / "config.json").write_text(json.dumps(config))
    assert main.main(["--dataset=drawn", f"--savedir={copy}"]) == 2
    assert "no seed" in capsys.readouterr().err


def test_incomplete_files_of_a_killed_run_are_removed(copy, faces):
    (copy / "checkpoint/model-7_temp").mkdir()
    left = [
        copy / "checkpoint/model-7_temp/part-00000-of-00001.index",
        copy / "checkpoint/model-6.data-00000-of-00001",
        copy / "test/.partial-0123456789abcdef.png",
        copy / ".partial-0123456789abcdef.csv",
    ]
    for path in left:
        path.write_text("half")
    train(faces, copy, 1)
    assert not [path for path in left if path.exists()]
    assert kept(copy) == {"model-4", "model-5"}


def test_files_of_the_user_beside_the_checkpoints_are_kept(copy, faces):
    kept_by_user = [
        "checkpoint/model-backup/model-5.index",
        "checkpoint/model-4_best.index",
        "checkpoint/model-4_best.data-00000-of-00001",
        "checkpoint/model-1.txt",
        "checkpoint/model-5.notes/read.me",
        "checkpoint/model-3.index.bak",
        "checkpoint/model-2_temporary/mine",
        ".partial-thoughts.txt",
        "test/.partial-0.png",
    ]
    for name in kept_by_user:
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("mine")
    (copy / "checkpoint/model-5.notes/read.me").chmod(0o444)
    train(faces, copy, 2)
    assert [name for name in kept_by_user if not (copy / name).is_file()] == []
    assert {"model-5", "model-10"} <= kept(copy) and not (copy / "checkpoint/model-4.index").exists()


def test_renamed_checkpoint_copy_is_not_resumed_from(copy):
    for suffix in (".index", ".data-00000-of-00001"):
        shutil.copy(copy / f"checkpoint/model-4{suffix}", copy / f"checkpoint/model-4_best{suffix}")
    (copy / "checkpoint/checkpoint").unlink()
    assert step_in(copy) == 5


def test_non_finite_weight_is_not_saved(copy):
    model = FaceAging(**SMALL, save_dir=copy)
    assert model.load_checkpoint()
    weight = model.G.weights[0]
    weight.assign(tf.fill(weight.shape, np.nan))
    model.step.assign(9)
    with pytest.raises(FloatingPointError, match=f"{weight.path} is nan at step 9"):
        model.save_checkpoint()
    assert step_in(copy) == 5


def test_another_number_of_faces_is_rejected_with_both_numbers(copy, faces):
    with pytest.raises(InputError, match="59 faces, but the run in .* was made with 60"):
        train(faces[:-1], copy, 2)


def test_moved_run_resumes(short, tmp_path, faces):
    moved = shutil.copytree(short, tmp_path / NAME)
    train(faces, moved, 2)
    assert kept(moved) == {"model-5", "model-10"} and step_in(moved) == 10


def test_path_with_special_characters_is_written_and_read(tmp_path, faces):
    save_dir = tmp_path / "[AI] proj (1)" / ("run[1]" if os.name == "nt" else "run[1]*?")
    model = train(faces, save_dir, 1)
    assert FaceAging(**SMALL, save_dir=save_dir).train(faces, num_epochs=2) is None
    assert step_in(save_dir) == 10 and rows(save_dir) == 11
    model.load_checkpoint(save_dir, networks_only=True)
    z = model.sample(2)
    np.testing.assert_array_equal(model.generate(z, [30], [0]), FaceAging.load(save_dir).generate(z, [30], [0]))


@pytest.mark.parametrize("number", [*NO_FOLDER_SYNC, errno.ENOSPC])
@pytest.mark.skipif(os.name != "posix", reason="Windows cannot open a folder")
def test_failed_fsync_is_ignored_for_folders_and_reported_for_files(copy, monkeypatch, number):
    sync = os.fsync

    def refuse(descriptor, folder=True):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == folder:
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    model = FaceAging(**SMALL, save_dir=copy)
    model.step.assign(7)
    monkeypatch.setattr(os, "fsync", refuse)
    if number == errno.ENOSPC:
        with pytest.raises(InputError, match="could not be written"):
            model.save_checkpoint()
        return
    model.save_checkpoint()
    assert kept(copy) == {"model-5", "model-7"}
    monkeypatch.setattr(os, "fsync", functools.partial(refuse, folder=False))
    model.step.assign(8)
    with pytest.raises(InputError, match="could not be written"):
        model.save_checkpoint()


def test_save_checkpoint_does_not_replace_those_of_another_model(copy):
    with pytest.raises(InputError, match="model-5 is of a later step than 0"):
        FaceAging.load(copy).save_checkpoint()
    with pytest.raises(InputError, match="has a model with size_image 16, not 32"):
        FaceAging(**TINY, save_dir=copy).save_checkpoint()
    assert kept(copy) == {"model-4", "model-5"}


def insert_nul_bytes(lines):
    lines[3] = lines[3][:9] + b"\0" * 40


def append_a_cell(lines):
    lines[3] += b",0.5"


def write_as_a_spreadsheet(lines):
    lines[:] = [line.replace(b",", b";").replace(b".", b",") for line in lines]


@pytest.mark.parametrize(
    ("damage", "valid"), [(insert_nul_bytes, 4), (append_a_cell, 4), (write_as_a_spreadsheet, 0), (list.pop, 4)]
)
def test_damaged_log_is_copied_and_its_valid_rows_are_continued(copy, capsys, damage, valid):
    path = copy / "losses.csv"
    lines = path.read_bytes().splitlines()
    damage(lines)
    damaged = b"\r\n".join(lines) + b"\r\n"  # line ends as on Windows
    path.write_bytes(damaged)
    names = path.read_text().splitlines()[0].replace(";", ",").split(",")
    losses = dict.fromkeys([name for name in names if "loss" in name], 0.25)
    for number in (6, 7):
        with TrainingLog(copy, number - 1) as log:
            log.write_step(number, 1.2, losses | ({"new_loss": 1.0} if number == 7 else {}), 1e-4, {})
    with TrainingLog(copy, 7) as log:
        assert len(log.columns["EG_loss"]) == valid + 2 and log.columns["EG_loss"][-2:] == [0.25, 0.25]
        assert np.isnan(log.columns["new_loss"]).tolist() == [True] * (valid + 1) + [False]
    reported = capsys.readouterr().err
    assert b"\r" not in path.read_bytes()
    if damage is list.pop:  # a missing row is not damage
        assert reported == "" and not (copy / "losses_damaged1.csv").exists()
    else:
        assert reported.count("\n") == 1 and "losses_damaged1.csv" in reported
        assert (copy / "losses_damaged1.csv").read_bytes() == damaged


def test_file_opened_by_another_program_is_retried(tmp_path, monkeypatch):
    (tmp_path / ".partial-0123456789abcdef.csv").touch()
    replace, refused = Path.replace, []

    def refuse(path, *_, **__):
        raise PermissionError(errno.EACCES, "in use", str(path))

    def refuse_twice(path, target):
        refused.append(path)
        return refuse(path) if len(refused) < 3 else replace(path, target)

    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr(Path, "replace", refuse_twice)
    remove_temporaries(tmp_path)
    write_json(tmp_path / "a.json", {})
    assert (tmp_path / "a.json").exists()


@contextlib.contextmanager
def without_rights():
    """As another user, if root runs the tests: root may write everywhere."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("there", [False, True])
def test_folder_without_write_permission_is_named(faces, there):
    with tempfile.TemporaryDirectory() as place:  # accessible to other users
        save_dir = Path(place, "save")
        if there:
            save_dir.mkdir(mode=0o555)
        Path(place).chmod(0o555)
        with without_rights(), pytest.raises(PermissionError) as caught:
            train(faces, save_dir, 1)
        Path(place).chmod(0o755)
    assert caught.value.filename in (str(save_dir), str(save_dir / "lock"))


def test_results_of_a_read_only_run_are_written_to_another_folder(copy, drawn_folder, monkeypatch, capsys):
    images = sorted(drawn_folder.iterdir())[:2]
    flags = ["--is_train=False", "--testdir", *map(str, images), "--age=30", "--gender=male"]
    with tempfile.TemporaryDirectory() as place:  # accessible to other users
        monkeypatch.chdir(place)
        for folder in (place, "few"):
            Path(folder).mkdir(exist_ok=True)
            Path(folder).chmod(0o777)
        for image in images:
            shutil.copy(image, "few")
        run = shutil.copytree(copy, "run", ignore=shutil.ignore_patterns("test", "lock"))
        before = sorted(Path(run).rglob("*"))
        for command in (flags, ["--evaluate=few"]):
            # as root first: this imports modules that another user may not be allowed to read
            assert main.main([*command, f"--savedir={copy}"]) == 0
        Path(run).chmod(0o555)
        with without_rights():
            monkeypatch.setattr("main.find_images", lambda _: sorted(Path("few").iterdir()))
            assert main.main([*flags, "--savedir=run"]) == 0
            assert main.main(["--evaluate=few", "--savedir=run"]) == 0
            assert Path("save/evaluation.json").exists()
            assert len(list(Path("save/test").glob("*.png"))) == 2
            capsys.readouterr()
            Path("save/evaluation.json").unlink()
            Path("save").chmod(0o555)
            assert main.main(["--evaluate=few", "--savedir=run"]) == 2
        printed = capsys.readouterr()
        assert "L1" in printed.out and printed.err.count("evaluation.json: Permission denied") == 1
        Path(run).chmod(0o755)
        assert sorted(Path(run).rglob("*")) == before


@pytest.mark.slow
def test_removed_data_set_ends_training_with_a_checkpoint(workplace, drawn_folder):
    folder = shutil.copytree(drawn_folder, workplace / "data/mine")
    process = start("--dataset=mine", "--epoch=3", cwd=workplace, before=HOLD)
    wait_for((workplace / "held").exists, process)
    shutil.rmtree(folder)
    (workplace / "go").touch()
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2 and err.count("\n") == 1 and "images cannot be read" in err
    assert step_in(workplace / "save") == rows(workplace / "save") - 1 > HELD_STEP
