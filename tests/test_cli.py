"""The command `mmbalance`."""

from __future__ import annotations

import argparse

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
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    if verb != "train":  # its help is long and made by transformers; the README shows how it is called
        assert "example" in shown and f"\n  mmbalance {verb} " in shown


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
    }
    assert cli.main([verb, *needed.get(verb, ["nowhere"])]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and "Traceback" not in shown


def test_train_hands_its_options_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--help"])
    assert stop.value.code == 0
    assert "--train_clips" in capsys.readouterr().out


def test_train_meets_a_missing_config_with_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--config", "nowhere.yaml"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: --config nowhere.yaml") and "Traceback" not in shown
