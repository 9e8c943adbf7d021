"""The order and the contents of batches, and the replacement of unreadable images."""

import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ops import load_image
from support import InputError
from support.batches import BatchLoader, epoch_order, train_val_split
from support.dataset import Face
from support.images import read_parts
from support.labels import MALE, AgeBins, gender_labels
from tests.conftest import ROOT, make_numbered_faces

SMALL = {"size_batch": 4, "num_z_channels": 5, "seed": 7}


read = partial(load_image, size_image=8, channels=3)


def batches(faces: list[Face], epoch=1, first=0, step=0, load=read, **options: object) -> list[tuple[np.ndarray, ...]]:
    return list(BatchLoader(faces, AgeBins(), load, **SMALL | options).of(epoch, first, step))


def reds(drawn: list[tuple[np.ndarray, ...]]) -> np.ndarray:
    """Return the red values, which identify the sampled faces, [batches, B]."""
    return np.stack([batch[0][:, 0, 0, 0] for batch in drawn])


def equal(some: list[tuple[np.ndarray, ...]], others: list[tuple[np.ndarray, ...]]) -> bool:
    return len(some) == len(others) and all(
        np.array_equal(a, b) for one, other in zip(some, others, strict=True) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize(("count", "held_out"), [(1, 1), (9, 1), (25, 2), (1000, 100), (5000, 100)])
def test_held_out_is_a_tenth_from_1_to_100(count, held_out):
    faces = [Face(str(i), 1, MALE) for i in range(count)]
    training, held_out_faces, _ = train_val_split(faces, 2017)
    assert len(held_out_faces) == held_out and sorted(training + held_out_faces) == sorted(faces)
    assert train_val_split(faces, 2017)[:2] == (training, held_out_faces)
    assert count < 9 or train_val_split(faces, 2018)[:2] != (training, held_out_faces)


def test_loader_rejects_an_empty_training_set():
    with pytest.raises(InputError, match="none is left to train on: add more to the data set"):
        batches(train_val_split([Face("a.jpg", 1, MALE)], 2017)[0])


def test_chunk_of_unreadable_faces_is_skipped(tmp_path, capsys):
    faces = make_numbered_faces(tmp_path, 51)
    Path(faces[-1].path).write_bytes(b"")  # the only face of the last chunk
    parts = list(read_parts(faces, read, "Reading"))
    assert [len(images) for images, *_ in parts] == [50] and "empty file" in capsys.readouterr().out
    with pytest.raises(InputError, match="none of 1 faces can be read"):
        list(read_parts(faces[-1:], read, "Reading"))


def test_images_and_labels_of_a_batch_match(tmp_path):
    faces = make_numbered_faces(tmp_path, 11)
    by_red = {2 * int(face.path[-8:-4]): face for face in faces}
    drawn = batches(faces)
    assert len(drawn) == 2  # the last incomplete batch is dropped
    for images, ages, genders, z_prior in drawn:
        assert images.shape == (4, 8, 8, 3) and images.dtype == np.uint8
        chosen = [by_red[red] for red in images[:, 0, 0, 0]]
        assert np.array_equal(ages, AgeBins().one_hot([face.age for face in chosen]))
        assert np.array_equal(genders, gender_labels([face.gender for face in chosen]))
        assert z_prior.shape == (4, 5) and z_prior.dtype == np.float32 and np.abs(z_prior).max() <= 1
    assert len(np.unique(reds(drawn))) == 8


def test_order_and_prior_depend_on_seed_epoch_and_step_only(tmp_path):
    faces = make_numbered_faces(tmp_path, 40)
    drawn = batches(faces)
    assert equal(drawn, batches(faces))
    assert equal(drawn[3:], batches(faces, first=3, step=3))
    for other in ({"epoch": 2}, {"epoch": -9}, {"seed": 8}):
        assert not np.array_equal(reds(drawn), reds(batches(faces, **other)))
    later = batches(faces, epoch=2, step=5)
    assert np.array_equal(later[0][3], drawn[5][3]) and not np.array_equal(later[0][3], drawn[0][3])
    assert not np.array_equal(drawn[0][3], batches(faces, seed=8)[0][3])


def test_grey_images_have_one_channel(tmp_path):
    drawn = batches(make_numbered_faces(tmp_path, 4), load=partial(load_image, size_image=8, channels=1))
    assert drawn[0][0].shape == (4, 8, 8, 1)


def test_workers_share_each_batch(tmp_path):
    faces = make_numbered_faces(tmp_path, 20)
    whole = batches(faces)
    parts = [batches(faces, rank=rank, world_size=2) for rank in range(2)]
    joined = [tuple(np.concatenate(pair) for pair in zip(*both, strict=True)) for both in zip(*parts, strict=True)]
    assert equal(whole, joined)


def test_balance_samples_every_bin_equally():
    ages = [3] * 300 + [25] * 90 + [80] * 10
    faces = [Face(str(i), age, MALE) for i, age in enumerate(ages)]
    order = epoch_order(faces, AgeBins(), epoch=1, seed=7, balance=True)
    drawn = Counter(ages[i] for i in order)
    assert len(order) == len(faces) and max(drawn.values()) - min(drawn.values()) <= 3
    assert (
        max(Counter(order[np.array(ages)[order] == 25]).values()) == 2
    )  # 134 samples of 90 faces: at most two of each
    assert np.array_equal(order, epoch_order(faces, AgeBins(), epoch=1, seed=7, balance=True))
    assert not np.array_equal(order, epoch_order(faces, AgeBins(), epoch=2, seed=7, balance=True))


def test_undecodable_face_is_replaced_and_reported(tmp_path):
    faces = make_numbered_faces(tmp_path, 40)
    whole = reds(batches(faces)).ravel()
    damaged = [Path(faces[i].path) for i in (4, 17, 30)]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-30])
    drawing = BatchLoader(faces, AgeBins(), read, **SMALL)
    drawn = list(drawing.of(1))
    bad = drawing.newly_bad()
    assert (
        not drawing.newly_bad()
        and sorted(bad) == sorted(map(str, damaged))
        and all("truncated" in reason for reason in bad.values())
    )
    replaced = reds(drawn).ravel()
    lost = np.isin(whole, [2 * int(path.stem[-4:]) for path in damaged])
    assert np.array_equal(replaced[~lost], whole[~lost]) and not np.isin(replaced, whole[lost]).any()
    assert equal(drawn, batches(faces))
    assert equal(drawn[5:], batches(faces, first=5, step=5))
    by_red = {2 * int(face.path[-8:-4]): face.age for face in faces}
    for images, ages, *_ in drawn:  # labels follow the replacement
        assert np.array_equal(ages, AgeBins().one_hot([by_red[red] for red in images[:, 0, 0, 0]]))


def test_more_than_one_bad_image_in_ten_ends_the_epoch(tmp_path):
    faces = make_numbered_faces(tmp_path, 40)
    for face in faces[:5]:
        Path(face.path).unlink()
    with pytest.raises(InputError, match=r"5 of 40 images cannot be read, more than one in ten: .*: no such file"):
        batches(faces)


def test_process_that_fails_within_an_epoch_exits(tmp_path):
    make_numbered_faces(tmp_path, 40)
    code = f"""
from support.dataset import list_faces
from tests.test_batches import AgeBins, BatchLoader, SMALL, read
def train():
    for batch in BatchLoader(list_faces({str(tmp_path)!r}).faces, AgeBins(), read, **SMALL).of(1):
        raise MemoryError("the step failed")
train()"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, cwd=ROOT)
    assert ended.returncode == 1 and b"the step failed" in ended.stderr
