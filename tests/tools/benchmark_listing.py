"""Time and memory of listing a set as large as CACD: `python -m tests.tools.benchmark_listing` (not on Windows)."""

import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from support.dataset import describe, list_faces
from support.labels import AgeBins

FACES = 163_446
DRAWN = 300  # files; the others are hard links to them
SIZE = 250


def make_folder(folder: Path) -> None:
    """FACES faces under CACD names, in one folder."""
    random = np.random.default_rng(0)
    drawn = []
    for i in range(DRAWN):
        coarse = Image.fromarray(random.integers(0, 256, (10, 10, 3), dtype=np.uint8))
        drawn.append(folder / f"{14 + i % 49}_Drawn_Face_{i:04d}.jpg")
        coarse.resize((SIZE, SIZE)).save(drawn[-1])
    for i in range(FACES - DRAWN):
        os.link(drawn[i % DRAWN], folder / f"{14 + i % 49}_Linked_Face_{i // 1000}_{i % 1000:04d}.jpg")


def peak_mib() -> float:
    """The largest resident memory so far; Linux counts it in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder))
        before = peak_mib()
        began, cpu_began = time.perf_counter(), time.process_time()
        listing = list_faces(folder, unknown_gender=True)
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
        print(describe(listing, AgeBins()))
    print(
        f"listing {len(listing.faces):,} faces: {seconds:.1f} s ({cpu_seconds:.1f} s of one core), "
        f"peak {peak_mib():.0f} MiB ({before:.0f} before)"
    )


if __name__ == "__main__":
    main()
