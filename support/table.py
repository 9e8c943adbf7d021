"""labels.csv, as people and their spreadsheets write it; open it where a table of labels is read wrongly or refused."""

import csv
import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from support.errors import InputError, printable
from support.labels import GENDERS, OLDEST, UNKNOWN

TABLE = "labels.csv"
COLUMNS = ["file", "age", "gender"]
# what else the columns are called
ALIASES = {
    "file": ("file", "filename", "file name", "file_name", "image", "picture", "path"),
    "age": ("age",),
    "gender": ("gender", "sex"),
}
DELIMITERS = ",;\t"  # a spreadsheet takes the semicolon where the comma stands in numbers
RANGE = re.compile(r"[(\[]?\s*(\d{1,3})\s*(?:,|;|-|\N{EN DASH}|_|to)\s*(\d{1,3})\s*[)\]]?", re.IGNORECASE)
FROM_A_RANGE = ", the middle of a range of ages"  # follows the convention by which a face was labelled
ROWS_SHOWN = 10  # wrong rows that are listed; the total is said too

Labels = dict[str, tuple[str, int, int]]  # by a picture's name: what labelled it, age and gender


def parse_age(text: str) -> tuple[int, bool] | None:
    """Returns an age in years and whether it is the middle of a range such as (25, 32), or None where it is neither.

    25, 25.0 and 25,0 are whole years; a middle between two years is the lower one.
    """
    text = text.strip()
    if whole := re.fullmatch(r"(\d{1,3})(?:[.,]0*)?", text):
        return int(whole[1]), False
    if (limits := RANGE.fullmatch(text)) and int(limits[1]) <= int(limits[2]):
        return (int(limits[1]) + int(limits[2])) // 2, True
    return None


def read_table(table: Path, names: Sequence[str], named: Labels) -> tuple[Labels, dict[str, str]]:
    """Returns the labels by picture, and the rows for pictures that are not there, each with the reason.

    names: the pictures of the set; named: what their own names say, which gives the gender where there is no column
    for it. Raises InputError with every row that is wrong, by its line.
    """
    pictures = {unicodedata.normalize("NFC", name): name for name in names}  # macOS writes an accent as a second letter
    labels, absent, wrong = {}, {}, []
    for line, row in _rows(table):
        try:
            if isinstance(row, str):
                raise ValueError(row)
            name = row["file"].replace("\\", "/").removeprefix("./")
            picture = pictures.get(unicodedata.normalize("NFC", name))
            age = parse_age(row["age"])
            if not age or age[0] > OLDEST:
                raise ValueError(f"age {printable(row['age'])} is not a whole number within 0-{OLDEST}, nor a range")
            if "gender" not in row:
                gender = named.get(picture, (None, None, UNKNOWN))[2]
            elif (gender := GENDERS.get(row["gender"].lower())) is None:
                raise ValueError(f"gender {printable(row['gender'])} is none of 0, 1, m, f, male, female, nor empty")
            label = TABLE + FROM_A_RANGE * age[1], age[0], gender
            if labels.get(picture, label) != label:
                raise ValueError(f"{printable(name)} has a row already, which says otherwise")
            if picture:
                labels[picture] = label
            else:
                absent[f"{name} (line {line})"] = f"a row of {TABLE} without a picture"
        except ValueError as error:
            wrong.append(f"line {line}: {error}")
    if wrong:
        more = f"; and {len(wrong) - ROWS_SHOWN:,} more" if len(wrong) > ROWS_SHOWN else ""
        rows = "row is" if len(wrong) == 1 else "rows are"
        raise InputError(f"{table}: {len(wrong):,} {rows} wrong: {'; '.join(wrong[:ROWS_SHOWN])}{more}")
    return labels, absent


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Yields (line, cells by column) of all rows that are not empty, or (line, what is wrong with the row).

    Raises InputError where the table has not the columns, or is no table at all.
    """
    text = _text(table)
    first = text.lstrip("\r\n").split("\n", 1)[0].rstrip("\r")
    delimiter = first[4] if re.fullmatch("sep=.", first) else ""  # Excel's own line before the columns
    if delimiter:
        text = text.replace(first, "", 1)  # the line itself stays: lines are counted
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
            row = _with_ranges_whole(row)
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


def _with_ranges_whole(row: list[str]) -> list[str]:
    """Returns a row in which a range such as (25, 32), if its comma has cut it in two, is one cell again."""
    whole = []
    for cell in row:
        if whole and re.fullmatch(r"[(\[]\s*\d+", whole[-1].strip()) and re.fullmatch(r"\d+\s*[)\]]", cell.strip()):
            whole[-1] += "," + cell
        else:
            whole.append(cell)
    return whole
