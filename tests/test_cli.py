"""The command `mmbalance`."""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress

import pytest

from hf_mmbalance import __version__, cli


def verbs() -> list[str]:
    """Every verb the parser knows, so that a new one is tested without being listed here."""
    parser = cli.build_parser()
    (action,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return list(action.choices)


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    shown = capsys.readouterr().out
    assert "examples:" in shown
    listed = [line.split()[0] for line in shown.splitlines() if line.startswith("    ") and line.strip()]
    assert set(verbs()) <= set(listed) and {"train", "predict", "decide", "diagnose", "card", "push"} <= set(verbs())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("verb", verbs())
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with suppress(SystemExit):
        assert cli.main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: mmbalance {verb} ")
    assert "example" in shown and f"\n  mmbalance {verb} " in shown


def test_options_that_only_grid_has_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    """Beside options of every dataset, `--label` would look like the label of a clip."""
    with suppress(SystemExit):
        cli.main(["fuse", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--label X [X ...] GRID only: word to recognise" in shown and "--window X [X ...] GRID only: " in shown
    assert "--frames X [X ...] Frames per clip." in shown


@pytest.mark.parametrize("verb", verbs())
def test_every_verb_refuses_what_is_not_there_with_one_line(
    verb: str, capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    needed = {
        "train": ["--config", "nowhere.yaml"],
        "predict": ["clip.mp4", "--model", str(tmp_path)],
        "card": ["nowhere", "--repo_id", "me/model"],
        "push": ["nowhere", "me/model"],
        "space": ["demo", "me/page"],
        "export": ["onnx", "nowhere", "m.onnx"],
    }
    with suppress(SystemExit):  # argparse's own
        assert cli.main([verb, *needed.get(verb, ["nowhere"])]) == 2
    shown = capsys.readouterr().err
    assert "error: " in shown.splitlines()[-1] and "Traceback" not in shown


def test_train_hands_its_options_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--help-all"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--train_clips" in shown and shown.startswith("usage: mmbalance train [--config")


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "hf_mmbalance", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, __version__)


def test_help_of_train_is_one_screen_and_imports_no_torch() -> None:
    code = "import sys; from hf_mmbalance.cli import main; main(['train', '--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) <= 50 and max(map(len, lines)) <= 110


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["decid", "t.parquet"], "did you mean 'decide'?"),
        (["decide", "t.parquet", "--known_group"], "did you mean '--known_groups'?"),
        (["predict", "a.mp4", "--model", "m", "--top-l=3"], "did you mean '--top_k'?"),
    ],
)
def test_mistyped_verbs_and_options_are_answered_with_the_right_one(words, hint, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2 and hint in capsys.readouterr().err


@pytest.mark.parametrize("name", ["--known_groups", "--known-groups"])
def test_both_spellings_of_an_option_are_taken(name: str) -> None:
    assert cli.build_parser().parse_args(["decide", "t-a-b.parquet", name]).known_groups


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_verbs_options_and_files(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "bash"]) == 0
    (tmp_path / "complete.sh").write_text(capsys.readouterr().out)
    (tmp_path / "clips.csv").touch()

    def completed(*words: str) -> list[str]:
        code = f"""source complete.sh; COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; _mmbalance
            printf '%s\\n' "${{COMPREPLY[@]}}" """
        return subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True).stdout.split()

    assert completed("mmbalance", "diag") == ["diagnose"]
    assert completed("mmbalance", "decide", "--known") == ["--known_groups"]
    assert completed("mmbalance", "train", "--learning_r") == ["--learning_rate"]
    assert completed("mmbalance", "predict", "cl") == ["clips.csv"]


def test_train_meets_a_missing_config_with_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--config", "nowhere.yaml"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: --config nowhere.yaml") and "Traceback" not in shown
