"""Models pushed and pulled by real clients: one commit and a tag, any revision, without the package, with faults."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ASTConfig, ASTForAudioClassification, ViTConfig, ViTForImageClassification

from hf_mmbalance import AudioVisualClassificationPipeline
from hf_mmbalance.hub import model_push
from hf_mmbalance.hub.model_card import pinned_revision
from tests.media_factory import write_clip
from tests.model.test_pipeline import assert_same, tiny_processor
from tests.model.tiny import AUDIO, VISION, tiny_model

from .client import run_python
from .faults import CutAnswer, CutRequest, RacingCommit, Refuse, Slow


CODE = {
    *("modeling_mmbalance.py", "configuration_mmbalance.py", "processing_mmbalance.py", "pipeline_mmbalance.py"),
    *("reading_mmbalance.py", "inputs_mmbalance.py", "windows_mmbalance.py", "media_mmbalance.py"),
    *("media_request_mmbalance.py", "media_sound_mmbalance.py", "media_frames_mmbalance.py"),
    *("heads_mmbalance.py", "losses_mmbalance.py", "fusion_mmbalance.py", "fusion_adaptive_mmbalance.py"),
}
PUSH = """
import json, os, sys
from pathlib import Path
from hf_mmbalance.hub import HubError, push_saved
print(push_saved(Path(sys.argv[1]), os.environ["USER"] + "/" + sys.argv[2], message=sys.argv[3]).oid)
assert not {"torch", "transformers"} & set(sys.modules), "a push of files needs neither"
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", seconds=0.6)


def stored(hub, repo: str, revision: str = "main"):
    repo = hub.server.store.repos["models", repo]
    return repo, repo.resolve(revision)


def no_token_in(hub, *texts: str, folders: tuple[Path, ...] = ()) -> None:
    """Neither in what was said nor in any file that was written."""
    files = [path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()]
    for token in (hub.token, hub.account.read_token):
        assert not any(token in text for text in texts)
        assert not any(token.encode() in data for data in files)


def answers_of(done) -> dict:
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("ANSWERS"))[8:])


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


def test_only_the_model_is_pushed_and_only_its_own_old_shards_go(hub, run_client, saved, tmp_path):
    """What lies below the folder is not the model's, and other weights of the repository are not its old ones."""
    folder, repo_id = shutil.copytree(saved, tmp_path / "model"), f"{hub.user}/m"
    for inside in ("notes/plan.py", "checkpoint-3/model.safetensors", "model_v1/model.safetensors"):
        (folder / inside).parent.mkdir()
        (folder / inside).write_text("x")
    others = ["models/tower.safetensors", "model_v0/model.safetensors", "notes.txt"]
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    old = [*others, *shards, "model.safetensors.index.json"]
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


FAULTY_LOADS = """
import errno, json, os, sys
import huggingface_hub.file_download as download
from hf_mmbalance import MMBalanceForAudioVisualClassification
from hf_mmbalance.hub import HubError, load_classifier

def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")

said, get = {}, download.http_get
for name, revision in json.loads(sys.argv[1]):
    download.http_get = full if name.endswith("/roomless") else get
    try:
        load_classifier(name, revision, device="cpu")
        said[name + "@" + str(revision)] = "loaded"
    except (HubError, ValueError) as error:
        said[name + "@" + str(revision)] = type(error).__name__ + ": " + str(error)
download.http_get = get
assert "transformers_modules" not in sys.modules, "code of a repository was run unasked"
print("ANSWERS", json.dumps(said))
"""


class Variants:
    """Repositories with the files of a saved model, of which something is changed; all methods return the name."""

    def __init__(self, hub, saved: Path):
        self.hub = hub
        self.files = {path.name: path.read_bytes() for path in saved.iterdir()}
        self.config = json.loads(self.files["config.json"])

    def seed(self, name: str, files: dict[str, bytes], private: bool = False) -> str:
        self.hub.server.seed("models", f"{self.hub.user}/{name}", files, private=private)
        return f"{self.hub.user}/{name}"

    def changed(self, name: str, *, drop: str = "", private: bool = False, **changes) -> str:
        """With other values in the config, and without the files whose names match."""
        kept = {name: data for name, data in self.files.items() if not (drop and re.search(drop, name))}
        return self.seed(name, {**kept, "config.json": json.dumps({**self.config, **changes}).encode()}, private)

    def codeless(self) -> str:
        plain = {key: value for key, value in self.config.items() if key not in ("auto_map", "custom_pipelines")}
        kept = {name: self.files[name] for name in ("model.safetensors", "processor_config.json")}
        return self.seed("codeless", {**kept, "config.json": json.dumps(plain).encode()})

    def without_weights(self) -> dict[str, bytes]:
        return {name: data for name, data in self.files.items() if not name.startswith("model.")}

    def hostile(self) -> str:
        """Weights and a file whose names leave the folder."""
        shard = {"metadata": {"total_size": 4}, "weight_map": {"fusion.alpha": "../../../../escaped.safetensors"}}
        weights = {
            "model.safetensors.index.json": json.dumps(shard).encode(),
            "../../../../escaped.safetensors": self.files["model.safetensors"],
        }
        return self.seed("hostile", {**self.without_weights(), **weights})

    def pickled(self) -> str:
        return self.seed("pickled", {**self.without_weights(), "pytorch_model.bin": b"not to be opened"})


def test_loads_that_cannot_be(hub, run_client, saved, tmp_path):
    """The client's own words and one sentence on what to do; and what is merely slow or shaky is loaded."""
    variants = Variants(hub, saved)
    seed = variants.changed
    hub.fail(
        Refuse(path="/shaky/resolve/.*config.json", status=500),
        CutAnswer(path="/cut/resolve/.*safetensors", method="GET", after_bytes=1000),
        Slow(path="/slow/resolve/.*safetensors", method="GET", seconds=1.0),
    )
    wanted = {
        (seed("fine"), "main"): "^loaded$",
        (seed("shaky"), None): "^loaded$",
        (seed("cut"), None): "^loaded$",
        (seed("slow"), None): "^loaded$",
        (variants.codeless(), None): "^loaded$",
        (f"{hub.user}/fine", "absent"): "not a valid git identifier.*Name a branch, tag or commit that exists",
        (f"{hub.user}/absent", None): r"absent is not a local folder.*Check the name \(user/name\)",
        (seed("secret", private=True), None): "Check the name .*for a private one, log in with `hf auth login`",
        (seed("newer", format_version=2), None): "saved by a newer hf_mmbalance.*pip install -U hf_mmbalance",
        (seed("unknown", fusion="of_the_future"), None): "fusion='of_the_future' is unknown: choose one of",
        (seed("half", drop=r"safetensors$"), None): "does not appear to have a file named.*push again",
        (seed("voiceless", drop=r"processor"), None): "HubError: loading model",
        (seed("roomless"), None): "(?i)The disk is full: make room, or set HF_HOME",
        (seed("bert", model_type="bert"), None): "is a 'bert' model: name one that was trained with hf_mmbalance",
        (seed("escape", fusion="../../evil:Head"), None): "is not a valid name: give a registered one",
        (seed("own", fusion="evil:Head"), None): "read its evil.py, and if you trust it pass trust_remote_code=True",
        (
            variants.seed("empty", {"README.md": b""}),
            None,
        ): "has no config.json that names a model type.*push it again",
        (variants.hostile(), None): "cannot contain a '..' path segment",
        (variants.pickled(), None): "does not appear to have a file named model.safetensors",
    }
    home = tmp_path / "home"
    done = run_client(FAULTY_LOADS, args=[json.dumps(list(wanted))], token=None, timeout=200, home=home)
    said = answers_of(done)
    for (name, revision), words in wanted.items():
        text = said[f"{name}@{revision}"]
        assert re.search(words, text, re.DOTALL), f"{name}@{revision}: {text}"
    assert not list(tmp_path.rglob("escaped*")), "a file left its folder"
    assert hub.log.count("resolve", method="GET", path=r"\.bin") == 0, "pickled weights were downloaded"
    no_token_in(hub, done.stdout, done.stderr, folders=(home,))


BACKBONES = """
import json, os, sys
import torch
from hf_mmbalance import MMBalanceForAudioVisualClassification, MMBalanceProcessor
USER = os.environ["USER"]
names = (USER + "/ast", USER + "/vit")
model = MMBalanceForAudioVisualClassification.from_backbones(
    *names, id2label={0: "a", 1: "b"}, vision_revision="v1"
)
processor = MMBalanceProcessor.from_backbones(*names)
torch.save(model.state_dict(), sys.argv[1])
try:
    MMBalanceForAudioVisualClassification.from_backbones(USER + "/none", names[1], id2label={0: "a", 1: "b"})
except ValueError as error:
    print("SAID", error)
print("LENGTH", processor.feature_extractor.max_length)
"""


def legacy(folder: Path, model) -> Path:
    model.save_pretrained(folder, save_original_format=True)
    return folder


def test_backbones_come_from_the_hub_and_their_legacy_names_convert(hub, run_client, tmp_path):
    """Checkpoints in the form of the real ones: a classifier's, with a prefix, a head, and names of old."""
    torch.manual_seed(0)
    ast = ASTForAudioClassification(ASTConfig(**{k: v for k, v in AUDIO.items() if k != "model_type"}))
    vit = ViTForImageClassification(ViTConfig(**{k: v for k, v in VISION.items() if k != "model_type"}))
    for name, model in (("ast", ast), ("vit", vit)):
        folder = legacy(tmp_path / name, model)
        prefix = "audio_spectrogram_transformer" if name == "ast" else "vit"
        keys = set(load_file(folder / "model.safetensors"))
        assert f"{prefix}.encoder.layer.0.attention.attention.query.weight" in keys, "not the legacy form"
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        repo = hub.server.seed("models", f"{hub.user}/{name}", files)
        repo.tags["v1"] = repo.branches["main"]
    done = run_client(BACKBONES, args=[str(tmp_path / "state.pt")])
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    for prefix, tower in (("audio_model.", ast.base_model), ("vision_model.", vit.base_model)):
        for name, value in tower.state_dict().items():
            if not name.startswith("pooler."):
                torch.testing.assert_close(state[prefix + name], value, atol=0, rtol=0)
    assert f"LENGTH {AUDIO['max_length']}" in done.stdout
    assert f"audio backbone '{hub.user}/none' cannot be loaded" in done.stdout
    assert hub.log.count("resolve", method="GET", path="safetensors") == 2


@pytest.mark.slow
def test_real_checkpoints_with_legacy_names_convert(hub, run_client, real_data, tmp_path):
    """A DINOv2-sized pair: the tower's outputs are those of AutoModel on the file's own names."""
    weights = real_data.parent / "weights"
    if not weights.is_dir():
        pytest.skip(f"{weights} is not there: it must hold ast_s14_from_vit and vit_s14")
    from transformers import AutoModel

    for name, kept in (("ast", "ast_s14_from_vit"), ("vit", "vit_s14")):
        files = {path.name: path.read_bytes() for path in (weights / kept).iterdir()}
        repo = hub.server.seed("models", f"{hub.user}/{name}", files)
        repo.tags["v1"] = repo.branches["main"]
    run_client(BACKBONES, args=[str(tmp_path / "state.pt")])
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    for prefix, kept in (("audio_model.", "ast_s14_from_vit"), ("vision_model.", "vit_s14")):
        raw = load_file(weights / kept / "model.safetensors")
        assert "encoder.layer.0.attention.attention.query.weight" in raw
        query = state[f"{prefix}layers.0.attention.q_proj.weight"]
        torch.testing.assert_close(query, raw["encoder.layer.0.attention.attention.query.weight"].float())
        tower = AutoModel.from_pretrained(weights / kept, dtype=torch.float32).state_dict()
        for name, value in tower.items():
            if not name.startswith("pooler."):
                torch.testing.assert_close(state[prefix + name], value, atol=0, rtol=0)


PREDICT = """
import sys
from hf_mmbalance.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


def test_the_command_prints_what_the_pipeline_says(hub, run_client, saved, clip, tmp_path):
    hub.server.seed("models", f"{hub.user}/m", {path.name: path.read_bytes() for path in saved.iterdir()})
    silent = write_clip(tmp_path / "silent.mp4", seconds=0.2, tone=None)
    args = ["predict", str(clip), str(silent), "nothing.mp4", "--model", f"{hub.user}/m", "--revision", "main"]
    done = run_client(
        PREDICT, args=[*args, "--top_k", "2", "--device", "cpu", "--json", str(tmp_path / "out.json")], check=False
    )
    assert done.returncode == 2 and "error: nothing.mp4: no such file" in done.stderr
    classify = AudioVisualClassificationPipeline(tiny_model(), processor=tiny_processor(), device="cpu")
    expected = [classify(str(path), top_k=2) for path in (clip, silent)]
    written = json.loads((tmp_path / "out.json").read_text())
    assert [entry["clip"] for entry in written] == [str(clip), str(silent), "nothing.mp4"]
    assert written[2] == {"clip": "nothing.mp4", "error": "nothing.mp4: no such file"}
    for entry, answer in zip(written[:2], expected, strict=True):
        assert_same(entry["answer"], answer)
    lines = [line.split() for line in done.stdout.splitlines()]
    best = expected[0][0]
    row = next(line for line in lines if line and line[0] == best["label"])
    numbers = [100 * best["score"], *best["share"].values(), *(100 * v for v in best["modality_score"].values())]
    np.testing.assert_allclose([float(word) for word in row[1:]], numbers, atol=0.06)
    assert any(line and line[0] == expected[1][0]["label"] and "-" in line for line in lines), "a missing modality"
    trust = {name: f"{100 * value:.1f}" for name, value in best["trust"].items()}
    assert f"{clip} (trust: audio {trust['audio']}, vision {trust['vision']})" in done.stdout
    assert f"{silent} (trust: audio -, vision" in done.stdout


@pytest.mark.slow
def test_the_server_is_asked_for_nothing_with_a_warm_cache_offline(hub, saved, tmp_path):
    hub.server.seed("models", f"{hub.user}/m", {path.name: path.read_bytes() for path in saved.iterdir()})
    code = f"from hf_mmbalance.hub import load_classifier\nload_classifier('{hub.user}/m', device='cpu')\n"
    run_python(hub.server, code, home=tmp_path / "home")
    hub.log.clear()
    run_python(hub.server, code, home=tmp_path / "home", env={"HF_HUB_OFFLINE": "1"})
    assert not list(hub.log)
