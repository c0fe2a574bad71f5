"""The commands of docs/decision.md are run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .test_cli import run


PAGE = Path(__file__).parents[2] / "docs" / "decision.md"


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hf_mmbalance.decision.figures.save", lambda figure, path: [])  # slow; test_cli.py has it
    text = PAGE.read_text(encoding="utf-8")
    names: dict[str, object] = {}
    blocks = re.findall(r"```(python|bash)\n(.*?)```", text, flags=re.S)
    assert [kind for kind, _ in blocks] == ["python", "bash", "python"]
    export = [line for line in blocks[0][1].splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(export) <= 10, "the export is promised in ten lines"
    for kind, code in blocks:
        if kind == "python":
            exec(code, names)
            continue
        for command in code.strip().splitlines():
            assert run(*command.removeprefix("mmbalance ").split(), "--seed", "1") == 0, command
    printed = capsys.readouterr().out
    assert "* chosen:" in printed and "balance index" in printed
    for name in ("decide.json", "diagnosis.json", "report.html", "allocation/allocation.npz"):
        assert (tmp_path / name).is_file()
