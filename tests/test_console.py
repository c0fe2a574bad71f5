"""What all verbs share: exit statuses, one line for an error, results written whole or not at all."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hf_mmbalance import console
from hf_mmbalance.json_files import json_text, write_json


def fails_with(error: BaseException):
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ValueError("labels are wrong"), 2, "grid build: error: labels are wrong"),
        (console.UserError("no such repository"), 2, "grid build: error: no such repository"),
        (OSError(28, "No space left on device", "out/x.json"), 2, "x.json: No space left on device (free some disk"),
        (OSError(30, "Read-only file system", "x.html"), 2, "x.html: Read-only file system (choose a writable"),
        (ValueError("see https://me:passw0rd@host/x"), 2, "see https://[secret removed]@host/x"),
        (KeyboardInterrupt(), 130, "grid build: error: interrupted; run it again"),
    ],
)
def test_errors_are_one_line_with_a_remedy(capsys, error, status, text):
    assert console.run_command(fails_with(error), "grid build", resume="run it again") == status
    shown = capsys.readouterr().err
    assert text in shown and shown.count("\n") == 1 and "passw0rd" not in shown


def test_faults_of_ours_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        console.run_command(fails_with(ZeroDivisionError()))


def test_a_reader_that_has_enough_is_no_error(tmp_path):
    code = "from hf_mmbalance import console\n"
    code += "def many():\n    for _ in range(100000):\n        console.say('x' * 100)\n    return 0\n"
    code += "raise SystemExit(console.run_command(many))\n"
    done = subprocess.run(
        f"{sys.executable} -c \"$CODE\" | head -1", shell=True, capture_output=True, text=True, timeout=60,
        env={**os.environ, "CODE": code},
    )  # fmt: skip
    assert done.stdout == "x" * 100 + "\n" and done.stderr == ""


def test_a_connection_that_breaks_is_an_error(capsys):
    assert console.run_command(fails_with(BrokenPipeError(32, "Broken pipe"))) == 2
    assert "Broken pipe" in capsys.readouterr().err


def test_names_that_cannot_be_printed_or_are_no_utf8_end_no_command(tmp_path):
    """A file of another encoding, `caf\xe9.mp4`, on a terminal that has no Greek."""
    name = os.fsdecode(b"caf\xe9.mp4")
    write_json(tmp_path / "x.json", {"clip": name})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"clip": name}
    code = "import os\nfrom hf_mmbalance import console\n"
    code += "raise SystemExit(console.run_command(lambda: console.say(os.fsdecode(b'caf\\xe9') + ' \\u03b1') or 0))\n"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stdout) == (0, "caf\\udce9 \\u03b1\n"), done.stderr


def test_results_are_valid_json_whatever_the_numbers(tmp_path, capsys):
    result = {
        "nan": math.nan,
        "list": [math.inf, 1],
        "array": np.array([[1.5, np.nan]]),
        "n": np.int64(3),
        "p": Path("x"),
    }
    plain = {"nan": None, "list": [None, 1], "array": [[1.5, None]], "n": 3, "p": "x"}
    console.write_result("-", result)
    assert json.loads(capsys.readouterr().out) == plain
    console.write_result(str(tmp_path / "x.json"), result)
    assert json.loads((tmp_path / "x.json").read_text()) == plain == json.loads(json_text(result))
    console.write_result(None, result)
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_result_that_cannot_be_written_leaves_no_draft(tmp_path, capsys):
    (tmp_path / "file").write_text("a file, not a folder")
    target = tmp_path / "file" / "below" / "x.json"
    assert console.run_command(lambda: console.write_result(str(target), [1]) or 0) == 2
    assert f"error: {target.parent}: Not a directory (check the path)" in capsys.readouterr().err
    (tmp_path / "file").unlink()
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(OSError, match="folder.json"):
        write_json(tmp_path / "folder.json", [1])
    assert [path.name for path in tmp_path.iterdir()] == ["folder.json"]


def test_a_verb_is_added_with_help_and_an_exit_status(capsys):
    parser = argparse.ArgumentParser(prog="tool")
    verb = console.add_verb(parser.add_subparsers(), "count", "Count to 100 % of it: all.\n\nexample:\n  tool count 3",
                            lambda arguments: int(arguments.n))  # fmt: skip
    verb.add_argument("n", type=int)
    console.add_json_option(verb)
    parsed = parser.parse_args(["count", "3", "--json", "-"])
    assert parsed.func(parsed) == 3 and not console.shows_text(parsed)
    assert console.shows_text(parser.parse_args(["count", "3"]))
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert re.search("count +Count to 100 % of it$", capsys.readouterr().out, re.M)
    with pytest.raises(SystemExit):
        parser.parse_args(["count", "--help"])
    shown = capsys.readouterr().out
    assert "Count to 100 % of it: all." in shown and "  tool count 3" in shown


def test_tables_align_the_first_column_to_the_left():
    shown = console.table(["class", "n"], [["cat", "10"], ["hedgehog", "5"]], indent="  ")
    assert shown == "  class      n\n  cat       10\n  hedgehog   5"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("give top_k=3 or trust_remote_code=True", "give --top_k 3 or --trust_remote_code"),
        ("top_k must be 1", "--top_k must be 1"),
        ("crop needs 4 numbers", "--crop needs 4 numbers"),
        ("the crop needs 4 numbers", "the crop needs 4 numbers"),
        ("set top_k= to more", "set --top_k to more"),
        ("a.yaml: top_k: 'x' must be int", "a.yaml: top_k: 'x' must be int"),
        ("--top_k 3: 'top_k' in a/top_k.json", "--top_k 3: 'top_k' in a/top_k.json"),
    ],
)
def test_options_are_named_as_they_are_typed(text: str, shown: str) -> None:
    assert console.with_flags(text, {"top_k", "trust_remote_code", "crop"}) == shown


def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path):
    """`--json /dev/null` of a user who may write there must leave the device."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    console.write_result(str(pipe), {"a": 1})
    assert json.loads(os.read(reader, 100)) == {"a": 1} and pipe.is_fifo()
    os.close(reader)


def test_fields_are_one_line_each():
    assert console.fields({"repo": "me/x", "configs": ["a", "b"]}) == "repo     me/x\nconfigs  a, b"


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_of_other_libraries_are_hidden_in_log_files_only(terminal, monkeypatch):
    names = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
    for name in names:
        monkeypatch.setenv(name, "")  # so that what is set is taken back
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    console.hide_bars_in_log_files()
    assert [os.environ.get(name) for name in names] == ([None] * 2 if terminal else ["1"] * 2)
