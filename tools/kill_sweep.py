"""Kill a small run with -9 again and again, and hold what it becomes to a run that nobody stopped.

    python -m tools.kill_sweep --kills 200

Half of the kills come when a checkpoint has begun to be written, the others after a random number of steps or while the
program is still starting. Whenever a run has reached its end, its checkpoint, losses, pictures and folder must be those
of the straight run, byte for byte, and the next run begins. Status 1 where anything is lost.
"""

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tqdm import tqdm

import FaceAging
import main
from support import run
from support.checkpoints import saved_checkpoints
from support.config import PRECISIONS
from tests.conftest import TINY_FLAGS, make_faces

EPOCHS = 8  # of 5 steps
CHECKPOINT_SECONDS = 0.2
PATIENCE = 600  # seconds without progress, on a machine however busy
POLL = 0.001
FIGURES = ("kills", "while a checkpoint was being written", "resumes from a step above 0", "runs ended equal")


class Life:
    """One process of a run: forked before TensorFlow computes anything, so that its import is paid for once."""

    def __init__(self, save_dir: Path, precision: str):
        self.folder = save_dir / "checkpoint"
        self.rows = save_dir / "losses.csv"
        self.log = save_dir.with_suffix(".log")
        self.log.write_bytes(b"")
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            status = 70
            try:
                with self.log.open("ab") as log:
                    os.dup2(log.fileno(), 1)
                    os.dup2(log.fileno(), 2)
                status = train(save_dir, precision)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)
        self.status = None

    def running(self) -> bool:
        if self.status is None and os.waitpid(self.pid, os.WNOHANG)[0]:
            self.status = 0
        return self.status is None

    def wait(self, done) -> None:
        """Until done() or the process has ended."""
        start = time.monotonic()
        while self.running() and not done():
            if time.monotonic() - start > PATIENCE:
                self.kill()
                raise AssertionError(f"nothing happened in {PATIENCE} s: {self.log}")
            time.sleep(POLL)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.status = -signal.SIGKILL

    def said(self, pattern: str) -> list[int]:
        return [int(number) for number in re.findall(pattern, self.log.read_text(errors="replace"))]


def train(save_dir: Path, precision: str) -> int:
    """The run itself, in the child; a line tells of every checkpoint that save_checkpoint says is written."""
    run.CHECKPOINT_SECONDS = CHECKPOINT_SECONDS
    save = FaceAging.FaceAging.save_checkpoint

    def save_and_tell(model):
        path = save(model)
        print(f"saved {int(model.step)}", flush=True)
        return path

    FaceAging.FaceAging.save_checkpoint = save_and_tell
    flags = ["--dataset=drawn", f"--epoch={EPOCHS}", f"--savedir={save_dir}", f"--precision={precision}"]
    return main.main([*flags, *TINY_FLAGS])


def half_written(folder: Path) -> list[str]:
    """What a checkpoint cut short leaves: files that the folder's `checkpoint` does not name."""
    named = {Path(prefix).name for prefix in saved_checkpoints(folder)}
    names = [path.name for path in folder.iterdir() if path.name != "checkpoint"] if folder.is_dir() else []
    return [name for name in names if name.partition(".")[0] not in named or ".tempstate" in name]


def last_step(folder: Path) -> int:
    saved = saved_checkpoints(folder)
    return int(saved[0].rpartition("-")[2]) if saved else 0


def content(save_dir: Path) -> dict[str, bytes]:
    """What a run that ended has written, but for the lock, tensorboard's files, and what time decides: the checkpoint
    before the last one, which must be there."""
    last, before = (Path(prefix).name for prefix in saved_checkpoints(save_dir / "checkpoint"))
    paths = {str(path.relative_to(save_dir)): path for path in save_dir.rglob("*") if path.is_file()}
    timed = ("lock", "checkpoint/checkpoint", f"checkpoint/{before}.", "summary/")
    return {name: path.read_bytes() for name, path in paths.items() if not name.startswith(timed)}


def live_and_die(save_dir: Path, precision: str, chance: random.Random, figures: Counter, confirmed: int) -> int | None:
    """One life, ended by a kill at a random moment. Gives the last step that was saved for certain, None at the end."""
    before = last_step(save_dir / "checkpoint")
    life = Life(save_dir, precision)
    way = chance.choices(("writing", "steps", "starting"), (5, 4, 1))[0]
    stale = set(half_written(life.folder))
    if way == "writing":
        skipped = chance.randrange(3)  # not the first checkpoint of every life
        life.wait(lambda: len(life.said(r"saved (\d+)")) >= skipped)
        life.wait(lambda: set(half_written(life.folder)) - stale)
        time.sleep(chance.uniform(0, 0.08))
    elif way == "steps":
        life.wait(lambda: life.said(r"after step (\d+)") or (life.rows.exists() and not before))
        rows = chance.randrange(12)
        written = life.rows.stat().st_size if life.rows.exists() else 0
        life.wait(lambda: life.rows.exists() and life.rows.stat().st_size >= written + 150 * rows)
        time.sleep(chance.uniform(0, 0.2))
    else:
        time.sleep(chance.uniform(0, 2))
    ended = not life.running()
    if not ended:
        life.kill()
        figures["kills"] += 1
        figures["while a checkpoint was being written"] += bool(set(half_written(life.folder)) - stale)
    resumed = life.said(r"Resuming at epoch \w+ after step (\d+)") or life.said(r"(\d+) epochs are done") and [before]
    if resumed:
        assert resumed == [before] and before >= confirmed, f"{life.log}: resumed at {resumed}, saved were {confirmed}"
        figures["resumes from a step above 0"] += 1
    assert not life.said(r"damaged(\d*)"), f"{life.log}: a damaged checkpoint"
    saved = max([confirmed, *life.said(r"saved (\d+)")])
    assert last_step(life.folder) >= saved, f"{life.log}: step {saved} was saved and is gone"
    if ended:
        assert "Done!" in life.log.read_text(), f"{life.log}: ended with an error"
        return None
    return saved


def sweep(folder: Path, kills: int, precision: str, seed: int) -> Counter:
    """Kill runs in the folder until there were `kills`, then let the last one end. Raises AssertionError."""
    os.chdir(folder)
    make_faces(Path("data/drawn"), number=60)
    straight = Life(folder / "straight", precision)
    straight.wait(lambda: False)
    assert "Done!" in straight.log.read_text(), straight.log.read_text()
    expected = content(folder / "straight")
    chance, figures = random.Random(seed), Counter(dict.fromkeys(FIGURES, 0))
    bar = tqdm(total=kills, unit="kill", disable=None)
    while figures["kills"] < kills:
        save_dir = folder / f"killed{figures['runs ended equal'] + 1}"
        confirmed = 0
        while confirmed is not None and figures["kills"] < kills:
            confirmed = live_and_die(save_dir, precision, chance, figures, confirmed)
            bar.update(figures["kills"] - bar.n)
        if confirmed is not None:
            last = Life(save_dir, precision)
            last.wait(lambda: False)  # noqa: B023
            assert "Done!" in last.log.read_text(), last.log.read_text()
        found = content(save_dir)
        differing = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        assert not differing, f"{save_dir} differs from the straight run in {', '.join(differing)}"
        figures["runs ended equal"] += 1
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="an empty folder to work in, and to keep")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = arguments.folder or Path(temporary)
        try:
            result = sweep(place.resolve(), arguments.kills, arguments.precision, arguments.seed)
        except AssertionError as error:
            sys.exit(f"lost: {error}")
    print(", ".join(f"{count} {what}" for what, count in result.items()))
