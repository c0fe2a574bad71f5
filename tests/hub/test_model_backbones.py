"""Backbones from the Hub: checkpoints with the weight names of old are converted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import ASTConfig, ASTForAudioClassification, ViTConfig, ViTForImageClassification

from tests.model.tiny import AUDIO, VISION


BACKBONES = """
import json, os, sys
import torch
from hf_mmbalance import MMBalanceForAudioVisualClassification, MMBalanceProcessor
USER = os.environ["USER"]
names = (USER + "/ast", USER + "/vit")
model = MMBalanceForAudioVisualClassification.from_backbones(
    *names, id2label={0: "a", 1: "b"}, vision_revision="v1"
)
processor = MMBalanceProcessor.from_backbones(*names)
torch.save(model.state_dict(), sys.argv[1])
try:
    MMBalanceForAudioVisualClassification.from_backbones(USER + "/none", names[1], id2label={0: "a", 1: "b"})
except ValueError as error:
    print("SAID", error)
print("LENGTH", processor.feature_extractor.max_length)
"""


def legacy(folder: Path, model) -> Path:
    model.save_pretrained(folder, save_original_format=True)
    return folder


def test_backbones_come_from_the_hub_and_their_legacy_names_convert(hub, run_client, tmp_path):
    """Checkpoints in the form of the real ones: a classifier's, with a prefix, a head, and names of old."""
    torch.manual_seed(0)
    ast = ASTForAudioClassification(ASTConfig(**{k: v for k, v in AUDIO.items() if k != "model_type"}))
    vit = ViTForImageClassification(ViTConfig(**{k: v for k, v in VISION.items() if k != "model_type"}))
    for name, model in (("ast", ast), ("vit", vit)):
        folder = legacy(tmp_path / name, model)
        prefix = "audio_spectrogram_transformer" if name == "ast" else "vit"
        keys = set(load_file(folder / "model.safetensors"))
        assert f"{prefix}.encoder.layer.0.attention.attention.query.weight" in keys, "not the legacy form"
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        repo = hub.server.seed("models", f"{hub.user}/{name}", files)
        repo.tags["v1"] = repo.branches["main"]
    done = run_client(BACKBONES, args=[str(tmp_path / "state.pt")])
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    for prefix, tower in (("audio_model.", ast.base_model), ("vision_model.", vit.base_model)):
        for name, value in tower.state_dict().items():
            if not name.startswith("pooler."):
                torch.testing.assert_close(state[prefix + name], value, atol=0, rtol=0)
    assert f"LENGTH {AUDIO['max_length']}" in done.stdout
    assert f"audio backbone '{hub.user}/none' cannot be loaded" in done.stdout
    assert hub.log.count("resolve", method="GET", path="safetensors") == 2


@pytest.mark.slow
def test_real_checkpoints_with_legacy_names_convert(hub, run_client, real_data, tmp_path):
    """A DINOv2-sized pair: the tower's outputs are those of AutoModel on the file's own names."""
    weights = real_data.parent / "weights"
    if not weights.is_dir():
        pytest.skip(f"{weights} is not there: it must hold ast_s14_from_vit and vit_s14")
    from transformers import AutoModel

    for name, kept in (("ast", "ast_s14_from_vit"), ("vit", "vit_s14")):
        files = {path.name: path.read_bytes() for path in (weights / kept).iterdir()}
        repo = hub.server.seed("models", f"{hub.user}/{name}", files)
        repo.tags["v1"] = repo.branches["main"]
    run_client(BACKBONES, args=[str(tmp_path / "state.pt")])
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    for prefix, kept in (("audio_model.", "ast_s14_from_vit"), ("vision_model.", "vit_s14")):
        raw = load_file(weights / kept / "model.safetensors")
        assert "encoder.layer.0.attention.attention.query.weight" in raw
        query = state[f"{prefix}layers.0.attention.q_proj.weight"]
        torch.testing.assert_close(query, raw["encoder.layer.0.attention.attention.query.weight"].float())
        tower = AutoModel.from_pretrained(weights / kept, dtype=torch.float32).state_dict()
        for name, value in tower.items():
            if not name.startswith("pooler."):
                torch.testing.assert_close(state[prefix + name], value, atol=0, rtol=0)
