"""Text tables (CSV and similar): encoding, separator and header are detected, or named in the error."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path


SEPARATORS = (",", ";", "\t", "|")
_NUMBER = re.compile(r"[-+]?\d+([.,]\d+)?([eE][-+]?\d+)?")
_FILE = re.compile(r".*(/|\\|\.(mp4|m4v|mov|mkv|webm|avi|flv|mpe?g|wmv|wav|flac|mp3|ogg|opus|m4a)$)", re.I)


def read_text_table(path: Path, required: Sequence[str]) -> list[dict[str, str]]:
    """Read the rows of a text table as dictionaries with the column names of its first line.

    Args:
        path: A file in UTF-8, or in UTF-16 with a byte order mark, with one of `, ; tab |` between the columns.
        required: Column names by which the header is recognised; not all of them need to be present.

    Raises:
        ValueError: if the encoding is different, the header is missing, two columns have the same name, or a line has
            more cells than the header; the message names file and remedy.
    """
    text = _decoded(path)
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = _separator(first, path, required)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ValueError(f"{path}: not a text table ({error}); save it as CSV in UTF-8") from None
    if not rows:
        return []
    head = [name.strip() for name in rows[0][1]]
    if not set(head) & set(required) and any(_NUMBER.fullmatch(name) or _FILE.match(name) for name in head):
        raise ValueError(
            f"{path}: the first line holds data, not column names ({first[:60]!r}); add a header such as"
            f" {separator.join(required)} above it"
        )
    twice = next((name for name in head if name and head.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{path}: two columns are named {twice!r}; rename or remove one")
    for number, row in rows[1:]:
        if len(row) > len(head):
            raise ValueError(
                f"{path}, line {number}: {len(row)} cells for {len(head)} columns; put cells that hold"
                f" {separator!r} in double quotes"
            )
    return [dict(zip(head, row + [""] * (len(head) - len(row)), strict=True)) for _, row in rows[1:]]


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        byte = content[error.start]
        read_as = bytes([byte]).decode("cp1252", errors="replace")
        raise ValueError(
            f"{path}, line {line}: not UTF-8 (byte 0x{byte:02x}, which is {read_as!r} in Windows-1252); save the table"
            f" as UTF-8, e.g. `iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8.csv`"
        ) from None


def _separator(line: str, path: Path, required: Sequence[str]) -> str:
    """Return the separator that finds the most required column names in the line or, if equal, the most cells."""
    first = "\t" if path.suffix.lower() == ".tsv" else ","

    def merit(separator: str) -> tuple[int, int, bool]:
        cells = [cell.strip() for cell in next(csv.reader([line], delimiter=separator))]
        return len(set(cells) & set(required)), len(cells), separator == first

    return max(SEPARATORS, key=merit)
