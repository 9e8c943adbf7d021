"""Age bins, genders and label vectors; ages and genders from file names, folder names and labels.csv."""

import csv
import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from support.errors import InputError, printable

AGE_BOUNDS = (5, 10, 15, 20, 30, 40, 50, 60, 70)  # the last age of each bin; the last bin is open
OLDEST = 120  # years
MALE, FEMALE, UNKNOWN = 0, 1, -1
GENDER_NAMES = {MALE: "male", FEMALE: "female", UNKNOWN: "unknown"}
# spellings in file names, folder names and tables; a spreadsheet may write a 0 as 0.0
GENDERS = {
    **dict.fromkeys(("0", "0.0", "m", "male", "man"), MALE),
    **dict.fromkeys(("1", "1.0", "f", "female", "woman"), FEMALE),
    **dict.fromkeys(("", "u", "unknown", "none", "nan"), UNKNOWN),
}
# Each pattern matches a file name without its suffix and captures the age and, if the convention has it, the gender.
CONVENTIONS = {
    "UTKFace": re.compile(r"(?P<age>\d{1,3})_(?P<gender>[01])_[0-4]_\d{8}.*"),
    "FG-NET": re.compile(r"\d{3}a(?P<age>\d{2})[a-z]?", re.IGNORECASE),
    "MORPH": re.compile(r"\d+_\d+(?P<gender>[mf])(?P<age>\d{2,3})", re.IGNORECASE),
    "CACD": re.compile(r"(?P<age>\d{1,3})_.*[^\W\d_].*_\d{4}"),
    "AgeDB": re.compile(r"\d+_.*[^\W\d_].*_(?P<age>\d{1,3})_(?P<gender>[mf])", re.IGNORECASE),
}
FOLDERS = "folders named by age"  # the source of the labels where no file name and no table has any
TABLE = "labels.csv"
COLUMNS = ["file", "age", "gender"]
# accepted names of the columns
ALIASES = {
    "file": ("file", "filename", "file name", "file_name", "image", "picture", "path"),
    "age": ("age",),
    "gender": ("gender", "sex"),
}
DELIMITERS = ",;\t"  # spreadsheets write semicolons in countries with a decimal comma
RANGE = re.compile(r"[(\[]?\s*(\d{1,3})\s*(?:,|;|-|\N{EN DASH}|_|to)\s*(\d{1,3})\s*[)\]]?", re.IGNORECASE)
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
        self.centres = [(low + high) / 2 for low, high in closed] + [self.bounds[-1] + 8.0]  # in years

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

        Linear between the bins' centres, where they equal the one-hot labels, and constant outside them.
        """
        weights = [np.interp(ages, self.centres, one_hot) for one_hot in np.eye(len(self))]
        return np.stack(weights, axis=-1).astype(np.float32) * 2 - 1


def gender_numbers(genders: int | str | Sequence[int | str] | np.ndarray) -> list[int]:
    """Return genders, numbers or words such as "female", as a list of MALE, FEMALE and UNKNOWN.

    Raises InputError for any other value.
    """
    given = np.ravel(np.asarray(genders, object)).tolist()
    numbers = [GENDERS.get(gender.strip().lower()) if isinstance(gender, str) else gender for gender in given]
    for gender, number in zip(given, numbers, strict=True):
        if number not in GENDER_NAMES:
            raise InputError(f"{gender!r} is not a gender: give {MALE} or 'male', {FEMALE} or 'female'")
    return [int(number) for number in numbers]


def gender_labels(genders: Sequence[int | str] | np.ndarray) -> np.ndarray:
    """Return float32 [N, 2]: +1 at the gender and -1 at the other, (0, 0) for UNKNOWN; see `gender_numbers`."""
    genders = np.asarray(gender_numbers(genders), int)[:, np.newaxis]
    return np.where(genders == UNKNOWN, 0, np.where(genders == (MALE, FEMALE), 1, -1)).astype(np.float32)


def parse_name(name: str) -> Label | None:
    """Return the label in a file name, or None if the name fits no convention."""
    stem = Path(name).stem
    for convention, pattern in CONVENTIONS.items():
        if match := pattern.fullmatch(stem):
            groups = match.groupdict(default="")
            return Label(convention, int(groups["age"]), GENDERS[groups.get("gender", "").lower()])
    return None


def parse_folders(name: str) -> Label | None:
    """Return the label in the folder names of a path, or None if no folder is an age.

    An age is a whole number of years or a range, such as 25/ or 20-29/; a gender is a word, such as female/.
    """
    folders = Path(name).parts[-2::-1]  # the innermost first
    found = next((age for folder in folders if (age := parse_age(folder))), None)
    genders = (GENDERS.get(folder.lower(), UNKNOWN) for folder in folders if not folder[0].isdigit())
    gender = next((gender for gender in genders if gender != UNKNOWN), UNKNOWN)
    return Label(FOLDERS + FROM_A_RANGE * found[1], found[0], gender) if found else None


def parse_age(text: str) -> tuple[int, bool] | None:
    """Return an age in years and whether it is the middle of a range such as (25, 32), or None if it is neither.

    25, 25.0 and 25,0 are whole years; a middle between two years is rounded down.
    """
    text = text.strip()
    if whole := re.fullmatch(r"(\d{1,3})(?:[.,]0*)?", text):
        return int(whole[1]), False
    if (limits := RANGE.fullmatch(text)) and int(limits[1]) <= int(limits[2]):
        return (int(limits[1]) + int(limits[2])) // 2, True
    return None


def read_table(table: Path, names: Sequence[str], named: dict[str, Label]) -> tuple[dict[str, Label], dict[str, str]]:
    """Return the labels by image, and the rows without an image, each with the reason.

    names: the images of the set; named: the labels in their names, used for the gender if the table has no such column.
    Raises InputError with all wrong rows and their lines.
    """
    images = {unicodedata.normalize("NFC", name): name for name in names}  # macOS writes an accent as a second letter
    labels, absent, wrong = {}, {}, []
    for line, row in _rows(table):
        try:
            if isinstance(row, str):
                raise ValueError(row)
            name = row["file"].replace("\\", "/").removeprefix("./")
            image = images.get(unicodedata.normalize("NFC", name))
            age = parse_age(row["age"])
            if not age or age[0] > OLDEST:
                raise ValueError(f"age {printable(row['age'])} is not a whole number within 0-{OLDEST}, nor a range")
            if "gender" not in row:
                gender = named[image].gender if image in named else UNKNOWN
            elif (gender := GENDERS.get(row["gender"].lower())) is None:
                raise ValueError(f"gender {printable(row['gender'])} is none of 0, 1, m, f, male, female, nor empty")
            label = Label(TABLE + FROM_A_RANGE * age[1], age[0], gender)
            if labels.get(image, label) != label:
                raise ValueError(f"{printable(name)} has another label in an earlier row")
            if image:
                labels[image] = label
            else:
                absent[f"{name} (line {line})"] = f"a row of {TABLE} without an image"
        except ValueError as error:
            wrong.append(f"line {line}: {error}")
    if wrong:
        more = f"; and {len(wrong) - ROWS_SHOWN:,} more" if len(wrong) > ROWS_SHOWN else ""
        rows = "row is" if len(wrong) == 1 else "rows are"
        raise InputError(f"{table}: {len(wrong):,} {rows} wrong: {'; '.join(wrong[:ROWS_SHOWN])}{more}")
    return labels, absent


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
            for column, aliases in ALIASES.items()
        }
        if places["file"] is None or places["age"] is None:
            raise InputError(
                f"{table}, line {rows.line_num}: the columns are {','.join(map(printable, columns))}, "
                f"not {','.join(COLUMNS)}"
            )
        for row in filled:
            row = _join_ranges(row)
            while len(row) > len(columns) and not row[-1].strip():
                row.pop()
            if len(row) == len(columns):
                cells = {column: row[place].strip() for column, place in places.items() if place is not None}
            else:
                cells = f"{len(row)} columns, not {','.join(map(printable, columns))}"
            yield rows.line_num, cells
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
