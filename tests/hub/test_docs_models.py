"""docs/hub.md, models: its blocks are run one after the other as written, with a user's name and a tag put in."""

from __future__ import annotations

import json
import re

import pytest

from hf_mmbalance.hub.model_card import pinned_revision
from tests.media_factory import write_clip
from tests.training.tiny_runs import tiny_run

from .models import no_token_in, stored
from .test_docs_data import RUN, blocks


@pytest.mark.slow
def test_the_blocks_run_as_written(hub, run_client, tmp_path):
    home = tmp_path / "home"
    tiny_run(home / "outputs" / "my-run")
    write_clip(home / "clip.mp4", seconds=0.5)
    # training, and backbones of the public Hub, have tests of their own
    left_out = ("train.py", "from_backbones")
    wanted = [(kind, text) for kind, text in blocks("Models") if not any(word in text for word in left_out)]
    assert len(wanted) == 4
    tag = pinned_revision(home / "outputs" / "my-run")
    words = {"user/": f"{hub.user}/", "model-7c1ac67553": tag}
    told = json.dumps([(kind, re.sub("|".join(words), lambda word: words[word[0]], text)) for kind, text in wanted])
    done = run_client(RUN, args=[told], home=home, timeout=300)
    assert "'modality_score': {'audio': " in done.stdout and "'vision': None" in done.stdout
    answers = json.loads((home / "answers.json").read_text())
    assert len(answers) == 1 and len(answers[0]["answer"]) == 3
    assert "diagnosis.html" in stored(hub, f"{hub.user}/my-model")[1].files
    assert "processor_config.json" in stored(hub, f"{hub.user}/my-other-model")[1].files
    no_token_in(hub, done.stdout, done.stderr, folders=(home,))
