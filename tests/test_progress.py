"""Progress on a terminal and in a log file."""

from __future__ import annotations

import sys

from tqdm import tqdm

from hf_mmbalance import progress


def test_in_a_log_file_long_work_says_how_far_it_is_on_lines_of_its_own(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    assert list(progress.bar("abc", desc="reading", unit="clip")) == list("abc")
    shown = capsys.readouterr().err
    lines = shown.splitlines()
    assert lines[-1].startswith("reading: 3 of 3 in 00:0") and all(line.startswith("reading: ") for line in lines)
    assert "\r" not in shown and shown.endswith("\n")


def test_short_work_and_other_processes_say_nothing_in_a_log_file(capsys):
    with progress.bar(total=2, desc="reading", unit="clip", delay=0) as shown:
        shown.update(2)
    list(progress.bar("abc", desc="reading", disable=True))
    assert capsys.readouterr().err == ""


def test_on_a_terminal_it_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    shown = progress.bar("abc", desc="reading", unit="clip")
    assert type(shown) is tqdm and not shown.disable
    shown.close()
    assert "reading: " in capsys.readouterr().err
