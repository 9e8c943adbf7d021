"""Age bins and label vectors; labels from file names, folder names and tables."""

import re
from pathlib import Path

import numpy as np
import pytest

from support import InputError
from support.dataset import describe, list_faces
from support.labels import (
    AGE_BOUNDS,
    FEMALE,
    MALE,
    UNKNOWN,
    AgeBins,
    gender_labels,
    gender_numbers,
    parse_age,
    parse_folders,
    parse_name,
)
from tests.conftest import make_image


def test_default_bins_equal_those_of_the_paper():
    bins = AgeBins()
    assert bins.bounds == AGE_BOUNDS and len(bins) == 10
    assert bins.names == ["0-5", "6-10", "11-15", "16-20", "21-30", "31-40", "41-50", "51-60", "61-70", "71+"]
    assert bins.centres == [2.5, 8, 13, 18, 25.5, 35.5, 45.5, 55.5, 65.5, 78]


def test_every_age_is_in_the_bin_with_its_range():
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


def test_custom_bounds_define_the_bins():
    bins = AgeBins((30,))
    assert bins.names == ["0-30", "31+"] and bins.centres == [15, 38]


@pytest.mark.parametrize("bounds", [(), (0,), (120,), (5, 5), (10, 5), (5, 130), (-3, 5)])
def test_bounds_that_do_not_increase_are_rejected(bounds):
    with pytest.raises(InputError, match="age bounds"):
        AgeBins(bounds)


def test_gender_labels_of_an_unknown_gender_are_zero():
    labels = gender_labels([MALE, FEMALE, UNKNOWN])
    assert labels.dtype == np.float32 and labels.tolist() == [[1, -1], [-1, 1], [0, 0]]


@pytest.mark.parametrize("gender", [2, "girl", None, "femal", 0.5])
def test_invalid_genders_are_rejected(gender):
    with pytest.raises(InputError, match=f"{gender!r} is not a gender: give 0 or 'male', 1 or 'female'"):
        gender_labels([gender])


def test_genders_may_be_words():
    assert gender_numbers("female") == gender_numbers(["Female"]) == gender_numbers(1) == [FEMALE]
    assert np.array_equal(gender_labels(["male", "f", "unknown"]), gender_labels([MALE, FEMALE, UNKNOWN]))


@pytest.mark.parametrize(
    ("name", "label"),
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
        ("001A02.JPG.png", ("FG-NET", 2, UNKNOWN)),
        ("wiki_crop/83/15983_1994-05-05_2010.jpg", ("IMDB-WIKI", 16, UNKNOWN)),
        ("nm0000001_rm124825600_1899-7-10_1968.jpg", ("IMDB-WIKI", 68, UNKNOWN)),
        ("10049200_1891-00-00_1958.jpg", ("IMDB-WIKI", 67, UNKNOWN)),
        ("00001A25.jpg", ("All-Age-Faces", 25, FEMALE)),
        ("07381A02.jpg", ("All-Age-Faces", 2, MALE)),
        ("AFAD-Full/26/112/1018-0.jpg", ("AFAD", 26, FEMALE)),
        ("18/111/94-0.jpg", ("AFAD", 18, MALE)),
        ("18/113/94-0.jpg", None),
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
def test_names_are_parsed_by_convention(name, label):
    assert parse_name(name) == label


def write_table(folder: Path, text: str | bytes) -> None:
    for name in ["a.jpg", "sub/b.jpg", "001A02.JPG"]:
        make_image(folder / name)
    (folder / "labels.csv").write_bytes(text.encode() if isinstance(text, str) else text)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("byte_order_mark", ["", "\ufeff"])
def test_table_labels_any_file_and_adds_missing_genders(tmp_path, newline, byte_order_mark):
    rows = ["file,age,gender", "a.jpg,30,Female", r"sub\b.jpg, 41 ,0", "", '"001A02.JPG",3,m']
    write_table(tmp_path, byte_order_mark + newline.join(rows))
    listing = list_faces(tmp_path)
    assert [face[1:] for face in listing.faces] == [(3, MALE), (30, FEMALE), (41, MALE)]
    assert listing.conventions == {"labels.csv": 3}


@pytest.mark.parametrize(
    ("gender", "read"),
    [("0", MALE), ("1", FEMALE), ("m", MALE), ("F", FEMALE), ("male", MALE), ("FEMALE", FEMALE), ("", UNKNOWN)],
)
def test_genders_in_tables_have_several_spellings(tmp_path, gender, read):
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
        ("file,age,gender\na.jpg,30,m\na.jpg,31,m\n", "line 3: a.jpg has another label in an earlier row"),
        ('file,age,gender\n"a.jpg,30,m\n', "line 2: unexpected end of data"),
        (b"file,age,gender\n\xe9.jpg,30,m\n", ": not in UTF-8"),
    ],
)
def test_invalid_table_is_rejected_with_line_and_reason(tmp_path, text, message):
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
def test_tables_written_by_spreadsheets_are_read(tmp_path, table):
    write_table(tmp_path, table if isinstance(table, bytes) else "\ufeff" + table)
    assert [face[1:] for face in list_faces(tmp_path, True).faces] == [(2, UNKNOWN), (25, FEMALE), (41, FEMALE)]


def test_gender_is_parsed_from_the_name_if_the_table_has_no_such_column(tmp_path):
    make_image(tmp_path / "009055_1M54.JPG")
    write_table(tmp_path, "file,age\n009055_1M54.JPG,55\na.jpg,30\n")
    assert [face[1:] for face in list_faces(tmp_path, True).faces[1:3]] == [(55, MALE), (30, UNKNOWN)]


def test_age_ranges_become_their_midpoint_and_are_reported(tmp_path):
    write_table(tmp_path, 'file,age,gender\na.jpg,"(25, 32)",f\nsub/b.jpg,(60, 100),m\n001A02.JPG,4-6,m\n')
    listing = list_faces(tmp_path)
    assert [face[1:] for face in listing.faces] == [(5, MALE), (28, FEMALE), (80, MALE)]
    assert "labels.csv, the middle of a range of ages: 3 faces" in describe(listing, AgeBins())


def test_rows_without_an_image_are_reported_and_skipped(tmp_path):
    write_table(tmp_path, "file,age,gender\nz.jpg,30,m\na.jpg,30,m\n../a.jpg,3,m\n")
    listing = list_faces(tmp_path, True)
    assert [face[1:] for face in listing.faces] == [(2, UNKNOWN), (30, MALE)]
    line = "2, a row of labels.csv without an image, first ../a.jpg (line 4), z.jpg (line 2)"
    assert line in describe(listing, AgeBins())


def test_accents_match_in_both_unicode_forms(tmp_path):
    make_image(tmp_path / "Zoe\u0308.jpg")
    write_table(tmp_path, "file,age,gender\nZo\u00eb.jpg,30,f\n")
    assert (30, FEMALE) in [face[1:] for face in list_faces(tmp_path, True).faces]


def test_all_invalid_rows_are_reported_at_once(tmp_path):
    rows = ["file,age,gender", "a.jpg,old,m", "sub/b.jpg,30,m", "001A02.JPG,3,x", "a.jpg,3", *["b.jpg,?,m"] * 20]
    write_table(tmp_path, "\n".join(rows))
    with pytest.raises(InputError) as error:
        list_faces(tmp_path, True)
    for part in ("23 wrong rows: line 2: age old", "; line 4: gender x", "; line 5: 2 columns", "; and 13 more"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_folders_named_by_age_label_images_without_other_labels(tmp_path):
    for name in ["1/a.jpg", "female/(25, 32)/b.jpg", "30/male/c.jpg", "age 0/d.jpg", "60+/x.jpg", "e.jpg"]:
        make_image(tmp_path / name)
    listing = list_faces(tmp_path, True)
    labels = [(1, UNKNOWN), (30, MALE), (68, UNKNOWN), (0, UNKNOWN), (28, FEMALE)]
    assert [face[1:] for face in listing.faces] == labels
    assert listing.conventions == {
        "folders named by age": 3,
        "folders named by age, the middle of a range of ages": 2,
    }
    assert listing.skipped == [("e.jpg", "its name fits no convention")]
    make_image(tmp_path / "30/25_1_3_20170116174525125.jpg")  # labels in names take precedence over all folders
    assert [face[1:] for face in list_faces(tmp_path, True).faces] == [(25, FEMALE)]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["male/001/x.jpg", "male/017/x.jpg"], "001 is zero-padded"),
        ([f"{i:02}/x.jpg" for i in range(100)], "00 is zero-padded"),
        ([f"{i}/x.jpg" for i in range(100)], "they count from 0 to 99 without a gap"),
        (["1/x.jpg", "2/x.jpg"], "they count from 1 to 2 without a gap"),
        (["30/x.jpg", "1734/x.jpg"], "1734 is above 120"),
        (["26/113/x.jpg"], "26/113/x.jpg is in two of them"),
        (["age26/7/x.jpg"], "age26/7/x.jpg is in two of them"),
    ],
)
def test_folder_numbers_that_are_not_ages_are_rejected_with_the_reason(names, reason):
    with pytest.raises(InputError, match=f"do not look like ages, {re.escape(reason)}: .*labels.csv.* age25"):
        parse_folders(names)


def test_imdb_wiki_photos_with_impossible_dates_are_skipped(tmp_path):
    for name in ["00/10_1994-05-05_2010.jpg", "00/11_2020-05-05_2010.jpg", "01/12_1800-05-05_2010.jpg"]:
        make_image(tmp_path / name)
    listing = list_faces(tmp_path, True)
    assert [face.age for face in listing.faces] == [16]
    assert [reason for _, reason in listing.skipped] == ["age below 0", "age above 120"]


@pytest.mark.parametrize(
    ("text", "age"),
    [("0-2", 1), ("more than 70", 78), ("60+", 68), (">65", 73), (">= 65", 73), ("80 and over", 88), ("45 years", 45)],
)
def test_ages_are_parsed_in_every_notation(text, age):
    assert parse_age(text)[0] == age


def test_appa_real_table_is_read(tmp_path):
    for name in ("train/000001.jpg", "valid/000002.jpg", "test/000003.jpg"):
        make_image(tmp_path / name)
    (tmp_path / "labels.csv").write_text(
        "file_name,num_ratings,apparent_age_avg,apparent_age_std,real_age\n"
        "000001.jpg,36,5.05,1.2,4\n000002.jpg,38,23.8,2.1,18\n000003.jpg,38,23.8,2.1,20\n"
    )
    assert [face.age for face in list_faces(tmp_path, True).faces] == [20, 4, 18]


@pytest.mark.parametrize(
    "row",
    ["sub/B.JPG", "sub/b", "b", "b.png", "/home/me/set/sub/b.jpg", r"C:\me\sub\b.jpg", "set/sub/b.jpg", "./sub/b.jpg"],
)
def test_rows_match_images_with_other_paths_suffixes_or_case(tmp_path, row):
    write_table(tmp_path / "set", f"file,age,gender\n{row},41,f\n")
    assert [face[1:] for face in list_faces(tmp_path / "set", True).faces] == [(2, UNKNOWN), (41, FEMALE)]


@pytest.mark.parametrize("row", ["other/b.jpg", "c"])
def test_rows_do_not_match_other_folders_or_several_candidates(tmp_path, row):
    for name in ("sub/c.jpg", "c.png"):
        make_image(tmp_path / name)
    write_table(tmp_path, f"file,age,gender\na.jpg,30,f\n{row},41,f\n")
    assert (41, FEMALE) not in [face[1:] for face in list_faces(tmp_path, True).faces]


def test_table_that_matches_no_image_is_rejected(tmp_path):
    write_table(tmp_path, "file,age,gender\n" + "".join(f"p{i},30,f\n" for i in range(1, 31)))
    with pytest.raises(InputError, match="labels.csv: 30 rows name no image, such as p1: .* such as 001A02.JPG"):
        list_faces(tmp_path, True)
