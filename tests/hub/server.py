"""A small Hub on a loopback port, in a thread, for the real clients: it can fail on purpose and counts requests."""

from __future__ import annotations

import io
import secrets
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qs, urlsplit

from . import file_routes, routes  # noqa: F401  (importing them fills the table of routes)
from .faults import CutAnswer, CutRequest, FaultList, Record, Refuse, RequestLog, Slow, first
from .messages import Account, Answer, Request, dispatch, refusal
from .store import HubError, Repo, Store


class ConnectionCut(Exception):
    """A fault, or the client, closed the connection."""


class HubServer:
    """The server; use it as a context manager.

    Args:
        folder: Where contents are kept (a temporary folder).

    Attributes:
        url: What clients get as `HF_ENDPOINT`.
        store: The repositories.
        faults: What goes wrong; see `faults.py`.
        log: What was asked.
        page_size: Entries per page of listings.
        errors: Tracebacks of routes that broke (a mistake in this server, answered with 500).
    """

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder)
        self.faults = FaultList()
        self.log = RequestLog()
        self.page_size = 1000
        self.errors: list[str] = []
        self._tokens: dict[str, tuple[str, bool]] = {}
        self._tickets: dict[str, tuple[Repo, str, int]] = {}
        self._server = _Server(("127.0.0.1", 0), type("BoundHandler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add_account(self, name: str) -> Account:
        account = Account(name, f"hf_write{secrets.token_hex(16)}", f"hf_read{secrets.token_hex(16)}")
        self._tokens[account.token] = (name, True)
        self._tokens[account.read_token] = (name, False)
        return account

    def seed(self, kind: str, repo_id: str, files: dict[str, bytes], *, private: bool = False) -> Repo:
        """A repository with these regular files; their names are not checked, so that it can be a hostile one."""
        author = repo_id.split("/")[0]
        repo = self.store.create_repo(kind, repo_id, author, private=private)
        entries = {path: self.store.regular_entry(data) for path, data in files.items()}
        self.store.commit(repo, "main", repo.resolve("main").files | entries, author, "Seeded")
        return repo

    def who(self, authorization: str | None) -> tuple[str | None, bool]:
        """User and right to write of an `Authorization` header; 401 for a token that this server did not give out."""
        if not authorization:
            return None, False
        user = self._tokens.get(authorization.removeprefix("Bearer ").strip())
        if user is None:
            raise HubError(401, None, "Invalid credentials in Authorization header")
        return user

    def issue_ticket(self, repo: Repo, oid: str, size: int) -> str:
        ticket = secrets.token_hex(16)
        self._tickets[ticket] = (repo, oid, size)
        return ticket

    def ticket(self, name: str) -> tuple[Repo, str, int]:
        if name not in self._tickets:
            raise HubError(403, None, "Unknown upload address")
        return self._tickets[name]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # the default of 5 makes clients that connect at the same time wait a second


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, format: str, *args: object) -> None:
        """Silent: `HubServer.log` keeps what tests need."""

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, ConnectionCut):
            self.close_connection = True

    def finish(self) -> None:
        try:
            super().finish()
        except (ConnectionError, ValueError):
            self.wfile = io.BytesIO()  # the client has gone; there is nobody to send the rest to

    def _serve(self) -> None:
        hub = self.hub
        parts = urlsplit(self.path)
        faults = hub.faults.claim(self.command, self.path)
        record = Record(self.command, self.path, None, range=self.headers.get("Range"))
        hub.log.add(record)
        cut = first(faults, CutRequest)
        if cut is not None and not {"Content-Length", "Transfer-Encoding"} & set(self.headers):
            self._hang_up()
        body = self._body(record, cut.after_bytes if cut is not None else None)
        query = parse_qs(parts.query, keep_blank_values=True)
        request = Request(self.command, parts.path, query, self.headers, body, faults=faults)
        answer = self._answer(request, record)
        for _ in body:  # what a refused request sent: must be read before the next request on this connection
            pass
        self._send(answer, record, first(faults, CutAnswer), first(faults, Slow))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _answer(self, request: Request, record: Record) -> Answer:
        try:
            request.user, request.may_write = self.hub.who(self.headers.get("Authorization"))
            record.user = request.user
            record.route, run = dispatch(self.hub, request)
            refuse = first(request.faults, Refuse)
            if refuse is not None:
                return Answer.error(refuse.status, refuse.code, refuse.message, refuse.headers)
            return run()
        except HubError as error:
            return refusal(error)
        except (ConnectionError, ConnectionCut):
            raise
        except Exception:  # noqa: BLE001  a mistake in a route must reach the test, and the client must get an answer
            self.hub.errors.append(traceback.format_exc())
            return Answer.json({"error": "The test server broke; see HubServer.errors"}, 500)

    def _body(self, record: Record, cut_after: int | None) -> Iterator[bytes]:
        """The body in pieces, chunked or not; counts its bytes; hangs up after `cut_after` of them."""
        for piece in self._pieces():
            record.received += len(piece)
            if cut_after is not None and record.received >= cut_after:
                self._hang_up()
            yield piece
        if cut_after is not None:
            self._hang_up()

    def _pieces(self, size: int = 1 << 16) -> Iterator[bytes]:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            while (length := int(self.rfile.readline().split(b";")[0].strip() or b"0", 16)) > 0:
                yield self._exactly(length)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left > 0:
            piece = self._exactly(min(left, size))
            left -= len(piece)
            yield piece

    def _exactly(self, length: int) -> bytes:
        data = self.rfile.read(length)
        if len(data) < length:
            raise ConnectionCut("the client sent less than it announced")
        return data

    def _send(self, answer: Answer, record: Record, cut: CutAnswer | None, slow: Slow | None) -> None:
        if slow is not None:
            time.sleep(slow.seconds)
        record.status = answer.status
        if cut is not None and cut.after_bytes is None:
            self._hang_up()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(answer.size))
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(answer, record, cut.after_bytes if cut is not None else None, slow)
        self.wfile.flush()

    def _send_body(self, answer: Answer, record: Record, limit: int | None, slow: Slow | None) -> None:
        rate = slow.bytes_per_second if slow is not None else None
        for chunk in answer.chunks(max(1, int(rate / 10)) if rate else 1 << 16):
            if limit is not None:
                chunk = chunk[: limit - record.sent]
            record.sent += len(chunk)  # before the write: a test may read it as soon as the client has the bytes
            self.wfile.write(chunk)
            if rate:
                self.wfile.flush()
                time.sleep(len(chunk) / rate)
            if limit is not None and record.sent >= limit:
                self._hang_up()

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
        raise ConnectionCut("by a fault")
