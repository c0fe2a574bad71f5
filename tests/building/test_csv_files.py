"""CSV files that cannot be read are refused by file and row, not by a traceback."""

from __future__ import annotations

import os

import pytest

from hf_mmbalance.building.csv_files import parsed, read_csv
from hf_mmbalance.data.clips import DataError


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"id,n\na,1\nb\xe9,2\n", "line 3: not UTF-8 (byte 10, perhaps Latin-1); save it as UTF-8"),
        ("id,n\na,1\n".encode("utf-16"), "the file is in UTF-16; save it as UTF-8"),
        (b"id,n\na,1\nb\0,2\n", "line 3: a zero byte"),
        (b'id,n\na,1\nb,"' + b"x" * 200_000, "not CSV (field larger than field limit"),
        (b"id,n\na,1\nb\n", "line 3: the row has fewer fields than the header"),
        (b"id,m\na,1\n", "the header lacks 'n'; get it there"),
        (b"id,n\n", "the file has no rows; get it there"),
        (b"", "the header lacks 'id', 'n'"),
    ],
)
def test_the_fault_is_named_by_file_and_line(tmp_path, content, words):
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_csv(path, ("id", "n"), "get it there")
    assert str(caught.value).startswith(str(path)) and words in str(caught.value)


def test_what_is_not_a_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    for name in ("pipe.csv", "absent.csv", "."):
        with pytest.raises(DataError, match="no such file; get it there"):
            read_csv(tmp_path / name, ("id",), "get it there")


def test_a_row_that_cannot_be_parsed_is_named(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text('\ufeffid,n\na,1\n"b\nc",x\n', encoding="utf-8")
    rows = read_csv(path, ("id", "n"), "")
    assert [row["id"] for row in rows] == ["a", "b\nc"]
    with pytest.raises(DataError, match=r"table.csv, row 2 \(b\nc, x\): ValueError: invalid literal for int"):
        parsed(path, rows, lambda row: int(row["n"]))
    assert parsed(path, rows[:1], lambda row: int(row["n"])) == [1]
