"""What the README says to type works as written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hf_mmbalance import MMBalanceProcessor, cli
from tests.model.tiny import tiny_model


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_two_commands_that_ci_runs_are_there() -> None:
    for name, words in (("run", "accelerate launch train.py"), ("test", "pytest")):
        block = re.search(rf"<!-- {name} -->\n```bash\n(.*?)```\n<!-- end -->", README, flags=re.DOTALL)
        assert block is not None and words in block[1]


def test_the_snippet_that_uses_a_trained_model_runs(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    backbones = (model.config.audio_config, model.config.vision_config)
    MMBalanceProcessor.from_backbones(*backbones).save_pretrained(tmp_path)
    snippet = re.search(r"```python\n(import numpy.*?)```", README, flags=re.DOTALL)
    assert snippet is not None
    names: dict = {}
    exec(snippet[1].replace('"outputs/my-run"', repr(str(tmp_path))), names)  # noqa: S102
    assert names["out"].modality_weights.shape[:2] == (1, 2)


def test_the_exported_table_goes_through_decide_and_diagnose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snippet = re.search(r"```python\n(import numpy as np\nfrom sklearn.*?)```", README, flags=re.DOTALL)
    assert snippet is not None
    monkeypatch.chdir(tmp_path)
    exec(snippet[1], {})  # noqa: S102
    assert cli.main(["decide", "digits.parquet", "--json", "decided.json"]) == 0
    assert cli.main(["diagnose", "digits.parquet", "--report", "digits.html"]) == 0
    decided = json.loads((tmp_path / "decided.json").read_text())
    assert {"top", "bottom", "sum", "adaptive"} <= {row["method"] for row in decided["rows"]}
    assert (tmp_path / "digits.html").stat().st_size > 10_000


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists(), link
