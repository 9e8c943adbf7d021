"""Training on several devices and in several processes, by main.py, compared with one device."""

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import main
from FaceAging import FaceAging
from ops import load_image
from support import InputError
from support.batches import BatchLoader, train_val_split
from support.devices import Devices, choose_strategy
from support.losses import PAPER_TERMS
from tests.conftest import TINY, TINY_FLAGS

PROJECT = Path(main.__file__).parent
SMALL = {**TINY, "size_image": 16}
WARM_STEPS = 150  # in the first steps a rounding error grows to 1e-2 of a loss, on one device too; later it stays small
PATIENCE = 570  # seconds; CI machines are loaded
BEFORE_BATCH_NORM = re.compile(r"D_z_fc[012]/bias|D_img_conv\d/bias")
# a test started in the background of a shell inherits that Ctrl-C is ignored
DEVICES = """
import signal, sys, tensorflow as tf
signal.signal(signal.SIGINT, signal.default_int_handler)
cpu, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(sys.argv[1]))
import main
sys.exit(main.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def warm(tmp_path_factory, drawn_folder, faces):
    """A folder to train in: the faces in data/drawn, and in save/ a checkpoint after WARM_STEPS."""
    folder = tmp_path_factory.mktemp("warm")
    (folder / "data").mkdir()
    (folder / "data" / "drawn").symlink_to(drawn_folder, target_is_directory=True)
    model = FaceAging(**SMALL, save_dir=folder / "save")
    for optimizer in model.optimizers.values():
        optimizer.learning_rate.assign(2e-4)
    training, _, _ = train_val_split(faces, model.seed)
    load = partial(load_image, size_image=16, channels=3)
    batches = BatchLoader(training, model.bins, load, size_batch=10, num_z_channels=50, seed=1)
    for step in range(0, WARM_STEPS, 5):
        for batch in batches.of(step, step=step):
            model.train_step(*batch, dict.fromkeys(PAPER_TERMS, tf.constant(1e-4)))
    model.save_checkpoint()
    return folder


def start(folder, *flags, devices=1, before="", **environment):
    code = DEVICES.replace("import main\n", f"import main\nfrom support import devices\n{before}\n")
    command = [sys.executable, "-c", code, str(devices), "--dataset=drawn", *flags]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def start_workers(folder, *flags, only=None, before=""):
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("localhost", 0))
        hosts = [f"localhost:{each.getsockname()[1]}" for each in (one, other)]
    configs = [{"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}} for index in range(2)]
    started = configs if only is None else [configs[only]]
    return [start(folder, *flags, before=before, TF_CONFIG=json.dumps(config)) for config in started]


def finish(processes):
    """Return (status, stdout, stderr) of each, stderr without what TensorFlow logs during its import."""
    try:
        outputs = [process.communicate(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
    logged = re.compile(r"^(WARNING: All log|[IWE]0000 ).*\n", re.MULTILINE)
    return [(p.returncode, out, logged.sub("", err)) for p, (out, err) in zip(processes, outputs, strict=True)]


def copy(warm, tmp_path):
    return shutil.copytree(warm, tmp_path / "warm", symlinks=True)


def losses_of(folder):
    with (folder / "save/losses.csv").open(newline="") as file:
        return np.array([[float(value) for value in row.values()] for row in csv.DictReader(file)])


def weights_of(folder):
    model = FaceAging(**SMALL, save_dir=folder / "save")
    assert model.load_checkpoint()
    networks = (model.E, model.G, model.D_z, model.D_img)
    weights = {variable.path: variable.numpy() for network in networks for variable in network.weights}
    return {path: weight for path, weight in weights.items() if not BEFORE_BATCH_NORM.fullmatch(path)}


def wait_for_steps(folder, steps, processes):
    record = folder / "save/losses.csv"
    for _ in range(2 * PATIENCE):
        if record.exists() and len(record.read_text().splitlines()) > steps:
            return
        assert all(process.poll() is None for process in processes), [p.communicate() for p in processes]
        time.sleep(0.5)
    raise AssertionError(f"the workers have not trained {steps} steps in time")


@pytest.fixture(scope="module")
def one_device(warm, tmp_path_factory):
    """20 steps from the checkpoint on one device."""
    folder = copy(warm, tmp_path_factory.mktemp("one_device"))
    ((status, _, error),) = finish([start(folder, "--epoch=4")])
    assert (status, error) == (0, "")
    return folder


def assert_equal_runs(first, second):
    assert len(losses_of(first)) == 20
    assert np.abs(losses_of(first) - losses_of(second)).max() < 1e-4
    expected, found = weights_of(first), weights_of(second)
    for path, weight in expected.items():
        assert np.abs(found[path] - weight).max() < 1e-3, path


@pytest.mark.slow
def test_two_devices_equal_one_device(warm, one_device, tmp_path):
    folder = copy(warm, tmp_path)
    ((status, _, error),) = finish([start(folder, "--epoch=4", devices=2)])
    assert (status, error) == (0, "")
    assert_equal_runs(one_device, folder)


@pytest.mark.slow
def test_two_processes_equal_one_and_stop_together(warm, one_device, tmp_path):
    folder = copy(warm, tmp_path)
    done = finish(start_workers(folder, "--epoch=4"))
    assert [(status, error) for status, _, error in done] == [(0, "")] * 2
    assert "Done!" in done[0][1] and "Epoch" not in done[1][1]  # only rank 0 prints
    assert_equal_runs(one_device, folder)
    assert {path.name for path in (folder / "save").iterdir()} == {p.name for p in (one_device / "save").iterdir()}

    processes = start_workers(folder, "--epoch=4000")  # resumes from what two processes saved
    wait_for_steps(folder, 23, processes)
    processes[1].send_signal(signal.SIGTERM)
    assert [status for status, _, _ in finish(processes)] == [128 + signal.SIGTERM] * 2
    assert len(losses_of(folder)) >= 23
    model = FaceAging(**SMALL, save_dir=folder / "save")
    assert model.load_checkpoint() and int(model.step) == len(losses_of(folder))


@pytest.mark.slow
def test_two_processes_equal_one_with_the_aging_recipe(warm, tmp_path):
    """Muon, C_z and C_img, from their initial weights; the second half of the steps with the classifier loss."""
    flags = ["--recipe=aging", "--savedir=new", "--epoch=2", "--precision=float32", *TINY_FLAGS, "--image_size=16"]
    flags += ["--learning_rate=6e-5"]  # a tenth, as the bounds below: rounding differences grow with the rate
    rows = []
    for name, begin in (("one", lambda folder: [start(folder, *flags)]), ("two", lambda f: start_workers(f, *flags))):
        folder = copy(warm, tmp_path / name)
        assert {status for status, _, _ in finish(begin(folder))} == {0}
        rows.append((folder / "new/losses.csv").read_text().splitlines())
    assert rows[0][0] == rows[1][0] and "C_img_loss" in rows[0][0] and len(rows[0]) == 11
    one, two = (np.array([line.split(",") for line in lines[1:]], float) for lines in rows)
    assert np.abs(one - two)[:5].max() < 1e-4 and np.abs(one - two).max() < 2e-3


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "number"), [(0, signal.SIGINT), (1, signal.SIGTERM)])
def test_waiting_worker_prints_missing_peers_and_stops_on_a_signal(warm, tmp_path, rank, number):
    folder = copy(warm, tmp_path)
    worker = start_workers(folder, "--epoch=4", only=rank)[0]
    printed = [worker.stdout.readline() for _ in range(2)]
    assert re.fullmatch(
        rf"Waiting for worker {1 - rank} \(localhost:\d+\) since [\d:]{{8}}, until [\d:]{{8}}\n", printed[1]
    )
    begin = time.monotonic()
    worker.send_signal(number)
    worker.communicate(timeout=PATIENCE)
    assert worker.returncode in (128 + number, -number)
    assert time.monotonic() - begin < 10


@pytest.mark.slow
def test_join_timeout_is_reported_in_one_line(warm, tmp_path):
    folder = copy(warm, tmp_path)
    ((status, _, error),) = finish(start_workers(folder, "--epoch=4", only=0, before="devices.JOIN_SECONDS = 1"))
    assert status == 2
    assert error.count("\n") == 1 and "worker 1 (localhost:" in error and "start the same command there" in error
    assert not (folder / "save/losses.csv").exists()


@pytest.mark.slow
def test_killed_worker_ends_the_others_with_one_line(warm, tmp_path):
    folder = copy(warm, tmp_path)
    processes = start_workers(folder, "--epoch=4000")
    wait_for_steps(folder, 3, processes)
    processes[1].kill()
    (status, _, error), _ = finish(processes)
    assert status == 2
    assert error.count("\n") == 1 and "another worker has stopped" in error
    assert weights_of(folder)


def test_indivisible_batch_is_rejected():
    devices = Devices()
    devices.replicas = 3
    with pytest.raises(InputError, match="--batch_size 10 cannot be divided equally among 3 devices: use 9"):
        devices.check(10, "float32")
    with pytest.raises(InputError, match="mixed_float16 trains on one device only"):
        devices.check(9, "mixed_float16")


@pytest.mark.parametrize(
    "config", ["", "[1]", "{}", '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}']
)
def test_invalid_tf_config_is_rejected_with_an_example(monkeypatch, config):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(InputError, match="TF_CONFIG is invalid.*set it like"):
        choose_strategy()


def test_workers_reject_a_data_set_that_is_not_unpacked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TF_CONFIG", "{}")
    assert main.main(["--dataset", "demo"]) == 2
    assert "without TF_CONFIG first" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_slurm_script_of_the_docs_sets_tf_config_for_every_task(tmp_path):
    page = (PROJECT / "docs/distributed.md").read_text(encoding="utf-8")
    script = re.search(r"( {4}#!/bin/bash\n(?: {4}.*\n|\n)+)", page)[1]
    (tmp_path / "job.sh").write_text(re.sub("^ {4}", "", script, flags=re.MULTILINE))
    commands = {
        "scontrol": 'test "$*" = "show hostnames node[1-2]" && printf "node1\\nnode2\\n"',
        "srun": 'while [ "${1#-}" != "$1" ]; do shift; done; for i in 0 1; do SLURM_PROCID=$i "$@"; done',
        "python": 'echo "$TF_CONFIG" | tr -d "\\n"; echo',
    }
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "node[1-2]"}
    done = subprocess.run(["bash", "job.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    configs = [json.loads(line) for line in done.stdout.splitlines()]
    assert [config["task"] for config in configs] == [{"type": "worker", "index": index} for index in range(2)]
    for config in configs:
        assert [host.split(":")[0] for host in config["cluster"]["worker"]] == ["node1", "node2"]
