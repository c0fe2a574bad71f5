"""`mmbalance compare` with models on the Hub: judged by the table that was pushed with them, at a named revision."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_mmbalance.hub.run_files import run_files
from tests.decision.test_compare import write_run


UPLOAD = """
import json, sys
from huggingface_hub import HfApi
api, found = HfApi(), {}
for repo, folder, patterns in json.loads(sys.argv[1]):
    api.create_repo(repo, exist_ok=True)
    found[repo] = api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=patterns).oid
print("COMMITS", json.dumps(found))
"""
COMPARE = """
import json, sys
from hf_mmbalance.cli import main
for words in json.loads(sys.argv[1]):
    print("STATUS", main(["compare", *words]), flush=True)
    print("END", file=sys.stderr, flush=True)
"""


@pytest.mark.parametrize(
    "address", ["gone/table.parquet", "gone/table.CSV", "runs/of/mine", "/runs/mine", "run", "./a"]
)
def test_what_cannot_be_a_model_is_a_path(address):
    assert run_files(address) == (Path(address), [])


def test_what_is_here_is_not_looked_up(tmp_path, monkeypatch):
    (tmp_path / "user" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert run_files("user/name") == (Path("user/name"), [])


def test_models_are_compared_by_what_was_pushed(hub, run_client, tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"ours-s{seed}", "adaptive", seed, 3.0)
    theirs = tmp_path / "theirs-s0"
    write_run(theirs, "concat", 0, 1.0)
    (theirs / "config.json").write_text("{}")
    names = [f"{hub.user}/ours-s{seed}" for seed in (0, 1)]
    pushes = [(name, str(tmp_path / name.split("/")[1]), ["*.parquet", "*.json"]) for name in names]
    bare = f"{hub.user}/bare-0.5"
    done = run_client(UPLOAD, args=[json.dumps([*pushes, (bare, str(theirs), ["config.json"])])])
    commits = json.loads(done.stdout.split("COMMITS ")[1])

    run_folders = [str(tmp_path / f"ours-s{seed}") for seed in (0, 1)]
    calls = [
        [*names, str(theirs), "--json", str(tmp_path / "hub.json"), "--draws", "20"],
        [*run_folders, str(theirs), "--json", str(tmp_path / "local.json"), "--draws", "20"],
        [f"{names[0]}@{commits[names[0]]}", str(theirs), "--draws", "20"],
        [bare, str(theirs)],
        [f"{hub.user}/nothing", str(theirs)],
        [f"{names[0]}@v9", str(theirs)],
    ]
    done = run_client(COMPARE, args=[json.dumps(calls)])
    assert [line for line in done.stdout.splitlines() if line.startswith("STATUS")] == ["STATUS 0"] * 3 + [
        "STATUS 2"
    ] * 3
    by_hub, local = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("hub", "local"))
    seeds_together = [(row["configuration"], row["method"], row["seeds"]) for row in by_hub["rows"]]
    assert seeds_together[0] == (f"{hub.user}/ours", "adaptive", 2)
    values = [[row["accuracy"] for row in found["rows"]] for found in (by_hub, local)]
    assert values[0] == values[1]
    for name in names:
        assert f"{name} on the Hub, revision {commits[name]}" in by_hub["notes"]
        assert f"note: {name} on the Hub, revision {commits[name]}" in done.stdout
    assert local["notes"] == []
    errors = done.stderr.split("END")[3:]
    assert f"{bare} holds no decisions.parquet" in errors[0] and f"`mmbalance push RUN {bare}`" in errors[0]
    assert "no such folder or file here" in errors[1] and "Check the name (user/name)" in errors[1]
    assert "Give a branch, tag or commit that exists" in errors[2]
