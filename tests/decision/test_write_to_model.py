"""The fitted allocation inside a real (tiny) model: same decisions, also after saving, also with one modality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_mmbalance.decision.allocation import Allocation
from hf_mmbalance.decision.state import state_of_run

from .drawn_tables import draw_with_features


torch = pytest.importorskip("torch")

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CLASSES = {0: "calm", 1: "angry", 2: "happy", 3: "sad"}


@pytest.fixture(scope="module")
def model() -> Any:
    from hf_mmbalance import MMBalanceConfig, MMBalanceForAudioVisualClassification

    audio = {"model_type": "audio-spectrogram-transformer", **SMALL, "max_length": 16, "num_mel_bins": 16,
             "patch_size": 4, "frequency_stride": 4, "time_stride": 4}  # fmt: skip
    vision = {"model_type": "vit", **SMALL, "image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    config = MMBalanceConfig(audio_config=audio, vision_config=vision, id2label=CLASSES, fusion="sum")
    return MMBalanceForAudioVisualClassification(config).eval()


@pytest.mark.parametrize("rung", ["dirichlet", "typicality", "bias"])
def test_decisions_are_the_tables_and_survive_saving(model: Any, rung: str, tmp_path: Path) -> None:
    data = draw_with_features(n=200)
    widths = model.fusion.feature_sizes
    features = [np.pad(value, ((0, 0), (0, width - 6))) for value, width in zip(data["features"], widths, strict=True)]
    allocation = Allocation(rung=rung, strengths=(3.0,), folds=2)
    allocation.fit(data["logits"], data["labels"], data["groups"], features)
    allocation.write_to(model)
    model.save_pretrained(tmp_path)
    read = state_of_run(tmp_path)
    assert read is not None
    want = allocation.decision_function(data["logits"], features)
    known = read.typicality(features, np.ones((200, 2), dtype=bool))
    np.testing.assert_allclose(read.fuse(data["logits"], known).logits, want, atol=1e-3)
    loaded = type(model).from_pretrained(tmp_path).eval()
    inputs = {"input_values": torch.randn(6, 16, 16), "pixel_values": torch.randn(6, 2, 3, 16, 16)}
    mask = torch.tensor([[True, True]] * 3 + [[True, False], [False, True], [True, True]])
    for own in (model, loaded):
        with torch.no_grad():
            out = own(**inputs, modality_mask=mask)
        logits = out.modality_logits.double().numpy()
        logits[~mask.numpy()] = np.nan
        own_features = [value.double().numpy() for value in out.modality_features]
        np.testing.assert_allclose(
            out.logits.softmax(-1).numpy(), allocation.predict_proba(logits, features=own_features), atol=1e-5
        )
