"""Kill a small run with SIGKILL many times and compare it with an uninterrupted run: `python -m tools.kill_sweep`.

Half of the kills come while a checkpoint is being written, the others after a random number of steps or at start-up.
Each run that ends must have the checkpoint, losses, images and files of the uninterrupted run, byte for byte; then the
next run begins. Exit status 1 if anything is lost.
"""

import multiprocessing
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

import main
from support.config import PRECISIONS
from tests.conftest import TINY_FLAGS, make_faces
from tools import make_parser, run

with main.silence():
    from FaceAging import FaceAging
    from support import run as run_module
    from support.checkpoints import saved_checkpoints

EPOCHS = 8  # of 5 steps
CHECKPOINT_SECONDS = 0.2
PATIENCE = 600  # seconds without progress
POLL = 0.001
COUNTS = ("kills", "while a checkpoint was being written", "resumes from a step above 0", "runs ended equal")


class Training(multiprocessing.get_context("fork").Process):
    """A process of a run, forked before TensorFlow computes anything, which saves the import."""

    def __init__(self, save_dir: Path, precision: str):
        super().__init__()
        self.save_dir, self.precision = save_dir, precision
        self.folder = save_dir / "checkpoint"
        self.losses = save_dir / "losses.csv"
        self.log = save_dir.with_suffix(".log")
        self.log.write_bytes(b"")
        self.start()

    def run(self) -> None:
        with self.log.open("ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        train(self.save_dir, self.precision)

    def wait(self, done: Callable[[], bool] = lambda: False) -> None:
        """Wait until done() or the end of the process."""
        start = time.monotonic()
        while self.is_alive() and not done():
            if time.monotonic() - start > PATIENCE:
                self.kill()
                raise AssertionError(f"no progress in {PATIENCE} s: {self.log}")
            time.sleep(POLL)

    def wait_for_the_end(self) -> None:
        self.wait()
        assert "Done!" in self.text(), f"ended with an error: {self.text()}"

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def logged(self, pattern: str) -> list[int]:
        return [int(number) for number in re.findall(pattern, self.text())]


def train(save_dir: Path, precision: str) -> None:
    """Train, in the child, and print a line for each checkpoint that was written."""
    run_module.CHECKPOINT_SECONDS = CHECKPOINT_SECONDS
    save = FaceAging.save_checkpoint

    def save_and_print(model):
        path = save(model)
        print(f"saved {int(model.step)}", flush=True)
        return path

    FaceAging.save_checkpoint = save_and_print
    flags = ["--dataset=synthetic", f"--epoch={EPOCHS}", f"--savedir={save_dir}", f"--precision={precision}"]
    main.main([*flags, *TINY_FLAGS])


def incomplete(folder: Path) -> set[str]:
    """Return the checkpoint files that the folder's `checkpoint` does not list."""
    listed = {Path(prefix).name for prefix in saved_checkpoints(folder)}
    names = [path.name for path in folder.iterdir() if path.name != "checkpoint"] if folder.is_dir() else []
    return {name for name in names if name.partition(".")[0] not in listed or ".tempstate" in name}


def last_step(folder: Path) -> int:
    saved = saved_checkpoints(folder)
    return int(saved[0].rpartition("-")[2]) if saved else 0


def content(save_dir: Path) -> dict[str, bytes]:
    """Return the files of a run that ended, except the lock, tensorboard's and the checkpoint before the last."""
    _, before = (Path(prefix).name for prefix in saved_checkpoints(save_dir / "checkpoint"))
    paths = {str(path.relative_to(save_dir)): path for path in save_dir.rglob("*") if path.is_file()}
    timed = ("lock", "checkpoint/checkpoint", f"checkpoint/{before}.", "summary/")
    return {name: path.read_bytes() for name, path in paths.items() if not name.startswith(timed)}


def wait_at_random(process: Training, chance: random.Random, earlier: set[str], step: int) -> None:
    """Wait for a random moment; earlier: incomplete files at the start of the process, step: its last saved step."""
    way = chance.choices(("writing", "steps", "starting"), (5, 4, 1))[0]
    if way == "writing":
        skipped = chance.randrange(3)  # not always the first checkpoint
        process.wait(lambda: len(process.logged(r"saved (\d+)")) >= skipped)
        process.wait(lambda: bool(incomplete(process.folder) - earlier))
        time.sleep(chance.uniform(0, 0.08))
    elif way == "steps":
        process.wait(lambda: process.logged(r"after step (\d+)") or (process.losses.exists() and not step))
        rows = chance.randrange(12)
        size = process.losses.stat().st_size if process.losses.exists() else 0
        process.wait(lambda: process.losses.exists() and process.losses.stat().st_size >= size + 150 * rows)
        time.sleep(chance.uniform(0, 0.2))
    else:
        time.sleep(chance.uniform(0, 2))


def run_and_kill(save_dir: Path, precision: str, chance: random.Random, counts: Counter, confirmed: int) -> int | None:
    """Run a process and kill it at a random moment. Return the last step known to be saved, None if the run ended."""
    before = last_step(save_dir / "checkpoint")
    process = Training(save_dir, precision)
    earlier = incomplete(process.folder)
    wait_at_random(process, chance, earlier, before)
    ended = not process.is_alive()
    if not ended:
        process.kill()
        process.join()
        counts["kills"] += 1
        counts["while a checkpoint was being written"] += bool(incomplete(process.folder) - earlier)
    resumed = process.logged(r"Resuming at epoch \w+ after step (\d+)")
    resumed = resumed or process.logged(r"(\d+) epochs are done") and [before]
    if resumed:
        assert resumed == [before] and before >= confirmed, f"{process.log}: resumed at {resumed}, saved: {confirmed}"
        counts["resumes from a step above 0"] += 1
    assert "damaged" not in process.text(), f"{process.log}: a damaged checkpoint"
    saved = max([confirmed, *process.logged(r"saved (\d+)")])
    assert last_step(process.folder) >= saved, f"{process.log}: the saved step {saved} is lost"
    assert not ended or "Done!" in process.text(), f"{process.log}: ended with an error"
    return None if ended else saved


def sweep(folder: Path, kills: int, precision: str, seed: int) -> Counter:
    """Kill runs in the folder this many times, then let the last one end. Raises AssertionError if anything is lost."""
    os.chdir(folder)
    make_faces(Path("data/synthetic"))
    Training(folder / "uninterrupted", precision).wait_for_the_end()
    expected = content(folder / "uninterrupted")
    chance, counts = random.Random(seed), Counter(dict.fromkeys(COUNTS, 0))
    bar = tqdm(total=kills, unit="kill", disable=None)
    while counts["kills"] < kills:
        save_dir = folder / f"killed{counts['runs ended equal'] + 1}"
        confirmed = 0
        while confirmed is not None and counts["kills"] < kills:
            confirmed = run_and_kill(save_dir, precision, chance, counts, confirmed)
            bar.update(counts["kills"] - bar.n)
        if confirmed is not None:
            Training(save_dir, precision).wait_for_the_end()
        found = content(save_dir)
        differing = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        assert not differing, f"{save_dir} differs from the uninterrupted run in {', '.join(differing)}"
        counts["runs ended equal"] += 1
    return counts


def kill_sweep(argv: list[str]) -> int:
    parser = make_parser(kill_sweep)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="an empty folder to work in; it is kept")
    flags = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = flags.folder or Path(temporary)
        try:
            counts = sweep(folder.resolve(), flags.kills, flags.precision, flags.seed)
        except AssertionError as error:
            print(f"lost: {error}", file=sys.stderr)
            return 1
    print(", ".join(f"{count} {what}" for what, count in counts.items()))
    return 0


if __name__ == "__main__":
    run(kill_sweep)
