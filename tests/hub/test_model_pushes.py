"""Models pushed by real clients: one commit and a tag, what changed, pulled without the package, through faults."""

from __future__ import annotations

import json
import re
import shutil

from safetensors.torch import load_file, save_file

from hf_mmbalance import AudioVisualClassificationPipeline
from hf_mmbalance.hub import model_push
from hf_mmbalance.hub.model_card import pinned_revision
from tests.model.test_pipeline import assert_same, tiny_processor
from tests.model.tiny import tiny_model

from .faults import CutAnswer, CutRequest, RacingCommit, Refuse, Slow
from .models import CODE, PUSH, answers_of, no_token_in, stored


def test_one_commit_and_a_tag_and_only_what_changed_again(hub, run_client, saved, tmp_path):
    folder, repo_id = shutil.copytree(saved, tmp_path / "model"), f"{hub.user}/m"
    oid = run_client(PUSH, args=[str(folder), "m", "First"]).stdout.strip()
    repo, head = stored(hub, repo_id)
    assert [commit.title for commit in repo.history(head)] == ["First", "initial commit"] and head.oid == oid
    files = set(head.files) - {".gitattributes"}
    assert {"README.md", "config.json", "processor_config.json", "model.safetensors"} | CODE <= files
    assert files == {path.name for path in folder.iterdir()}
    card = (folder / "README.md").read_text()
    (tag,) = repo.tags
    assert repo.tags[tag] == oid and f'revision="{tag}"' in card and repo_id in card
    assert "revision" in re.search(r"AutoModel.from_pretrained\(.*\)", card)[0]

    hub.log.clear()
    assert run_client(PUSH, args=[str(folder), "m", "Again"]).stdout.strip() == oid
    assert hub.log.received("lfs_upload") == 0 and hub.log.count("commit") == 0
    assert sum(record.received for record in hub.log) < 30_000 and len(list(hub.log)) <= 10

    hub.log.clear()
    weights = load_file(folder / "model.safetensors")
    weights["fusion.bias"] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "README.md").unlink()  # it names the tag of the old weights
    run_client(PUSH, args=[str(folder), "m", "Second"])
    repo, head = stored(hub, repo_id)
    assert [commit.title for commit in repo.history(head)] == ["Second", "First", "initial commit"]
    assert hub.log.received("lfs_upload") == (folder / "model.safetensors").stat().st_size
    assert hub.log.received("commit") < 8000, "code that did not change was sent again"
    assert len(repo.tags) == 2 and repo.tags[tag] == oid, "a tag that a card pins must not move"


def test_the_command_prints_repository_commit_and_tag(hub, run_client, saved, tmp_path):
    folder, repo_id = shutil.copytree(saved, tmp_path / "model"), f"{hub.user}/m"
    command = "import sys\nfrom hf_mmbalance.cli import main\nraise SystemExit(main(sys.argv[1:]))"
    done = json.loads(run_client(command, args=["push", str(folder), repo_id, "--json", "-"]).stdout)
    assert done.keys() == {"repo", "url", "commit", "tag"} and done["repo"] == repo_id
    assert stored(hub, repo_id)[0].tags == {done["tag"]: done["commit"]}
    lines = run_client(command, args=["push", str(folder), repo_id]).stdout.splitlines()
    assert [line.split() for line in lines] == [[name, done[name]] for name in done]


def test_only_the_model_is_pushed_and_only_its_own_old_shards_go(hub, run_client, saved, tmp_path):
    """What lies below the folder is not the model's, and other weights of the repository are not its old ones."""
    folder, repo_id = shutil.copytree(saved, tmp_path / "model"), f"{hub.user}/m"
    for inside in ("notes/plan.py", "checkpoint-3/model.safetensors", "model_v1/model.safetensors"):
        (folder / inside).parent.mkdir()
        (folder / inside).write_text("x")
    others = ["models/tower.safetensors", "model_v0/model.safetensors", "notes.txt"]
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    results = ["results.json", "decisions.parquet", "diagnosis.html"]  # of the weights that are replaced
    old = [*others, *shards, *results, "model.safetensors.index.json"]
    hub.server.seed("models", repo_id, dict.fromkeys(old, b"x"))
    run_client(PUSH, args=[str(folder), "m", "First"])
    files = set(stored(hub, repo_id)[1].files) - {".gitattributes"}
    assert files == {path.name for path in folder.iterdir() if path.is_file()} | set(others)


def test_a_card_that_names_other_weights_is_warned_of(saved, tmp_path, monkeypatch, caplog):
    folder = shutil.copytree(saved, tmp_path / "model")
    monkeypatch.setattr(model_push, "prepare_repo", lambda name, **options: name)
    monkeypatch.setattr(model_push, "push_folder", lambda *args, **options: None)
    model_push.push_saved(folder, "me/m2")  # which writes the card
    model_push.push_saved(folder, "me/m2")
    assert not caplog.messages
    model_push.push_saved(folder, "me/m")
    assert re.search("README.md does not name me/m, which is pushed: .*written again", caplog.text)
    caplog.clear()
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    model_push.push_saved(folder, "me/m2")
    (message,) = caplog.messages
    assert f"does not name {pinned_revision(folder)}, which is pushed" in message


PUSH_OBJECTS = """
import os, sys
from hf_mmbalance import AudioVisualClassificationPipeline, MMBalanceForAudioVisualClassification, MMBalanceProcessor
from hf_mmbalance.hub import push_model
model = MMBalanceForAudioVisualClassification.from_pretrained(sys.argv[1])
processor = MMBalanceProcessor.from_pretrained(sys.argv[1])
USER = os.environ["USER"]
push_model(model, processor, USER + "/pushed", private=True)
model.push_to_hub(USER + "/model")
AudioVisualClassificationPipeline(model, processor=processor, device="cpu").push_to_hub(USER + "/pipeline")
"""


def test_objects_are_pushed_whole_by_us_and_by_transformers_own_method(hub, run_client, saved):
    run_client(PUSH_OBJECTS, args=[str(saved)])
    own = {"processing_mmbalance.py", "processor_config.json"}
    for name in ("pushed", "model", "pipeline"):
        repo, head = stored(hub, f"{hub.user}/{name}")
        assert len(list(repo.history(head))) == 2, name
        needed = {"config.json", "model.safetensors", "README.md"} | CODE | own
        assert needed - set(head.files) == (own if name == "model" else set())  # which goes with the processor
        assert repo.private == (name == "pushed")
        card = hub.server.store.read(head.files["README.md"]).decode()
        assert "- audio-visual-classification\n" in card or name == "pipeline"  # where transformers tags nothing
        config = json.loads(hub.server.store.read(head.files["config.json"]))
        assert config["auto_map"]["AutoModel"] == "modeling_mmbalance.MMBalanceForAudioVisualClassification"
        assert "audio-visual-classification" in config["custom_pipelines"]


PULL = """
import json, os, re, sys
try:
    import hf_mmbalance
except ImportError:
    pass
else:
    raise SystemExit("the package must not be importable here")
import transformers
from huggingface_hub import HfApi, hf_hub_download
from transformers import AutoProcessor, pipeline
repo, clip = os.environ["USER"] + "/m", "clip.mp4"
processor = AutoProcessor.from_pretrained(repo, trust_remote_code=True)
answers, logits = {}, []
for name in ("AutoModel", "AutoModelForAudioClassification", "AutoModelForVideoClassification"):
    model = getattr(transformers, name).from_pretrained(repo, trust_remote_code=True)
    logits.append(model(**processor(video=clip)).logits.tolist())
assert logits[0] == logits[1] == logits[2]
refs = HfApi().list_repo_refs(repo)
for revision in ("main", "next", refs.tags[0].name, refs.branches[0].target_commit, None):
    classify = pipeline("audio-visual-classification", model=repo, revision=revision, trust_remote_code=True)
    assert type(classify).__module__.startswith("transformers_modules."), type(classify)
    answers[str(revision)] = classify(clip)
answers["no task"] = pipeline(model=repo, trust_remote_code=True)(clip)
snippets = re.findall("```python\\n(.*?)```", open(hf_hub_download(repo, "README.md")).read(), re.DOTALL)
for snippet in snippets:
    exec(snippet, {})
try:
    pipeline("audio-visual-classification", model=repo, trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code=True" in str(error)
else:
    raise SystemExit("code was run unasked")
print("SNIPPETS", len(snippets))
print("ANSWERS", json.dumps(answers))
"""


def test_pulled_without_the_package_by_every_revision_and_the_cards_snippets_run(
    hub, run_client, saved, clip, tmp_path
):
    folder = shutil.copytree(saved, tmp_path / "model")
    run_client(PUSH, args=[str(folder), "m", "First"])
    repo, head = stored(hub, f"{hub.user}/m")
    hub.server.store.commit(repo, "next", head.files, hub.user, "A branch")
    home = tmp_path / "stranger"
    home.mkdir()
    shutil.copy(clip, home / "clip.mp4")
    hub.log.clear()
    done = run_client(PULL, home=home, token=None, without=["hf_mmbalance"])
    expected = AudioVisualClassificationPipeline(tiny_model(), processor=tiny_processor(), device="cpu")(str(clip))
    answers = answers_of(done)
    assert len(answers) == 6 and "SNIPPETS 2" in done.stdout
    for revision, answer in answers.items():
        assert_same(answer, expected), revision
    downloads = hub.log.count("resolve", method="GET", path=r"model\.safetensors$")
    assert downloads == 1, "weights that did not change were downloaded again"
    no_token_in(hub, done.stdout, done.stderr, folders=(home,))


FAULTY_PUSHES = """
import json, os, sys
from pathlib import Path
from hf_mmbalance.hub import HubError, commit, push_saved
commit.WAITS = (0.05,) * len(commit.WAITS)
said = {}
for name in sys.argv[2].split(","):
    repo = name if "/" in name else os.environ["USER"] + "/" + name
    try:
        push_saved(Path(sys.argv[1]), repo)
        said[name] = "pushed"
    except HubError as error:
        said[name] = str(error)
print("ANSWERS", json.dumps(said))
"""


def test_pushes_through_faults(hub, run_client, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "model")
    (folder / "README.md").write_text("---\ntags: [x]\n---\n")
    hub.fail(
        Refuse(path="/fails/commit/", status=500, times=2),
        Refuse(path="/down/commit/", status=503, times=None),
        CutRequest(path="/cut/commit/", after_bytes=4000),
        CutAnswer(path="/lost/commit/", after_bytes=None),
        Slow(path="/slow/preupload/", seconds=1.0),
        RacingCommit(path="/raced/commit/"),
        Refuse(path="/full/commit/", status=507, times=None, message="Storage is full"),
        Refuse(path="/untagged/tag/", status=500, times=None),
        Refuse(path="/untried/auth-check/", status=500),
    )
    hub.server.add_account("other")
    names = ["fails", "down", "cut", "lost", "slow", "raced", "full", "untagged", "untried", "other/m", "a b"]
    done = run_client(FAULTY_PUSHES, args=[str(folder), ",".join(names)])
    said = answers_of(done)
    for name in ("fails", "cut", "lost", "slow", "raced", "untried"):
        assert said[name] == "pushed", said[name]
        repo, head = stored(hub, f"{hub.user}/{name}")
        assert "model.safetensors" in head.files and len(repo.tags) == 1
    raced, head = stored(hub, f"{hub.user}/raced")
    assert len(list(raced.history(head))) == 3, "the other's commit was lost"
    for name, words in {
        "down": "The Hub has a temporary error: run the same command again later",
        "full": "The Hub has no space left for this",
        "untagged": "tagging .*The Hub has a temporary error",
        "other/m": "Your token has no right to do this",
        "a b": "A repository is named user/name",
    }.items():
        assert re.search(words, said[name], re.DOTALL), said[name]
    assert len(stored(hub, f"{hub.user}/down")[1].files) == 1, "half a push"
    no_token_in(hub, done.stdout, done.stderr, folders=(folder,))

    hub.server.faults.clear()
    hub.log.clear()
    again = answers_of(run_client(FAULTY_PUSHES, args=[str(folder), "down,untagged"]))
    assert again == {"down": "pushed", "untagged": "pushed"}
    assert len(stored(hub, f"{hub.user}/untagged")[0].tags) == 1
    assert hub.log.received("lfs_upload") == 0, "weights that had arrived were sent again"

    nobody = answers_of(run_client(FAULTY_PUSHES, args=[str(folder), f"{hub.user}/down"], token=None))
    assert "log in with `hf auth login`" in nobody[f"{hub.user}/down"]
    reader = run_client(FAULTY_PUSHES, args=[str(folder), "down,new"], token=hub.account.read_token)
    assert all("has no right to do this" in text for text in answers_of(reader).values())
    no_token_in(hub, reader.stdout, reader.stderr)
