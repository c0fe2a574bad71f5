"""`publish`: several builds in one repository, one default, only what changed sent; read by plain `datasets`."""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from hf_mmbalance.hub import dataset_card as cards
from hf_mmbalance.hub.dataset_push import publish as push_build
from hf_mmbalance.hub.errors import HubError
from tests.dataset_scripts.test_crema_d import load_script

from .built import SCRIPTS, build_toy, write_media
from .faults import CutAnswer, RacingCommit, Refuse, Slow


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    return write_media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def built(media, tmp_path_factory) -> Path:
    return build_toy(media, tmp_path_factory.mktemp("built") / "toy")


@pytest.fixture(scope="module")
def rebuilt(media, tmp_path_factory) -> Path:
    """Other clips in one of the three cells."""
    return build_toy(media, tmp_path_factory.mktemp("rebuilt") / "toy", shift=3)


@dataclass
class Published:
    """How the verb ended where it need not succeed."""

    returncode: int
    stderr: str


@pytest.fixture
def publish(hub, monkeypatch, tmp_path, capsys):
    """The verb in this process, for speed; the client's settings are those that `client_env` gives to a process."""
    settings = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(tmp_path / "hf"),
    }
    for name, setting in settings.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", setting)
    monkeypatch.setenv("HF_TOKEN", hub.token)

    def run(folder: Path, *flags: str, to: str = "toy", script: str = "grid", check: bool = True):
        args = ["publish", str(folder), f"{hub.user}/{to}", *flags, "--json", "-"]
        returncode = load_script(script).main(args)
        said = capsys.readouterr()
        assert hub.token not in said.out + said.err
        assert not check or returncode == 0, said.err
        return json.loads(said.out) if check else Published(returncode, said.err)

    return run


def files(hub, to: str = "toy", revision: str = "main") -> dict[str, bytes]:
    store = hub.server.store
    commit = store.repos["datasets", f"{hub.user}/{to}"].resolve(revision)
    return {path: store.read(entry) for path, entry in commit.files.items() if path != ".gitattributes"}


def card(hub, to: str = "toy") -> tuple[dict, str]:
    return cards.read_card(files(hub, to)["README.md"].decode(), to)


def titles(hub, to: str = "toy") -> list[str]:
    repo = hub.server.store.repos["datasets", f"{hub.user}/{to}"]
    return [commit.title for commit in repo.history(repo.resolve("main"))]


READ = """
import sys, time
from datasets import Audio, List, get_dataset_config_names, load_dataset, load_dataset_builder
repo, tag = sys.argv[1:]
assert get_dataset_config_names(repo) == ["fold0", "fold1"]
info = load_dataset_builder(repo).info
assert info.features["label"].names == ["even", "odd"] and info.splits["train"].num_examples == 7, info
assert isinstance(info.features["audio"], Audio) and isinstance(info.features["frames"], List), info.features
for revision in (None, tag):
    start = time.perf_counter()
    stream = load_dataset(repo, "fold1", split="train", streaming=True, revision=revision)
    stream = stream.cast_column("audio", Audio(decode=False))
    row = next(iter(stream))
    took = time.perf_counter() - start
    assert took < 2 or revision is None, took  # the first one imports what it needs
    assert row["audio"]["bytes"][:4] == b"fLaC" and row["frames"][0].size == (32, 24) and stream.num_shards == 4
    loaded = load_dataset(repo, revision=revision)
    assert {name: len(part) for name, part in loaded.items()} == {"train": 7, "test": 4}
    assert loaded["train"].features == info.features
    assert loaded["test"].cast_column("audio", Audio(decode=False))[0]["audio"]["bytes"][:4] == b"fLaC"
print("a warm stream yields after", round(took, 2), "s")
"""
SNIPPET = """
import sys
from huggingface_hub import hf_hub_download
text = open(hf_hub_download(sys.argv[1], sys.argv[2], repo_type="dataset")).read()
code = text.split("```python\\n")[1].split("```")[0]
assert sys.argv[1] in code and "revision=" in code, code
exec(code)
print({name: len(part) for name, part in clips.items()}, len(train), train.spec.stored.frames)
print(clips["train"].select_columns(["frames"])[0]["frames"][0].size)
"""


def test_a_build_is_published_and_read_by_plain_datasets(hub, run_client, built):
    """From the shell to a stranger's fresh cache, each a process of its own."""
    published = run_client(SCRIPTS / "grid.py", args=["publish", str(built), f"{hub.user}/toy", "--json", "-"])
    result = json.loads(published.stdout)
    assert titles(hub) == [f"Data: 11 clips ({result['tag']})", "initial commit"]
    assert result["configs"] == ["fold0", "fold1"] and result["default"] == "fold0" and result["files"] == 6
    assert hub.server.store.repos["datasets", f"{hub.user}/toy"].tags == {result["tag"]: result["commit"]}
    assert hub.log.received("lfs_upload") >= result["bytes"] > 1000
    hub.log.clear()
    done = run_client(READ, args=[f"{hub.user}/toy", result["tag"]], without=["torchcodec", "hf_mmbalance"])
    assert "a warm stream yields after" in done.stdout
    assert "none" not in hub.log.by_route() and hub.log.count("resolve", status=206)
    done = run_client(SNIPPET, args=[f"{hub.user}/toy", "README.md"], without=["torchcodec"])
    assert done.stdout == "{'train': 7, 'test': 4} 7 2\n(32, 24)\n"


def test_nothing_of_this_machine_is_published(hub, publish, built, media):
    publish(built)
    for path, content in files(hub).items():
        assert str(media.parent).encode() not in content, path
    text = files(hub)["manifest.csv"].decode()
    assert "gone.mp4: not there" in text and ",00.mp4\n" in text
    assert not [path for path in files(hub) if path.endswith((".py", ".json.tmp")) or "/." in path or path[0] == "."]


def test_a_second_push_sends_what_changed(hub, publish, built, rebuilt):
    first = publish(built)
    hub.log.clear()
    again = publish(built)
    assert (again["files"], again["bytes"], again["commit"]) == (0, 0, first["commit"])
    assert hub.log.count("lfs_upload") == 0 and hub.log.count("lfs_batch") == 0 and hub.log.count("commit") == 0
    hub.log.clear()
    changed = publish(rebuilt)
    assert 0 < changed["files"] == hub.log.count("lfs_upload") <= 2 and changed["tag"] != first["tag"]
    kept = {path for path in files(hub) if files(hub)[path] == files(hub, revision=first["commit"]).get(path)}
    assert {path for path in kept if "part0" in path or "part1" in path} == {
        path for path in files(hub) if re.search("part[01]", path)
    }
    repo = hub.server.store.repos["datasets", f"{hub.user}/toy"]
    assert set(repo.tags) == {first["tag"], changed["tag"]} and len(titles(hub)) == 3


def test_several_builds_share_a_repository(hub, publish, run_client, built, media, rebuilt, tmp_path):
    """A named build beside the main one; each is pushed again without touching the other."""
    small = build_toy(media, tmp_path / "small", frames=1, frame_size=12)
    main = publish(built)
    before = files(hub)
    named = publish(small, "--name", "small")
    assert named["configs"] == ["small-fold0", "small-fold1", "fold0", "fold1"] and named["default"] == "fold0"
    assert named["load"] == f'load_dataset("{hub.user}/toy", "small-fold0", revision="{named["tag"]}")'
    assert main["load"] == f'load_dataset("{hub.user}/toy", revision="{main["tag"]}")'
    after = files(hub)
    assert {path: content for path, content in after.items() if path in before and path != "README.md"} == {
        path: content for path, content in before.items() if path != "README.md"
    }
    assert {path.split("/")[0] for path in after.keys() - before.keys()} == {"small"}
    publish(rebuilt)
    head, body = card(hub)
    assert [c["config_name"] for c in head["configs"] if c.get("default")] == ["fold0"]
    assert sorted(cards.config_names(head)) == ["fold0", "fold1", "small-fold0", "small-fold1"]
    assert sorted(info["config_name"] for info in head["dataset_info"]) == sorted(cards.config_names(head))
    assert body.count("(small/README.md)") == 1 and body.count("# Toy") == 1
    assert files(hub)["small/manifest.csv"] == after["small/manifest.csv"]
    assert publish(small, "--name", "small", "--default", "small-fold1")["default"] == "small-fold1"
    assert publish(built)["default"] == "small-fold1" and card(hub)[1].count("other builds -->") == 2
    done = run_client(SNIPPET, args=[f"{hub.user}/toy", "small/README.md"])
    assert done.stdout == "{'train': 7, 'test': 4} 7 1\n(16, 12)\n", "not read as its own build stores clips"
    done = publish(small, "--name", "data", check=False)
    assert done.returncode == 2 and "--name 'data'" in done.stderr
    assert main["tag"] in hub.server.store.repos["datasets", f"{hub.user}/toy"].tags


@pytest.mark.slow
def test_faults_while_publishing_and_reading(hub, publish, run_client, built, tmp_path):
    faults = [
        Refuse(path="/lfs-upload/", status=503),
        CutAnswer(path="/lfs-upload/", skip=3),
        Refuse(path="/commit/main", status=500),
        RacingCommit(skip=1),
        Slow(path="/preupload/", seconds=0.3),
        CutAnswer(path="/tree/", times=1),
    ]
    hub.fail(*faults)
    result = publish(built, "--private")
    assert [fault.hits for fault in faults] == [1] * len(faults)
    assert titles(hub) == [f"Data: 11 clips ({result['tag']})", "A commit that came first", "initial commit"]
    read = "import sys\nfrom hf_mmbalance.data import load_clips\nprint(load_clips(sys.argv[1]).summary())"
    refused = run_client(read, args=[f"{hub.user}/toy"], token=None, check=False)
    assert refused.returncode == 1 and "doesn't exist on the Hub or cannot be accessed" in refused.stderr
    faults = [
        Refuse(path="/resolve/.*part0", method="GET", status=500),
        CutAnswer(path="/resolve/.*part1-00000", method="GET", after_bytes=1000),
        Slow(path="/resolve/.*part2", seconds=0.5),
    ]
    hub.fail(*faults)
    home = tmp_path / "reader"
    failed = run_client(read, args=[f"{hub.user}/toy"], home=home, check=False)  # `datasets` does not try again
    assert failed.returncode == 1 and "500 Internal Server Error" in failed.stderr
    assert "train" in run_client(read, args=[f"{hub.user}/toy"], home=home).stdout
    assert [fault.hits for fault in faults] == [1] * len(faults)


def test_builds_pushed_at_the_same_time_all_stand(hub, publish, built):
    """Each commit changes the card: whoever comes second must build on the first one's, not overwrite it."""
    publish(built)
    hub.fail(Slow(path="/preupload/", seconds=0.5, times=3))  # all have read the branch before any commits
    with ThreadPoolExecutor(3) as pool:
        pushes = [pool.submit(push_build, built, f"{hub.user}/toy", name=f"b{n}") for n in range(3)]
        done = [push.result() for push in pushes]
    names = [f"b{n}-fold{k}" for n in range(3) for k in range(2)]
    assert sorted(cards.config_names(card(hub)[0])) == sorted(["fold0", "fold1", *names])
    assert len(titles(hub)) == 5 and hub.log.count("commit", status=412) >= 1
    assert all(row in card(hub)[1] for row in ("(b0/README.md)", "(b1/README.md)", "(b2/README.md)"))
    assert len({result["commit"] for result in done}) == 3


def test_an_interrupted_push_goes_on(hub, publish, built):
    hub.fail(Refuse(path="/lfs-upload/", status=403, message="Interrupted", skip=2, times=None))
    done = publish(built, check=False)
    assert done.returncode == 2 and "Interrupted" in done.stderr and "grid publish: error: pushing" in done.stderr
    arrived = hub.log.count("lfs_upload", status=200)
    assert arrived == 2 and titles(hub) == ["initial commit"]
    hub.server.faults.clear()
    hub.log.clear()
    publish(built)
    assert hub.log.count("lfs_upload", status=200) == 7 - arrived and len(titles(hub)) == 2


def test_media_that_may_not_be_republished(hub, publish, built, tmp_path):
    done = publish(built, script="kinetics_sounds", check=False)
    assert done.returncode == 2 and "may not be republished" in done.stderr and "--private" in done.stderr
    assert not list(hub.log), "the Hub was asked before the refusal"
    hub.server.seed("datasets", f"{hub.user}/open", {"a.txt": b"x"})
    done = publish(built, "--private", to="open", script="kinetics_sounds", check=False)
    assert done.returncode == 2 and "is public" in done.stderr and list(files(hub, "open")) == ["a.txt"]
    publish(built, "--private", to="closed", script="kinetics_sounds")
    assert hub.server.store.repos["datasets", f"{hub.user}/closed"].private


def test_the_list_of_kinetics_sounds_is_public(hub, publish, run_client, tmp_path):
    from hf_mmbalance.building.recipes.kinetics_sounds import CLASSES, write_annotations

    database = {
        f"abcdefgh{i:03d}_{i}": {"subset": ("training", "testing")[i % 2], "label": CLASSES[i % 31]} for i in range(40)
    }
    (tmp_path / "list.json").write_text(json.dumps({"labels": CLASSES, "database": database}))
    write_annotations([tmp_path / "list.json"], None, tmp_path / "list")
    publish(tmp_path / "list", script="kinetics_sounds", to="list")
    assert not hub.server.store.repos["datasets", f"{hub.user}/list"].private
    code = """
import sys
from datasets import load_dataset
loaded = load_dataset(sys.argv[1])
print({name: len(part) for name, part in loaded.items()}, list(loaded["train"].features))
"""
    body = card(hub, "list")[1]
    assert f'load_dataset("{hub.user}/list", revision="build-' in body
    done = run_client(code, args=[f"{hub.user}/list"], without=["torchcodec", "hf_mmbalance"])
    columns = "['id', 'youtube_id', 'time_start', 'time_end'"
    assert done.stdout.startswith("{'train': 20, 'test': 20} " + columns), done.stdout


@pytest.mark.slow
def test_train_says_what_to_do_about_data_it_cannot_have(hub, run_client):
    hub.server.seed("datasets", f"{hub.user}/private", {"a.csv": b"x"}, private=True)
    args = ["--dataset", f"{hub.user}/private"]
    done = run_client(SCRIPTS.parent / "train.py", args=args, token=None, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "doesn't exist on the Hub" in done.stderr and "for a private one, log in" in done.stderr


def test_folders_that_are_no_build(hub, publish, built, media, tmp_path):
    broken = build_toy(media, tmp_path / "broken")
    shard = sorted((broken / "data").iterdir())[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    unlicensed = shutil.copytree(built, tmp_path / "unlicensed")
    (unlicensed / "README.md").write_text((built / "README.md").read_text().replace("license: cc-by-4.0\n", ""))
    leaky = shutil.copytree(built, tmp_path / "leaky")
    (leaky / "README.md").write_text((built / "README.md").read_text() + "hf_" + "aB3" * 12)
    linked = shutil.copytree(built, tmp_path / "linked")
    (linked / "contact_sheet.png").unlink()
    (linked / "contact_sheet.png").symlink_to(shard)
    for folder, words in (
        (tmp_path, "README.md does not exist"),
        (linked, "contact_sheet.png is a link out of the folder"),
        (leaky, "contains a secret (access token of the Hub)"),
        (broken, f"{shard.name} is missing or has changed since the build"),
        (unlicensed, "names no license"),
    ):
        done = publish(folder, check=False)
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
    assert not list(hub.log)
    hub.server.seed("datasets", f"{hub.user}/toy", {"toy.py": b"x"})
    done = publish(built, check=False)
    assert done.returncode == 2 and "has the file toy.py" in done.stderr


HEAD = {
    "license": "mit",
    "configs": [{"config_name": "a", "data_files": [{"split": "train", "path": ["data/x-*.parquet"]}]}],
    "dataset_info": [{"config_name": "a", "splits": []}],
}


def test_heads_of_others_are_kept():
    """Also those that `datasets` itself wrote: one entry, no list, no default."""
    old = {
        "license": "odbl",
        "tags": ["mine"],
        "configs": [
            {"config_name": "b", "data_files": "b/*.csv"},
            {"config_name": "old", "data_files": "data/o-*.parquet"},
        ],
        "dataset_info": {"config_name": "b", "splits": []},
    }
    merged = cards.merge_heads(HEAD, old, "data", None)
    assert cards.config_names(merged) == ["a", "b"] and merged["configs"][0]["default"] is True
    assert merged["license"] == "mit" and merged["tags"] == ["mine"]
    assert [info["config_name"] for info in merged["dataset_info"]] == ["a", "b"]
    assert cards.merge_heads(HEAD, old, "data", "b")["configs"][1]["default"] is True
    beside = {**HEAD, "license": "odbl", "tags": ["lips"], "language": ["en"]}
    merged = cards.merge_heads(beside, old, "lips", None, beside=True)
    assert merged["tags"] == ["mine"] and merged["language"] == ["en"], "a build under a name changed what is others'"
    with pytest.raises(
        HubError, match="card says license odbl, this build's says mit; push it to a separate repository"
    ):
        cards.merge_heads(HEAD, old, "lips", None, beside=True)
    with pytest.raises(HubError, match="--default c: the configurations are a, b"):
        cards.merge_heads(HEAD, old, "data", "c")
    with pytest.raises(HubError, match="configuration a of a different build"):
        cards.merge_heads(HEAD, {"configs": [{"config_name": "a", "data_files": "else/*.csv"}]}, "data", None)


def test_what_a_card_lacks_is_named():
    with pytest.raises(HubError, match="a names data/x-\\*.parquet, but no file matches"):
        cards.check_head(HEAD, ["data/y-0.parquet"])
    for text in ("# no head", "---\na: [1\n---\n", "---\nopen: 1\n"):
        with pytest.raises(HubError, match="head"):
            cards.read_card(text, "x")
    same = [1, 2]
    assert "&" not in cards.write_card({"a": same, "b": same}, "")
    assert yaml.safe_load(cards.write_card({"a": 1}, "body").split("---\n")[1]) == {"a": 1}


DECODE = """
import sys
from datasets import load_dataset
for streaming in (False, True):
    row = next(iter(load_dataset(sys.argv[1], split="test", streaming=streaming)))
    assert row["audio"]["array"].shape == (round(row["duration"] * 16000),), row["audio"]["array"].shape
    assert row["frames"][0].size == (32, 24)
"""


def test_datasets_decodes_the_sound_itself_with_torchcodec(hub, publish, run_client, built):
    if run_client("import torchcodec.decoders", check=False).returncode != 0:
        pytest.skip("torchcodec is not installed, or finds no FFmpeg: pip install 'hf_mmbalance[torchcodec]'")
    publish(built)
    run_client(DECODE, args=[f"{hub.user}/toy"])
