"""What routes take and give: requests, answers, accounts, and the table that joins a path to its route."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from .faults import Fault
from .store import HubError, Repo


if TYPE_CHECKING:
    from .server import HubServer

PREFIXES = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}
Handler = Callable[..., "Answer"]


@dataclass(frozen=True)
class Account:
    """A user (or organization) with a token that may write to its own namespace and one that may only read."""

    name: str
    token: str = field(repr=False)
    read_token: str = field(repr=False)


@dataclass
class Request:
    method: str
    path: str  # still quoted, without the query
    query: dict[str, list[str]]
    headers: Any  # email.message.Message: names in any case
    body: Iterator[bytes]
    user: str | None = None
    may_write: bool = False
    faults: list[Fault] = field(default_factory=list)

    def read(self) -> bytes:
        return b"".join(self.body)

    def json(self) -> Any:
        try:
            return json.loads(self.read() or b"{}")
        except ValueError as error:
            raise HubError(400, None, f"The body is not JSON: {error}") from error

    def flag(self, name: str) -> bool:
        return self.query.get(name, [""])[0].lower() in ("1", "true")

    def number(self, name: str, default: int) -> int:
        value = self.query.get(name, [str(default)])[0]
        if not value.isdigit():
            raise HubError(400, None, f"{name} must be a number, got {value!r}")
        return int(value)


@dataclass
class Answer:
    """`body` is sent as it is; with `file`, `length` bytes of that file from `start` on are sent instead."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    file: Path | None = None
    start: int = 0
    length: int = 0

    @classmethod
    def json(cls, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    @classmethod
    def error(cls, status: int, code: str | None, message: str, headers: dict[str, str] | None = None) -> Answer:
        extra = {"X-Error-Message": message.encode("ascii", "replace").decode(), **(headers or {})}
        if code is not None:
            extra["X-Error-Code"] = code
        return cls.json({"error": message}, status, extra)

    @property
    def size(self) -> int:
        return self.length if self.file is not None else len(self.body)

    def chunks(self, size: int = 1 << 16) -> Iterator[bytes]:
        if self.file is None:
            for at in range(0, len(self.body), size):
                yield self.body[at : at + size]
            return
        with open(self.file, "rb") as file:
            file.seek(self.start)
            left = self.length
            while left > 0 and (chunk := file.read(min(size, left))):
                left -= len(chunk)
                yield chunk


def stamp(date: datetime) -> str:
    return date.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# A revision is one quoted segment, but some clients leave the slashes of these two kinds of reference unquoted.
_PARTS = {
    "kind": r"models|datasets|spaces",
    "prefix": r"(?:datasets/|spaces/)?",
    "repo_id": r"[^/]+/[^/]+",
    "rev": r"refs/(?:pr|convert)/[^/]+|[^/]+",
    "path": r".+",
    "name": r"[^/]+",
}
ROUTES: list[tuple[tuple[str, ...], re.Pattern[str], str, Handler]] = []


def route(methods: str, template: str) -> Callable[[Handler], Handler]:
    """Registers a route: `{kind}`, `{repo_id}`, `{rev}`, ... of the template become unquoted keyword arguments."""
    pattern = re.sub(r"\{(\w+)\}", lambda part: f"(?P<{part[1]}>{_PARTS[part[1]]})", template)

    def register(handler: Handler) -> Handler:
        ROUTES.append((tuple(methods.split()), re.compile(pattern), handler.__name__, handler))
        return handler

    return register


def dispatch(hub: HubServer, request: Request) -> tuple[str | None, Callable[[], Answer]]:
    """The name of the route that fits and a call that runs it; for no route, `None` and the Hub's "not found"."""
    for methods, pattern, name, handler in ROUTES:
        match = pattern.fullmatch(request.path)
        if match and request.method in methods:
            parts = {key: unquote(value) for key, value in match.groupdict().items()}
            if "prefix" in parts:
                parts["kind"] = parts.pop("prefix").strip("/") or "models"
            return name, functools.partial(handler, hub, request, **parts)
    if re.match(r"/api/(models|datasets|spaces)/[^/]+(/revision/.*|/tree/.*)?$|/.+/resolve/", request.path):
        # a name without a namespace ("gpt2"): the public Hub has some, this one none
        return "no_such_repo", lambda: refusal(missing_repo(request))
    return None, lambda: Answer.error(404, None, f"No such route: {request.method} {request.path}")


def refusal(error: HubError) -> Answer:
    return Answer.error(error.status, error.code, error.message)


def missing_repo(request: Request) -> HubError:
    """The Hub does not tell strangers whether a repository exists: 401 for them, 404 for whoever has a token."""
    if request.user is None:
        return HubError(401, "RepoNotFound", "Invalid username or password.")
    return HubError(404, "RepoNotFound", "Repository not found")


def readable(hub: HubServer, request: Request, kind: str, repo_id: str) -> Repo:
    """The repository, where this request may see it."""
    repo = hub.store.repos.get((kind, repo_id))
    if repo is None or (repo.private and request.user != repo_id.split("/")[0]):
        raise missing_repo(request)
    return repo


def check_write(request: Request, namespace: str) -> None:
    """401 without a token, 403 with one that may not write to the namespace."""
    if request.user is None:
        raise HubError(401, None, "Invalid username or password.")
    if not request.may_write or request.user != namespace:
        raise HubError(403, None, f"You don't have the rights to write to the namespace {namespace!r} with this token")


def writable(hub: HubServer, request: Request, kind: str, repo_id: str) -> Repo:
    repo = readable(hub, request, kind, repo_id)
    check_write(request, repo_id.split("/")[0])
    return repo
