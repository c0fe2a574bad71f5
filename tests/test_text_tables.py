"""Tables of text: separators, encodings and headers as people's programs write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_mmbalance.text_tables import read_text_table


COLUMNS = ("path", "label")


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_every_separator_in_every_encoding_that_says_itself(tmp_path: Path, separator: str, encoding: str) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes(f"path{separator}label\r\na,1;b.mp4{separator}schön\r\n".replace("a,1;b", "ab").encode(encoding))
    assert read_text_table(table, COLUMNS) == [{"path": "ab.mp4", "label": "schön"}]


def test_the_header_decides_between_separators(tmp_path: Path) -> None:
    table = tmp_path / "t.tsv"
    table.write_text("path;label;a,b,c,d\nx.mp4;dog;1,5\n")
    assert read_text_table(table, COLUMNS) == [{"path": "x.mp4", "label": "dog", "a,b,c,d": "1,5"}]
    table.write_text('path\tlabel\n"a\tb.mp4"\tdog\n')
    assert read_text_table(table, COLUMNS) == [{"path": "a\tb.mp4", "label": "dog"}]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"path,label\na.mp4,sch\xf6n\n", r"line 2: not UTF-8 \(byte 0xf6, which is 'ö' in Windows-1252\).*iconv"),
        (b"clips/a.mp4,dog\nclips/b.mp4,cat\n", "first line holds data.*add a header such as path,label"),
        (b"a.wav;dog\n", "add a header such as path;label"),
        (b"path,label,label\na.mp4,dog,cat\n", "two columns are named 'label'; rename or remove one"),
        (b'path,label\n\n"a\nb.mp4",dog\na,b.mp4,dog\n', "line 5: 3 cells for 2 columns"),
        (b"path,label\na,b.mp4,dog\n", "line 2: 3 cells for 2 columns; put cells that hold ',' in double quotes"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_remedy(tmp_path: Path, content: bytes, words: str) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes(content)
    with pytest.raises(ValueError, match=f"t.csv.*{words}"):
        read_text_table(table, COLUMNS)


def test_blank_lines_count_for_nothing(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("\n\npath;label\n\na.mp4;dog\n ; \n")
    assert read_text_table(table, COLUMNS) == [{"path": "a.mp4", "label": "dog"}]
    table.write_text(";;\n \n")
    assert read_text_table(table, COLUMNS) == []


def test_columns_of_other_names_are_a_header_all_the_same(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("file,class\na.mp4,dog\n")
    assert read_text_table(table, COLUMNS) == [{"file": "a.mp4", "class": "dog"}]
    table.write_text("path,label,,\na.mp4,dog,,\n")
    assert read_text_table(table, COLUMNS) == [{"path": "a.mp4", "label": "dog", "": ""}]
    table.write_text("")
    assert read_text_table(table, COLUMNS) == []
