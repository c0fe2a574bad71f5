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
        own_features = [value.double().numpy() for value in out.modality_tokens]
        np.testing.assert_allclose(
            out.logits.softmax(-1).numpy(), allocation.predict_proba(logits, features=own_features), atol=1e-5
        )


def test_a_modality_that_does_not_know_a_class(tmp_path: Path) -> None:
    """Typicality and a mask of classes: the table's decisions, after saving too; a model without it is refused."""
    from hf_mmbalance import MMBalanceConfig, MMBalanceForAudioVisualClassification

    source = {"labels": ["a", "b", "c"], "classes": [[0], [1], [2], []], "layer_norm_eps": None, "layers": None}
    audio = {"model_type": "audio-spectrogram-transformer", **SMALL, "max_length": 16, "num_mel_bins": 16,
             "patch_size": 4, "frequency_stride": 4, "time_stride": 4}  # fmt: skip
    vision = {"model_type": "vit", **SMALL, "image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    options = {"audio_config": audio, "vision_config": vision, "id2label": CLASSES}
    config = MMBalanceConfig(**options, source_labels={"audio": source})
    model = MMBalanceForAudioVisualClassification(config).eval()
    data = draw_with_features(n=200)
    features = [np.pad(value, ((0, 0), (0, 16 - 6))) for value in data["features"]]
    with pytest.warns(UserWarning, match="does not know 1 of 4 classes"):
        allocation = Allocation(rung="typicality", folds=2).fit(
            data["logits"], data["labels"], data["groups"], features, known=config.known_classes
        )
    allocation.write_to(model)
    model.save_pretrained(tmp_path)
    read = state_of_run(tmp_path)
    assert read is not None and read.known.tolist() == config.known_classes
    loaded = MMBalanceForAudioVisualClassification.from_pretrained(tmp_path).eval()
    inputs = {"input_values": torch.randn(6, 16, 16), "pixel_values": torch.randn(6, 2, 3, 16, 16)}
    for own in (model, loaded):
        with torch.no_grad():
            out = own(**inputs)
        own_features = [value.double().numpy() for value in out.modality_tokens]
        want = allocation.predict_proba(out.modality_logits.double().numpy(), features=own_features)
        np.testing.assert_allclose(out.logits.softmax(-1).numpy(), want, atol=1e-5)
        assert (out.modality_contributions[:, 0, 3] == 0).all()
    with pytest.raises(
        ValueError, match=r"the model's modalities know \[4, 4\] of 4 classes, those of the fit different ones"
    ):
        allocation.write_to(MMBalanceForAudioVisualClassification(MMBalanceConfig(**options)))
