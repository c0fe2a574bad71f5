"""What the README says to type works as written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hf_mmbalance import MMBalanceProcessor
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


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists(), link
