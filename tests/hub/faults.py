"""Failing on purpose: a declarative list of faults, and the log of every request a server answered."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar


F = TypeVar("F", bound="Fault")


@dataclass(kw_only=True)
class Fault:
    """Which requests go wrong: `path` is a regular expression searched in the quoted path with its query.

    Args:
        path: Regular expression, e.g. `r"/commit/main"`.
        method: HTTP method; `None` means any.
        times: How many matching requests are hit; `None` means all of them.
        skip: How many matching requests pass unharmed first.
    """

    path: str
    method: str | None = None
    times: int | None = 1
    skip: int = 0
    hits: int = field(default=0, init=False)
    _seen: int = field(default=0, init=False, repr=False)

    def claims(self, method: str, path: str) -> bool:
        """Whether this request is hit; counts it."""
        if (self.method is not None and method != self.method) or not re.search(self.path, path):
            return False
        self._seen += 1
        if self._seen <= self.skip or (self.times is not None and self.hits >= self.times):
            return False
        self.hits += 1
        return True


@dataclass(kw_only=True)
class Refuse(Fault):
    """Answers an error in place of the route: 500, 403, 412, 429, 507 (store full), ..."""

    status: int = 500
    code: str | None = None
    message: str = "Injected failure"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class CutRequest(Fault):
    """Closes the connection after reading `after_bytes` of the request's body: a short upload, nothing is stored."""

    after_bytes: int = 0


@dataclass(kw_only=True)
class CutAnswer(Fault):
    """Does what was asked, then closes the connection after `after_bytes` of the answer's body.

    `None` sends not even the status line: the request took effect and its answer was lost.
    """

    after_bytes: int | None = None


@dataclass(kw_only=True)
class Slow(Fault):
    """Waits `seconds` before the answer and, with `bytes_per_second`, sends its body at that rate."""

    seconds: float = 0.0
    bytes_per_second: float | None = None


@dataclass(kw_only=True)
class RacingCommit(Fault):
    """Lets somebody else's commit land on the branch just before this commit: a stale parent then gets 412."""

    path: str = r"/commit/"
    method: str | None = "POST"


class FaultList:
    """The faults of a server, safe to change while it answers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(self, *faults: Fault) -> None:
        with self._lock:
            self._faults.extend(faults)

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def claim(self, method: str, path: str) -> list[Fault]:
        """The faults that hit this request."""
        with self._lock:
            return [fault for fault in self._faults if fault.claims(method, path)]


@dataclass
class Record:
    """One request: `route` is the name of what answered it (None: no such route), bytes are those of the bodies."""

    method: str
    path: str
    user: str | None
    range: str | None = None
    route: str | None = None
    status: int | None = None
    received: int = 0
    sent: int = 0

    def __str__(self) -> str:
        counts = f"{self.received} in, {self.sent} out" + (f", {self.range}" if self.range else "")
        return f"{self.method} {self.path} -> {self.route} {self.status} ({counts})"


class RequestLog:
    """Every request since the last `clear`, in order of arrival; never holds a token."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: list[Record] = []

    def add(self, record: Record) -> None:
        with self._lock:
            self._records.append(record)

    def clear(self) -> None:
        with self._lock:
            self._records.clear()

    def select(
        self, route: str | None = None, *, method: str | None = None, path: str = "", status: int | None = None
    ) -> list[Record]:
        """The records of a route name, method, path (regular expression) and status; each where given."""
        with self._lock:
            records = list(self._records)
        return [
            record
            for record in records
            if (route is None or record.route == route)
            and (method is None or record.method == method)
            and (status is None or record.status == status)
            and re.search(path, record.path)
        ]

    def count(self, route: str | None = None, **which: Any) -> int:
        """How many there are; `which` as in `select`."""
        return len(self.select(route, **which))

    def received(self, route: str | None = None, **which: Any) -> int:
        """Bytes of request bodies."""
        return sum(record.received for record in self.select(route, **which))

    def sent(self, route: str | None = None, **which: Any) -> int:
        """Bytes of answer bodies."""
        return sum(record.sent for record in self.select(route, **which))

    def by_route(self) -> dict[str, int]:
        """Requests per route; `"none"` counts those that no route answered."""
        counts: dict[str, int] = {}
        for record in self.select():
            counts[record.route or "none"] = counts.get(record.route or "none", 0) + 1
        return counts

    def __iter__(self) -> Iterator[Record]:
        return iter(self.select())


def first(faults: list[Fault], kind: type[F]) -> F | None:
    """The first fault of that class, if any."""
    return next((fault for fault in faults if isinstance(fault, kind)), None)
