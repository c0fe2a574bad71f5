"""The demo as a stranger gets it: pulled from its Space, started without this package, asked through its own API."""

from __future__ import annotations

import json

import av
import pytest

from hf_mmbalance.hub.example_clips import synthetic_examples
from tests.model.test_pipeline import tiny_processor
from tests.model.tiny import tiny_model

from .test_spaces import SPACE


def test_examples_hold_what_their_names_say(tmp_path):
    """Also where a repository asks for more than anybody needs."""
    paths = synthetic_examples(tmp_path, {"classes": 10**9, "frame_size": 32, "seconds": 0.4}, count=3)
    assert len(paths) == 3 and all("sounds_class" in path.name for path in paths)
    with av.open(str(paths[0])) as file:
        assert {stream.type for stream in file.streams} == {"audio", "video"}
        assert file.streams.video[0].height == 160 and sum(1 for _ in file.decode(video=0)) == 10


PUSH = """
import os, sys
from hf_mmbalance.hub import push_folder
push_folder(sys.argv[1], os.environ["USER"] + "/toy", message="Toy")
"""
START = """
import json, os, sys
from huggingface_hub import HfApi, snapshot_download
space = os.environ["USER"] + "/page"
variables = {name: variable.value for name, variable in HfApi().get_space_variables(space).items()}
del os.environ["HF_TOKEN"]
os.environ.update(variables, GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=os.path.abspath("gradio"))
folder = snapshot_download(space, repo_type="space")
sys.path.insert(0, folder)
import app
page = app.make_page(app.load(), app.find_examples())
page.launch(prevent_thread_lock=True, quiet=True, css_paths=os.path.join(folder, "style.css"))
from gradio_client import Client, handle_file
client = Client(page.local_url, verbose=False)
example = app.find_examples()[0]
def ask(senses):
    return client.predict(handle_file(example), senses, api_name="/show")
answers = {"example": os.path.basename(example), "both": ask(["audio", "vision"]), "vision": ask(["vision"])}
page.close()
print("ANSWERS" + json.dumps(answers))
"""


@pytest.mark.slow
def test_the_demo_starts_from_its_space(hub, run_client, tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'hf_mmbalance[demo]'")
    saved = tmp_path / "model"
    tiny_model().save_pretrained(saved)
    tiny_processor().save_pretrained(saved)
    results = {"dataset": "synthetic", "arguments": {"classes": 3, "seconds": 0.4, "frame_size": 16}}
    (saved / "results.json").write_text(json.dumps(results))
    run_client(PUSH, args=[str(saved)])
    args = ["demo", f"{hub.user}/page", "--model", f"{hub.user}/toy", "--trust_remote_code"]
    done = json.loads(run_client(SPACE, args=args).stdout)
    started = run_client(START, without=["hf_mmbalance", "torchcodec"], timeout=200)
    answers = json.loads(next(line for line in started.stdout.splitlines() if line.startswith("ANSWERS"))[7:])
    assert answers["example"].startswith("sounds_class")
    assert answers["both"].count("<section>") == 4 and "Sound by itself predicts" in answers["both"]
    assert "Sound is switched off" in answers["vision"] and 'title="sound by itself: not there"' in answers["vision"]
    assert hub.log.count("resolve", path=f"/toy/resolve/{done['model_revision']}/model.safetensors"), "not pinned"
    assert hub.token not in started.stdout + started.stderr
