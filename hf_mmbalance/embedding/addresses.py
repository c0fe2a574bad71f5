"""Addresses of stored features: each one identifies the content of a clip and the tower that embedded it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import torch

from hf_mmbalance.model.modeling_mmbalance import MMBalanceForAudioVisualClassification
from hf_mmbalance.model.processing_mmbalance import MMBalanceProcessor
from hf_mmbalance.model.source_heads_mmbalance import SourceHead


#: Config entries that say where a model came from, not what it computes.
_ORIGIN = {"_name_or_path", "transformers_version", "_commit_hash", "dtype", "torch_dtype", "architectures",
           "id2label", "label2id", "auto_map", "processor_class", "image_processor_type",
           "feature_extractor_type"}  # fmt: skip


def content_key(part: np.ndarray, *about: Any) -> str:
    """Return a key for the audio or frames that reach the processor: a hash of dtype, shape, values and `about`."""
    digest = hashlib.blake2b(f"{part.dtype.str}{part.shape}{about}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(part).view(np.uint8).data)
    return digest.hexdigest()


def tower_fingerprint(
    model: MMBalanceForAudioVisualClassification, processor: MMBalanceProcessor, modality: str, dtype: torch.dtype
) -> str:
    """Return a key for everything that turns one modality's content into a feature.

    Args:
        model: model whose tower is hashed (config and weights, including a classifier's own head).
        processor: processor whose feature extractor or image processor is hashed.
        modality: `audio` or `vision`.
        dtype: dtype in which the tower computes.
    """
    audio = modality == "audio"
    prepared = processor.feature_extractor if audio else processor.image_processor
    tower = model.audio_model if audio else model.vision_model
    modules: dict[str, torch.nn.Module] = {"tower": tower}
    head = getattr(model, "unimodal_heads", [None, None])[list(model.config.modalities).index(modality)]
    if isinstance(head, SourceHead):  # its output per frame is stored too; the label map does not change it
        modules["linear"], modules["norm"] = head.linear, head.norm
    digest = hashlib.blake2b(digest_size=16)
    about = [_settings(tower.config.to_dict()), _settings(prepared.to_dict()), str(dtype)]
    digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    for name, module in modules.items():
        for key, value in sorted(module.state_dict().items()):
            digest.update(f"{name}.{key}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in _ORIGIN}
