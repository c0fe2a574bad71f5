"""Read CSV and text files from a dataset's publisher; errors name file and row."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from hf_mmbalance.data.clips import DataError


T = TypeVar("T")
LARGEST = 256 << 20  # bytes
MARKS = (b"\xff\xfe", b"\xfe\xff")  # byte order marks of UTF-16


def read_csv(path: Path, columns: Iterable[str], hint: str) -> list[dict[str, str]]:
    """Read the rows of a UTF-8 CSV file with a header as dictionaries.

    Args:
        path: The file to read.
        columns: Names that the header must contain.
        hint: What the file is or where to get it, for error messages.

    Raises:
        DataError: the file cannot be used; the message names the file, the row if any, and the remedy.
    """
    text = read_text(path, hint)
    needed = set(columns)
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", restval=None)
    rows: list[dict[str, str]] = []
    try:
        missing = sorted(needed - set(reader.fieldnames or ()))
        if missing:
            shown = ", ".join(repr(name) for name in missing)
            raise DataError(f"{path}: the header lacks {shown}; {hint}")
        for row in reader:
            if any(row[name] is None for name in needed):
                raise DataError(f"{path}, line {reader.line_num}: the row has fewer fields than the header")
            rows.append(row)
    except csv.Error as error:  # e.g. a field of more than 128 KiB, because a quote is not closed
        raise DataError(f"{path}, line {reader.line_num}: not CSV ({error}); download the file again") from None
    if not rows:
        raise DataError(f"{path}: the file has no rows; {hint}")
    return rows


def parsed(path: Path, rows: list[dict[str, str]], parse: Callable[[dict[str, str]], T]) -> list[T]:
    """Apply `parse` to every row.

    Raises:
        DataError: `parse` failed; the message names file and row.
    """
    out = []
    for number, row in enumerate(rows, start=1):
        try:
            out.append(parse(row))
        except (ValueError, LookupError, TypeError, OverflowError) as error:
            what = error.args[0] if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
            raise DataError(f"{path}, row {number} ({', '.join(map(str, list(row.values())[:3]))}): {what}") from None
    return out


def read_text(path: Path, hint: str) -> str:
    """Read a UTF-8 text file; `hint` and errors are as in `read_csv`."""
    return _decoded(_content(path, hint), path)


def _content(path: Path, hint: str) -> bytes:
    if not path.is_file():  # also refuses a pipe, because opening it could block
        raise DataError(f"{path}: no such file; {hint}")
    if path.stat().st_size > LARGEST:
        raise DataError(f"{path}: {path.stat().st_size} bytes is too large for this table; {hint}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _decoded(content: bytes, path: Path) -> str:
    if content.startswith(MARKS):
        raise DataError(f"{path}: the file is in UTF-16; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: not UTF-8 (byte {error.start}, perhaps Latin-1); save it as UTF-8"
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise DataError(f"{path}, line {line}: a zero byte, so this is not a text file; download it again")
    return text
