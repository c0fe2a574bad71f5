"""Routes about files: tree, paths-info, preupload, commit, large-file uploads and downloads."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from .faults import RacingCommit, first
from .messages import PREFIXES, Answer, Request, readable, route, stamp, writable
from .routes import paged
from .store import Commit, FileEntry, HubError, Repo, check_path


if TYPE_CHECKING:
    from .server import HubServer

LARGE = 10_000_000


def _row(repo: Repo, commit: Commit, path: str, *, expand: bool) -> dict[str, Any] | None:
    """What the Hub tells of the file or folder `path`; None where there is neither."""
    entry = commit.files.get(path)
    if entry is not None:
        row: dict[str, Any] = {"type": "file", "oid": entry.oid, "size": entry.size, "path": path}
        if entry.lfs:
            row["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": 134}
    else:
        inside = [(name, of.oid) for name, of in commit.files.items() if name.startswith(path + "/")]
        if not inside:
            return None
        row = {"type": "directory", "oid": hashlib.sha1(repr(inside).encode()).hexdigest(), "size": 0, "path": path}
    if expand:
        last = repo.last_change(commit, path)
        row["lastCommit"] = {"id": last.oid, "title": last.title, "date": stamp(last.date)}
    return row


@route("GET", "/api/{kind}/{repo_id}/tree/{rev}")
def tree(hub: HubServer, request: Request, kind: str, repo_id: str, rev: str, path: str = "") -> Answer:
    repo = readable(hub, request, kind, repo_id)
    commit = repo.resolve(rev)
    root = path.strip("/") + "/" if path.strip("/") else ""
    names: dict[str, None] = {}  # an ordered set: every folder stands before what it holds
    for name in commit.files:
        if not name.startswith(root):
            continue
        parts = name[len(root) :].split("/")
        for depth in range(1, len(parts) + 1 if request.flag("recursive") else 2):
            names[root + "/".join(parts[:depth])] = None
    if root and not names:
        raise HubError(404, "EntryNotFound", f"{path} does not exist on {rev!r}")
    expand = request.flag("expand")
    rows = [row for name in names if (row := _row(repo, commit, name, expand=expand)) is not None]
    return paged(hub, request, rows, min(hub.page_size, 50) if expand else hub.page_size)


@route("GET", "/api/{kind}/{repo_id}/tree/{rev}/{path}")
def folder_tree(hub: HubServer, request: Request, kind: str, repo_id: str, rev: str, path: str) -> Answer:
    return tree(hub, request, kind, repo_id, rev, path)


@route("POST", "/api/{kind}/{repo_id}/paths-info/{rev}")
def paths_info(hub: HubServer, request: Request, kind: str, repo_id: str, rev: str) -> Answer:
    repo = readable(hub, request, kind, repo_id)
    commit = repo.resolve(rev)
    if "json" in request.headers.get("Content-Type", ""):
        form = request.json()
    else:
        fields = parse_qs(request.read().decode())
        form = {"paths": fields.get("paths", []), "expand": fields.get("expand", [""])[0].lower() == "true"}
    paths = [form["paths"]] if isinstance(form["paths"], str) else form["paths"]
    rows = [_row(repo, commit, path.strip("/"), expand=bool(form.get("expand"))) for path in paths]
    return Answer.json([row for row in rows if row is not None])


def _is_large(hub: HubServer, commit: Commit, path: str, size: int, sample: bytes) -> bool:
    """By the repository's `.gitattributes`, by size, or for holding a NUL byte, as git tells binary files."""
    attributes = commit.files.get(".gitattributes")
    lines = hub.store.read(attributes).decode().splitlines() if attributes else []
    patterns = [line.split()[0] for line in lines if "filter=lfs" in line]
    name = path.split("/")[-1]
    named = any(fnmatch.fnmatch(path, pattern) or fnmatch.fnmatch(name, pattern) for pattern in patterns)
    return named or size > LARGE or b"\0" in sample


@route("POST", "/api/{kind}/{repo_id}/preupload/{rev}")
def preupload(hub: HubServer, request: Request, kind: str, repo_id: str, rev: str) -> Answer:
    """How each file is to be uploaded, and the id of what stands there now, so that clients skip what is the same."""
    repo = writable(hub, request, kind, repo_id)
    commit = repo.resolve(rev)
    rows = []
    for file in request.json()["files"]:
        path = check_path(file["path"])
        large = _is_large(hub, commit, path, file["size"], base64.b64decode(file.get("sample", "")))
        present = commit.files.get(path)
        oid = None if present is None else (present.sha256 if large else present.oid)
        rows.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid})
    return Answer.json({"files": rows})


def _apply(hub: HubServer, repo: Repo, files: dict[str, FileEntry], key: str, value: dict[str, Any]) -> None:
    """One line of a commit."""
    path = value.get("path", "").rstrip("/") if key == "deletedFolder" else value.get("path", "")
    check_path(path)
    if key == "file":
        encoded = value.get("encoding") == "base64"
        data = base64.b64decode(value["content"]) if encoded else value["content"].encode()
        files[path] = hub.store.regular_entry(data)
    elif key == "lfsFile":
        if value["oid"] not in repo.objects:
            raise HubError(400, None, f"LFS object {value['oid']} of {path} was not uploaded")
        files[path] = hub.store.lfs_entry(value["oid"])
    elif key in ("deletedFile", "deletedFolder"):
        gone = [name for name in files if name == path or (key == "deletedFolder" and name.startswith(path + "/"))]
        if not gone:
            raise HubError(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
        for name in gone:
            del files[name]
    else:
        raise HubError(400, None, f"Unknown operation in commit: {key}")


def _check_tree(files: dict[str, FileEntry]) -> None:
    for path in files:
        parts = path.split("/")
        clash = next((p for n in range(1, len(parts)) if (p := "/".join(parts[:n])) in files), None)
        if clash is not None:
            raise HubError(400, None, f"{clash} cannot be a file and the folder of {path}")


@route("POST", "/api/{kind}/{repo_id}/commit/{rev}")
def commit(hub: HubServer, request: Request, kind: str, repo_id: str, rev: str) -> Answer:
    """All or nothing: a line that cannot be applied leaves the branch as it was."""
    repo = writable(hub, request, kind, repo_id)
    lines = [json.loads(line) for line in request.read().splitlines() if line.strip()]
    header = next((line["value"] for line in lines if line["key"] == "header"), None)
    if header is None or not header.get("summary"):
        raise HubError(400, None, "A commit needs a header with a summary")
    user = request.user or ""
    with hub.store.lock:
        base = repo.resolve(rev)
        if first(request.faults, RacingCommit) is not None:
            base = hub.store.commit(repo, rev, base.files, "somebody-else", "A commit that came first")
        if header.get("parentCommit") not in (None, base.oid):
            raise HubError(412, None, "A commit has happened since. Please refresh and try again.")
        files = dict(base.files)
        for line in lines:
            if line["key"] != "header":
                _apply(hub, repo, files, line["key"], line["value"])
        _check_tree(files)
        ref = rev
        if request.flag("create_pr"):
            ref = f"refs/pr/{len(repo.pulls) + 1}"
            repo.pulls[ref] = base.oid
        elif rev not in repo.branches and rev not in repo.pulls:
            raise HubError(400, None, f"{rev!r} is not a branch: commits go to branches")
        done = hub.store.commit(repo, ref, files, user, header["summary"], header.get("description") or "")
    page = f"{hub.url}/{PREFIXES[kind]}{repo_id}"
    answer = {"success": True, "commitOid": done.oid, "commitUrl": f"{page}/commit/{done.oid}", "hookOutput": ""}
    if request.flag("create_pr"):
        answer["pullRequestUrl"] = f"{page}/discussions/{ref.rsplit('/', 1)[1]}"
    return Answer.json(answer)


@route("POST", "/{prefix}{repo_id}.git/info/lfs/objects/batch")
def lfs_batch(hub: HubServer, request: Request, kind: str, repo_id: str) -> Answer:
    """Where to upload each object; those that this repository holds already need no upload."""
    repo = writable(hub, request, kind, repo_id)
    rows = []
    for wanted in request.json()["objects"]:
        oid, size = wanted["oid"], wanted["size"]
        row: dict[str, Any] = {"oid": oid, "size": size}
        if not re.fullmatch(r"[0-9a-f]{64}", oid):
            row["error"] = {"code": 422, "message": "oid must be a sha256 in hexadecimal"}
        elif oid not in repo.objects:
            ticket = hub.issue_ticket(repo, oid, size)
            row["actions"] = {
                "upload": {"href": f"{hub.url}/lfs-upload/{ticket}", "header": {}},
                "verify": {"href": f"{hub.url}/lfs-verify/{ticket}", "header": {}},
            }
        rows.append(row)
    headers = {"Content-Type": "application/vnd.git-lfs+json"}
    return Answer.json({"transfer": "basic", "objects": rows}, headers=headers)


@route("PUT", "/lfs-upload/{name}")
def lfs_upload(hub: HubServer, request: Request, name: str) -> Answer:
    """Carries no token, as on the Hub: the ticket in the address is the permission."""
    repo, oid, size = hub.ticket(name)
    sha256, length = hub.store.write_blob(request.body)
    if (sha256, length) != (oid, size):
        raise HubError(400, None, f"Expected {size} bytes with sha256 {oid}, got {length} with {sha256}")
    repo.objects.add(oid)
    return Answer(200, headers={"ETag": f'"{oid}"'})


@route("POST", "/lfs-verify/{name}")
def lfs_verify(hub: HubServer, request: Request, name: str) -> Answer:
    repo, oid, size = hub.ticket(name)
    if request.json() != {"oid": oid, "size": size} or oid not in repo.objects:
        raise HubError(404, None, f"LFS object {oid} is not stored")
    return Answer.json({})


@route("GET HEAD", "/{prefix}{repo_id}/resolve/{rev}/{path}")
def resolve(hub: HubServer, request: Request, kind: str, repo_id: str, rev: str, path: str) -> Answer:
    repo = readable(hub, request, kind, repo_id)
    commit = repo.resolve(rev)
    entry = commit.files.get(path)
    if entry is None:
        raise HubError(404, "EntryNotFound", f"{path} does not exist on {rev!r}")
    headers = {
        "Content-Type": "application/octet-stream",
        "ETag": f'"{entry.etag}"',
        "X-Repo-Commit": commit.oid,
        "Accept-Ranges": "bytes",
    }
    if entry.lfs:
        headers |= {"X-Linked-Etag": f'"{entry.etag}"', "X-Linked-Size": str(entry.size)}
    window = _window(request.headers.get("Range"), entry.size) if request.method == "GET" else None
    if window is None:
        return Answer(200, headers=headers, file=hub.store.blob_path(entry.sha256), length=entry.size)
    start, stop = window
    if start >= stop:
        return Answer.error(416, None, "Range not satisfiable", {"Content-Range": f"bytes */{entry.size}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{entry.size}"
    return Answer(206, headers=headers, file=hub.store.blob_path(entry.sha256), start=start, length=stop - start)


def _window(header: str | None, size: int) -> tuple[int, int] | None:
    """The half-open interval a single-range header asks for: None to ignore it, empty where it cannot be satisfied."""
    match = re.fullmatch(r"\s*bytes\s*=\s*(\d*)\s*-\s*(\d*)\s*", header or "", re.IGNORECASE)
    if match is None or match.groups() == ("", ""):
        return None
    first_byte, last_byte = match.groups()
    if not first_byte:
        return max(size - int(last_byte), 0), size
    if last_byte and int(last_byte) < int(first_byte):
        return None
    return int(first_byte), min(int(last_byte) + 1, size) if last_byte else size
