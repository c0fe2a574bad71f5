"""Models loaded from the Hub by this package: errors with their remedies, `mmbalance predict`, a warm cache."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from hf_mmbalance import AudioVisualClassificationPipeline
from tests.media_factory import write_clip
from tests.model.test_pipeline import assert_same, tiny_processor
from tests.model.tiny import tiny_model

from .client import run_python
from .faults import CutAnswer, Refuse, Slow
from .models import answers_of, no_token_in


FAULTY_LOADS = """
import errno, json, os, sys
import huggingface_hub.file_download as download
from hf_mmbalance import MMBalanceForAudioVisualClassification
from hf_mmbalance.hub import HubError, load_classifier

def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")

said, get = {}, download.http_get
for name, revision in json.loads(sys.argv[1]):
    download.http_get = full if name.endswith("/roomless") else get
    try:
        load_classifier(name, revision, device="cpu")
        said[name + "@" + str(revision)] = "loaded"
    except (HubError, ValueError) as error:
        said[name + "@" + str(revision)] = type(error).__name__ + ": " + str(error)
download.http_get = get
assert "transformers_modules" not in sys.modules, "code of a repository was run unasked"
print("ANSWERS", json.dumps(said))
"""


class Variants:
    """Repositories with the files of a saved model, of which something is changed; all methods return the name."""

    def __init__(self, hub, saved: Path):
        self.hub = hub
        self.files = {path.name: path.read_bytes() for path in saved.iterdir()}
        self.config = json.loads(self.files["config.json"])

    def seed(self, name: str, files: dict[str, bytes], private: bool = False) -> str:
        self.hub.server.seed("models", f"{self.hub.user}/{name}", files, private=private)
        return f"{self.hub.user}/{name}"

    def changed(self, name: str, *, drop: str = "", private: bool = False, **changes) -> str:
        """With other values in the config, and without the files whose names match."""
        kept = {name: data for name, data in self.files.items() if not (drop and re.search(drop, name))}
        return self.seed(name, {**kept, "config.json": json.dumps({**self.config, **changes}).encode()}, private)

    def codeless(self) -> str:
        plain = {key: value for key, value in self.config.items() if key not in ("auto_map", "custom_pipelines")}
        kept = {name: self.files[name] for name in ("model.safetensors", "processor_config.json")}
        return self.seed("codeless", {**kept, "config.json": json.dumps(plain).encode()})

    def without_weights(self) -> dict[str, bytes]:
        return {name: data for name, data in self.files.items() if not name.startswith("model.")}

    def hostile(self) -> str:
        """Weights and a file whose names leave the folder."""
        shard = {"metadata": {"total_size": 4}, "weight_map": {"fusion.alpha": "../../../../escaped.safetensors"}}
        weights = {
            "model.safetensors.index.json": json.dumps(shard).encode(),
            "../../../../escaped.safetensors": self.files["model.safetensors"],
        }
        return self.seed("hostile", {**self.without_weights(), **weights})

    def pickled(self) -> str:
        return self.seed("pickled", {**self.without_weights(), "pytorch_model.bin": b"not to be opened"})


def test_loads_that_cannot_be(hub, run_client, saved, tmp_path):
    """The client's own words and one sentence on what to do; and what is merely slow or shaky is loaded."""
    variants = Variants(hub, saved)
    seed = variants.changed
    hub.fail(
        Refuse(path="/shaky/resolve/.*config.json", status=500),
        CutAnswer(path="/cut/resolve/.*safetensors", method="GET", after_bytes=1000),
        Slow(path="/slow/resolve/.*safetensors", method="GET", seconds=1.0),
    )
    wanted = {
        (seed("fine"), "main"): "^loaded$",
        (seed("shaky"), None): "^loaded$",
        (seed("cut"), None): "^loaded$",
        (seed("slow"), None): "^loaded$",
        (variants.codeless(), None): "^loaded$",
        (f"{hub.user}/fine", "absent"): "not a valid git identifier.*Give a branch, tag or commit that exists",
        (f"{hub.user}/absent", None): r"absent is not a local folder.*Check the name \(user/name\)",
        (seed("secret", private=True), None): "Check the name .*for a private one, log in with `hf auth login`",
        (seed("newer", format_version=2), None): "saved by a newer hf_mmbalance.*pip install -U hf_mmbalance",
        (seed("unknown", fusion="of_the_future"), None): "fusion='of_the_future' is unknown: choose one of",
        (seed("half", drop=r"safetensors$"), None): "does not appear to have a file named.*push again",
        (seed("voiceless", drop=r"processor"), None): "HubError: loading model",
        (seed("roomless"), None): "(?i)The disk is full: make room, or set HF_HOME",
        (seed("bert", model_type="bert"), None): "is a 'bert' model: give one that was trained with hf_mmbalance",
        (seed("escape", fusion="../../evil:Head"), None): "is not a valid name: give a registered one",
        (seed("own", fusion="evil:Head"), None): "read its evil.py, and if you trust it pass trust_remote_code=True",
        (
            variants.seed("empty", {"README.md": b""}),
            None,
        ): "has no config.json that names a model type.*push it again",
        (variants.hostile(), None): "cannot contain a '..' path segment",
        (variants.pickled(), None): "does not appear to have a file named model.safetensors",
    }
    home = tmp_path / "home"
    done = run_client(FAULTY_LOADS, args=[json.dumps(list(wanted))], token=None, timeout=200, home=home)
    said = answers_of(done)
    for (name, revision), words in wanted.items():
        text = said[f"{name}@{revision}"]
        assert re.search(words, text, re.DOTALL), f"{name}@{revision}: {text}"
    assert not list(tmp_path.rglob("escaped*")), "a file left its folder"
    assert hub.log.count("resolve", method="GET", path=r"\.bin") == 0, "pickled weights were downloaded"
    no_token_in(hub, done.stdout, done.stderr, folders=(home,))


PREDICT = """
import sys
from hf_mmbalance.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


def test_the_command_prints_what_the_pipeline_says(hub, run_client, saved, clip, tmp_path):
    hub.server.seed("models", f"{hub.user}/m", {path.name: path.read_bytes() for path in saved.iterdir()})
    silent = write_clip(tmp_path / "silent.mp4", seconds=0.2, tone=None)
    args = ["predict", str(clip), str(silent), "nothing.mp4", "--model", f"{hub.user}/m", "--revision", "main"]
    done = run_client(
        PREDICT, args=[*args, "--top_k", "2", "--device", "cpu", "--json", str(tmp_path / "out.json")], check=False
    )
    assert done.returncode == 2 and "error: nothing.mp4: no such file" in done.stderr
    classify = AudioVisualClassificationPipeline(tiny_model(), processor=tiny_processor(), device="cpu")
    expected = [classify(str(path), top_k=2) for path in (clip, silent)]
    written = json.loads((tmp_path / "out.json").read_text())
    assert [entry["clip"] for entry in written] == [str(clip), str(silent), "nothing.mp4"]
    assert written[2] == {"clip": "nothing.mp4", "error": "nothing.mp4: no such file"}
    for entry, answer in zip(written[:2], expected, strict=True):
        assert_same(entry["answer"], answer)
    lines = [line.split() for line in done.stdout.splitlines()]
    best = expected[0][0]
    row = next(line for line in lines if line and line[0] == best["label"])
    numbers = [100 * best["score"], *best["share"].values(), *(100 * v for v in best["modality_score"].values())]
    np.testing.assert_allclose([float(word) for word in row[1:]], numbers, atol=0.06)
    assert any(line and line[0] == expected[1][0]["label"] and "-" in line for line in lines), "a missing modality"
    trust = {name: f"{100 * value:.1f}" for name, value in best["trust"].items()}
    assert f"{clip} (trust: audio {trust['audio']}, vision {trust['vision']})" in done.stdout
    assert f"{silent} (trust: audio -, vision" in done.stdout


@pytest.mark.slow
def test_the_server_is_asked_for_nothing_with_a_warm_cache_offline(hub, saved, tmp_path):
    hub.server.seed("models", f"{hub.user}/m", {path.name: path.read_bytes() for path in saved.iterdir()})
    code = f"from hf_mmbalance.hub import load_classifier\nload_classifier('{hub.user}/m', device='cpu')\n"
    run_python(hub.server, code, home=tmp_path / "home")
    hub.log.clear()
    run_python(hub.server, code, home=tmp_path / "home", env={"HF_HUB_OFFLINE": "1"})
    assert not list(hub.log)
