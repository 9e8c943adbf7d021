"""What a data set may be called, labelled, packed and made of, and how its faces are drawn, epoch by epoch."""

import io
import re
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main
from ops import load_image
from support import archives
from support.batches import BatchLoader, epoch_order, read_parts, split
from support.dataset import Face, describe, doubt_alignment, find_dataset, list_faces, parse_name
from support.errors import InputError
from support.images import read_image
from support.labels import AGE_BOUNDS, FEMALE, MALE, UNKNOWN, AgeBins, gender_labels, gender_numbers
from tests.conftest import refuse_to_look_into

ROOT = Path(main.__file__).parent
SMALL = {"size_batch": 4, "num_z_channels": 5, "seed": 7}
read = partial(load_image, size_image=8, channels=3)


def draw(path: Path, shade: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (shade % 256, 80, 90)).save(path)
    return path


def draw_faces(folder: Path, count: int, age_of=lambda i: i % 100) -> list[Face]:
    """Faces under UTKFace names whose red tells which is which: 2 * i."""
    for i in range(count):
        draw(folder / f"{age_of(i)}_{i % 2}_0_2017010100000{i:04d}.png", 2 * i)
    return list_faces(folder).faces


# age bins and labels


def test_default_bins_are_those_of_the_paper():
    bins = AgeBins()
    assert bins.bounds == AGE_BOUNDS and len(bins) == 10
    assert bins.names == ["0-5", "6-10", "11-15", "16-20", "21-30", "31-40", "41-50", "51-60", "61-70", "71+"]
    assert bins.centres == [2.5, 8, 13, 18, 25.5, 35.5, 45.5, 55.5, 65.5, 78]


def test_every_age_falls_into_the_bin_whose_name_holds_it():
    bins = AgeBins()
    for age in range(121):
        low, _, high = bins.names[bins.index([age])[0]].rstrip("+").partition("-")
        assert int(low) <= age <= int(high or 120)


def test_one_hot_labels_are_plus_and_minus_one():
    labels = AgeBins((20, 40)).one_hot([20, 21, 41])
    assert labels.dtype == np.float32
    assert labels.tolist() == [[1, -1, -1], [-1, 1, -1], [-1, -1, 1]]


def test_interpolated_labels_equal_one_hots_at_centres():
    bins = AgeBins()
    assert np.allclose(bins.interpolated(bins.centres), np.eye(10) * 2 - 1)
    assert np.allclose(bins.interpolated([0, 120]), bins.interpolated([2.5, 78]))
    assert np.allclose(bins.interpolated([30.5])[0, [3, 4, 5, 6]], [-1, 0, 0, -1])
    assert bins.interpolated([1.0]).dtype == np.float32


def test_other_bounds_make_other_bins():
    bins = AgeBins((30,))
    assert bins.names == ["0-30", "31+"] and bins.centres == [15, 38]


@pytest.mark.parametrize("bounds", [(), (0,), (120,), (5, 5), (10, 5), (5, 130), (-3, 5)])
def test_bounds_that_do_not_rise_within_the_ages_are_refused(bounds):
    with pytest.raises(InputError, match="age bounds"):
        AgeBins(bounds)


def test_gender_labels_leave_an_unknown_gender_at_zero():
    labels = gender_labels([MALE, FEMALE, UNKNOWN])
    assert labels.dtype == np.float32 and labels.tolist() == [[1, -1], [-1, 1], [0, 0]]


# names


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("25_1_3_20170116174525125.jpg.chip.jpg", ("UTKFace", 25, FEMALE)),
        ("100_0_0_20170112213500903.jpg", ("UTKFace", 100, MALE)),
        ("14_0_0_2017011022340900.jpg.chip.jpg", ("UTKFace", 14, MALE)),
        ("55_0_0_20170116232725357jpg.chip.jpg", ("UTKFace", 55, MALE)),
        ("24_0_1_20170116220224657 .jpg.chip.jpg", ("UTKFace", 24, MALE)),
        ("001A02.JPG", ("FG-NET", 2, UNKNOWN)),
        ("082a16.jpg", ("FG-NET", 16, UNKNOWN)),
        ("010A07a.jpg", ("FG-NET", 7, UNKNOWN)),
        ("010A07B.JPG", ("FG-NET", 7, UNKNOWN)),
        ("009055_1M54.JPG", ("MORPH", 54, MALE)),
        ("341532_00F21.jpg", ("MORPH", 21, FEMALE)),
        ("009055_12m33.png", ("MORPH", 33, MALE)),
        ("53_Robin_Williams_0001.jpg", ("CACD", 53, UNKNOWN)),
        ("14_Freddie_Highmore_Jr._0012.jpg", ("CACD", 14, UNKNOWN)),
        ("30_Zoë_0003.png", ("CACD", 30, UNKNOWN)),
        ("38_50_Cent_0004.jpg", ("CACD", 38, UNKNOWN)),
        ("deep/er/53_Robin_Williams_0001.jpg", ("CACD", 53, UNKNOWN)),
        ("0_MariaCallas_35_f.jpg", ("AgeDB", 35, FEMALE)),
        ("10004_ArmandAssante_101_m.jpg", ("AgeDB", 101, MALE)),
        ("39_1_20170116174525125.jpg.chip.jpg", None),
        ("61_1_20170109142408075.jpg.chip.jpg", None),
        ("61_1_20170109150557335.jpg.chip.jpg", None),
        ("25_2_3_20170116174525125.jpg", None),
        ("25_1_7_20170116174525125.jpg", None),
        ("001A2.JPG", None),
        ("009055_1X54.JPG", None),
        ("Robin_Williams_0001.jpg", None),
        ("53_Robin_Williams.jpg", None),
        ("holiday.jpg", None),
    ],
)
def test_a_name_says_convention_age_and_gender(name, said):
    assert parse_name(name) == said


def test_a_mixed_folder_is_read_by_each_files_own_convention(tmp_path):
    for name in [
        "b/25_1_3_20170116174525125.jpg",
        "001A02.JPG",
        "a/deep/009055_1M54.Jpeg",
        "53_Robin_Williams_0001.WEBP",
        "holiday.tiff",
        "131_0_0_20170116174525125.bmp",
    ]:
        draw(tmp_path / name)
    (tmp_path / "readme.txt").touch()
    (tmp_path / "001A02.pts").touch()
    draw(tmp_path / ".hidden/25_1_3_20170116174525125.jpg")
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


def test_faces_without_a_gender_are_refused_with_the_two_ways_out(tmp_path):
    draw(tmp_path / "001A02.JPG")
    draw(tmp_path / "25_1_3_20170116174525125.jpg")
    with pytest.raises(
        InputError, match=r"1 of 2 faces have no gender, first 001A02.JPG.*labels\.csv.*--unknown_gender"
    ):
        list_faces(tmp_path)
    assert [face.gender for face in list_faces(tmp_path, unknown_gender=True).faces] == [UNKNOWN, FEMALE]


@pytest.mark.parametrize("names", [[], ["holiday.jpg", "a.png"]])
def test_a_folder_without_a_labelled_face_is_refused(tmp_path, names):
    for name in names:
        draw(tmp_path / name)
    with pytest.raises(InputError, match="no labelled faces in .*UTKFace, FG-NET, MORPH, CACD, AgeDB"):
        list_faces(tmp_path)


def test_a_folder_that_cannot_be_looked_into_is_named_and_the_others_are_taken(tmp_path, monkeypatch):
    draw(tmp_path / "a/25_1_3_20170116174525125.jpg")
    (tmp_path / "a/lost+found").mkdir()
    refuse_to_look_into(monkeypatch, "lost+found", "closed")
    listing = list_faces(tmp_path)
    assert len(listing.faces) == 1
    assert listing.skipped == [("a/lost+found/", "a folder: Permission denied")]
    (tmp_path / "closed").mkdir()
    with pytest.raises(InputError, match="closed: Permission denied"):
        list_faces(tmp_path / "closed")


def test_a_part_of_which_no_face_can_be_read_does_not_end_a_measurement(tmp_path, capsys):
    faces = draw_faces(tmp_path, 51)
    Path(faces[-1].path).write_bytes(b"")  # alone in the last part
    parts = list(read_parts(faces, read, "Reading"))
    assert [len(images) for images, *_ in parts] == [50] and "empty file" in capsys.readouterr().out
    with pytest.raises(InputError, match="none of 1 faces can be read"):
        list(read_parts(faces[-1:], read, "Reading"))


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="gone: "):
        list_faces(tmp_path / "gone")


# labels.csv


def write_table(folder: Path, text: str | bytes) -> None:
    for name in ["a.jpg", "sub/b.jpg", "001A02.JPG"]:
        draw(folder / name)
    (folder / "labels.csv").write_bytes(text.encode() if isinstance(text, str) else text)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("byte_order_mark", ["", "\ufeff"])
def test_a_table_labels_any_file_and_gives_the_gender_a_name_lacks(tmp_path, newline, byte_order_mark):
    rows = ["file,age,gender", "a.jpg,30,Female", r"sub\b.jpg, 41 ,0", "", '"001A02.JPG",3,m']
    write_table(tmp_path, byte_order_mark + newline.join(rows))
    listing = list_faces(tmp_path)
    assert [face[1:] for face in listing.faces] == [(3, MALE), (30, FEMALE), (41, MALE)]
    assert listing.conventions == {"labels.csv": 3}


@pytest.mark.parametrize(
    ("gender", "read"),
    [("0", MALE), ("1", FEMALE), ("m", MALE), ("F", FEMALE), ("male", MALE), ("FEMALE", FEMALE), ("", UNKNOWN)],
)
def test_a_table_may_write_the_gender_so(tmp_path, gender, read):
    write_table(tmp_path, f"file,age,gender\na.jpg,30,{gender}\n")
    assert list_faces(tmp_path, unknown_gender=True).faces[1][1:] == (30, read)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 0: the columns are , not file,age,gender"),
        ("file,years,gender\n", "line 1: the columns are file,years,gender, not file,age,gender"),
        ("file,age,gender\na.jpg,3\n", "line 2: 2 columns, not file,age,gender"),
        ("file,age,gender\na.jpg,3,m\nc,d.jpg,3,m\n", "line 3: 4 columns"),
        ("file,age,gender\n\na.jpg,121,m\n", "line 3: age 121 is not a whole number within 0-120"),
        ("file,age,gender\na.jpg,-1,m\n", "line 2: age -1 is not"),
        ("file,age,gender\na.jpg,2.5,m\n", "line 2: age 2.5 is not"),
        ("file,age,gender\na.jpg,,m\n", "line 2: age  is not"),
        ("file,age,gender\na.jpg,30,x\n", "line 2: gender x is none of"),
        ("file,age,gender\na.jpg,32-25,m\n", "line 2: age 32-25 is not .* nor a range"),
        ("file,age,gender\na.jpg,30,m\na.jpg,31,m\n", "line 3: a.jpg has a row already"),
        ('file,age,gender\n"a.jpg,30,m\n', "line 2: unexpected end of data"),
        (b"file,age,gender\n\xe9.jpg,30,m\n", ": not in UTF-8"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line_and_the_reason(tmp_path, text, message):
    write_table(tmp_path, text)
    with pytest.raises(InputError, match=f"labels.csv.*{message}"):
        list_faces(tmp_path, unknown_gender=True)


EXCEL = "Name;Sex;Age;Photo;File\r\nAda;f;25,0;;a.jpg\r\nBob;1.0;41.0;;sub\\b.jpg\r\n;;;;\r\n"


@pytest.mark.parametrize(
    "table",
    [
        EXCEL,
        "sep=;\r\n" + EXCEL,
        EXCEL.replace(";", "\t"),
        (EXCEL + ";;;;;;\r\n").replace("25,0", "25.0").encode("utf-16"),
        "gender,image,age\nF,./a.jpg,25.\nWoman,sub/b.jpg,41\n",
    ],
    ids=["semicolons", "sep", "tabs", "utf-16", "another order"],
)
def test_a_table_is_read_as_spreadsheets_write_it(tmp_path, table):
    write_table(tmp_path, table if isinstance(table, bytes) else "\ufeff" + table)
    assert [face[1:] for face in list_faces(tmp_path, True).faces] == [(2, UNKNOWN), (25, FEMALE), (41, FEMALE)]


def test_a_table_without_a_column_for_gender_leaves_it_to_the_name(tmp_path):
    draw(tmp_path / "009055_1M54.JPG")
    write_table(tmp_path, "file,age\n009055_1M54.JPG,55\na.jpg,30\n")
    assert [face[1:] for face in list_faces(tmp_path, True).faces[1:3]] == [(55, MALE), (30, UNKNOWN)]


def test_ranges_of_ages_become_their_middle_and_it_is_said(tmp_path):
    write_table(tmp_path, 'file,age,gender\na.jpg,"(25, 32)",f\nsub/b.jpg,(60, 100),m\n001A02.JPG,4-6,m\n')
    listing = list_faces(tmp_path)
    assert [face[1:] for face in listing.faces] == [(5, MALE), (28, FEMALE), (80, MALE)]
    assert "labels.csv, the middle of a range of ages: 3 faces" in describe(listing, AgeBins())


def test_rows_for_pictures_that_are_not_there_are_said_and_the_others_are_read(tmp_path):
    write_table(tmp_path, "file,age,gender\nz.jpg,30,m\na.jpg,30,m\n../a.jpg,3,m\n")
    listing = list_faces(tmp_path, True)
    assert [face[1:] for face in listing.faces] == [(2, UNKNOWN), (30, MALE)]
    said = "2, a row of labels.csv without a picture, first ../a.jpg (line 4), z.jpg (line 2)"
    assert said in describe(listing, AgeBins())


def test_an_accent_may_be_written_in_two_ways(tmp_path):
    draw(tmp_path / "Zoe\u0308.jpg")
    write_table(tmp_path, "file,age,gender\nZo\u00eb.jpg,30,f\n")
    assert (30, FEMALE) in [face[1:] for face in list_faces(tmp_path, True).faces]


def test_all_rows_that_are_wrong_are_named_at_once(tmp_path):
    rows = ["file,age,gender", "a.jpg,old,m", "sub/b.jpg,30,m", "001A02.JPG,3,x", "a.jpg,3", *["b.jpg,?,m"] * 20]
    write_table(tmp_path, "\n".join(rows))
    with pytest.raises(InputError) as error:
        list_faces(tmp_path, True)
    for said in ("23 rows are wrong: line 2: age old", "; line 4: gender x", "; line 5: 2 columns", "; and 13 more"):
        assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_folders_named_by_age_label_a_set_of_which_nothing_else_does(tmp_path):
    for name in ["001/a.jpg", "female/(25, 32)/b.jpg", "30/male/c.jpg", "130/d.jpg", "e.jpg"]:
        draw(tmp_path / name)
    listing = list_faces(tmp_path, True)
    assert [face[1:] for face in listing.faces] == [(1, UNKNOWN), (30, MALE), (28, FEMALE)]
    assert listing.conventions == {
        "folders named by age": 2,
        "folders named by age, the middle of a range of ages": 1,
    }
    assert listing.skipped == [("130/d.jpg", "age above 120"), ("e.jpg", "its name fits no convention")]
    draw(tmp_path / "30/25_1_3_20170116174525125.jpg")  # what is named as faces are, is labelled by that alone
    assert [face[1:] for face in list_faces(tmp_path, True).faces] == [(25, FEMALE)]


# bad pictures, the table of what was found


def test_bad_pictures_are_skipped_up_to_one_in_ten(tmp_path):
    faces = draw_faces(tmp_path, 20)
    bad = [Path(face.path) for face in faces[:3]]
    bad[0].write_bytes(b"")
    bad[1].write_text("no picture")
    listing = list_faces(tmp_path)
    assert len(listing.faces) == 18
    assert listing.skipped == [(bad[0].name, "empty file"), (bad[1].name, "not a picture")]
    bad[2].write_bytes(b"")
    with pytest.raises(InputError, match=f"3 of 20 pictures cannot be read.*{bad[0].name}: empty file") as error:
        list_faces(tmp_path)
    assert "\n" not in str(error.value)


def test_description_counts_faces_and_reasons(tmp_path):
    for name in ["25_1_3_20170116174525125.jpg", "28_1_3_20170116174525125.jpg", "009055_1M54.JPG", "x.jpg", "y.jpg"]:
        draw(tmp_path / name)
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


# archives


def pack(archive: Path, members: dict[str, bytes | tarfile.TarInfo]) -> None:
    """An archive of files (content by name) or, in a tar, of members as they are."""
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


def held(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("suffix", archives.SUFFIXES)
@pytest.mark.parametrize("top", ["", "faces/", "./", "CACD2000/"])
def test_archive_of_a_folder_or_files_is_unpacked(tmp_path, top, suffix):
    data = tmp_path / "data"
    pack(data / f"faces{suffix}", {f"{top}a.jpg": b"1", f"{top}sub/b.jpg": b"2"})
    assert find_dataset("faces", data) == data / "faces"
    assert held(data) == sorted([f"faces{suffix}", "faces/a.jpg", "faces/sub/b.jpg"])


def test_what_macos_adds_to_an_archive_is_not_a_folder_of_the_set(tmp_path):
    pack(tmp_path / "faces.zip", {"mine/a.jpg": b"1", "__MACOSX/mine/._a.jpg": b"2"})
    find_dataset("faces", tmp_path)
    assert held(tmp_path / "faces") == ["a.jpg"]


def test_a_set_under_another_name_is_said(tmp_path):
    pack(tmp_path / "crop_part1.tgz", {"a.jpg": b"1"})
    with pytest.raises(InputError, match=r"no faces in .*UTKFace; .* holds crop_part1.tgz, for --dataset crop_part1"):
        find_dataset("UTKFace", tmp_path)


@pytest.mark.parametrize("damage", ["cut", "flipped", "no archive", "link", "up", "locked"])
@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_a_zip_or_tar_that_cannot_be_trusted_leaves_nothing_behind(tmp_path, suffix, damage):
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
    elif damage == "flipped" and suffix == ".zip":  # a tar has no checksum of what it holds
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
    assert held(tmp_path) == [f"faces{suffix}"]


def test_faces_beside_their_archive_are_left_as_they_are(tmp_path):
    pack(tmp_path / "faces.tar.gz", {"a.jpg": b"1"})
    draw(tmp_path / "faces/mine.jpg")
    find_dataset("faces", tmp_path)
    assert held(tmp_path / "faces") == ["mine.jpg"]


def test_a_killed_unpacking_is_done_again(tmp_path, monkeypatch):
    pack(tmp_path / "faces.tar.gz", {f"{i}.jpg": b"1" for i in range(5)})
    extract = tarfile.TarFile.extract

    def killed(self, member, *args, **kwargs):
        if member.name == "3.jpg":
            raise KeyboardInterrupt
        extract(self, member, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extract", killed)
        patch.setattr(archives.shutil, "rmtree", lambda *_, **__: None)  # kill -9 leaves no time to clean
        with pytest.raises(KeyboardInterrupt):
            find_dataset("faces", tmp_path)
    assert not (tmp_path / "faces").exists() and len(held(tmp_path)) == 4
    find_dataset("faces", tmp_path)
    assert held(tmp_path) == ["faces.tar.gz", *(f"faces/{i}.jpg" for i in range(5))]


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
def test_a_hostile_archive_leaves_nothing_behind(tmp_path, member):
    data = tmp_path / "data"
    pack(data / "faces.tar.gz", {"faces/a.jpg": b"1", **member})
    with pytest.raises(InputError, match=r"faces\.tar\.gz cannot be unpacked"):
        find_dataset("faces", data)
    assert held(tmp_path) == ["data/faces.tar.gz"] and [path.name for path in data.iterdir()] == ["faces.tar.gz"]


def test_an_absolute_path_in_an_archive_stays_inside(tmp_path):
    data = tmp_path / "data"
    pack(data / "faces.tar.gz", {str(tmp_path / "outside.jpg"): b"1"})
    find_dataset("faces", data)
    assert not (tmp_path / "outside.jpg").exists()


def test_a_damaged_archive_is_named_and_leaves_nothing_behind(tmp_path):
    archive, noise = tmp_path / "faces.tar.gz", np.random.default_rng(0)
    pack(archive, {f"{i}.jpg": noise.bytes(700) for i in range(5)})
    whole = archive.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content in [bytes(flipped), b"no archive", *(whole[:length] for length in range(0, len(whole), 40))]:
        archive.write_bytes(content)
        with pytest.raises(InputError, match=r"faces\.tar\.gz cannot be unpacked"):
            find_dataset("faces", tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["faces.tar.gz"]


@pytest.mark.parametrize("made", [False, True])
def test_absent_set_says_where_faces_go(tmp_path, made):
    if made:
        (tmp_path / "UTKFace").mkdir()
    with pytest.raises(InputError) as error:
        find_dataset("UTKFace", tmp_path)
    for said in [str(tmp_path / "UTKFace"), "https://susanqq.github.io/UTKFace/", "--dataset demo"]:
        assert said in str(error.value)
    assert "\n" not in str(error.value)


# drawing faces, epoch by epoch


def batches(faces: list[Face], epoch=1, first=0, step=0, load=read, **options: object) -> list[tuple[np.ndarray, ...]]:
    return list(BatchLoader(faces, AgeBins(), load, **SMALL | options).of(epoch, first, step))


def reds(drawn: list[tuple[np.ndarray, ...]]) -> np.ndarray:
    """Which faces were drawn, [batches, B]."""
    return np.stack([batch[0][:, 0, 0, 0] for batch in drawn])


def equal(some: list[tuple[np.ndarray, ...]], others: list[tuple[np.ndarray, ...]]) -> bool:
    return len(some) == len(others) and all(
        np.array_equal(a, b) for one, other in zip(some, others, strict=True) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize(("count", "held_out"), [(1, 1), (9, 1), (25, 2), (1000, 100), (5000, 100)])
def test_held_out_is_a_tenth_from_1_to_100(count, held_out):
    faces = [Face(str(i), 1, MALE) for i in range(count)]
    training, held = split(faces, 2017)
    assert len(held) == held_out and sorted(training + held) == sorted(faces)
    assert split(faces, 2017) == (training, held)
    assert count < 9 or split(faces, 2018) != (training, held)


def test_a_single_face_is_refused_with_what_can_be_done():
    with pytest.raises(InputError, match="none is left to train on: put more into the data set"):
        batches(split([Face("a.jpg", 1, MALE)], 2017)[0])


@pytest.mark.parametrize("gender", [2, "girl", None, "femal", 0.5])
def test_what_is_no_gender_is_refused(gender):
    with pytest.raises(InputError, match=f"{gender!r} is no gender: give 0 or 'male', 1 or 'female'"):
        gender_labels([gender])


def test_genders_may_be_words():
    assert gender_numbers("female") == gender_numbers(["Female"]) == gender_numbers(1) == [FEMALE]
    assert np.array_equal(gender_labels(["male", "f", "unknown"]), gender_labels([MALE, FEMALE, UNKNOWN]))


def test_batch_holds_what_belongs_together(tmp_path):
    faces = draw_faces(tmp_path, 11)
    by_red = {2 * int(face.path[-8:-4]): face for face in faces}
    drawn = batches(faces)
    assert len(drawn) == 2  # the last short one is dropped
    for images, ages, genders, z_prior in drawn:
        assert images.shape == (4, 8, 8, 3) and images.dtype == np.uint8
        chosen = [by_red[red] for red in images[:, 0, 0, 0]]
        assert np.array_equal(ages, AgeBins().one_hot([face.age for face in chosen]))
        assert np.array_equal(genders, gender_labels([face.gender for face in chosen]))
        assert z_prior.shape == (4, 5) and z_prior.dtype == np.float32 and np.abs(z_prior).max() <= 1
    assert len(np.unique(reds(drawn))) == 8


def test_order_and_prior_are_fixed_by_the_seed(tmp_path):
    faces = draw_faces(tmp_path, 40)
    drawn = batches(faces)
    assert equal(drawn, batches(faces))
    assert equal(drawn[3:], batches(faces, first=3, step=3))
    for other in ({"epoch": 2}, {"epoch": -9}, {"seed": 8}):
        assert not np.array_equal(reds(drawn), reds(batches(faces, **other)))
    later = batches(faces, epoch=2, step=5)
    assert np.array_equal(later[0][3], drawn[5][3]) and not np.array_equal(later[0][3], drawn[0][3])
    assert not np.array_equal(drawn[0][3], batches(faces, seed=8)[0][3])


def test_grey_pictures_have_one_channel(tmp_path):
    assert batches(draw_faces(tmp_path, 4), load=partial(load_image, size_image=8, channels=1))[0][0].shape == (
        4,
        8,
        8,
        1,
    )


def test_workers_share_each_batch(tmp_path):
    faces = draw_faces(tmp_path, 20)
    whole = batches(faces)
    parts = [batches(faces, rank=rank, world_size=2) for rank in range(2)]
    joined = [tuple(np.concatenate(pair) for pair in zip(*both, strict=True)) for both in zip(*parts, strict=True)]
    assert equal(whole, joined)


def test_balance_draws_every_bin_equally():
    ages = [3] * 300 + [25] * 90 + [80] * 10
    faces = [Face(str(i), age, MALE) for i, age in enumerate(ages)]
    order = epoch_order(faces, AgeBins(), epoch=1, seed=7, balance=True)
    drawn = Counter(ages[i] for i in order)
    assert len(order) == len(faces) and max(drawn.values()) - min(drawn.values()) <= 3
    assert max(Counter(order[np.array(ages)[order] == 25]).values()) == 2  # 134 draws of 90 faces: none thrice
    assert np.array_equal(order, epoch_order(faces, AgeBins(), epoch=1, seed=7, balance=True))
    assert not np.array_equal(order, epoch_order(faces, AgeBins(), epoch=2, seed=7, balance=True))


def test_undecodable_face_is_replaced_and_named(tmp_path):
    faces = draw_faces(tmp_path, 40)
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


def test_more_than_one_in_ten_bad_ends_the_epoch_with_their_names(tmp_path):
    faces = draw_faces(tmp_path, 40)
    for face in faces[:5]:
        Path(face.path).unlink()
    with pytest.raises(InputError, match=r"5 of 40 pictures cannot be read, more than one in ten: .*: no such file"):
        batches(faces)


def test_a_process_that_fails_in_the_middle_of_an_epoch_ends(tmp_path):
    draw_faces(tmp_path, 40)
    code = f"""
from support import dataset
from support.batches import BatchLoader, epoch_order, split
from support.dataset import Face, describe, doubt_alignment, find_dataset, list_faces, parse_name
from support.errors import InputError
from support.images import read_image
from support.labels import AGE_BOUNDS, AgeBins, FEMALE, MALE, UNKNOWN, gender_labels
from tests.test_dataset import AgeBins, BatchLoader, SMALL, list_faces, read
def train():
    for batch in BatchLoader(list_faces({str(tmp_path)!r}).faces, AgeBins(), read, **SMALL).of(1):
        raise MemoryError("the step failed")
train()"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, cwd=ROOT)
    assert ended.returncode == 1 and b"the step failed" in ended.stderr


def test_importing_does_not_import_tensorflow():
    rooms = "align, archives, batches, dataset, draw_faces, errors, files, images, labels, pictures, table"
    code = f"import sys; from support import {rooms}; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def photos(folder, number, share, drawn_folder):
    """A folder of photos, of which this share shows no aligned face, under names of people."""
    folder.mkdir()
    aligned = sorted((Path(main.__file__).parent / "demo/faces").glob("*.png"))
    for index in range(number):
        source = Image.open(aligned[index % len(aligned)]).convert("RGB")
        if index < share * number:  # the face small in the lower corner of a wall
            wall = Image.new("RGB", (400, 300), (200, 190, 170))
            wall.paste(source.resize((90, 90)), (20, 200))
            source = wall
        source.save(folder / f"{20 + index}_{index % 2}_0_20170116174525{index:03d}.jpg")
    return list_faces(folder).faces


def test_a_set_of_photos_that_are_not_aligned_is_doubted_with_share_and_names(tmp_path, drawn_folder):
    said = doubt_alignment(photos(tmp_path / "photos", 20, 0.6, drawn_folder))
    assert re.match(r"1[2-4] of 20 pictures looked at do not look like aligned faces, first ", said)
    assert said.count(".jpg") == 3 and "\n" not in said


def test_aligned_and_drawn_faces_are_not_doubted(tmp_path, drawn_folder, faces):
    assert doubt_alignment(photos(tmp_path / "photos", 20, 0.1, drawn_folder)) == ""
    assert doubt_alignment(faces) == ""


def test_a_path_stands_once_in_an_error(tmp_path, monkeypatch):
    path = tmp_path / "20_0_0_20170116174525000.jpg"
    Image.new("RGB", (9, 9)).save(path)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert str(caught.value) == f"{path}: Permission denied"
