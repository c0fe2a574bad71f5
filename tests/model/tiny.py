"""Tiny models and inputs for the tests of the model package."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
import torch
from transformers import ASTFeatureExtractor, ViTImageProcessorPil

from hf_mmbalance import MMBalanceConfig, MMBalanceForAudioVisualClassification, MMBalanceProcessor


CLASSES = {0: "calm", 1: "angry", 2: "happy", 3: "sad"}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
AUDIO = {
    "model_type": "audio-spectrogram-transformer",
    **SMALL,
    "max_length": 24,
    "num_mel_bins": 16,
    "patch_size": 4,
    "frequency_stride": 4,
    "time_stride": 4,
}
VISION = {"model_type": "vit", **SMALL, "image_size": 16, "patch_size": 8}
#: An encoder for 1 s of sound: 100 spectrogram frames, 50 tokens.
WHISPER = {
    **{"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 16},
    **{"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "vocab_size": 60},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3},
    **{"max_source_positions": 50, "num_mel_bins": 16, "classifier_proj_size": 6},
}
HEADS = ("sum", "mean_prob", "concat", "gated", "film", "mmcosine", "qmf", "mla", "pdf", "adaptive")


def tiny_config(**options: Any) -> MMBalanceConfig:
    return MMBalanceConfig(
        **{"audio_config": dict(AUDIO), "vision_config": dict(VISION), "id2label": CLASSES, **options}
    )


def tiny_model(seed: int = 0, **options: Any) -> MMBalanceForAudioVisualClassification:
    """A tiny model whose every parameter is random, so that nothing cancels by chance of initialisation."""
    torch.manual_seed(seed)
    model = MMBalanceForAudioVisualClassification(tiny_config(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def tiny_processor(frames: int | None = 3) -> MMBalanceProcessor:
    """The processor of such a model; with `frames=None` it takes all frames it is given."""
    return MMBalanceProcessor(
        ASTFeatureExtractor(num_mel_bins=16, max_length=24),
        ViTImageProcessorPil(size={"height": 16, "width": 16}),
        reading=None if frames is None else {"frames": frames},
    )


def tiny_inputs(batch: int = 4, frames: int = 3, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "input_values": torch.randn(batch, 24, 16, generator=generator),
        "pixel_values": torch.randn(batch, frames, 3, 16, 16, generator=generator),
    }


def log_softmax(values: np.ndarray) -> np.ndarray:
    """By definition, in float64: not the code under test."""
    return values - np.log(np.exp(values).sum(-1, keepdims=True))


def random_case(batch: int = 5, modalities: int = 2, classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Logits `(B, M, C)`, and a mask in which every non-empty subset occurs often enough."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, modalities, classes, generator=generator)
    patterns = [[bool(code >> m & 1) for m in range(modalities)] for code in range(1, 2**modalities)]
    mask = torch.tensor([patterns[-1 - index % len(patterns)] for index in range(batch)])
    return logits, mask


def run_python(code: str, *arguments: Any, block: bool = False, **environment: str) -> subprocess.CompletedProcess:
    """Run code in a fresh process, in a separate folder; `block` makes `import hf_mmbalance` fail there."""
    blocker = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'hf_mmbalance':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}')\n"
        "sys.meta_path.insert(0, Blocker())\n"
    )
    return subprocess.run(
        [sys.executable, "-c", (blocker if block else "") + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        cwd=tempfile.gettempdir(),
    )
