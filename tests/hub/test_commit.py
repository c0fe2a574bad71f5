"""One commit a push: only what changed is sent, others' commits survive, and what must not be pushed is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_mmbalance.hub.commit import PIECE, folder_files
from hf_mmbalance.hub.errors import HubError

from .faults import CutAnswer, CutRequest, RacingCommit, Refuse, Slow


PRELUDE = """
import os
from pathlib import Path
from huggingface_hub import HfApi
from hf_mmbalance.hub import HubError, push_folder
api, USER = HfApi(), os.environ["USER"]
repo = USER + "/pushed"
folder = Path("folder")
(folder / "sub").mkdir(parents=True, exist_ok=True)
"""
FIRST = """
(folder / "README.md").write_text("---\\ntags: [a]\\n---\\n# x\\n")
(folder / "model.safetensors").write_bytes(b"\\x00" * 300_000)
(folder / "other.safetensors").write_bytes(b"\\x01" * 300_000)
(folder / "sub" / "code.py").write_text("x = 1\\n")
(folder / "sub" / "__pycache__").mkdir(exist_ok=True)
(folder / "sub" / "__pycache__" / "code.pyc").write_bytes(b"x")
"""


def contents(hub, repo: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
    store = hub.server.store
    commit = store.repos[kind, repo].resolve(revision)
    return {path: store.read(entry) for path, entry in commit.files.items() if path != ".gitattributes"}


def titles(hub, repo: str, revision: str = "main", kind: str = "models") -> list[str]:
    stored = hub.server.store.repos[kind, repo]
    return [commit.title for commit in stored.history(stored.resolve(revision))]


def test_one_commit_and_only_what_changed(hub, run_client, tmp_path):
    home, repo = tmp_path / "home", f"{hub.user}/pushed"
    run_client(PRELUDE + FIRST + "push_folder(folder, repo, message='One')", home=home)
    assert titles(hub, repo) == ["One", "initial commit"]
    assert sorted(contents(hub, repo)) == ["README.md", "model.safetensors", "other.safetensors", "sub/code.py"]
    assert hub.log.received("lfs_upload") == 600_000

    hub.log.clear()
    done = run_client(PRELUDE + "print(push_folder(folder, repo, message='Same').oid)", home=home)
    assert done.stdout.strip() == hub.server.store.repos["models", repo].branches["main"]
    assert titles(hub, repo) == ["One", "initial commit"]
    assert hub.log.count("lfs_upload") == 0 and hub.log.count("commit") == 0

    hub.log.clear()
    change = "(folder / 'model.safetensors').write_bytes(b'\\x02' * 200_000)\n"
    run_client(PRELUDE + change + "push_folder(folder, repo, message='Two')", home=home)
    assert titles(hub, repo) == ["Two", "One", "initial commit"]
    assert hub.log.received("lfs_upload") == 200_000 and hub.log.count("lfs_upload") == 1
    assert hub.log.received("commit") < 1000, "files that did not change were sent again"


def test_branch_patterns_and_deletion(hub, run_client):
    repo = f"{hub.user}/pushed"
    run_client(
        PRELUDE
        + FIRST
        + """
push_folder(folder, repo, message="One", revision="next", ignore_patterns=["other*"])
push_folder(folder, repo, message="Two", revision="next", allow_patterns=["sub/*"], delete_patterns=["*"])
"""
    )
    assert titles(hub, repo, "next") == ["Two", "One", "initial commit"]
    assert list(contents(hub, repo, "next")) == ["sub/code.py"] and contents(hub, repo) == {}
    assert list(hub.server.store.repos["models", repo].resolve("next").files) == [".gitattributes", "sub/code.py"]


def test_a_push_survives_every_fault_once(hub, run_client):
    """Server errors, a broken upload, somebody else's commit and a lost answer; then all is there, in one commit."""
    faults = [
        Refuse(path="/repos/create", status=502),
        Slow(path="/preupload", seconds=0.3),
        CutRequest(path="/lfs-upload/", after_bytes=70_000),
        Refuse(path="/lfs-upload/", skip=1),
        Refuse(path="/commit/main", status=500),
        RacingCommit(skip=1),
        CutAnswer(path="/commit/main", skip=2),
    ]
    hub.fail(*faults)
    run_client(PRELUDE + FIRST + "push_folder(folder, repo, message='One')")
    assert [fault.hits for fault in faults] == [1] * len(faults)
    repo = f"{hub.user}/pushed"
    assert titles(hub, repo) == ["One", "A commit that came first", "initial commit"]
    assert contents(hub, repo)["other.safetensors"] == b"\x01" * 300_000


def test_what_is_refused_says_what_to_do(hub, run_client):
    """No right to write, a private push to a public repository, a broken card, no network."""
    hub.server.seed("models", f"{hub.user}/public", {"a.txt": b"x"})
    hub.fail(Refuse(path="/api/models/[^/]+/full/commit", status=507, message="Storage limit reached"))
    done = run_client(
        PRELUDE
        + FIRST
        + """
import sys
def refused(*words, to=repo, of=folder, **options):
    try:
        push_folder(of, to, message="x", **options)
    except HubError as error:
        text = str(error)
        assert all(word in text for word in words), text
        print(text)
        return
    raise AssertionError(words)
refused("403", "write access", token=sys.argv[1])
refused("403", "write access", to="somebody/x")
refused("401", "hf auth login", token=False)
refused("Invalid credentials", "not valid", token="hf_" + "a" * 34)
refused("is public", "settings", to=USER + "/public", private=True)
refused("507", "Storage limit reached", "no space left", to=USER + "/full")
refused("Repo id must", "user/name", to="a/b/c")
(folder / "README.md").write_text("---\\ntags: [a\\n# not closed")
refused("Invalid metadata", "YAML")
""",
        args=[hub.account.read_token],
    )
    assert hub.token not in done.stdout + done.stderr and hub.account.read_token not in done.stdout + done.stderr
    off = PRELUDE + FIRST + "push_folder(folder, repo, message='x')"
    gone = run_client(off, env={"HF_HUB_OFFLINE": "1"}, check=False)
    assert gone.returncode == 1 and "Unset HF_HUB_OFFLINE" in gone.stderr
    assert contents(hub, f"{hub.user}/public") == {"a.txt": b"x"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("hf_mmbalance.hub.dataset_push is a name, not a token")
    return folder


@pytest.mark.parametrize(
    "name", ["training_args.bin", "sub/optimizer.pt", "rng_state_0.pth", "clf.pkl", "clf.joblib", "W.PT"]
)
def test_pickles_are_refused(folder: Path, name: str):
    (folder / "sub").mkdir()
    (folder / name).write_bytes(b"x")
    with pytest.raises(HubError, match="(?s)pickled.*safetensors"):
        folder_files(folder)
    assert list(folder_files(folder, ignore_patterns=[name])) == ["a.txt"]


def test_links_out_of_the_folder_are_refused(folder: Path, tmp_path: Path):
    (folder / "inside.txt").symlink_to("a.txt")
    assert sorted(folder_files(folder)) == ["a.txt", "inside.txt"]
    (tmp_path / "secret").write_text("x")
    (folder / "outside.txt").symlink_to("../secret")
    with pytest.raises(HubError, match="outside.txt is a link out of the folder"):
        folder_files(folder)
    (folder / "outside.txt").unlink()
    (folder / "up").symlink_to("..", target_is_directory=True)
    with pytest.raises(HubError, match="link"):
        folder_files(folder)


def test_tokens_are_not_pushed(folder: Path):
    (folder / "notes.md").write_text("login with hf_" + "aB3" * 12)
    with pytest.raises(HubError, match="notes.md, line 1, contains a secret") as caught:
        folder_files(folder)
    assert "aB3" not in str(caught.value)


@pytest.mark.parametrize("before", [0, PIECE - 10, 2 * PIECE - 10])
def test_tokens_are_found_wherever_they_stand(folder: Path, before: int):
    """Also far into a long page, and across the border of two pieces that are read."""
    page = folder / "page.html"
    page.write_text("\n" + "." * (before - 2) + " hf_" + "aB3" * 12 + " ." * 100)
    with pytest.raises(HubError, match="page.html, line 2, contains a secret"):
        folder_files(folder)
    page.write_bytes(b"\0" + page.read_bytes())  # no text
    assert "page.html" in folder_files(folder)


@pytest.mark.parametrize(
    ("secret", "kind"),
    [
        ("https://user:passw0rd@host/data", "password in an address"),
        ("AKIA" + "IOSFODNN7EXAMPLE", "AWS access key"),
        ("ghp_" + "aB3d" * 9, "GitHub token"),
    ],
)
def test_secrets_in_the_files_of_a_run_are_refused_by_file_and_line(folder: Path, secret: str, kind: str):
    (folder / "results.json").write_text(f'{{\n "arguments": {{\n  "data_dir": "{secret}"\n }}\n}}\n')
    with pytest.raises(HubError, match=rf"results.json, line 3, contains a secret \({kind}\)") as caught:
        folder_files(folder)
    assert secret not in str(caught.value)


def test_the_token_of_the_environment_is_not_pushed_whatever_it_looks_like(folder: Path, monkeypatch):
    (folder / "notes.md").write_text("login with my-own-secret")
    monkeypatch.setenv("HF_TOKEN", "my-own-secret")
    with pytest.raises(HubError, match="notes.md, line 1, contains a secret"):
        folder_files(folder)
    monkeypatch.setenv("HF_TOKEN", "")
    assert "notes.md" in folder_files(folder)


def test_nothing_to_push(folder: Path, tmp_path: Path):
    with pytest.raises(HubError, match="no file to push"):
        folder_files(folder, allow_patterns=["*.safetensors"])
    with pytest.raises(HubError, match="is not a folder"):
        folder_files(tmp_path / "absent")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("x")
    assert list(folder_files(folder)) == ["a.txt"]
