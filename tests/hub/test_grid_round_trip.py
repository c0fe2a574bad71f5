"""GRID built, published while the Hub fails, streamed from a fresh cache, and trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.training.tiny_runs import AUDIO, VISION

from .built import SCRIPTS
from .faults import CutAnswer, CutRequest, RacingCommit, Refuse, Slow


STREAM = """
import sys, time
import torch, datasets, transformers
from torch.utils.data import DataLoader
from hf_mmbalance.data import load
start = time.perf_counter()
stream = load(sys.argv[1], revision=sys.argv[2], streaming=True, batch_size=4, label_column="digit",
              start_column="digit_start", end_column="digit_end", margin=0.08, frames=4, frame_size=[24, 32])
batch = next(iter(DataLoader(stream, batch_size=None, collate_fn=list)))
took = time.perf_counter() - start
print(len(batch), batch[0]["frames"].shape, round(took, 2))
assert took < 2, took
"""
BUILD = ("--frame-size", "24", "32", "--crop", "0.379", "0.696", "0.683", "0.902", "--frames", "10")


@pytest.fixture
def clips(real_data, tmp_path) -> Path:
    """Fifty of the real clips."""
    root = tmp_path / "grid"
    (root / "s1").mkdir(parents=True)
    (root / "align").symlink_to(real_data / "grid_s1" / "align")
    for path in sorted((real_data / "grid_s1" / "s1").iterdir())[::20]:
        (root / "s1" / path.name).symlink_to(path)
    return root


@pytest.mark.slow
def test_built_published_streamed_trained(hub, run_client, clips, tmp_path):
    folder, repo = tmp_path / "built", f"{hub.user}/grid-digits"
    script = SCRIPTS / "grid.py"
    run_client(script, args=["build", "--source", str(clips), "--out", str(folder), "--num-proc", "1", *BUILD])
    push = ["publish", str(folder), repo, "--private", "--json", "-"]

    faults = [
        Refuse(path="/repos/create", status=500),
        Refuse(path="/lfs-upload/", status=503),
        CutRequest(path="/lfs-upload/", after_bytes=70_000, skip=1),
        Refuse(path="/lfs-upload/", status=403, message="Interrupted", skip=4),
    ]
    hub.fail(*faults)
    interrupted = run_client(script, args=push, check=False)
    assert interrupted.returncode == 2 and "Interrupted" in interrupted.stderr
    arrived = hub.log.count("lfs_upload", status=200)
    assert [fault.hits for fault in faults] == [1] * len(faults)
    faults = [
        Refuse(path="/commit/main", status=502),
        RacingCommit(skip=1),
        CutAnswer(path="/commit/main", skip=2),
        Slow(path="/preupload/", seconds=0.5),
    ]
    hub.fail(*faults)
    hub.log.clear()
    done = json.loads(run_client(script, args=push).stdout)
    assert [fault.hits for fault in faults] == [1] * len(faults)
    files = done["files"] + 1  # the contact sheet
    assert hub.log.count("lfs_upload", status=200) == files - arrived, "what arrived was sent again"
    stored = hub.server.store.repos["datasets", repo]
    titles = [commit.title for commit in stored.history(stored.resolve("main"))]
    assert titles == [f"Data: 50 clips ({done['tag']})", "A commit that came first", "initial commit"]

    refused = run_client(STREAM, args=[repo, done["tag"]], token=None, check=False)
    assert refused.returncode == 1 and "cannot be loaded" in refused.stderr
    hub.log.clear()
    streamed = run_client(STREAM, args=[repo, done["tag"]], without=["torchcodec"])
    assert streamed.stdout.startswith("4 (4, 24, 32, 3)"), streamed.stdout
    assert hub.log.count("resolve", status=206), "not read by ranges"

    hub.fail(CutAnswer(path="/resolve/.*parquet", method="GET", after_bytes=5000), Slow(path="/resolve/", seconds=0.2))
    flags = ["--dataset", repo, "--revision", done["tag"], "--in_memory", "true", "--label_column", "digit"]
    flags += ["--start_column", "digit_start", "--end_column", "digit_end", "--margin", "0.08", "--use_cpu", "true"]
    flags += ["--frames", "4", "--frame_size", "16", "16", "--num_train_epochs", "1", "--disable_tqdm", "true"]
    flags += ["--audio_config", json.dumps(AUDIO), "--vision_config", json.dumps(VISION)]
    out = tmp_path / "run"
    train = Path(__file__).parents[2] / "train.py"
    ran = run_client(train, args=[*flags, "--output_dir", str(out)], without=["torchcodec"], timeout=200)
    results = json.loads((out / "results.json").read_text())
    assert sum(results["n_per_split"].values()) == 50 and results["n"] == results["n_per_split"]["test"], ran.stdout
    assert results["arguments"]["revision"] == done["tag"]
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or hub.token.encode() not in path.read_bytes(), f"{path} holds the token"
    everything = [ran.stdout, ran.stderr, interrupted.stderr, refused.stderr, (out / "results.json").read_text()]
    assert not any(token in text for text in everything for token in (hub.token, hub.account.read_token))
