"""Data sets: unpacking archives, listing folders, skipped files and rejected sets."""

import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support import InputError, dataset
from support.alignment import alignment_warning
from support.config import MODEL_FLAGS, restore_flags
from support.dataset import describe, find_dataset, list_faces
from support.flags import parse_flags
from support.images import find_copies
from support.labels import FEMALE, MALE, UNKNOWN, AgeBins
from tests.conftest import ROOT, make_image, make_numbered_faces, refuse_to_list


def test_conventions_may_be_mixed_in_a_folder(tmp_path):
    for name in [
        "b/25_1_3_20170116174525125.jpg",
        "001A02.JPG",
        "a/deep/009055_1M54.Jpeg",
        "53_Robin_Williams_0001.WEBP",
        "holiday.tiff",
        "131_0_0_20170116174525125.bmp",
    ]:
        make_image(tmp_path / name)
    (tmp_path / "readme.txt").touch()
    (tmp_path / "001A02.pts").touch()
    make_image(tmp_path / ".hidden/25_1_3_20170116174525125.jpg")
    (tmp_path / "._001A02.JPG").touch()
    listing = list_faces(tmp_path, unknown_gender=True)
    assert [(Path(face.path).relative_to(tmp_path).as_posix(), *face[1:]) for face in listing.faces] == [
        ("001A02.JPG", 2, UNKNOWN),
        ("53_Robin_Williams_0001.WEBP", 53, UNKNOWN),
        ("a/deep/009055_1M54.Jpeg", 54, MALE),
        ("b/25_1_3_20170116174525125.jpg", 25, FEMALE),
    ]
    assert listing.conventions == {"UTKFace": 1, "FG-NET": 1, "MORPH": 1, "CACD": 1}
    assert listing.skipped == [
        ("131_0_0_20170116174525125.bmp", "age above 120"),
        ("holiday.tiff", "its name fits no convention"),
    ]


def test_faces_without_gender_are_rejected_with_both_solutions(tmp_path):
    make_image(tmp_path / "001A02.JPG")
    make_image(tmp_path / "25_1_3_20170116174525125.jpg")
    with pytest.raises(
        InputError, match=r"1 of 2 faces have no gender, first 001A02.JPG.*labels\.csv.*--unknown_gender"
    ):
        list_faces(tmp_path)
    assert [face.gender for face in list_faces(tmp_path, unknown_gender=True).faces] == [UNKNOWN, FEMALE]


@pytest.mark.parametrize("names", [[], ["holiday.jpg", "a.png"]])
def test_folder_without_a_labelled_face_is_rejected(tmp_path, names):
    for name in names:
        make_image(tmp_path / name)
    with pytest.raises(InputError, match="no labelled faces in .*UTKFace, FG-NET, MORPH, CACD, AgeDB"):
        list_faces(tmp_path)


def test_unreadable_folder_is_reported_and_skipped(tmp_path, monkeypatch):
    make_image(tmp_path / "a/25_1_3_20170116174525125.jpg")
    (tmp_path / "a/lost+found").mkdir()
    refuse_to_list(monkeypatch, "lost+found", "closed")
    listing = list_faces(tmp_path)
    assert len(listing.faces) == 1
    assert listing.skipped == [("a/lost+found/", "a folder: Permission denied")]
    (tmp_path / "closed").mkdir()
    with pytest.raises(InputError, match="closed: Permission denied"):
        list_faces(tmp_path / "closed")


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="gone: "):
        list_faces(tmp_path / "gone")


def test_bad_images_are_skipped_up_to_one_in_ten(tmp_path):
    faces = make_numbered_faces(tmp_path, 20)
    bad = [Path(face.path) for face in faces[:3]]
    bad[0].write_bytes(b"")
    bad[1].write_text("no image")
    listing = list_faces(tmp_path)
    assert len(listing.faces) == 18
    assert listing.skipped == [(bad[0].name, "empty file"), (bad[1].name, "not an image")]
    bad[2].write_bytes(b"")
    with pytest.raises(InputError, match=f"3 of 20 images cannot be read.*{bad[0].name}: empty file") as error:
        list_faces(tmp_path)
    assert "\n" not in str(error.value)


def test_description_counts_faces_and_reasons(tmp_path):
    for name in ["25_1_3_20170116174525125.jpg", "28_1_3_20170116174525125.jpg", "009055_1M54.JPG", "x.jpg", "y.jpg"]:
        make_image(tmp_path / name)
    lines = describe(list_faces(tmp_path), AgeBins((20, 40))).splitlines()
    assert lines[:2] == ["MORPH names: 1 faces", "UTKFace names: 2 faces"]
    assert [line.split() for line in lines[2:7]] == [
        ["age", "male", "female", "unknown", "all"],
        ["0-20", "0", "0", "0", "0"],
        ["21-40", "0", "2", "0", "2"],
        ["41+", "1", "0", "0", "1"],
        ["all", "1", "2", "0", "3"],
    ]
    assert lines[7:] == ["skipped 2 files:", "  2, its name fits no convention, first x.jpg, y.jpg"]


def pack(archive: Path, members: dict[str, bytes | tarfile.TarInfo]) -> None:
    """Write an archive of files, content by name; a TarInfo becomes a member of a tar as it is."""
    archive.parent.mkdir(exist_ok=True)
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as packed:
            for name, content in members.items():
                packed.writestr(name, content)
        return
    with tarfile.open(archive, "w" if archive.suffix == ".tar" else "w:gz") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def special(kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo("faces/odd.jpg")
    member.type, member.linkname = kind, target
    return member


def files_in(folder: Path) -> list[str]:
    """Return the files in a folder and below, but for locks, as sorted posix paths."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return sorted(path.relative_to(folder).as_posix() for path in paths)


@pytest.mark.parametrize("suffix", dataset.ARCHIVES)
@pytest.mark.parametrize("top", ["", "faces/", "./", "CACD2000/"])
def test_archive_with_or_without_top_folder_is_unpacked(tmp_path, top, suffix):
    data = tmp_path / "data"
    pack(data / f"faces{suffix}", {f"{top}a.jpg": b"1", f"{top}sub/b.jpg": b"2"})
    assert find_dataset("faces", data) == data / "faces"
    assert files_in(data) == sorted([f"faces{suffix}", "faces/a.jpg", "faces/sub/b.jpg"])


def test_zip_with_backslashes_is_unpacked(tmp_path):
    pack(tmp_path / "faces.zip", {"faces\\sub\\": b"", "faces\\sub\\a.jpg": b"1", "faces\\b.jpg": b"2"})
    find_dataset("faces", tmp_path)
    assert files_in(tmp_path / "faces") == ["b.jpg", "sub/a.jpg"]


def test_data_set_name_may_be_written_as_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pack(tmp_path / "data/faces.zip", {"a.jpg": b"1"})
    for name in ("faces/", "./faces", "data/faces", "data/faces/"):
        flags, explicit = parse_flags([f"--dataset={name}"])
        assert find_dataset(flags.dataset) == Path("data/faces") and flags.dataset == "faces"
        config = {
            "model": {name: getattr(flags, flag) for flag, name in MODEL_FLAGS.items()},
            "training": {"dataset": name},
        }
        restore_flags(flags, explicit, config, Path("save"))
    assert find_dataset("faces/") == Path("data/faces")


def test_demo_set_is_unpacked_and_balanced(tmp_path):
    listing = list_faces(find_dataset("demo", tmp_path / "data"))
    assert len(listing.faces) == 1000 and not listing.skipped and listing.conventions == {"UTKFace": 1000}
    bins = AgeBins().index([face.age for face in listing.faces])
    assert (np.histogram2d(bins, [face.gender for face in listing.faces], (10, 2))[0] == 50).all()
    assert alignment_warning(listing.faces) == "" and not find_copies([face.path for face in listing.faces])
    with Image.open(listing.faces[0].path) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (128, 128))


def start_unpacking(folder: Path) -> subprocess.Popen:
    """Start a process that unpacks data/faces, 2 ms a file."""
    code = """
import tarfile, time
from support.dataset import find_dataset
extract = tarfile.TarFile.extract
def slow(*args, **kwargs):
    time.sleep(0.002)
    return extract(*args, **kwargs)
tarfile.TarFile.extract = slow
print("started", flush=True)
find_dataset("faces")
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("killed", [False, True])
def test_two_processes_unpack_an_archive_once(tmp_path, killed):
    pack(tmp_path / "data/faces.tar.gz", {f"{i}.jpg": b"1" for i in range(400)})
    first = start_unpacking(tmp_path)
    partial = tmp_path / "data/.faces.unpacking"
    while not partial.exists() or len(list(partial.iterdir())) < 20:
        assert first.poll() is None
    second = start_unpacking(tmp_path)
    assert second.stdout.readline() == "started\n"
    assert second.stdout.readline() == "Waiting for another process, which unpacks data/faces.tar.gz\n"
    if killed:
        first.kill()
    assert first.wait(60) == (-9 if killed else 0) and second.wait(60) == 0
    assert len(files_in(tmp_path / "data/faces")) == 400
    assert files_in(tmp_path / "data") == sorted(["faces.tar.gz", *(f"faces/{i}.jpg" for i in range(400))])


def test_macos_metadata_in_an_archive_is_ignored(tmp_path):
    pack(tmp_path / "faces.zip", {"mine/a.jpg": b"1", "__MACOSX/mine/._a.jpg": b"2"})
    find_dataset("faces", tmp_path)
    assert files_in(tmp_path / "faces") == ["a.jpg"]


def test_archives_of_other_names_are_listed(tmp_path):
    pack(tmp_path / "crop_part1.tgz", {"a.jpg": b"1"})
    with pytest.raises(InputError, match=r"no faces in .*UTKFace; .* contains crop_part1.tgz, for --dataset"):
        find_dataset("UTKFace", tmp_path)


@pytest.mark.parametrize("damage", ["cut", "flipped", "no archive", "link", "up", "locked"])
@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_damaged_or_unsafe_zip_or_tar_is_rejected_without_leftovers(tmp_path, suffix, damage):
    archive, noise = tmp_path / f"faces{suffix}", np.random.default_rng(0)
    members = {f"{i}.jpg": noise.bytes(700) for i in range(5)}
    if damage == "up":
        members["../outside.jpg"] = b"1"
    elif damage == "link" and suffix == ".tar":
        members["link"] = special(tarfile.SYMTYPE, "a.jpg")
    pack(archive, members)
    content = bytearray(archive.read_bytes())
    if damage == "cut":
        content = content[: 3 * 1024]
    elif damage == "flipped" and suffix == ".zip":  # a tar has no checksum of its content
        content[1000] ^= 1
    elif damage in ("no archive", "flipped"):
        content = b"no archive"
    elif damage == "link" and suffix == ".zip":
        with zipfile.ZipFile(archive, "a") as packed:
            link = zipfile.ZipInfo("link.jpg")
            link.external_attr = 0o120777 << 16
            packed.writestr(link, "0.jpg")
        content = archive.read_bytes()
    elif damage == "locked":
        if suffix == ".tar":
            pytest.skip("a tar has no password")
        content[content.rindex(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    with pytest.raises(InputError, match=f"faces\\{suffix} cannot be unpacked"):
        find_dataset("faces", tmp_path)
    assert files_in(tmp_path) == [f"faces{suffix}"]


def test_folder_with_faces_is_not_overwritten_by_its_archive(tmp_path):
    pack(tmp_path / "faces.tar.gz", {"a.jpg": b"1"})
    make_image(tmp_path / "faces/mine.jpg")
    find_dataset("faces", tmp_path)
    assert files_in(tmp_path / "faces") == ["mine.jpg"]


def test_killed_unpacking_restarts(tmp_path, monkeypatch):
    pack(tmp_path / "faces.tar.gz", {f"{i}.jpg": b"1" for i in range(5)})
    extract = tarfile.TarFile.extract

    def killed(self, member, *args, **kwargs):
        if member.name == "3.jpg":
            raise KeyboardInterrupt
        extract(self, member, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extract", killed)
        patch.setattr(dataset.shutil, "rmtree", lambda *_, **__: None)  # as after kill -9
        with pytest.raises(KeyboardInterrupt):
            find_dataset("faces", tmp_path)
    assert not (tmp_path / "faces").exists() and len(files_in(tmp_path)) == 4
    find_dataset("faces", tmp_path)
    assert files_in(tmp_path) == ["faces.tar.gz", *(f"faces/{i}.jpg" for i in range(5))]


@pytest.mark.parametrize(
    "member",
    [
        {"../outside.jpg": b"1"},
        {"faces/../../outside.jpg": b"1"},
        {"link": special(tarfile.SYMTYPE, "../../outside.jpg")},
        {"link": special(tarfile.SYMTYPE, "a.jpg")},
        {"link": special(tarfile.LNKTYPE, "a.jpg")},
        {"device": special(tarfile.CHRTYPE)},
        {"device": special(tarfile.BLKTYPE)},
        {"pipe": special(tarfile.FIFOTYPE)},
    ],
    ids=["up", "down and up", "link out", "link", "hard link", "character device", "block device", "pipe"],
)
def test_unsafe_archive_is_rejected_without_leftovers(tmp_path, member):
    data = tmp_path / "data"
    pack(data / "faces.tar.gz", {"faces/a.jpg": b"1", **member})
    with pytest.raises(InputError, match=r"faces\.tar\.gz cannot be unpacked"):
        find_dataset("faces", data)
    assert files_in(tmp_path) == ["data/faces.tar.gz"] and not (data / "faces").exists()


def test_absolute_path_in_an_archive_is_made_relative(tmp_path):
    data = tmp_path / "data"
    pack(data / "faces.tar.gz", {str(tmp_path / "outside.jpg"): b"1"})
    find_dataset("faces", data)
    assert not (tmp_path / "outside.jpg").exists()


def test_damaged_archive_is_rejected_without_leftovers(tmp_path):
    archive, noise = tmp_path / "faces.tar.gz", np.random.default_rng(0)
    pack(archive, {f"{i}.jpg": noise.bytes(700) for i in range(5)})
    whole = archive.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content in [bytes(flipped), b"no archive", *(whole[:length] for length in range(0, len(whole), 40))]:
        archive.write_bytes(content)
        with pytest.raises(InputError, match=r"faces\.tar\.gz cannot be unpacked"):
            find_dataset("faces", tmp_path)
        assert files_in(tmp_path) == ["faces.tar.gz"]


@pytest.mark.parametrize("made", [False, True])
def test_missing_data_set_is_rejected_with_instructions(tmp_path, made):
    if made:
        (tmp_path / "UTKFace").mkdir()
    with pytest.raises(InputError) as error:
        find_dataset("UTKFace", tmp_path)
    for part in [str(tmp_path / "UTKFace"), "https://susanqq.github.io/UTKFace/", "--dataset demo"]:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_modules_do_not_import_tensorflow():
    modules = "alignment, batches, dataset, files, images, labels, figures"
    code = f"import sys; from support import {modules}; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
