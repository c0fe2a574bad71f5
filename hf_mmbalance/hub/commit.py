"""Push a folder to a repository on the Hub in one commit; only changed files are uploaded."""

from __future__ import annotations

import fnmatch
import io
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hf_mmbalance.hub.errors import HubError, chain_of, explain_hub_errors, status_of
from hf_mmbalance.scrubbing import find_secret


if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Loading a pickle can run any code; this package never writes one.
PICKLES = ("*.bin", "*.ckpt", "*.joblib", "*.pickle", "*.pkl", "*.pt", "*.pth")
NEVER = ("*.pyc", "__pycache__/*", "*/__pycache__/*", ".git/*", "*/.git/*", ".cache/*", "*.lock", ".DS_Store")
WAITS = (0.5, 1.0, 2.0)  # seconds between attempts
PIECE = 1 << 20  # bytes to search for secrets at a time
LONGEST_SECRET = 4096  # bytes


@dataclass(frozen=True)
class Change:
    """The content of a commit: files to add, each a local path or bytes, and paths to delete."""

    files: Mapping[str, Path | bytes] = field(default_factory=dict)
    deleted: Sequence[str] = ()


def push_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    message: str,
    repo_type: str = "model",
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    allow_patterns: Sequence[str] | None = None,
    ignore_patterns: Sequence[str] | None = None,
    delete_patterns: Sequence[str] | None = None,
    space_sdk: str | None = None,
    tag: str | None = None,
) -> CommitInfo:
    """Push a folder in one commit; the repository and the branch are created if they do not exist.

    Files that the Hub already has are not sent again, so the same call resumes an interrupted push. If someone else
    commits first, the change is applied on top of that commit.

    Args:
        folder: Local folder.
        repo_id: `user/name`, or `name` for your own.
        message: Title of the commit.
        repo_type: `model`, `dataset` or `space`.
        private: Make a new repository private (True) or public (False); None uses the account's default. With True,
            an existing repository must be private.
        revision: Branch, default `main`.
        token: Access token; None uses the one of `hf auth login` or `HF_TOKEN`.
        allow_patterns: Push only files that match one of these patterns (`*` also matches `/`).
        ignore_patterns: Do not push files that match one of these patterns.
        delete_patterns: Delete files of the repository that match one of these patterns and are not in the folder.
        space_sdk: Kind of a new Space, e.g. `gradio`.
        tag: Tag for the commit: a revision that snippets can pin, named after the content. An existing tag is kept,
            because it marks the same content.

    Returns:
        The new commit, or the existing one if nothing changed.

    Raises:
        HubError: the Hub or this package rejects the push (pickles, links out of the folder, texts with a secret).
    """
    files = folder_files(Path(folder), allow_patterns, ignore_patterns)

    def change(api: HfApi, repo: str, head: str) -> Change:
        deleted: list[str] = []
        if delete_patterns:
            existing = api.list_repo_files(repo, revision=head, repo_type=repo_type)
            deleted = [path for path in existing if path not in files and _matches(path, delete_patterns)]
        return Change(files, [path for path in deleted if path != ".gitattributes"])

    return push_change(
        change,
        repo_id,
        message=message,
        repo_type=repo_type,
        private=private,
        revision=revision,
        token=token,
        space_sdk=space_sdk,
        tag=tag,
    )


def push_change(
    change: Callable[[HfApi, str, str], Change],
    repo_id: str,
    *,
    message: str,
    repo_type: str = "model",
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    space_sdk: str | None = None,
    tag: str | None = None,
) -> CommitInfo:
    """Push the change that `change(api, repo_id, head)` returns for the commit `head`, in one commit.

    If someone else commits first, `change` is called again. All other arguments are as in `push_folder`.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="hf_mmbalance")
    with explain_hub_errors(f"pushing to {repo_type} {repo_id}"):
        repo = with_retries(lambda: open_repo(api, repo_id, repo_type, private, revision, space_sdk))

        def commit() -> CommitInfo:
            head = api.repo_info(repo, revision=revision, repo_type=repo_type).sha
            assert head is not None
            done = api.create_commit(
                repo,
                _operations(change(api, repo, head)),
                commit_message=message,
                repo_type=repo_type,
                revision=revision,
                parent_commit=head,
            )
            logger.info("%s: %s", repo, f"one commit, {done.oid}" if done.oid != head else "nothing has changed")
            return done

        done = with_retries(commit)
    if tag is not None:
        with explain_hub_errors(f"tagging {repo_type} {repo}"):
            with_retries(lambda: api.create_tag(repo, tag=tag, revision=done.oid, repo_type=repo_type, exist_ok=True))
        logger.info("%s: revision %s", repo, tag)
    return done


def folder_files(
    folder: Path, allow_patterns: Sequence[str] | None = None, ignore_patterns: Sequence[str] | None = None
) -> dict[str, Path]:
    """Return the files of a folder that can be pushed, by their path in the repository.

    Raises:
        HubError: no folder, no file to push, a pickle, a link out of the folder, or a secret in a text.
    """
    if not folder.is_dir():
        raise HubError(f"{folder} is not a folder; give the folder to push")
    files: dict[str, Path] = {}
    for place, subfolders, names in os.walk(folder):
        subfolders.sort()
        linked = [name for name in subfolders if (Path(place) / name).is_symlink()]
        for name in sorted([*names, *linked]):
            path = Path(place) / name
            inside = path.relative_to(folder).as_posix()
            if _matches(inside, [*NEVER, *(ignore_patterns or ())]):
                continue
            if allow_patterns is None or _matches(inside, allow_patterns):
                files[inside] = path
    if not files:
        raise HubError(f"{folder}: there is no file to push; check the folder and the patterns")
    check_files(files, folder)
    return files


def check_files(files: Mapping[str, Path | bytes], folder: Path | None = None) -> None:
    """Reject files that must not be published.

    Raises:
        HubError: a file must not be published; the message names it and the remedy.
    """
    for inside, content in files.items():
        if _matches(inside.lower(), PICKLES):
            text = f"{inside}: pickled files are not pushed, since loading one can run any code"
            raise HubError(f"{text}; save tensors as safetensors, or remove the file")
        if isinstance(content, Path):
            if content.is_symlink() and folder is not None and not _stays_inside(content, folder):
                raise HubError(f"{content} is a link out of the folder; replace it with a copy, or remove it")
            if content.is_dir():
                raise HubError(f"{content} is a link to a folder; replace it with a copy, or remove it")
        secret = _secret_in(content)
        if secret is not None:
            line, kind = secret
            text = f"{inside}, line {line}, contains a secret ({kind})"
            raise HubError(f"{text}; remove it, and revoke it if anyone else could have seen it")


def _stays_inside(link: Path, folder: Path) -> bool:
    return link.resolve().is_relative_to(folder.resolve())


def _secret_in(content: Path | bytes) -> tuple[int, str] | None:
    """Return line and kind of the first secret in a text. The search stops at a zero byte, which no text contains."""
    with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as file:
        data, line = b"", 1
        while piece := file.read(PIECE):
            line += data[:-LONGEST_SECRET].count(b"\n")  # lines before the searched window
            data = data[-LONGEST_SECRET:] + piece
            if b"\0" in piece:
                return None
            text = data.decode("utf-8", "replace")
            if (found := find_secret(text)) is not None:
                return line + text[: found[0]].count("\n"), found[1]
    return None


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def open_repo(
    api: HfApi, repo_id: str, repo_type: str, private: bool | None, revision: str | None, space_sdk: str | None
) -> str:
    """Create the repository and the branch if they do not exist, and return the full name."""
    made = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=space_sdk)
    repo = made.repo_id
    if private and not api.repo_info(repo, repo_type=repo_type).private:
        text = f"{repo} is public, and this push must be private"
        raise HubError(f"{text}; make it private in its settings, or push to a different name")
    if revision is not None and not revision.startswith("refs/") and revision != "main":
        api.create_branch(repo, branch=revision, repo_type=repo_type, exist_ok=True)
    return repo


def _operations(change: Change) -> list[Any]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    deleted = [CommitOperationDelete(path, is_folder=False) for path in change.deleted]
    return [*deleted, *(CommitOperationAdd(path, content) for path, content in change.files.items())]


def with_retries(call: Callable[[], T]) -> T:
    """Call a function; after temporary failures, retry a few times."""
    for wait in WAITS:
        try:
            return call()
        except Exception as error:
            if not _is_temporary(error):
                raise
            logger.info("retry in %g s after: %s", wait, type(error).__name__)
            time.sleep(wait)
    return call()


def _is_temporary(error: BaseException) -> bool:
    """Return True if a retry can help: a branch that moved, a server that failed, a connection that broke."""
    import httpx2

    statuses = {409, 412, 500, 502, 503, 504}
    return any(status_of(link) in statuses or isinstance(link, httpx2.TransportError) for link in chain_of(error))
