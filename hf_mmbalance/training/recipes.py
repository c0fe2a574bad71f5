"""The recipe that runs when nothing is asked for: tiny towers with random weights on the synthetic clips."""

from __future__ import annotations

from typing import Any


_TINY = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    # New towers start with class tokens of zero, whose layer norm has a gradient of 1 / sqrt(eps): 1e6 by default.
    "layer_norm_eps": 1e-5,
}

#: The same as configs/synthetic.yaml (a test compares them); here too, since a wheel does not carry configs/.
SYNTHETIC: dict[str, Any] = {
    "dataset": "synthetic",
    "audio_config": {
        "model_type": "audio-spectrogram-transformer",
        **_TINY,
        "num_mel_bins": 32,
        "max_length": 48,
        "patch_size": 8,
        "frequency_stride": 8,
        "time_stride": 8,
    },
    "vision_config": {"model_type": "vit", **_TINY, "image_size": 32, "patch_size": 8},
    "audio_mean": 1.3,
    "audio_std": 3.0,
    "fusion": "adaptive",
    "num_train_epochs": 14,
    "per_device_train_batch_size": 8,
    "learning_rate": 3e-3,
    "weight_decay": 0.01,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "allocation_learning_rate": 0.02,
}
