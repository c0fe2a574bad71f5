"""What the tests of models share: what is pushed, what the server then stores, and what must not be said."""

from __future__ import annotations

import json
from pathlib import Path


CODE = {
    *("modeling_mmbalance.py", "configuration_mmbalance.py", "processing_mmbalance.py", "pipeline_mmbalance.py"),
    *("reading_mmbalance.py", "inputs_mmbalance.py", "windows_mmbalance.py", "media_mmbalance.py"),
    *("media_request_mmbalance.py", "media_sound_mmbalance.py", "media_frames_mmbalance.py"),
    *("heads_mmbalance.py", "losses_mmbalance.py", "fusion_mmbalance.py", "fusion_adaptive_mmbalance.py"),
}
PUSH = """
import json, os, sys
from pathlib import Path
from hf_mmbalance.hub import HubError, push_saved
print(push_saved(Path(sys.argv[1]), os.environ["USER"] + "/" + sys.argv[2], message=sys.argv[3]).oid)
assert not {"torch", "transformers"} & set(sys.modules), "a push of files needs neither"
"""


def stored(hub, repo: str, revision: str = "main"):
    repo = hub.server.store.repos["models", repo]
    return repo, repo.resolve(revision)


def no_token_in(hub, *texts: str, folders: tuple[Path, ...] = ()) -> None:
    """Neither in what was said nor in any file that was written."""
    files = [path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()]
    for token in (hub.token, hub.account.read_token):
        assert not any(token in text for text in texts)
        assert not any(token.encode() in data for data in files)


def answers_of(done) -> dict:
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("ANSWERS"))[8:])
