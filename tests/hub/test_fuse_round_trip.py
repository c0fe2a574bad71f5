"""Two classifiers on the Hub, some real clips, one command, as the README says it; then a stranger's pipeline."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForAudioClassification, AutoModelForImageClassification

from tests.training.tiny_runs import AUDIO, VISION


README = (Path(__file__).parents[2] / "README.md").read_text()
STRANGER = """
import json, sys
from transformers import pipeline
classify = pipeline("audio-visual-classification", model=sys.argv[1], trust_remote_code=True)
answers = classify({"video": sys.argv[2], "start": float(sys.argv[3]), "end": float(sys.argv[4])}, top_k=2)
print("ANSWERS", json.dumps(answers))
"""
UPLOAD = """
import sys
from huggingface_hub import HfApi
api = HfApi()
api.create_repo(sys.argv[1])
api.upload_folder(repo_id=sys.argv[1], folder_path=sys.argv[2])
"""
VERB = "import sys; from hf_mmbalance.cli import main; raise SystemExit(main(sys.argv[1:]))"


@pytest.fixture
def classifiers(hub, run_client, tmp_path) -> dict[str, str]:
    """Tiny classifiers of spoken colours, one with names of its own, pushed to the test's Hub."""
    torch.manual_seed(0)
    names = {}
    for modality, tower, kind, labels in (
        ("audio", AUDIO, AutoModelForAudioClassification, ["BLUE", "GREEN", "RED", "WHITE", "silence"]),
        ("vision", VISION, AutoModelForImageClassification, ["b", "g", "r", "w"]),
    ):
        model = kind.from_config(AutoConfig.for_model(**tower, id2label=dict(enumerate(labels))))
        model.save_pretrained(tmp_path / modality)
        names[modality] = f"{hub.user}/{modality}-classifier"
        run_client(UPLOAD, args=[names[modality], str(tmp_path / modality)])
    return names


@pytest.fixture
def table(real_data, tmp_path) -> Path:
    """Forty spoken colours of GRID with their times, eight of them without a label."""
    with open(real_data / "grid_s1" / "labels.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[::25]
    lines = ["path,label,start,end"]
    for number, row in enumerate(rows):
        label = row["colour"] if number < 32 else ""
        path = real_data / "grid_s1" / row["file"]
        lines.append(f"{path},{label},{row['colour_start_s']},{row['colour_end_s']}")
    (tmp_path / "clips.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "clips.csv"


@pytest.mark.slow
def test_the_command_of_the_readme_fuses_two_hub_classifiers(hub, run_client, classifiers, table, tmp_path):
    block = re.search(r"```bash\n(mmbalance fuse .*?)```", README, flags=re.DOTALL)
    assert block is not None
    fuse, predict = (shlex.split(line.split("#")[0]) for line in block[1].strip().splitlines()[:2])
    (tmp_path / "labels.json").write_text(
        json.dumps({"vision": {"b": "blue", "g": "green", "r": "red", "w": "white"}})
    )
    places = {"AUDIO": classifiers["audio"], "VISION": classifiers["vision"], "clips.csv": str(table),
              "fused": str(tmp_path / "fused")}  # fmt: skip
    words = [places.get(word, word) for word in fuse[1:]]
    more = ["--label_map", str(tmp_path / "labels.json"), "--frames", "2", "--frame_size", "32", "32",
            "--push_to_hub", "--hub_model_id", f"{hub.user}/fused"]  # fmt: skip
    done = run_client(VERB, args=[*words, *more], timeout=280)
    assert "clips without a label, which are only predicted: 8" in done.stderr
    assert "audio: blue <- BLUE" in done.stderr
    assert "left out, because no class has such a name: silence" in done.stderr
    assert "accuracy by number of labelled clips" in done.stdout and "pushed to" in done.stdout
    assert len((tmp_path / "fused" / "answers.csv").read_text().splitlines()) == 9
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    clip = [rows[0][0], "--start", rows[0][2], "--end", rows[0][3]]
    told = run_client(VERB, args=["predict", *clip, *[places.get(word, word) for word in predict[3:]]])
    assert any(colour in told.stdout for colour in ("blue", "green", "red", "white"))
    stranger = run_client(STRANGER, args=[f"{hub.user}/fused", rows[0][0], *rows[0][2:4]], without=("hf_mmbalance",))
    answers = json.loads(stranger.stdout.split("ANSWERS ")[1])
    assert len(answers) == 2 and {"label", "score", "modality_score"} <= set(answers[0])
