"""The `mmbalance` door."""

from __future__ import annotations

import pytest

from hf_mmbalance import __version__, cli


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    shown = capsys.readouterr().out
    for verb in ("train", "decide", "diagnose"):
        assert verb in shown
    assert "examples:" in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("verb", ["decide", "diagnose"])
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0
    assert f"mmbalance {verb}" in capsys.readouterr().out


def test_train_hands_its_options_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--help"])
    assert stop.value.code == 0
    assert "--train_clips" in capsys.readouterr().out


def test_train_meets_a_missing_config_with_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--config", "nowhere.yaml"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: --config nowhere.yaml") and "Traceback" not in shown
