"""Age bins, genders and label vectors; ages and genders from file names, folder names and labels.csv."""

import csv
import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from support import InputError, first_names, printable

AGE_BOUNDS = (5, 10, 15, 20, 30, 40, 50, 60, 70)  # the last age of each bin; the last bin is open
OLDEST = 120  # years
MALE, FEMALE, UNKNOWN = 0, 1, -1
GENDER_NAMES = {MALE: "male", FEMALE: "female", UNKNOWN: "unknown"}
# spellings in file names, folder names and tables; a spreadsheet may write a 0 as 0.0
GENDER_SPELLINGS = {
    **dict.fromkeys(("0", "0.0", "m", "male", "man"), MALE),
    **dict.fromkeys(("1", "1.0", "f", "female", "woman"), FEMALE),
    **dict.fromkeys(("", "u", "unknown", "none", "nan"), UNKNOWN),
}
# Each pattern matches a file name without its suffix, for AFAD a path, and captures the age, or the birth date and the
# year of the photo; and, if the convention has them, the gender and the person.
CONVENTIONS = {
    "UTKFace": r"(?P<age>\d{1,3})_(?P<gender>[01])_[0-4]_\d{8}.*",
    "FG-NET": r"(?P<person>\d{3})a(?P<age>\d{2})[a-z]?",
    "MORPH": r"(?P<person>\d+)_\d+(?P<gender>[mf])(?P<age>\d{2,3})",
    "CACD": r"(?P<age>\d{1,3})_(?P<person>.*[^\W\d_].*)_\d{4}",
    "AgeDB": r"\d+_(?P<person>.*[^\W\d_].*)_(?P<age>\d{1,3})_(?P<gender>[mf])",
    "IMDB-WIKI": r"(?P<person>(?:nm)?\d+)(?:_rm\d+)?_(?P<born>\d{4})-(?P<month>\d\d?)-(?P<day>\d\d?)_(?P<taken>\d{4})",
    "All-Age-Faces": r"(?P<number>\d{5})a(?P<age>\d{2})",
    "AFAD": r"(?:.*/)?(?P<age>\d{2})/(?P<gender>11[12])/\d+-\d+",  # folders of ages and of genders
}
CONVENTIONS = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in CONVENTIONS.items()}
AFAD_GENDERS = {"111": MALE, "112": FEMALE}
IMAGE_SUFFIXES = re.compile(r"(\.(jpe?g|png|bmp|webp|tiff?|gif))+$", re.IGNORECASE)
FOLDERS = "folders named by age"  # the source of the labels where no file name and no table has any
TABLE = "labels.csv"
TABLE_COLUMNS = ["file", "age", "gender"]
# accepted names of the columns, preferred ones first
COLUMN_ALIASES = {
    "file": ("file", "filename", "file name", "file_name", "image", "image_name", "picture", "path"),
    "age": ("age", "real_age"),
    "gender": ("gender", "sex"),
}
DELIMITERS = ",;\t"  # spreadsheets write semicolons in countries with a decimal comma
NAMED_AGE = re.compile(r"ages?[ _-]?(\d{1,3})|(\d{1,3})[ _-]?(?:y|yo|yrs?|years?)(?:[ _-]old)?", re.IGNORECASE)
AGE_RANGE = re.compile(r"[(\[]?\s*(\d{1,3})\s*(?:,|;|-|\N{EN DASH}|_|to)\s*(\d{1,3})\s*[)\]]?", re.IGNORECASE)
OPEN_AGE_RANGE = re.compile(
    r"(?:>=?|\N{GREATER-THAN OR EQUAL TO}|more than|over|above|older than)\s*(\d{1,3})"
    r"|(\d{1,3})\s*(?:\+|(?:and|or) (?:over|above|older|more))",
    re.IGNORECASE,
)
OPEN_YEARS = 8  # years added to the lower limit of an open range, as for the last age bin
FROM_A_RANGE = ", the middle of a range of ages"  # appended to the source of a label
ROWS_SHOWN = 10  # wrong rows listed in an error, beside their total


class Label(NamedTuple):
    """Age in years and gender of an image, and where they come from."""

    source: str  # a name of CONVENTIONS, FOLDERS or TABLE
    age: int
    gender: int  # MALE, FEMALE or UNKNOWN


class AgeBins:
    """Age bins: bounds (5, 10) give 0-5, 6-10 and 11+. Raises InputError unless they increase strictly within 1-119."""

    def __init__(self, bounds: Sequence[int] = AGE_BOUNDS):
        edges = [0, *bounds, OLDEST]
        if len(edges) < 3 or any(low >= high for low, high in zip(edges, edges[1:], strict=False)):
            raise InputError(
                f"age bounds {','.join(map(str, bounds))} must be one or more increasing ages within 1-{OLDEST - 1}, "
                f"such as {','.join(map(str, AGE_BOUNDS))}"
            )
        self.bounds = tuple(bounds)
        lows = [0, *(bound + 1 for bound in bounds)]
        closed = list(zip(lows, self.bounds, strict=False))
        self.names = [f"{low}-{high}" for low, high in closed] + [f"{lows[-1]}+"]
        self.centres = [(low + high) / 2 for low, high in closed] + [self.bounds[-1] + float(OPEN_YEARS)]

    def __len__(self) -> int:
        return len(self.names)

    def index(self, ages: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the bin of each age in years, int [N]."""
        return np.searchsorted(self.bounds, ages)

    def one_hot(self, ages: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the labels used in training: float32 [N, bins], +1 at the age's bin and -1 elsewhere."""
        return np.eye(len(self), dtype=np.float32)[self.index(ages)] * 2 - 1

    def interpolated(self, ages: Sequence[float] | np.ndarray) -> np.ndarray:
        """Return the labels used in aging: float32 [N, bins] in [-1, 1].

        Linear between the bins' centres, where they equal the one-hot labels, and constant outside them. Raises
        InputError for ages that are not numbers.
        """
        try:
            ages = np.asarray(ages, float)
        except (TypeError, ValueError) as error:
            raise InputError(f"ages are numbers of years, not {ages!r}") from error
        if not np.isfinite(ages).all():
            raise InputError("ages are numbers of years, not NaN or infinite")
        weights = [np.interp(ages, self.centres, one_hot) for one_hot in np.eye(len(self))]
        return np.stack(weights, axis=-1).astype(np.float32) * 2 - 1


def gender_numbers(genders: int | str | Sequence[int | str] | np.ndarray) -> list[int]:
    """Return genders, numbers or words such as "female", as a list of MALE, FEMALE and UNKNOWN.

    Raises InputError for any other value.
    """
    values = np.ravel(np.asarray(genders, object)).tolist()
    numbers = [GENDER_SPELLINGS.get(gender.strip().lower()) if isinstance(gender, str) else gender for gender in values]
    for gender, number in zip(values, numbers, strict=True):
        if number not in GENDER_NAMES:
            raise InputError(f"{gender!r} is not a gender: give {MALE} or 'male', {FEMALE} or 'female'")
    return [int(number) for number in numbers]


def gender_labels(genders: Sequence[int | str] | np.ndarray) -> np.ndarray:
    """Return float32 [N, 2]: +1 at the gender and -1 at the other, (0, 0) for UNKNOWN; see `gender_numbers`."""
    genders = np.asarray(gender_numbers(genders), int)[:, np.newaxis]
    return np.where(genders == UNKNOWN, 0, np.where(genders == (MALE, FEMALE), 1, -1)).astype(np.float32)


def _match(name: str) -> tuple[str, dict[str, str]] | None:
    """Return the convention of an image's path and the parts of its name, or None if it fits no convention."""
    path = IMAGE_SUFFIXES.sub("", name.replace("\\", "/"))
    for convention, pattern in CONVENTIONS.items():
        if match := pattern.fullmatch(path if convention == "AFAD" else path.rsplit("/", 1)[-1]):
            return convention, match.groupdict()
    return None


def parse_name(name: str) -> Label | None:
    """Return the label in the name of an image, for AFAD in its path, or None if it fits no convention."""
    if not (match := _match(name)):
        return None
    convention, parts = match
    if "born" in parts:  # the age on 1 July of the year of the photo
        before_birthday = (int(parts["month"]), int(parts["day"])) > (7, 1)
        return Label(convention, int(parts["taken"]) - int(parts["born"]) - before_birthday, UNKNOWN)
    if "number" in parts:
        return Label(convention, int(parts["age"]), MALE if int(parts["number"]) > 7380 else FEMALE)
    return Label(convention, int(parts["age"]), (GENDER_SPELLINGS | AFAD_GENDERS)[parts.get("gender", "").lower()])


def parse_person(name: str) -> tuple[str, str] | None:
    """Return the person in the name of an image, as (convention, name or number), or None if it has none."""
    convention, parts = _match(name) or ("", {})
    return (convention, parts["person"].lower()) if "person" in parts else None


def parse_folders(names: Sequence[str]) -> dict[str, Label]:
    """Return the labels in the folder names of images' paths, for those in a folder of an age.

    An age is a whole number of years, 25 or age25, or a range, 20-29; a gender is a word, such as female. Raises
    InputError if the numbers are not ages: zero-padded, above OLDEST, two in a path, or counted from 0 or 1.
    """
    labels, numbers = {}, set()
    for name in names:
        folders = name.split("/")[-2::-1]  # the innermost first
        ages = [(folder, age) for folder in folders if (age := parse_age(folder))]
        digits = [folder for folder in folders if folder.isdecimal()]
        if len(ages) > 1 or len(digits) > 1:
            _refuse_folders(f"{name} is in two of them")
        numbers.update(digits)
        if ages:
            genders = (GENDER_SPELLINGS.get(folder.lower(), UNKNOWN) for folder in folders if not folder[0].isdigit())
            gender = next((gender for gender in genders if gender != UNKNOWN), UNKNOWN)
            age, from_range = ages[0][1]
            labels[name] = Label(FOLDERS + FROM_A_RANGE * from_range, age, gender)
    for folder in sorted(numbers):
        if int(folder) > OLDEST:
            _refuse_folders(f"{folder} is above {OLDEST}")
        if folder != str(int(folder)):
            _refuse_folders(f"{folder} is zero-padded")
    counted = sorted(map(int, numbers))
    if len(counted) > 1 and counted[0] <= 1 and counted == list(range(counted[0], counted[-1] + 1)):
        _refuse_folders(f"they count from {counted[0]} to {counted[-1]} without a gap")
    return labels


def _refuse_folders(why: str) -> None:
    raise InputError(
        f"the folders' numbers do not look like ages, {why}: label the faces in {TABLE}, or rename folders that are "
        "ages to age25 or 20-29"
    )


def parse_age(text: str) -> tuple[int, bool] | None:
    """Return an age in years and whether it is from a range such as (25, 32) or 70+, or None if it is neither.

    25, 25.0, 25,0, age25 and 25 years are whole years. A range becomes its middle, rounded down; an open range becomes
    its limit plus OPEN_YEARS.
    """
    text = text.strip()
    if whole := re.fullmatch(r"(\d{1,3})(?:[.,]0*)?", text) or NAMED_AGE.fullmatch(text):
        return int(next(filter(None, whole.groups()))), False
    if (limits := AGE_RANGE.fullmatch(text)) and int(limits[1]) <= int(limits[2]):
        return (int(limits[1]) + int(limits[2])) // 2, True
    if limit := OPEN_AGE_RANGE.fullmatch(text):
        return int(next(filter(None, limit.groups()))) + OPEN_YEARS, True
    return None


def read_table(table: Path, names: Sequence[str], named: dict[str, Label]) -> tuple[dict[str, Label], dict[str, str]]:
    """Return the labels by image, and the rows without an image, each with the reason.

    names: the images of the set; named: the labels in their names, used for the gender if the table has no such column.
    Raises InputError with all wrong rows and their lines, and if no row has an image.
    """
    rows, wrong = [], []
    for line, row in _rows(table):
        try:
            rows.append((line, *_read_row(row)))
        except ValueError as error:
            wrong.append(f"line {line}: {error}")
    images = _match_rows([name for _, name, *_ in rows], names, table.parent.name)
    labels, absent = {}, {}
    for line, name, (age, from_range), gender in rows:
        if not (image := images.get(name)):
            absent[f"{name} (line {line})"] = f"a row of {TABLE} without an image"
            continue
        if gender is None:
            gender = named[image].gender if image in named else UNKNOWN
        label = Label(TABLE + FROM_A_RANGE * from_range, age, gender)
        if labels.setdefault(image, label) != label:
            wrong.append(f"line {line}: {printable(name)} has another label in an earlier row")
    if wrong:
        more = f"; and {len(wrong) - ROWS_SHOWN:,} more" if len(wrong) > ROWS_SHOWN else ""
        raise InputError(f"{table}: {len(wrong):,} wrong rows: {'; '.join(wrong[:ROWS_SHOWN])}{more}")
    if rows and not labels:
        raise InputError(
            f"{table}: {len(rows):,} rows name no image{first_names([name for _, name, *_ in rows], ', such as ', 1)}: "
            f"their column {TABLE_COLUMNS[0]} needs paths within the folder{first_names(names, ', such as ', 1)}"
        )
    return labels, absent


def _read_row(row: dict[str, str] | str) -> tuple[str, tuple[int, bool], int | None]:
    """Return the path, the age (see `parse_age`) and the gender of a row, None without a column for it.

    Raises ValueError with what is wrong.
    """
    if isinstance(row, str):
        raise ValueError(row)
    age, gender = parse_age(row["age"]), GENDER_SPELLINGS.get(row.get("gender", "").lower())
    if not age or age[0] > OLDEST:
        raise ValueError(f"age {printable(row['age'])} is not a whole number within 0-{OLDEST}, nor a range")
    if gender is None:
        raise ValueError(f"gender {printable(row['gender'])} is none of 0, 1, m, f, male, female, nor empty")
    return row["file"].replace("\\", "/").removeprefix("./"), age, gender if "gender" in row else None


def _match_rows(rows: Sequence[str], names: Sequence[str], folder: str) -> dict[str, str]:
    """Return the images that the rows of a table name, by row.

    An exact match counts first. Of the other images a row may name one without its folder, without the suffix or with
    another one, with other letter case, by an absolute path, or by one that begins with the data set's folder; if
    that is unambiguous.
    """
    exact = {_plain(name): name for name in names}
    found = {row: exact[_plain(row)] for row in rows if _plain(row) in exact}
    taken, loose, rest = set(found.values()), {}, {}
    for name in names:
        if name not in taken:
            for key in {_key(name), _key(name.rsplit("/", 1)[-1])}:
                loose.setdefault(key, set()).add(name)
    for row in rows:
        if row not in found:
            parts = row.split("/")
            absolute = not parts[0] or parts[0].endswith(":")
            starts = range(1, len(parts)) if absolute else (0, 1) if len(parts) > 1 and parts[0] == folder else (0,)
            hits = (loose.get(_key("/".join(parts[start:])), ()) for start in starts)
            if hit := next((hit for hit in hits if len(hit) == 1), None):
                rest.setdefault(*hit, set()).add(row)
    return found | {row: name for name, named in rest.items() for row in named if len(named) == 1}


def _plain(path: str) -> str:
    return unicodedata.normalize("NFC", path)  # macOS writes an accent as a second letter


def _key(path: str) -> str:
    return IMAGE_SUFFIXES.sub("", _plain(path)).casefold()


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Yield (line, cells by column) for all rows that are not empty, or (line, what is wrong with the row).

    Raises InputError if the columns are missing or the file is not a table.
    """
    text = _text(table)
    first = text.lstrip("\r\n").split("\n", 1)[0].rstrip("\r")
    delimiter = first[4] if re.fullmatch("sep=.", first) else ""  # Excel's own line before the columns
    if delimiter:
        text = text.replace(first, "", 1)  # the empty line stays, so that line numbers are right
    delimiter = delimiter or max(DELIMITERS, key=first.count)
    rows = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True, delimiter=delimiter)
    try:
        filled = (row for row in rows if any(cell.strip() for cell in row))
        columns = [column.strip().lower() for column in next(filled, [])]
        places = {
            column: next((columns.index(alias) for alias in aliases if alias in columns), None)
            for column, aliases in COLUMN_ALIASES.items()
        }
        if places["file"] is None or places["age"] is None:
            raise InputError(
                f"{table}, line {rows.line_num}: the columns are {','.join(map(printable, columns))}, "
                f"not {','.join(TABLE_COLUMNS)}"
            )
        for row in filled:
            row = _join_ranges(row)
            while len(row) > len(columns) and not row[-1].strip():
                row.pop()
            cells = {
                column: row[place].strip() for column, place in places.items() if place is not None and place < len(row)
            }
            wrong = f"{len(row)} columns, not {','.join(map(printable, columns))}"
            yield rows.line_num, cells if len(row) == len(columns) else wrong
    except csv.Error as error:
        raise InputError(f"{table}, line {rows.line_num}: {error}") from error


def _text(table: Path) -> str:
    content = table.read_bytes()
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"  # Excel's "Unicode text"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{table}, line {line}: not in UTF-8, save it as CSV UTF-8") from error


def _join_ranges(row: list[str]) -> list[str]:
    """Return a row in which a range such as (25, 32) that its comma has split is one cell again."""
    joined = []
    for cell in row:
        if joined and re.fullmatch(r"[(\[]\s*\d+", joined[-1].strip()) and re.fullmatch(r"\d+\s*[)\]]", cell.strip()):
            joined[-1] += "," + cell
        else:
            joined.append(cell)
    return joined
