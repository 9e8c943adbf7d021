"""Scripts that train, package, measure and illustrate the included models."""

import argparse
import csv
import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from support import InputError
from support.batches import Split, train_val_split
from support.config import read_config
from support.dataset import find_dataset, list_faces
from support.terminal import make_streams_safe


def make_parser(tool: Callable) -> argparse.ArgumentParser:
    """Return a parser with the name and the first line of the module of a tool's function."""
    module = inspect.unwrap(tool).__globals__
    return argparse.ArgumentParser(prog=module["__spec__"].name, description=module["__doc__"].partition("\n")[0])


def command(tool: Callable[[list[str]], int]) -> Callable[[list[str]], int]:
    """Make a tool print bad input as one line on stderr and return 2."""

    @functools.wraps(tool)
    def checked(argv: list[str]) -> int:
        try:
            return tool(argv)
        except (InputError, FloatingPointError, OSError) as error:
            print(f"{tool.__globals__['__spec__'].name}: {error}", file=sys.stderr)
            return 2

    return checked


def run(tool: Callable[[list[str]], int]) -> None:
    """Run a tool with the arguments of this process, and end the process with its exit status."""
    make_streams_safe()
    sys.exit(tool(sys.argv[1:]))


def split_of(folder: Path, data_folder: str | Path = "data") -> Split:
    """Return the faces that a run was trained on, and those held out of its training."""
    config = read_config(folder)
    training = config["training"]
    faces = list_faces(find_dataset(training["dataset"], data_folder), training.get("unknown_gender", False)).faces
    return train_val_split(faces, config["model"]["seed"], config)


def read_losses(folder: Path) -> list[dict[str, float]]:
    """Return the rows of a run's losses.csv, by column, nan where empty; [] without a file."""
    path = folder / "losses.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(file)]
