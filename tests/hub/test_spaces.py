"""Spaces: the metrics load by `evaluate.load`, the demo starts from what was pushed and answers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hf_mmbalance.hub.space_push import DEMO

from .faults import CutAnswer, RacingCommit, Refuse


SPACE = "import sys\nfrom hf_mmbalance.cli import main\nsys.exit(main(['space', *sys.argv[1:], '--json', '-']))"
BOTH = """
import sys
from hf_mmbalance.cli import main
for name in ("modality_balance", "calibration_error"):
    assert main(["space", name, f"{sys.argv[1]}/{name}"]) == 0
"""
USE = """
import sys, evaluate
from huggingface_hub import hf_hub_download
user = sys.argv[1]
for name in ("modality_balance", "calibration_error"):
    evaluate.load(f"{user}/{name}")
    logits = modality_logits = [[[4.0, 0.0], [0.0, 1.0]], [[0.0, 4.0], [1.0, 0.0]]]
    labels, modality_weights, probabilities = [0, 1], [[1.0, 1.0], [1.0, 1.0]], [[0.9, 0.1], [0.2, 0.8]]
    if name == "calibration_error":
        logits = [row[0] for row in logits]
    card = open(hf_hub_download(f"{user}/{name}", "README.md", repo_type="space")).read()
    code = card.split("```python\\n")[1].split("```")[0]
    assert f'evaluate.load("{user}/{name}", revision="space-' in code, code
    exec(code.replace("metric.compute(", "result = metric.compute("))
    print(result)
"""


def files(hub, repo: str) -> dict[str, bytes]:
    commit = hub.server.store.repos["spaces", repo].resolve("main")
    return {path: hub.server.store.read(entry) for path, entry in commit.files.items() if path != ".gitattributes"}


def test_the_metrics_are_pushed_whole_and_once(hub, run_client):
    hub.fail(Refuse(path="/commit/main", status=500), RacingCommit(skip=1))
    first = run_client(BOTH, args=[hub.user]).stdout
    for name in ("modality_balance", "calibration_error"):
        pushed = files(hub, f"{hub.user}/{name}")
        others = {"README.md", "__init__.py", "app.py", "measures.py", "metric_page.py", "requirements.txt"}
        assert set(pushed) == others | {f"{name}.py"}
        assert b"def ece(" in pushed["measures.py"], "a link instead of the formulas"
        assert hub.server.store.repos["spaces", f"{hub.user}/{name}"].sdk == "gradio"
    hub.log.clear()
    assert run_client(BOTH, args=[hub.user]).stdout == first and hub.log.count("commit") == 0


@pytest.mark.slow
def test_the_metrics_load_by_evaluate(hub, run_client):
    """The cards' snippets run as written, in a fresh cache, without this package."""
    run_client(BOTH, args=[hub.user])
    used = run_client(USE, args=[hub.user], without=["hf_mmbalance", "gradio"])
    assert "'accuracy': 1.0" in used.stdout and "'ece': 0.15" in used.stdout, used.stdout
    assert "none" not in hub.log.by_route(), hub.log.select(status=404)


def test_a_metric_of_another_name_is_refused(hub, run_client):
    done = run_client(SPACE, args=["modality_balance", f"{hub.user}/balance"], check=False)
    assert done.returncode == 2 and "must be called modality_balance" in done.stderr and not list(hub.log)


def test_the_demo_is_pinned_to_the_model_as_it_stands(hub, run_client, tmp_path):
    model = hub.server.seed("models", f"{hub.user}/model", {"config.json": b"{}"})
    clip = tmp_path / "cat one.mp4"
    clip.write_bytes(b"not looked into" * 100)
    args = ["demo", f"{hub.user}/page", "--model", f"{hub.user}/model"]
    hub.fail(CutAnswer(path="/commit/main"))
    done = json.loads(run_client(SPACE, args=[*args, "--examples", str(clip)]).stdout)
    space = hub.server.store.repos["spaces", f"{hub.user}/page"]
    sha = model.branches["main"]
    variables = {"MMBALANCE_MODEL": f"{hub.user}/model", "MMBALANCE_REVISION": sha, "MMBALANCE_TRUST_REMOTE_CODE": "0"}
    assert space.variables == variables and done["model_revision"] == sha
    pushed = files(hub, f"{hub.user}/page")
    assert set(pushed) == {"README.md", "answer.py", "app.py", "examples/cat one.mp4", "requirements.txt", "style.css"}
    assert f"models: [{hub.user}/model]".encode() in pushed["README.md"]
    hub.log.clear()
    run_client(SPACE, args=[*args, "--trust_remote_code"])
    assert space.variables == variables | {"MMBALANCE_TRUST_REMOTE_CODE": "1"}
    assert hub.log.count("variables", method="POST") == 1, "each change restarts the Space"
    assert "examples/cat one.mp4" not in files(hub, f"{hub.user}/page")
    strange = json.dumps({"dataset": "synthetic", "arguments": {"classes": "many"}}).encode()
    for name, results in (("no-json", b"{"), ("no-run", b"[]"), ("strange", strange)):
        hub.server.seed("models", f"{hub.user}/{name}", {"config.json": b"{}", "results.json": results})
    double = tmp_path / "other" / clip.name
    double.parent.mkdir()
    double.write_bytes(b"another clip of that name")
    for extra, words in (
        (["--examples", str(clip), str(double)], "two examples are named cat one.mp4"),
        (["--model", f"{hub.user}/no-json"], "no-json does not have the form that training writes"),
        (["--model", f"{hub.user}/no-run"], "give some with --examples"),
        (["--model", f"{hub.user}/strange"], "strange does not have the form that training writes"),
        (["--model", f"{hub.user}/absent"], "Repository Not Found"),
        (["--model_revision", "v9"], "Give a branch, tag or commit that exists"),
        (["--examples", str(tmp_path / "notes.txt")], "is not a video file"),
    ):
        failed = run_client(SPACE, args=[*args, *extra], check=False)
        assert failed.returncode == 2 and words in failed.stderr, failed.stderr
    assert "needs --model" in run_client(SPACE, args=args[:2], check=False).stderr


def test_every_requirement_of_the_demo_is_one_of_the_package():
    """A Space installs these beside gradio: versions that were tested, no others."""
    ours = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for line in (DEMO / "requirements.txt").read_text().split():
        assert f'"{line}"' in ours, line
    head = (DEMO / "README.md").read_text()
    version = re.search(r"sdk_version: (\d+)\.", head)
    assert version and f'demo = ["gradio>={version[1]},' in ours
