"""What a Hub keeps: repositories with branches, tags and commits over a folder of content-addressed blobs."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path


KINDS = ("models", "datasets", "spaces")
DEFAULT_LFS_PATTERNS = (
    "*.7z *.arrow *.avi *.bin *.ckpt *.flac *.flv *.gz *.h5 *.mp3 *.mp4 *.npy *.npz *.ogg *.onnx *.parquet *.pkl *.pt"
    " *.pth *.safetensors *.tar *.wav *.webm *.zip"
).split()
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


class HubError(Exception):
    """An answer that is not a success: HTTP status, the Hub's `X-Error-Code` (None where it sends none), message."""

    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True)
class FileEntry:
    """One file of a commit; `oid` is git's object id (of the pointer text for LFS), `sha256` that of the content."""

    oid: str
    size: int
    sha256: str
    lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    description: str
    author: str
    date: datetime
    files: dict[str, FileEntry]


@dataclass
class Repo:
    kind: str
    id: str
    private: bool = False
    sdk: str | None = None
    variables: dict[str, str] = field(default_factory=dict)  # of a Space
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)  # "refs/pr/1" -> commit
    commits: dict[str, Commit] = field(default_factory=dict)
    objects: set[str] = field(default_factory=set)  # LFS contents uploaded to this repo: another repo's do not count

    def resolve(self, revision: str) -> Commit:
        """The commit of a branch, tag, full commit id or `refs/...` name; 404 RevisionNotFound otherwise."""
        short = re.sub(r"^refs/(heads|tags)/", "", revision)
        oid = self.branches.get(short) or self.tags.get(short) or self.pulls.get(revision) or revision
        if oid not in self.commits:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[oid]

    def history(self, commit: Commit) -> Iterator[Commit]:
        """The commit and its ancestors, newest first."""
        oid: str | None = commit.oid
        while oid is not None:
            yield self.commits[oid]
            oid = self.commits[oid].parent

    def last_change(self, commit: Commit, path: str) -> Commit:
        """The newest commit, from `commit` backwards, that changed the file or anything under the folder `path`."""

        def state(of: Commit) -> dict[str, FileEntry]:
            return {name: entry for name, entry in of.files.items() if name == path or name.startswith(path + "/")}

        newest, wanted = commit, state(commit)
        for ancestor in self.history(commit):
            if state(ancestor) != wanted:
                break
            newest = ancestor
        return newest


def git_oid(data: bytes) -> str:
    """git's id of a blob: sha1 of `blob {length}\\0{content}`."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def check_path(path: str) -> str:
    """The path; 400 where it could leave the folder it is written to, or git's own (absolute, `..`, `.git`, ...)."""
    parts = path.split("/")
    bad = not path or "\\" in path or re.search(r"[\x00-\x1f]", path) or re.match(r"[A-Za-z]:", path)
    if bad or any(part in ("", ".", "..") or part.lower() == ".git" or len(part) > 255 for part in parts):
        raise HubError(400, None, f"Invalid file path in repository: {path!r}")
    return path


class Store:
    """All repositories of one server; `lock` guards them, blobs are written and read outside it."""

    def __init__(self, folder: Path) -> None:
        self.lock = threading.RLock()
        self.repos: dict[tuple[str, str], Repo] = {}
        self._blobs = Path(folder) / "blobs"
        self._blobs.mkdir(parents=True, exist_ok=True)

    def blob_path(self, sha256: str) -> Path:
        return self._blobs / sha256

    def write_blob(self, chunks: Iterable[bytes]) -> tuple[str, int]:
        """Stores the content; returns its sha256 and size. Nothing is left behind where `chunks` raises."""
        digest, size = hashlib.sha256(), 0
        handle, name = tempfile.mkstemp(dir=self._blobs, prefix="part-")
        try:
            with os.fdopen(handle, "wb") as file:
                for chunk in chunks:
                    digest.update(chunk)
                    size += len(chunk)
                    file.write(chunk)
            os.replace(name, self.blob_path(digest.hexdigest()))
        except BaseException:
            os.unlink(name)
            raise
        return digest.hexdigest(), size

    def regular_entry(self, data: bytes) -> FileEntry:
        sha256, size = self.write_blob([data])
        return FileEntry(git_oid(data), size, sha256, lfs=False)

    def lfs_entry(self, sha256: str) -> FileEntry:
        size = self.blob_path(sha256).stat().st_size
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return FileEntry(git_oid(pointer.encode()), size, sha256, lfs=True)

    def read(self, entry: FileEntry) -> bytes:
        return self.blob_path(entry.sha256).read_bytes()

    def create_repo(self, kind: str, repo_id: str, author: str, *, private: bool, sdk: str | None = None) -> Repo:
        """A new repository with its first commit (`.gitattributes`); 409 if there is one of that name."""
        parts = repo_id.split("/")
        if len(parts) != 2 or any(not _NAME.fullmatch(part) or ".." in part or "--" in part for part in parts):
            raise HubError(400, None, f"Invalid repository name: {repo_id!r}")
        attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in DEFAULT_LFS_PATTERNS)
        with self.lock:
            if (kind, repo_id) in self.repos:
                raise HubError(409, None, "You already created this repo")
            repo = self.repos[kind, repo_id] = Repo(kind, repo_id, private=private, sdk=sdk)
            files = {".gitattributes": self.regular_entry(attributes.encode())}
            self.commit(repo, "main", files, author, "initial commit")
            return repo

    def commit(
        self, repo: Repo, ref: str, files: dict[str, FileEntry], author: str, title: str, description: str = ""
    ) -> Commit:
        """Moves a branch (or `refs/pr/N`) to a new commit that holds exactly `files`."""
        with self.lock:
            refs = repo.pulls if ref.startswith("refs/pr/") else repo.branches
            oid, date = secrets.token_hex(20), datetime.now(UTC)
            commit = Commit(oid, refs.get(ref), title, description, author, date, dict(sorted(files.items())))
            repo.commits[oid] = commit
            refs[ref] = oid
            return commit
