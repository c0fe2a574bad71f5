"""Real Hub clients in processes of their own, each with a fresh cache, against a test server."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from .server import HubServer


# Names set to None in sys.modules cannot be imported: the snippet runs as if the package were not installed.
_RUNNER = """
import runpy, sys
sys.modules.update(dict.fromkeys(filter(None, sys.argv.pop(1).split(","))))
sys.argv[:] = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
_KEPT = (
    "PATH",
    "PYTHONPATH",
    "LANG",
    "LC_ALL",
    "SYSTEMROOT",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "MMBALANCE_DATA",
)


def client_env(hub: HubServer, home: Path, token: str | None) -> dict[str, str]:
    """The environment of a client: nothing of the caller's but `_KEPT`; caches under `home`; no proxy, no Xet."""
    home.mkdir(parents=True, exist_ok=True)
    env = {name: os.environ[name] for name in _KEPT if name in os.environ}
    env |= {
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": hub.url,
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    for switch in ("XET", "TELEMETRY", "PROGRESS_BARS", "UPDATE_CHECK"):
        env[f"HF_HUB_DISABLE_{switch}"] = "1"
    if token is not None:
        env["HF_TOKEN"] = token
    return env


def run_python(
    hub: HubServer,
    code: str | Path,
    *,
    home: Path,
    token: str | None = None,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    without: Sequence[str] = (),
    timeout: float = 120.0,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Runs a snippet (or a script's path) in a new Python process whose Hub is `hub`.

    Args:
        hub: The server.
        code: Source text, dedented here, or the path of a script.
        home: Folder of the caches and working directory; a fresh one means a fresh cache.
        token: `HF_TOKEN`; none is set by default.
        args: Command-line arguments (`sys.argv[1:]`).
        env: Variables added to (or replacing) those of `client_env`.
        without: Modules that cannot be imported there.
        timeout: Seconds.
        check: Raise where the process fails.

    Raises:
        AssertionError: If the process fails (with `check`) or takes too long; holds its output and the requests made.
    """
    variables = client_env(hub, home, token) | dict(env or {})
    script = code if isinstance(code, Path) else home / "snippet.py"
    if isinstance(code, str):
        script.write_text(textwrap.dedent(code))
    command = [sys.executable, "-c", _RUNNER, ",".join(without), str(script), *args]
    try:
        done = subprocess.run(command, env=variables, cwd=home, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise AssertionError(_report(hub, f"no end after {timeout} s", error.stdout, error.stderr)) from None
    if check and done.returncode != 0:
        raise AssertionError(_report(hub, f"exit status {done.returncode}", done.stdout, done.stderr))
    return done


def _report(hub: HubServer, what: str, *streams: str | bytes | None) -> str:
    texts = [text.decode("utf-8", "replace") if isinstance(text, bytes) else text or "" for text in streams]
    requests = "\n".join(str(record) for record in list(hub.log)[-40:])
    errors = "\n".join(hub.errors)
    return f"{what}\n--- stdout\n{texts[0]}\n--- stderr\n{texts[1]}\n--- last requests\n{requests}\n{errors}"
