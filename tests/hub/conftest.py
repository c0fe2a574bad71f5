"""Fixtures of the Hub tests: a server for the session, an account and a clean log a test, clients in processes."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.media_factory import write_clip

from .client import run_python
from .faults import Fault, RequestLog
from .messages import Account
from .server import HubServer


_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def hub_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """The one server of the session. For pushes shared by a module: `hub_server.add_account("some-name")`."""
    with HubServer(tmp_path_factory.mktemp("hub")) as server:
        yield server


@dataclass
class HubOfTest:
    """The server as one test sees it: an account of its own, no faults and an empty log at the start."""

    server: HubServer
    account: Account

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def user(self) -> str:
        """The namespace to push to."""
        return self.account.name

    @property
    def token(self) -> str:
        return self.account.token

    @property
    def log(self) -> RequestLog:
        return self.server.log

    def fail(self, *faults: Fault) -> None:
        self.server.faults.add(*faults)


@pytest.fixture
def hub(hub_server: HubServer) -> Iterator[HubOfTest]:
    hub_server.log.clear()
    hub_server.errors.clear()
    yield HubOfTest(hub_server, hub_server.add_account(f"user{next(_numbers)}"))
    hub_server.faults.clear()
    hub_server.page_size = 1000
    assert not hub_server.errors, "\n".join(hub_server.errors)


@pytest.fixture
def run_client(hub: HubOfTest, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_client(code, **options of client.run_python)`: as the test's user, in a fresh cache each time.

    The snippet finds `USER` in its environment. `home=` keeps a cache between runs, `token=None` logs out.
    """
    runs = itertools.count(1)

    def run(code: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
        options.setdefault("home", tmp_path / f"client{next(runs)}")
        options.setdefault("token", hub.token)
        options["env"] = {"USER": hub.user, **(options.get("env") or {})}  # type: ignore[dict-item]
        return run_python(hub.server, code, **options)  # type: ignore[arg-type]

    return run


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny model with its processor."""
    from tests.model.test_pipeline import tiny_processor
    from tests.model.tiny import tiny_model

    folder = tmp_path_factory.mktemp("saved")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip with sound and frames."""
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", seconds=0.6)
