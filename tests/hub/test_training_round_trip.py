"""From `train.py --push_to_hub` in two processes to a stranger's pipeline on a real clip, through faults."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_mmbalance.hub.model_card import pinned_revision
from tests.training.tiny_runs import TINY

from .client import client_env
from .faults import CutRequest, RacingCommit, Refuse, Slow
from .models import CODE, answers_of, no_token_in, stored


ROOT = Path(__file__).parents[2]
STRANGER = """
import json, re, sys
try:
    import hf_mmbalance
except ImportError:
    pass
else:
    raise SystemExit("the package must not be importable here")
from huggingface_hub import HfApi, hf_hub_download
from transformers import pipeline
repo, answers = sys.argv[1], {}
api = HfApi()
tags = [tag.name for tag in api.list_repo_refs(repo).tags]
for revision in ("main", api.model_info(repo).sha, *tags):
    classify = pipeline("audio-visual-classification", model=repo, revision=revision, trust_remote_code=True)
    answers[revision] = classify("clip.mp4", top_k=3)
snippets = re.findall("```python\\n(.*?)```", open(hf_hub_download(repo, "README.md")).read(), re.DOTALL)
for snippet in snippets:
    exec(snippet, {})
print("ANSWERS", json.dumps(answers))
"""


def launch(hub, home: Path, *options: str, processes: int = 1, token: str | None = "") -> subprocess.CompletedProcess:
    """`train.py` as a user starts it, with the test's server as the Hub."""
    command = [sys.executable]
    if processes == 2:
        config = ROOT / "accelerate_configs" / "cpu_2proc.yaml"
        command += ["-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file", str(config)]
    return subprocess.run(
        [*command, str(ROOT / "train.py"), *options],
        env=client_env(hub.server, home, hub.token if token == "" else token),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.mark.slow
def test_two_processes_train_and_push_and_a_stranger_answers(hub, run_client, real_data, tmp_path):
    repo_id, folder = f"{hub.user}/trained", tmp_path / "run"
    hub.fail(
        Refuse(path="/trained/commit/", status=500),
        CutRequest(path="/lfs-upload/", after_bytes=5000),
        RacingCommit(path="/trained/commit/", skip=1),
        Slow(path="/trained/preupload/", seconds=0.5),
    )
    options = [*TINY, "--output_dir", str(folder), "--push_to_hub", "true", "--hub_model_id", repo_id]
    done = launch(hub, tmp_path, *options, "--hub_strategy", "checkpoint", "--hub_always_push", "true", processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    repo, head = stored(hub, repo_id)

    titles = [commit.title for commit in repo.history(head)]
    steps = re.findall(r"Training in progress, step (\d+)", "\n".join(titles))
    assert titles[0] == "Upload trained model" and titles[-1] == "initial commit"
    assert len(steps) == 2 and len(titles) == 5, titles  # two epochs, two other commits and somebody else's
    assert not any(fault.hits != 1 for fault in hub.server.faults._faults), "a fault was not met"

    files = set(head.files)
    kept = {"README.md", "results.json", "decisions.parquet", "weights_by_class.png", "diagnosis.html"}
    assert kept | CODE | {"model.safetensors", "processor_config.json", "diagnosis.json"} <= files
    assert {"last-checkpoint/model.safetensors", "last-checkpoint/trainer_state.json"} <= files
    assert not [name for name in files if re.search(r"\.(bin|pt|pth|pkl)$", name)], "a pickle was pushed"
    for name in kept | {"model.safetensors"}:
        assert hub.server.store.read(head.files[name]) == (folder / name).read_bytes(), name
    check_card(folder, repo_id)

    home = tmp_path / "stranger"
    home.mkdir()
    clip = next((real_data / "grid_s1").rglob("*.mp4"))
    shutil.copy(clip, home / "clip.mp4")
    stranger = run_client(STRANGER, args=[repo_id], home=home, token=None, without=["hf_mmbalance"])
    answers = list(answers_of(stranger).values())
    assert len(answers) == 3 and all(answer == answers[0] for answer in answers)
    assert sum(entry["score"] for entry in answers[0]) == pytest.approx(1, abs=1e-4)

    from hf_mmbalance.hub import load_classifier

    ours = load_classifier(str(folder), device="cpu")(str(clip), top_k=3)
    assert [entry["label"] for entry in ours] == [entry["label"] for entry in answers[0]]
    assert ours[0]["score"] == pytest.approx(answers[0][0]["score"], abs=1e-5)
    everything = (done.stdout, done.stderr, stranger.stdout, stranger.stderr)
    no_token_in(hub, *everything, folders=(folder, home))


def check_card(folder: Path, repo_id: str) -> None:
    """Every number and name that the card must have, and that it is rendered again just so."""
    results = json.loads((folder / "results.json").read_text())
    text = (folder / "README.md").read_text()
    card = ModelCard(text)
    fused = {row["method"]: row for row in results["rows"] if row["split"] == "test"}
    listed = {result.metric_name: result for result in card.data.eval_results}
    names = {"audio": "audio only", "vision": "frames only", "sum": "plain sum", "fused": "the decision"}
    names["prior_sum"] = "plain sum, prior counted once"
    assert set(listed) == {f"Accuracy, {name}" for name in names.values()}
    for method, name in names.items():
        result, row = listed[f"Accuracy, {name}"], fused[method]
        assert result.metric_value == pytest.approx(row["accuracy"], abs=1e-6)
        assert result.metric_args["ci95"] == pytest.approx(row["accuracy_ci"], abs=1e-6)
        assert result.metric_args["n"] == row["n"] == 15 and result.dataset_split == "test"
        assert f"| {name} | {100 * row['accuracy']:.1f} |" in text
    origin = results["provenance"]
    for value in (
        origin["command"],
        origin["code"],
        origin["data"]["fingerprint"],
        *(f"{name} {version}" for name, version in results["versions"].items()),
        f'revision="{pinned_revision(folder)}"',
        "2 processes",
        "| train | 24 |",
        "![Capability",
    ):
        assert value in text, value
    assert origin["processes"] == 2 and repo_id in origin["command"]
    assert (folder / "weights_by_class.png").read_bytes().startswith(b"\x89PNG")
    for index, name in enumerate(results["classes"]):
        row = " | ".join(f"{results['weights'][modality][index]:.2f}" for modality in ("audio", "vision"))
        assert f"| {name} | {row} |" in text

    again = folder.with_name("again")
    shutil.copytree(folder, again, ignore=shutil.ignore_patterns("README.md", "*.html", "*.png", "diagnosis.json"))
    command = [sys.executable, "-m", "hf_mmbalance.cli", "card", str(again), "--repo_id", repo_id]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert (again / "README.md").read_text() == text


@pytest.mark.slow
def test_a_push_that_cannot_be_stops_before_training_and_one_that_breaks_keeps_the_run(hub, run_client, tmp_path):
    repo_id, folder = f"{hub.user}/broken", tmp_path / "run"
    options = [*TINY, "--output_dir", str(folder), "--push_to_hub", "true", "--hub_model_id", repo_id]
    refused = launch(hub, tmp_path, *options, processes=2, token=hub.account.read_token)
    assert refused.returncode != 0 and "Your token has no right to do this" in refused.stderr
    assert not folder.exists() and "epoch" not in refused.stdout, "it trained all the same"
    nobody = launch(hub, tmp_path, *options, token=None)
    assert nobody.returncode == 2 and "log in with `hf auth login`" in nobody.stderr

    hub.fail(Refuse(path="/broken/commit/", status=503, times=None))
    broken = launch(hub, tmp_path, *options)
    assert broken.returncode == 2, broken.stderr[-2000:]
    assert "a checkpoint was not pushed, training continues" in broken.stderr
    again = f"`mmbalance push {folder} {repo_id}` pushes it"
    assert again in broken.stderr and (folder / "results.json").is_file()
    assert not list(folder.glob(".push-*")), "staged files were left behind"

    hub.server.faults.clear()
    push = "import sys\nfrom hf_mmbalance.cli import main\nraise SystemExit(main(sys.argv[1:]))"
    done = run_client(push, args=["push", str(folder), repo_id])
    assert re.search(rf"^tag +{pinned_revision(folder)}$", done.stdout, re.M)
    assert "model.safetensors" in stored(hub, repo_id)[1].files
    no_token_in(hub, refused.stderr, nobody.stderr, broken.stdout, broken.stderr, folders=(folder,))
