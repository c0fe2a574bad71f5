"""Routes about accounts and whole repositories: whoami, create, info, listing, branches, tags, history."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from .messages import PREFIXES, Answer, Request, check_write, readable, route, stamp, writable
from .store import KINDS, Commit, HubError, Repo


if TYPE_CHECKING:
    from .server import HubServer


@route("GET", "/api/whoami-v2")
def whoami(hub: HubServer, request: Request) -> Answer:
    if request.user is None:
        raise HubError(401, None, "Invalid credentials in Authorization header")
    role = "write" if request.may_write else "read"
    return Answer.json(
        {
            "type": "user",
            "id": request.user,
            "name": request.user,
            "fullname": request.user,
            "email": f"{request.user}@example.invalid",
            "canPay": False,
            "isPro": False,
            "orgs": [],
            "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": role}},
        }
    )


@route("GET", "/api/agent-harnesses")
def client_registry(hub: HubServer, request: Request) -> Answer:
    """A registry that huggingface_hub fetches once per fresh cache; here it is empty."""
    return Answer.json({"standardEnvVars": [], "harnesses": {}})


@route("POST", "/api/validate-yaml")
def validate_yaml(hub: HubServer, request: Request) -> Answer:
    """Finds a front matter that is missing, not closed or indented by tabs; it does not parse YAML."""
    content = request.json().get("content", "").replace("\r\n", "\n")
    if not content.startswith("---\n"):
        warning = {"message": "empty or missing yaml metadata in repo card"}
        return Answer.json({"errors": [], "warnings": [warning]})
    closed = re.match(r"---\n(.*?)\n?---(\n|$)", content, re.DOTALL)
    problem = "the front matter is not closed by ---" if closed is None else None
    if closed is not None and re.search(r"^ *\t", closed[1], re.MULTILINE):
        problem = "a tab indents a line of the front matter"
    if problem is not None:
        return Answer.json({"error": problem, "errors": [{"message": problem}], "warnings": []}, 400)
    return Answer.json({"errors": [], "warnings": []})


def _named(request: Request) -> tuple[str, str, dict[str, Any]]:
    """Kind and id of the repository a request's body names, and the body; 401 for strangers."""
    if request.user is None:
        raise HubError(401, None, "Invalid username or password.")
    body = request.json()
    kind = (body.get("type") or "model") + "s"
    if kind not in KINDS or not isinstance(body.get("name"), str):
        raise HubError(400, None, f"Needs a name and a type among model, dataset, space; got {body}")
    return kind, f"{body.get('organization') or request.user}/{body['name']}", body


@route("POST", "/api/repos/create")
def create_repo(hub: HubServer, request: Request) -> Answer:
    kind, repo_id, body = _named(request)
    check_write(request, repo_id.split("/")[0])
    if kind == "spaces" and not body.get("sdk"):
        raise HubError(400, None, "A Space needs an sdk")
    private = body.get("visibility") == "private" or bool(body.get("private"))
    url = f"{hub.url}/{PREFIXES[kind]}{repo_id}"
    try:
        hub.store.create_repo(kind, repo_id, request.user or "", private=private, sdk=body.get("sdk"))
    except HubError as error:
        if error.status != 409:
            raise
        return Answer.json({"error": error.message, "url": url}, 409)
    return Answer.json({"url": url, "name": repo_id, "id": repo_id})


@route("DELETE", "/api/repos/delete")
def delete_repo(hub: HubServer, request: Request) -> Answer:
    kind, repo_id, _ = _named(request)
    with hub.store.lock:
        writable(hub, request, kind, repo_id)
        del hub.store.repos[kind, repo_id]
    return Answer.json({})


@route("PUT", "/api/{kind}/{repo_id}/settings")
def settings(hub: HubServer, request: Request, kind: str, repo_id: str) -> Answer:
    repo = writable(hub, request, kind, repo_id)
    repo.private = request.json().get("visibility") == "private"
    return Answer.json({"private": repo.private})


def _front_matter(hub: HubServer, commit: Commit) -> dict[str, Any]:
    """Top-level scalars and lists of scalars of the card's metadata: enough for `pipeline_tag`, `tags` and so on."""
    entry = commit.files.get("README.md")
    text = hub.store.read(entry).decode("utf-8", "replace") if entry else ""
    match = re.match(r"---\n(.*?)\n---", text.replace("\r\n", "\n"), re.DOTALL)
    found: dict[str, Any] = {}
    key = ""
    for line in match[1].split("\n") if match else []:
        if scalar := re.match(r"([\w-]+):\s*(.*)$", line):
            key, value = scalar[1], scalar[2].strip().strip("\"'")
            found[key] = value or []
        elif (item := re.match(r" {0,2}- ([^:{]+)$", line)) and isinstance(found.get(key), list):
            found[key].append(item[1].strip().strip("\"'"))
    return found


def _info(hub: HubServer, repo: Repo, commit: Commit, *, blobs: bool) -> dict[str, Any]:
    card = _front_matter(hub, commit)
    siblings: list[dict[str, Any]] = []
    for path, entry in commit.files.items():
        sibling: dict[str, Any] = {"rfilename": path}
        if blobs:
            sibling |= {"size": entry.size, "blobId": entry.oid}
        if blobs and entry.lfs:
            sibling["lfs"] = {"size": entry.size, "sha256": entry.sha256, "pointerSize": 134}
        siblings.append(sibling)
    tags = card.get("tags") or []
    info = {
        "_id": commit.oid[:24],
        "id": repo.id,
        "author": repo.id.split("/")[0],
        "sha": commit.oid,
        "private": repo.private,
        "gated": False,
        "disabled": False,
        "createdAt": stamp(repo.created),
        "lastModified": stamp(commit.date),
        "tags": tags if isinstance(tags, list) else [tags],
        "downloads": 0,
        "likes": 0,
        "siblings": siblings,
        "cardData": card,
    }
    if repo.kind == "models":
        info["modelId"] = repo.id
        info |= {key: card[key] for key in ("pipeline_tag", "library_name") if key in card}
    if repo.kind == "spaces":
        info["sdk"] = repo.sdk
    return info


@route("GET", "/api/{kind}")
def list_repos(hub: HubServer, request: Request, kind: str) -> Answer:
    """Those the request may see, by `author` and `search`, `limit` of them, last changed first."""
    author, search = (request.query.get(name, [""])[0] for name in ("author", "search"))
    with hub.store.lock:
        repos = list(hub.store.repos.items())
    found = [
        _info(hub, repo, repo.resolve("main"), blobs=False)
        for (of, repo_id), repo in repos
        if of == kind
        and (not repo.private or request.user == repo_id.split("/")[0])
        and (not author or repo_id.startswith(author + "/"))
        and search.lower() in repo_id.lower()
    ]
    found.sort(key=lambda info: info["lastModified"], reverse=True)
    return Answer.json(found[: request.number("limit", 1000)])


@route("GET HEAD", "/api/{kind}/{repo_id}")
def repo_info(hub: HubServer, request: Request, kind: str, repo_id: str, rev: str = "main") -> Answer:
    repo = readable(hub, request, kind, repo_id)
    return Answer.json(_info(hub, repo, repo.resolve(rev), blobs=request.flag("blobs")))


@route("GET HEAD", "/api/{kind}/{repo_id}/revision/{rev}")
def revision_info(hub: HubServer, request: Request, kind: str, repo_id: str, rev: str) -> Answer:
    return repo_info(hub, request, kind, repo_id, rev)


@route("GET", "/api/{kind}/{repo_id}/auth-check")
def auth_check(hub: HubServer, request: Request, kind: str, repo_id: str) -> Answer:
    readable(hub, request, kind, repo_id)
    return Answer.json({})


@route("GET", "/api/{kind}/{repo_id}/auth-check/write")
def auth_check_write(hub: HubServer, request: Request, kind: str, repo_id: str) -> Answer:
    writable(hub, request, kind, repo_id)
    return Answer.json({})


@route("GET POST", "/api/spaces/{repo_id}/variables")
def variables(hub: HubServer, request: Request, repo_id: str) -> Answer:
    repo = writable(hub, request, "spaces", repo_id)
    if request.method == "POST":
        body = request.json()
        repo.variables[body["key"]] = body["value"]
    return Answer.json({name: {"value": value} for name, value in repo.variables.items()})


@route("GET", "/api/{kind}/{repo_id}/refs")
def refs(hub: HubServer, request: Request, kind: str, repo_id: str) -> Answer:
    repo = readable(hub, request, kind, repo_id)

    def rows(names: dict[str, str], prefix: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": prefix + name, "targetCommit": oid} for name, oid in names.items()]

    with hub.store.lock:
        listing = {"branches": rows(repo.branches, "refs/heads/"), "tags": rows(repo.tags, "refs/tags/")}
        return Answer.json({**listing, "converts": [], "pullRequests": rows(repo.pulls, "")})


@route("GET", "/api/{kind}/{repo_id}/commits/{rev}")
def commits(hub: HubServer, request: Request, kind: str, repo_id: str, rev: str) -> Answer:
    repo = readable(hub, request, kind, repo_id)
    rows = [
        {
            "id": commit.oid,
            "title": commit.title,
            "message": commit.description,
            "authors": [{"user": commit.author}],
            "date": stamp(commit.date),
        }
        for commit in repo.history(repo.resolve(rev))
    ]
    return paged(hub, request, rows, hub.page_size)


@route("GET", "/api/{kind}/{repo_id}/discussions")
def discussions(hub: HubServer, request: Request, kind: str, repo_id: str) -> Answer:
    """None, ever: `transformers` looks here for conversions to safetensors."""
    readable(hub, request, kind, repo_id)
    return Answer.json({"discussions": [], "count": 0, "start": 0})


@route("POST DELETE", "/api/{kind}/{repo_id}/branch/{rev}")
def branch(hub: HubServer, request: Request, kind: str, repo_id: str, rev: str) -> Answer:
    repo = writable(hub, request, kind, repo_id)
    if request.method == "DELETE":
        if rev == "main":
            raise HubError(403, None, "Cannot delete the default branch")
        if repo.branches.pop(rev, None) is None:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        return Answer.json({})
    start = repo.resolve(request.json().get("startingPoint") or "main")
    with hub.store.lock:
        if rev in repo.branches:
            raise HubError(409, None, "Reference already exists")
        repo.branches[rev] = start.oid
    return Answer.json({}, 201)


@route("POST DELETE", "/api/{kind}/{repo_id}/tag/{rev}")
def tag(hub: HubServer, request: Request, kind: str, repo_id: str, rev: str) -> Answer:
    repo = writable(hub, request, kind, repo_id)
    if request.method == "DELETE":
        if repo.tags.pop(rev, None) is None:
            raise HubError(404, "RevisionNotFound", f"Tag not found: {rev}")
        return Answer.json({})
    name, target = request.json()["tag"], repo.resolve(rev)
    with hub.store.lock:
        if name in repo.tags:
            raise HubError(409, None, "Tag reference exists already")
        repo.tags[name] = target.oid
    return Answer.json({}, 201)


def paged(hub: HubServer, request: Request, rows: list[dict[str, Any]], size: int) -> Answer:
    """One page of the rows; the `Link` header names the next one."""
    at = request.number("cursor", 0)
    headers = {}
    if at + size < len(rows):
        query = {name: values[0] for name, values in request.query.items()} | {"cursor": str(at + size)}
        link = "&".join(f"{quote(name)}={quote(value)}" for name, value in query.items())
        headers["Link"] = f'<{hub.url}{request.path}?{link}>; rel="next"'
    return Answer.json(rows[at : at + size], headers=headers)
